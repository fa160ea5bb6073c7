//! Which failed Artifacts are retried before their pause ends.
//!
//! A pause grows to minutes. But a running pod shows that its image can be pulled, and a new pod
//! needs it now.

use holdfast_cluster_index::Key;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// The least time between two retries of one Artifact, however many pods its namespace creates.
const MIN_INTERVAL: Duration = Duration::from_secs(15);
/// Pods that are remembered for one Artifact.
const MAX_PODS_PER_ARTIFACT: usize = 1000;

/// What is known of the Artifacts that failed.
#[derive(Debug, Default)]
pub struct RetryTriggers {
    known: HashMap<Key, Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// UIDs of pods, and whether they ran.
    seen: BTreeSet<(String, bool)>,
    last: Option<Instant>,
    pending: bool,
}

impl RetryTriggers {
    /// Takes every Artifact that failed, with the pods that need it (UID, and whether it runs).
    /// Returns those to retry now. The pods of an Artifact that just failed trigger no retry.
    pub fn triggered(
        &mut self,
        failed: HashMap<Key, BTreeSet<(String, bool)>>,
        now: Instant,
    ) -> Vec<Key> {
        let mut woken = Vec::new();
        let mut next = HashMap::with_capacity(failed.len());
        for (key, pods) in failed {
            let pods: BTreeSet<_> = pods.into_iter().take(MAX_PODS_PER_ARTIFACT).collect();
            let known = match self.known.remove(&key) {
                None => Known {
                    seen: pods,
                    ..Known::default()
                },
                Some(mut known) => {
                    known.pending |= pods.difference(&known.seen).next().is_some();
                    known.seen = pods;
                    let rested = known
                        .last
                        .is_none_or(|last| now.saturating_duration_since(last) >= MIN_INTERVAL);
                    if known.pending && rested {
                        known.pending = false;
                        known.last = Some(now);
                        woken.push(key.clone());
                    }
                    known
                }
            };
            next.insert(key, known);
        }
        self.known = next;
        woken.sort();
        woken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second, the pods that are seen then and whether each runs, and whether the Artifact is
    /// woken.
    type Look<'a> = (u64, &'a [(&'a str, bool)], bool);

    fn check(looks: &[Look<'_>]) {
        let key: Key = ("apps".to_owned(), "a".to_owned());
        let (mut triggers, begun) = (RetryTriggers::default(), Instant::now());
        for (second, pods, expect) in looks {
            let pods = pods
                .iter()
                .map(|(uid, runs)| ((*uid).to_owned(), *runs))
                .collect();
            let failed = [(key.clone(), pods)].into();
            let woken = triggers.triggered(failed, begun + Duration::from_secs(*second));
            assert_eq!(woken.len(), usize::from(*expect), "{looks:?} at {second}");
        }
    }

    #[test]
    fn a_running_or_new_pod_ends_the_pause_once() {
        check(&[(0, &[("a", false)], false), (1, &[("a", false)], false)]);
        check(&[
            (0, &[("a", false)], false),
            (1, &[("a", true)], true),
            (60, &[("a", true)], false),
        ]);
        check(&[
            (0, &[("a", false)], false),
            (1, &[("a", false), ("b", false)], true),
        ]);
    }

    #[test]
    fn many_pods_trigger_no_more_retries_than_the_interval_permits() {
        check(&[
            (0, &[], false),
            (1, &[("a", false)], true),
            (2, &[("b", false)], false),
            (10, &[("c", false)], false),
            (16, &[("c", false)], true),
            (40, &[("c", false)], false),
        ]);
    }

    #[test]
    fn an_artifact_that_was_held_in_between_starts_over() {
        let key: Key = ("apps".to_owned(), "a".to_owned());
        let (mut triggers, now) = (RetryTriggers::default(), Instant::now());
        let pods: BTreeSet<_> = [("a".to_owned(), false)].into();
        triggers.triggered([(key.clone(), BTreeSet::new())].into(), now);
        triggers.triggered(HashMap::new(), now);
        assert!(triggers.triggered([(key, pods)].into(), now).is_empty());
    }
}
