//! Requests to random replicas: what came back, what is explained by a fault, what is not.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fastrand::Rng;
use reqwest::{Method, RequestBuilder, header::HeaderMap};

use crate::{
    ledger::Outcome,
    report::Report,
    windows::{ALL, Kind, Windows},
};

/// How long a request may take. A stopped replica does not answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(6);

/// Clients of all replicas; clones share connections.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    urls: Arc<Vec<String>>,
    report: Arc<Report>,
    windows: Arc<Windows>,
}

/// An answer with its body.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The status.
    pub(crate) status: u16,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The body, as far as it came.
    pub(crate) body: Bytes,
    /// Whether the body broke off.
    pub(crate) short: bool,
    /// Who answered.
    pub(crate) replica: usize,
}

/// A request without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The request was not sent: nothing listens there.
    Unsent,
    /// The request was sent.
    Sent,
}

impl Reply {
    /// A header's text, empty when there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// Whether the status is one of these.
    pub(crate) fn is(&self, statuses: &[u16]) -> bool {
        statuses.contains(&self.status)
    }
}

/// What a write's answer says of it; `done` are the statuses that acknowledge it.
pub(crate) fn outcome(reply: &Result<Reply, Lost>, done: &[u16]) -> Outcome {
    match reply {
        Ok(reply) if reply.is(done) => Outcome::Done,
        Ok(reply) if (400..500).contains(&reply.status) => Outcome::Refused,
        Ok(_) => Outcome::Partial,
        Err(Lost::Unsent) => Outcome::Refused,
        Err(Lost::Sent) => Outcome::Unknown,
    }
}

impl Client {
    /// Clients of these replicas.
    ///
    /// # Errors
    /// When no client can be built.
    pub(crate) fn new(
        urls: Vec<String>,
        report: Arc<Report>,
        windows: Arc<Windows>,
    ) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .connect_timeout(REQUEST_TIMEOUT)
            .build()?;
        Ok(Self {
            http,
            urls: Arc::new(urls),
            report,
            windows,
        })
    }

    /// How many replicas there are.
    pub(crate) fn count(&self) -> usize {
        self.urls.len()
    }

    /// Where broken expectations go.
    pub(crate) fn report(&self) -> &Report {
        &self.report
    }

    /// When which fault was.
    pub(crate) fn windows(&self) -> &Windows {
        &self.windows
    }

    /// A random replica.
    pub(crate) fn pick(&self, random: &mut Rng) -> usize {
        random.usize(..self.urls.len())
    }

    /// A request to a replica; `target` is a path, or what `Location` said.
    pub(crate) fn request(&self, replica: usize, method: Method, target: &str) -> RequestBuilder {
        let path = target
            .strip_prefix("http://")
            .and_then(|rest| rest.find('/').and_then(|at| rest.get(at..)))
            .unwrap_or(target);
        self.http
            .request(method, format!("{}{path}", self.urls[replica]))
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// [`Lost`]
    pub(crate) async fn send(
        &self,
        operation: &str,
        replica: usize,
        request: RequestBuilder,
    ) -> Result<Reply, Lost> {
        self.send_within(operation, replica, request, REQUEST_TIMEOUT)
            .await
    }

    /// [`Client::send`] with another time limit.
    ///
    /// # Errors
    /// [`Lost`]
    pub(crate) async fn send_within(
        &self,
        operation: &str,
        replica: usize,
        request: RequestBuilder,
        limit: Duration,
    ) -> Result<Reply, Lost> {
        let from = Instant::now();
        let mut response = match request.timeout(limit).send().await {
            Ok(response) => response,
            Err(error) => {
                let (lost, name) = if error.is_connect() {
                    (Lost::Unsent, "not connected")
                } else if error.is_timeout() {
                    (Lost::Sent, "timed out")
                } else {
                    (Lost::Sent, "connection lost")
                };
                self.report.answer(operation, name);
                let explained: &[Kind] = if error.is_timeout() {
                    &ALL
                } else {
                    &[Kind::Kill, Kind::Term]
                };
                if !self.windows.touched(explained, from) {
                    let what = format!("{operation}: {name} without a fault");
                    self.report.unexpected(what, format!("{error:?}"));
                }
                return Err(lost);
            }
        };
        let mut body = Vec::new();
        let mut short = false;
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(_) => {
                    short = true;
                    break;
                }
            }
        }
        let reply = Reply {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: body.into(),
            short,
            replica,
        };
        let status = format!("{}{}", reply.status, if short { " cut" } else { "" });
        self.report.answer(operation, &status);
        self.check_answer(operation, &reply, from);
        Ok(reply)
    }

    /// Statuses that no client may see, or only while a fault explains them.
    fn check_answer(&self, operation: &str, reply: &Reply, from: Instant) {
        let text = || {
            let end = reply.body.len().min(300);
            format!(
                "replica {}: {}",
                reply.replica,
                String::from_utf8_lossy(&reply.body[..end])
            )
        };
        let full = self.windows.touched(&[Kind::Full], from);
        match reply.status {
            500 if !full => self
                .report
                .violation("no 500", format!("{operation} from {}", text())),
            500 => self
                .report
                .unexpected(format!("{operation}: 500 while the volume is full"), text()),
            507 if !full => self
                .report
                .violation("507 only when full", format!("{operation} from {}", text())),
            502 | 504 if self.windows.touched(&ALL, from) => {}
            503 if self
                .windows
                .touched(&[Kind::Kill, Kind::Term, Kind::Stop, Kind::Upstream], from) => {}
            501..=504 => self
                .report
                .unexpected(format!("{operation}: {}", reply.status), text()),
            _ => {}
        }
        if reply.short && !self.windows.touched(&ALL, from) {
            self.report
                .violation("answers are whole", format!("{operation} from {}", text()));
        }
    }
}
