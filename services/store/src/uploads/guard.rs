//! A session's file in the hands of one request.

use std::sync::Arc;

use super::Uploads;
use crate::{Lock, Result, durable::DurableFs, partial::PartialFile};

/// The file, and the lock that keeps other requests from it. Both go with the work on the pool:
/// work goes on when its caller is gone, and until it ends nobody else may begin with the file.
/// Dropped, it lets go of both.
#[derive(Debug)]
pub(super) struct WriterGuard {
    pub(super) uploads: Arc<Uploads>,
    pub(super) partial: PartialFile,
    /// `None` where the file is of one request only.
    pub(super) lock: Option<Lock>,
    pub(super) when_dropped: WhenDropped,
}

/// What becomes of the file of a request that breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenDropped {
    /// The session can go on with it.
    Release,
    /// It is of no use.
    Remove,
    /// It went to its place, or is not fit to be used: at most somebody copies it.
    Leave,
}

impl WriterGuard {
    /// Whether the lock is still ours. Blocks; for the pool.
    ///
    /// # Errors
    /// [`Error::LockLost`](crate::Error::LockLost), or what the volume says.
    pub(super) fn check(&self) -> Result<()> {
        self.lock.as_ref().map_or(Ok(()), Lock::check_here)
    }

    /// What a drop does, done when this returns. Blocks; for the pool.
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
