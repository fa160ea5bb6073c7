//! Artifacts that were announced and that nothing needs.
//!
//! Any client of the webhook can announce an image in any namespace. Such an Artifact is copied
//! only if a running pod or a template of the namespace names the source; otherwise it is removed
//! after a while. Artifacts whose images were copied, or that are to be kept, stay.

use holdfast_api::{Artifact, labels};
use std::time::{Duration, Instant};

use super::credentials::Choice;
use super::fill::Failure;
use holdfast_api::artifact::Reason;
use holdfast_config::ArtifactLimits;

/// Whether an Artifact without credentials was only announced, and never copied.
pub fn is_undemanded(artifact: &Artifact, choice: &Choice<'_>) -> bool {
    matches!(choice, Choice::NoDemand { .. }) && is_only_announced(artifact)
}

/// Whether an Artifact was made by the webhook, and neither copied nor asked to be kept since.
fn is_only_announced(artifact: &Artifact) -> bool {
    artifact.manager() == Some(labels::MANAGED_BY_WEBHOOK)
        && !artifact.is_kept()
        && !artifact.was_copied()
}

/// Whether an Artifact exists because pods or workloads needed it: it was not made by hand, and is
/// not to be kept.
pub fn is_automatic(artifact: &Artifact) -> bool {
    let is_ours = matches!(
        artifact.manager(),
        Some(labels::MANAGED_BY_WEBHOOK | labels::MANAGED_BY_CONTROLLER)
    );
    is_ours && !artifact.is_kept()
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

/// For how long an Artifact stays that was not needed for `since`; `None` if it must be removed
/// now. A surplus one is removed at once.
pub fn stays(since: Duration, ttl: Duration, is_surplus: bool) -> Option<Duration> {
    let rest = ttl.saturating_sub(since);
    (!is_surplus && !rest.is_zero()).then_some(rest)
}

/// For how long nothing needed it, as far as this process observed. Starts at `now`.
pub fn since(known: &mut Option<Instant>, now: Instant) -> Duration {
    now.saturating_duration_since(*known.get_or_insert(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::artifact::ArtifactStatus;
    use holdfast_cluster_model::Demand;
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
        let nobody = Choice::NoDemand { unproven: true };
        for (artifact, choice, expect) in [
            (artifact(webhook, false, false, false), nobody, true),
            (
                artifact(webhook, false, false, false),
                Choice::NoDemand { unproven: false },
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
