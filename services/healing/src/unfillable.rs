//! Which sources are unfillable: their upstream has refused them for long enough.

use holdfast_api::Artifact;
use holdfast_api::artifact::Reason;
use holdfast_cluster_index::Key;
use std::collections::HashMap;

/// When a source counts as unfillable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Seconds for which the upstream must have refused.
    pub seconds: i64,
    /// Attempts that the upstream must have refused.
    pub tries: i64,
}

/// The meaning of an Artifact's reason for its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The upstream refused the image.
    Refused,
    /// No answer; the last one holds.
    Silent,
    /// No refusal: the image is local, or the upstream or the volume fails.
    Other,
}

fn outcome(reason: &str) -> Outcome {
    let is = |any: &[Reason]| any.iter().any(|known| known.as_str() == reason);
    if is(&[
        Reason::Unauthorized,
        Reason::NotFound,
        Reason::UpstreamInvalid,
        Reason::Invalid,
    ]) {
        Outcome::Refused
    } else if is(&[
        Reason::Copying,
        Reason::RegistryUnavailable,
        Reason::PullSecretUnreadable,
    ]) {
        Outcome::Silent
    } else {
        Outcome::Other
    }
}

/// Whether a reason says that the upstream answers and refuses the image.
pub fn is_refusal(reason: &str) -> bool {
    outcome(reason) == Outcome::Refused
}

/// Since when each source is refused, as far as this process observed it.
#[derive(Debug, Default)]
pub struct Refusals {
    since: HashMap<Key, Since>,
}

#[derive(Clone, Debug)]
struct Since {
    uid: Option<String>,
    second: i64,
    attempts: i64,
}

impl Refusals {
    /// Records the Artifacts' reasons at `now`, in seconds.
    pub fn observe<'a>(
        &mut self,
        artifacts: impl Iterator<Item = (&'a Key, &'a Artifact)>,
        now: i64,
    ) {
        let mut seen = HashMap::new();
        for (key, artifact) in artifacts {
            let outcome = artifact.reason().map_or(Outcome::Other, outcome);
            let before = self
                .since
                .remove(key)
                .filter(|before| before.uid == artifact.metadata.uid);
            let attempts = attempts(artifact);
            let since = match (outcome, before) {
                (Outcome::Other, _) | (Outcome::Silent, None) => continue,
                // Fewer attempts than before mean that it was held in between.
                (_, Some(before)) if outcome == Outcome::Silent || before.attempts <= attempts => {
                    before
                }
                _ => Since {
                    uid: artifact.metadata.uid.clone(),
                    second: now,
                    attempts,
                },
            };
            seen.insert(key.clone(), since);
        }
        self.since = seen;
    }

    /// The reason of an Artifact whose source proved unfillable by `now`.
    pub fn proven(&self, key: &Key, artifact: &Artifact, proof: Proof, now: i64) -> Option<String> {
        let since = self
            .since
            .get(key)
            .filter(|since| since.uid == artifact.metadata.uid)?;
        let reason = artifact
            .reason()
            .filter(|reason| outcome(reason) == Outcome::Refused)?;
        let lasted = now.saturating_sub(since.second) >= proof.seconds;
        let tries = attempts(artifact).saturating_sub(since.attempts) + 1;
        // An invalid reference is tried only once.
        let tried = tries >= proof.tries || reason == Reason::Invalid.as_str();
        (lasted && tried).then(|| reason.to_owned())
    }
}

fn attempts(artifact: &Artifact) -> i64 {
    artifact
        .status
        .as_ref()
        .and_then(|status| status.attempts)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::artifact;

    const PROOF: Proof = Proof {
        seconds: 120,
        tries: 3,
    };

    /// Looks at a source at each second with this reason and number of attempts; whether it is
    /// proven unfillable in the end.
    fn check(looks: &[(i64, &str, i64)], expect: bool) {
        let key: Key = ("apps".to_owned(), "a".to_owned());
        let mut refusals = Refusals::default();
        let mut proven = None;
        for (second, reason, attempts) in looks {
            let artifact = artifact("r.io/a:1", reason, *attempts);
            refusals.observe(std::iter::once((&key, &artifact)), *second);
            proven = refusals.proven(&key, &artifact, PROOF, *second);
        }
        assert_eq!(proven.is_some(), expect, "{looks:?}");
    }

    #[test]
    fn a_source_is_unfillable_when_its_upstream_says_so_for_long_enough() {
        check(&[(0, "Unauthorized", 1)], false);
        check(&[(0, "Unauthorized", 1), (119, "Unauthorized", 7)], false);
        check(&[(0, "Unauthorized", 1), (120, "Unauthorized", 2)], false);
        check(&[(0, "Unauthorized", 1), (120, "Unauthorized", 3)], true);
        check(&[(0, "NotFound", 1), (120, "Unauthorized", 3)], true);
        check(
            &[(0, "UpstreamInvalid", 4), (500, "UpstreamInvalid", 6)],
            true,
        );
        check(&[(0, "Invalid", 1), (120, "Invalid", 1)], true);
    }

    #[test]
    fn an_upstream_that_is_away_refuses_nothing() {
        check(
            &[
                (0, "UpstreamUnavailable", 1),
                (900, "UpstreamUnavailable", 30),
            ],
            false,
        );
        check(
            &[(0, "UpstreamUnavailable", 1), (900, "Unauthorized", 30)],
            false,
        );
        check(
            &[
                (0, "Unauthorized", 1),
                (100, "UpstreamUnavailable", 5),
                (121, "Unauthorized", 6),
            ],
            false,
        );
        check(
            &[(0, "Unauthorized", 1), (130, "UpstreamUnavailable", 9)],
            false,
        );
        check(&[(0, "NoSpace", 1), (300, "NoSpace", 9)], false);
    }

    #[test]
    fn what_says_nothing_of_the_upstream_neither_proves_nor_disproves() {
        check(
            &[
                (0, "Unauthorized", 1),
                (60, "Copying", 3),
                (121, "Unauthorized", 4),
            ],
            true,
        );
        check(
            &[
                (0, "Unauthorized", 1),
                (60, "RegistryUnavailable", 3),
                (121, "RegistryUnavailable", 4),
            ],
            false,
        );
    }

    #[test]
    fn a_copy_in_between_starts_over() {
        check(
            &[
                (0, "Unauthorized", 1),
                (60, "Copied", 0),
                (121, "Unauthorized", 4),
            ],
            false,
        );
        check(&[(0, "Unauthorized", 5), (121, "Unauthorized", 1)], false);
    }
}
