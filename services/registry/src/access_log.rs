//! The access log: one line per request, under the log target `access`, when its answer has ended.
//!
//! A line never contains a query (upload sessions are signed there) or a header that may carry a
//! credential.

use std::{
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use holdfast_config::{AccessLog as Settings, AccessLogMode};
use holdfast_runtime::server::PeerAddr;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};

use crate::body::Body;

/// Longest text of a client that a line repeats.
const TEXT: usize = 256;

/// Decides which requests are logged, and logs them.
#[derive(Debug)]
pub(crate) struct AccessLog {
    mode: AccessLogMode,
    sample: u64,
    pulls: AtomicU64,
}

/// What is known of a request before it is answered.
#[derive(Debug)]
pub(crate) struct Line {
    begun: Instant,
    method: Method,
    path: String,
    peer: Option<std::net::SocketAddr>,
    agent: String,
    received: Option<u64>,
    with_credentials: bool,
}

impl AccessLog {
    /// By the settings; `None` when nothing is logged.
    pub(crate) fn new(settings: &Settings) -> Option<Self> {
        (settings.mode != AccessLogMode::None).then(|| Self {
            mode: settings.mode,
            sample: u64::from(settings.sample.max(1)),
            pulls: AtomicU64::new(0),
        })
    }

    /// Remembers what a line says of the request.
    pub(crate) fn begin<B>(request: &Request<B>, begun: Instant) -> Line {
        let header = |name| request.headers().get(name)?.to_str().ok();
        Line {
            begun,
            method: request.method().clone(),
            path: cut(request.uri().path()),
            peer: request.extensions().get::<PeerAddr>().map(|peer| peer.0),
            agent: cut(header(header::USER_AGENT).unwrap_or_default()),
            received: header(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()),
            with_credentials: request.headers().contains_key(header::AUTHORIZATION),
        }
    }

    /// Whether a request that was answered so is logged. A client that asks whether something is
    /// there, or comes without credentials to learn which are needed, has not failed.
    fn wants(&self, line: &Line, status: StatusCode) -> bool {
        let reads = line.method == Method::GET || line.method == Method::HEAD;
        let asks = (status == StatusCode::NOT_FOUND && line.method == Method::HEAD)
            || (status == StatusCode::UNAUTHORIZED && !line.with_credentials);
        let failed = (status.is_client_error() || status.is_server_error()) && !asks;
        match self.mode {
            AccessLogMode::None => false,
            _ if failed => true,
            AccessLogMode::Failures => false,
            AccessLogMode::Writes => !reads,
            AccessLogMode::All => {
                !reads
                    || self
                        .pulls
                        .fetch_add(1, Ordering::Relaxed)
                        .is_multiple_of(self.sample)
            }
        }
    }

    /// Logs the request when the answer's body ends, if it is to be logged. `actor` is the caller
    /// that access control identified.
    pub(crate) fn follow(
        &self,
        line: Line,
        handler: &'static str,
        actor: String,
        response: Response<Body>,
    ) -> Response<Body> {
        if !self.wants(&line, response.status()) {
            return response;
        }
        let entry = Entry {
            status: response.status().as_u16(),
            answered: line.begun.elapsed(),
            line,
            handler,
            actor,
        };
        response.map(|inner| {
            let mut followed = LoggedBody {
                inner,
                sent: 0,
                complete: false,
                entry: Some(entry),
            };
            if followed.is_end_stream() {
                followed.complete = true;
                followed.log();
            }
            followed.boxed_unsync()
        })
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

struct Entry {
    line: Line,
    handler: &'static str,
    actor: String,
    status: u16,
    answered: std::time::Duration,
}

/// A body that logs its request once it has ended or was given up.
struct LoggedBody {
    inner: Body,
    sent: u64,
    complete: bool,
    entry: Option<Entry>,
}

impl LoggedBody {
    fn is_end_stream(&self) -> bool {
        hyper::body::Body::is_end_stream(&self.inner)
    }

    fn log(&mut self) {
        let Some(Entry {
            line,
            handler,
            actor,
            status,
            answered,
        }) = self.entry.take()
        else {
            return;
        };
        let peer = line.peer.map(|peer| peer.to_string()).unwrap_or_default();
        let (method, path, agent) = (line.method.as_str(), line.path, line.agent);
        tracing::info!(
            target: "access",
            {
                http.method = method,
                http.path = path,
                http.status = status,
                http.handler = handler,
                http.user_agent = agent,
                client.address = peer,
                client.user = actor,
                received_bytes = line.received.unwrap_or(0),
                sent_bytes = self.sent,
                complete = self.complete,
                answered_ms = answered.as_secs_f64() * 1e3,
                took_ms = line.begun.elapsed().as_secs_f64() * 1e3,
            },
            "request"
        );
    }
}

impl hyper::body::Body for LoggedBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let next = Pin::new(&mut self.inner).poll_frame(context);
        match &next {
            Poll::Ready(Some(Ok(frame))) => {
                self.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                if self.is_end_stream() {
                    self.complete = true;
                }
            }
            Poll::Ready(None) => {
                self.complete = true;
                self.log();
            }
            Poll::Ready(Some(Err(_))) => self.log(),
            Poll::Pending => {}
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for LoggedBody {
    fn drop(&mut self) {
        // Behind `Content-Length` bytes the server asks no more.
        if hyper::body::Body::size_hint(&self.inner).exact() == Some(0) {
            self.complete = true;
        }
        self.log();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(mode: AccessLogMode, method: &str, status: u16, with_credentials: bool) -> bool {
        let log = AccessLog::new(&Settings { mode, sample: 1 });
        let mut request = Request::builder()
            .method(method)
            .uri("/v2/a/tags/list?_state=secret");
        if with_credentials {
            request = request.header("authorization", "Basic c2VjcmV0");
        }
        log.is_some_and(|log| {
            let line = AccessLog::begin(&request.body(()).unwrap(), Instant::now());
            assert!(!format!("{line:?}").contains("cret"), "{line:?}");
            log.wants(&line, StatusCode::from_u16(status).unwrap())
        })
    }

    #[test]
    fn the_mode_says_what_is_logged() {
        use AccessLogMode::{All, Failures, None, Writes};
        for (method, status, credentials, expect) in [
            ("GET", 200, true, &[All][..]),
            ("HEAD", 404, true, &[All]),
            ("GET", 401, false, &[All]),
            ("PUT", 201, true, &[All, Writes]),
            ("DELETE", 202, true, &[All, Writes]),
            ("GET", 401, true, &[All, Writes, Failures]),
            ("GET", 404, true, &[All, Writes, Failures]),
            ("PUT", 507, true, &[All, Writes, Failures]),
        ] {
            for mode in [None, Failures, Writes, All] {
                assert_eq!(
                    wants(mode, method, status, credentials),
                    expect.contains(&mode),
                    "{mode:?} {method} {status}"
                );
            }
        }
    }

    #[test]
    fn of_pulls_that_succeed_one_in_so_many_is_logged_and_every_write() {
        let log = AccessLog::new(&Settings {
            mode: AccessLogMode::All,
            sample: 10,
        })
        .unwrap();
        let count = |method: &str| {
            (0..100)
                .filter(|_| {
                    let request = Request::builder().method(method).body(()).unwrap();
                    log.wants(&AccessLog::begin(&request, Instant::now()), StatusCode::OK)
                })
                .count()
        };
        assert_eq!(count("GET"), 10);
        assert_eq!(count("PUT"), 100);
    }
}
