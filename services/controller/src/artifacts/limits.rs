//! How many Artifacts there may be, in a namespace and in all: pure.
//!
//! What living pods wait for comes first, then what runs, then what workloads would need. Artifacts that nothing needs make
//! room, the newest first; what was copied or is kept never does.

use super::demand::Demand;
use crate::world::Key;
use holdfast_config::ArtifactLimits;
use std::collections::{BTreeMap, BTreeSet};

/// An Artifact that is there.
#[derive(Clone, Copy, Debug)]
pub struct Existing<'a> {
    /// Its namespace and name.
    pub key: &'a Key,
    /// When it was made, in seconds since 1970, if nothing needs it and it may go.
    pub may_go: Option<i64>,
}

/// What follows from the limits.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Artifacts to make, the most urgent first.
    pub create: Vec<(Key, Demand)>,
    /// How many images have none, by namespace, because there are too many; without those for which room is being made.
    pub refused: BTreeMap<String, usize>,
    /// Artifacts that are to make room.
    pub surplus: BTreeSet<Key>,
}

/// Decides which of the `missing` Artifacts are made.
pub fn plan<'a>(
    mut missing: Vec<(Key, Demand)>,
    existing: impl Iterator<Item = Existing<'a>>,
    limits: ArtifactLimits,
) -> Plan {
    let (of_namespace, of_all) = (limits.per_namespace as usize, limits.total as usize);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut may_go: Vec<(i64, &Key)> = Vec::new();
    let mut all = 0;
    for artifact in existing {
        if let Some(count) = counts.get_mut(&artifact.key.0) {
            *count += 1;
        } else {
            counts.insert(artifact.key.0.clone(), 1);
        }
        all += 1;
        may_go.extend(artifact.may_go.map(|created| (created, artifact.key)));
    }
    // What is wanted beyond the limits, by namespace and in all: so many are to go.
    let mut wanted = counts.clone();
    for (key, _) in &missing {
        *wanted.entry(key.0.clone()).or_default() += 1;
    }
    let mut beyond = (all + missing.len()).saturating_sub(of_all);
    may_go.sort_unstable_by(|one, other| other.cmp(one));
    let mut plan = Plan::default();
    for by_namespace in [true, false] {
        for (_, key) in &may_go {
            let over = wanted.get(&key.0).copied().unwrap_or(0) > of_namespace;
            if plan.surplus.contains(*key) || !(if by_namespace { over } else { beyond > 0 }) {
                continue;
            }
            plan.surplus.insert((*key).clone());
            beyond = beyond.saturating_sub(1);
            if let Some(count) = wanted.get_mut(&key.0) {
                *count -= 1;
            }
        }
    }
    missing.sort_by_key(|(_, demand)| demand.need());
    let mut later = counts.clone();
    for key in &plan.surplus {
        if let Some(count) = later.get_mut(&key.0) {
            *count -= 1;
        }
    }
    let mut all_later = all - plan.surplus.len();
    for (key, demand) in missing {
        let count = counts.entry(key.0.clone()).or_default();
        let count_later = later.entry(key.0.clone()).or_default();
        if *count_later >= of_namespace || all_later >= of_all {
            *plan.refused.entry(key.0).or_default() += 1;
            continue;
        }
        *count_later += 1;
        all_later += 1;
        if *count < of_namespace && all < of_all {
            *count += 1;
            all += 1;
            plan.create.push((key, demand));
        }
    }
    plan
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
        let needed = needed.iter().map(|key| Existing { key, may_go: None });
        let may_go = idle.iter().zip(1..).map(|(key, created)| Existing {
            key,
            may_go: Some(created),
        });
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
        check(&["a/1", "a/2", "a/3", "a/4"], &[], &[], &[], &[], &[]);
    }
}
