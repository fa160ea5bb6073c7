//! Container runtimes: what the agent needs to know about the one on its node.
//!
//! The round of the agent (`agent.rs`) is written against [`HostRuntime`]. A further runtime is a
//! module beside [`containerd`] and a choice in `lib.rs`.

pub mod containerd;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use holdfast_api::state::NodeState;

use crate::cri::{self, grpc};
use crate::plan::HostFile;

/// The container runtime of a node, as far as runtimes differ.
///
/// What the CRI defines is the same for all of them: see [`HostRuntime::cri`].
pub trait HostRuntime: Clone + Send + Sync + 'static {
    /// The name of the runtime in messages, for instance `containerd`.
    const NAME: &'static str;

    /// The client of the runtime's CRI, for pulls and removals of images.
    fn cri(&self) -> &cri::Client;

    /// Asks which runtime answers. What the runtime does not tell is `None`.
    fn identity(&self) -> impl Future<Output = RuntimeIdentity> + Send;

    /// Finds the directory of registry hosts that the runtime reads and the agent may write to.
    /// Reads the runtime's configuration (blocking).
    ///
    /// # Errors
    /// The runtime is not configured to read that directory; the text says what to change.
    fn hosts_dir(&self, version: Option<&str>) -> Result<HostsDir, Error>;

    /// The files that make the runtime use the registry, by path relative to `hosts_dir`.
    ///
    /// # Errors
    /// The state holds an address or an endpoint that no file can express.
    fn files(
        &self,
        state: &NodeState,
        hosts_dir: &Path,
    ) -> Result<BTreeMap<String, HostFile>, Error>;

    /// Pins the images of `pod` against image garbage collection, and removes pins of images that
    /// the pod no longer uses. Returns the names of the pinned images.
    fn pin(&self, pod: &AgentPod) -> impl Future<Output = Result<BTreeSet<String>, Error>> + Send;

    /// Removes all pins of the release of `pod`. Returns how many there were.
    fn unpin(&self, pod: &AgentPod) -> impl Future<Output = Result<usize, Error>> + Send;
}

/// What tells one runtime from another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeIdentity {
    /// Its version; `None` while it does not answer.
    pub version: Option<String>,
    /// The identity of its data, if it has one.
    pub data: Option<String>,
    /// Its process ID, if it tells.
    pub process: Option<u64>,
}

impl RuntimeIdentity {
    /// Completed by what was known before: a runtime that does not answer at the moment counts as
    /// the previous one.
    #[must_use]
    pub fn or(self, before: &Self) -> Self {
        Self {
            version: self.version.or_else(|| before.version.clone()),
            data: self.data.or_else(|| before.data.clone()),
            process: self.process.or(before.process),
        }
    }

    /// Whether this is another runtime than `before`, not only the same one restarted.
    pub fn replaces(&self, before: &Self) -> bool {
        let differs =
            |before: &Option<String>, now: &Option<String>| before.is_some() && before != now;
        differs(&before.version, &self.version) || differs(&before.data, &self.data)
    }
}

/// The directory of registry hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostsDir {
    /// Its path on the host, as the runtime sees it.
    pub path: PathBuf,
    /// Where the path was found, for the operator.
    pub note: String,
    /// Why the runtime does not read the directory as configured, and what to change.
    pub fault: Option<String>,
}

/// The pod of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The release that it belongs to, unique in the cluster: `NAMESPACE.FULLNAME`.
    pub release: String,
}

/// Why a runtime could not do what the agent asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call failed.
    #[error(transparent)]
    Call(#[from] grpc::Error),
    /// Any other reason; the text is for the operator.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Wraps the error of one runtime.
    pub fn other(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Other(Box::new(error))
    }

    /// Whether the connection broke during the call. The runtime may have crashed on the request,
    /// so the request must not be repeated soon.
    pub fn broke_off(&self) -> bool {
        matches!(
            self,
            Self::Call(grpc::Error::Connect(..) | grpc::Error::Protocol(_))
        )
    }
}
