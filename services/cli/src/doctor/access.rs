//! Which namespaces may have which private images, where `access.privateImages` is `namespace`:
//! pods that have one without having proved it, and images that pods keep pulling from their
//! upstream.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::Artifact;
use holdfast_api::access::{Access, ImageAccess};
use holdfast_cli_kit::finding::Code;
use holdfast_core::Reference;
use holdfast_core::meaning::{self, Meaning};
use holdfast_core::workload::{may_start, text};
use serde_json::Value;

use super::api::Fetched;
use super::report::Report;

/// Names of one line.
const SHOWN: usize = 5;

/// A pod and an image that it has from the registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Unproved {
    /// `NAMESPACE/NAME`.
    pub(super) pod: String,
    pub(super) source: String,
}

/// The living pods with images from the registry that their namespaces may not have.
pub(super) fn unproved(
    pods: &[Value],
    addresses: &[String],
    access: &ImageAccess,
) -> Vec<Unproved> {
    let mut found = BTreeSet::new();
    for document in pods.iter().filter(|document| may_start("Pod", document)) {
        let namespace = text(document, "/metadata/namespace");
        for image in meaning::of_pod(document, addresses) {
            if let Meaning::Local { reference: source } = &image.meaning
                && !access.permits(namespace, source)
            {
                found.insert(Unproved {
                    pod: format!("{namespace}/{}", text(document, "/metadata/name")),
                    source: source.to_string(),
                });
            }
        }
    }
    found.into_iter().collect()
}

/// Findings and notes about private images. `pods` is `None` where every pod may have every image.
pub(super) fn diagnose(
    pods: Option<&Fetched<Vec<Unproved>>>,
    artifacts: &[Artifact],
    report: &mut Report,
) {
    match pods {
        None => return,
        Some(Err(why)) => report.unknown.push(format!(
            "whether pods have images that their namespaces may not have: {why}"
        )),
        Some(Ok(pods)) if pods.is_empty() => report
            .ok
            .push("no pod has a private image that its namespace may not have".to_owned()),
        Some(Ok(pods)) => {
            let names = pods.iter().map(|it| format!("{} ({})", it.pod, it.source));
            report.find(
                Code::AccessNotProved,
                format!(
                    "pods have images from the registry that their namespaces have not proved to have: {}",
                    shown(names.collect())
                ),
                "they were admitted before access.privateImages=namespace, before their credential was withdrawn, or \
                 while the webhook did not answer; replace them: new ones get the upstream's reference",
            );
        }
    }
    let mut denied: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for artifact in artifacts {
        let access = artifact.status.as_ref().and_then(|it| it.access.as_ref());
        if access.is_some_and(|access| access.answer == Access::Denied)
            && let Ok(source) = Reference::parse(&artifact.spec.source_artifact)
        {
            let namespace = artifact.metadata.namespace.as_deref().unwrap_or_default();
            denied
                .entry(namespace)
                .or_default()
                .insert(source.to_string());
        }
    }
    for (namespace, sources) in denied {
        report.notes.push(format!(
            "pods of namespace {namespace} pull {} from the upstream, which refuses the image to every credential that \
             the namespace brings; docs/operate/policies.md says what that means",
            shown(sources.into_iter().collect())
        ));
    }
}

/// The first names, and how many more there are.
pub(super) fn shown(names: Vec<String>) -> String {
    let more = names.len().saturating_sub(SHOWN);
    let first: Vec<String> = names.into_iter().take(SHOWN).collect();
    match more {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::access::AccessList;
    use holdfast_api::artifact::{ArtifactAccess, ArtifactStatus};
    use holdfast_cli_kit::exit_status::Answer;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;
    use std::sync::Arc;

    fn document(namespace: &str, name: &str, image: &str, phase: &str) -> Value {
        json!({
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"containers": [{"name": "c", "image": image}]},
            "status": {"phase": phase},
        })
    }

    #[test]
    fn pods_without_a_proof_are_found() {
        let list = AccessList {
            everybody: ["r.io/open".to_owned()].into(),
            namespaces: [("shop".to_owned(), ["r.io/team/app".to_owned()].into())].into(),
        };
        let addresses = ["10.96.0.50".to_owned()];
        let pods = [
            document("shop", "a", "10.96.0.50/r.io/team/app:1", "Running"),
            document("other", "b", "10.96.0.50/r.io/team/app:1", "Running"),
            document("other", "c", "10.96.0.50/r.io/open:1", "Running"),
            document("other", "d", "r.io/team/app:1", "Pending"),
            document("other", "e", "10.96.0.50/r.io/team/app:1", "Succeeded"),
            document("other", "f", "10.96.0.50/team/pushed:1", "Running"),
        ];
        let access = ImageAccess::Listed(Arc::new(list));
        let found = unproved(&pods, &addresses, &access);
        let names: Vec<_> = found.iter().map(|it| it.pod.as_str()).collect();
        assert_eq!(names, ["other/b"]);
        assert!(unproved(&pods, &addresses, &ImageAccess::Every).is_empty());
    }

    #[test]
    fn what_is_out_of_order_is_a_finding_and_what_is_refused_a_note() {
        let artifact = |namespace: &str, answer| {
            let mut artifact = Artifact::of_source("r.io/team/app:1");
            artifact.metadata.namespace = Some(namespace.to_owned());
            let time: Time = serde_json::from_value(json!("2026-01-02T03:04:05Z")).unwrap();
            artifact.status = Some(ArtifactStatus {
                access: Some(ArtifactAccess { answer, time }),
                ..ArtifactStatus::default()
            });
            artifact
        };
        let artifacts = [
            artifact("shop", Access::Proved),
            artifact("other", Access::Denied),
        ];
        let pods = |count: usize| {
            let pod = |number| Unproved {
                pod: format!("other/p{number}"),
                source: "r.io/team/app:1".to_owned(),
            };
            Some(Ok((0..count).map(pod).collect()))
        };
        for (pods, answer, part) in [
            (
                pods(0),
                Answer::Yes,
                "pods of namespace other pull r.io/team/app:1",
            ),
            (
                pods(1),
                Answer::No,
                "other/p0 (r.io/team/app:1); fix: they were",
            ),
            (pods(7), Answer::No, "and 2 more"),
            (
                Some(Err("forbidden".to_owned())),
                Answer::Unknown,
                "forbidden",
            ),
        ] {
            let mut report = Report::default();
            diagnose(pods.as_ref(), &artifacts, &mut report);
            assert_eq!((report.answer(), report.notes.len()), (answer, 1));
            assert!(report.to_string().contains(part), "{report}");
        }
        let mut report = Report::default();
        diagnose(None, &artifacts, &mut report);
        assert_eq!(report, Report::default());
    }
}
