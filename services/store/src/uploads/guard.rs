//! The file of a session while one request writes it.

use std::sync::Arc;

use super::Uploads;
use crate::{Lock, Result, durable::DurableFs, partial::PartialFile};

/// The file, and the lock that keeps other requests from it. It moves into the work on the pool:
/// the work continues when its caller is gone, and until it ends no other request may use the file.
/// Dropping it releases both.
#[derive(Debug)]
pub(super) struct WriterGuard {
    pub(super) uploads: Arc<Uploads>,
    pub(super) partial: PartialFile,
    /// `None` when the file belongs to one request only.
    pub(super) lock: Option<Lock>,
    pub(super) when_dropped: WhenDropped,
}

/// What happens to the file of a request that breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenDropped {
    /// It is released, and the session can continue with it.
    Release,
    /// It is removed.
    Remove,
    /// It stays: it was committed, or it may only be copied.
    Leave,
}

impl WriterGuard {
    /// Checks that the lock was not lost. Blocks; for the pool.
    ///
    /// # Errors
    /// [`Error::LockLost`](crate::Error::LockLost), or an error of the volume.
    pub(super) fn check(&self) -> Result<()> {
        self.lock.as_ref().map_or(Ok(()), Lock::check_here)
    }

    /// Does the work of a drop before it returns. Blocks; for the pool.
    pub(super) fn release(mut self) {
        let when = std::mem::replace(&mut self.when_dropped, WhenDropped::Leave);
        release(&self.uploads.files, &self.partial, self.lock.take(), when);
    }
}

impl Drop for WriterGuard {
    fn drop(&mut self) {
        let (lock, when) = (self.lock.take(), self.when_dropped);
        if lock.is_none() && when == WhenDropped::Leave {
            return;
        }
        let (uploads, partial) = (Arc::clone(&self.uploads), self.partial.clone());
        let pool = uploads.pool.clone();
        pool.detach(move || release(&uploads.files, &partial, lock, when));
    }
}

fn release(files: &DurableFs, partial: &PartialFile, lock: Option<Lock>, when: WhenDropped) {
    match when {
        WhenDropped::Release => partial.release_if_free(files),
        WhenDropped::Remove => partial.remove(files),
        WhenDropped::Leave => {}
    }
    if let Some(lock) = lock {
        lock.release_here();
    }
}
