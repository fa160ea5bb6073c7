//! Events about copies, in the Artifact's namespace, once per change.

use holdfast_api::Artifact;
use holdfast_api::artifact::Reason;
use holdfast_cluster_index::events::Publisher;
use holdfast_cluster_model::Demand;
use holdfast_cluster_model::advice::advice;
use holdfast_core::workload::{self, WorkloadKind};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::EventType;
use kube::{Resource as _, ResourceExt as _};

/// Publishes `reason` on the Artifact and on one pod that needs it, or else on the owner that will.
pub async fn publish(
    publisher: &Publisher,
    artifact: &Artifact,
    demand: Option<&Demand>,
    reason: Reason,
    message: &str,
) {
    let type_ = if reason == Reason::Copied {
        EventType::Normal
    } else {
        EventType::Warning
    };
    let note = note(&artifact.spec.source_artifact, reason, message);
    let mut regarding = vec![artifact.object_ref(&())];
    // A success is of no use to a pod that has its image.
    if reason != Reason::Copied
        && let Some(object) = demand.and_then(needing)
    {
        regarding.push(ObjectReference {
            namespace: artifact.namespace(),
            ..object
        });
    }
    for object in regarding {
        publisher
            .publish(&object, type_, reason.as_str(), "Copy", &note)
            .await;
    }
}

/// The pod that needs an image or, before there is one, the owner that will make it.
fn needing(demand: &Demand) -> Option<ObjectReference> {
    let (kind, name, uid) = match (&demand.pod, &demand.ahead) {
        (Some((name, uid)), _) => ("Pod", name, uid),
        (None, Some(owner)) => (
            owner.reference.kind.as_str(),
            &owner.reference.name,
            &owner.uid,
        ),
        (None, None) => return None,
    };
    Some(ObjectReference {
        api_version: workload::by_name(kind).map(WorkloadKind::api_version),
        kind: Some(kind.to_owned()),
        name: Some(name.clone()),
        uid: Some(uid.clone()),
        ..ObjectReference::default()
    })
}

/// What happened and what to do about it.
fn note(source: &str, reason: Reason, message: &str) -> String {
    let advice = advice(reason);
    if reason == Reason::Copied {
        return format!("{source} is copied, {advice}");
    }
    format!("{source}: {message} ({advice})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_on_the_pod_or_before_there_is_one_on_its_owner() {
        let owner = |kind: &str| holdfast_cluster_model::Owner {
            reference: holdfast_api::artifact::Reference {
                kind: kind.to_owned(),
                name: "web".to_owned(),
            },
            uid: "o".to_owned(),
        };
        let pod = Some(("p".to_owned(), "u".to_owned()));
        for (pod, ahead, expect) in [
            (pod.clone(), None, Some(("Pod", "p", Some("v1")))),
            (pod, Some(owner("CronJob")), Some(("Pod", "p", Some("v1")))),
            (
                None,
                Some(owner("CronJob")),
                Some(("CronJob", "web", Some("batch/v1"))),
            ),
            (None, Some(owner("Rollout")), Some(("Rollout", "web", None))),
            (None, None, None),
        ] {
            let demand = Demand {
                pod,
                ahead,
                ..Demand::default()
            };
            let found = needing(&demand);
            let found = found.as_ref().map(|object| {
                let text = |field: &Option<String>| field.clone().unwrap_or_default();
                (
                    text(&object.kind),
                    text(&object.name),
                    object.api_version.clone(),
                )
            });
            let expect = expect.map(|(kind, name, version)| {
                (kind.to_owned(), name.to_owned(), version.map(str::to_owned))
            });
            assert_eq!(found, expect);
        }
    }

    #[test]
    fn advice_names_only_the_place_at_fault() {
        for (reason, place) in [
            (Reason::UpstreamUnavailable, "uplink"),
            (Reason::RegistryUnavailable, "registry's pods"),
            (Reason::StoreFailed, "registry's volume"),
            (Reason::NoSpace, "registry's volume"),
            (Reason::PullSecretUnreadable, "API server"),
        ] {
            let note = note("registry.example/app:1", reason, "m");
            let others = [
                "uplink",
                "registry's pods",
                "registry's volume",
                "API server",
            ];
            let named: Vec<_> = others
                .into_iter()
                .filter(|other| note.contains(other))
                .collect();
            assert_eq!(named, [place], "{note}");
        }
    }

    #[test]
    fn a_full_volume_is_made_larger_and_nothing_is_deleted_in_vain() {
        let note = note("registry.example/app:1", Reason::NoSpace, "m");
        for part in [
            "clusterRegistry.storageSize",
            "registry.storage.existingClaim",
            "frees no space",
        ] {
            assert!(note.contains(part), "{note}");
        }
    }
}
