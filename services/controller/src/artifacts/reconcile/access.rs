//! Has the registry check who may pull an image, and writes the answer into the Artifact's status.

use super::{Memory, Reconciler};
use crate::artifacts::access;
use crate::artifacts::credentials::Choice;
use holdfast_api::Artifact;
use holdfast_api::access::{Access, AccessRequest};
use holdfast_api::artifact::Reason;
use holdfast_api::fill::Credential;
use holdfast_cluster_model::Demand;
use jiff::Timestamp;
use kube::ResourceExt as _;
use std::time::Instant;

impl Reconciler {
    /// Checks access with the credentials of pods or templates, if that is due, and writes the
    /// answer.
    pub(super) async fn renew_access(
        &self,
        artifact: &Artifact,
        brought: Option<Vec<Credential>>,
        outcome: Reason,
        memory: &mut Memory,
    ) {
        let is_answered = matches!(
            outcome,
            Reason::Copied | Reason::Unauthorized | Reason::NotFound | Reason::NoSpace
        );
        if !self.context.config.values.access.is_by_namespace() || !is_answered {
            return;
        }
        let Some(status) = memory.status.clone() else {
            return;
        };
        let (last, hash) = (status.access.as_ref(), brought.as_deref().map(access::hash));
        let refused = matches!(outcome, Reason::Unauthorized | Reason::NotFound);
        let now = (Timestamp::now(), Instant::now());
        if !access::is_due(last, &memory.access, hash, refused, now) {
            return;
        }
        let request = AccessRequest {
            source: artifact.spec.source_artifact.clone(),
            credentials: brought.unwrap_or_default(),
        };
        let answer = self.client.access(&request).await;
        memory.access.record(Instant::now(), hash, answer);
        if answer == Access::Unknown {
            return;
        }
        if last.map(|last| last.answer) != Some(answer) {
            tracing::info!(
                artifact.namespace = artifact.namespace(),
                image = artifact.spec.source_artifact,
                access = answer.as_str(),
                "upstream access check finished"
            );
        }
        self.put(artifact, access::answered(status, answer, now.0), memory)
            .await;
    }

    /// The same for an image whose confirmation is still valid, after further credentials came.
    pub(super) async fn try_further_credentials(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        choice: Choice<'_>,
        memory: &mut Memory,
    ) {
        let by_namespace = self.context.config.values.access.is_by_namespace();
        let is_due = memory.access.is_to_be_asked() && memory.was_confirmed();
        if !by_namespace || !is_due || !matches!(choice, Choice::Pods(_)) {
            return;
        }
        if let Ok((request, _)) = self.request(artifact, demand, choice, &[]).await {
            let brought = Some(request.credentials);
            self.renew_access(artifact, brought, Reason::Copied, memory)
                .await;
        }
    }
}
