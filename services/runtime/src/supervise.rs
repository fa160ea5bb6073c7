//! Background loops: a loop is restarted when it ends or fails, and fails liveness when it is
//! stuck.
//!
//! A loop that fails is not stuck. If every attempt fails because the API server is down, the
//! process stays alive.

use crate::health::Health;
use crate::metrics::{Group, unix_seconds};
use futures::FutureExt as _;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The label of the metrics of loops.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LoopLabel {
    name: &'static str,
}

/// Starts and supervises loops.
#[derive(Clone, Debug)]
pub struct Supervisor {
    health: Health,
    last_success: Family<LoopLabel, Gauge<f64, AtomicU64>>,
    restarts: Family<LoopLabel, Counter>,
    shutdown: CancellationToken,
}

/// The handle by which a loop reports that it is alive and that it succeeds.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    born: Instant,
    last_beat_millis: Arc<AtomicU64>,
    last_success: Gauge<f64, AtomicU64>,
}

impl Heartbeat {
    /// Reports that a round was tried, whatever its outcome.
    pub fn beat(&self) {
        let millis = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_beat_millis.store(millis, Ordering::Relaxed);
    }

    /// Reports that a round succeeded. This is a beat, too.
    pub fn success(&self) {
        self.beat();
        self.last_success.set(unix_seconds());
    }

    fn silence(&self) -> Duration {
        let beat = Duration::from_millis(self.last_beat_millis.load(Ordering::Relaxed));
        self.born.elapsed().saturating_sub(beat)
    }
}

impl Supervisor {
    /// A supervisor that reports to `health` and `registry` and ends its loops at `shutdown`.
    pub fn new(health: Health, registry: &mut Registry, shutdown: CancellationToken) -> Self {
        let mut group = Group::own(registry, "");
        let last_success = group.add(
            "loop_last_success_timestamp_seconds",
            "When a background loop last succeeded, in seconds since 1970",
            Family::default(),
        );
        let restarts = group.add(
            "loop_restarts",
            "Restarts of a background loop",
            Family::default(),
        );
        Self {
            health,
            last_success,
            restarts,
            shutdown,
        }
    }

    /// Runs the loop `start` until shutdown, and restarts it with growing pauses (1 s to 30 s) when
    /// it ends, fails or panics. `/livez` fails if its [`Heartbeat`] is silent for longer than
    /// `stuck_after`.
    pub fn spawn<F, E>(
        &self,
        name: &'static str,
        stuck_after: Duration,
        mut start: impl FnMut(Heartbeat) -> F + Send + 'static,
    ) -> JoinHandle<()>
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + Send,
    {
        let label = LoopLabel { name };
        let heartbeat = Heartbeat {
            born: Instant::now(),
            last_beat_millis: Arc::default(),
            last_success: self.last_success.get_or_create(&label).clone(),
        };
        let pulse = heartbeat.clone();
        self.health.live(name, move || {
            let silence = pulse.silence();
            if silence > stuck_after {
                Err(format!("no heartbeat for {} s", silence.as_secs()))
            } else {
                Ok(format!("last heartbeat {} s ago", silence.as_secs()))
            }
        });
        let restarts = self.restarts.get_or_create(&label).clone();
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let mut pause = Pause::default();
            loop {
                heartbeat.beat();
                let began = Instant::now();
                // A panic must not end the requests that the process serves.
                let run = std::panic::AssertUnwindSafe(start(heartbeat.clone())).catch_unwind();
                let outcome = tokio::select! {
                    () = shutdown.cancelled() => return,
                    outcome = run => outcome,
                };
                if shutdown.is_cancelled() {
                    return;
                }
                let wait = pause.next(began.elapsed());
                match outcome {
                    Ok(Ok(())) => {
                        tracing::warn!(loop.name = name, "a background loop ended; restarting it");
                    }
                    Err(_) => {
                        tracing::error!(
                            loop.name = name,
                            "a background loop panicked; restarting it"
                        );
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(
                            loop.name = name, error = %error,
                            "a background loop failed; restarting it"
                        );
                    }
                }
                restarts.inc();
                heartbeat.beat();
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        })
    }
}

/// Pauses between restarts: they double from one second to thirty, and start over after the loop
/// ran for a minute.
#[derive(Debug, Default)]
struct Pause {
    failures: u32,
}

impl Pause {
    fn next(&mut self, ran: Duration) -> Duration {
        self.failures = if ran > Duration::from_secs(60) {
            0
        } else {
            (self.failures + 1).min(6)
        };
        Duration::from_secs((1_u64 << self.failures.saturating_sub(1)).min(30))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failing_loop_is_started_again_and_stays_alive() {
        let health = Health::default();
        let mut registry = Registry::default();
        let shutdown = CancellationToken::new();
        let supervisor = Supervisor::new(health.clone(), &mut registry, shutdown.clone());
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let task = supervisor.spawn("state", Duration::from_secs(60), move |heartbeat| {
            let sender = sender.clone();
            async move {
                heartbeat.beat();
                sender.send(()).unwrap();
                Err::<(), _>("no API server")
            }
        });
        for _ in 0..2 {
            receiver.recv().await.unwrap();
        }
        assert!(health.livez().ok, "{}", health.livez().text);
        shutdown.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_loop_that_panics_is_started_again() {
        let mut registry = Registry::default();
        let shutdown = CancellationToken::new();
        let supervisor = Supervisor::new(Health::default(), &mut registry, shutdown.clone());
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let task = supervisor.spawn("state", Duration::from_secs(60), move |_| {
            let sender = sender.clone();
            async move {
                sender.send(()).unwrap();
                assert!(sender.is_closed(), "a mistake");
                Ok::<_, String>(())
            }
        });
        for _ in 0..2 {
            receiver.recv().await.unwrap();
        }
        shutdown.cancel();
        task.await.unwrap();
    }

    #[test]
    fn a_silent_loop_is_stuck() {
        let heartbeat = Heartbeat {
            born: Instant::now()
                .checked_sub(Duration::from_secs(100))
                .unwrap(),
            last_beat_millis: Arc::new(AtomicU64::new(10_000)),
            last_success: Gauge::default(),
        };
        assert!(heartbeat.silence() >= Duration::from_secs(90));
        heartbeat.success();
        assert!(heartbeat.silence() < Duration::from_secs(1));
    }

    #[test]
    fn pauses_grow_and_are_forgiven() {
        let mut pause = Pause::default();
        let quick = Duration::from_millis(1);
        let waits: Vec<u64> = (0..7).map(|_| pause.next(quick).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pause.next(Duration::from_secs(61)).as_secs(), 1);
    }
}
