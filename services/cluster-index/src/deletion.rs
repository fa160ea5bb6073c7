//! Early deletions: what a deleted pod says about the owner that made it.

use holdfast_api::artifact::Reference;
use holdfast_cluster_model::{Owner, document};
use holdfast_core::meaning;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use std::collections::BTreeSet;

/// Seconds that all containers run before a deletion has another cause than the images.
pub const MIN_RUN_SECONDS: i64 = 60;
/// Longest kind and name of an owner. The API server does not limit them in owner references.
const MAX_KIND_BYTES: usize = 63;
const MAX_NAME_BYTES: usize = 253;
/// Reasons of a container that waits before its start.
const BEFORE_START: [&str; 2] = ["ContainerCreating", "PodInitializing"];
/// The label of a pod with the revision of its template.
const REVISION: &str = "controller-revision-hash";

/// The deletion of a rewritten pod that had not run for long, without a cause that the pod shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
    /// The owner that made the pod.
    pub owner: Owner,
    /// The API version of the owner.
    pub api_version: String,
    /// The revision of the template; empty if its owner records none.
    pub revision: String,
    /// Upstream references of its rewritten images.
    pub sources: BTreeSet<String>,
    /// When the pod was created, in seconds since 1970.
    pub created: i64,
    /// When its deletion was requested, in seconds since 1970.
    pub requested: i64,
}

impl Deletion {
    /// Reads a pod that was deleted, or that is being deleted. `now` is used if the pod does not
    /// say when its deletion was requested.
    ///
    /// `None` if its owner compares no images, if no image is rewritten, or if the deletion has
    /// another cause: an eviction, the loss of a node, a failed container, a pod that cannot be
    /// scheduled or that has finished, or the end of a pod that had run.
    pub fn of(pod: &Pod, addresses: &[String], now: i64) -> Option<Self> {
        let metadata = &pod.metadata;
        let owner = controller(metadata.owner_references.as_deref().unwrap_or_default())?;
        let requested = metadata.deletion_timestamp.as_ref().map_or(now, |time| {
            let grace = metadata.deletion_grace_period_seconds.unwrap_or_default();
            time.0.as_second().saturating_sub(grace)
        });
        let status = pod.status.clone().unwrap_or_default();
        if has_other_cause(&status) || has_run(&status, requested) {
            return None;
        }
        let sources = rewritten_sources(pod, addresses);
        if sources.is_empty() {
            return None;
        }
        let labels = metadata.labels.iter().flatten();
        let revision = labels
            .filter(|(key, _)| *key == REVISION)
            .map(|(_, value)| value.clone())
            .next();
        Some(Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            pod: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            owner: Owner {
                reference: Reference {
                    kind: owner.kind.clone(),
                    name: owner.name.clone(),
                },
                uid: owner.uid.clone(),
            },
            api_version: owner.api_version.clone(),
            revision: revision.unwrap_or_default(),
            sources,
            created: metadata
                .creation_timestamp
                .as_ref()
                .map_or(requested, |time| time.0.as_second()),
            requested,
        })
    }
}

/// The controller of a pod, if it may be one that compares images.
///
/// The controllers of Kubernetes compare revisions of templates. If pods of a Deployment are
/// deleted again and again, a person or a test does it.
fn controller(owners: &[OwnerReference]) -> Option<&OwnerReference> {
    owners
        .iter()
        .find(|owner| owner.controller == Some(true))
        .filter(|owner| {
            let group = owner
                .api_version
                .split_once('/')
                .map_or("", |(group, _)| group);
            let is_core =
                group.is_empty() && matches!(owner.kind.as_str(), "ReplicationController" | "Node");
            !matches!(group, "apps" | "batch") && !is_core
        })
        .filter(|owner| owner.kind.len() <= MAX_KIND_BYTES && owner.name.len() <= MAX_NAME_BYTES)
}

/// Whether the status shows why the pod was deleted.
fn has_other_cause(status: &PodStatus) -> bool {
    let is_finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let has_cause = status.conditions.iter().flatten().any(|condition| {
        let reason = condition.reason.as_deref();
        match condition.type_.as_str() {
            // Evictions, preemption, and the loss of the node.
            "DisruptionTarget" => condition.status == "True",
            "PodScheduled" => condition.status == "False" && reason == Some("Unschedulable"),
            _ => false,
        }
    });
    let containers = status.container_statuses.iter().flatten();
    let init_containers = status.init_container_statuses.iter().flatten();
    is_finished
        || has_cause
        || containers.clone().any(has_ended)
        || containers.chain(init_containers).any(has_failed)
}

fn has_ended(status: &ContainerStatus) -> bool {
    let state = status.state.as_ref();
    state.is_some_and(|state| state.terminated.is_some())
}

fn has_failed(status: &ContainerStatus) -> bool {
    let state = status.state.clone().unwrap_or_default();
    let waits_for_other = state
        .waiting
        .and_then(|waiting| waiting.reason)
        .is_some_and(|reason| !BEFORE_START.contains(&reason.as_str()));
    let last = status.last_state.as_ref();
    waits_for_other
        || status.restart_count > 0
        || state.terminated.is_some_and(|ended| ended.exit_code != 0)
        || last.is_some_and(|state| state.terminated.is_some())
}

/// Whether all containers had run for [`MIN_RUN_SECONDS`] at `requested`.
fn has_run(status: &PodStatus, requested: i64) -> bool {
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let has_run = |status: &ContainerStatus| {
        let running = status
            .state
            .as_ref()
            .and_then(|state| state.running.as_ref());
        let started = running.and_then(|running| running.started_at.as_ref());
        started.is_some_and(|at| requested - at.0.as_second() >= MIN_RUN_SECONDS)
    };
    !containers.is_empty() && containers.iter().all(has_run)
}

/// The sources of the images that the webhook or healing rewrote. An image without an annotated
/// original has the local name in its owner's template, so nothing differs from it.
fn rewritten_sources(pod: &Pod, addresses: &[String]) -> BTreeSet<String> {
    meaning::of_pod(&document(pod), addresses)
        .into_iter()
        .filter(|image| image.meaning.is_rewritten() && image.annotated_text().is_some())
        .filter_map(|image| Some(image.meaning.source()?.to_string()))
        .collect()
}

#[cfg(test)]
mod tests;
