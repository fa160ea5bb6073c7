//! Sends the node's report to the controller: to each replica that listens, after a change. Every
//! minute it confirms the last one by its digest, and sends it again to a replica that does not
//! have it.
//!
//! Only the leading replica listens. A replica that refused is tried again, so a new leader has all
//! reports within half a minute, and a controller that restarted under its address within two.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_api::names::Names;
use holdfast_api::report::{self, NodeReport};
use holdfast_runtime::supervise::Heartbeat;
use holdfast_runtime::tls::{self, ClientTls};
use http::StatusCode;
use tokio::sync::watch;

/// Time between two confirmations of a report that a replica has.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(60);
/// Time between two tries, and between two looks for new replicas.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// Time for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for a report.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Why nothing can be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client certificate is not there yet, or cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The report cannot be written as JSON.
    #[error("cannot write the report")]
    Json(#[from] serde_json::Error),
    /// The HTTP client cannot be made, or the controller does not answer.
    #[error("the controller does not answer: {0}")]
    Http(#[from] reqwest::Error),
    /// The controller refuses the report.
    #[error("the controller refuses the report: {0}")]
    Refused(StatusCode),
    /// The reporter ended.
    #[error("there are no more reports")]
    Ended(#[from] watch::error::RecvError),
}

/// Sends reports to the controller of a release.
#[derive(Debug)]
pub struct Sender {
    folder: PathBuf,
    host: String,
    taken: HashMap<SocketAddr, Taken>,
}

/// The report that a replica has.
#[derive(Debug)]
struct Taken {
    digest: String,
    /// When it is confirmed next.
    due: Instant,
}

/// A report as it is posted.
struct Posted<'a> {
    node: &'a str,
    body: Vec<u8>,
    digest: String,
}

impl Sender {
    /// A sender with the certificate in `folder`, which is read each time, because it is renewed.
    pub fn new(names: &Names, folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            host: names.dns(&names.controller_internal()),
            taken: HashMap::new(),
        }
    }

    /// Sends every report that arrives, and confirms the last one. Runs for ever.
    pub async fn run(
        &mut self,
        mut reports: watch::Receiver<Option<NodeReport>>,
        heartbeat: &Heartbeat,
    ) -> Result<(), Error> {
        loop {
            heartbeat.beat();
            let report = reports.borrow_and_update().clone();
            if let Some(report) = report {
                let host = (self.host.as_str(), report::PORT);
                let addresses: Vec<_> = match tokio::net::lookup_host(host).await {
                    Ok(addresses) => addresses.collect(),
                    Err(error) => {
                        tracing::debug!(%error, "the controller cannot be found");
                        Vec::new()
                    }
                };
                match self.send(&report, &addresses).await {
                    Ok(true) => heartbeat.success(),
                    Ok(false) => {}
                    // The controller makes the certificate after the first pods start.
                    Err(error) => tracing::debug!(%error, "the report cannot be sent yet"),
                }
            }
            tokio::select! {
                changed = reports.changed() => changed?,
                () = tokio::time::sleep(RETRY_INTERVAL) => {}
            }
        }
    }

    /// Brings the report to each replica, which confirms it if it has it. True if one has it now.
    ///
    /// # Errors
    /// There is no certificate that can be used.
    pub async fn send(
        &mut self,
        report: &NodeReport,
        addresses: &[SocketAddr],
    ) -> Result<bool, Error> {
        let body = serde_json::to_vec(report)?;
        let report = Posted {
            node: &report.node,
            digest: report::digest(&body),
            body,
        };
        let tls = ClientTls::from_folder(&self.folder)?;
        self.taken
            .retain(|address, taken| addresses.contains(address) && taken.digest == report.digest);
        for address in addresses {
            let known = self.taken.get(address);
            if known.is_some_and(|taken| Instant::now() < taken.due) {
                continue;
            }
            let client = self.client(&tls, *address)?;
            match bring(&client, &self.host, *address, &report, known.is_some()).await {
                Ok(()) => {
                    let taken = Taken {
                        digest: report.digest.clone(),
                        due: Instant::now() + CONFIRM_INTERVAL,
                    };
                    self.taken.insert(*address, taken);
                }
                // A replica that does not lead does not listen.
                Err(error) => {
                    self.taken.remove(address);
                    tracing::debug!(%address, %error, "a report was not taken");
                }
            }
        }
        Ok(!self.taken.is_empty())
    }

    /// Makes all confirmations due, as after a minute.
    #[doc(hidden)]
    pub fn make_due(&mut self) {
        for taken in self.taken.values_mut() {
            taken.due = Instant::now();
        }
    }

    fn client(&self, tls: &ClientTls, address: SocketAddr) -> Result<reqwest::Client, Error> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(SEND_TIMEOUT)
            .tls_backend_preconfigured(tls.config()?)
            .resolve(&self.host, address)
            .build()?;
        Ok(client)
    }
}

/// Confirms the report, or posts it if the replica may not have it.
async fn bring(
    client: &reqwest::Client,
    host: &str,
    address: SocketAddr,
    report: &Posted<'_>,
    may_have_it: bool,
) -> Result<(), Error> {
    let port = address.port();
    let url = format!("https://{host}:{port}{}{}", report::PATH, report.node);
    let post = async |url: String, body: Vec<u8>| {
        let answer = client.post(url).body(body).send().await?;
        let status = answer.status();
        status
            .is_success()
            .then_some(())
            .ok_or(Error::Refused(status))
    };
    if may_have_it {
        let confirm = format!("{url}{}", report::CONFIRM);
        match post(confirm, report.digest.clone().into_bytes()).await {
            Err(Error::Refused(StatusCode::NOT_FOUND)) => {}
            outcome => return outcome,
        }
    }
    post(url, report.body.clone()).await
}
