//! How many sessions' files are read at a time, to be hashed again or copied.
//!
//! A client makes that necessary with a request of a few bytes, and each one costs the time of all
//! bytes that its session holds.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use holdfast_core::reference::RepositoryName;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Error, Pool, Result};

/// Files of sessions that are read at a time; of one repository one.
pub(crate) const SESSIONS_READ: usize = 2;

/// The places. A repository that waits for its own place holds none that others wait for.
#[derive(Debug)]
pub(crate) struct RehashSlots {
    all: Arc<Semaphore>,
    repositories: Mutex<HashMap<RepositoryName, Weak<Semaphore>>>,
}

/// A place; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct RehashSlot {
    _permits: [OwnedSemaphorePermit; 2],
}

impl Default for RehashSlots {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(SESSIONS_READ)),
            repositories: Mutex::default(),
        }
    }
}

impl RehashSlots {
    /// A place, if one is free and no upload waits for it.
    pub(super) fn try_begin(&self, repo: &RepositoryName) -> Option<RehashSlot> {
        let of_repository = self.of_repository(repo).try_acquire_owned().ok()?;
        let of_all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some(RehashSlot {
            _permits: [of_repository, of_all],
        })
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// [`Error::Busy`] after [`Pool::SLOT_TIMEOUT`].
    pub(super) async fn begin(&self, repo: &RepositoryName) -> Result<RehashSlot> {
        let places = async {
            let of_repository = self.of_repository(repo).acquire_owned().await;
            let of_all = Arc::clone(&self.all).acquire_owned().await;
            of_repository.ok().zip(of_all.ok())
        };
        let places = tokio::time::timeout(Pool::SLOT_TIMEOUT, places).await;
        let (of_repository, of_all) = places.ok().flatten().ok_or(Error::Busy)?;
        Ok(RehashSlot {
            _permits: [of_repository, of_all],
        })
    }

    fn of_repository(&self, repo: &RepositoryName) -> Arc<Semaphore> {
        let mut repositories = self.repositories.lock();
        if let Some(place) = repositories.get(repo).and_then(Weak::upgrade) {
            return place;
        }
        repositories.retain(|_, place| place.strong_count() > 0);
        let place = Arc::new(Semaphore::new(1));
        repositories.insert(repo.clone(), Arc::downgrade(&place));
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_the_bound_of_readings() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/LIMITS.md");
        let document = std::fs::read_to_string(path).unwrap();
        let cells = format!("| `SESSIONS_READ` | {SESSIONS_READ} |");
        assert!(document.contains(&cells), "docs/LIMITS.md lacks {cells}");
    }
}
