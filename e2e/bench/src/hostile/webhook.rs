//! A webhook replica and hostile reviews of the largest size.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use holdfast_cluster::ApiServer;
use holdfast_testkit::{hostile::reviews, server::free_address};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::attackers::Attackers;
use crate::{
    certificates::Authority,
    controller::{
        api::Api,
        release::{self, NAMESPACE, namespaced},
    },
    http::{self, Connection, Sink, Target},
    process::Process,
    stats::Series,
};

/// Hostile reviews at once.
const HOSTILE: usize = 64;
/// Bytes of each: the most that the webhook takes (docs/LIMITS.md).
const LARGEST: usize = 5 << 20;
/// Between two of one sender.
const PAUSE: Duration = Duration::from_millis(500);
/// Honest reviews before memory counts as idle.
const WARM: usize = 100;
/// Between two honest reviews.
const REVIEW_INTERVAL: Duration = Duration::from_millis(20);
/// A review that takes longer has failed: the API server waits no longer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// One kind of hostile review in one round.
#[derive(Debug, Serialize)]
pub(super) struct Kind {
    /// What they are made of.
    pub(super) name: &'static str,
    /// How long they came.
    pub(super) seconds: f64,
    /// Hostile reviews that were sent to their end, or refused or cut before.
    pub(super) sent: u64,
    /// Resident memory of the new process, and its peak meanwhile; bytes.
    pub(super) idle_bytes: u64,
    pub(super) peak_bytes: u64,
    /// Milliseconds of honest reviews.
    pub(super) honest: Series,
    /// Honest reviews that were not answered with a patch, and why.
    pub(super) failed: Vec<String>,
    /// CPU seconds of the senders, and of the webhook.
    pub(super) senders_cpu_seconds: f64,
    pub(super) cpu_seconds: f64,
}

/// The API server with the chart, and the webhook's files.
pub(crate) struct Site {
    server: ApiServer,
    folder: PathBuf,
    kubeconfig: PathBuf,
    authority: Authority,
}

impl Site {
    /// Starts an API server, installs the chart, and says that the registry is there.
    pub(crate) async fn prepare(scratch: &Path) -> Result<Self> {
        let folder = scratch.join("webhook");
        fs::create_dir_all(&folder)?;
        let server = ApiServer::start()?;
        let api = Api::new(&server)?;
        release::install(&server, &folder)?;
        release::silence_webhook(&api).await?;
        let config = api.get(&namespaced("configmaps/holdfast-config")).await?;
        let config = config.context("no configuration")?;
        let config = config["data"]["config.yaml"].as_str();
        fs::write(folder.join("config.yaml"), config.context("an empty one")?)?;
        let state =
            json!({"registryAddress": "10.96.0.50", "aliases": [], "rewrite": true, "reason": ""});
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "holdfast-state", "namespace": NAMESPACE},
            "data": {"state.json": state.to_string()},
        });
        api.post(&namespaced("configmaps"), &map).await?;
        let authority = Authority::new()?;
        authority.write(&folder.join("tls"))?;
        Ok(Self {
            kubeconfig: server.kubeconfig(),
            server,
            folder,
            authority,
        })
    }

    /// A client of its API server.
    pub(crate) fn api(&self) -> Result<Api> {
        Api::new(&self.server)
    }

    /// All kinds of hostile reviews against one new process, each for so long.
    pub(super) async fn round(&self, length: Duration) -> Result<Vec<Kind>> {
        let (process, target) = self.start().await?;
        // Of the new process: what reviews leave behind counts, too.
        let idle_bytes = process.usage()?.rss_bytes;
        let mut kinds = Vec::new();
        for (name, body) in reviews::worst(LARGEST) {
            process.reset_peak()?;
            let before = process.usage()?;
            let sent = Arc::new(AtomicU64::new(0));
            let counted = Arc::clone(&sent);
            let mut senders = Attackers::prepare({
                let target = target.clone();
                move |tell, begin: oneshot::Receiver<()>| async move {
                    tell.send(()).ok();
                    begin.await.ok();
                    for _ in 0..HOSTILE {
                        let counted = Arc::clone(&counted);
                        tokio::spawn(send(target.clone(), body.clone(), counted));
                    }
                    std::future::pending().await
                }
            })?;
            let begun = Instant::now();
            senders.begin(());
            let (honest, failed) = honest(&target, Instant::now() + length, usize::MAX).await;
            let senders_cpu_seconds = senders.cpu_seconds();
            let after = process.usage().context("the webhook has ended")?;
            drop(senders);
            kinds.push(Kind {
                name,
                seconds: begun.elapsed().as_secs_f64(),
                idle_bytes,
                sent: sent.load(Ordering::Relaxed),
                peak_bytes: after.peak_rss_bytes,
                honest,
                failed,
                senders_cpu_seconds,
                cpu_seconds: after.cpu_seconds - before.cpu_seconds,
            });
        }
        Ok(kinds)
    }

    /// Starts the webhook, and warms it up by honest reviews.
    pub(crate) async fn start(&self) -> Result<(Process, Target)> {
        let (listen, admin) = (free_address()?, free_address()?);
        let mut command = Command::new(crate::holdfast()?);
        command
            .arg("webhook")
            .arg("--config")
            .arg(self.folder.join("config.yaml"))
            .arg("--tls-folder")
            .arg(self.folder.join("tls"))
            .args(["--listen", &listen.to_string()])
            .args(["--admin-listen", &admin.to_string()])
            .env("KUBECONFIG", &self.kubeconfig);
        let log = self.folder.join("webhook.log");
        let mut process = Process::start(&mut command, &log)?;
        let target = Target {
            address: listen,
            tls: Some(self.authority.client()?),
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = review(&target, &mut None, 0).await {
            ensure!(
                !process.has_ended() && Instant::now() < deadline,
                "the webhook does not rewrite: {error:#}: {}",
                fs::read_to_string(&log).unwrap_or_default().trim()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (_, failed) = honest(&target, deadline, WARM).await;
        ensure!(failed.is_empty(), "without hostile reviews: {failed:?}");
        Ok((process, target))
    }
}

/// Sends a hostile review again and again.
async fn send(target: Target, body: Bytes, sent: Arc<AtomicU64>) {
    loop {
        // To be refused or cut is the outcome that it usually has.
        let one = async {
            let mut connection = Connection::open(&target).await?;
            let head = http::head("POST", "/mutate", Some(body.len()));
            connection.request(&head, &body, Sink::Count, |_| {}).await
        };
        one.await.ok();
        sent.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Honest reviews until `end`, at most `most`: how long each took, and what failed.
async fn honest(target: &Target, end: Instant, most: usize) -> (Series, Vec<String>) {
    let (mut times, mut failed) = (Series::default(), Vec::new());
    let mut connection = None;
    for number in 0..most {
        if Instant::now() >= end {
            break;
        }
        let begun = Instant::now();
        match review(target, &mut connection, number).await {
            Ok(()) => times.0.push(begun.elapsed().as_secs_f64() * 1e3),
            Err(error) => failed.push(format!("{error:#}")),
        }
        tokio::time::sleep(REVIEW_INTERVAL).await;
    }
    (times, failed)
}

/// One honest review on a connection that is kept, as API servers do; its answer has to hold a
/// patch.
pub(crate) async fn review(
    target: &Target,
    kept: &mut Option<Connection>,
    number: usize,
) -> Result<()> {
    let asked = async {
        let mut connection = match kept.take().filter(Connection::is_reusable) {
            Some(connection) => connection,
            None => Connection::open(target).await?,
        };
        let body = reviews::honest(number);
        let head = http::head("POST", "/mutate", Some(body.len()));
        let mut got = Vec::new();
        let sink = Sink::Keep(&mut got);
        let answer = connection.request(&head, &body, sink, |_| {}).await?;
        ensure!(answer.status == 200, "status {}", answer.status);
        let answer: Value = serde_json::from_slice(&got)?;
        let patch = &answer["response"]["patchType"];
        ensure!(patch == "JSONPatch", "no patch: {answer}");
        *kept = Some(connection);
        Ok(())
    };
    let asked = tokio::time::timeout(TIMEOUT, asked).await;
    asked.context("no answer within five seconds")?
}
