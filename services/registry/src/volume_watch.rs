//! The watch over the volume: readiness, metrics, whether the volume hangs and whether it is still
//! the same one.
//!
//! It runs on a thread of its own, so requests that hang on the volume do not delay it. Liveness
//! never depends on it: a new process would hang as well.

mod measured;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use holdfast_runtime::{CancellationToken, health::Flag};
use holdfast_store::{Pool, SpaceLevel, Store, VolumeHealth};
use tokio::time::Instant;

pub use measured::MeasuredVolume;

use crate::{limits, metrics::Volume as Metrics};

/// Whether the volume hangs. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct VolumeStatus {
    hangs: Arc<AtomicBool>,
}

impl VolumeStatus {
    /// Whether the volume has not answered for so long that requests do not wait for it.
    pub fn hangs(&self) -> bool {
        self.hangs.load(Ordering::Relaxed)
    }

    fn set(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::Relaxed);
    }
}

/// The interval of the watch, and its time limits.
#[derive(Clone, Copy, Debug)]
pub struct WatchIntervals {
    /// Time between two checks.
    pub every: Duration,
    /// The registry is not ready after this time without an answer.
    pub deadline: Duration,
    /// Requests are refused instead of waiting after this time without an answer.
    pub hang: Duration,
}

impl Default for WatchIntervals {
    fn default() -> Self {
        Self {
            every: limits::VOLUME_EVERY,
            deadline: limits::VOLUME_DEADLINE,
            hang: limits::VOLUME_HANG,
        }
    }
}

/// Waits for the store to be opened and says meanwhile why the registry is not ready. `None` when
/// the process is to end first.
pub(crate) async fn opened<E>(
    opening: impl Future<Output = Result<Store, E>>,
    intervals: WatchIntervals,
    ready: &Flag,
    shutdown: &CancellationToken,
) -> Option<Result<Store, E>> {
    ready.failed("the volume is being opened");
    let mut opening = std::pin::pin!(opening);
    let begun = Instant::now();
    let mut wait = intervals.deadline;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return None,
            store = &mut opening => return Some(store),
            () = tokio::time::sleep(wait) => {
                if wait == intervals.deadline {
                    tracing::warn!("the volume does not answer; the registry serves as soon as it does");
                }
                ready.failed(&silent(begun));
                wait = POLL_INTERVAL;
            }
        }
    }
}

/// Between two looks at a clock while the volume is silent.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

fn silent(since: Instant) -> String {
    format!(
        "the volume has not answered for {} s",
        since.elapsed().as_secs()
    )
}

/// The watch.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) store: Store,
    pub(crate) ready: Flag,
    pub(crate) volume_status: VolumeStatus,
    pub(crate) metrics: Metrics,
    pub(crate) intervals: WatchIntervals,
}

impl Watch {
    /// Watches until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let own = Pool::new(1);
        let mut state = State::default();
        loop {
            let (store, pool) = (self.store.clone(), own.clone());
            let look = tokio::spawn(async move { pool.run(move || store.check_health()).await });
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.evaluate(look, &mut state) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(self.intervals.every) => {}
            }
        }
    }

    /// Waits for one look, however long that takes, and draws the conclusions on the way.
    async fn evaluate(
        &self,
        mut look: tokio::task::JoinHandle<holdfast_store::Result<VolumeHealth>>,
        state: &mut State,
    ) {
        let begun = Instant::now();
        let mut wait = self.intervals.deadline;
        let outcome = loop {
            tokio::select! {
                outcome = &mut look => break outcome,
                () = tokio::time::sleep(wait) => {
                    if !std::mem::replace(&mut state.silent, true) {
                        tracing::warn!("the volume does not answer in time, the registry is not ready");
                    }
                    self.ready.failed(&silent(begun));
                    self.metrics.up.set(0);
                    if begun.elapsed() >= self.intervals.hang && !self.volume_status.hangs() {
                        tracing::error!("the volume hangs, requests are refused until it answers");
                        self.volume_status.set(true);
                    }
                    wait = POLL_INTERVAL.min(self.intervals.hang);
                }
            }
        };
        self.volume_status.set(false);
        if std::mem::take(&mut state.silent) {
            tracing::info!(
                after_seconds = begun.elapsed().as_secs(),
                "the volume answers again"
            );
        }
        match outcome {
            Ok(Ok(health)) => self.take(&health, state),
            Ok(Err(error)) => {
                if !std::mem::replace(&mut state.failing, true) {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "the volume fails, the registry is not ready");
                }
                self.metrics.up.set(0);
                self.ready.failed(&format!("the volume fails: {error}"));
            }
            Err(error) => self.ready.failed(&format!("the watch failed: {error}")),
        }
    }

    fn take(&self, health: &VolumeHealth, state: &mut State) {
        state.failing = false;
        self.metrics.up.set(1);
        self.metrics.available.set(health.space.available_bytes);
        self.metrics.size.set(health.space.total_bytes);
        self.metrics.level.set(match health.level {
            SpaceLevel::Enough => 0,
            SpaceLevel::Filling => 1,
            SpaceLevel::Full => 2,
        });
        if let Some(id) = &health.volume_id {
            let before = state.volume.replace(id.clone());
            if before.is_some_and(|before| before != *id) {
                self.metrics.swaps.inc();
                tracing::error!(
                    "the volume was replaced by another one: what it holds is served, what it \
                     lacks is copied again"
                );
            }
        }
        if state.room != Some(health.level) {
            let (available_bytes, used_percent) =
                (health.space.available_bytes, health.space.used_percent());
            match health.level {
                SpaceLevel::Enough if state.room.is_none() => {}
                SpaceLevel::Enough => tracing::info!(available_bytes, "the volume has room again"),
                SpaceLevel::Filling => {
                    tracing::warn!(available_bytes, used_percent, "the volume is filling");
                }
                SpaceLevel::Full => tracing::error!(
                    available_bytes,
                    used_percent,
                    "the volume is full, writes are refused; pulls continue"
                ),
            }
            state.room = Some(health.level);
        }
        // A full volume is ready: pulls continue.
        self.ready.ok(match (health.writable, health.level) {
            (false, _) => "answers, but takes no writes",
            (true, SpaceLevel::Full) => "answers, and is full",
            (true, _) => "answers",
        });
    }
}

/// What the watch saw last, so that it logs each change once.
#[derive(Debug, Default)]
struct State {
    silent: bool,
    failing: bool,
    room: Option<SpaceLevel>,
    volume: Option<String>,
}
