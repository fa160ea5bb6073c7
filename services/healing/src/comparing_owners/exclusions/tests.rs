//! How long owners are excluded, and how many.

use super::*;

const HOUR: i64 = 3600;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn count(list: &[OwnerExclusion], namespace: &str) -> usize {
    let own = list.iter().filter(|entry| entry.namespace == namespace);
    own.count()
}

#[test]
fn an_exclusion_lasts_a_day_and_longer_each_further_time() {
    let (mut list, mut now, mut lengths) = (Vec::new(), 0, Vec::new());
    for _ in 0..7 {
        let entry = add(&mut list, "apps", "Cluster", "db", at(now)).unwrap();
        assert!(is_excluded(&list, "apps", "Cluster", "db"));
        assert!(
            add(&mut list, "apps", "Cluster", "db", at(now + 1)).is_none(),
            "excluded already"
        );
        let until = entry.until.0.as_second();
        assert!(expire(&mut list, |_| true, at(until - 1)).is_empty());
        assert_eq!(expire(&mut list, |_| true, at(until)).len(), 1);
        assert!(expire(&mut list, |_| true, at(until)).is_empty(), "once");
        assert!(!is_excluded(&list, "apps", "Cluster", "db"));
        assert_eq!(list.len(), 1, "remembered");
        lengths.push((until - now) / HOUR);
        now = until + 10;
    }
    assert_eq!(lengths, [24, 48, 96, 192, 384, 720, 720]);
    expire(&mut list, |_| true, at(now + MAX_EXCLUSION_SECONDS));
    assert!(list.is_empty(), "forgotten");
    let entry = add(&mut list, "apps", "Cluster", "db", at(now)).unwrap();
    assert_eq!(entry.until.0.as_second() - now, FIRST_EXCLUSION_SECONDS);
}

#[test]
fn an_exclusion_is_about_one_owner() {
    let mut list = Vec::new();
    add(&mut list, "apps", "Cluster", "db", at(0));
    for (namespace, kind, name) in [
        ("other", "Cluster", "db"),
        ("apps", "Kafka", "db"),
        ("apps", "Cluster", "db2"),
    ] {
        assert!(
            !is_excluded(&list, namespace, kind, name),
            "{namespace} {kind} {name}"
        );
    }
    expire(&mut list, |namespace| namespace != "apps", at(1));
    assert!(list.is_empty(), "the namespace is gone");
}

#[test]
fn a_namespaces_newest_owners_are_kept_and_ended_ones_go_first() {
    let mut list = Vec::new();
    let name = |number: usize| format!("db-{number}");
    for number in 0..MAX_EXCLUDED_OWNERS_OF_NAMESPACE {
        add(&mut list, "apps", "Cluster", &name(number), at(0));
    }
    if let Some(entry) = list.get_mut(3) {
        entry.ended = true;
    }
    for number in 100..102 {
        assert!(add(&mut list, "apps", "Cluster", &name(number), at(1)).is_some());
    }
    assert_eq!(list.len(), MAX_EXCLUDED_OWNERS_OF_NAMESPACE);
    let excluded = |number| is_excluded(&list, "apps", "Cluster", &name(number));
    assert!(
        !excluded(3) && !excluded(0),
        "the ended one, then the oldest"
    );
    assert!(excluded(1) && excluded(100) && excluded(101));
}

#[test]
fn a_full_list_of_owners_is_shared_between_its_namespaces() {
    let mut list = Vec::new();
    let full = MAX_EXCLUDED_OWNERS / MAX_EXCLUDED_OWNERS_OF_NAMESPACE;
    for namespace in 0..full {
        for number in 0..MAX_EXCLUDED_OWNERS_OF_NAMESPACE {
            let (namespace, name) = (format!("n{namespace}"), format!("db-{number}"));
            add(&mut list, &namespace, "Cluster", &name, at(0));
        }
    }
    assert_eq!(list.len(), MAX_EXCLUDED_OWNERS);
    assert!(add(&mut list, "new", "Cluster", "db", at(1)).is_some());
    assert_eq!((list.len(), count(&list, "new")), (MAX_EXCLUDED_OWNERS, 1));
    // Each namespace has one: none takes the only entry of another one.
    let mut list = Vec::new();
    for namespace in 0..MAX_EXCLUDED_OWNERS {
        add(&mut list, &format!("n{namespace}"), "Cluster", "db", at(0));
    }
    assert!(add(&mut list, "new", "Cluster", "db", at(1)).is_none());
    assert!(add(&mut list, "n0", "Cluster", "db2", at(1)).is_some());
    assert_eq!((list.len(), count(&list, "n0")), (MAX_EXCLUDED_OWNERS, 1));
}

#[test]
fn the_document_lists_the_limits_of_owners() {
    use holdfast_cluster_index::{deletion, recognizer};
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/LIMITS.md");
    let text = std::fs::read_to_string(path).unwrap();
    for (name, value) in [
        ("MIN_DELETIONS", recognizer::MIN_DELETIONS.to_string()),
        ("WINDOW_SECONDS", recognizer::WINDOW_SECONDS.to_string()),
        ("MIN_RUN_SECONDS", deletion::MIN_RUN_SECONDS.to_string()),
        ("MAX_HISTORIES", recognizer::MAX_HISTORIES.to_string()),
        (
            "MAX_EXCLUDED_OWNERS_OF_NAMESPACE",
            MAX_EXCLUDED_OWNERS_OF_NAMESPACE.to_string(),
        ),
        ("MAX_EXCLUDED_OWNERS", MAX_EXCLUDED_OWNERS.to_string()),
        (
            "FIRST_EXCLUSION_SECONDS",
            FIRST_EXCLUSION_SECONDS.to_string(),
        ),
        ("MAX_EXCLUSION_SECONDS", MAX_EXCLUSION_SECONDS.to_string()),
    ] {
        let cells = format!("| `{name}` | {value} |");
        assert!(text.contains(&cells), "{cells}");
    }
}
