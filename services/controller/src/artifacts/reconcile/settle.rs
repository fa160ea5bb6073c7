//! What follows from the end of a fill: what is remembered of it, and when to look again.

use super::{Confirmed, Memory, is_index};
use crate::artifacts::backoff;
use crate::artifacts::fill::Failure;
use crate::artifacts::status::News;
use holdfast_api::Artifact;
use holdfast_api::artifact::Reason;
use holdfast_api::fill::FillResult;
use kube::ResourceExt as _;
use std::time::{Duration, Instant};

/// What follows from the end of a fill.
pub(super) struct Settled {
    pub(super) news: News,
    /// Why it failed; empty where it did not.
    pub(super) message: String,
    /// When to look again.
    pub(super) again: Option<Duration>,
}

/// Remembers a copy, until the registry is to confirm it.
pub(super) fn copied(
    artifact: &Artifact,
    result: FillResult,
    platforms: Vec<String>,
    memory: &mut Memory,
) -> Settled {
    let again = backoff::confirm_again(backoff::dice());
    let asked_before = memory.confirmed.is_some();
    memory.confirmed = Some(Confirmed {
        generation: artifact.metadata.generation.unwrap_or(0),
        until: Instant::now() + again,
        is_index: is_index(&result.media_type),
        platforms,
    });
    (memory.failures, memory.not_before) = (0, None);
    if !(asked_before && result.already_local) {
        tracing::info!(
            artifact.namespace = artifact.namespace(),
            image = artifact.spec.source_artifact,
            image.digest = result.digest,
            already_local = result.already_local,
            "the registry holds the image"
        );
    }
    Settled {
        news: News::Copied(result),
        message: String::new(),
        again: Some(again),
    }
}

/// Counts a failure and computes the back-off.
pub(super) fn failed(
    artifact: &Artifact,
    mut failure: Failure,
    platforms: &[String],
    memory: &mut Memory,
) -> Settled {
    if let Some(held) = &memory.confirmed
        && !held.covers(platforms)
    {
        failure.message = format!(
            "{}; held for {}, wanted for {}",
            failure.message,
            held.platforms.join(", "),
            platforms.join(", ")
        );
    }
    if failure.reason != Reason::Copying {
        memory.failures = memory.failures.saturating_add(1);
    }
    let again = backoff::pause(
        failure.reason,
        memory.failures,
        failure.retry_after,
        backoff::dice(),
    );
    memory.not_before = again.map(|pause| Instant::now() + pause);
    tracing::warn!(
        artifact.namespace = artifact.namespace(),
        image = artifact.spec.source_artifact,
        reason = failure.reason.as_str(),
        failures = memory.failures,
        error = failure.message,
        "cannot copy the image"
    );
    Settled {
        message: failure.message.clone(),
        news: News::Failed {
            failure,
            attempts: memory.failures,
        },
        again,
    }
}
