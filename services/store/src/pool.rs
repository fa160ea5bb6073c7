//! The bounded share of the blocking pool that touches the volume.
//!
//! A call to a hung network volume cannot be cancelled: it holds its thread. The bound keeps such calls from eating every thread
//! of the process; who finds no slot within [`Pool::PATIENCE`] gets [`Error::Busy`].

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Error, Result};

/// Runs blocking work on at most so many threads at once.
#[derive(Clone, Debug)]
pub struct Pool {
    slots: Arc<Semaphore>,
    queue: Arc<Semaphore>,
    patience: Duration,
    in_place: bool,
}

impl Pool {
    /// How long a call waits for a free thread before it is refused.
    pub const PATIENCE: Duration = Duration::from_secs(20);

    /// Bytes that wait for the volume in all files together.
    pub const QUEUE_BYTES: usize = 32 << 20;

    /// A pool of `threads` threads.
    pub fn new(threads: usize) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(threads.max(1))),
            queue: Arc::new(Semaphore::new(Self::QUEUE_BYTES)),
            patience: Self::PATIENCE,
            in_place: false,
        }
    }

    /// A pool without threads: work runs where it is asked for. For volumes that never block.
    pub(crate) fn in_place() -> Self {
        Self {
            in_place: true,
            ..Self::new(1)
        }
    }

    /// Runs work that nobody waits for, also after its caller is gone.
    pub(crate) fn detach(&self, work: impl FnOnce() + Send + 'static) {
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !self.in_place => drop(runtime.spawn_blocking(work)),
            _ => work(),
        }
    }

    /// Whether work can go on beside its caller. Where it cannot, what may be done later is left until somebody asks for it.
    pub(crate) fn has_threads(&self) -> bool {
        !self.in_place
    }

    /// A share of [`Pool::QUEUE_BYTES`] for bytes that are to be written; it is given back when it is dropped. Waits while the volume
    /// is behind with what others brought.
    pub(crate) async fn queue(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes.min(Self::QUEUE_BYTES)).map_err(|_| Error::Busy)?;
        let share = Arc::clone(&self.queue).acquire_many_owned(bytes).await;
        share.map_err(|_| Error::Busy)
    }

    /// Runs `work` on the pool. A caller that goes away does not stop work that has begun.
    pub async fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        if self.in_place {
            return work();
        }
        let slot = match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => tokio::time::timeout(self.patience, Arc::clone(&self.slots).acquire_owned())
                .await
                .map_err(|_| Error::Busy)?
                .map_err(|_| Error::Busy)?,
        };
        let task = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(slot);
            result
        });
        task.await.unwrap_or(Err(Error::Busy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hung_volume_refuses_instead_of_piling_up() {
        let pool = Pool {
            patience: Duration::from_millis(20),
            ..Pool::new(1)
        };
        let (release, hung) = std::sync::mpsc::channel::<()>();
        let stuck = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(move || Ok(hung.recv().is_ok())).await }
        });
        tokio::task::yield_now().await;
        assert!(matches!(pool.run(|| Ok(())).await, Err(Error::Busy)));
        release.send(()).unwrap();
        assert!(stuck.await.unwrap().unwrap());
        pool.run(|| Ok(())).await.unwrap();
    }
}
