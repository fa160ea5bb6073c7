//! The list of sources that the webhook leaves alone: who comes onto it, who goes: pure.

use crate::artifacts::status;
use holdfast_api::state::{EVERY_SOURCE, MAX_LEFT_ALONE, SourceLeftAlone};
use holdfast_api::{Artifact, artifact_name};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Adds a source that proved unfillable; one that is there keeps its place. Where the list is full, the oldest goes.
pub fn add(
    list: &mut Vec<SourceLeftAlone>,
    namespace: &str,
    source: &str,
    reason: &str,
    now: jiff::Timestamp,
) {
    if is_there(list, namespace, source) {
        return;
    }
    list.push(SourceLeftAlone {
        namespace: namespace.to_owned(),
        source: source.to_owned(),
        reason: reason.to_owned(),
        // Whole seconds, as they are written: what is read back is the same.
        since: Time(jiff::Timestamp::from_second(now.as_second()).unwrap_or(now)),
    });
    let surplus = list.len().saturating_sub(MAX_LEFT_ALONE);
    list.drain(..surplus);
}

/// Takes a source off the list; whether it was there.
pub fn remove(list: &mut Vec<SourceLeftAlone>, namespace: &str, source: &str) -> bool {
    let before = list.len();
    list.retain(|entry| entry.namespace != namespace || entry.source != source);
    list.len() != before
}

/// Whether a source is left alone in a namespace.
pub fn is_there(list: &[SourceLeftAlone], namespace: &str, source: &str) -> bool {
    list.iter()
        .any(|entry| entry.namespace == namespace && entry.source == source)
}

/// Drops what the registry holds by now, and what no Artifact asks for any more; what was dropped. Whole namespaces are left
/// alone for another reason.
pub fn drop_settled<'a>(
    list: &mut Vec<SourceLeftAlone>,
    artifact: impl Fn(&str, &str) -> Option<&'a Artifact>,
) -> Vec<SourceLeftAlone> {
    let settled = |entry: &mut SourceLeftAlone| {
        entry.source != EVERY_SOURCE
            && artifact(&entry.namespace, &artifact_name(&entry.source))
                .is_none_or(status::was_ready)
    };
    list.extract_if(.., settled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::healing::fixtures;

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_newest_are_kept_and_each_stands_there_once() {
        let mut list = Vec::new();
        for number in 0..=MAX_LEFT_ALONE {
            let source = format!("r.io/a:{number}");
            add(&mut list, "apps", &source, "NotFound", at(1));
            add(&mut list, "apps", &source, "Unauthorized", at(2));
        }
        assert_eq!(list.len(), MAX_LEFT_ALONE);
        assert!(!is_there(&list, "apps", "r.io/a:0"), "the oldest went");
        assert!(is_there(&list, "apps", "r.io/a:1"));
        assert!(!is_there(&list, "other", "r.io/a:1"));
        assert!(list.iter().all(|entry| entry.reason == "NotFound"));
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
        let sources = |list: &[SourceLeftAlone]| {
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
