//! The scrubber: hashes all stored content again, slowly, so that damage is found before a pull
//! finds it.
//!
//! One replica scrubs at a time, by a lock on the volume; its position is kept there, too, so that
//! the next one continues from it. Damaged content is moved aside, and fetched again at once if an
//! upstream has it (SPEC 37); otherwise the next push restores it.

use std::{sync::Arc, time::Duration};

use holdfast_core::{
    ManifestRef,
    digest::{Algorithm, Digest},
    rewrite::is_upstream_namespace,
};
use holdfast_runtime::{
    CancellationToken,
    metrics::{Group, unix_seconds},
};
use holdfast_store::{Hasher, Lock, LockAttempt, LockHolder, Store};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use serde::{Deserialize, Serialize};
use std::sync::atomic::AtomicU64;
use tokio::time::Instant;

use crate::Metrics as Requests;
use holdfast_fill::pull_through::PullThrough;

/// The scrubber's metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    scanned: Counter,
    corrupt: Counter,
    refetched: Counter,
    last_pass: Gauge<f64, AtomicU64>,
    running: Gauge,
}

impl Metrics {
    /// Registers them as `holdfast_registry_scrub_…`.
    pub fn register(registry: &mut Registry) -> Self {
        let mut group = Group::own(registry, "registry_scrub");
        Self {
            scanned: group.add(
                "scanned_bytes",
                "Stored bytes hashed again",
                Counter::default(),
            ),
            corrupt: group.add(
                "corrupt",
                "Blobs and manifests found damaged and moved aside",
                Counter::default(),
            ),
            refetched: group.add(
                "refetched",
                "Damaged content that was asked of an upstream again",
                Counter::default(),
            ),
            last_pass: group.add(
                "last_pass_timestamp_seconds",
                "When everything had been hashed last, in seconds since 1970; 0: never yet",
                Gauge::default(),
            ),
            running: group.add("running", "1 while this replica scrubs", Gauge::default()),
        }
    }
}

/// The settings of the scrubber.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes a second.
    pub rate: u64,
    /// Time between the beginnings of two passes.
    pub every: Duration,
    /// Before the first look after the start, and between two looks at whether a pass is due.
    pub look: Duration,
}

/// Requests under way from which on the scrubber waits for a while.
const BUSY: i64 = 8;
/// How long it waits for a piece while requests are under way: it slows down and never stops.
const YIELDS: Duration = Duration::from_secs(1);
/// Bytes of one read.
const PIECE: u64 = 256 << 10;
/// How often the position is kept.
const KEEP: Duration = Duration::from_secs(30);
/// The note on the volume, and the lock.
const NAME: &str = "scrub";
const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// The position of the scrubber on a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Position {
    /// When the pass began, in seconds since 1970.
    began: f64,
    /// The digest that was hashed last; empty when no pass is under way.
    after: String,
    /// When the last full pass ended.
    finished: f64,
}

/// Hashes all stored content.
pub struct Scrubber {
    store: Store,
    source: Option<Arc<dyn PullThrough>>,
    owner: LockHolder,
    settings: Settings,
    metrics: Metrics,
    requests: Requests,
    /// When the next piece may be read.
    next: Instant,
}

impl std::fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrubber").finish_non_exhaustive()
    }
}

impl Scrubber {
    /// A scrubber of `store` that fetches what is damaged from `source` and gives way to what
    /// `requests` count.
    pub fn new(
        store: Store,
        source: Option<Arc<dyn PullThrough>>,
        owner: LockHolder,
        settings: Settings,
        metrics: Metrics,
        requests: Requests,
    ) -> Self {
        Self {
            store,
            source,
            owner,
            settings,
            metrics,
            requests,
            next: Instant::now(),
        }
    }

    /// Scrubs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(self.settings.look) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                outcome = self.look() => if let Err(error) = outcome {
                    tracing::warn!(%error, "the scrubber stopped and will resume");
                }
            }
            self.metrics.running.set(0);
        }
    }

    /// Scrubs if a pass is due or under way and no other replica does it.
    async fn look(&mut self) -> holdfast_store::Result<()> {
        let position = self.position().await?;
        self.metrics.last_pass.set(position.finished);
        let due = unix_seconds() - position.began >= self.settings.every.as_secs_f64();
        if position.after.is_empty() && !due {
            return Ok(());
        }
        let LockAttempt::Acquired(lock) = self.store.try_lock(NAME, &self.owner).await? else {
            return Ok(());
        };
        self.metrics.running.set(1);
        // Another replica may have finished between the look and the lock.
        let mut position = self.position().await?;
        if position.after.is_empty() {
            if unix_seconds() - position.began < self.settings.every.as_secs_f64() {
                return Ok(());
            }
            position.began = unix_seconds();
            tracing::info!("the scrubber starts a pass over all stored content");
        } else {
            tracing::info!(after = position.after, "the scrubber resumes");
        }
        let outcome = self.pass(&mut position, &lock).await;
        if !lock.is_lost() {
            self.keep(&position).await?;
            lock.release(self.store.pool()).await;
        }
        outcome
    }

    async fn pass(&mut self, position: &mut Position, lock: &Lock) -> holdfast_store::Result<()> {
        let (mut blobs, mut corrupt) = (0_u64, 0_u64);
        let mut kept = Instant::now();
        let begin = Digest::parse(&position.after).ok();
        for algorithm in ALGORITHMS {
            if begin
                .as_ref()
                .is_some_and(|begin| algorithm_rank(begin.algorithm()) > algorithm_rank(algorithm))
            {
                continue;
            }
            for part in 0..=u8::MAX {
                for digest in self.store.blobs_of(algorithm, part).await? {
                    let before = |begin: &Digest| {
                        begin.algorithm() == digest.algorithm() && digest.hex() <= begin.hex()
                    };
                    if begin.as_ref().is_some_and(before) {
                        continue;
                    }
                    if !self.hash(&digest, lock).await? {
                        corrupt += 1;
                        self.metrics.corrupt.inc();
                        self.heal(&digest).await;
                    }
                    if lock.is_lost() {
                        return Ok(());
                    }
                    blobs += 1;
                    position.after = digest.to_string();
                    if kept.elapsed() >= KEEP {
                        kept = Instant::now();
                        self.keep(position).await?;
                    }
                }
            }
        }
        position.after.clear();
        position.finished = unix_seconds();
        self.metrics.last_pass.set(position.finished);
        tracing::info!(
            blobs,
            corrupt,
            "the scrubber finished a pass over all stored content"
        );
        Ok(())
    }

    /// Whether a blob is sound, or gone. Damaged content is moved aside.
    async fn hash(&mut self, digest: &Digest, lock: &Lock) -> holdfast_store::Result<bool> {
        let Some(blob) = self.store.open_blob(digest).await? else {
            return Ok(true);
        };
        let mut hasher = Hasher::new(digest.algorithm());
        let mut offset = 0;
        while offset < blob.size() {
            self.pace().await;
            if lock.is_lost() {
                return Ok(true);
            }
            let piece = blob
                .read_at(offset, PIECE.min(blob.size() - offset))
                .await?;
            if piece.is_empty() {
                break;
            }
            hasher.update(&piece);
            offset += piece.len() as u64;
            self.metrics.scanned.inc_by(piece.len() as u64);
            let took =
                Duration::from_secs_f64(piece.len() as f64 / self.settings.rate.max(1) as f64);
            self.next = self.next.max(Instant::now()) + took;
        }
        if hasher.finish() == *digest {
            self.store.remember_verified(&blob);
            return Ok(true);
        }
        // A push or a fill may have put sound content there meanwhile: it is hashed once more
        // before it is moved.
        match self.store.verify_blob(digest).await {
            Ok(_) => Ok(true),
            Err(holdfast_store::Error::Corrupt { .. }) => {
                tracing::error!(image.digest = %digest, "the scrubber found damaged content and moved it aside");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for the rate, and a while longer when clients are served.
    async fn pace(&self) {
        tokio::time::sleep_until(self.next).await;
        let begun = Instant::now();
        while self.requests.under_way() >= BUSY && begun.elapsed() < YIELDS {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks the upstreams of the repositories that refer to it. Where none has it, the next push
    /// heals it.
    async fn heal(&self, digest: &Digest) {
        let Some(source) = &self.source else {
            return;
        };
        let repositories = match self.store.referring(digest).await {
            Ok(repositories) => repositories,
            Err(error) => {
                tracing::warn!(
                    image.digest = %digest, %error,
                    "cannot find the repositories that refer to damaged content"
                );
                return;
            }
        };
        for (repo, manifest) in repositories {
            if !is_upstream_namespace(&repo) || !source.fetches(&repo) {
                continue;
            }
            let asked = if manifest {
                let reference = ManifestRef::Digest(digest.clone());
                source.manifest(&repo, &reference).await.map(drop)
            } else {
                source.blob(&repo, digest).await.map(drop)
            };
            match asked {
                Ok(()) => {
                    self.metrics.refetched.inc();
                    tracing::info!(image.digest = %digest, image.repository = %repo, "damaged content is fetched again");
                    return;
                }
                Err(error) => {
                    tracing::warn!(image.digest = %digest, image.repository = %repo, %error, "damaged content cannot be fetched again now; the next pull tries");
                }
            }
        }
    }

    async fn position(&self) -> holdfast_store::Result<Position> {
        let note = self.store.state_file(NAME).await?;
        // A note that does not parse is of a crash or of another version: a pass begins again.
        Ok(note
            .and_then(|note| serde_json::from_slice(&note).ok())
            .unwrap_or_default())
    }

    async fn keep(&self, position: &Position) -> holdfast_store::Result<()> {
        let bytes = serde_json::to_vec(position).unwrap_or_default();
        self.store.write_state_file(NAME, bytes).await
    }
}

fn algorithm_rank(algorithm: Algorithm) -> usize {
    ALGORITHMS
        .iter()
        .position(|known| *known == algorithm)
        .unwrap_or(0)
}
