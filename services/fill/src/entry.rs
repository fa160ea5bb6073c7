//! The shared state of one blob's fill within the process: its progress, its requests, and which
//! repositories may read it. An entry keeps nothing for a pull that has left.

use std::{collections::BTreeSet, sync::Arc};

use holdfast_core::RepositoryName;
use holdfast_store::{LockHolder, PartialBlob};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::{Error, Result, candidates::Candidates};
use holdfast_upstream::{SharedPriority, Wait};

/// The progress of the fill of a blob.
#[derive(Debug, Clone)]
pub(super) enum State {
    /// Nothing to read yet.
    Starting,
    /// This process writes it.
    Growing(PartialBlob),
    /// Another replica writes it.
    Elsewhere(LockHolder),
    /// It is in the store.
    Done,
    /// Given up.
    Failed(Error),
}

/// The fill of a blob in this process. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) state: watch::Receiver<State>,
    pub(super) priority: SharedPriority,
    pub(super) candidates: Arc<Candidates>,
    access: Arc<Mutex<Access>>,
}

/// The repositories that may read a blob once it is stored.
#[derive(Debug, Default)]
struct Access {
    /// The repositories whose credentials the upstream let read it.
    authorized: BTreeSet<RepositoryName>,
    /// The copy is stored, and linked into those that were proven until then.
    is_linked: bool,
    /// Held while another replica copies a blob that a request here waits for.
    wait: Option<Wait>,
}

impl Entry {
    pub(super) fn new(state: watch::Receiver<State>, priority: SharedPriority) -> Self {
        Self {
            state,
            priority,
            candidates: Arc::default(),
            access: Arc::default(),
        }
    }

    fn access(&self) -> MutexGuard<'_, Access> {
        self.access.lock()
    }

    /// Whether the repository's own credentials may read it.
    pub(super) fn is_authorized(&self, repo: &RepositoryName) -> bool {
        self.access().authorized.contains(repo)
    }

    /// The upstream let this repository's credentials read it: the blob is linked into it at the
    /// end of the copy. True when that is over, and the caller has to link it.
    pub(super) fn authorize(&self, repo: &RepositoryName) -> bool {
        let mut access = self.access();
        access.authorized.insert(repo.clone());
        access.is_linked
    }

    /// The copy ended: those that may read it, to be linked now.
    pub(super) fn close(&self) -> BTreeSet<RepositoryName> {
        let mut access = self.access();
        access.is_linked = true;
        access.wait = None;
        access.authorized.clone()
    }

    /// Records that a request here waits for the copy of another replica, until that ends.
    pub(super) fn waits(&self, wait: impl FnOnce() -> Wait) {
        let mut access = self.access();
        if !access.is_linked {
            access.wait.get_or_insert_with(wait);
        }
    }

    /// Waits until the blob can be read or the fill is given up.
    pub(super) async fn readable(&self) -> State {
        let mut state = self.state.clone();
        let ready = state
            .wait_for(|state| !matches!(state, State::Starting))
            .await;
        ready.map_or_else(
            |_| State::Failed(Error::Busy("the registry is shutting down".to_owned())),
            |state| state.clone(),
        )
    }

    /// Waits until the blob is stored or the fill is given up.
    pub(super) async fn ended(&self) -> Option<Result<()>> {
        let mut state = self.state.clone();
        let end = state
            .wait_for(|state| matches!(state, State::Done | State::Failed(_)))
            .await
            .ok()?;
        match &*end {
            State::Failed(error) => Some(Err(error.clone())),
            _ => Some(Ok(())),
        }
    }
}
