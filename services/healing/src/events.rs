//! Events on pods and their owners: what healing did, and why.

use super::decide::{Act, Why};
use super::policies::Step;
use holdfast_cluster_index::Key;
use holdfast_cluster_index::events::{Publisher, object};
use holdfast_cluster_model::Denial;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::EventType;
use std::collections::BTreeSet;

/// Prefixes that one event names.
const MAX_PREFIXES: usize = 2;

/// The action in the events of healing.
const ACTION: &str = "Heal";

/// Publishes what was done to a pod.
pub(super) async fn publish(publisher: &Publisher, pod: &Key, uid: &str, act: &Act) {
    if let Some((type_, reason, note)) = event_of(act) {
        let object = object("Pod", Some(&pod.0), &pod.1, Some(uid));
        publisher
            .publish(&object, type_, reason, ACTION, &note)
            .await;
    }
}

/// Publishes that the API server refused the change of a pod.
pub(super) async fn publish_refusal(
    publisher: &Publisher,
    pod: &Key,
    uid: &str,
    act: &str,
    message: &str,
) {
    let note = format!(
        "the API server denied the change ({act}), possibly because of a policy: {message}"
    );
    let object = object("Pod", Some(&pod.0), &pod.1, Some(uid));
    publisher
        .publish(&object, EventType::Warning, "CannotHeal", ACTION, &note)
        .await;
}

/// Publishes on an owner what follows from a policy that denies its pods.
pub(super) async fn publish_denial(
    publisher: &Publisher,
    namespace: &str,
    denial: &Denial,
    step: Step,
    prefixes: &BTreeSet<String>,
    address: &str,
) {
    let by = &denial.by;
    let (type_, reason, note) = match step {
        Step::Nothing => return,
        Step::Exclude => (
            EventType::Warning,
            "NamespaceExcluded",
            format!(
                "{by} denies its pods; Holdfast no longer rewrites pods of this namespace, so \
                 they need the uplink. Allow images \
                 that begin with {}, never {address}/ alone, because it covers every \
                 upstream; or set the label \
                 holdfast.dev/rewrite=disabled on the namespace",
                allowed(prefixes, address)
            ),
        ),
        Step::Unrelated => (
            EventType::Normal,
            "NamespaceRewritten",
            format!(
                "{by} denies its pods whichever registry their images come from; pods are \
                 rewritten again"
            ),
        ),
    };
    let owner = &denial.owner;
    let object = ObjectReference {
        api_version: Some(denial.api_version.clone()),
        ..object(
            &owner.reference.kind,
            Some(namespace),
            &owner.reference.name,
            Some(&owner.uid),
        )
    };
    publisher
        .publish(&object, type_, reason, ACTION, &note)
        .await;
}

/// The prefixes that a policy must allow; a pattern for all upstreams if none are known, or more
/// than fit into an event.
fn allowed(prefixes: &BTreeSet<String>, address: &str) -> String {
    if prefixes.is_empty() || prefixes.len() > MAX_PREFIXES {
        return format!("{address}/HOST/ for each upstream HOST that it allows");
    }
    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
    prefixes.join(" or ")
}

/// Type, reason and note of the event of an act.
fn event_of(act: &Act) -> Option<(EventType, &'static str, String)> {
    let list = |changes: &[super::decide::Change]| {
        let all: Vec<_> = changes
            .iter()
            .map(|change| format!("{} {} → {}", change.key, change.from, change.to))
            .collect();
        all.join(", ")
    };
    Some(match act {
        Act::Nothing => return None,
        Act::Heal(changes) => (
            EventType::Normal,
            "ImageHealed",
            format!(
                "{} (the pod did not start under its present name, and the registry can serve the \
                 image)",
                list(changes)
            ),
        ),
        Act::Restore(changes) => (
            EventType::Warning,
            "ImageRestored",
            format!(
                "{} (the registry's name did not start, and the original is more likely to: the \
                 node may have it, or the kubelet's own credentials may work; see the Artifact)",
                list(changes)
            ),
        ),
        Act::Recreate(changes) => (
            EventType::Normal,
            "PodRecreated",
            format!(
                "{} (the image volume of an existing pod cannot change)",
                list(changes)
            ),
        ),
        Act::CannotPull { keys } => (
            EventType::Warning,
            "CannotPull",
            format!(
                "{}: the image starts under neither of its names now. Holdfast tries again. The \
                 Artifact and the events of the pod say why",
                keys.join(", ")
            ),
        ),
        Act::Unfixable { keys, why } => (
            EventType::Warning,
            "CannotHeal",
            format!(
                "{} cannot change in an existing pod, and {}",
                keys.join(", "),
                match why {
                    Why::NoOwner =>
                        "Holdfast does not delete a pod without an owner: delete it and create it \
                         again",
                    Why::TooOften =>
                        "its owner recreated pods three times within the hour without success: \
                         check the owner's template and the Artifact, \
                         then delete the pod",
                    Why::Running =>
                        "other containers of the pod run: delete the pod when they may end, so \
                         that its owner recreates it",
                    Why::NotAllowed =>
                        "controller.healing.evictionsPerMinute is 0: delete the pod so that its \
                         owner recreates it, or set a number there",
                }
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::artifact::Reference;
    use holdfast_cluster_model::Owner;
    use http::{Request, Response};
    use kube::client::Body;

    /// The note of the event that an owner is told when a policy refuses its pods.
    async fn note(prefixes: &[&str]) -> String {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let publisher = Publisher::new(kube::Client::new(service, "default"));
        let denial = Denial {
            owner: Owner {
                reference: Reference {
                    kind: "ReplicaSet".to_owned(),
                    name: "web".to_owned(),
                },
                uid: "u".to_owned(),
            },
            api_version: "apps/v1".to_owned(),
            by: "ValidatingAdmissionPolicy ours".to_owned(),
            at: 0,
        };
        let prefixes = prefixes.iter().map(|&prefix| prefix.to_owned()).collect();
        let tell = async move {
            let (step, address) = (Step::Exclude, "10.96.0.50");
            publish_denial(&publisher, "apps", &denial, step, &prefixes, address).await;
        };
        let heard = async {
            let (request, reply) = server.next_request().await.unwrap();
            let body = request.into_body().collect_bytes().await.unwrap();
            reply.send_response(Response::new(Body::from(body.to_vec())));
            let event: serde_json::Value = serde_json::from_slice(&body).unwrap();
            event["note"].as_str().unwrap().to_owned()
        };
        tokio::join!(tell, heard).1
    }

    #[tokio::test]
    async fn an_owner_is_told_to_allow_upstreams_and_never_the_registry_alone() {
        let many = ["10.96.0.50/a.io/", "10.96.0.50/b.io/", "10.96.0.50/c.io/"];
        for (prefixes, expect) in [
            (
                &many[..1],
                "begin with 10.96.0.50/a.io/, never 10.96.0.50/ alone,",
            ),
            (
                &many[..2],
                "begin with 10.96.0.50/a.io/ or 10.96.0.50/b.io/, never",
            ),
            (
                &many,
                "begin with 10.96.0.50/HOST/ for each upstream HOST that it allows, never",
            ),
            (
                &[],
                "begin with 10.96.0.50/HOST/ for each upstream HOST that it allows, never",
            ),
        ] {
            let note = note(prefixes).await;
            assert!(note.contains(expect), "{note}");
            assert!(note.ends_with("=disabled on the namespace"), "{note}");
        }
    }
}
