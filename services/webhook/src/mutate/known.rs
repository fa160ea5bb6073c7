//! The choice between the names of an image, by what is known of copies, upstreams and nodes.

use super::tests::{create_with, pod, rules};
use super::*;
use crate::choice::tests::known;
use std::sync::Arc;

/// A pod with this image and this member of its specification is rewritten, or kept for this
/// reason.
fn check(image: &str, member: Option<(&str, Value)>, expect: Option<SkipReason>) {
    let rules = Rules {
        delivery: Arc::new(known()),
        ..rules()
    };
    let mut pod = pod(image);
    if let Some((name, value)) = &member {
        pod["spec"][*name] = value.clone();
    }
    let found = create_with(&pod, &rules);
    let skipped: Vec<SkipReason> = expect.into_iter().collect();
    assert_eq!(found.skipped, skipped, "{image} {member:?}");
    assert_eq!(found.rewritten, usize::from(expect.is_none()), "{image}");
    assert_eq!(found.images.len(), 1, "announced in each case: {image}");
}

#[test]
fn a_pod_keeps_a_name_that_is_more_likely_to_start() {
    for (image, expect) in [
        ("away.example/held:1", None),
        // Neither held nor to be had.
        ("away.example/other:1", Some(SkipReason::NotBetter)),
        ("up.example/new:1", None),
        ("up.example/all:1", Some(SkipReason::OnNodes)),
        ("new.example/first:1", None),
        ("new.example/all:1", Some(SkipReason::NotBetter)),
        ("new.example/some:1", Some(SkipReason::NotBetter)),
        // A name that only the nodes know.
        ("node.example/app:1", Some(SkipReason::NotBetter)),
    ] {
        check(image, None, expect);
    }
}

/// A node that joins needs its plug-ins before it can pull from the registry.
#[test]
fn plug_ins_do_not_wait_for_nodes_that_are_not_prepared() {
    let held = "away.example/held:1";
    let on = |node: &str| Some(("nodeName", json!(node)));
    check(held, on("old"), None);
    check(held, on("new"), Some(SkipReason::NotBetter));
    check(
        held,
        Some(("hostNetwork", json!(true))),
        Some(SkipReason::NotBetter),
    );
}
