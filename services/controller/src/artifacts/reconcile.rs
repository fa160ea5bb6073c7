//! One look at one Artifact.

use super::demand::Demand;
use super::events::Events;
use super::fill::{Client, Failure};
use super::status::{self, News};
use super::{backoff, credentials};
use crate::Context;
use crate::world::World;
use holdfast_api::Artifact;
use holdfast_api::artifact::Reason;
use holdfast_api::fill::{FillRequest, FillResult};
use holdfast_core::Reference;
use kube::ResourceExt as _;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A fill that takes longer shows as `Copying`.
const SLOW: Duration = Duration::from_secs(1);

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
    /// The generation for which the registry said, to this process, that it holds the image.
    confirmed: Option<i64>,
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

    /// Remembers what is about to be looked at. Other credentials, and an object made anew, end a pause.
    pub fn noticed(&mut self, artifact: &Artifact, demand: Option<&Demand>) {
        if let Some((uid, _, before)) = &self.noticed {
            if *uid != artifact.metadata.uid {
                *self = Self::default();
            } else if let (Some(before), Some(now)) = (before, demand)
                && !before.same_credentials(now)
            {
                self.not_before = None;
            }
        }
        self.noticed = Some((
            artifact.metadata.uid.clone(),
            artifact.metadata.generation,
            demand.cloned(),
        ));
    }

    /// Takes over what a look found out; what was noticed in the meantime stays.
    pub fn learn(&mut self, found: Self) {
        let noticed = self.noticed.take().or(found.noticed);
        *self = Self { noticed, ..found };
    }

    fn is_confirmed(&self, artifact: &Artifact) -> bool {
        self.confirmed.is_some()
            && self.confirmed == Some(artifact.metadata.generation.unwrap_or(0))
    }
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
        // Already asked in this process, and the answer was yes (SPEC 14); or asked too recently.
        let wait = memory
            .not_before
            .map(|at| at.saturating_duration_since(Instant::now()))
            .filter(|wait| !wait.is_zero());
        if memory.is_confirmed(artifact) || wait.is_some() {
            let written = self.write(artifact, demand, &News::Unchanged).await;
            return Outcome {
                again: wait.or_else(|| (!written).then_some(Duration::from_secs(5))),
            };
        }
        let started = Instant::now();
        let outcome = self.copy(artifact, demand, memory).await;
        let reason = outcome
            .as_ref()
            .map_or_else(|failure| failure.reason, |_| Reason::Copied);
        self.context.metrics.filled(reason, started.elapsed());
        let (news, message, again) = match outcome {
            Ok(result) => {
                memory.confirmed = Some(artifact.metadata.generation.unwrap_or(0));
                (memory.failures, memory.not_before) = (0, None);
                tracing::info!(
                    artifact.namespace = artifact.namespace(),
                    image = artifact.spec.source_artifact,
                    image.digest = result.digest,
                    already_local = result.already_local,
                    "the registry holds the image"
                );
                (News::Copied(result), String::new(), None)
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
                let message = failure.message.clone();
                (
                    News::Failed {
                        failure,
                        attempts: memory.failures,
                    },
                    message,
                    again,
                )
            }
        };
        let written = self.write(artifact, demand, &news).await;
        // A copy that was known before this process is no news.
        let news_to_people =
            reason != Reason::Copying && !(reason == Reason::Copied && status::was_ready(artifact));
        if news_to_people && memory.told != Some(reason) {
            self.events.tell(artifact, demand, reason, &message).await;
        }
        memory.told = Some(reason);
        Outcome {
            again: again.or_else(|| (!written).then_some(Duration::from_secs(5))),
        }
    }

    async fn copy(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        memory: &Memory,
    ) -> Result<FillResult, Failure> {
        let request = self.request(artifact, demand).await?;
        let fill = self.client.fill(&request.0);
        let mut fill = std::pin::pin!(fill);
        let outcome = tokio::select! {
            outcome = &mut fill => outcome,
            () = tokio::time::sleep(SLOW) => {
                if !status::was_ready(artifact) {
                    let failure =
                        Failure { reason: Reason::Copying, message: "the registry is copying".to_owned(), retry_after: None };
                    self.write(artifact, demand, &News::Failed { failure, attempts: memory.failures }).await;
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
    ) -> Result<(FillRequest, Vec<String>), Failure> {
        let source = &artifact.spec.source_artifact;
        let reference = Reference::parse(source).map_err(|error| Failure {
            reason: Reason::Invalid,
            message: error.to_string(),
            retry_after: None,
        })?;
        let announced = announced(artifact);
        let demand = demand
            .filter(|demand| demand.pod.is_some())
            .unwrap_or(&announced);
        let namespace = artifact.namespace().unwrap_or_default();
        let found = credentials::find(&self.context.client, &namespace, demand, &reference)
            .await
            .map_err(|error| Failure {
                reason: Reason::RegistryUnavailable,
                message: format!("pull secrets cannot be read: {error}"),
                retry_after: None,
            })?;
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
        };
        Ok((request, found.problems))
    }

    /// Writes the status; false when that failed.
    async fn write(&self, artifact: &Artifact, demand: Option<&Demand>, news: &News) -> bool {
        let status = status::build(artifact, demand, news, jiff::Timestamp::now());
        match status::write(&self.context.client, artifact, &status).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(artifact.name = artifact.name_any(), %error, "a status cannot be written");
                false
            }
        }
    }
}

/// What the announcement said, for the moment in which the pod is not known yet.
fn announced(artifact: &Artifact) -> Demand {
    Demand {
        source: artifact.spec.source_artifact.clone(),
        pull_secrets: artifact
            .spec
            .pull_secrets
            .iter()
            .flatten()
            .cloned()
            .collect(),
        service_accounts: artifact.spec.service_account_name.iter().cloned().collect(),
        ..Demand::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::ArtifactSpec;

    fn artifact(uid: &str, generation: i64) -> Artifact {
        let mut artifact = Artifact::new("app", ArtifactSpec::default());
        artifact.metadata.uid = Some(uid.to_owned());
        artifact.metadata.generation = Some(generation);
        artifact
    }

    fn demand(secret: &str) -> Demand {
        Demand {
            pull_secrets: [secret.to_owned()].into(),
            ..Demand::default()
        }
    }

    // SPEC 14
    #[test]
    fn only_changes_are_looked_at() {
        let mut memory = Memory::default();
        assert!(
            memory.needs_look(&artifact("u", 1), None),
            "after a start everything is looked at once"
        );
        memory.noticed(&artifact("u", 1), None);
        assert!(!memory.needs_look(&artifact("u", 1), None));
        assert!(memory.needs_look(&artifact("u", 2), None));
        assert!(memory.needs_look(&artifact("u", 1), Some(&demand("s"))));
    }

    // SPEC 35
    #[test]
    fn other_pull_secrets_end_a_pause() {
        let mut memory = Memory::default();
        memory.noticed(&artifact("u", 1), Some(&demand("one")));
        memory.not_before = Some(Instant::now() + Duration::from_secs(600));
        memory.noticed(&artifact("u", 1), Some(&demand("one")));
        assert!(memory.not_before.is_some());
        memory.noticed(&artifact("u", 1), Some(&demand("two")));
        assert!(memory.not_before.is_none());
    }

    #[test]
    fn an_object_made_anew_is_asked_for_anew() {
        let mut memory = Memory {
            confirmed: Some(1),
            ..Memory::default()
        };
        memory.noticed(&artifact("u", 1), None);
        assert!(memory.is_confirmed(&artifact("u", 1)));
        assert!(!memory.is_confirmed(&artifact("u", 2)));
        memory.noticed(&artifact("other", 1), None);
        assert!(!memory.is_confirmed(&artifact("other", 1)));
    }
}
