//! Whether this node is prepared, judged by the outcomes of real pulls, and when to pull again.
//! Pure; time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cri::{self, Fault};

/// Time to the next pull after one that succeeded.
const PULL_INTERVAL: Duration = Duration::from_secs(300);
/// The longest pause after a pull that failed; the shortest is one second.
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(60);

/// What the pulls of this process have shown so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    proven: bool,
    failures: u32,
}

/// The conclusion from a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Pods with rewritten images can start on this node.
    Ready(String),
    /// They may not start.
    NotReady(String),
}

impl Readiness {
    /// Forgets all pulls: the registry has another address, or the runtime was replaced.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Failed pulls since the last one that succeeded; at most seven.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Records the outcome of a pull. Returns the verdict and the pause until the next pull.
    ///
    /// A failure of the registry says nothing about the node, so a node that was proven stays
    /// ready. Otherwise an outage of the registry would make all nodes unprepared.
    pub fn record(
        &mut self,
        probe: &str,
        outcome: Result<Duration, &cri::grpc::Error>,
    ) -> (Verdict, Duration) {
        let error = match outcome {
            Ok(took) => {
                *self = Self {
                    proven: true,
                    failures: 0,
                };
                return (
                    Verdict::Ready(format!("pulled {probe} in {} ms", took.as_millis())),
                    PULL_INTERVAL,
                );
            }
            Err(error) => error,
        };
        self.failures = (self.failures + 1).min(7);
        let pause = Duration::from_secs(1 << (self.failures - 1)).min(MAX_RETRY_PAUSE);
        let side = match cri::fault(error) {
            Fault::Node => {
                self.proven = false;
                "the node"
            }
            Fault::Registry => "the registry",
            Fault::Runtime => "the container runtime",
        };
        let text = format!("the last pull of {probe} failed, the fault is at {side}: {error}");
        if self.proven {
            (
                Verdict::Ready(format!("a former pull succeeded; {text}")),
                pause,
            )
        } else {
            (Verdict::NotReady(text), pause)
        }
    }
}

/// Repairs of one file per hour. Then the agent leaves the file as it is for the rest of the hour.
const MAX_REPAIRS_PER_HOUR: usize = 5;
const HOUR: Duration = Duration::from_secs(3600);

/// The times of the repairs within the last hour, by file, since the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repairs {
    times: BTreeMap<String, Vec<Duration>>,
}

impl Repairs {
    /// Records repairs.
    pub fn note(&mut self, paths: &[String], now: Duration) {
        for path in paths {
            self.times.entry(path.clone()).or_default().push(now);
        }
    }

    /// The files that the agent no longer repairs at `now`.
    pub fn exhausted(&mut self, now: Duration) -> std::collections::BTreeSet<String> {
        for times in self.times.values_mut() {
            times.retain(|time| now.saturating_sub(*time) < HOUR);
        }
        self.times.retain(|_, times| !times.is_empty());
        self.times
            .iter()
            .filter(|(_, times)| times.len() >= MAX_REPAIRS_PER_HOUR)
            .map(|(path, _)| path.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::grpc::Error;

    fn status(message: &str) -> Error {
        Error::Status {
            code: 2,
            message: message.to_owned(),
        }
    }

    #[test]
    fn a_registry_that_is_down_does_not_unprove_a_node() {
        let mut readiness = Readiness::default();
        let down =
            status("failed to do request: dial tcp 10.96.0.50:443: connect: connection refused");
        let distrust = status(
            "tls: failed to verify certificate: x509: certificate signed by unknown authority",
        );
        let mut ready = |outcome| matches!(readiness.record("p", outcome).0, Verdict::Ready(_));
        assert!(!ready(Err(&down)), "nothing is proven yet");
        assert!(ready(Ok(Duration::from_millis(3))));
        assert!(ready(Err(&down)), "proven before");
        assert!(!ready(Err(&distrust)), "pods would not start");
        assert!(!ready(Err(&down)), "no longer proven");
    }

    #[test]
    fn pauses_grow_to_a_minute_and_end_with_success() {
        let mut readiness = Readiness::default();
        let error = status("not found");
        let mut pause = |outcome| readiness.record("p", outcome).1.as_secs();
        let pauses: Vec<u64> = (0..8).map(|_| pause(Err(&error))).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pause(Ok(Duration::ZERO)), 300);
        assert_eq!(pause(Err(&error)), 1);
    }

    #[test]
    fn repairs_are_bounded_by_the_hour() {
        let (mut repairs, path) = (Repairs::default(), "certs.d/a/hosts.toml".to_owned());
        for minute in 0..5 {
            let now = Duration::from_secs(60 * minute);
            assert!(repairs.exhausted(now).is_empty());
            repairs.note(std::slice::from_ref(&path), now);
        }
        assert!(repairs.exhausted(Duration::from_secs(600)).contains(&path));
        assert!(
            repairs.exhausted(Duration::from_secs(3601)).is_empty(),
            "the first repair is an hour old"
        );
    }
}
