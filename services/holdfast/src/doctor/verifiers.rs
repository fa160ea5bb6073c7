//! Policies that verify signatures by the name of an image, and whether they still mean the names
//! that pods have after rewriting. One that does not is silent: it verifies nothing.
//!
//! Known are Kyverno (`ClusterPolicy`, `Policy`, `ImageValidatingPolicy`) and the policy controller
//! of sigstore (`ClusterImagePolicy`). Others keep their patterns where nobody can list them.

use std::collections::BTreeMap;

use holdfast_core::{Reference, rewrite};
use kube::Client;
use serde_json::Value;

use super::gather::Asked;
use super::judge::Report;
use super::upstreams::prefix;
use crate::cluster::{self, Listed, Resource, text};

const fn kind(group: &'static str, version: &'static str, plural: &'static str) -> Resource {
    Resource {
        group,
        version,
        plural,
    }
}

/// The kinds that verify images, and what people call them.
const KINDS: &[(Resource, &str)] = &[
    (
        kind("kyverno.io", "v1", "clusterpolicies"),
        "Kyverno ClusterPolicy",
    ),
    (kind("kyverno.io", "v1", "policies"), "Kyverno Policy"),
    (
        kind("policies.kyverno.io", "v1alpha1", "imagevalidatingpolicies"),
        "Kyverno ImageValidatingPolicy",
    ),
    (
        kind("policy.sigstore.dev", "v1beta1", "clusterimagepolicies"),
        "sigstore ClusterImagePolicy",
    ),
];

/// Images shown of one policy.
const SHOWN: usize = 3;

/// A policy and the patterns of images that it verifies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Verifier {
    /// Its kind and name.
    pub(super) name: String,
    /// Its patterns, as it writes them.
    pub(super) patterns: Vec<String>,
    /// Whether `*` stops at a slash, as sigstore's does.
    pub(super) by_path: bool,
}

/// Every policy that verifies images. A kind that the cluster does not have is no policy.
pub(super) async fn gather(client: &Client) -> Asked<Vec<Verifier>> {
    let mut found = Vec::new();
    for (resource, called) in KINDS {
        match cluster::list(client, *resource, None).await {
            Ok(Listed::Items(items)) => {
                found.extend(items.iter().filter_map(|item| verifier(item, called)));
            }
            Ok(Listed::Unknown) => {}
            Ok(Listed::Forbidden) => return Err(format!("{} may not be listed", resource.plural)),
            Err(error) => return Err(format!("{error:#}")),
        }
    }
    Ok(found)
}

fn verifier(policy: &Value, called: &str) -> Option<Verifier> {
    let mut patterns = Vec::new();
    let array = |value: &Value, pointer: &str| -> Vec<Value> {
        let found = value.pointer(pointer).and_then(Value::as_array);
        found.cloned().unwrap_or_default()
    };
    for rule in array(policy, "/spec/rules") {
        for verify in array(&rule, "/verifyImages") {
            let listed = array(&verify, "/imageReferences");
            patterns.extend(listed.iter().filter_map(Value::as_str).map(str::to_owned));
            patterns.extend(
                verify
                    .get("image")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
            );
        }
    }
    for key in ["/spec/images", "/spec/matchImageReferences"] {
        for image in array(policy, key) {
            patterns.push(text(&image, "/glob").to_owned());
        }
    }
    patterns.retain(|pattern| !pattern.is_empty());
    if patterns.is_empty() {
        return None;
    }
    let namespace = text(policy, "/metadata/namespace");
    let name = text(policy, "/metadata/name");
    Some(Verifier {
        name: if namespace.is_empty() {
            format!("{called} {name}")
        } else {
            format!("{called} {namespace}/{name}")
        },
        patterns,
        by_path: called.starts_with("sigstore"),
    })
}

impl Verifier {
    fn verifies(&self, spellings: &[String]) -> bool {
        self.patterns.iter().any(|pattern| {
            let pattern: Vec<char> = pattern.chars().collect();
            spellings.iter().any(|spelling| {
                let spelling: Vec<char> = spelling.chars().collect();
                matches(&pattern, &spelling, self.by_path)
            })
        })
    }
}

/// Glob: `?` is one character, `*` any number of them; with `by_path` `*` stops at a slash and `**`
/// does not.
fn matches(pattern: &[char], text: &[char], by_path: bool) -> bool {
    // Whether the pattern up to here matches the text up to each place.
    let mut row = vec![false; text.len() + 1];
    row[0] = true;
    let mut rest = pattern;
    while let [first, tail @ ..] = rest {
        let (wide, tail) = match (first, tail) {
            ('*', ['*', tail @ ..]) => (true, tail),
            _ => (!by_path, tail),
        };
        let mut next = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            let before = at.checked_sub(1).and_then(|before| text.get(before));
            next[at] = match (first, before) {
                ('*', Some(letter)) => row[at] || (next[at - 1] && (wide || *letter != '/')),
                ('*', None) => row[at],
                ('?', Some(_)) => row[at - 1],
                (wanted, Some(letter)) => row[at - 1] && wanted == letter,
                (_, None) => false,
            };
        }
        (row, rest) = (next, tail);
    }
    row.last().copied().unwrap_or_default()
}

/// How an image of an upstream may be written: policies differ in what they make of short names.
fn spellings(source: &Reference) -> Vec<String> {
    let full = source.to_string();
    let mut found = vec![full.clone()];
    if let Some(path) = full.strip_prefix("docker.io/") {
        found.extend([path.to_owned(), format!("index.docker.io/{path}")]);
        if let Some(name) = path.strip_prefix("library/") {
            found.extend([name.to_owned(), format!("docker.io/{name}")]);
        }
    }
    without_suffix(&mut found, &source.suffix());
    found
}

fn without_suffix(found: &mut Vec<String>, suffix: &str) {
    let bare: Vec<String> = found
        .iter()
        .filter_map(|name| name.strip_suffix(suffix).map(str::to_owned))
        .collect();
    found.extend(bare);
}

/// One finding for each policy that verified images of wanted upstreams and does not mean their
/// rewritten names.
pub(super) fn judge<'a>(
    verifiers: &Asked<Vec<Verifier>>,
    sources: impl Iterator<Item = &'a str> + Clone,
    address: &str,
    report: &mut Report,
) {
    let verifiers = match verifiers {
        Ok(verifiers) => verifiers,
        Err(why) => {
            let what = "whether policies that verify images mean rewritten names";
            return report.unknown.push(format!("{what}: {why}"));
        }
    };
    for verifier in verifiers {
        // By prefix: the images that slipped out.
        let mut missed: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for source in sources.clone() {
            let Ok(source) = Reference::parse(source) else {
                continue;
            };
            let Some(rewritten) = rewrite::rewrite(&source, address) else {
                continue;
            };
            let mut local = vec![rewritten];
            without_suffix(&mut local, &source.suffix());
            if verifier.verifies(&spellings(&source))
                && !verifier.verifies(&local)
                && let Some(prefix) = prefix(&source, address)
            {
                missed.entry(prefix).or_default().push(source.to_string());
            }
        }
        if missed.is_empty() {
            continue;
        }
        let images: Vec<&str> = missed.values().flatten().map(String::as_str).collect();
        let shown = images.get(..SHOWN.min(images.len())).unwrap_or_default();
        let more = if images.len() > SHOWN { ", …" } else { "" };
        let prefixes: Vec<String> = missed.keys().map(|prefix| format!("{prefix}**")).collect();
        report.find(
            format!(
                "{} verifies {} and does not mean the names that pods have after rewriting ({}{more}): \
                 they may run unverified",
                verifier.name,
                verifier.patterns.join(", "),
                shown.join(", ")
            ),
            format!(
                "add {} to its patterns, with credentials and the CA of the registry where the verifier asks it for \
                 signatures, or leave such namespaces alone; docs/operate/policies.md says more",
                prefixes.join(", ")
            ),
        );
    }
}

#[cfg(test)]
mod tests {
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

    fn kyverno(patterns: &[&str]) -> Value {
        json!({
            "metadata": {"name": "signed"},
            "spec": {"rules": [{"verifyImages": [{"imageReferences": patterns}]}, {"validate": {}}]},
        })
    }

    fn sigstore(glob: &str) -> Value {
        json!({"metadata": {"name": "signed"}, "spec": {"images": [{"glob": glob}]}})
    }

    fn found(verifier: Verifier, sources: &[&str]) -> Vec<(String, String)> {
        let mut report = Report::default();
        let sources = sources.iter().copied();
        judge(&Ok(vec![verifier]), sources, ADDRESS, &mut report);
        let findings = report.findings.into_iter();
        findings
            .map(|finding| (finding.what, finding.way_out))
            .collect()
    }

    #[test]
    fn a_policy_that_means_the_upstreams_name_only_is_named() {
        let policy = verifier(&kyverno(&["ghcr.io/team/*"]), "Kyverno ClusterPolicy").unwrap();
        let images = ["ghcr.io/team/app:1", "ghcr.io/other/app:1", "quay.io/a:1"];
        let findings = found(policy.clone(), &images);
        assert_eq!(findings.len(), 1);
        let (what, way_out) = &findings[0];
        for part in ["Kyverno ClusterPolicy signed", "ghcr.io/team/*", "app:1"] {
            assert!(what.contains(part), "{what}");
        }
        assert!(!what.contains("other") && !what.contains("quay.io"));
        assert!(way_out.contains("10.96.0.50/ghcr.io/**"), "{way_out}");
        assert!(found(policy, &["quay.io/a:1"]).is_empty());
    }

    #[test]
    fn a_policy_that_means_both_names_is_well() {
        for patterns in [
            &["ghcr.io/team/*", "10.96.0.50/ghcr.io/team/*"][..],
            &["*"],
            &["*/team/*"],
        ] {
            let policy = verifier(&kyverno(patterns), "Kyverno ClusterPolicy").unwrap();
            assert!(
                found(policy, &["ghcr.io/team/app:1"]).is_empty(),
                "{patterns:?}"
            );
        }
        let all = verifier(&sigstore("**"), "sigstore ClusterImagePolicy").unwrap();
        assert!(found(all, &["ghcr.io/team/app:1"]).is_empty());
    }

    #[test]
    fn short_names_of_docker_hub_are_known() {
        for pattern in [
            "nginx*",
            "docker.io/nginx*",
            "docker.io/library/*",
            "index.docker.io/library/*",
        ] {
            let policy = verifier(&sigstore(pattern), "sigstore ClusterImagePolicy").unwrap();
            assert_eq!(found(policy, &["nginx:1"]).len(), 1, "{pattern}");
        }
    }

    #[test]
    fn what_verifies_nothing_is_no_verifier() {
        let validates = json!({"metadata": {"name": "a"}, "spec": {"rules": [{"validate": {}}]}});
        assert_eq!(verifier(&validates, "Kyverno ClusterPolicy"), None);
    }
}
