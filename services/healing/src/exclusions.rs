//! The list of excluded sources.

use holdfast_api::state::{
    EVERY_SOURCE, Exclusion, MAX_EXCLUDED_NAMESPACES, MAX_EXCLUSIONS, MAX_EXCLUSIONS_OF_NAMESPACE,
};
use holdfast_api::{Artifact, artifact_name};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::BTreeMap;

/// Characters of a reason, because the text of a policy has any length.
const MAX_REASON_CHARS: usize = 200;

/// Adds an unfillable source, or a namespace with a denying policy. An existing entry keeps its
/// place.
///
/// A namespace at its limit replaces its own oldest source. If the whole list is full, the
/// namespace with the most sources loses one. Namespaces with a policy are counted separately and
/// never make room.
pub fn add(
    list: &mut Vec<Exclusion>,
    namespace: &str,
    source: &str,
    reason: &str,
    now: jiff::Timestamp,
) {
    if is_excluded(list, namespace, source) || !makes_room(list, namespace, source) {
        return;
    }
    list.push(Exclusion {
        namespace: namespace.to_owned(),
        source: source.to_owned(),
        reason: reason.chars().take(MAX_REASON_CHARS).collect(),
        // Whole seconds, as in the API, so that the written entry equals this one.
        since: Time(jiff::Timestamp::from_second(now.as_second()).unwrap_or(now)),
    });
}

/// Makes room for one more entry. False if that is not possible.
fn makes_room(list: &mut Vec<Exclusion>, namespace: &str, source: &str) -> bool {
    let is_policy = |entry: &Exclusion| entry.source == EVERY_SOURCE;
    if source == EVERY_SOURCE {
        return list.iter().filter(|entry| is_policy(entry)).count() < MAX_EXCLUDED_NAMESPACES;
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in list.iter().filter(|entry| !is_policy(entry)) {
        *counts.entry(&entry.namespace).or_default() += 1;
    }
    let limits = (MAX_EXCLUSIONS_OF_NAMESPACE, MAX_EXCLUSIONS);
    let giver = match room(&counts, namespace, limits) {
        Room::Free => return true,
        Room::Of(giver) => giver,
        Room::None => return false,
    };
    let oldest = list
        .iter()
        .position(|entry| entry.namespace == giver && !is_policy(entry));
    if let Some(oldest) = oldest {
        list.remove(oldest);
    }
    oldest.is_some()
}

/// Where one more entry of a namespace fits into a list.
pub(crate) enum Room {
    /// The list has room.
    Free,
    /// An entry of this namespace makes room.
    Of(String),
    /// Nowhere: each namespace has one entry.
    None,
}

/// Finds room in a list with these numbers of entries by namespace. `limits` are the most entries
/// of a namespace and of the list.
pub(crate) fn room(
    counts: &BTreeMap<&str, usize>,
    namespace: &str,
    (of_namespace, total): (usize, usize),
) -> Room {
    let own = counts.get(namespace).copied().unwrap_or(0);
    if own >= of_namespace {
        return Room::Of(namespace.to_owned());
    }
    if counts.values().sum::<usize>() < total {
        return Room::Free;
    }
    let most = counts.iter().max_by_key(|(_, count)| **count);
    let most = most.filter(|(_, count)| **count > own + 1);
    most.map(|(name, _)| *name)
        .or_else(|| (own > 0).then_some(namespace))
        .map_or(Room::None, |giver| Room::Of(giver.to_owned()))
}

/// Removes a source. True if it was on the list.
pub fn remove(list: &mut Vec<Exclusion>, namespace: &str, source: &str) -> bool {
    let before = list.len();
    list.retain(|entry| entry.namespace != namespace || entry.source != source);
    list.len() != before
}

/// Whether a source is excluded in a namespace.
pub fn is_excluded(list: &[Exclusion], namespace: &str, source: &str) -> bool {
    list.iter()
        .any(|entry| entry.namespace == namespace && entry.source == source)
}

/// Removes the sources that the registry holds, and those without an Artifact. Returns them.
/// Excluded namespaces stay.
pub fn drop_settled<'a>(
    list: &mut Vec<Exclusion>,
    artifact: impl Fn(&str, &str) -> Option<&'a Artifact>,
) -> Vec<Exclusion> {
    let settled = |entry: &mut Exclusion| {
        entry.source != EVERY_SOURCE
            && artifact(&entry.namespace, &artifact_name(&entry.source))
                .is_none_or(Artifact::is_ready)
    };
    list.extract_if(.., settled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    fn count(list: &[Exclusion], namespace: &str) -> usize {
        let own = list.iter().filter(|entry| entry.namespace == namespace);
        own.count()
    }

    #[test]
    fn the_document_lists_the_limits() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/LIMITS.md");
        let text = std::fs::read_to_string(path).unwrap();
        let artifacts = holdfast_config::ArtifactLimits::default();
        for (name, value) in [
            (
                "controller.artifacts.perNamespace",
                artifacts.per_namespace as usize,
            ),
            ("controller.artifacts.total", artifacts.total as usize),
            ("MAX_EXCLUSIONS_OF_NAMESPACE", MAX_EXCLUSIONS_OF_NAMESPACE),
            ("MAX_EXCLUSIONS", MAX_EXCLUSIONS),
            ("MAX_EXCLUDED_NAMESPACES", MAX_EXCLUDED_NAMESPACES),
        ] {
            let cells = format!("| `{name}` | {value} |");
            assert!(text.contains(&cells), "{cells}");
        }
    }

    #[test]
    fn a_namespaces_newest_are_kept_and_each_stands_there_once() {
        let mut list = Vec::new();
        for number in 0..=MAX_EXCLUSIONS_OF_NAMESPACE {
            let source = format!("r.io/a:{number}");
            add(&mut list, "apps", &source, "NotFound", at(1));
            add(&mut list, "apps", &source, "Unauthorized", at(2));
        }
        assert_eq!(list.len(), MAX_EXCLUSIONS_OF_NAMESPACE);
        assert!(!is_excluded(&list, "apps", "r.io/a:0"), "the oldest went");
        assert!(is_excluded(&list, "apps", "r.io/a:1"));
        assert!(!is_excluded(&list, "other", "r.io/a:1"));
        assert!(list.iter().all(|entry| entry.reason == "NotFound"));
    }

    #[test]
    fn a_namespace_pushes_out_nothing_of_others_and_no_policy() {
        let mut list = Vec::new();
        add(&mut list, "loud", EVERY_SOURCE, "a policy", at(1));
        add(&mut list, "quiet", EVERY_SOURCE, "a policy", at(1));
        add(&mut list, "quiet", "r.io/a:1", "NotFound", at(1));
        for number in 0..10 * MAX_EXCLUSIONS {
            add(
                &mut list,
                "loud",
                &format!("r.io/b:{number}"),
                "NotFound",
                at(2),
            );
        }
        assert!(is_excluded(&list, "quiet", "r.io/a:1"));
        assert!(is_excluded(&list, "quiet", EVERY_SOURCE));
        assert!(is_excluded(&list, "loud", EVERY_SOURCE));
        assert_eq!(count(&list, "loud"), MAX_EXCLUSIONS_OF_NAMESPACE + 1);
    }

    #[test]
    fn a_full_list_is_shared_between_its_namespaces() {
        let mut list = Vec::new();
        let full = MAX_EXCLUSIONS / MAX_EXCLUSIONS_OF_NAMESPACE;
        for namespace in 0..full {
            for number in 0..MAX_EXCLUSIONS_OF_NAMESPACE {
                let namespace = format!("n{namespace}");
                add(
                    &mut list,
                    &namespace,
                    &format!("r.io/a:{number}"),
                    "NotFound",
                    at(1),
                );
            }
        }
        assert_eq!(list.len(), MAX_EXCLUSIONS);
        add(&mut list, "new", EVERY_SOURCE, "a policy", at(2));
        add(&mut list, "new", "r.io/a:1", "NotFound", at(2));
        assert_eq!((list.len(), count(&list, "new")), (MAX_EXCLUSIONS + 1, 2));
        assert!(
            (0..full).all(|it| count(&list, &format!("n{it}")) >= MAX_EXCLUSIONS_OF_NAMESPACE - 1)
        );
        // Each namespace has one: none takes the only entry of another one.
        let mut list = Vec::new();
        for namespace in 0..=MAX_EXCLUSIONS {
            add(
                &mut list,
                &format!("n{namespace}"),
                "r.io/a:1",
                "NotFound",
                at(1),
            );
        }
        assert_eq!(list.len(), MAX_EXCLUSIONS);
        assert!(is_excluded(&list, "n0", "r.io/a:1"));
        add(&mut list, "n0", "r.io/a:2", "NotFound", at(2));
        assert!(is_excluded(&list, "n0", "r.io/a:2"));
        assert_eq!((list.len(), count(&list, "n0")), (MAX_EXCLUSIONS, 1));
        for namespace in 0..=MAX_EXCLUDED_NAMESPACES {
            add(
                &mut list,
                &format!("p{namespace}"),
                EVERY_SOURCE,
                "a policy",
                at(3),
            );
        }
        assert_eq!(list.len(), MAX_EXCLUSIONS + MAX_EXCLUDED_NAMESPACES);
    }

    #[test]
    fn a_source_comes_off_the_list_when_it_is_held_or_nobody_asks_for_it() {
        let mut list = Vec::new();
        for source in [
            "r.io/held:1",
            "r.io/gone:1",
            "r.io/refused:1",
            "r.io/away:1",
        ] {
            add(&mut list, "apps", source, "Unauthorized", at(1));
        }
        let held = fixtures::artifact("r.io/held:1", "Copied", 0);
        let refused = fixtures::artifact("r.io/refused:1", "Unauthorized", 9);
        let away = fixtures::artifact("r.io/away:1", "UpstreamUnavailable", 9);
        let all = [&held, &refused, &away];
        let find = |_: &str, name: &str| {
            let found = all
                .iter()
                .find(|it| it.metadata.name.as_deref() == Some(name));
            found.copied()
        };
        let dropped = drop_settled(&mut list, find);
        let sources = |list: &[Exclusion]| {
            let all = list.iter().map(|entry| entry.source.clone());
            all.collect::<Vec<_>>()
        };
        assert_eq!(sources(&dropped), ["r.io/held:1", "r.io/gone:1"]);
        assert_eq!(sources(&list), ["r.io/refused:1", "r.io/away:1"]);
        add(&mut list, "apps", EVERY_SOURCE, "a policy", at(2));
        assert!(
            drop_settled(&mut list, find).is_empty(),
            "a copy does not change what a policy says"
        );
        assert!(remove(&mut list, "apps", EVERY_SOURCE));
        assert!(!remove(&mut list, "apps", EVERY_SOURCE));
    }
}
