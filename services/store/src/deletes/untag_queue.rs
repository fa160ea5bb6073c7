//! Removes tags in the background: at most one thread of the process, and a way to wait for it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use holdfast_core::reference::RepositoryName;

use super::Inner;

/// The repositories whose deletes a thread of this process finishes, or is about to.
#[derive(Debug, Default)]
pub(crate) struct UntagQueue {
    queue: Mutex<QueueState>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: BTreeSet<RepositoryName>,
    running: bool,
}

/// Held by the only worker thread. Dropping it lets the next thread start, also after a panic, or
/// when the thread never ran because the process ends.
struct WorkerGuard {
    inner: Arc<Inner>,
    is_over: bool,
}

impl UntagQueue {
    fn queue(&self) -> MutexGuard<'_, QueueState> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, mut queue: MutexGuard<'_, QueueState>) {
        queue.running = false;
        self.idle.notify_all();
    }

    /// Returns when no thread of this process removes tags.
    pub(super) fn wait(&self) {
        let ended = self.idle.wait_while(self.queue(), |queue| queue.running);
        drop(ended);
    }
}

impl WorkerGuard {
    fn next(&mut self) -> Option<RepositoryName> {
        let mut queue = self.inner.untag_queue.queue();
        let next = queue.waiting.pop_first();
        if next.is_none() {
            self.is_over = true;
            self.inner.untag_queue.end(queue);
        }
        next
    }
}

impl Drop for WorkerGuard {
    fn drop(&mut self) {
        if !self.is_over {
            self.inner.untag_queue.end(self.inner.untag_queue.queue());
        }
    }
}

impl Inner {
    /// Hands the repository to the worker thread of the process, and starts it if need be.
    pub(super) fn queue_untag(self: &Arc<Self>, repo: RepositoryName) {
        if !self.pool.has_threads() {
            return;
        }
        let mut queue = self.untag_queue.queue();
        queue.waiting.insert(repo);
        let is_running = std::mem::replace(&mut queue.running, true);
        drop(queue);
        if !is_running {
            let mut worker = WorkerGuard {
                inner: Arc::clone(self),
                is_over: false,
            };
            self.pool.detach(move || {
                while let Some(repo) = worker.next() {
                    worker.inner.untag_now(&repo);
                }
            });
        }
    }

    fn untag_now(&self, repo: &RepositoryName) {
        if let Err(error) = self.finish_repository(repo) {
            tracing::warn!(image.repository = %repo, %error, "the tags of a deleted manifest are not removed yet; they are unknown to clients, and the next attempt follows within an hour");
        }
        // The hourly run makes what cannot be made now.
        drop(self.refill_reserve());
    }
}
