//! containerd: host configuration in `certs.d`, pins as labels of its image records.

pub mod certs_d;
pub mod config;
mod pins;
pub(crate) mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use holdfast_api::state::NodeState;

use super::{AgentPod, Error, HostRuntime, HostsDir, RuntimeIdentity};
use crate::cri;
use crate::host::Folders;
use crate::plan::HostFile;

/// The name of containerd's socket in its state folder.
const SOCKET: &str = "containerd.sock";

/// The containerd of a node.
#[derive(Debug, Clone)]
pub struct Containerd {
    cri: cri::Client,
    pub(crate) folders: Folders,
}

impl Containerd {
    /// The containerd whose folders are mounted at `folders`; nothing is connected yet.
    pub fn new(folders: Folders) -> Self {
        Self {
            cri: cri::Client::new(folders.run.join(SOCKET)),
            folders,
        }
    }
}

impl HostRuntime for Containerd {
    const NAME: &'static str = "containerd";

    fn cri(&self) -> &cri::Client {
        &self.cri
    }

    async fn identity(&self) -> RuntimeIdentity {
        let version = self.cri.version().await.ok().map(|(_, version)| version);
        let server = self.server().await.ok();
        RuntimeIdentity {
            version,
            data: server.as_ref().map(|server| server.uuid.clone()),
            process: server.map(|server| server.pid),
        }
    }

    fn hosts_dir(&self, version: Option<&str>) -> Result<HostsDir, Error> {
        let folders = &self.folders;
        let (etc, hosts) = (&folders.etc_on_host, &folders.hosts_on_host);
        let found = config::find(&Mounted { folders }, etc, hosts, version);
        if folders.hosts_are_given {
            return Ok(HostsDir {
                path: folders.hosts_on_host.clone(),
                note: "from the values".to_owned(),
                fault: found.ok().and_then(|found| found.fault),
            });
        }
        found.map_err(Error::other)
    }

    fn files(
        &self,
        state: &NodeState,
        hosts_dir: &Path,
    ) -> Result<BTreeMap<String, HostFile>, Error> {
        certs_d::files(state, hosts_dir).map_err(Error::other)
    }

    async fn pin(&self, pod: &AgentPod) -> Result<BTreeSet<String>, Error> {
        Ok(pins::pin(self, pod).await?)
    }

    async fn unpin(&self, pod: &AgentPod) -> Result<usize, Error> {
        Ok(pins::unpin(self, pod).await?)
    }
}

/// The host's files by their path on the host, read where they are mounted.
struct Mounted<'a> {
    folders: &'a Folders,
}

impl Mounted<'_> {
    fn here(&self, on_host: &Path) -> Option<PathBuf> {
        let below = on_host.strip_prefix(&self.folders.etc_on_host).ok()?;
        Some(self.folders.etc.join(below))
    }
}

impl config::Files for Mounted<'_> {
    fn read(&self, path: &Path) -> Result<Option<String>, String> {
        let Some(here) = self.here(path) else {
            tracing::debug!(
                file = %path.display(),
                "skipping an import outside of the mounted folder"
            );
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
