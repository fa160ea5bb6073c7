//! Which namespaces are excluded because a policy denies the registry's references.
//!
//! A denial does not tell whether the rewrite caused it, so that is tested: the namespace is
//! excluded, and if the same owner is denied again, the rewrite was not the cause. While a
//! namespace is excluded, dry runs at growing pauses test whether the policy still denies.

use std::collections::HashMap;

/// Seconds for which a denial counts.
const DENIAL_TTL: i64 = 180;
/// Seconds within which every webhook replica knows of an exclusion. A later denial shows that the
/// rewrite was not the cause.
const PROPAGATION_DELAY: i64 = 20;
/// Seconds for which denials of an owner are ignored after a test showed another cause.
const EXEMPTION_TTL: i64 = 900;
/// The part of a denial that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The UID of the pod's owner.
    pub owner: &'a str,
    /// When, in seconds since 1970.
    pub at: i64,
    /// Whether the webhook would have rewritten that pod.
    pub rewritten: bool,
}

/// What follows from a denial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Exclude the namespace.
    Exclude,
    /// Rewrite the namespace again: the rewrite was not the cause.
    Unrelated,
}

/// What this process remembers. A new leader tests again.
#[derive(Debug)]
pub struct Policies {
    /// The first and the longest pause between dry runs, in seconds.
    probe_pauses: (i64, i64),
    /// By namespace: the owner whose denial started the exclusion, and when.
    causes: HashMap<String, (String, i64)>,
    /// Owners that are denied whatever their images are, by UID, and until when.
    exempt: HashMap<String, i64>,
    /// By namespace: the time of the next dry run, and the pause before it.
    pauses: HashMap<String, (i64, i64)>,
}

impl Policies {
    /// A state whose first and longest pauses between dry runs are `probe_pauses`, in seconds.
    pub fn new(probe_pauses: (i64, i64)) -> Self {
        Self {
            probe_pauses,
            causes: HashMap::new(),
            exempt: HashMap::new(),
            pauses: HashMap::new(),
        }
    }

    /// Records a denial. `is_excluded`: whether its namespace is excluded.
    pub fn observe(&mut self, refusal: &Refusal<'_>, is_excluded: bool, now: i64) -> Step {
        let Refusal {
            namespace,
            owner,
            at,
            rewritten,
        } = *refusal;
        if now.saturating_sub(at) > DENIAL_TTL {
            return Step::Nothing;
        }
        if is_excluded {
            let without_effect = self.causes.get(namespace).is_some_and(|(cause, since)| {
                cause == owner && at > since.saturating_add(PROPAGATION_DELAY)
            });
            if !without_effect {
                return Step::Nothing;
            }
            self.exempt
                .insert(owner.to_owned(), now.saturating_add(EXEMPTION_TTL));
            self.forget_cause(namespace);
            return Step::Unrelated;
        }
        let exempt = self.exempt.get(owner).is_some_and(|until| now < *until);
        // A denial from before the end of the last exclusion does not count.
        let known = self
            .causes
            .get(namespace)
            .is_some_and(|(_, since)| at <= *since);
        if !rewritten || exempt || known {
            return Step::Nothing;
        }
        self.causes
            .insert(namespace.to_owned(), (owner.to_owned(), now));
        let pause = self
            .pauses
            .get(namespace)
            .map_or(self.probe_pauses.0, |(_, pause)| *pause);
        self.pauses
            .insert(namespace.to_owned(), (now.saturating_add(pause), pause));
        Step::Exclude
    }

    /// Records that the webhooks do not know of an exclusion yet. Denials until then do not count.
    pub fn not_published(&mut self, namespace: &str, now: i64) {
        if let Some((_, since)) = self.causes.get_mut(namespace) {
            *since = now;
        }
    }

    /// The excluded namespaces whose policy is due for a dry run.
    pub fn due<'a>(&mut self, excluded: impl Iterator<Item = &'a str>, now: i64) -> Vec<String> {
        excluded
            .filter(|namespace| {
                let first = (now.saturating_add(self.probe_pauses.0), self.probe_pauses.0);
                self.pauses
                    .entry((*namespace).to_owned())
                    .or_insert(first)
                    .0
                    <= now
            })
            .map(str::to_owned)
            .collect()
    }

    /// Records a dry run that was denied or failed. The next pause is longer.
    pub fn still_denies(&mut self, namespace: &str, now: i64) {
        let pause = self.longer(namespace);
        self.pauses
            .insert(namespace.to_owned(), (now.saturating_add(pause), pause));
    }

    /// Records a dry run that was admitted. The next pause is longer, should the policy deny again.
    pub fn admits(&mut self, namespace: &str, now: i64) {
        let pause = self.longer(namespace);
        self.pauses.insert(namespace.to_owned(), (now, pause));
        if let Some((_, since)) = self.causes.get_mut(namespace) {
            *since = now;
        }
    }

    fn longer(&self, namespace: &str) -> i64 {
        let pause = self
            .pauses
            .get(namespace)
            .map_or(self.probe_pauses.0, |(_, pause)| *pause);
        pause.saturating_mul(2).min(self.probe_pauses.1)
    }

    fn forget_cause(&mut self, namespace: &str) {
        self.causes.remove(namespace);
    }

    /// Drops what has expired, and namespaces that do not exist.
    pub fn forget(&mut self, exists: impl Fn(&str) -> bool, now: i64) {
        self.exempt.retain(|_, until| now < *until);
        self.causes.retain(|namespace, _| exists(namespace));
        self.pauses.retain(|namespace, _| exists(namespace));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACE: &str = "apps";
    const PROBE_PAUSES: (i64, i64) = (60, 3600);

    fn refusal(owner: &str, at: i64) -> Refusal<'_> {
        Refusal {
            namespace: NAMESPACE,
            owner,
            at,
            rewritten: true,
        }
    }

    /// Each refusal: owner, when it happened, whether the namespace is left alone then; and what
    /// follows.
    fn check(looks: &[(&str, i64, bool, Step)]) {
        let mut policies = Policies::new(PROBE_PAUSES);
        for (owner, at, excluded, expect) in looks {
            let step = policies.observe(&refusal(owner, *at), *excluded, at + 1);
            assert_eq!(step, *expect, "{owner} at {at} of {looks:?}");
        }
    }

    #[test]
    fn a_namespace_is_left_alone_until_its_owner_is_refused_all_the_same() {
        check(&[
            ("rs", 0, false, Step::Exclude),
            ("rs", 5, true, Step::Nothing),
            ("rs", 20, true, Step::Nothing),
            ("rs", 40, true, Step::Unrelated),
            ("rs", 41, false, Step::Nothing),
            ("rs", 1_000, false, Step::Exclude),
        ]);
    }

    #[test]
    fn who_is_refused_anyway_does_not_speak_for_others() {
        check(&[
            ("evil", 0, false, Step::Exclude),
            ("evil", 30, true, Step::Unrelated),
            ("rs", 31, false, Step::Exclude),
            ("evil", 60, true, Step::Nothing),
            ("evil", 61, true, Step::Nothing),
        ]);
    }

    #[test]
    fn old_refusals_and_pods_that_nobody_rewrites_change_nothing() {
        let mut policies = Policies::new(PROBE_PAUSES);
        assert_eq!(
            policies.observe(&refusal("rs", 0), false, DENIAL_TTL + 1),
            Step::Nothing
        );
        let never = Refusal {
            rewritten: false,
            ..refusal("rs", 0)
        };
        assert_eq!(policies.observe(&never, false, 1), Step::Nothing);
    }

    #[test]
    fn a_policy_is_asked_about_with_growing_pauses() {
        let mut policies = Policies::new(PROBE_PAUSES);
        let due = |policies: &mut Policies, now| {
            !policies.due(std::iter::once(NAMESPACE), now).is_empty()
        };
        policies.observe(&refusal("rs", 0), false, 0);
        assert!(!due(&mut policies, 59) && due(&mut policies, 60));
        policies.still_denies(NAMESPACE, 60);
        assert!(!due(&mut policies, 179) && due(&mut policies, 180));
        policies.admits(NAMESPACE, 180);
        // The refusals from before are still there as events.
        assert_eq!(
            policies.observe(&refusal("rs", 170), false, 181),
            Step::Nothing
        );
        // It only seemed so.
        assert_eq!(
            policies.observe(&refusal("rs", 190), false, 191),
            Step::Exclude
        );
        assert!(!due(&mut policies, 191 + 239) && due(&mut policies, 191 + 240));
        for _ in 0..20 {
            policies.still_denies(NAMESPACE, 1000);
        }
        assert!(due(&mut policies, 1000 + PROBE_PAUSES.1));
    }

    #[test]
    fn what_is_refused_before_the_webhooks_know_says_nothing() {
        let mut policies = Policies::new(PROBE_PAUSES);
        policies.observe(&refusal("rs", 0), false, 0);
        policies.not_published(NAMESPACE, 60);
        assert_eq!(
            policies.observe(&refusal("rs", 70), true, 71),
            Step::Nothing
        );
        assert_eq!(
            policies.observe(&refusal("rs", 81), true, 82),
            Step::Unrelated
        );
    }

    #[test]
    fn another_process_asks_after_the_first_pause() {
        let mut policies = Policies::new(PROBE_PAUSES);
        assert!(policies.due(std::iter::once(NAMESPACE), 0).is_empty());
        assert_eq!(policies.due(std::iter::once(NAMESPACE), 60), [NAMESPACE]);
        policies.forget(|_| false, 0);
        assert!(policies.due(std::iter::once(NAMESPACE), 60).is_empty());
    }
}
