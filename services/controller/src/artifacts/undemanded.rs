//! Artifacts that were announced and that nothing needs: pure.
//!
//! Any client of the webhook can announce an image in any namespace. Such an Artifact is copied
//! only when the controller itself sees a living pod or a template of the namespace that names the
//! source; without one it goes after a while. What was copied once stays listed, and so does what
//! is to be kept.

use holdfast_api::{Artifact, labels};
use std::time::{Duration, Instant};

use super::credentials::Choice;
use super::fill::Failure;
use holdfast_api::artifact::Reason;
use holdfast_config::ArtifactLimits;

/// Whether an Artifact without credentials exists by an announcement only, and was never copied.
pub fn is_undemanded(artifact: &Artifact, choice: &Choice<'_>) -> bool {
    matches!(choice, Choice::Nobody { .. }) && is_only_announced(artifact)
}

/// Whether an Artifact was made by the webhook, and neither copied nor asked to be kept since.
pub fn is_only_announced(artifact: &Artifact) -> bool {
    let label = |key: &str| {
        let labels = artifact.metadata.labels.as_ref();
        labels
            .and_then(|labels| labels.get(key))
            .map(String::as_str)
    };
    label(labels::MANAGED_BY) == Some(labels::MANAGED_BY_WEBHOOK)
        && label(labels::KEEP).is_none()
        && !was_copied(artifact)
}

/// Whether the image was copied at some time.
pub fn was_copied(artifact: &Artifact) -> bool {
    let status = artifact.status.as_ref();
    status.is_some_and(|status| status.digest.is_some() || status.last_copy_time.is_some())
}

/// Whether an Artifact exists because pods or workloads needed it: it was not made by hand, and is
/// not to be kept.
pub fn is_automatic(artifact: &Artifact) -> bool {
    let labels = artifact.metadata.labels.as_ref();
    let label = |key: &str| {
        labels
            .and_then(|labels| labels.get(key))
            .map(String::as_str)
    };
    let made_by = label(labels::MANAGED_BY);
    [labels::MANAGED_BY_WEBHOOK, labels::MANAGED_BY_CONTROLLER]
        .into_iter()
        .any(|manager| made_by == Some(manager))
        && label(labels::KEEP).is_none()
}

/// Why an Artifact beyond the limits has no copy.
pub fn too_many(limits: ArtifactLimits) -> Failure {
    Failure {
        reason: Reason::TooManyArtifacts,
        message: format!(
            "there are too many Artifacts in this namespace (controller.artifacts.perNamespace: {}) or in all \
             (controller.artifacts.total: {}): its image is not copied",
            limits.per_namespace, limits.total
        ),
        retry_after: None,
    }
}

/// How long an Artifact stays that nothing needed for `since`; nothing where it is to go now. One
/// beyond the limits goes at once.
pub fn stays(since: Duration, patience: Duration, is_surplus: bool) -> Option<Duration> {
    let rest = patience.saturating_sub(since);
    (!is_surplus && !rest.is_zero()).then_some(rest)
}

/// Since when nothing needs it, as far as this process saw; begins at `now` where it is unknown.
pub fn since(known: &mut Option<Instant>, now: Instant) -> Duration {
    now.saturating_duration_since(*known.get_or_insert(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::demand::Demand;
    use holdfast_api::artifact::ArtifactStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn artifact(manager: Option<&str>, keep: bool, digest: bool, time: bool) -> Artifact {
        let mut artifact = Artifact::of_source("registry.example/app:1");
        let managed = manager.map(|name| (labels::MANAGED_BY.to_owned(), name.to_owned()));
        let kept = keep.then(|| (labels::KEEP.to_owned(), labels::KEEP_ASKED.to_owned()));
        artifact.metadata.labels = Some(managed.into_iter().chain(kept).collect());
        artifact.status = Some(ArtifactStatus {
            digest: digest.then(|| "sha256:aa".to_owned()),
            last_copy_time: time.then_some(Time(jiff::Timestamp::UNIX_EPOCH)),
            ..ArtifactStatus::default()
        });
        artifact
    }

    #[test]
    fn only_an_announcement_that_nothing_needs_is_undemanded() {
        let webhook = Some(labels::MANAGED_BY_WEBHOOK);
        let demand = Demand::default();
        let nobody = Choice::Nobody { unproven: true };
        for (artifact, choice, expect) in [
            (artifact(webhook, false, false, false), nobody, true),
            (
                artifact(webhook, false, false, false),
                Choice::Nobody { unproven: false },
                true,
            ),
            (
                artifact(webhook, false, false, false),
                Choice::Wait(Duration::ZERO),
                false,
            ),
            (
                artifact(webhook, false, false, false),
                Choice::Pods(&demand),
                false,
            ),
            (artifact(webhook, true, false, false), nobody, false),
            (artifact(webhook, false, true, false), nobody, false),
            (artifact(webhook, false, false, true), nobody, false),
            (artifact(None, false, false, false), nobody, false),
            (
                artifact(Some(labels::MANAGED_BY_CONTROLLER), false, false, false),
                nobody,
                false,
            ),
            (
                artifact(Some(labels::MANAGED_BY_PRELOAD), false, false, false),
                nobody,
                false,
            ),
        ] {
            assert_eq!(
                is_undemanded(&artifact, &choice),
                expect,
                "{artifact:?} {choice:?}"
            );
        }
    }

    #[test]
    fn it_stays_for_minutes_unless_there_are_too_many() {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        for (since, surplus, expect) in [
            (0, false, Some(minutes(10))),
            (9, false, Some(minutes(1))),
            (10, false, None),
            (99, false, None),
            (0, true, None),
        ] {
            assert_eq!(
                stays(minutes(since), minutes(10), surplus),
                expect,
                "{since} {surplus}"
            );
        }
        let (mut known, begun) = (None, Instant::now());
        assert_eq!(since(&mut known, begun), Duration::ZERO);
        assert_eq!(since(&mut known, begun + minutes(3)), minutes(3));
    }
}
