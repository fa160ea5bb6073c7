//! One look at one Artifact.

use super::backoff;
use super::credentials::{self, Choice, Found};
use super::demand::Demand;
use super::events::Events;
use super::fill::{Client, Failure};
use super::status::{self, News};
use crate::Context;
use crate::world::World;
use holdfast_api::Artifact;
use holdfast_api::artifact::{ArtifactStatus, Reason};
use holdfast_api::fill::{FillRequest, FillResult, Need};
use holdfast_core::Reference;
use kube::ResourceExt as _;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A fill that takes longer shows as `Copying`.
const SLOW: Duration = Duration::from_secs(1);
/// How long after its creation an Artifact without a pod counts as waited for.
const ANNOUNCED: jiff::SignedDuration = jiff::SignedDuration::from_secs(120);
/// Until a status that could not be written is tried again.
const UNWRITTEN: Duration = Duration::from_secs(5);

/// Does the looking.
#[derive(Debug)]
pub struct Reconciler {
    context: Context,
    client: Client,
    events: Events,
}

/// What this process knows of an Artifact beside its object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// Since when the Artifact is known.
    known: Option<Instant>,
    /// The generation for which the registry said, to this process, that it holds the image, and until when that is believed.
    confirmed: Option<(i64, Instant)>,
    /// The status that was built last. The object that the watch shows may be older: built upon that, a status would take
    /// back what was written since.
    status: Option<ArtifactStatus>,
    /// Whether that status is known to be written.
    written: bool,
    /// Failures in a row.
    failures: u32,
    /// Not before this time is the registry asked again.
    not_before: Option<Instant>,
    /// What was told by an event last.
    told: Option<Reason>,
    /// What was seen when it was looked at last.
    noticed: Option<(Option<String>, Option<i64>, Option<Demand>)>,
}

/// How a look ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// When to look again, if not woken before.
    pub again: Option<Duration>,
}

impl Memory {
    /// Whether the object or its demand differs from what was looked at last.
    pub fn needs_look(&self, artifact: &Artifact, demand: Option<&Demand>) -> bool {
        self.noticed.as_ref().is_none_or(|(uid, generation, seen)| {
            *uid != artifact.metadata.uid
                || *generation != artifact.metadata.generation
                || seen.as_ref() != demand
        })
    }

    /// Remembers what is about to be looked at. Further credentials, and an object made anew, end a pause.
    pub fn noticed(&mut self, artifact: &Artifact, demand: Option<&Demand>) {
        if let Some((uid, _, before)) = &self.noticed {
            if *uid != artifact.metadata.uid {
                *self = Self::default();
            } else if further_credentials(before.as_ref(), demand) {
                self.not_before = None;
            }
        }
        self.noticed = Some((
            artifact.metadata.uid.clone(),
            artifact.metadata.generation,
            demand.cloned(),
        ));
    }

    /// Takes over what a look found out; what was noticed in the meantime stays. What was found out about an object that
    /// is gone says nothing about the one of the same name, and further credentials end the pause that the old ones earned.
    pub fn learn(&mut self, mut found: Self) {
        if let (Some((uid, _, demand)), Some((seen_uid, _, seen))) = (&self.noticed, &found.noticed)
        {
            if uid != seen_uid {
                return;
            }
            if further_credentials(seen.as_ref(), demand.as_ref()) {
                found.not_before = None;
            }
        }
        let noticed = self.noticed.take().or(found.noticed);
        *self = Self { noticed, ..found };
    }

    /// Until when the registry's word on this generation holds; `None` when it is to be asked.
    fn confirmed_for(&self, artifact: &Artifact, now: Instant) -> Option<Duration> {
        let (generation, until) = self.confirmed?;
        (generation == artifact.metadata.generation.unwrap_or(0) && now < until)
            .then(|| until.duration_since(now))
    }
}

fn further_credentials(before: Option<&Demand>, now: Option<&Demand>) -> bool {
    now.is_some_and(|now| now.brings_more_than(before))
}

impl Reconciler {
    /// A reconciler that asks `client` for copies.
    pub fn new(context: Context, client: Client) -> Self {
        let events = Events::new(context.client.clone());
        Self {
            context,
            client,
            events,
        }
    }

    /// fetch → validate → build → apply → status.
    pub async fn reconcile(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        memory: &mut Memory,
    ) -> Outcome {
        if artifact.metadata.deletion_timestamp.is_some() {
            return Outcome::default();
        }
        let (seen_status, mut latest) = (artifact.status.clone(), artifact.clone());
        if let Some(status) = &memory.status {
            latest.status = Some(status.clone());
        }
        let artifact = &latest;
        let now = Instant::now();
        // Asked a while ago in this process, and the answer was yes (SPEC 14); or asked too recently.
        let wait = memory
            .confirmed_for(artifact, now)
            .or_else(|| memory.not_before?.checked_duration_since(now))
            .filter(|wait| !wait.is_zero());
        if let Some(wait) = wait {
            let written = self.write(artifact, demand, &News::Unchanged, memory).await;
            return Outcome {
                again: Some(if written { wait } else { wait.min(UNWRITTEN) }),
            };
        }
        let known = now.duration_since(*memory.known.get_or_insert(now));
        let choice = credentials::choose(&artifact.spec, demand, known);
        if let Choice::Wait(rest) = choice {
            // The watch of pods wakes it; nothing is told yet.
            return Outcome { again: Some(rest) };
        }
        let asked_before = memory.confirmed.is_some();
        // By now the watch has shown what was written: a status that somebody else took away is written again.
        memory.written &= seen_status == artifact.status;
        let outcome = self.copy(artifact, demand, choice, memory).await;
        let reason = outcome
            .as_ref()
            .map_or_else(|failure| failure.reason, |_| Reason::Copied);
        self.context.metrics.filled(reason, now.elapsed());
        let (news, message, again) = match outcome {
            Ok(result) => {
                let again = backoff::confirm_again(backoff::dice());
                memory.confirmed = Some((
                    artifact.metadata.generation.unwrap_or(0),
                    Instant::now() + again,
                ));
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
                (News::Copied(result), String::new(), Some(again))
            }
            Err(failure) => {
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
                    "the image is not copied yet"
                );
                // A registry or an API server that restarts says nothing about an image that is held: people are told when the
                // registry says no.
                if asked_before
                    && matches!(
                        failure.reason,
                        Reason::RegistryUnavailable | Reason::PullSecretUnreadable
                    )
                    && status::was_ready(artifact)
                {
                    return Outcome { again };
                }
                let message = failure.message.clone();
                let news = News::Failed {
                    failure,
                    attempts: memory.failures,
                };
                (news, message, again)
            }
        };
        let written = self.write(artifact, demand, &news, memory).await;
        // A copy that was known before this process is no news. That an upstream wants credentials, where nobody's were
        // offered, is none either: a pod that a quota refused after the webhook saw it leaves such an Artifact.
        let no_news = match reason {
            Reason::Copying => true,
            Reason::Copied => status::was_ready(artifact),
            Reason::Unauthorized => choice == Choice::Nobody { unproven: true },
            _ => false,
        };
        if !no_news && memory.told != Some(reason) {
            self.events.tell(artifact, demand, reason, &message).await;
        }
        // Where nothing was told, the same from a living pod's credentials will be.
        memory.told = (!no_news || reason != Reason::Unauthorized).then_some(reason);
        Outcome {
            again: if written {
                again
            } else {
                Some(again.map_or(UNWRITTEN, |again| again.min(UNWRITTEN)))
            },
        }
    }

    async fn copy(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        choice: Choice<'_>,
        memory: &mut Memory,
    ) -> Result<FillResult, Failure> {
        let request = self.request(artifact, demand, choice).await?;
        let fill = self.client.fill(&request.0);
        let mut fill = std::pin::pin!(fill);
        let outcome = tokio::select! {
            outcome = &mut fill => outcome,
            () = tokio::time::sleep(SLOW) => {
                if !status::was_ready(artifact) {
                    let failure =
                        Failure { reason: Reason::Copying, message: "the registry is copying".to_owned(), retry_after: None };
                    let news = News::Failed { failure, attempts: memory.failures };
                    self.write(artifact, demand, &news, memory).await;
                }
                fill.await
            }
        };
        outcome.map_err(|mut failure| {
            if failure.reason == Reason::Unauthorized && !request.1.is_empty() {
                failure.message = format!("{}; {}", failure.message, request.1.join(", "));
            }
            failure
        })
    }

    /// What is to be asked, and what is wrong with the pull secrets.
    async fn request(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        choice: Choice<'_>,
    ) -> Result<(FillRequest, Vec<String>), Failure> {
        let source = &artifact.spec.source_artifact;
        let reference = Reference::parse(source).map_err(|error| Failure {
            reason: Reason::Invalid,
            message: error.to_string(),
            retry_after: None,
        })?;
        let namespace = artifact.namespace().unwrap_or_default();
        let found = match choice {
            Choice::Pods(demand) => {
                credentials::find(&self.context.client, &namespace, demand, &reference)
                    .await
                    .map_err(|error| Failure {
                        reason: Reason::PullSecretUnreadable,
                        message: format!("pull secrets cannot be read: {error}"),
                        retry_after: None,
                    })?
            }
            Choice::Nobody { unproven: true } => Found {
                problems: vec!["no live pod needs it, so no pull secret was used".to_owned()],
                ..Found::default()
            },
            Choice::Nobody { unproven: false } | Choice::Wait(_) => Found::default(),
        };
        let platforms = artifact.spec.platforms.clone().unwrap_or_else(|| {
            let platforms: BTreeSet<String> = World::read(&self.context.world.nodes, |nodes| {
                nodes
                    .iter()
                    .filter_map(|(_, node)| node.platform.clone())
                    .collect()
            });
            platforms.into_iter().collect()
        });
        let request = FillRequest {
            source: source.clone(),
            platforms,
            credentials: found.credentials,
            revalidate: false,
            need: need(artifact, demand, jiff::Timestamp::now()),
        };
        Ok((request, found.problems))
    }

    /// Writes the status; false when that failed: then it is kept and written with the next look.
    async fn write(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        news: &News,
        memory: &mut Memory,
    ) -> bool {
        let status = status::build(artifact, demand, news, jiff::Timestamp::now());
        let known = memory.status.as_ref().or(artifact.status.as_ref()) == Some(&status);
        if known && (memory.written || memory.status.is_none()) {
            (memory.status, memory.written) = (Some(status), true);
            return true;
        }
        let outcome = status::write(&self.context.client, artifact, &status).await;
        (memory.status, memory.written) = (Some(status), outcome.is_ok());
        if let Err(error) = outcome {
            tracing::warn!(artifact.name = artifact.name_any(), %error, "a status cannot be written");
        }
        memory.written
    }
}

/// How urgent a copy is. An Artifact that was announced a moment ago is: its pod is on its way.
pub fn need(artifact: &Artifact, demand: Option<&Demand>, now: jiff::Timestamp) -> Need {
    let age = artifact
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|created| now.duration_since(created.0));
    match demand {
        Some(demand) if demand.waiting => Need::Waiting,
        Some(demand) if demand.pod.is_some() => Need::Running,
        _ if age.is_some_and(|age| age < ANNOUNCED) => Need::Waiting,
        _ => Need::Ahead,
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
