//! Honest clients of a registry: pulls of what is local, pulls of what the healthy upstream has,
//! and probes.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_testkit::Image;
use serde::Serialize;

use crate::{
    http::{self, Connection, Sink, Target},
    stats::Series,
};

/// Between two pulls of a local image.
const LOCAL_EVERY: Duration = Duration::from_millis(100);
/// Between two pulls of an image that is not local yet.
const COLD_EVERY: Duration = Duration::from_secs(1);
/// Between two probes, and how long one may take: what a kubelet does.
const PROBE_EVERY: Duration = Duration::from_millis(500);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// A pull that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What they pull, and with which login.
pub(super) struct Clients<'a> {
    pub(super) target: &'a Target,
    pub(super) admin: SocketAddr,
    /// The header of the login.
    pub(super) login: &'a str,
    /// A local image by its path, `/v2/NAME`.
    pub(super) local: (&'a str, &'a Image),
    /// The path of the healthy upstream's images.
    pub(super) healthy: &'a str,
}

/// What they noticed over a time; milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Noticed {
    /// Pulls of the local image.
    pub(super) local: Series,
    /// Pulls of fresh images of the healthy upstream.
    pub(super) cold: Series,
    /// Probes.
    pub(super) probes: Series,
    /// The steps of the slowest local pull and of the slowest cold one.
    pub(super) slowest: [String; 2],
    /// What failed, and why.
    pub(super) failed: Vec<String>,
}

/// A fresh image of the healthy upstream, under its tag.
pub(super) type Fresh<'a> = (String, &'a Image);

impl Clients<'_> {
    /// Pulls and probes for so long; a cold image each second, as long as there are some.
    pub(super) async fn pull(&self, length: Duration, fresh: &[Fresh<'_>]) -> Noticed {
        let end = Instant::now() + length;
        let local = repeat(end, LOCAL_EVERY, "local pull", async |_| {
            let (path, image) = self.local;
            self.image(path, "1", image).await
        });
        let cold = repeat(end, COLD_EVERY, "cold pull", async |number| {
            let (tag, image) = fresh.get(number).context("no further image")?;
            self.image(self.healthy, tag, image).await
        });
        let probes = repeat(end, PROBE_EVERY, "probe", async |number| {
            let target = Target {
                address: self.admin,
                tls: None,
            };
            let path = ["/livez", "/readyz"][number % 2];
            let asked = tokio::time::timeout(PROBE_TIMEOUT, http::get(&target, path));
            let (head, _) = asked.await.context("no answer within a second")??;
            ensure!(head.status == 200, "{path}: status {}", head.status);
            Ok(String::new())
        });
        let (local, cold, probes) = tokio::join!(local, cold, probes);
        Noticed {
            local: local.0,
            cold: cold.0,
            probes: probes.0,
            slowest: [local.1, cold.1],
            failed: [local.2, cold.2, probes.2].concat(),
        }
    }

    /// Pulls manifest and blobs of an image on a connection of its own, and checks the bytes. Tells
    /// how long each step took.
    async fn image(&self, path: &str, tag: &str, image: &Image) -> Result<String> {
        // What is waited for, to say it of a pull that fails, and when that began.
        let step = std::cell::RefCell::new(("a connection".to_owned(), Instant::now()));
        let mut steps = Vec::new();
        let mut next = |name: String| {
            let (name, begun) = step.replace((name, Instant::now()));
            steps.push(format!(
                "{name} {:.1} ms",
                begun.elapsed().as_secs_f64() * 1e3
            ));
        };
        let pull = async {
            let mut connection = Connection::open(self.target).await?;
            let manifest = (format!("{path}/manifests/{tag}"), image.bytes());
            let blobs = image.blobs.iter().map(|(digest, bytes)| {
                let blob = format!("{path}/blobs/{digest}");
                (blob, bytes.clone())
            });
            for (path, bytes) in std::iter::once(manifest).chain(blobs) {
                next(path.clone());
                if !connection.is_reusable() {
                    connection = Connection::open(self.target).await?;
                }
                let mut got = Vec::with_capacity(bytes.len());
                let head = format!(
                    "GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: {}\r\nAccept: */*\r\n\r\n",
                    self.login
                );
                let sink = Sink::Keep(&mut got);
                let answer = connection
                    .request(head.as_bytes(), &[], sink, |_| {})
                    .await?;
                let said = String::from_utf8_lossy(got.get(..200).unwrap_or(&got));
                ensure!(answer.status == 200, "status {}: {said}", answer.status);
                ensure!(got == bytes, "other bytes");
            }
            next(String::new());
            Ok(())
        };
        let pulled = tokio::time::timeout(TIMEOUT, pull).await;
        let pulled = pulled.context("not within half a minute").flatten();
        pulled.with_context(|| step.borrow().0.clone())?;
        Ok(steps.join(", "))
    }
}

/// Does it at this pace until `end`: how long each took, the outcome of the slowest one, and what
/// failed. One that is late does not make others be left out, but they are not made up for.
async fn repeat(
    end: Instant,
    every: Duration,
    name: &str,
    work: impl AsyncFn(usize) -> Result<String>,
) -> (Series, String, Vec<String>) {
    let (mut times, mut failed) = (Series::default(), Vec::new());
    let (mut longest, mut slowest) = (0.0, String::new());
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for number in 0.. {
        tick.tick().await;
        if Instant::now() >= end {
            break;
        }
        let begun = Instant::now();
        match work(number).await {
            Ok(outcome) => {
                let took = begun.elapsed().as_secs_f64() * 1e3;
                times.0.push(took);
                if longest < took {
                    (longest, slowest) = (took, format!("{name} {number}: {outcome}"));
                }
            }
            Err(error) => failed.push(format!("{name} {number}: {error:#}")),
        }
    }
    (times, slowest, failed)
}
