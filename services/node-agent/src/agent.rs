//! One round of the agent: inspect the host, apply or undo the wanted state, pull the probe image
//! if a pull is due, and report.
//!
//! A round never fails the process. What cannot be done now is reported and retried. Which files
//! the container runtime needs, and how it pins images, is behind [`HostRuntime`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_api::state::{Desired, NodeState};
use holdfast_runtime::health::Flag;

use crate::cri::grpc;
use crate::host::{self, Disk};
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::node_events::NodeEvents;
use crate::plan::{Plan, plan};
use crate::readiness::{Readiness, Repairs, Verdict};
use crate::runtimes::{self, AgentPod, HostRuntime, HostsDir, RuntimeIdentity};
use crate::status::Status;

/// Time between two rounds when nothing else happens.
pub const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
/// The same after a round that failed. People correct a wrong runtime configuration and wait for
/// the effect.
const FAILED_ROUND_PAUSE: Duration = Duration::from_secs(10);
/// The least time between two rounds.
const MIN_PAUSE: Duration = Duration::from_millis(200);
/// Time between two checks of the pins.
const PIN_INTERVAL: Duration = Duration::from_secs(60);
/// The same, if the runtime broke off while it was asked to pin.
const PIN_PAUSE_AFTER_BREAK: Duration = Duration::from_secs(3600);
/// Failed pulls in a row before an event reports them; about half a minute.
const FAILURES_BEFORE_EVENT: u32 = 6;

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime does not answer, or its configuration does not allow the change.
    #[error(transparent)]
    Runtime(#[from] runtimes::Error),
    /// The host cannot be read or changed.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The process ends.
    #[error("interrupted")]
    Interrupted,
}

/// The configuration of an agent.
#[derive(Debug, Clone, Default)]
pub struct AgentConfig {
    /// The pod that this agent runs in.
    pub pod: AgentPod,
    /// Whether to pin the images that Holdfast starts from.
    pub pin: bool,
}

/// The agent of one node.
pub struct Agent<R> {
    config: AgentConfig,
    disk: Disk,
    runtime: R,
    status: Status,
    ready: Flag,
    metrics: Arc<Metrics>,
    events: NodeEvents,
    started: Instant,
    readiness: Readiness,
    repairs: Repairs,
    /// The runtime that answered last.
    identity: Option<RuntimeIdentity>,
    /// The state of the last pull.
    pulled_with: Option<NodeState>,
    /// When the next pull is due.
    pull_at: Instant,
    /// When the next check of the pins is due.
    pin_at: Instant,
    /// The last state of the host that was logged.
    logged: String,
}

/// What a round found on the host, and did there.
struct Observation {
    plan: Plan,
    hosts_dir: HostsDir,
    /// Whether the journal could not be read.
    damaged: bool,
}

impl Observation {
    /// `text`, followed by what keeps the runtime from reading the files, and by what the plan
    /// does not touch.
    fn explain(&self, text: String) -> String {
        let text = match &self.hosts_dir.fault {
            Some(fault) => format!("{text}; {fault}"),
            None => text,
        };
        with_left(text, &self.plan)
    }
}

impl<R: HostRuntime> Agent<R> {
    /// An agent that has not inspected its host yet.
    pub fn new(
        runtime: R,
        disk: Disk,
        config: AgentConfig,
        status: Status,
        ready: Flag,
        metrics: Arc<Metrics>,
        events: NodeEvents,
    ) -> Self {
        let now = Instant::now();
        Self {
            disk,
            runtime,
            config,
            status,
            ready,
            metrics,
            events,
            started: now,
            readiness: Readiness::default(),
            repairs: Repairs::default(),
            identity: None,
            pulled_with: None,
            pull_at: now,
            pin_at: now,
            logged: String::new(),
        }
    }

    /// Runs one round. Returns the time until the next one is due if nothing changes.
    pub async fn round(&mut self, state: &NodeState) -> Duration {
        let result = match state.desired {
            Desired::Present => self.present(state).await,
            Desired::Removed => self.removed(state).await,
        };
        self.metrics.failing.set(i64::from(result.is_err()));
        if let Err(error) = result {
            let text = error.to_string();
            self.status.failed(&text);
            self.ready.failed(&text);
            // The next round that succeeds pulls, whatever was proven before.
            self.pull_at = Instant::now();
            self.events.warn("HostNotPrepared", &text, &text);
            self.log(text, true);
            return FAILED_ROUND_PAUSE;
        }
        self.events.clear("HostNotPrepared");
        RESYNC_INTERVAL
            .min(self.pull_at.saturating_duration_since(Instant::now()))
            .max(MIN_PAUSE)
    }

    /// Applies the wanted state, and proves it by a pull if one is due.
    async fn present(&mut self, state: &NodeState) -> Result<(), Error> {
        let identity = self.runtime.identity().await;
        let observed = self.apply(state, identity.version.clone()).await?;
        let Observation {
            plan, hosts_dir, ..
        } = &observed;
        self.repairs.note(&plan.repaired, self.started.elapsed());
        let place = format!("{} ({})", hosts_dir.path.display(), hosts_dir.note);
        let detail = observed.explain(place);
        self.report(&observed);
        self.status.present(&detail);
        self.log(
            format!("host configuration is in place: {detail}"),
            !plan.left.is_empty() || hosts_dir.fault.is_some(),
        );
        self.compare(identity);
        if !plan.actions.is_empty() {
            // The last pull proved other files.
            self.pull_at = Instant::now();
        }
        self.pin().await;
        self.prove(state, &observed).await;
        Ok(())
    }

    async fn apply(
        &mut self,
        state: &NodeState,
        version: Option<String>,
    ) -> Result<Observation, Error> {
        let exhausted = self.repairs.exhausted(self.started.elapsed());
        let (disk, runtime, state) = (self.disk.clone(), self.runtime.clone(), state.clone());
        let work = move || apply(&disk, &runtime, &state, version.as_deref(), &exhausted);
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Error::Interrupted)?
    }

    /// Reports files that another program changed, by metrics and events.
    fn report(&mut self, observed: &Observation) {
        let Observation { plan, damaged, .. } = observed;
        if *damaged {
            let note = "the node agent's journal is unreadable and was moved to \
                journal.json.damaged; the agent recognizes its own files by their first line, but \
                cannot restore what was there before Holdfast";
            tracing::warn!("{note}");
            self.events.clear("JournalDamaged");
            self.events.warn("JournalDamaged", "", note);
        }
        self.metrics.repairs.inc_by(plan.repaired.len() as u64);
        if !plan.repaired.is_empty() {
            let files = plan.repaired.join(", ");
            tracing::warn!(
                files,
                "another program changed files of the node agent; they were written again"
            );
            self.events.clear("HostFilesRepaired");
            let note = format!(
                "another program changed or removed files of the node agent; they were written \
                 again: {files}. \
                 After five repairs within an hour the agent leaves a file as it is"
            );
            self.events.warn("HostFilesRepaired", "", &note);
        }
        self.metrics
            .left
            .set(i64::try_from(plan.left.len()).unwrap_or(i64::MAX));
        if plan.left.is_empty() {
            self.events.clear("HostFilesLeft");
        } else {
            let left = plan.left.join("; ");
            let note = format!("{left}. Pods with rewritten images may not start on this node");
            self.events.warn("HostFilesLeft", &left, &note);
        }
    }

    /// A runtime that was replaced has proven nothing. One that was restarted has read its
    /// configuration again, so a pull is due.
    fn compare(&mut self, now: RuntimeIdentity) {
        let Some(before) = self.identity.replace(now.clone()) else {
            return;
        };
        let now = now.or(&before);
        self.identity = Some(now.clone());
        if before == now {
            return;
        }
        self.pull_at = Instant::now();
        if now.replaces(&before) {
            self.readiness.reset();
            self.pin_at = Instant::now();
            self.metrics.runtimes.inc();
            let describe = |identity: &RuntimeIdentity| {
                let version = identity.version.as_deref();
                format!("{} {}", R::NAME, version.unwrap_or("of an unknown version"))
            };
            let note = format!(
                "the container runtime was replaced: {} answers now, {} did before; the node is \
                 prepared again",
                describe(&now),
                describe(&before)
            );
            tracing::warn!("{note}");
            self.events.clear("RuntimeReplaced");
            self.events.inform("RuntimeReplaced", "", &note);
        }
    }

    async fn pin(&mut self) {
        if Instant::now() < self.pin_at {
            return;
        }
        self.pin_at = Instant::now() + PIN_INTERVAL;
        let pod = &self.config.pod;
        let outcome = if self.config.pin {
            self.runtime.pin(pod).await
        } else {
            self.runtime.unpin(pod).await.map(|_| BTreeSet::new())
        };
        self.metrics.pins_failing.set(i64::from(outcome.is_err()));
        match outcome {
            Ok(names) => {
                self.metrics
                    .pinned
                    .set(i64::try_from(names.len()).unwrap_or(i64::MAX));
                let names: Vec<_> = names.into_iter().collect();
                self.status.pins(&names.join(", "));
                self.events.clear("ImagesNotPinned");
            }
            Err(error) => {
                self.metrics.pinned.set(0);
                if error.broke_off() {
                    self.pin_at = Instant::now() + PIN_PAUSE_AFTER_BREAK;
                }
                let text = error.to_string();
                self.status.pins(&format!("not pinned: {text}"));
                let note = format!(
                    "the images that Holdfast starts from are not pinned: {text}. If the disk \
                     fills, the kubelet may remove them, \
                     and this node cannot boot without its uplink"
                );
                if self.events.warn("ImagesNotPinned", &text, &note) {
                    tracing::warn!("{note}");
                }
            }
        }
    }

    /// Pulls the probe image if that is due, and sets the readiness of the node.
    async fn prove(&mut self, state: &NodeState, observed: &Observation) {
        let changed = self.pulled_with.as_ref() != Some(state);
        let former_probe = self
            .pulled_with
            .as_ref()
            .map(|last| last.probe.clone())
            .filter(|probe| *probe != state.probe);
        if former_probe.is_some() {
            // Another registry address. A former alias that is gone changes nothing.
            self.readiness.reset();
        }
        if !changed && Instant::now() < self.pull_at {
            return;
        }
        if let Some(probe) = former_probe
            && let Err(error) = self.runtime.cri().remove(&probe).await
        {
            tracing::debug!(%error, "cannot remove the image of the former probe");
        }
        self.pulled_with = Some(state.clone());
        let began = Instant::now();
        let outcome = self.runtime.cri().prove_pull(&state.probe).await;
        self.metrics.pulled(outcome.as_ref().err());
        let (verdict, pause) = self
            .readiness
            .record(&state.probe, outcome.as_ref().map(|()| began.elapsed()));
        self.pull_at = Instant::now() + pause;
        self.set_ready(verdict, observed);
    }

    fn set_ready(&mut self, verdict: Verdict, observed: &Observation) {
        let before = self.ready.get();
        match verdict {
            Verdict::Ready(text) => {
                if before.is_err() {
                    tracing::info!(node.verdict = %text, "this node is prepared");
                }
                if self.events.clear("PullFailed") {
                    self.events.inform("NodePrepared", &text, &text);
                }
                self.ready.ok(&text);
            }
            Verdict::NotReady(text) => {
                let text = observed.explain(text);
                if before.err().as_ref() != Some(&text) {
                    tracing::warn!(node.verdict = %text, "this node is not prepared");
                }
                // The first pulls of a node may come before the registry has started.
                if self.readiness.failures() >= FAILURES_BEFORE_EVENT {
                    self.events.warn("PullFailed", "", &text);
                }
                self.events.clear("NodePrepared");
                self.ready.failed(&text);
            }
        }
    }

    /// Undoes everything that the agent did on the host.
    async fn removed(&mut self, state: &NodeState) -> Result<(), Error> {
        let (disk, runtime, wanted) = (self.disk.clone(), self.runtime.clone(), state.clone());
        let work = move || undo(&disk, &runtime, &wanted);
        let (any, plan) = tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Error::Interrupted)??;
        let unpinned = match self.runtime.unpin(&self.config.pod).await {
            Ok(unpinned) => unpinned,
            // The runtime answered, so a retry would not help.
            Err(error @ runtimes::Error::Call(grpc::Error::Status { .. })) => {
                tracing::warn!(%error, "images may still be pinned");
                0
            }
            // No runtime, and no files of the agent: there was nothing to undo.
            Err(runtimes::Error::Call(grpc::Error::Connect(..))) if !any => 0,
            Err(error) => return Err(error.into()),
        };
        if unpinned > 0 {
            tracing::info!(unpinned, "images are no longer pinned");
        }
        let detail = with_left("the host is as it was before".to_owned(), &plan);
        self.metrics.pinned.set(0);
        self.status.pins("");
        self.status.removed(&detail);
        self.ready
            .failed("the host configuration was removed, as requested");
        if any
            && !state.probe.is_empty()
            && let Err(error) = self.runtime.cri().remove(&state.probe).await
        {
            tracing::info!(%error, "cannot remove the image of the probe");
        }
        self.readiness.reset();
        self.pulled_with = None;
        self.log(detail, !plan.left.is_empty());
        self.pull_at = Instant::now() + RESYNC_INTERVAL;
        self.pin_at = Instant::now();
        Ok(())
    }

    /// Logs the state of the host, once until it changes.
    fn log(&mut self, text: String, warn: bool) {
        if self.logged == text {
            return;
        }
        if warn {
            tracing::warn!(detail = %text, "state of the host");
        } else {
            tracing::info!(detail = %text, "state of the host");
        }
        self.logged = text;
    }
}

/// `text`, followed by what the plan does not touch.
fn with_left(mut text: String, plan: &Plan) -> String {
    for left in &plan.left {
        text.push_str("; ");
        text.push_str(left);
    }
    text
}

/// Brings the host to the wanted state.
fn apply<R: HostRuntime>(
    disk: &Disk,
    runtime: &R,
    state: &NodeState,
    version: Option<&str>,
    exhausted: &BTreeSet<String>,
) -> Result<Observation, Error> {
    // Stored first, so that a boot without the API server knows the state.
    disk.store("state.json", state)?;
    let hosts_dir = runtime.hosts_dir(version)?;
    let wanted = runtime.files(state, &hosts_dir.path)?;
    let (journal, damaged) = match disk.journal() {
        // The agent recognizes its own files by their first line.
        Err(host::Error::Damaged { .. }) => {
            disk.set_aside("journal.json")?;
            (Journal::default(), true)
        }
        journal => (journal?, false),
    };
    let paths = Disk::paths(&journal, wanted.keys());
    let plan = plan(&disk.inspect(paths.iter()), &journal, &wanted, exhausted);
    disk.apply(&plan)?;
    Ok(Observation {
        plan,
        hosts_dir,
        damaged,
    })
}

/// Undoes everything. Returns whether there was anything to undo, and what was done.
fn undo<R: HostRuntime>(
    disk: &Disk,
    runtime: &R,
    state: &NodeState,
) -> Result<(bool, Plan), Error> {
    let journal = match disk.journal() {
        Err(host::Error::Damaged { .. }) => {
            // Applying the wanted state finds the agent's own files again.
            apply(disk, runtime, state, None, &BTreeSet::new())?;
            disk.journal()?
        }
        journal => journal?,
    };
    let paths = Disk::paths(&journal, std::iter::empty());
    let mut plan = plan(
        &disk.inspect(paths.iter()),
        &journal,
        &BTreeMap::new(),
        &BTreeSet::new(),
    );
    disk.apply(&plan)?;
    disk.remove_own_folder()?;
    plan.left.extend(disk.left_by_former());
    Ok((!journal.is_empty(), plan))
}

#[cfg(test)]
mod tests;
