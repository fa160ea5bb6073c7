//! How many Artifacts there may be, in a namespace and in total.
//!
//! Images of waiting pods come first, then those of running pods, then those of templates.
//! Artifacts that nothing needs make room: those that were never copied, the newest first, then
//! those that were, the oldest first. Artifacts that people made or keep are never removed, but
//! their images are not copied beyond the limits either.

use holdfast_api::fill::Priority;
use holdfast_cluster_index::Key;
use holdfast_cluster_model::Demand;
use holdfast_config::ArtifactLimits;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// An existing Artifact.
#[derive(Clone, Copy, Debug)]
pub struct Existing<'a> {
    /// Its namespace and name.
    pub key: &'a Key,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Whether its image was copied.
    pub copied: bool,
    /// How urgently pods or templates need it.
    pub priority: Option<Priority>,
    /// Whether it may be removed if nothing needs it: not made by hand, and not to be kept.
    pub automatic: bool,
}

impl Existing<'_> {
    fn may_go(&self) -> bool {
        self.automatic && self.priority.is_none()
    }
}

/// What follows from the limits.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Artifacts to create, the most urgent first.
    pub create: Vec<(Key, Demand)>,
    /// How many needed images are not copied, by namespace: those without an Artifact for which no
    /// room is being made, and those beyond the limits.
    pub refused: BTreeMap<String, usize>,
    /// Artifacts that must make room.
    pub surplus: BTreeSet<Key>,
    /// Artifacts beyond the limits, whose images are not copied unless they were before.
    pub beyond: BTreeSet<Key>,
}

/// How many Artifacts each namespace has.
type Counts<'a> = BTreeMap<&'a str, usize>;

/// How many Artifacts each namespace may have so that all together keep to the total: those with
/// few keep them all, the others are cut to the same number, which is one at least and the limit of
/// a namespace at most.
fn share(counts: &Counts<'_>, limits: ArtifactLimits) -> usize {
    let of_namespace = limits.per_namespace as usize;
    let mut sizes: Vec<usize> = counts
        .values()
        .map(|count| (*count).min(of_namespace))
        .collect();
    sizes.sort_unstable();
    let (mut room, mut namespaces) = (limits.total as usize, sizes.len());
    for size in sizes {
        let even = room / namespaces.max(1);
        if size > even {
            return even.max(1);
        }
        room -= size;
        namespaces -= 1;
    }
    of_namespace
}

/// How many count in all: of each namespace its limit at most, since it gets no copies for the
/// rest.
fn total(counts: &Counts<'_>, of_namespace: usize) -> usize {
    let counts = counts.values();
    counts.map(|count| (*count).min(of_namespace)).sum()
}

/// Those that must make room for `wanted`, which counts all existing and missing ones. Reduces
/// `wanted` by them.
fn surplus(
    existing: &[Existing<'_>],
    wanted: &mut Counts<'_>,
    limits: ArtifactLimits,
) -> BTreeSet<Key> {
    let of_namespace = limits.per_namespace as usize;
    let share = share(wanted, limits);
    let mut too_many = total(wanted, of_namespace).saturating_sub(limits.total as usize);
    let mut may_go: Vec<&Existing<'_>> = existing.iter().filter(|one| one.may_go()).collect();
    may_go.sort_by_key(|one| {
        let age = if one.copied {
            one.created
        } else {
            -one.created
        };
        (one.copied, age, Reverse(one.key))
    });
    let mut surplus = BTreeSet::new();
    for in_all in [false, true] {
        for one in &may_go {
            let Some(count) = wanted.get_mut(one.key.0.as_str()) else {
                continue;
            };
            // What was copied makes room for other namespaces only where its own has more than its
            // share.
            let goes = if in_all {
                too_many > 0 && (!one.copied || *count > share)
            } else {
                *count > of_namespace
            };
            if goes && surplus.insert(one.key.clone()) {
                *count -= 1;
                too_many = too_many.saturating_sub(usize::from(in_all));
            }
        }
    }
    surplus
}

/// Those beyond the share of their namespaces. What was copied counts first, then what is needed
/// most, then what was there before.
fn beyond(existing: &[Existing<'_>], surplus: &BTreeSet<Key>, share: usize) -> BTreeSet<Key> {
    let mut by_namespace: BTreeMap<&str, Vec<&Existing<'_>>> = BTreeMap::new();
    for one in existing.iter().filter(|one| !surplus.contains(one.key)) {
        by_namespace.entry(&one.key.0).or_default().push(one);
    }
    let mut beyond = BTreeSet::new();
    for mut all in by_namespace.into_values().filter(|all| all.len() > share) {
        all.sort_by_key(|one| {
            (
                !one.copied,
                one.priority.is_none(),
                one.priority,
                one.created,
                one.key,
            )
        });
        beyond.extend(all.into_iter().skip(share).map(|one| one.key.clone()));
    }
    beyond
}

/// Decides which of the `missing` Artifacts are made, which of the existing ones make room, and
/// which are not copied.
pub fn plan<'a>(
    mut missing: Vec<(Key, Demand)>,
    existing: impl Iterator<Item = Existing<'a>>,
    limits: ArtifactLimits,
) -> Plan {
    let (of_namespace, of_all) = (limits.per_namespace as usize, limits.total as usize);
    missing.sort_by_key(|(_, demand)| demand.priority());
    let existing: Vec<Existing<'a>> = existing.collect();
    let mut counts = Counts::new();
    for one in &existing {
        *counts.entry(&one.key.0).or_default() += 1;
    }
    let mut wanted = counts.clone();
    for (key, _) in &missing {
        *wanted.entry(&key.0).or_default() += 1;
    }
    let surplus = surplus(&existing, &mut wanted, limits);
    let share = share(&wanted, limits);
    let mut later = counts.clone();
    for key in &surplus {
        later.entry(&key.0).and_modify(|count| *count -= 1);
    }
    let beyond = beyond(&existing, &surplus, share);
    let mut all = total(&counts, of_namespace);
    let mut all_later = total(&later, of_namespace);
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for one in &existing {
        // The webhook makes most Artifacts before the limits are checked.
        if one.priority.is_some() && !one.copied && beyond.contains(one.key) {
            *refused.entry(one.key.0.clone()).or_default() += 1;
        }
    }
    let mut create = Vec::new();
    for (key, demand) in &missing {
        let (now, then) = (
            counts.entry(&key.0).or_default(),
            later.entry(&key.0).or_default(),
        );
        if *then >= share || all_later >= of_all {
            *refused.entry(key.0.clone()).or_default() += 1;
            continue;
        }
        *then += 1;
        all_later += 1;
        // Room that is being made is not there yet.
        if *now < of_namespace && all < of_all {
            *now += 1;
            all += 1;
            create.push((key.clone(), demand.clone()));
        }
    }
    Plan {
        create,
        refused,
        surplus,
        beyond,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ArtifactLimits = ArtifactLimits {
        per_namespace: 3,
        total: 5,
        undemanded_minutes: 10,
    };

    /// What is wanted, `namespace/name`; a `!` at the end means that a pod waits for it.
    fn missing(names: &[&str]) -> Vec<(Key, Demand)> {
        let one = |name: &&str| {
            let demand = Demand {
                waiting: name.ends_with('!'),
                pod: Some((String::new(), String::new())),
                ..Demand::default()
            };
            (key(name.trim_end_matches('!')), demand)
        };
        names.iter().map(one).collect()
    }

    /// One that was not copied and not made by hand.
    fn one(key: &Key, created: i64, priority: Option<Priority>) -> Existing<'_> {
        Existing {
            key,
            created,
            copied: false,
            priority,
            automatic: true,
        }
    }

    fn key(name: &str) -> Key {
        let (namespace, name) = name.split_once('/').unwrap();
        (namespace.to_owned(), name.to_owned())
    }

    /// `existing` are needed, `idle` may go, the newest last.
    fn check(
        existing: &[&str],
        idle: &[&str],
        wanted: &[&str],
        create: &[&str],
        refused: &[(&str, usize)],
        surplus: &[&str],
    ) {
        let needed: Vec<Key> = existing.iter().map(|name| key(name)).collect();
        let idle: Vec<Key> = idle.iter().map(|name| key(name)).collect();
        let needed = needed
            .iter()
            .map(|key| one(key, 0, Some(Priority::Running)));
        let may_go = idle.iter().zip(1..);
        let may_go = may_go.map(|(key, created)| one(key, created, None));
        let plan = plan(missing(wanted), needed.chain(may_go), LIMITS);
        let created: Vec<Key> = plan.create.into_iter().map(|(key, _)| key).collect();
        let keys = |names: &[&str]| names.iter().map(|name| key(name)).collect::<Vec<_>>();
        assert_eq!(created, keys(create), "{wanted:?}");
        let expect = refused
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count));
        assert_eq!(plan.refused, expect.collect(), "{wanted:?}");
        assert_eq!(
            plan.surplus,
            keys(surplus).into_iter().collect(),
            "{wanted:?}"
        );
    }

    #[test]
    fn images_of_pods_count_first_up_to_the_limits() {
        check(&[], &[], &["a/1", "a/2"], &["a/1", "a/2"], &[], &[]);
        check(
            &["a/1"],
            &[],
            &["a/2", "a/3", "a/4!"],
            &["a/4", "a/2"],
            &[("a", 1)],
            &[],
        );
        check(
            &["a/1", "a/2", "b/1", "b/2"],
            &[],
            &["a/3", "b/3", "c/1!"],
            &["c/1"],
            &[("a", 1), ("b", 1)],
            &[],
        );
    }

    #[test]
    fn what_nothing_needs_makes_room_the_newest_first() {
        check(&[], &["a/1", "a/2", "a/3"], &[], &[], &[], &[]);
        check(&[], &["a/1", "a/2", "a/3", "a/4"], &[], &[], &[], &["a/4"]);
        check(&["a/1"], &["a/2", "a/3"], &["a/4!"], &[], &[], &["a/3"]);
        check(
            &["a/1", "a/2"],
            &["a/3"],
            &["a/4", "a/5!"],
            &[],
            &[("a", 1)],
            &["a/3"],
        );
        check(
            &["a/1", "a/2", "b/1"],
            &["b/2", "c/1"],
            &["d/1!"],
            &[],
            &[],
            &["c/1"],
        );
        check(
            &["a/1", "a/2", "a/3", "a/4"],
            &[],
            &[],
            &[],
            &[("a", 1)],
            &[],
        );
    }

    #[test]
    fn needed_images_beyond_the_limits_count_as_refused_unless_copied() {
        let keys: Vec<Key> = (0..6).map(|number| key(&format!("a/{number}"))).collect();
        let all = |priority: Option<Priority>, copied: bool| {
            let all = keys.iter().map(|key| Existing {
                copied,
                automatic: false,
                ..one(key, 0, priority)
            });
            let plan = plan(missing(&["a/6!"]), all, LIMITS);
            assert_eq!(plan.beyond.len(), 3);
            plan.refused.get("a").copied()
        };
        assert_eq!(all(Some(Priority::Blocking), false), Some(4));
        assert_eq!(all(Some(Priority::Blocking), true), Some(1));
        assert_eq!(all(None, false), Some(1));
    }

    /// Names of what makes room, and of what is beyond the limits. A `c` behind the name means
    /// copied, an `n` needed, a `w` waited for, an `h` made by hand; the oldest first.
    fn cut(existing: &[&str], wanted: &[&str]) -> (Vec<String>, Vec<String>) {
        let parts = |text: &&str| {
            let (name, marks) = text.split_once(' ').unwrap_or((text, ""));
            (key(name), marks.to_owned())
        };
        let all: Vec<(Key, String)> = existing.iter().map(parts).collect();
        let existing = all.iter().zip(1..).map(|((key, marks), created)| {
            let priority = match marks {
                marks if marks.contains('w') => Some(Priority::Blocking),
                marks if marks.contains('n') => Some(Priority::Running),
                _ => None,
            };
            Existing {
                copied: marks.contains('c'),
                automatic: !marks.contains('h'),
                ..one(key, created, priority)
            }
        });
        let plan = plan(missing(wanted), existing, LIMITS);
        let names = |keys: BTreeSet<Key>| {
            let names = keys.into_iter();
            names
                .map(|(namespace, name)| format!("{namespace}/{name}"))
                .collect()
        };
        (names(plan.surplus), names(plan.beyond))
    }

    #[test]
    fn what_was_copied_and_nothing_needs_makes_room_the_oldest_first() {
        for (existing, wanted, surplus) in [
            (&["a/1 c", "a/2 c", "a/3 c"][..], &[][..], &[][..]),
            (&["a/1 c", "a/2 c", "a/3 c"], &["a/4!"], &["a/1"]),
            (&["a/1 cn", "a/2 c", "a/3 c"], &["a/4!"], &["a/2"]),
            (&["a/1 ch", "a/2 c", "a/3 c"], &["a/4!"], &["a/2"]),
            (&["a/1 c", "a/2", "a/3 c"], &["a/4!"], &["a/2"]),
            (&["a/1 ch", "a/2 cn", "a/3 ch"], &["a/4!"], &[]),
            // Of the namespace that has more than its share.
            (
                &["a/1 c", "b/1 c", "b/2 c", "b/3 c", "c/1 c"],
                &["c/2!"],
                &["b/1"],
            ),
            (
                &["a/1 c", "b/1 cn", "b/2 cn", "b/3 cn", "c/1 c"],
                &["b/4!"],
                &[],
            ),
        ] {
            assert_eq!(cut(existing, wanted).0, surplus, "{existing:?} {wanted:?}");
        }
    }

    #[test]
    fn what_is_beyond_the_share_of_its_namespace_is_not_copied() {
        for (existing, beyond) in [
            (&["a/1 n", "a/2 n", "a/3 n"][..], &[][..]),
            // Made by hand or not.
            (&["a/1 n", "a/2 n", "a/3 n", "a/4 n"], &["a/4"]),
            (
                &["a/1 h", "a/2 h", "a/3 h", "a/4 h", "a/5 h"],
                &["a/4", "a/5"],
            ),
            (&["a/1 h", "a/2 n", "a/3 n", "a/4 w"], &["a/1"]),
            (&["a/1 n", "a/2 n", "a/3 n", "a/4 cn"], &["a/3"]),
            // Of all: who has few keeps them.
            (&["a/1 n", "a/2 n", "a/3 n", "b/1 n", "b/2 n"], &[]),
            (
                &[
                    "a/1 n", "a/2 n", "a/3 n", "b/1 n", "b/2 n", "b/3 n", "c/1 n",
                ],
                &["a/3", "b/3"],
            ),
            // What a namespace has beyond its share takes no room of others.
            (
                &[
                    "a/1 n", "a/2 n", "a/3 n", "a/4 n", "a/5 n", "b/1 n", "b/2 n",
                ],
                &["a/4", "a/5"],
            ),
        ] {
            assert_eq!(cut(existing, &[]).1, beyond, "{existing:?}");
        }
        check(
            &["a/1", "a/2", "a/3", "a/4", "a/5"],
            &[],
            &["b/1!"],
            &["b/1"],
            &[("a", 2)],
            &[],
        );
    }
}
