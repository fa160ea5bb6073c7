//! Texts and what they mean, as tables.

use super::*;
use serde_json::json;

use crate::pod::ORIGINAL_IMAGES_ANNOTATION;

fn addresses() -> Vec<String> {
    vec!["10.96.0.50".to_owned(), "10.96.0.9".to_owned()]
}

/// The kind of a meaning, and its reference.
fn shown(meaning: &Meaning) -> String {
    match meaning {
        Meaning::Upstream {
            reference,
            repaired: false,
        } => format!("upstream {reference}"),
        Meaning::Upstream { reference, .. } => format!("repaired {reference}"),
        Meaning::Placeholder { reference, .. } => format!("placeholder {reference}"),
        Meaning::Local { reference } => format!("local {reference}"),
        Meaning::Own { repository } => format!("own {repository}"),
        Meaning::Restored { reference } => format!("restored {reference}"),
        Meaning::TooLong { .. } => "too long".to_owned(),
        Meaning::Unreadable(_) => "unreadable".to_owned(),
    }
}

fn check(text: &str, annotated: &str, expect: &str) {
    let annotated = Some(annotated).filter(|text| !text.is_empty());
    let found = meaning(text, annotated, &addresses());
    assert_eq!(shown(&found), expect, "{text} {annotated:?}");
}

// SPEC 45
#[test]
fn a_text_means_one_thing() {
    for (text, expect) in [
        ("nginx:1", "upstream docker.io/library/nginx:1"),
        ("r.io:5000/a:1", "upstream r.io:5000/a:1"),
        ("https://r.io/a:1", "repaired r.io/a:1"),
        ("r.io//a:1", "repaired r.io/a:1"),
        ("nginx", "placeholder docker.io/library/nginx:latest"),
        ("auto", "placeholder docker.io/library/auto:latest"),
        ("AUTO", "placeholder docker.io/library/auto:latest"),
        (
            "10.96.0.50/docker.io/library/nginx:1",
            "local docker.io/library/nginx:1",
        ),
        ("10.96.0.9:5000/r.io_5000/a:1", "local r.io:5000/a:1"),
        // Other spellings that the registry serves.
        (
            "10.96.0.50/docker.io/nginx:1",
            "local docker.io/library/nginx:1",
        ),
        ("10.96.0.50/holdfast/probe:1", "own holdfast/probe"),
        ("https://10.96.0.50/r.io/a:1", "unreadable"),
        ("nginx:", "unreadable"),
        ("some thing", "unreadable"),
        ("", "unreadable"),
    ] {
        check(text, "", expect);
    }
    for (text, expect) in [("auto", true), ("AUTO", true), ("nginx", false)] {
        let found = meaning(text, None, &addresses());
        assert_eq!(found.is_reserved_word(), expect, "{text}");
    }
    assert!(!meaning("team/auto", None, &[]).is_reserved_word());
}

#[test]
fn an_annotation_that_fits_the_path_is_what_is_meant() {
    let foreign = "10.1.2.3/docker.io/library/nginx:1";
    for (text, annotated, expect) in [
        (foreign, "nginx:1", "restored docker.io/library/nginx:1"),
        (
            foreign,
            "docker.io/nginx:1",
            "restored docker.io/library/nginx:1",
        ),
        (
            "old.example:5000/r.io_80/a:1",
            "r.io:80/a:1",
            "restored r.io:80/a:1",
        ),
        (foreign, "", "upstream 10.1.2.3/docker.io/library/nginx:1"),
        (
            foreign,
            "nginx:2",
            "upstream 10.1.2.3/docker.io/library/nginx:1",
        ),
        (
            foreign,
            "evil.example/nginx:1",
            "upstream 10.1.2.3/docker.io/library/nginx:1",
        ),
        (
            foreign,
            "not valid",
            "upstream 10.1.2.3/docker.io/library/nginx:1",
        ),
        // The registry's own references mean what their path says.
        (
            "10.96.0.50/docker.io/library/nginx:1",
            "evil.example/x:1",
            "local docker.io/library/nginx:1",
        ),
        // An original at the registry itself is no original.
        (
            "10.1.2.3/10.96.0.50/r.io/a:1",
            "10.96.0.50/r.io/a:1",
            "upstream 10.1.2.3/10.96.0.50/r.io/a:1",
        ),
        ("r.io/a:1", "evil.example/a:1", "upstream r.io/a:1"),
        (
            "nginx",
            "evil.example/a:1",
            "placeholder docker.io/library/nginx:latest",
        ),
    ] {
        check(text, annotated, expect);
    }
}

#[test]
fn lengths_count_the_address_and_what_an_artifact_can_name() {
    let name = |length: usize| format!("r.io/{}", "a".repeat(length - "r.io/".len()));
    let tag = "t".repeat(128);
    let digest = format!("sha512:{}", "0".repeat(128));
    let ipv6 = ["[2001:db8:1111:2222:3333:4444:5555:6666]".to_owned()];
    for (text, addresses, expect) in [
        (name(239), &addresses()[..], false),
        (name(240), &addresses(), true),
        (name(239), &[], false),
        (name(240), &[], true),
        (name(214), &ipv6, false),
        (name(215), &ipv6, true),
        (format!("{}:{tag}", name(239)), &[], false),
        (format!("{}:{tag}@{digest}", name(239)), &[], false),
        (format!("{}:{tag}@{digest}", name(246)), &[], true),
    ] {
        let found = meaning(&text, None, addresses);
        let is_too_long = matches!(found, Meaning::TooLong { .. });
        assert_eq!(is_too_long, expect, "{text} {addresses:?}");
        assert_eq!(found.source().is_none(), expect);
    }
    let long = format!("10.1.2.3/{}:1", name(240));
    let found = meaning(&long, Some(&format!("{}:1", name(240))), &addresses());
    assert!(matches!(found, Meaning::TooLong { .. }), "{found:?}");
}

#[test]
fn the_original_is_spelled_as_its_author_did() {
    for (image, annotation, expect) in [
        (
            "10.96.0.50/docker.io/library/nginx:1",
            "nginx:1",
            Some("nginx:1"),
        ),
        (
            "10.1.2.3/docker.io/library/nginx:1",
            "nginx:1",
            Some("nginx:1"),
        ),
        (
            "10.96.0.50/docker.io/library/nginx:1",
            "evil.example/x:1",
            Some("docker.io/library/nginx:1"),
        ),
        (
            "10.96.0.50/docker.io/library/nginx:1",
            "",
            Some("docker.io/library/nginx:1"),
        ),
        ("10.96.0.50/holdfast/probe:1", "nginx:1", None),
        ("not valid", "nginx:1", None),
    ] {
        let originals = json!({ "containers/c": annotation }).to_string();
        let pod = json!({
            "metadata": {"annotations": {ORIGINAL_IMAGES_ANNOTATION: originals}},
            "spec": {"containers": [{"name": "c", "image": image}]},
        });
        let found = of_pod(&pod, &addresses());
        assert_eq!(
            found[0].original_text().as_deref(),
            expect,
            "{image} {annotation}"
        );
    }
}

#[test]
fn originals_are_derived_and_an_annotation_that_fits_is_believed() {
    let annotation = r#"{"containers/c":"nginx:1"}"#;
    let canonical = "docker.io/library/nginx:1";
    let foreign = "10.9.9.9/docker.io/library/nginx:1";
    for (image, annotation, expect) in [
        ("nginx:1", "", Some((canonical, false))),
        (
            "10.96.0.50/docker.io/library/nginx:1",
            "",
            Some((canonical, true)),
        ),
        (
            "10.96.0.50/docker.io/library/nginx:1",
            r#"{"containers/c":"evil.example/x:1"}"#,
            Some((canonical, true)),
        ),
        // An unknown address.
        (foreign, annotation, Some((canonical, true))),
        (foreign, "", Some((foreign, false))),
        (
            "10.9.9.9/docker.io/library/nginx:2",
            annotation,
            Some(("10.9.9.9/docker.io/library/nginx:2", false)),
        ),
        (
            "other.example/app:1",
            annotation,
            Some(("other.example/app:1", false)),
        ),
        ("10.96.0.50/holdfast/probe:1", "", None),
        ("not valid", "", None),
        ("nginx:1", "not json", Some((canonical, false))),
        ("nginx:1", "[]", Some((canonical, false))),
    ] {
        let pod = json!({
            "metadata": {"annotations": {ORIGINAL_IMAGES_ANNOTATION: annotation}},
            "spec": {"containers": [{"name": "c", "image": image}]},
        });
        let found = of_pod(&pod, &["10.96.0.50".to_owned()]).remove(0).meaning;
        let found = found
            .source()
            .map(|source| (source.to_string(), found.is_rewritten()));
        let expect = expect.map(|(text, rewritten)| (text.to_owned(), rewritten));
        assert_eq!(found, expect, "{image} {annotation}");
    }
}

#[test]
fn without_a_policy_only_latest_is_always_pulled() {
    let digest = format!("r.io/a@sha256:{}", "0".repeat(64));
    for (text, expect) in [
        ("nginx", "Always"),
        ("10.96.0.50/own/thing", "Always"),
        ("r.io/a:latest", "Always"),
        ("r.io/a:1", "IfNotPresent"),
        (&digest, "IfNotPresent"),
        ("not valid", "IfNotPresent"),
    ] {
        assert_eq!(default_pull_policy(text), expect, "{text}");
    }
}
