//! Which upstreams answer, as the copies of Artifacts met them. Pure: values and time in, values
//! out.

use holdfast_api::Artifact;
use holdfast_api::artifact::Reason;
use holdfast_api::delivery::{Answer, HostState, MAX_HOSTS};
use holdfast_cluster_index::Key;
use holdfast_core::{Reference, RepositoryName};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Failed attempts of a host's Artifacts together from which the host counts as away.
const AWAY_ATTEMPTS: i64 = 3;
/// Repositories that must fail: one may fail for a reason of its own.
const AWAY_REPOSITORIES: usize = 2;
/// How exactly the state says when it was confirmed, in seconds: each change is a write.
const CONFIRMATION_STEP: i64 = 60;

/// What the last look saw of an Artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    uid: Option<String>,
    reason: String,
    attempts: i64,
    copied: Option<Time>,
    /// Whether its upstream did not answer, and nothing else is known since.
    failing: bool,
}

/// What is known of a host. Times in seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Evidence {
    answered: Option<i64>,
    failed: Option<i64>,
    /// Attempts of the Artifacts that fail now.
    failing: i64,
    /// The repositories of these Artifacts, up to [`AWAY_REPOSITORIES`].
    repositories: Vec<RepositoryName>,
    /// Whether an Artifact names the host.
    named: bool,
}

/// The hosts of upstreams, over the life of one leader.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    seen: HashMap<Key, Seen>,
    evidence: BTreeMap<String, Evidence>,
}

/// What a reason says about the upstream.
fn answered(reason: &str) -> Option<bool> {
    let is = |any: &[Reason]| any.iter().any(|known| known.as_str() == reason);
    if is(&[
        Reason::Copied,
        Reason::Unauthorized,
        Reason::NotFound,
        Reason::UpstreamInvalid,
    ]) {
        Some(true)
    } else if is(&[Reason::UpstreamUnavailable]) {
        Some(false)
    } else {
        None
    }
}

impl Hosts {
    /// Continues with the state that an earlier leader wrote.
    pub(super) fn resume(earlier: &[HostState]) -> Self {
        let evidence = earlier.iter().map(|host| {
            let at = Some(host.confirmed.0.as_second());
            let evidence = match host.state {
                Answer::Answers => Evidence {
                    answered: at,
                    ..Evidence::default()
                },
                Answer::Away => Evidence {
                    failed: at,
                    ..Evidence::default()
                },
            };
            (host.host.clone(), evidence)
        });
        Self {
            seen: HashMap::new(),
            evidence: evidence.collect(),
        }
    }

    /// Records the Artifacts at `now`, in seconds.
    pub(super) fn observe<'a>(
        &mut self,
        artifacts: impl Iterator<Item = (&'a Key, &'a Artifact)>,
        now: i64,
    ) {
        let before = std::mem::take(&mut self.seen);
        // The name of an Artifact follows from its source.
        let held: HashSet<&str> = before
            .iter()
            .filter(|(_, seen)| seen.reason == Reason::Copied.as_str())
            .map(|((_, name), _)| name.as_str())
            .collect();
        for evidence in self.evidence.values_mut() {
            evidence.failing = 0;
            evidence.repositories.clear();
            evidence.named = false;
        }
        for (key, artifact) in artifacts {
            let Ok(source) = Reference::parse(&artifact.spec.source_artifact) else {
                continue;
            };
            let earlier = before
                .get(key)
                .filter(|earlier| earlier.uid == artifact.metadata.uid);
            let seen = look(artifact, earlier);
            let evidence = self.evidence.entry(source.host().to_string()).or_default();
            let is_news = earlier.is_none_or(|earlier| {
                (earlier.attempts, &earlier.reason, &earlier.copied)
                    != (seen.attempts, &seen.reason, &seen.copied)
            });
            match answered(&seen.reason) {
                // Of a source that is held already, the upstream was not asked. Neither do the
                // Artifacts of an earlier leader say when it answered.
                Some(true) if is_news && earlier.is_some() => {
                    let is_copy = seen.reason == Reason::Copied.as_str();
                    if !is_copy || !held.contains(key.1.as_str()) {
                        evidence.answered = Some(now);
                    }
                }
                Some(false) if is_news => evidence.failed = Some(now),
                _ => {}
            }
            evidence.named = true;
            if seen.failing {
                evidence.failing += seen.attempts.max(1);
                let (known, name) = (&mut evidence.repositories, source.repository());
                if known.len() < AWAY_REPOSITORIES && !known.contains(name) {
                    known.push(name.clone());
                }
            }
            self.seen.insert(key.clone(), seen);
        }
        self.evidence
            .retain(|_, known| known.named && (known.answered.is_some() || known.failing > 0));
    }

    /// The state of each host of which something is known, ordered by host.
    pub(super) fn states(&self, now: i64) -> Vec<HostState> {
        let mut all: Vec<(i64, HostState)> = self
            .evidence
            .iter()
            .filter_map(|(host, evidence)| {
                let state = evidence.state()?;
                let confirmed = match state {
                    Answer::Answers => at(evidence.answered.unwrap_or(now)),
                    Answer::Away => at(now),
                };
                let host = HostState {
                    host: host.clone(),
                    state,
                    confirmed,
                };
                Some((evidence.answered.max(evidence.failed).unwrap_or(0), host))
            })
            .collect();
        if all.len() > MAX_HOSTS {
            // Hosts that are away first: of the others, nothing worse follows from not knowing.
            all.sort_by_key(|(last, host)| std::cmp::Reverse((host.state == Answer::Away, *last)));
            all.truncate(MAX_HOSTS);
        }
        let mut all: Vec<HostState> = all.into_iter().map(|(_, host)| host).collect();
        all.sort_by(|one, other| one.host.cmp(&other.host));
        all
    }
}

impl Evidence {
    fn state(&self) -> Option<Answer> {
        if self.failing >= AWAY_ATTEMPTS
            && self.repositories.len() >= AWAY_REPOSITORIES
            && self.failed > self.answered
        {
            Some(Answer::Away)
        } else if self.answered >= self.failed {
            self.answered.map(|_| Answer::Answers)
        } else {
            None
        }
    }
}

fn look(artifact: &Artifact, earlier: Option<&Seen>) -> Seen {
    let status = artifact.status.as_ref();
    let reason = artifact.reason().unwrap_or_default();
    Seen {
        uid: artifact.metadata.uid.clone(),
        reason: reason.to_owned(),
        attempts: status.and_then(|status| status.attempts).unwrap_or(0),
        copied: status.and_then(|status| status.last_copy_time.clone()),
        failing: match answered(reason) {
            Some(answers) => !answers,
            // A new attempt says nothing yet.
            None => {
                reason == Reason::Copying.as_str() && earlier.is_some_and(|earlier| earlier.failing)
            }
        },
    }
}

/// A time, to [`CONFIRMATION_STEP`].
fn at(second: i64) -> Time {
    let step = second - second.rem_euclid(CONFIRMATION_STEP);
    Time(Timestamp::from_second(step).unwrap_or(Timestamp::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::artifact;

    type Look<'a> = (i64, &'a [(&'a str, &'a str, &'a str, i64)]);

    /// Looks at Artifacts (namespace, source, reason, attempts) at each second; the state of
    /// `r.io` in the end.
    fn check(looks: &[Look<'_>], expect: Option<Answer>) {
        let mut hosts = Hosts::default();
        let mut found = Vec::new();
        for (second, artifacts) in looks {
            let artifacts: Vec<(Key, Artifact)> = artifacts
                .iter()
                .map(|(namespace, source, reason, attempts)| {
                    let key = ((*namespace).to_owned(), (*source).to_owned());
                    (key, artifact(source, reason, *attempts))
                })
                .collect();
            let all = artifacts.iter().map(|(key, artifact)| (key, artifact));
            hosts.observe(all, *second);
            found = hosts.states(*second);
        }
        let state = found.iter().find(|host| host.host == "r.io");
        assert_eq!(state.map(|host| host.state), expect, "{looks:?}");
    }

    const A: &str = "r.io/a:1";
    const B: &str = "r.io/b:1";

    #[test]
    fn a_host_is_away_after_three_attempts_and_answers_after_one() {
        let failed = |attempts| ("n", A, "UpstreamUnavailable", attempts);
        let other = |attempts| ("n", B, "UpstreamUnavailable", attempts);
        check(&[(0, &[failed(1), other(1)])], None);
        check(&[(0, &[failed(1), other(2)])], Some(Answer::Away));
        // The registry or the upstream asks for a pause.
        let busy = [("n", A, "Busy", 9), ("n", B, "Busy", 9)];
        check(&[(0, &busy)], None);
        // One repository may fail for a reason of its own.
        check(&[(0, &[failed(1)]), (5, &[failed(9)])], None);
        let same = ("m", A, "UpstreamUnavailable", 9);
        check(&[(0, &[failed(9), same])], None);
        // A new attempt says nothing yet.
        let copying = ("n", A, "Copying", 3);
        let away = &[failed(3), other(3)];
        check(&[(0, away), (5, &[copying, other(3)])], Some(Answer::Away));
        for reason in ["Copied", "Unauthorized", "NotFound"] {
            let answers = ("n", A, reason, 4);
            check(
                &[(0, away), (5, &[answers, other(3)])],
                Some(Answer::Answers),
            );
        }
        // Nothing fails any more.
        check(&[(0, away), (5, &[])], None);
        let unwanted = ("n", A, "NoDemand", 3);
        check(&[(0, away), (5, &[unwanted, other(3)])], None);
    }

    #[test]
    fn what_was_held_before_is_no_answer() {
        let held = ("n", A, "Copied", 0);
        let failed = ("n", B, "UpstreamUnavailable", 3);
        let also_failed = ("n", "r.io/c:1", "UpstreamUnavailable", 3);
        // The Artifacts that a new leader finds.
        check(&[(0, &[held])], None);
        // Another namespace names the same source: the upstream is not asked.
        let new = ("m", A, "", 0);
        let also = ("m", A, "Copied", 0);
        check(
            &[
                (0, &[held, failed, also_failed, new]),
                (5, &[held, failed, also_failed, also]),
            ],
            Some(Answer::Away),
        );
    }

    #[test]
    fn a_state_changes_once_a_minute_at_most() {
        let failed = [A, B].map(|source| {
            let key: Key = ("n".to_owned(), source.to_owned());
            (key, artifact(source, "UpstreamUnavailable", 3))
        });
        let mut hosts = Hosts::default();
        hosts.observe(failed.iter().map(|(key, it)| (key, it)), 600);
        let first = hosts.states(600);
        assert_eq!(hosts.states(659), first);
        assert_ne!(hosts.states(660), first);
        let next = Hosts::resume(&first);
        assert_eq!(next.evidence["r.io"].failed, Some(600));
    }

    #[test]
    fn a_full_list_keeps_the_hosts_that_were_met_last() {
        let count = MAX_HOSTS + 1;
        let artifacts: Vec<(Key, Artifact)> = (0..count)
            .flat_map(|number| {
                ["a", "b"].map(|name| {
                    let source = format!("{number:04}.example/{name}:1");
                    let key = ("n".to_owned(), source.clone());
                    (key, artifact(&source, "UpstreamUnavailable", 3))
                })
            })
            .collect();
        let mut hosts = Hosts::default();
        let all = || artifacts.iter().map(|(key, artifact)| (key, artifact));
        hosts.observe(all().skip(2), 600);
        hosts.observe(all(), 700);
        let found = hosts.states(700);
        assert_eq!(found.len(), MAX_HOSTS);
        assert_eq!(found[0].host, "0000.example");
    }
}
