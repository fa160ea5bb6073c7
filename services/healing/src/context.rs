//! What the loops of healing share with the controller.

use super::{Healing, Metrics};
use holdfast_api::access::ImageAccess;
use holdfast_cluster_index::ClusterIndex;
use holdfast_cluster_index::events::Publisher;
use holdfast_cluster_index::reports::Reports;
use holdfast_cluster_model::Scope;
use std::sync::Arc;

/// What the loops need.
#[derive(Clone)]
pub struct Context {
    /// The client of the API server.
    pub client: kube::Client,
    /// The namespace of the release itself, whose pods are never healed.
    pub namespace: String,
    /// Whether private images belong to namespaces: `access.privateImages: namespace`.
    pub by_namespace: bool,
    /// What is known of the cluster.
    pub index: Arc<ClusterIndex>,
    /// Which pods and images are in scope, by the configuration.
    pub scope: Arc<Scope>,
    /// What healing shares with the other loops.
    pub healing: Arc<Healing>,
    /// What node agents reported.
    pub reports: Arc<Reports>,
    /// Publishes events.
    pub events: Publisher,
    /// Counters and gauges.
    pub metrics: Metrics,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl Context {
    /// The images that pods may pull from the registry, as the webhook knows it.
    pub(crate) fn image_access(&self) -> ImageAccess {
        let state = self.healing.state.borrow();
        let access = state.as_ref().and_then(|state| state.access.as_ref());
        ImageAccess::new(self.by_namespace, access)
    }
}
