//! Whether an image starts without any upstream, on each node where its pod may start. Pure: the
//! levels and healing are those of [`holdfast_core::delivery`], with all upstreams away. What is
//! not known is tried both ways, and never counts as a yes.

use holdfast_core::delivery::{
    self, Act, Copy, Level, Name, OnNodes, Progress, PullPolicy, State, Switches, Upstream,
};
use holdfast_core::pod::Kind;
use serde::Serialize;

/// A kubelet that failed twice, and nothing changed since: what becomes of a pod in the end.
const STUCK: Progress = Progress::Stuck {
    failures: 2,
    news: false,
};

/// A fact that may be unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Known {
    No,
    Unknown,
    Yes,
}

impl From<bool> for Known {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// A node where a pod may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its name; empty where nodes are not known.
    pub(crate) node: String,
    /// The name under which the pod starts there.
    pub(crate) written: Name,
    /// Whether it starts the original without a pull.
    pub(crate) original: Known,
    /// Whether it starts the local name without a pull.
    pub(crate) local: Known,
    /// Whether it can pull from the registry.
    pub(crate) prepared: Known,
    /// Whether the pod may start there for certain, not only as far as it is judged.
    pub(crate) certain: bool,
}

/// How healing changes the name of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Healing {
    /// Not at all.
    None,
    /// By an eviction, so that the owner recreates the pod. Budgets and limits may defer it, so it
    /// is no certain start.
    ByNewPod,
    /// By a changed image.
    InPlace,
}

/// One image of a pod that starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Case {
    /// Whether the registry holds it.
    pub(crate) held: Known,
    pub(crate) policy: PullPolicy,
    pub(crate) kind: Kind,
    /// How healing changes the original to the local name.
    pub(crate) to_local: Healing,
    /// How healing changes the local name to the original.
    pub(crate) to_original: Healing,
    /// Whether the configuration of a node names the host: a mirror on the site may have it.
    pub(crate) foreign: bool,
    /// Where the pod may start, at least one.
    pub(crate) candidates: Vec<Candidate>,
}

/// What becomes of an image, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Start {
    /// It starts on no candidate.
    WouldNot,
    /// It starts on some candidates only.
    OnlyOn,
    /// A fact that decides is not known.
    Unknown,
    /// It starts after healing changed its name.
    StartsHealed,
    /// It starts on each candidate.
    Starts,
}

/// The names of the candidates by what becomes of the image there. Empty if it starts on each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Candidates {
    pub(crate) starts: Vec<String>,
    pub(crate) would_not: Vec<String>,
    pub(crate) unknown: Vec<String>,
}

impl Candidates {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Case {
    /// What becomes of the image, and where.
    pub(crate) fn judge(&self) -> (Start, Candidates) {
        let mut found = Candidates::default();
        let (mut least, mut unhealed) = (Known::Yes, Known::Yes);
        let starts_nowhere = self
            .candidates
            .iter()
            .all(|it| self.best(it).1 == Known::No);
        for candidate in &self.candidates {
            let (present, mut best) = self.best(candidate);
            if !candidate.certain && !starts_nowhere {
                best = best.max(Known::Unknown);
            }
            least = least.min(best);
            unhealed = unhealed.min(present);
            let names = match best {
                Known::Yes => &mut found.starts,
                Known::No => &mut found.would_not,
                Known::Unknown => &mut found.unknown,
            };
            if !candidate.node.is_empty() {
                names.push(candidate.node.clone());
            }
        }
        match (least, unhealed) {
            (Known::Yes, Known::Yes) => (Start::Starts, Candidates::default()),
            (Known::Yes, _) => (Start::StartsHealed, Candidates::default()),
            (Known::Unknown, _) => (Start::Unknown, found),
            (Known::No, _) if found.starts.is_empty() => (Start::WouldNot, found),
            (Known::No, _) => (Start::OnlyOn, found),
        }
    }

    /// Whether the image starts on a node under the name that it has, and whether it does at all.
    fn best(&self, candidate: &Candidate) -> (Known, Known) {
        let present = self.starts(candidate, candidate.written);
        let healing = match candidate.written {
            Name::Original => self.to_local,
            Name::Local => self.to_original,
        };
        let most = match healing {
            Healing::None => Known::No,
            Healing::ByNewPod => Known::Unknown,
            Healing::InPlace => Known::Yes,
        };
        (present, present.max(self.healed(candidate).min(most)))
    }

    /// Whether the image starts on a node under the name that healing gives it.
    fn healed(&self, candidate: &Candidate) -> Known {
        let other = candidate.written.other();
        let is_healed = |least: Known| {
            let state = self.state(candidate, least);
            let switches = Switches::default();
            let act = delivery::heal(&state, candidate.written, STUCK, &switches, 0);
            matches!(act, Act::Switch(name) | Act::Recreate(name) if name == other)
                && state.level(other) == Level::Sure
        };
        if is_healed(Known::Yes) {
            Known::Yes
        } else if self.starts(candidate, other) > Known::No {
            Known::Unknown
        } else {
            Known::No
        }
    }

    /// Whether the image starts on a node under this name.
    fn starts(&self, candidate: &Candidate, name: Name) -> Known {
        let is_sure = |least: Known| self.state(candidate, least).level(name) == Level::Sure;
        if is_sure(Known::Yes) {
            Known::Yes
        } else if is_sure(Known::Unknown) || self.may_have_mirror(name) {
            Known::Unknown
        } else {
            Known::No
        }
    }

    fn may_have_mirror(&self, name: Name) -> bool {
        self.foreign && name == Name::Original && self.policy != PullPolicy::Never
    }

    /// The state on one node, in which a fact holds if at least this much is known of it.
    fn state(&self, candidate: &Candidate, least: Known) -> State {
        let on_nodes = |known: Known| {
            if known >= least {
                OnNodes::All
            } else {
                OnNodes::None
            }
        };
        State {
            copy: if self.held >= least {
                Copy::Held
            } else {
                Copy::Absent
            },
            upstream: Upstream::Away,
            original: on_nodes(candidate.original),
            local: on_nodes(candidate.local),
            prepared: candidate.prepared >= least,
            mirrored: false,
            foreign: self.foreign,
            protect: false,
            policy: self.policy,
            kind: self.kind,
            placeholder: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Known::{No, Unknown, Yes};

    fn candidate(node: &str, original: Known, local: Known, prepared: Known) -> Candidate {
        Candidate {
            node: node.to_owned(),
            written: Name::Original,
            original,
            local,
            prepared,
            certain: true,
        }
    }

    /// An image that is not held, of a pod with the original name.
    fn case(candidates: Vec<Candidate>) -> Case {
        Case {
            held: No,
            policy: PullPolicy::IfNotPresent,
            kind: Kind::Container,
            to_local: Healing::InPlace,
            to_original: Healing::None,
            foreign: false,
            candidates,
        }
    }

    fn held(candidates: Vec<Candidate>) -> Case {
        Case {
            held: Yes,
            ..case(candidates)
        }
    }

    fn local(case: Case) -> Case {
        let candidates = case.candidates.into_iter();
        let candidates = candidates.map(|candidate| Candidate {
            written: Name::Local,
            ..candidate
        });
        Case {
            candidates: candidates.collect(),
            ..case
        }
    }

    /// As [`local`], of a pod that healing may change.
    fn restorable(case: Case) -> Case {
        Case {
            to_original: Healing::InPlace,
            ..local(case)
        }
    }

    fn on(original: Known, local: Known, prepared: Known) -> Vec<Candidate> {
        vec![candidate("a", original, local, prepared)]
    }

    fn bare() -> Vec<Candidate> {
        on(No, No, Yes)
    }

    fn always(case: Case) -> Case {
        Case {
            policy: PullPolicy::Always,
            ..case
        }
    }

    fn never(case: Case) -> Case {
        Case {
            policy: PullPolicy::Never,
            ..case
        }
    }

    fn fixed(case: Case) -> Case {
        Case {
            to_local: Healing::None,
            ..case
        }
    }

    fn check<const ROWS: usize>(table: [(&str, Case, Start); ROWS]) {
        for (name, case, expect) in table {
            assert_eq!(case.judge().0, expect, "{name}: {case:?}");
        }
    }

    #[test]
    fn a_pod_with_the_original_starts_from_its_node_or_after_healing() {
        use Start::{Starts, StartsHealed, WouldNot};
        let table = [
            ("original on the node", case(on(Yes, No, No)), Starts),
            ("original on no node", case(bare()), WouldNot),
            (
                "original, unknown",
                case(on(Unknown, No, Yes)),
                Start::Unknown,
            ),
            ("original, held", held(bare()), StartsHealed),
            ("original, held, fixed", fixed(held(bare())), WouldNot),
            (
                "original unknown, held, fixed",
                fixed(held(on(Unknown, No, Yes))),
                Start::Unknown,
            ),
            (
                "original, held, healed by a new pod",
                Case {
                    to_local: Healing::ByNewPod,
                    ..held(bare())
                },
                Start::Unknown,
            ),
            ("original, held, unprepared", held(on(No, No, No)), WouldNot),
            (
                "original, Always",
                always(case(on(Yes, Yes, Yes))),
                WouldNot,
            ),
            (
                "original, Always, held",
                always(held(on(Yes, No, Yes))),
                StartsHealed,
            ),
            ("Never on the node", never(case(on(Yes, No, No))), Starts),
            ("Never, not on it", fixed(never(held(bare()))), WouldNot),
            (
                "Never, unknown",
                fixed(never(held(on(Unknown, No, Yes)))),
                Start::Unknown,
            ),
        ];
        check(table);
    }

    #[test]
    fn a_rewritten_pod_starts_under_the_local_name_only() {
        use Start::{Starts, WouldNot};
        let table = [
            // The fault that this rule ends: nodes have the image under the other name only.
            (
                "rewritten, original on nodes",
                local(case(on(Yes, No, Yes))),
                WouldNot,
            ),
            (
                "rewritten, local on the node",
                local(case(on(No, Yes, No))),
                Starts,
            ),
            (
                "rewritten, local unknown",
                local(case(on(No, Unknown, Yes))),
                Start::Unknown,
            ),
            ("rewritten, held", local(held(bare())), Starts),
            (
                "rewritten, held, Always",
                always(local(held(bare()))),
                Starts,
            ),
            (
                "rewritten, unprepared",
                local(held(on(Yes, No, No))),
                WouldNot,
            ),
            (
                "rewritten, held, unknown whether prepared",
                local(held(on(No, No, Unknown))),
                Start::Unknown,
            ),
        ];
        check(table);
    }

    #[test]
    fn healing_restores_an_original_that_the_node_has() {
        use Start::{Starts, StartsHealed, WouldNot};
        let volume = |case: Case| Case {
            kind: Kind::Volume,
            to_original: Healing::ByNewPod,
            ..case
        };
        let table = [
            (
                "original on the node",
                restorable(case(on(Yes, No, Yes))),
                StartsHealed,
            ),
            ("original on no node", restorable(case(bare())), WouldNot),
            (
                "original unknown",
                restorable(case(on(Unknown, No, Yes))),
                Start::Unknown,
            ),
            ("held", restorable(held(on(Yes, No, Yes))), Starts),
            (
                "held, unprepared",
                restorable(held(on(Yes, No, No))),
                StartsHealed,
            ),
            (
                "Always",
                always(restorable(case(on(Yes, Yes, Yes)))),
                WouldNot,
            ),
            (
                "Never",
                never(restorable(case(on(Yes, No, Yes)))),
                StartsHealed,
            ),
            (
                "a volume",
                volume(restorable(case(on(Yes, No, Yes)))),
                Start::Unknown,
            ),
            (
                "a volume, on no node",
                volume(restorable(case(bare()))),
                WouldNot,
            ),
        ];
        check(table);
    }

    #[test]
    fn the_name_may_differ_between_candidates() {
        let mut both = held(vec![
            candidate("a", No, No, Yes),
            candidate("b", Yes, No, No),
        ]);
        both.candidates[0].written = Name::Local;
        assert_eq!(both.judge().0, Start::Starts);
    }

    #[test]
    fn a_node_that_may_be_no_candidate_makes_no_certain_no() {
        let uncertain = |original, node: &str| Candidate {
            certain: false,
            ..candidate(node, original, No, Yes)
        };
        let table = [
            (
                "one has it",
                case(vec![uncertain(Yes, "a"), uncertain(No, "b")]),
                Start::Unknown,
            ),
            (
                "none has it",
                case(vec![uncertain(No, "a"), uncertain(No, "b")]),
                Start::WouldNot,
            ),
            (
                "each has it",
                case(vec![uncertain(Yes, "a"), uncertain(Yes, "b")]),
                Start::Starts,
            ),
            (
                "a certain one lacks it",
                case(vec![uncertain(Yes, "a"), candidate("b", No, No, Yes)]),
                Start::OnlyOn,
            ),
        ];
        check(table);
    }

    #[test]
    fn an_image_must_start_on_each_candidate() {
        use Start::{OnlyOn, StartsHealed, WouldNot};
        let table = [
            (
                "only one of two",
                case(vec![
                    candidate("a", Yes, No, Yes),
                    candidate("b", No, No, Yes),
                ]),
                OnlyOn,
            ),
            (
                "one no is no, whatever is unknown",
                case(vec![
                    candidate("a", Unknown, No, Yes),
                    candidate("b", No, No, Yes),
                ]),
                WouldNot,
            ),
            (
                "one has it, the other is healed",
                held(vec![
                    candidate("a", Yes, No, No),
                    candidate("b", No, No, Yes),
                ]),
                StartsHealed,
            ),
        ];
        check(table);
    }

    #[test]
    fn a_mirror_of_the_node_makes_a_no_unknown() {
        let mut mirrored = case(vec![candidate("a", No, No, Yes)]);
        mirrored.foreign = true;
        assert_eq!(mirrored.judge().0, Start::Unknown);
        assert_eq!(local(mirrored.clone()).judge().0, Start::WouldNot);
        mirrored.policy = PullPolicy::Never;
        assert_eq!(mirrored.judge().0, Start::WouldNot);
    }

    #[test]
    fn the_candidates_are_named_unless_it_starts_on_each() {
        let (start, found) = case(vec![
            candidate("a", Yes, No, Yes),
            candidate("b", No, No, Yes),
            candidate("c", Unknown, No, Yes),
        ])
        .judge();
        assert_eq!(start, Start::OnlyOn);
        assert_eq!(
            (found.starts, found.would_not),
            (vec!["a".to_owned()], vec!["b".to_owned()])
        );
        assert_eq!(found.unknown, ["c"]);
        let (_, found) = held(vec![candidate("a", No, No, Yes)]).judge();
        assert!(found.is_empty());
    }

    #[test]
    fn what_is_unknown_is_never_a_yes() {
        let all = [No, Unknown, Yes];
        let pessimist = |known: Known| Known::from(known == Yes);
        let facts = all.into_iter().flat_map(|original| {
            all.into_iter().flat_map(move |name| {
                all.into_iter().flat_map(move |prepared| {
                    all.into_iter()
                        .map(move |held| (original, name, prepared, held))
                })
            })
        });
        for (original, name, prepared, held) in facts {
            for written in [Name::Original, Name::Local] {
                for policy in [
                    PullPolicy::IfNotPresent,
                    PullPolicy::Always,
                    PullPolicy::Never,
                ] {
                    let of = |known: &dyn Fn(Known) -> Known| Case {
                        held: known(held),
                        policy,
                        to_original: Healing::InPlace,
                        ..case(vec![Candidate {
                            written,
                            ..candidate("a", known(original), known(name), known(prepared))
                        }])
                    };
                    let (start, _) = of(&|known| known).judge();
                    let (worst, _) = of(&pessimist).judge();
                    if start >= Start::StartsHealed {
                        assert_eq!(start, worst, "{original:?} {name:?} {prepared:?} {held:?}");
                    }
                }
            }
        }
    }
}
