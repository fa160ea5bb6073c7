//! Sends the node's report to the controller: to each replica that listens, after a change and
//! every ten minutes.
//!
//! Only the leading replica listens. A replica that refused is tried again, so a new leader has all
//! reports within half a minute.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_api::names::Names;
use holdfast_api::report::{self, NodeReport};
use holdfast_runtime::supervise::Heartbeat;
use holdfast_runtime::tls::{self, ClientTls};
use tokio::sync::watch;

/// Time between two reports to a replica when nothing changes.
const INTERVAL: Duration = Duration::from_secs(600);
/// Time between two tries, and between two looks for new replicas.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// Time for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for a report.
const SEND_TIMEOUT: Duration = Duration::from_secs(20);

/// Why nothing can be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The HTTP client cannot be made, or the controller does not answer.
    #[error("the controller does not answer: {0}")]
    Http(#[from] reqwest::Error),
    /// The controller refuses the report.
    #[error("the controller refuses the report: {0}")]
    Refused(String),
    /// The reporter ended.
    #[error("there are no more reports")]
    Ended(#[from] watch::error::RecvError),
}

/// Sends reports to the controller of a release.
#[derive(Debug)]
pub struct Sender {
    tls: ClientTls,
    host: String,
    /// When each replica took the last report.
    taken: HashMap<SocketAddr, Instant>,
}

impl Sender {
    /// A sender with the certificate in `folder`.
    pub fn new(names: &Names, folder: &Path) -> Result<Self, Error> {
        Ok(Self {
            tls: ClientTls::from_folder(folder)?,
            host: names.dns(&names.controller_internal()),
            taken: HashMap::new(),
        })
    }

    /// Sends every report that arrives, and repeats the last one. Runs for ever.
    pub async fn run(
        &mut self,
        mut reports: watch::Receiver<Option<NodeReport>>,
        heartbeat: &Heartbeat,
    ) -> Result<(), Error> {
        loop {
            heartbeat.beat();
            if reports.has_changed().unwrap_or(false) {
                self.taken.clear();
            }
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
                if self.send(&report, &addresses).await {
                    heartbeat.success();
                }
            }
            tokio::select! {
                changed = reports.changed() => changed?,
                () = tokio::time::sleep(RETRY_INTERVAL) => {}
            }
        }
    }

    /// Sends the report to each replica that did not take it lately. True if one has it now.
    pub async fn send(&mut self, report: &NodeReport, addresses: &[SocketAddr]) -> bool {
        self.taken
            .retain(|address, at| addresses.contains(address) && at.elapsed() < INTERVAL);
        for address in addresses {
            if self.taken.contains_key(address) {
                continue;
            }
            match self.post(report, *address).await {
                Ok(()) => {
                    self.taken.insert(*address, Instant::now());
                }
                // A replica that does not lead does not listen.
                Err(error) => tracing::debug!(%address, %error, "a report was not taken"),
            }
        }
        !self.taken.is_empty()
    }

    async fn post(&self, report: &NodeReport, address: SocketAddr) -> Result<(), Error> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(SEND_TIMEOUT)
            .tls_backend_preconfigured(self.tls.config()?)
            .resolve(&self.host, address)
            .build()?;
        let (host, port) = (&self.host, address.port());
        let url = format!("https://{host}:{port}{}{}", report::PATH, report.node);
        let answer = client.post(url).json(report).send().await?;
        if answer.status().is_success() {
            return Ok(());
        }
        Err(Error::Refused(answer.status().to_string()))
    }
}
