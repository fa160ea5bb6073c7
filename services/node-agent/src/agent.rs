//! One round of the agent: look at the host, bring it to the wanted state or undo it, prove it by a pull when that is
//! due, and say how it stands. No round fails the process: what cannot be done now is said and tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_api::state::{Desired, NodeState};
use holdfast_runtime::health::Flag;

use crate::cri::Runtime;
use crate::host::Disk;
use crate::metrics::Metrics;
use crate::plan::{Plan, plan};
use crate::proof::{Proof, Repairs, Verdict};
use crate::runtime_config::{self, Files, HostFolder};
use crate::status::Status;
use crate::{host, hosts};

/// How often the host's files are looked at, when nothing else happens.
pub const LOOK: Duration = Duration::from_secs(30);

/// Where things are.
#[derive(Debug, Clone)]
pub struct Folders {
    /// The host's folder of the runtime's configuration, as mounted here: `/host/etc/containerd`.
    pub etc: PathBuf,
    /// The host's folder with the runtime's socket, as mounted here: `/host/run/containerd`.
    pub run: PathBuf,
    /// The first folder as the host names it: `/etc/containerd`.
    pub etc_on_host: PathBuf,
    /// The folder of registry hosts as the host names it, when the operator said it; else it is read from the runtime's
    /// configuration.
    pub hosts_on_host: Option<PathBuf>,
}

/// Why a round did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state cannot be written to a host.
    #[error(transparent)]
    State(#[from] hosts::Error),
    /// The host could not be read or changed.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The runtime has no folder for registry hosts.
    #[error(transparent)]
    Folder(#[from] runtime_config::Error),
    /// The work was interrupted.
    #[error("interrupted")]
    Interrupted,
}

/// The agent of one node.
pub struct Agent {
    folders: Folders,
    disk: Disk,
    runtime: Runtime,
    status: Status,
    ready: Flag,
    metrics: Arc<Metrics>,
    born: Instant,
    proof: Proof,
    repairs: Repairs,
    /// The state that the last pull was made with, and when the next one is due.
    last: Option<NodeState>,
    pull_at: Instant,
    said: String,
}

impl Agent {
    /// An agent that has not looked at anything yet.
    pub fn new(folders: Folders, status: Status, ready: Flag, metrics: Arc<Metrics>) -> Self {
        Self {
            disk: Disk::new(folders.etc.clone()),
            runtime: Runtime::new(folders.run.join("containerd.sock")),
            folders,
            status,
            ready,
            metrics,
            born: Instant::now(),
            proof: Proof::default(),
            repairs: Repairs::default(),
            last: None,
            pull_at: Instant::now(),
            said: String::new(),
        }
    }

    /// One round; answers how long to wait for the next one when nothing changes.
    pub async fn round(&mut self, state: &NodeState) -> Duration {
        let result = match state.desired {
            Desired::Present => self.present(state).await,
            Desired::Removed => self.removed(state).await,
        };
        if let Err(error) = result {
            let text = error.to_string();
            self.status.failed(&text);
            self.ready.failed(&text);
            self.say(text, true);
            // A wrong runtime configuration is mended by people: look again soon, for they wait.
            return Duration::from_secs(10);
        }
        LOOK.min(self.pull_at.saturating_duration_since(Instant::now()))
            .max(Duration::from_millis(200))
    }

    async fn present(&mut self, state: &NodeState) -> Result<(), Error> {
        let version = self.runtime.version().await;
        let runtime_version = version.as_ref().ok().map(|(_, version)| version.clone());
        let yielded = self.repairs.yielded(self.born.elapsed());
        let (disk, folders, wanted) = (self.disk.clone(), self.folders.clone(), state.clone());
        let work = move || -> Result<(Plan, HostFolder), Error> {
            // First of all what the API server said is kept, so that a boot without it knows as much.
            disk.keep("state.json", &wanted)?;
            let folder = find(&folders, runtime_version.as_deref())?;
            let wanted = hosts::wanted(&wanted, &folder.relative, &folder.on_host)?;
            let journal = disk.journal()?;
            let paths = Disk::paths(&journal, wanted.keys());
            let plan = plan(&disk.look(paths.iter()), &journal, &wanted, &yielded);
            disk.apply(&plan)?;
            Ok((plan, folder))
        };
        let (plan, folder) = tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Error::Interrupted)??;
        self.repairs.note(&plan.repaired, self.born.elapsed());
        self.metrics.repairs.inc_by(plan.repaired.len() as u64);
        let mut detail = format!("{} ({})", folder.on_host.display(), folder.note);
        if !plan.repaired.is_empty() {
            tracing::warn!(
                files = plan.repaired.join(", "),
                "somebody else changed files of the node agent; written again"
            );
        }
        for left in &plan.left {
            detail.push_str("; ");
            detail.push_str(left);
        }
        self.status.present(&detail);
        self.say(
            format!("host configuration is in place: {detail}"),
            !plan.left.is_empty(),
        );
        self.prove(state).await;
        Ok(())
    }

    async fn prove(&mut self, state: &NodeState) {
        let changed = self.last.as_ref() != Some(state);
        if self
            .last
            .as_ref()
            .is_some_and(|last| last.hosts != state.hosts)
        {
            self.proof.void();
        }
        if !changed && Instant::now() < self.pull_at {
            return;
        }
        self.last = Some(state.clone());
        let began = Instant::now();
        let outcome = self.runtime.prove_pull(&state.probe).await;
        self.metrics.pulled(outcome.as_ref().err());
        let (verdict, pause) = self
            .proof
            .learn(&state.probe, outcome.as_ref().map(|()| began.elapsed()));
        self.pull_at = Instant::now() + pause;
        let was = self.ready.get();
        match verdict {
            Verdict::Ready(text) => {
                if was.is_err() {
                    tracing::info!(node.verdict = %text, "this node is prepared");
                }
                self.ready.ok(&text);
            }
            Verdict::NotReady(text) => {
                if was.err().as_ref() != Some(&text) {
                    tracing::warn!(node.verdict = %text, "this node is not prepared");
                }
                self.ready.failed(&text);
            }
        }
    }

    async fn removed(&mut self, state: &NodeState) -> Result<(), Error> {
        let disk = self.disk.clone();
        let work = move || -> Result<(bool, Plan), Error> {
            let journal = disk.journal()?;
            let paths = Disk::paths(&journal, std::iter::empty());
            let plan = plan(
                &disk.look(paths.iter()),
                &journal,
                &BTreeMap::new(),
                &BTreeSet::new(),
            );
            disk.apply(&plan)?;
            disk.forget()?;
            Ok((!journal.is_empty(), plan))
        };
        let (any, plan) = tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Error::Interrupted)??;
        let mut detail = "the host is as it was before".to_owned();
        for left in &plan.left {
            detail.push_str("; ");
            detail.push_str(left);
        }
        self.status.removed(&detail);
        self.ready
            .failed("the host configuration was removed, as told");
        if any
            && !state.probe.is_empty()
            && let Err(error) = self.runtime.remove(&state.probe).await
        {
            tracing::info!(error = %error, "the probe's image stays on the node");
        }
        self.proof.void();
        self.last = None;
        self.say(detail, !plan.left.is_empty());
        self.pull_at = Instant::now() + LOOK;
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

fn find(folders: &Folders, runtime: Option<&str>) -> Result<HostFolder, runtime_config::Error> {
    match &folders.hosts_on_host {
        Some(folder) => runtime_config::choose(
            &folders.etc_on_host,
            &folder.to_string_lossy(),
            "the values",
        ),
        None => runtime_config::find(&Mounted { folders }, &folders.etc_on_host, runtime),
    }
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
