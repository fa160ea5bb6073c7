//! Tables of policies and of images that pods want.

use super::*;
use serde_json::json;

const ADDRESS: &str = "10.96.0.50";

fn glob(pattern: &str, text: &str, by_path: bool) -> bool {
    let letters = |text: &str| text.chars().collect::<Vec<_>>();
    matches(&letters(pattern), &letters(text), by_path)
}

#[test]
fn globs_match_as_their_makers_say() {
    for (pattern, text, anywhere, by_path) in [
        ("ghcr.io/team/*", "ghcr.io/team/app:1", true, true),
        ("ghcr.io/*", "ghcr.io/team/app:1", true, false),
        ("ghcr.io/**", "ghcr.io/team/app:1", true, true),
        ("*", "a/b", true, false),
        ("**", "a/b", true, true),
        ("*/app:?", "x/app:1", true, true),
        ("", "", true, true),
        ("", "a", false, false),
        ("a*", "", false, false),
        ("a*c", "abd", false, false),
    ] {
        assert_eq!(glob(pattern, text, false), anywhere, "{pattern} {text}");
        assert_eq!(glob(pattern, text, true), by_path, "{pattern} {text}");
    }
}

/// A policy of this kind in namespace `shop`, if the kind has namespaces.
fn read(called: &str, spec: Value) -> Option<Verifier> {
    let kind = KINDS.iter().find(|kind| kind.called == called);
    let kind = kind.unwrap_or_else(|| panic!("no kind {called}"));
    let mut policy = json!({"metadata": {"name": "signed"}, "spec": spec});
    if called == "Kyverno Policy" || called.contains("Namespaced") {
        policy["metadata"]["namespace"] = json!("shop");
    }
    verifier(&policy, kind)
}

fn kyverno(patterns: &[&str]) -> Verifier {
    let spec =
        json!({"rules": [{"verifyImages": [{"imageReferences": patterns}]}, {"validate": {}}]});
    read("Kyverno ClusterPolicy", spec).unwrap()
}

fn sigstore(glob: &str) -> Verifier {
    read(
        "sigstore ClusterImagePolicy",
        json!({"images": [{"glob": glob}]}),
    )
    .unwrap()
}

/// What is told of a policy where pods of `shop` want these images.
fn report(verifier: Verifier, sources: &[&str]) -> Report {
    let mut report = Report::default();
    let sources = sources.iter().map(|source| ("shop", *source));
    diagnose(&Ok(vec![verifier]), sources, ADDRESS, &mut report);
    report
}

fn found(verifier: Verifier, sources: &[&str]) -> Vec<(String, String)> {
    let report = report(verifier, sources);
    assert_eq!(report.unknown, [""; 0]);
    let findings = report.findings.into_iter();
    findings
        .map(|finding| (finding.what, finding.fix))
        .collect()
}

#[test]
fn a_policy_that_means_the_upstreams_name_only_is_named() {
    let policy = kyverno(&["ghcr.io/team/*"]);
    let images = ["ghcr.io/team/app:1", "ghcr.io/other/app:1", "quay.io/a:1"];
    let findings = found(policy.clone(), &images);
    assert_eq!(findings.len(), 1);
    let (what, fix) = &findings[0];
    for part in ["Kyverno ClusterPolicy signed", "ghcr.io/team/*", "app:1"] {
        assert!(what.contains(part), "{what}");
    }
    assert!(!what.contains("other") && !what.contains("quay.io"));
    assert!(fix.contains("10.96.0.50/ghcr.io/**"), "{fix}");
    assert!(found(policy, &["quay.io/a:1"]).is_empty());
}

#[test]
fn a_policy_that_means_both_names_is_well() {
    for patterns in [
        &["ghcr.io/team/*", "10.96.0.50/ghcr.io/team/*"][..],
        &["*"],
        &["*/team/*"],
    ] {
        let found = found(kyverno(patterns), &["ghcr.io/team/app:1"]);
        assert!(found.is_empty(), "{patterns:?}");
    }
    assert!(found(sigstore("**"), &["ghcr.io/team/app:1"]).is_empty());
}

#[test]
fn short_names_of_docker_hub_are_known() {
    for pattern in [
        "nginx*",
        "docker.io/nginx*",
        "docker.io/library/*",
        "index.docker.io/library/*",
        "*",
    ] {
        let found = found(sigstore(pattern), &["nginx:1"]);
        assert_eq!(found.len(), 1, "{pattern}");
    }
    for pattern in ["*", "*/*"] {
        let found = found(sigstore(pattern), &["ghcr.io/app:1"]);
        assert!(found.is_empty(), "{pattern} means Docker Hub");
    }
}

#[test]
fn what_verifies_nothing_is_no_verifier() {
    for (called, spec) in [
        (
            "Kyverno ClusterPolicy",
            json!({"rules": [{"validate": {}}]}),
        ),
        (
            "Kyverno Policy",
            json!({"rules": [{"verifyImages": [{"skipImageReferences": ["*"]}]}]}),
        ),
        (
            "Kyverno ImageValidatingPolicy",
            json!({"images": [{"name": "own", "expression": "object.spec.image"}]}),
        ),
        ("sigstore ClusterImagePolicy", json!({"images": []})),
    ] {
        assert_eq!(read(called, spec), None, "{called}");
    }
}

#[test]
fn every_kind_says_where_its_globs_are() {
    let rule = |verify: Value| json!({"rules": [{"verifyImages": [verify]}]});
    let reference = json!({"matchImageReferences": [{"glob": "ghcr.io/team/*"}]});
    for (called, spec) in [
        (
            "Kyverno ClusterPolicy",
            rule(json!({"image": "ghcr.io/team/*"})),
        ),
        (
            "Kyverno Policy",
            rule(json!({"imageReferences": ["ghcr.io/team/*"]})),
        ),
        ("Kyverno ImageValidatingPolicy", reference.clone()),
        ("Kyverno NamespacedImageValidatingPolicy", reference),
        (
            "sigstore ClusterImagePolicy",
            json!({"images": [{"glob": "ghcr.io/team/*"}]}),
        ),
    ] {
        let policy = read(called, spec).unwrap();
        let findings = found(policy, &["ghcr.io/team/app:1"]);
        assert_eq!(findings.len(), 1, "{called}");
        assert!(findings[0].0.contains(called), "{}", findings[0].0);
    }
}

#[test]
fn what_a_rule_skips_it_does_not_verify() {
    let rule = |skips: &[&str]| {
        let verify = json!({"imageReferences": ["*"], "skipImageReferences": skips});
        read(
            "Kyverno ClusterPolicy",
            json!({"rules": [{"verifyImages": [verify]}]}),
        )
        .unwrap()
    };
    for (skips, expect) in [
        (&[][..], 0),
        // Verified under its upstream's name, and no longer under the rewritten one.
        (&["10.96.0.50/*"], 1),
        (&["ghcr.io/*", "10.96.0.50/*"], 0),
        (&["quay.io/*"], 0),
    ] {
        let found = found(rule(skips), &["ghcr.io/team/app:1"]);
        assert_eq!(found.len(), expect, "{skips:?}");
    }
}

#[test]
fn what_a_rule_skips_by_an_unknown_pattern_may_be_anything() {
    let verify = json!({"imageReferences": ["*"], "skipImageReferences": ["{{ local }}"]});
    let spec = json!({"rules": [{"verifyImages": [verify]}]});
    let policy = read("Kyverno ClusterPolicy", spec).unwrap();
    let mut report = Report::default();
    let sources = [("shop", "ghcr.io/team/app:1")].into_iter();
    diagnose(&Ok(vec![policy]), sources, ADDRESS, &mut report);
    assert!(report.findings.is_empty());
    assert_eq!(report.unknown.len(), 1);
}

#[test]
fn a_policy_of_a_namespace_is_for_its_own_pods() {
    let spec = json!({"rules": [{"verifyImages": [{"imageReferences": ["ghcr.io/*"]}]}]});
    for (namespace, expect) in [("shop", 1), ("other", 0)] {
        let policy = read("Kyverno Policy", spec.clone()).unwrap();
        let mut report = Report::default();
        let sources = [(namespace, "ghcr.io/team/app:1")].into_iter();
        diagnose(&Ok(vec![policy]), sources, ADDRESS, &mut report);
        assert_eq!(report.findings.len(), expect, "{namespace}");
        let all = format!("{:?}", report.findings);
        assert_eq!(all.contains("Kyverno Policy shop/signed"), expect > 0);
    }
}

#[test]
fn a_pattern_of_another_form_is_told() {
    let references = |image: Value| json!({"matchImageReferences": [image]});
    let expression = json!({"expression": "ref.startsWith(\"ghcr.io/\")"});
    let rule =
        |pattern: &str| json!({"rules": [{"verifyImages": [{"imageReferences": [pattern]}]}]});
    let sigstore = "sigstore ClusterImagePolicy";
    for (called, spec, told) in [
        (
            sigstore,
            json!({"images": [{"regex": "ghcr\\.io/.*"}]}),
            "regex",
        ),
        (
            sigstore,
            json!({"images": [{"glob": "ghcr.io/(a|b)"}]}),
            "(a|b)",
        ),
        (
            "Kyverno ClusterPolicy",
            rule("{{ request.object.x }}/*"),
            "{{ request",
        ),
        (
            "Kyverno ImageValidatingPolicy",
            references(expression.clone()),
            "startsWith",
        ),
        (
            "Kyverno NamespacedImageValidatingPolicy",
            references(expression),
            "startsWith",
        ),
        (
            "Kyverno ImageValidatingPolicy",
            references(json!({"glob": "{ghcr.io,quay.io}/*"})),
            "{ghcr.io,quay.io}",
        ),
    ] {
        let policy = read(called, spec).unwrap_or_else(|| panic!("{called} by {told}"));
        let judged = report(policy.clone(), &["ghcr.io/team/app:1", "nginx:1"]);
        assert!(judged.findings.is_empty(), "{told}");
        let [unknown] = &judged.unknown[..] else {
            panic!("{told}: {:?}", judged.unknown);
        };
        for part in [called, told, "ghcr.io/team/app:1", "not understood"] {
            assert!(unknown.contains(part), "no {part} in {unknown}");
        }
        assert!(
            report(policy, &[]).unknown.is_empty(),
            "nobody wants an image"
        );
    }
}

#[test]
fn a_pattern_of_another_form_does_not_matter_where_a_glob_decides() {
    let both = |glob: &str| {
        let images = json!([{"regex": "x"}, {"glob": glob}]);
        read("sigstore ClusterImagePolicy", json!({"images": images})).unwrap()
    };
    let images = ["ghcr.io/team/app:1"];
    assert!(found(both("**"), &images).is_empty());
    let undecided = report(both("ghcr.io/**"), &images);
    assert_eq!((undecided.findings.len(), undecided.unknown.len()), (0, 1));
}
