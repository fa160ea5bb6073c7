//! Owners that compare images: an operator that deletes each pod whose image differs from the one
//! that it wants, and creates it again, would do so for ever with rewritten pods.
//!
//! The watch of pods hands early deletions to `cluster_index::recognizer`. The loop here excludes
//! the owners that it recognizes: the webhook and healing leave their pods alone for a day, and
//! longer each further time. `docs/design/healing.md` has the rules.

pub mod exclusions;

use crate::Context;
use holdfast_api::labels;
use holdfast_api::state::OwnerExclusion;
use holdfast_cluster_index::deletion::Deletion;
use holdfast_cluster_index::events::object;
use holdfast_cluster_index::{ClusterIndex, recognizer};
use holdfast_runtime::supervise::Heartbeat;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::EventType;
use std::convert::Infallible;
use std::time::Duration;

/// How often exclusions are checked for their end.
const RESYNC_INTERVAL: Duration = Duration::from_secs(20);

/// Excludes recognized owners and ends exclusions. Runs for ever.
pub async fn run(context: Context, heart: Heartbeat) -> Result<(), Infallible> {
    context.healing.known(&context.index, &heart).await;
    loop {
        let now = Timestamp::now();
        for deletion in context.index.take_recognized() {
            if let Some(entry) = exclude(&context, &deletion, now) {
                publish(&context, &deletion, &entry).await;
            }
        }
        expire(&context, now);
        heart.success();
        tokio::select! {
            () = context.index.owner_recognized.notified() => {}
            () = tokio::time::sleep(RESYNC_INTERVAL) => {}
        }
    }
}

/// Excludes the owner of a deleted pod. Returns the entry if it is new.
fn exclude(context: &Context, deletion: &Deletion, now: Timestamp) -> Option<OwnerExclusion> {
    let (namespace, owner) = (&deletion.namespace, &deletion.owner.reference);
    let mut added = None;
    context.healing.excluded_owners.send_if_modified(|list| {
        let list = list.as_mut();
        added =
            list.and_then(|list| exclusions::add(list, namespace, &owner.kind, &owner.name, now));
        added.is_some()
    });
    if added.is_some() {
        tracing::warn!(
            pod.namespace = namespace,
            owner.kind = owner.kind,
            owner.name = owner.name,
            "an owner deletes its rewritten pods; its pods keep their references"
        );
    }
    added
}

/// Ends exclusions whose time is over, and counts the others.
fn expire(context: &Context, now: Timestamp) {
    let (index, mut ended) = (&context.index, Vec::new());
    context.healing.excluded_owners.send_if_modified(|list| {
        let Some(list) = list else {
            return false;
        };
        let before = list.len();
        ClusterIndex::read(&index.namespaces, |namespaces| {
            let exists = |name: &str| namespaces.get(&(String::new(), name.to_owned())).is_some();
            ended = exclusions::expire(list, exists, now);
        });
        let active = list.iter().filter(|entry| !entry.ended);
        context.metrics.excluded_owners(active.count());
        !ended.is_empty() || list.len() != before
    });
    for entry in ended {
        tracing::info!(
            pod.namespace = entry.namespace,
            owner.kind = entry.kind,
            owner.name = entry.name,
            "the owner is no longer excluded"
        );
    }
}

/// Publishes an exclusion on the owner and on the pod that was deleted last.
async fn publish(context: &Context, deletion: &Deletion, entry: &OwnerExclusion) {
    let namespace = Some(deletion.namespace.as_str());
    let owner = &deletion.owner;
    let (kind, name) = (&owner.reference.kind, &owner.reference.name);
    let note = note(entry);
    let of_owner = ObjectReference {
        api_version: Some(deletion.api_version.clone()),
        ..object(kind, namespace, name, Some(&owner.uid))
    };
    let of_pod = object("Pod", namespace, &deletion.pod, Some(&deletion.uid));
    for object in [of_owner, of_pod] {
        let (type_, events) = (EventType::Warning, &context.events);
        events
            .publish(&object, type_, "OwnerExcluded", "Exclude", &note)
            .await;
    }
}

fn note(entry: &OwnerExclusion) -> String {
    format!(
        "{} {} deleted its pods {} times soon after their images were rewritten, so it seems to \
         compare images; Holdfast does not rewrite its pods until {}, so they need the uplink. \
         Set the label {}={} in its template to make that permanent",
        entry.kind,
        entry.name,
        recognizer::MIN_DELETIONS,
        entry.until.0,
        labels::REWRITE,
        labels::REWRITE_DISABLED,
    )
}
