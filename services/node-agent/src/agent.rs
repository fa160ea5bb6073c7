//! One round of the agent: look at the host, bring it to the wanted state or undo it, prove it by a
//! pull when that is due, and say how it stands. No round fails the process: what cannot be done
//! now is said and tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_api::state::{Desired, NodeState};
use holdfast_runtime::health::Flag;

use crate::cri::{Runtime, grpc};
use crate::host::Disk;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::node_events::NodeEvents;
use crate::pins::{self, Own};
use crate::plan::{Plan, plan};
use crate::readiness::{Readiness, Repairs, Verdict};
use crate::runtime_config::{self, Files, HostFolder};
use crate::status::Status;
use crate::{certs_d, host};

/// How often the host's files are looked at, when nothing else happens.
pub const RESYNC_INTERVAL: Duration = Duration::from_secs(30);

/// How often the pins of images are looked at.
const PIN_INTERVAL: Duration = Duration::from_secs(60);
/// As [`PIN_INTERVAL`], after the runtime broke off in the middle of it.
const PIN_RETRY_AFTER_CRASH: Duration = Duration::from_secs(3600);
/// Pulls that fail in a row before an event says so: half a minute.
const FAILURES_BEFORE_EVENT: u32 = 6;

/// Where things are.
#[derive(Debug, Clone)]
pub struct Folders {
    /// The host's folder of the runtime's configuration, as mounted here: `/host/etc/containerd`.
    /// The agent may only read it.
    pub etc: PathBuf,
    /// The host's folder of registry hosts, as mounted here: `/host/certs.d`. The one folder that
    /// the agent may write to.
    pub hosts: PathBuf,
    /// The host's folder with the runtime's socket, as mounted here: `/host/run/containerd`.
    pub run: PathBuf,
    /// The first folder as the host names it: `/etc/containerd`.
    pub etc_on_host: PathBuf,
    /// The folder of registry hosts as the host names it: `/etc/containerd/certs.d`.
    pub hosts_on_host: PathBuf,
    /// Whether the operator named that folder; else the runtime's configuration must name it.
    pub hosts_are_given: bool,
}

/// Why a round did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state cannot be written to a host.
    #[error(transparent)]
    State(#[from] certs_d::Error),
    /// The host could not be read or changed.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The runtime has no folder for registry hosts.
    #[error(transparent)]
    Folder(#[from] runtime_config::Error),
    /// The runtime does not answer.
    #[error(transparent)]
    Runtime(#[from] grpc::Error),
    /// The work was interrupted.
    #[error("interrupted")]
    Interrupted,
}

/// What the agent is told beside the state.
#[derive(Debug, Clone, Default)]
pub struct AgentConfig {
    /// Whose pod this is.
    pub own: Own,
    /// Whether the images that Holdfast starts from are pinned.
    pub pin: bool,
}

/// The agent of one node.
pub struct Agent {
    folders: Folders,
    config: AgentConfig,
    disk: Disk,
    runtime: Runtime,
    status: Status,
    ready: Flag,
    metrics: Arc<Metrics>,
    events: NodeEvents,
    born: Instant,
    readiness: Readiness,
    repairs: Repairs,
    /// The runtime that answered last.
    seen: Option<RuntimeIdentity>,
    /// The state that the last pull was made with, and when the next one is due.
    last: Option<NodeState>,
    pull_at: Instant,
    pin_at: Instant,
    said: String,
}

/// What makes a runtime another one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RuntimeIdentity {
    /// Its version; `None` while it does not answer.
    version: Option<String>,
    /// The identity of its data, where it has one.
    data: Option<String>,
    /// Its process, where it tells.
    process: Option<u64>,
}

/// The host after a look and what followed from it.
struct Observation {
    plan: Plan,
    folder: HostFolder,
    /// Whether the journal could not be read.
    damaged: bool,
}

impl Agent {
    /// An agent that has not looked at anything yet.
    pub fn new(
        folders: Folders,
        disk: Disk,
        config: AgentConfig,
        status: Status,
        ready: Flag,
        metrics: Arc<Metrics>,
        events: NodeEvents,
    ) -> Self {
        Self {
            disk,
            runtime: Runtime::new(folders.run.join("containerd.sock")),
            folders,
            config,
            status,
            ready,
            metrics,
            events,
            born: Instant::now(),
            readiness: Readiness::default(),
            repairs: Repairs::default(),
            seen: None,
            last: None,
            pull_at: Instant::now(),
            pin_at: Instant::now(),
            said: String::new(),
        }
    }

    /// One round; answers how long to wait for the next one when nothing changes.
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
            // Whatever was proven before: the next round that comes through pulls.
            self.pull_at = Instant::now();
            self.events.warn("HostNotPrepared", &text, &text);
            self.say(text, true);
            // A wrong runtime configuration is mended by people: look again soon, for they wait.
            return Duration::from_secs(10);
        }
        self.events.over("HostNotPrepared");
        RESYNC_INTERVAL
            .min(self.pull_at.saturating_duration_since(Instant::now()))
            .max(Duration::from_millis(200))
    }

    async fn present(&mut self, state: &NodeState) -> Result<(), Error> {
        let version = self.runtime.version().await.ok().map(|(_, v)| v);
        let identity = self.runtime.identity().await.ok();
        let yielded = self.repairs.yielded(self.born.elapsed());
        let (disk, folders, wanted) = (self.disk.clone(), self.folders.clone(), state.clone());
        let known = version.clone();
        let work = move || look(&disk, &folders, &wanted, known.as_deref(), &yielded);
        let observed = tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Error::Interrupted)??;
        let Observation { plan, folder, .. } = &observed;
        self.repairs.note(&plan.repaired, self.born.elapsed());
        let mut detail = format!("{} ({})", folder.on_host.display(), folder.note);
        for left in &plan.left {
            detail.push_str("; ");
            detail.push_str(left);
        }
        self.report(&observed);
        self.status.present(&detail);
        self.say(
            format!("host configuration is in place: {detail}"),
            !plan.left.is_empty(),
        );
        self.compare(RuntimeIdentity {
            version,
            data: identity.as_ref().map(|(uuid, _)| uuid.clone()),
            process: identity.map(|(_, pid)| pid),
        });
        if !plan.actions.is_empty() {
            // What was proven, was proven with other files.
            self.pull_at = Instant::now();
        }
        self.pin().await;
        self.prove(state, &plan.left).await;
        Ok(())
    }

    /// Tells of files that somebody else changed.
    fn report(&mut self, observed: &Observation) {
        let Observation { plan, damaged, .. } = observed;
        if *damaged {
            let note = "the node agent's journal could not be read and was set aside as journal.json.damaged; its own files are \
                        known by their first line, but what stood there before Holdfast will not be put back";
            tracing::warn!("{note}");
            self.events.over("JournalDamaged");
            self.events.warn("JournalDamaged", "", note);
        }
        self.metrics.repairs.inc_by(plan.repaired.len() as u64);
        if !plan.repaired.is_empty() {
            let files = plan.repaired.join(", ");
            tracing::warn!(
                files,
                "somebody else changed files of the node agent; written again"
            );
            self.events.over("HostFilesRepaired");
            let note = format!(
                "somebody else changed or removed what the node agent wrote, and it was written again: {files}; after five times \
                 within an hour the agent leaves a file as it is"
            );
            self.events.warn("HostFilesRepaired", "", &note);
        }
        self.metrics
            .left
            .set(i64::try_from(plan.left.len()).unwrap_or(i64::MAX));
        if plan.left.is_empty() {
            self.events.over("HostFilesLeft");
        } else {
            let left = plan.left.join("; ");
            let note = format!("{left}. Pods with rewritten images may not start on this node");
            self.events.warn("HostFilesLeft", &left, &note);
        }
    }

    /// Another runtime has proven nothing; one that was started again has read its configuration
    /// anew.
    fn compare(&mut self, mut now: RuntimeIdentity) {
        let Some(before) = self.seen.replace(now.clone()) else {
            return;
        };
        // What does not answer just now is what it was, until another one answers.
        now.version = now.version.or_else(|| before.version.clone());
        now.data = now.data.or_else(|| before.data.clone());
        now.process = now.process.or(before.process);
        self.seen = Some(now.clone());
        if before == now {
            return;
        }
        self.pull_at = Instant::now();
        let differs =
            |before: &Option<String>, now: &Option<String>| before.is_some() && before != now;
        if differs(&before.version, &now.version) || differs(&before.data, &now.data) {
            self.readiness.void();
            self.pin_at = Instant::now();
            self.metrics.runtimes.inc();
            let describe = |seen: &RuntimeIdentity| {
                let version = seen.version.as_deref();
                format!("containerd {}", version.unwrap_or("of an unknown version"))
            };
            let note = format!(
                "the container runtime was replaced: {} answers, {} did before; the node is prepared anew",
                describe(&now),
                describe(&before)
            );
            tracing::warn!("{note}");
            self.events.over("RuntimeReplaced");
            self.events.inform("RuntimeReplaced", "", &note);
        }
    }

    async fn pin(&mut self) {
        if Instant::now() < self.pin_at {
            return;
        }
        self.pin_at = Instant::now() + PIN_INTERVAL;
        let outcome = if self.config.pin {
            pins::keep(&self.runtime, &self.config.own).await
        } else {
            let released = pins::release(&self.runtime, &self.config.own).await;
            released.map(|_| BTreeSet::new()).map_err(pins::Error::from)
        };
        self.metrics.pins_failing.set(i64::from(outcome.is_err()));
        match outcome {
            Ok(names) => {
                self.metrics
                    .pinned
                    .set(i64::try_from(names.len()).unwrap_or(i64::MAX));
                let names: Vec<_> = names.into_iter().collect();
                self.status.pins(&names.join(", "));
                self.events.over("ImagesNotPinned");
            }
            Err(error) => {
                self.metrics.pinned.set(0);
                if error.broke_off() {
                    self.pin_at = Instant::now() + PIN_RETRY_AFTER_CRASH;
                }
                let text = error.to_string();
                self.status.pins(&format!("not pinned: {text}"));
                let note = format!(
                    "the images that Holdfast starts from are not pinned: {text}. When the disk fills, the kubelet may remove them, \
                     and this node could not boot without its uplink"
                );
                if self.events.warn("ImagesNotPinned", &text, &note) {
                    tracing::warn!("{note}");
                }
            }
        }
    }

    async fn prove(&mut self, state: &NodeState, left: &[String]) {
        let changed = self.last.as_ref() != Some(state);
        // An earlier address that went changes nothing of what was proven.
        let former = self.last.as_ref().map(|last| last.probe.clone());
        if former.as_ref().is_some_and(|probe| *probe != state.probe) {
            self.readiness.void();
        }
        if !changed && Instant::now() < self.pull_at {
            return;
        }
        if let Some(probe) = former.filter(|probe| *probe != state.probe)
            && let Err(error) = self.runtime.remove(&probe).await
        {
            tracing::debug!(%error, "the former probe's image stays on the node");
        }
        self.last = Some(state.clone());
        let began = Instant::now();
        let outcome = self.runtime.prove_pull(&state.probe).await;
        self.metrics.pulled(outcome.as_ref().err());
        let (verdict, pause) = self
            .readiness
            .learn(&state.probe, outcome.as_ref().map(|()| began.elapsed()));
        self.pull_at = Instant::now() + pause;
        let was = self.ready.get();
        match verdict {
            Verdict::Ready(text) => {
                if was.is_err() {
                    tracing::info!(node.verdict = %text, "this node is prepared");
                }
                if self.events.over("PullFailed") {
                    self.events.inform("NodePrepared", &text, &text);
                }
                self.ready.ok(&text);
            }
            Verdict::NotReady(mut text) => {
                for left in left {
                    text.push_str("; ");
                    text.push_str(left);
                }
                if was.err().as_ref() != Some(&text) {
                    tracing::warn!(node.verdict = %text, "this node is not prepared");
                }
                // The first pulls of a node come before the registry has started.
                if self.readiness.failures() >= FAILURES_BEFORE_EVENT {
                    self.events.warn("PullFailed", "", &text);
                }
                self.events.over("NodePrepared");
                self.ready.failed(&text);
            }
        }
    }

    async fn removed(&mut self, state: &NodeState) -> Result<(), Error> {
        let (disk, folders, wanted) = (self.disk.clone(), self.folders.clone(), state.clone());
        let work = move || undo(&disk, &folders, &wanted);
        let (any, plan) = tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Error::Interrupted)??;
        let unpinned = match pins::release(&self.runtime, &self.config.own).await {
            Ok(unpinned) => unpinned,
            // It answered, so asking again changes nothing.
            Err(error @ grpc::Error::Status { .. }) => {
                tracing::warn!(%error, "images may still be pinned");
                0
            }
            // Without a runtime there is nothing of the node to put back either, but files.
            Err(grpc::Error::Connect(..)) if !any => 0,
            Err(error) => return Err(error.into()),
        };
        let mut detail = "the host is as it was before".to_owned();
        if unpinned > 0 {
            tracing::info!(unpinned, "images are no longer pinned");
        }
        for left in &plan.left {
            detail.push_str("; ");
            detail.push_str(left);
        }
        self.metrics.pinned.set(0);
        self.status.pins("");
        self.status.removed(&detail);
        self.ready
            .failed("the host configuration was removed, as told");
        if any
            && !state.probe.is_empty()
            && let Err(error) = self.runtime.remove(&state.probe).await
        {
            tracing::info!(error = %error, "the probe's image stays on the node");
        }
        self.readiness.void();
        self.last = None;
        self.say(detail, !plan.left.is_empty());
        self.pull_at = Instant::now() + RESYNC_INTERVAL;
        self.pin_at = Instant::now();
        Ok(())
    }

    /// Says a thing once, until another thing is said.
    fn say(&mut self, text: String, warn: bool) {
        if self.said == text {
            return;
        }
        if warn {
            tracing::warn!(detail = %text, "state of the host");
        } else {
            tracing::info!(detail = %text, "state of the host");
        }
        self.said = text;
    }
}

/// Looks at the host and brings it to what is wanted.
fn look(
    disk: &Disk,
    folders: &Folders,
    state: &NodeState,
    runtime: Option<&str>,
    yielded: &BTreeSet<String>,
) -> Result<Observation, Error> {
    // First of all what the API server said is kept, so that a boot without it knows as much.
    disk.keep("state.json", state)?;
    let folder = find(folders, runtime)?;
    let wanted = certs_d::wanted(state, &folder.on_host)?;
    let (journal, damaged) = match disk.journal() {
        // Its own files it knows by their first line.
        Err(host::Error::Damaged { .. }) => {
            disk.set_aside("journal.json")?;
            (Journal::default(), true)
        }
        journal => (journal?, false),
    };
    let paths = Disk::paths(&journal, wanted.keys());
    let plan = plan(&disk.look(paths.iter()), &journal, &wanted, yielded);
    disk.apply(&plan)?;
    Ok(Observation {
        plan,
        folder,
        damaged,
    })
}

/// Undoes everything; answers whether there was anything, and what was done.
fn undo(disk: &Disk, folders: &Folders, state: &NodeState) -> Result<(bool, Plan), Error> {
    let journal = match disk.journal() {
        Err(host::Error::Damaged { .. }) => {
            // A last look tells what is its own.
            look(disk, folders, state, None, &BTreeSet::new())?;
            disk.journal()?
        }
        journal => journal?,
    };
    let paths = Disk::paths(&journal, std::iter::empty());
    let mut plan = plan(
        &disk.look(paths.iter()),
        &journal,
        &BTreeMap::new(),
        &BTreeSet::new(),
    );
    disk.apply(&plan)?;
    disk.forget()?;
    plan.left.extend(disk.left_by_former());
    Ok((!journal.is_empty(), plan))
}

fn find(folders: &Folders, runtime: Option<&str>) -> Result<HostFolder, runtime_config::Error> {
    if folders.hosts_are_given {
        return Ok(HostFolder {
            on_host: folders.hosts_on_host.clone(),
            note: "from the values".to_owned(),
        });
    }
    let files = Mounted { folders };
    let (etc, hosts) = (&folders.etc_on_host, &folders.hosts_on_host);
    runtime_config::find(&files, etc, hosts, runtime)
}

/// The host's files by their path on the host, read where they are mounted.
struct Mounted<'a> {
    folders: &'a Folders,
}

impl Mounted<'_> {
    fn here(&self, on_host: &Path) -> Option<PathBuf> {
        Some(
            self.folders
                .etc
                .join(on_host.strip_prefix(&self.folders.etc_on_host).ok()?),
        )
    }
}

impl Files for Mounted<'_> {
    fn read(&self, path: &Path) -> Result<Option<String>, String> {
        let Some(here) = self.here(path) else {
            tracing::debug!(file = %path.display(), "an import outside of the mounted folder is not read");
            return Ok(None);
        };
        match std::fs::read_to_string(here) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }

    fn list(&self, folder: &Path) -> Vec<String> {
        let entries = self
            .here(folder)
            .and_then(|here| std::fs::read_dir(here).ok());
        let names = entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().into_string());
        names.filter_map(Result::ok).collect()
    }
}

#[cfg(test)]
mod tests;
