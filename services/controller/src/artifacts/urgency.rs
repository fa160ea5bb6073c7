//! How urgent a copy is: pure.

use super::demand::Demand;
use super::preload;
use holdfast_api::fill::Priority;
use holdfast_api::{Artifact, labels};

/// How long after its creation an Artifact without a pod counts as waited for.
const ANNOUNCED: jiff::SignedDuration = jiff::SignedDuration::from_secs(120);

/// How urgent a copy is. An Artifact that somebody made a moment ago is; one that the webhook
/// announced only when the controller sees what it is for. One that this process made for a
/// template was announced by nobody, nor was one that somebody listed to be copied ahead.
pub fn priority(artifact: &Artifact, demand: Option<&Demand>, now: jiff::Timestamp) -> Priority {
    let announced = artifact
        .metadata
        .creation_timestamp
        .as_ref()
        .is_some_and(|created| now.duration_since(created.0) < ANNOUNCED);
    match demand.and_then(Demand::priority) {
        None if announced && !preload::is_listed(artifact) && !is_webhooks(artifact) => {
            Priority::Blocking
        }
        Some(Priority::Prefetch) if announced && artifact.spec.service_account_name.is_some() => {
            Priority::Blocking
        }
        priority => priority.unwrap_or(Priority::Prefetch),
    }
}

fn is_webhooks(artifact: &Artifact) -> bool {
    let labels = artifact.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(labels::MANAGED_BY))
        .is_some_and(|manager| manager == labels::MANAGED_BY_WEBHOOK)
}
