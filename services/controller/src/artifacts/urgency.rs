//! How urgent a copy is: pure.

use super::demand::Demand;
use super::preload;
use holdfast_api::fill::Need;
use holdfast_api::{Artifact, labels};

/// How long after its creation an Artifact without a pod counts as waited for.
const ANNOUNCED: jiff::SignedDuration = jiff::SignedDuration::from_secs(120);

/// How urgent a copy is. An Artifact that somebody made a moment ago is; one that the webhook
/// announced only when the controller sees what it is for. One that this process made for a
/// template was announced by nobody, nor was one that somebody listed to be copied ahead.
pub fn need(artifact: &Artifact, demand: Option<&Demand>, now: jiff::Timestamp) -> Need {
    let announced = artifact
        .metadata
        .creation_timestamp
        .as_ref()
        .is_some_and(|created| now.duration_since(created.0) < ANNOUNCED);
    match demand.and_then(Demand::need) {
        None if announced && !preload::is_listed(artifact) && !is_webhooks(artifact) => {
            Need::Waiting
        }
        Some(Need::Ahead) if announced && artifact.spec.service_account_name.is_some() => {
            Need::Waiting
        }
        need => need.unwrap_or(Need::Ahead),
    }
}

fn is_webhooks(artifact: &Artifact) -> bool {
    let labels = artifact.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(labels::MANAGED_BY))
        .is_some_and(|manager| manager == labels::MANAGED_BY_WEBHOOK)
}
