//! How an Artifact stands, as its status tells people. No decision that changes anything is taken
//! from it.

use holdfast_api::Artifact;
use holdfast_api::artifact::Reason;

/// The reason of an Artifact that the controller has not reconciled yet.
pub const WAITING: &str = "Waiting";

/// How one Artifact stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyStatus {
    /// Whether the registry holds the image.
    pub local: bool,
    /// The condition's reason, or `Waiting`.
    pub reason: String,
    /// The condition's message.
    pub message: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// Bytes of the copy; 0 before there was one.
    pub size_bytes: u64,
}

/// Reads the `Ready` condition. One that speaks of an earlier specification says nothing.
pub fn copy_status(artifact: &Artifact) -> CopyStatus {
    let condition = artifact.ready().filter(|condition| {
        condition.observed_generation.is_none()
            || condition.observed_generation == artifact.metadata.generation
    });
    let size = artifact
        .status
        .as_ref()
        .and_then(|status| status.size_bytes);
    let size_bytes = size
        .and_then(|bytes| u64::try_from(bytes).ok())
        .unwrap_or(0);
    condition.map_or_else(
        || CopyStatus {
            local: false,
            reason: WAITING.to_owned(),
            message: "the controller has not looked at it yet".to_owned(),
            since: String::new(),
            size_bytes,
        },
        |condition| CopyStatus {
            local: condition.status == "True",
            reason: condition.reason.clone(),
            message: condition.message.clone(),
            since: condition.last_transition_time.0.to_string(),
            size_bytes,
        },
    )
}

/// Whether nothing is wrong: it is not reconciled yet, is being copied, or nothing needs it.
pub fn is_on_its_way(reason: &str) -> bool {
    let words = [WAITING, Reason::Copying.as_str(), Reason::NoDemand.as_str()];
    words.contains(&reason)
}

/// Whether a retry brings the same answer until something changes.
pub fn is_lasting(reason: &str) -> bool {
    [Reason::NotFound, Reason::Unauthorized, Reason::Invalid]
        .into_iter()
        .any(|lasting| lasting.as_str() == reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_condition_of_an_earlier_specification_says_nothing() {
        let mut artifact: Artifact = serde_json::from_value(json!({
            "apiVersion": "holdfast.dev/v1alpha1", "kind": "Artifact",
            "metadata": {"name": "a", "namespace": "b", "generation": 1},
            "spec": {"sourceArtifact": "r.io/a:1"},
            "status": {"conditions": [{
                "type": "Ready", "status": "True", "reason": "Copied", "message": "", "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        }))
        .unwrap();
        assert!(copy_status(&artifact).local);
        artifact.metadata.generation = Some(2);
        assert_eq!(copy_status(&artifact).reason, WAITING);
        artifact.status = None;
        assert!(!copy_status(&artifact).local);
    }

    #[test]
    fn a_reason_is_on_its_way_or_lasting_or_passing() {
        assert!(is_on_its_way("Copying") && is_on_its_way(WAITING));
        assert!(is_lasting("NotFound") && !is_lasting("UpstreamUnavailable"));
        assert!(!is_on_its_way("NotFound") && !is_lasting("Copying"));
    }
}
