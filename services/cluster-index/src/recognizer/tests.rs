//! Histories of owners, and whether they are recognized.

use super::*;
use holdfast_api::artifact::Reference;
use holdfast_cluster_model::Owner;

fn deletion(owner: &str, revision: &str, uid: &str, created: i64, requested: i64) -> Deletion {
    Deletion {
        namespace: "apps".to_owned(),
        pod: format!("pod-{uid}"),
        uid: uid.to_owned(),
        owner: Owner {
            reference: Reference {
                kind: "Cluster".to_owned(),
                name: owner.to_owned(),
            },
            uid: owner.to_owned(),
        },
        api_version: "db.io/v1".to_owned(),
        revision: revision.to_owned(),
        sources: ["r.io/db:1".to_owned()].into(),
        created,
        requested,
    }
}

/// Each deletion: owner, UID, creation, request. `expect` are the UIDs of the pods whose deletion
/// shows that their owner compares images.
fn check(what: &str, history: &[(&str, &str, i64, i64)], expect: &[&str]) {
    let mut recognizer = Recognizer::default();
    for (owner, uid, created, requested) in history {
        recognizer.observe(&deletion(owner, "", uid, *created, *requested));
    }
    let found = recognizer.take_recognized();
    let found: Vec<_> = found.iter().map(|deletion| deletion.uid.as_str()).collect();
    assert_eq!(found, expect, "{what}");
}

#[test]
fn histories_of_owners() {
    check(
        "an operator that compares",
        &[("db", "1", 0, 2), ("db", "2", 3, 5), ("db", "3", 6, 8)],
        &["3"],
    );
    check(
        "one that does so within a second",
        &[("db", "1", 7, 7), ("db", "2", 7, 7), ("db", "3", 7, 7)],
        &["3"],
    );
    check(
        "one that creates the next pod before it deletes the last",
        &[
            ("db", "1", 0, 4),
            ("db", "2", 3, 8),
            ("db", "3", 7, 12),
            ("db", "4", 11, 16),
            ("db", "5", 15, 20),
        ],
        &["5"],
    );
    check(
        "one with three pods at a time",
        &[
            ("db", "1a", 0, 5),
            ("db", "1b", 0, 5),
            ("db", "1c", 0, 6),
            ("db", "2a", 6, 9),
            ("db", "2b", 6, 9),
            ("db", "3a", 10, 14),
            ("db", "3b", 10, 14),
        ],
        &["3a"],
    );
    check(
        "an owner that is removed or scaled down",
        &[
            ("db", "1", 0, 20),
            ("db", "2", 1, 20),
            ("db", "3", 2, 21),
            ("db", "4", 2, 22),
        ],
        &[],
    );
    check(
        "two restarts",
        &[("db", "1", 0, 20), ("db", "2", 21, 40)],
        &[],
    );
    check(
        "restarts of different owners",
        &[("a", "1", 0, 20), ("b", "2", 21, 40), ("c", "3", 41, 60)],
        &[],
    );
    check(
        "within more than ten minutes",
        &[
            ("db", "1", 0, 2),
            ("db", "2", 300, 302),
            ("db", "3", 600, 603),
        ],
        &[],
    );
    check(
        "within ten minutes",
        &[
            ("db", "1", 0, 2),
            ("db", "2", 300, 302),
            ("db", "3", 600, 602),
        ],
        &["3"],
    );
    check(
        "each deletion is seen twice",
        &[
            ("db", "1", 7, 7),
            ("db", "1", 7, 7),
            ("db", "2", 7, 7),
            ("db", "2", 7, 9),
        ],
        &[],
    );
}

#[test]
fn rollouts_and_other_images_are_no_comparisons() {
    let mut recognizer = Recognizer::default();
    for (at, revision) in [(0, "a"), (10, "b"), (20, "c")] {
        let uid = at.to_string();
        assert!(!recognizer.observe(&deletion("db", revision, &uid, at, at + 5)));
    }
    for at in [30, 40, 50] {
        let mut deletion = deletion("db", "c", &at.to_string(), at, at + 5);
        deletion.sources = [format!("r.io/db:{at}")].into();
        assert!(!recognizer.observe(&deletion));
    }
}

#[test]
fn an_owner_is_recognized_again_after_three_more_deletions() {
    let mut recognizer = Recognizer::default();
    let seen: Vec<bool> = (0..7)
        .map(|at| recognizer.observe(&deletion("db", "", &at.to_string(), at, at)))
        .collect();
    assert_eq!(seen, [false, false, true, false, false, true, false]);
}

#[test]
fn the_memory_is_bounded_and_keeps_the_newest_histories() {
    let mut recognizer = Recognizer::default();
    let owner = |number: usize| format!("owner-{number}");
    recognizer.observe(&deletion("old", "", "o", 0, 0));
    for number in 0..MAX_HISTORIES {
        recognizer.observe(&deletion(&owner(number), "", "1", 1, 1));
    }
    assert_eq!(recognizer.histories.len(), MAX_HISTORIES);
    assert!(!recognizer.observe(&deletion(&owner(5), "", "2", 2, 2)));
    assert!(
        recognizer.observe(&deletion(&owner(5), "", "3", 3, 3)),
        "kept"
    );
    recognizer.observe(&deletion(
        "later",
        "",
        "1",
        WINDOW_SECONDS * 2,
        WINDOW_SECONDS * 2,
    ));
    for number in 0..3 * MAX_RECOGNIZED {
        for uid in ["1", "2", "3"] {
            recognizer.observe(&deletion(&owner(number), "", uid, 5000, 5000));
        }
    }
    assert_eq!(recognizer.take_recognized().len(), MAX_RECOGNIZED);
    assert!(recognizer.take_recognized().is_empty());
}
