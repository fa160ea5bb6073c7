//! Whether the upstreams of wanted images can be reached, by what the Artifacts say, and under
//! which names policies may allow them.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::Artifact;
use holdfast_api::artifact::Reason;
use holdfast_core::Reference;

use super::judge::Report;
use crate::standing::standing;
use crate::terminal;

pub(super) use holdfast_core::rewrite::upstream_prefix as prefix;

/// The prefixes of these sources, each once.
fn prefixes<'a>(sources: impl IntoIterator<Item = &'a str>, address: &str) -> BTreeSet<String> {
    sources
        .into_iter()
        .filter_map(|source| prefix(&Reference::parse(source).ok()?, address))
        .collect()
}

/// What images are wanted in a namespace.
pub(super) fn wanted_in<'a>(
    artifacts: impl Iterator<Item = &'a Artifact>,
    namespace: &str,
) -> impl Iterator<Item = &'a str> {
    artifacts
        .filter(move |artifact| artifact.metadata.namespace.as_deref() == Some(namespace))
        .map(|artifact| artifact.spec.source_artifact.as_str())
}

/// The prefixes under which a policy is to allow these images.
pub(super) fn allowed(sources: BTreeSet<&str>, address: &str) -> String {
    let prefixes: Vec<String> = prefixes(sources, address).into_iter().collect();
    if prefixes.is_empty() {
        format!("{address}/HOST/ for each upstream HOST that it allows")
    } else {
        prefixes.join(" or ")
    }
}

/// What is known of an upstream that does not answer.
struct Away<'a> {
    images: u64,
    since: String,
    message: &'a str,
}

/// One finding for each upstream that images wait for.
pub(super) fn judge(artifacts: &[Artifact], report: &mut Report) {
    let mut away: BTreeMap<String, Away<'_>> = BTreeMap::new();
    for artifact in artifacts {
        let standing = standing(artifact);
        if standing.reason != Reason::UpstreamUnavailable.as_str() {
            continue;
        }
        let Ok(reference) = Reference::parse(&artifact.spec.source_artifact) else {
            continue;
        };
        let message = artifact.ready().map_or("", |ready| ready.message.as_str());
        let found = away
            .entry(reference.host().to_string())
            .or_insert_with(|| Away {
                images: 0,
                since: standing.since.clone(),
                message,
            });
        found.images += 1;
        // RFC 3339 in UTC: the order of the texts is that of the times.
        found.since = found.since.clone().min(standing.since);
    }
    for (host, away) in away {
        report.find(
            format!(
                "{host} cannot be reached: {} not local, since {}: {}",
                terminal::count(away.images, "wanted image is", "wanted images are"),
                away.since,
                away.message
            ),
            "check the uplink and proxy.*, and for this host upstreams[].endpoint, mirrors and ca; \
             copies go on by themselves once it answers",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn artifact(source: &str, reason: &str, since: &str) -> Artifact {
        let status = if reason == "Copied" { "True" } else { "False" };
        serde_json::from_value(json!({
            "apiVersion": "holdfast.dev/v1alpha1", "kind": "Artifact",
            "metadata": {"name": "a", "namespace": "b", "generation": 1},
            "spec": {"sourceArtifact": source},
            "status": {"conditions": [{
                "type": "Ready", "status": status, "reason": reason,
                "message": "connection refused", "observedGeneration": 1,
                "lastTransitionTime": since,
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn each_upstream_that_is_away_is_named_once() {
        let artifacts = [
            artifact(
                "a.example/x:1",
                "UpstreamUnavailable",
                "2026-01-02T00:00:00Z",
            ),
            artifact(
                "a.example/y:1",
                "UpstreamUnavailable",
                "2026-01-01T00:00:00Z",
            ),
            artifact(
                "b.example:5000/x:1",
                "UpstreamUnavailable",
                "2026-01-01T00:00:00Z",
            ),
            artifact("c.example/x:1", "NotFound", "2026-01-01T00:00:00Z"),
            artifact("d.example/x:1", "Copied", "2026-01-01T00:00:00Z"),
        ];
        let mut report = Report::default();
        judge(&artifacts, &mut report);
        let lines: Vec<&str> = report
            .findings
            .iter()
            .map(|finding| finding.what.as_str())
            .collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        for part in [
            "a.example cannot be reached",
            "2 wanted images are not local",
            "since 2026-01-01",
            "connection refused",
        ] {
            assert!(lines[0].contains(part), "{part}: {lines:?}");
        }
        assert!(lines[1].contains("b.example:5000 cannot be reached: 1 wanted image is"));
        let mut well = Report::default();
        judge(&artifacts[3..], &mut well);
        assert!(well.findings.is_empty());
    }

    #[test]
    fn a_prefix_names_the_upstream_and_never_the_address_alone() {
        let sources = [
            "nginx",
            "docker.io/team/app:1",
            "quay.io/a/b@sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            "registry.example:5000/a:1",
            "not a reference",
        ];
        let found: Vec<String> = prefixes(sources, "10.96.0.50").into_iter().collect();
        assert_eq!(
            found,
            [
                "10.96.0.50/docker.io/",
                "10.96.0.50/quay.io/",
                "10.96.0.50/registry.example_5000/",
            ]
        );
    }
}
