//! Artifacts beyond the limits, and those that nothing needs.

use super::reconcile::{Memory, Outcome, Reconciler, STATUS_RETRY};
use super::status::News;
use super::undemanded;
use holdfast_api::Artifact;
use holdfast_cluster_model::Demand;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Preconditions};

impl Reconciler {
    /// Reports that an Artifact is beyond the limits and is not copied. The next plan wakes it.
    pub(super) async fn report_beyond_limits(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        memory: &mut Memory,
    ) -> Outcome {
        let news = News::Failed {
            failure: undemanded::too_many(self.context.config.values.controller.artifacts),
            attempts: 0,
        };
        let written = self.write(artifact, demand, &news, memory).await;
        Outcome::after_write(written, None)
    }

    /// Removes an Artifact that nothing needs.
    pub(super) async fn remove(&self, artifact: &Artifact) -> Outcome {
        let namespace = artifact.namespace().unwrap_or_default();
        let api: Api<Artifact> = Api::namespaced(self.context.client.clone(), &namespace);
        // An Artifact that was recreated, or marked to be kept, stays.
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: artifact.metadata.uid.clone(),
            resource_version: artifact.metadata.resource_version.clone(),
        });
        match api.delete(&artifact.name_any(), &params).await {
            Ok(_) => {
                tracing::info!(
                    artifact.namespace = namespace,
                    image = artifact.spec.source_artifact,
                    "removed an Artifact that nothing uses"
                );
                self.context.metrics.artifact_removed();
                Outcome::default()
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Outcome::default(),
            Err(error) => {
                tracing::debug!(
                    artifact.name = artifact.name_any(), %error,
                    "cannot remove an Artifact"
                );
                Outcome {
                    again: Some(STATUS_RETRY),
                }
            }
        }
    }
}
