//! What is done for Artifacts for which there is no room, or which nothing needs.

use super::demand::Demand;
use super::reconcile::{Memory, Outcome, Reconciler, STATUS_RETRY};
use super::status::News;
use super::undemanded;
use holdfast_api::Artifact;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Preconditions};

impl Reconciler {
    /// Of an Artifact beyond the limits: says so, and copies nothing. The next plan wakes it.
    pub(super) async fn leave_out(
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
        Outcome {
            again: (!written).then_some(STATUS_RETRY),
        }
    }

    /// Removes an Artifact that nothing needs.
    pub(super) async fn remove(&self, artifact: &Artifact) -> Outcome {
        let namespace = artifact.namespace().unwrap_or_default();
        let api: Api<Artifact> = Api::namespaced(self.context.client.clone(), &namespace);
        // One that was recreated, or that is to be kept by now, is another one.
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
