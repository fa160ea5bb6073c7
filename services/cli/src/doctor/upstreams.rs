//! Why wanted images are not local, according to the Artifacts, and the prefixes that policies may
//! allow for them.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::Artifact;
use holdfast_api::artifact::Reason;
use holdfast_cli_kit::artifact_status::{copy_status, is_on_its_way};
use holdfast_cli_kit::finding::Code;
use holdfast_cli_kit::terminal;
use holdfast_cluster_model::advice::advice;
use holdfast_core::Reference;

use super::access::shown;
use super::report::Report;

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

/// Images of one host that are not local for one reason.
#[derive(Default)]
struct Absent {
    images: u64,
    sources: BTreeSet<String>,
    since: String,
    message: String,
}

/// One finding for each upstream and each reason for which its images are not local.
pub(super) fn diagnose(artifacts: &[Artifact], report: &mut Report) {
    let mut all: BTreeMap<(String, String), Absent> = BTreeMap::new();
    for artifact in artifacts {
        let status = copy_status(artifact);
        if status.local || is_on_its_way(&status.reason) {
            continue;
        }
        let source = &artifact.spec.source_artifact;
        // What is no reference has no host and stands for itself.
        let host = Reference::parse(source)
            .map_or_else(|_| source.clone(), |reference| reference.host().to_string());
        let absent = all.entry((host, status.reason)).or_insert_with(|| Absent {
            since: status.since.clone(),
            message: status.message,
            ..Absent::default()
        });
        absent.images += 1;
        absent.sources.insert(source.clone());
        // RFC 3339 in UTC: the order of the texts is that of the times.
        if status.since < absent.since {
            absent.since = status.since;
        }
    }
    for ((host, reason), absent) in all {
        let Absent { since, message, .. } = absent;
        let images = terminal::count(absent.images, "wanted image is", "wanted images are");
        if reason == Reason::UpstreamUnavailable.as_str() {
            report.find(
                Code::UpstreamUnreachable,
                format!("{host} cannot be reached: {images} not local, since {since}: {message}"),
                "check the uplink and proxy.*, and for this host upstreams[].endpoint, mirrors \
                 and ca; copies go on by themselves once it answers",
            );
            continue;
        }
        let sources = shown(absent.sources.into_iter().collect());
        let known = Reason::ALL.into_iter().find(|it| it.as_str() == reason);
        report.find(
            Code::ImageNotLocal,
            format!("{host}: {images} not local ({reason}: {sources}), since {since}: {message}"),
            known.map_or("kubectl describe artifacts shows what is known", advice),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_cli_kit::finding::Finding;
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

    fn found(artifacts: &[Artifact]) -> Vec<Finding> {
        let mut report = Report::default();
        diagnose(artifacts, &mut report);
        report.findings
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
            artifact("d.example/x:1", "Copied", "2026-01-01T00:00:00Z"),
        ];
        let findings = found(&artifacts);
        let lines: Vec<&str> = findings.iter().map(|it| it.what.as_str()).collect();
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
        assert!(found(&artifacts[3..]).is_empty());
    }

    #[test]
    fn every_reason_why_images_are_not_local_is_named_with_its_fix() {
        let at = "2026-01-01T00:00:00Z";
        let artifacts = [
            artifact("a.example/x:1", "NotFound", "2026-01-02T00:00:00Z"),
            artifact("a.example/y:1", "NotFound", at),
            artifact("a.example/z:1", "Unauthorized", at),
            artifact("b.example/x:1", "NoSpace", at),
            artifact("b.example/y:1", "TooManyArtifacts", at),
            artifact("no reference", "Invalid", at),
            artifact("z.example/x:1", "FromLater", at),
            // On their way.
            artifact("c.example/x:1", "Copying", at),
            artifact("c.example/y:1", "NoDemand", at),
            artifact("c.example/z:1", "Copied", at),
        ];
        let lines: Vec<String> = found(&artifacts)
            .into_iter()
            .map(|finding| format!("{}; {}", finding.what, finding.fix))
            .collect();
        let expect = [
            "a.example: 2 wanted images are not local (NotFound: a.example/x:1, a.example/y:1), \
             since 2026-01-01T00:00:00Z: connection refused; check the reference",
            "a.example: 1 wanted image is not local (Unauthorized: a.example/z:1), since \
             2026-01-01T00:00:00Z: connection refused; check imagePullSecrets",
            "b.example: 1 wanted image is not local (NoSpace: b.example/x:1), since \
             2026-01-01T00:00:00Z: connection refused; enlarge",
            "b.example: 1 wanted image is not local (TooManyArtifacts: b.example/y:1), since \
             2026-01-01T00:00:00Z: connection refused; remove Artifacts",
            "no reference: 1 wanted image is not local (Invalid: no reference), since \
             2026-01-01T00:00:00Z: connection refused; correct the reference",
            "z.example: 1 wanted image is not local (FromLater: z.example/x:1), since \
             2026-01-01T00:00:00Z: connection refused; kubectl describe",
        ];
        assert_eq!(lines.len(), expect.len(), "{lines:#?}");
        for (line, expect) in lines.iter().zip(expect) {
            assert!(line.starts_with(expect), "{expect}: {lines:#?}");
        }
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
