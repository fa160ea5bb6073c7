//! Reconciles one Artifact: requests its copy and writes its status.

mod access;
mod settle;

use super::Platforms;
use super::access::Asked;
use super::credentials::{self, Choice, Found};
use super::events;
use super::fill::{Client, Failure};
use super::preemption::Preemption;
use super::status::{self, News};
use super::undemanded;
use super::urgency::priority;
use crate::Context;
use holdfast_api::Artifact;
use holdfast_api::artifact::{ArtifactStatus, Reason};
use holdfast_api::fill::{FillRequest, FillResult};
use holdfast_cluster_model::Demand;
use holdfast_core::Reference;
use holdfast_core::oci::ManifestType;
use kube::ResourceExt as _;
use settle::{copied, failed};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// A longer fill is reported as `Copying`.
const COPYING_AFTER: Duration = Duration::from_secs(1);
/// If the registry does not confirm a local image within this time, it is copying it again.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before a status that could not be written is written again.
pub(super) const STATUS_RETRY: Duration = Duration::from_secs(5);

/// Reconciles Artifacts.
#[derive(Debug)]
pub struct Reconciler {
    pub(super) context: Context,
    pub(super) client: Client,
    /// Permits for reading pull secrets.
    turns: Semaphore,
    /// Ends long fills while other Artifacts wait for a place.
    pub preemption: Preemption,
}

/// What this process knows of an Artifact beside its object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// When this process first reconciled it.
    known_since: Option<Instant>,
    /// The registry's last confirmation that it holds the image.
    confirmed: Option<Confirmed>,
    /// The status that was built last. The object of the watch may be older: a status that is built
    /// upon it would revert what was written since.
    pub(super) status: Option<ArtifactStatus>,
    /// Whether that status was written.
    written: bool,
    /// Failures in a row.
    failures: u32,
    /// The registry gets no request before this time.
    not_before: Option<Instant>,
    /// The reason of the last event.
    reported: Option<Reason>,
    /// The inputs of the last run.
    observed: Option<Observed>,
    /// Since when an Artifact that was only announced is not needed.
    undemanded: Option<Instant>,
    /// Whether it must make room for others.
    surplus: bool,
    /// Whether it is beyond the limits, so that its image is not copied.
    beyond: bool,
    /// Whether the registry must confirm again that it holds the image.
    needs_confirmation: bool,
    /// The requests for the upstream's access check.
    pub(super) access: Asked,
}

/// The registry's confirmation that it holds an image.
#[derive(Clone, Debug, PartialEq)]
struct Confirmed {
    /// The generation of the Artifact.
    generation: i64,
    /// When it expires.
    until: Instant,
    /// The platforms that were requested; empty means all.
    platforms: Vec<String>,
    /// Whether the image is an index, so that platforms matter.
    is_index: bool,
}

impl Confirmed {
    fn covers(&self, wanted: &[String]) -> bool {
        !self.is_index
            || self.platforms.is_empty()
            || (!wanted.is_empty() && wanted.iter().all(|one| self.platforms.contains(one)))
    }
}

/// The inputs of a run.
#[derive(Clone, Debug, PartialEq)]
struct Observed {
    uid: Option<String>,
    generation: Option<i64>,
    demand: Option<Demand>,
    platforms: Platforms,
}

/// The result of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// When to run again, unless a change wakes it before.
    pub again: Option<Duration>,
}

impl Outcome {
    /// The next run is due after `again`, or earlier if the status was not written.
    pub(super) fn after_write(written: bool, again: Option<Duration>) -> Self {
        if written {
            return Self { again };
        }
        Self {
            again: Some(again.map_or(STATUS_RETRY, |again| again.min(STATUS_RETRY))),
        }
    }
}

impl Memory {
    /// Whether the object, its demand or the cluster's platforms differ from those of the last run.
    pub fn needs_run(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        platforms: &Platforms,
    ) -> bool {
        self.observed.as_ref().is_none_or(|seen| {
            seen.uid != artifact.metadata.uid
                || seen.generation != artifact.metadata.generation
                || seen.demand.as_ref() != demand
                || seen.platforms != *platforms
        })
    }

    /// Records the inputs of the next run. Further credentials and a recreated object end a pause.
    pub fn observe(&mut self, artifact: &Artifact, demand: Option<&Demand>, platforms: &Platforms) {
        if let Some(before) = &self.observed {
            if before.uid != artifact.metadata.uid {
                *self = Self::default();
            } else if further_credentials(before.demand.as_ref(), demand) {
                self.not_before = None;
                self.access.again();
            }
        }
        self.observed = Some(Observed {
            uid: artifact.metadata.uid.clone(),
            generation: artifact.metadata.generation,
            demand: demand.cloned(),
            platforms: Platforms::clone(platforms),
        });
    }

    /// Merges the memory that a run leaves; inputs that were recorded meanwhile stay. The memory of
    /// an object that was recreated meanwhile is dropped, and further credentials end the pause.
    pub fn merge(&mut self, mut found: Self) {
        if let (Some(now), Some(then)) = (&self.observed, &found.observed) {
            if now.uid != then.uid {
                return;
            }
            if further_credentials(then.demand.as_ref(), now.demand.as_ref()) {
                found.not_before = None;
                found.access.again();
            }
        }
        let observed = self.observed.take().or(found.observed);
        let (surplus, beyond, pending) = (self.surplus, self.beyond, self.needs_confirmation);
        *self = Self {
            observed,
            surplus,
            beyond,
            needs_confirmation: pending || found.needs_confirmation,
            ..found
        };
    }

    /// Ends the pause after a failure.
    pub fn end_pause(&mut self) {
        self.not_before = None;
    }

    /// Makes the next run request a confirmation from the registry.
    pub fn request_confirmation(&mut self) {
        self.needs_confirmation = true;
    }

    /// The memory for a run. A later request for a confirmation is for the next run.
    #[must_use]
    pub fn begin(&mut self) -> Self {
        let begun = self.clone();
        self.needs_confirmation = false;
        begun
    }

    /// Sets whether the Artifact must make room for others. True if that changed.
    pub fn set_surplus(&mut self, surplus: bool) -> bool {
        std::mem::replace(&mut self.surplus, surplus) != surplus
    }

    /// Sets whether the Artifact is beyond the limits. True if that changed.
    pub fn set_beyond(&mut self, beyond: bool) -> bool {
        std::mem::replace(&mut self.beyond, beyond) != beyond
    }

    /// Whether the registry confirmed the image to this process.
    pub fn was_confirmed(&self) -> bool {
        self.confirmed.is_some()
    }

    /// For how long the registry's confirmation of this generation and these platforms is valid;
    /// `None` if a request is due.
    fn confirmed_for(
        &self,
        artifact: &Artifact,
        platforms: &[String],
        now: Instant,
    ) -> Option<Duration> {
        let confirmed = self
            .confirmed
            .as_ref()
            .filter(|_| !self.needs_confirmation)?;
        (confirmed.generation == artifact.metadata.generation.unwrap_or(0)
            && now < confirmed.until
            && confirmed.covers(platforms))
        .then(|| confirmed.until.duration_since(now))
    }
}

/// The platforms of a copy: the Artifact's own, else those of the nodes.
pub(crate) fn wanted_platforms(artifact: &Artifact, of_nodes: &Platforms) -> Vec<String> {
    let own = artifact.spec.platforms.clone();
    own.unwrap_or_else(|| of_nodes.iter().cloned().collect())
}

/// Whether a document of this media type is an index.
fn is_index(media_type: &str) -> bool {
    ManifestType::parse(media_type).is_some_and(ManifestType::is_index)
}

fn further_credentials(before: Option<&Demand>, now: Option<&Demand>) -> bool {
    now.is_some_and(|now| now.brings_more_than(before))
}

impl Reconciler {
    /// A reconciler that requests copies by `client`.
    pub fn new(context: Context, client: Client) -> Self {
        Self {
            context,
            client,
            turns: Semaphore::new(credentials::READ_AT_ONCE),
            preemption: Preemption::default(),
        }
    }

    /// One run for an Artifact: observe, decide, copy, record.
    pub async fn reconcile(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        platforms: &Platforms,
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
        let known = now.duration_since(*memory.known_since.get_or_insert(now));
        let choice = credentials::choose(&artifact.spec, demand, known);
        if memory.confirmed.is_none() && undemanded::is_undemanded(artifact, &choice) {
            return self.undemanded(artifact, demand, memory, now).await;
        }
        memory.undemanded = None;
        let has_no_demand = matches!(choice, Choice::NoDemand { .. });
        if memory.surplus && has_no_demand && undemanded::is_automatic(artifact) {
            return self.remove(artifact).await;
        }
        if memory.beyond && memory.confirmed.is_none() && !artifact.was_copied() {
            return self.report_beyond_limits(artifact, demand, memory).await;
        }
        let platforms = wanted_platforms(artifact, platforms);
        // The registry confirmed the image (SPEC 14), or the pause after a failure is not over.
        let wait = memory
            .confirmed_for(artifact, &platforms, now)
            .or_else(|| memory.not_before?.checked_duration_since(now))
            .filter(|wait| !wait.is_zero());
        if let Some(wait) = wait {
            let written = self.write(artifact, demand, &News::Unchanged, memory).await;
            self.try_further_credentials(artifact, demand, choice, memory)
                .await;
            return Outcome::after_write(written, Some(wait));
        }
        if let Choice::Wait(rest) = choice {
            // The watch of pods wakes it; nothing is reported yet.
            return Outcome { again: Some(rest) };
        }
        // The watch has shown what was written, so a status that another client removed is written
        // again.
        memory.written &= seen_status == artifact.status;
        self.request_copy(artifact, demand, choice, platforms, memory)
            .await
    }

    /// Requests a copy, and records and reports the answer.
    async fn request_copy(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        choice: Choice<'_>,
        platforms: Vec<String>,
        memory: &mut Memory,
    ) -> Outcome {
        let begun = Instant::now();
        let had_confirmation = memory.confirmed.is_some();
        let asked = self.request(artifact, demand, choice, &platforms).await;
        let brought = match (&asked, choice) {
            (Ok((request, _)), Choice::Pods(_)) => Some(request.credentials.clone()),
            _ => None,
        };
        let outcome = self.copy(artifact, demand, asked, memory).await;
        self.record_answer(artifact, outcome.is_ok(), memory);
        let reason = outcome
            .as_ref()
            .map_or_else(|failure| failure.reason, |_| Reason::Copied);
        self.context.metrics.filled(reason, begun.elapsed());
        let settled = match outcome {
            Ok(result) => copied(artifact, result, platforms, memory),
            Err(failure) => failed(artifact, failure, &platforms, memory),
        };
        // A restart of the registry or of the API server does not mean that the image is lost: only
        // an answer of the registry is reported.
        if had_confirmation
            && matches!(
                reason,
                Reason::RegistryUnavailable | Reason::PullSecretUnreadable
            )
            && artifact.is_ready()
        {
            return Outcome {
                again: settled.again,
            };
        }
        let written = self.write(artifact, demand, &settled.news, memory).await;
        self.renew_access(artifact, brought, reason, memory).await;
        let unproven = choice == Choice::NoDemand { unproven: true };
        self.report(artifact, demand, reason, &settled.message, unproven, memory)
            .await;
        Outcome::after_write(written, settled.again)
    }

    /// Publishes an event if the reason changed. `unproven`: no credentials were offered.
    async fn report(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        reason: Reason,
        message: &str,
        unproven: bool,
        memory: &mut Memory,
    ) {
        // A copy that was Ready before this process started is not reported. Nor is an upstream
        // that requires credentials when none were offered: a pod that a quota denied after the
        // webhook announced it leaves such an Artifact.
        let is_silent = match reason {
            Reason::Copying => true,
            Reason::Copied => artifact.is_ready(),
            Reason::Unauthorized => unproven,
            _ => false,
        };
        if !is_silent && memory.reported != Some(reason) {
            events::publish(&self.context.events, artifact, demand, reason, message).await;
        }
        // If nothing was reported, the same reason with a running pod's credentials is.
        memory.reported = (!is_silent || reason != Reason::Unauthorized).then_some(reason);
    }

    /// Records whether the registry holds the image. Healing is notified at once if it waits for
    /// this answer.
    fn record_answer(&self, artifact: &Artifact, held: bool, memory: &mut Memory) {
        let namespace = artifact.namespace().unwrap_or_default();
        let key = (namespace, artifact.name_any());
        let now = Instant::now();
        self.context.healing.record_answer(&key, held, now);
        if std::mem::take(&mut memory.needs_confirmation) {
            // The earlier confirmation expires, so that the next request follows after the pause.
            if let Some(confirmed) = memory.confirmed.as_mut().filter(|_| !held) {
                confirmed.until = now;
            }
            self.context.index.notify();
        }
    }

    /// Reports that an announced Artifact is not needed, and removes it after a while.
    async fn undemanded(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        memory: &mut Memory,
        now: Instant,
    ) -> Outcome {
        let minutes = self
            .context
            .config
            .values
            .controller
            .artifacts
            .undemanded_minutes;
        let ttl = Duration::from_secs(60 * u64::from(minutes));
        let since = undemanded::since(&mut memory.undemanded, now);
        if let Some(rest) = undemanded::stays(since, ttl, memory.surplus) {
            let failure = Failure {
                reason: Reason::NoDemand,
                message: format!(
                    "no running pod and no workload template in this namespace uses it; it is \
                     removed after {minutes} minutes"
                ),
                retry_after: None,
            };
            let news = News::Failed {
                failure,
                attempts: 0,
            };
            let written = self.write(artifact, demand, &news, memory).await;
            return Outcome::after_write(written, Some(rest));
        }
        self.remove(artifact).await
    }

    async fn copy(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        asked: Result<(FillRequest, Vec<String>), Failure>,
        memory: &mut Memory,
    ) -> Result<FillResult, Failure> {
        let request = asked?;
        let confirms = memory.needs_confirmation && artifact.is_ready();
        let copying = || Failure {
            reason: Reason::Copying,
            message: "the registry is copying".to_owned(),
            retry_after: None,
        };
        let fill = async {
            tokio::select! {
                outcome = self.client.fill(&request.0) => outcome,
                () = self.preemption.requested() => Err(copying()),
            }
        };
        let mut fill = std::pin::pin!(fill);
        let outcome = tokio::select! {
            outcome = &mut fill => outcome,
            () = tokio::time::sleep(if confirms { CONFIRM_TIMEOUT } else { COPYING_AFTER }) => {
                if confirms || !artifact.is_ready() {
                    let news = News::Failed { failure: copying(), attempts: memory.failures };
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

    /// The request for a copy, and what is wrong with the pull secrets.
    pub(super) async fn request(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        choice: Choice<'_>,
        platforms: &[String],
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
                let client = &self.context.client;
                credentials::find(client, &self.turns, &namespace, demand, &reference)
                    .await
                    .map_err(|error| Failure {
                        reason: Reason::PullSecretUnreadable,
                        message: format!("pull secrets cannot be read: {error}"),
                        retry_after: None,
                    })?
            }
            Choice::NoDemand { unproven: true } => Found {
                problems: vec![
                    "no running pod and no workload uses it, so no pull secret was tried"
                        .to_owned(),
                ],
                ..Found::default()
            },
            Choice::NoDemand { unproven: false } | Choice::Wait(_) => Found::default(),
        };
        let request = FillRequest {
            source: source.clone(),
            platforms: platforms.to_vec(),
            credentials: found.credentials,
            revalidate: false,
            priority: priority(artifact, demand, jiff::Timestamp::now()),
        };
        Ok((request, found.problems))
    }

    /// Builds and writes the status. False if that failed; the next run writes it again.
    pub(super) async fn write(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        news: &News,
        memory: &mut Memory,
    ) -> bool {
        let status = status::build(artifact, demand, news, jiff::Timestamp::now());
        self.put(artifact, status, memory).await
    }

    /// Writes this status, unless it was written before.
    pub(super) async fn put(
        &self,
        artifact: &Artifact,
        status: ArtifactStatus,
        memory: &mut Memory,
    ) -> bool {
        let known = memory.status.as_ref().or(artifact.status.as_ref()) == Some(&status);
        if known && (memory.written || memory.status.is_none()) {
            (memory.status, memory.written) = (Some(status), true);
            return true;
        }
        let outcome = status::write(&self.context.client, artifact, &status).await;
        (memory.status, memory.written) = (Some(status), outcome.is_ok());
        if let Err(error) = outcome {
            tracing::warn!(
                artifact.name = artifact.name_any(), %error,
                "cannot write the status of an Artifact"
            );
        }
        memory.written
    }
}

#[cfg(test)]
mod tests;
