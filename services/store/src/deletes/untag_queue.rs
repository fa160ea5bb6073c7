//! Removes tags in the background: at most one thread of the process, and a way to wait for it.

use std::collections::BTreeSet;

use holdfast_core::reference::RepositoryName;
use parking_lot::{Condvar, Mutex};

use super::Deletes;

/// The repositories whose deletes a thread of this process finishes, or is about to.
#[derive(Debug, Default)]
pub(crate) struct UntagQueue {
    state: Mutex<QueueState>,
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
    deletes: Deletes,
    is_over: bool,
}

impl UntagQueue {
    /// Adds a repository, and starts the worker thread if it does not run. `deletes` must be those
    /// that own this queue.
    pub(super) fn push(&self, deletes: &Deletes, repo: RepositoryName) {
        let mut state = self.state.lock();
        state.waiting.insert(repo);
        let is_running = std::mem::replace(&mut state.running, true);
        drop(state);
        if is_running {
            return;
        }
        let mut worker = WorkerGuard {
            deletes: deletes.clone(),
            is_over: false,
        };
        deletes.pool.detach(move || {
            while let Some(repo) = worker.next() {
                finish(&worker.deletes, &repo);
            }
        });
    }

    /// Returns when no thread of this process removes tags.
    pub(super) fn wait(&self) {
        let mut state = self.state.lock();
        self.idle.wait_while(&mut state, |state| state.running);
    }

    fn end(&self, state: &mut QueueState) {
        state.running = false;
        self.idle.notify_all();
    }
}

impl WorkerGuard {
    fn next(&mut self) -> Option<RepositoryName> {
        let queue = &self.deletes.queue;
        let mut state = queue.state.lock();
        let next = state.waiting.pop_first();
        if next.is_none() {
            self.is_over = true;
            queue.end(&mut state);
        }
        next
    }
}

impl Drop for WorkerGuard {
    fn drop(&mut self) {
        if !self.is_over {
            let queue = &self.deletes.queue;
            queue.end(&mut queue.state.lock());
        }
    }
}

fn finish(deletes: &Deletes, repo: &RepositoryName) {
    if let Err(error) = deletes.finish_repository(repo) {
        tracing::warn!(
            image.repository = %repo, %error,
            "the tags of a deleted manifest are not removed yet; they are unknown to clients, and \
             the next attempt follows within an hour"
        );
    }
    // The hourly run makes what cannot be made now.
    drop(deletes.refill_reserve());
}
