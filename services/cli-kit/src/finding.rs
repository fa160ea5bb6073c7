//! Findings: what is wrong, with a stable code for programs and a fix for people.

use serde::Serialize;

/// What kind of thing is wrong. Codes are an interface: scripts compare them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Code {
    /// Pods have images from the registry without a proof that they may.
    AccessNotProved,
    /// A `ResourceQuota` allows no further Artifacts.
    ArtifactQuotaFull,
    /// The autoscalers have no metrics API.
    AutoscalerWithoutMetrics,
    /// The claim of the volume does not exist.
    ClaimMissing,
    /// The claim of the volume is not bound.
    ClaimNotBound,
    /// Nodes pull an image of running pods again at the next restart.
    ImageNeedsPull,
    /// Wanted images are not local.
    ImageNotLocal,
    /// A node is not prepared.
    NodeNotPrepared,
    /// The condition Ready of a node is not true.
    NodeNotReady,
    /// No node agent runs on a node.
    NodeWithoutAgent,
    /// An owner deletes its pods when their images are rewritten.
    OwnerExcluded,
    /// Pods of a service are not ready.
    PodsNotReady,
    /// A policy refuses the references of the registry.
    PolicyRefuses,
    /// New pods are not rewritten.
    RewritingOff,
    /// Pods get an image from its upstream.
    SourceExcluded,
    /// An upstream cannot be reached.
    UpstreamUnreachable,
    /// A policy that verifies images misses rewritten names.
    VerifierMissesNames,
    /// The volume is filling.
    VolumeFilling,
    /// The volume is full.
    VolumeFull,
    /// The API server stores a pod without rewriting it.
    WebhookDoesNotRewrite,
    /// The configuration of the webhook does not exist.
    WebhookMissing,
    /// The webhook has no certificate yet.
    WebhookWithoutCertificate,
    /// The configuration of the webhook has no `caBundle`.
    WebhookWithoutCa,
    /// The configuration of the webhook has another CA than its certificate.
    WebhookWrongCa,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing is wrong.
    pub code: Code,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

impl Finding {
    /// A finding.
    pub fn new(code: Code, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            fix: fix.into(),
        }
    }
}
