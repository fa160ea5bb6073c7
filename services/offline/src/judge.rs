//! Whether an image starts without any upstream, on each node where its pod may start. Pure: the
//! levels are those of [`holdfast_core::delivery`], with all upstreams away. What is not known is
//! tried both ways, and never counts as a yes.

use holdfast_core::delivery::{Copy, Level, Name, OnNodes, PullPolicy, State, Upstream};
use holdfast_core::pod::Kind;
use serde::Serialize;

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
    /// Whether it starts the original without a pull.
    pub(crate) original: Known,
    /// Whether it starts the local name without a pull.
    pub(crate) local: Known,
    /// Whether it can pull from the registry.
    pub(crate) prepared: Known,
}

/// How healing gives a pod the local name. It gives none the original while the upstream is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    pub(crate) copy: Copy,
    pub(crate) policy: PullPolicy,
    pub(crate) kind: Kind,
    /// The name under which the pod starts.
    pub(crate) written: Name,
    pub(crate) healing: Healing,
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
        for candidate in &self.candidates {
            let present = self.starts(candidate, self.written);
            let healed = match self.healing {
                Healing::None => Known::No,
                Healing::ByNewPod => self.starts(candidate, Name::Local).min(Known::Unknown),
                Healing::InPlace => self.starts(candidate, Name::Local),
            };
            let best = present.max(healed);
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
            copy: self.copy,
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
            original,
            local,
            prepared,
        }
    }

    /// An image that is not held, of a pod with the original name.
    fn case(candidates: Vec<Candidate>) -> Case {
        Case {
            copy: Copy::Absent,
            policy: PullPolicy::IfNotPresent,
            kind: Kind::Container,
            written: Name::Original,
            healing: Healing::InPlace,
            foreign: false,
            candidates,
        }
    }

    fn held(candidates: Vec<Candidate>) -> Case {
        Case {
            copy: Copy::Held,
            ..case(candidates)
        }
    }

    fn local(case: Case) -> Case {
        Case {
            written: Name::Local,
            healing: Healing::None,
            ..case
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
            healing: Healing::None,
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
                    healing: Healing::ByNewPod,
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
        for original in all {
            for local_name in all {
                for prepared in all {
                    for written in [Name::Original, Name::Local] {
                        for copy in [Copy::Held, Copy::Arriving, Copy::Absent] {
                            let base = Case {
                                copy,
                                written,
                                ..case(vec![candidate("a", original, local_name, prepared)])
                            };
                            let (start, _) = base.judge();
                            let pessimist = |known: Known| Known::from(known == Yes);
                            let least = Case {
                                candidates: vec![candidate(
                                    "a",
                                    pessimist(original),
                                    pessimist(local_name),
                                    pessimist(prepared),
                                )],
                                ..base.clone()
                            };
                            let (worst, _) = least.judge();
                            if start >= Start::StartsHealed {
                                assert_eq!(start, worst, "{base:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}
