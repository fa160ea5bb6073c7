//! Objects for the tests of what is known of images.

use holdfast_api::artifact::{ArtifactStatus, READY};
use holdfast_api::{Artifact, ArtifactSpec, artifact_name};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// An Artifact whose Ready condition has this reason after this many attempts.
pub(crate) fn artifact(source: &str, reason: &str, attempts: i64) -> Artifact {
    let mut artifact = Artifact::new(
        &artifact_name(source),
        ArtifactSpec {
            source_artifact: source.to_owned(),
            ..ArtifactSpec::default()
        },
    );
    artifact.metadata.uid = Some("artifact".to_owned());
    artifact.status = Some(ArtifactStatus {
        conditions: vec![Condition {
            type_: READY.to_owned(),
            status: if reason == "Copied" { "True" } else { "False" }.to_owned(),
            reason: reason.to_owned(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        }],
        attempts: Some(attempts),
        ..ArtifactStatus::default()
    });
    artifact
}
