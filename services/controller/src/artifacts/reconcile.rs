//! One look at one Artifact.

mod settle;

use super::Platforms;
use super::access::Asked;
use super::credentials::{self, Choice, Found};
use super::crowd::Crowd;
use super::demand::Demand;
use super::events::Events;
use super::fill::{Client, Failure};
use super::status::{self, News};
use super::undemanded;
use super::urgency::priority;
use crate::Context;
use holdfast_api::Artifact;
use holdfast_api::artifact::{ArtifactStatus, Reason};
use holdfast_api::fill::{FillRequest, FillResult};
use holdfast_core::Reference;
use holdfast_core::oci::ManifestType;
use kube::ResourceExt as _;
use settle::{copied, failed};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// A fill that takes longer shows as `Copying`.
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
    events: Events,
    /// Turns for reading pull secrets.
    turns: Semaphore,
    /// Whether others wait for a place.
    pub crowd: Crowd,
}

/// What this process knows of an Artifact beside its object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// Since when the Artifact is known.
    known: Option<Instant>,
    /// What the registry said last, to this process, that it holds.
    confirmed: Option<Confirmed>,
    /// The status that was built last. The object that the watch shows may be older: built upon
    /// that, a status would take back what was written since.
    pub(super) status: Option<ArtifactStatus>,
    /// Whether that status is known to be written.
    written: bool,
    /// Failures in a row.
    failures: u32,
    /// Not before this time is the registry asked again.
    not_before: Option<Instant>,
    /// What was told by an event last.
    told: Option<Reason>,
    /// What was seen when it was looked at last.
    noticed: Option<Noticed>,
    /// Since when nothing needs it, of one that was only announced.
    undemanded: Option<Instant>,
    /// Whether it is to make room for others.
    surplus: bool,
    /// Whether it is beyond the limits: what was not copied yet is not.
    beyond: bool,
    /// Whether the registry is to say again that it holds the image.
    doubted: bool,
    /// What was asked about who may have the image.
    pub(super) access: Asked,
}

/// The registry's word that it holds an image.
#[derive(Clone, Debug, PartialEq)]
struct Confirmed {
    /// Of which generation.
    generation: i64,
    /// Until when it is believed.
    until: Instant,
    /// For which platforms it was asked; empty means all.
    platforms: Vec<String>,
    /// Whether platforms make a difference.
    is_index: bool,
}

impl Confirmed {
    fn covers(&self, wanted: &[String]) -> bool {
        !self.is_index
            || self.platforms.is_empty()
            || (!wanted.is_empty() && wanted.iter().all(|one| self.platforms.contains(one)))
    }
}

/// What a look depends on.
#[derive(Clone, Debug, PartialEq)]
struct Noticed {
    uid: Option<String>,
    generation: Option<i64>,
    demand: Option<Demand>,
    platforms: Platforms,
}

/// How a look ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// When to look again, if not woken before.
    pub again: Option<Duration>,
}

impl Memory {
    /// Whether the object, its demand or the cluster's platforms differ from what was looked at
    /// last.
    pub fn needs_look(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        platforms: &Platforms,
    ) -> bool {
        self.noticed.as_ref().is_none_or(|seen| {
            seen.uid != artifact.metadata.uid
                || seen.generation != artifact.metadata.generation
                || seen.demand.as_ref() != demand
                || seen.platforms != *platforms
        })
    }

    /// Remembers what is about to be reconciled. Further credentials, and a recreated object, end a
    /// pause.
    pub fn noticed(&mut self, artifact: &Artifact, demand: Option<&Demand>, platforms: &Platforms) {
        if let Some(before) = &self.noticed {
            if before.uid != artifact.metadata.uid {
                *self = Self::default();
            } else if further_credentials(before.demand.as_ref(), demand) {
                self.not_before = None;
                self.access.again();
            }
        }
        self.noticed = Some(Noticed {
            uid: artifact.metadata.uid.clone(),
            generation: artifact.metadata.generation,
            demand: demand.cloned(),
            platforms: Platforms::clone(platforms),
        });
    }

    /// Takes over what a look found out; what was noticed in the meantime stays. What was found out
    /// about an object that is gone says nothing about the one of the same name, and further
    /// credentials end the pause that the old ones earned.
    pub fn learn(&mut self, mut found: Self) {
        if let (Some(now), Some(then)) = (&self.noticed, &found.noticed) {
            if now.uid != then.uid {
                return;
            }
            if further_credentials(then.demand.as_ref(), now.demand.as_ref()) {
                found.not_before = None;
                found.access.again();
            }
        }
        let noticed = self.noticed.take().or(found.noticed);
        let (surplus, beyond, doubted) = (self.surplus, self.beyond, self.doubted);
        *self = Self {
            noticed,
            surplus,
            beyond,
            doubted: doubted || found.doubted,
            ..found
        };
    }

    /// Has the registry asked at the next look, whatever pause a failure earned.
    pub fn end_pause(&mut self) {
        self.not_before = None;
    }

    /// Has the registry asked at the next look, whatever it said before.
    pub fn doubt(&mut self) {
        self.doubted = true;
    }

    /// What a look begins with. A doubt that comes later is for the next one.
    #[must_use]
    pub fn begin(&mut self) -> Self {
        let begun = self.clone();
        self.doubted = false;
        begun
    }

    /// Says whether the Artifact is to make room for others; whether that is news.
    pub fn is_surplus(&mut self, surplus: bool) -> bool {
        std::mem::replace(&mut self.surplus, surplus) != surplus
    }

    /// Says whether the Artifact is beyond the limits; whether that is news.
    pub fn is_beyond(&mut self, beyond: bool) -> bool {
        std::mem::replace(&mut self.beyond, beyond) != beyond
    }

    /// Whether the registry told this process that it holds the image.
    pub fn was_confirmed(&self) -> bool {
        self.confirmed.is_some()
    }

    /// Until when the registry's word on this generation and these platforms holds; `None` when it
    /// is to be asked.
    fn confirmed_for(
        &self,
        artifact: &Artifact,
        platforms: &[String],
        now: Instant,
    ) -> Option<Duration> {
        let confirmed = self.confirmed.as_ref().filter(|_| !self.doubted)?;
        (confirmed.generation == artifact.metadata.generation.unwrap_or(0)
            && now < confirmed.until
            && confirmed.covers(platforms))
        .then(|| confirmed.until.duration_since(now))
    }
}

/// The platforms that a copy is to have: the Artifact's own, else those of the nodes.
fn wanted_platforms(artifact: &Artifact, of_nodes: &Platforms) -> Vec<String> {
    let own = artifact.spec.platforms.clone();
    own.unwrap_or_else(|| of_nodes.iter().cloned().collect())
}

/// Whether platforms make a difference to a document of this media type.
fn is_index(media_type: &str) -> bool {
    ManifestType::parse(media_type).is_some_and(ManifestType::is_index)
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
            turns: Semaphore::new(credentials::READ_AT_ONCE),
            crowd: Crowd::default(),
        }
    }

    /// One look at an Artifact: observe, decide, copy, record.
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
        let known = now.duration_since(*memory.known.get_or_insert(now));
        let choice = credentials::choose(&artifact.spec, demand, known);
        if memory.confirmed.is_none() && undemanded::is_undemanded(artifact, &choice) {
            return self.undemanded(artifact, demand, memory, now).await;
        }
        memory.undemanded = None;
        let nobody_needs_it = matches!(choice, Choice::Nobody { .. });
        if memory.surplus && nobody_needs_it && undemanded::is_automatic(artifact) {
            return self.remove(artifact).await;
        }
        if memory.beyond && memory.confirmed.is_none() && !undemanded::was_copied(artifact) {
            return self.leave_out(artifact, demand, memory).await;
        }
        let platforms = wanted_platforms(artifact, platforms);
        // Asked a while ago in this process, and the answer was yes (SPEC 14); or asked too
        // recently.
        let wait = memory
            .confirmed_for(artifact, &platforms, now)
            .or_else(|| memory.not_before?.checked_duration_since(now))
            .filter(|wait| !wait.is_zero());
        if let Some(wait) = wait {
            let written = self.write(artifact, demand, &News::Unchanged, memory).await;
            self.try_further_credentials(artifact, demand, choice, memory)
                .await;
            return Outcome {
                again: Some(if written {
                    wait
                } else {
                    wait.min(STATUS_RETRY)
                }),
            };
        }
        if let Choice::Wait(rest) = choice {
            // The watch of pods wakes it; nothing is told yet.
            return Outcome { again: Some(rest) };
        }
        let asked_before = memory.confirmed.is_some();
        // By now the watch has shown what was written: a status that another client removed is
        // written again.
        memory.written &= seen_status == artifact.status;
        let asked = self.request(artifact, demand, choice, &platforms).await;
        let brought = match (&asked, choice) {
            (Ok((request, _)), Choice::Pods(_)) => Some(request.credentials.clone()),
            _ => None,
        };
        let outcome = self.copy(artifact, demand, asked, memory).await;
        self.said(artifact, outcome.is_ok(), memory);
        let reason = outcome
            .as_ref()
            .map_or_else(|failure| failure.reason, |_| Reason::Copied);
        self.context.metrics.filled(reason, now.elapsed());
        let settled = match outcome {
            Ok(result) => copied(artifact, result, platforms, memory),
            Err(failure) => failed(artifact, failure, &platforms, memory),
        };
        // A registry or an API server that restarts says nothing about an image that is held:
        // people are told when the registry says no.
        if asked_before
            && matches!(
                reason,
                Reason::RegistryUnavailable | Reason::PullSecretUnreadable
            )
            && status::was_ready(artifact)
        {
            return Outcome {
                again: settled.again,
            };
        }
        let written = self.write(artifact, demand, &settled.news, memory).await;
        self.renew_access(artifact, brought, reason, memory).await;
        let unproven = choice == Choice::Nobody { unproven: true };
        self.tell(artifact, demand, reason, &settled.message, unproven, memory)
            .await;
        Outcome {
            again: if written {
                settled.again
            } else {
                Some(
                    settled
                        .again
                        .map_or(STATUS_RETRY, |again| again.min(STATUS_RETRY)),
                )
            },
        }
    }

    /// Publishes an event if the reason changed. `unproven`: no credentials were offered.
    async fn tell(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        reason: Reason,
        message: &str,
        unproven: bool,
        memory: &mut Memory,
    ) {
        // A copy that was Ready before this process started is not reported. Nor is an upstream
        // that wants credentials where none were offered: a pod that a quota refused after the
        // webhook saw it leaves such an Artifact.
        let no_news = match reason {
            Reason::Copying => true,
            Reason::Copied => status::was_ready(artifact),
            Reason::Unauthorized => unproven,
            _ => false,
        };
        if !no_news && memory.told != Some(reason) {
            self.events.tell(artifact, demand, reason, message).await;
        }
        // If nothing was reported, the same reason with a living pod's credentials will be.
        memory.told = (!no_news || reason != Reason::Unauthorized).then_some(reason);
    }

    /// Remembers whether the registry holds the image, also for healing, which is notified at once
    /// if it waits for this answer.
    fn said(&self, artifact: &Artifact, held: bool, memory: &mut Memory) {
        let namespace = artifact.namespace().unwrap_or_default();
        let key = (namespace, artifact.name_any());
        let now = Instant::now();
        self.context.healing.said(&key, held, now);
        if std::mem::take(&mut memory.doubted) {
            // What it said before holds no longer, so that it is asked again after the pause.
            if let Some(confirmed) = memory.confirmed.as_mut().filter(|_| !held) {
                confirmed.until = now;
            }
            self.context.index.nudge();
        }
    }

    /// Of an Artifact that was announced and that nothing needs: says so, and removes it in the
    /// end.
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
        let patience = Duration::from_secs(60 * u64::from(minutes));
        let since = undemanded::since(&mut memory.undemanded, now);
        if let Some(rest) = undemanded::stays(since, patience, memory.surplus) {
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
            return Outcome {
                again: Some(if written {
                    rest
                } else {
                    rest.min(STATUS_RETRY)
                }),
            };
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
        let doubted = memory.doubted && status::was_ready(artifact);
        let copying = || Failure {
            reason: Reason::Copying,
            message: "the registry is copying".to_owned(),
            retry_after: None,
        };
        let fill = async {
            tokio::select! {
                outcome = self.client.fill(&request.0) => outcome,
                () = self.crowd.place_is_wanted() => Err(copying()),
            }
        };
        let mut fill = std::pin::pin!(fill);
        let outcome = tokio::select! {
            outcome = &mut fill => outcome,
            () = tokio::time::sleep(if doubted { CONFIRM_TIMEOUT } else { COPYING_AFTER }) => {
                if doubted || !status::was_ready(artifact) {
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

    /// What is to be asked, and what is wrong with the pull secrets.
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
            Choice::Nobody { unproven: true } => Found {
                problems: vec![
                    "no running pod and no workload uses it, so no pull secret was tried"
                        .to_owned(),
                ],
                ..Found::default()
            },
            Choice::Nobody { unproven: false } | Choice::Wait(_) => Found::default(),
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

    /// Writes the status; false when that failed: then it is kept and written with the next look.
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

    /// Writes this status, if it is not known to be written.
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
