//! How urgent a copy is: pure.

use super::preload;
use holdfast_api::fill::Priority;
use holdfast_api::{Artifact, labels};
use holdfast_cluster_model::Demand;

/// The age up to which the pod of an announced Artifact is expected.
const ANNOUNCED: jiff::SignedDuration = jiff::SignedDuration::from_secs(120);

/// The priority of a copy: that of its demand, with two exceptions for an Artifact that is younger
/// than two minutes. One without demand that neither the webhook nor `preload.images` made is
/// blocking: a user created it. One that was announced for a pod is blocking while only templates
/// need it. Everything else without demand is a prefetch.
pub fn priority(artifact: &Artifact, demand: Option<&Demand>, now: jiff::Timestamp) -> Priority {
    let announced = artifact
        .metadata
        .creation_timestamp
        .as_ref()
        .is_some_and(|created| now.duration_since(created.0) < ANNOUNCED);
    let is_webhooks = artifact.manager() == Some(labels::MANAGED_BY_WEBHOOK);
    match demand.and_then(Demand::priority) {
        None if announced && !preload::is_listed(artifact) && !is_webhooks => Priority::Blocking,
        Some(Priority::Prefetch) if announced && artifact.spec.service_account_name.is_some() => {
            Priority::Blocking
        }
        priority => priority.unwrap_or(Priority::Prefetch),
    }
}
