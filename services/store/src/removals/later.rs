//! Untying after the answer: one thread of the process at a time, and whoever wants to know that it
//! is through.

use std::{
    collections::BTreeSet,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use holdfast_core::reference::RepositoryName;

use super::Inner;

/// The repositories whose tags a thread of this process unties, or is about to.
#[derive(Debug, Default)]
pub(crate) struct Untying {
    queue: Mutex<Queue>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: BTreeSet<RepositoryName>,
    running: bool,
}

/// The one thread's right to work. Given back also when it panics, or when it never began because
/// the process ends.
struct Turn {
    inner: Arc<Inner>,
    is_over: bool,
}

impl Untying {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, mut queue: MutexGuard<'_, Queue>) {
        queue.running = false;
        self.idle.notify_all();
    }

    /// Returns when no thread of this process unties a tag.
    pub(super) fn wait(&self) {
        let ended = self.idle.wait_while(self.queue(), |queue| queue.running);
        drop(ended);
    }
}

impl Turn {
    fn next(&mut self) -> Option<RepositoryName> {
        let mut queue = self.inner.untying.queue();
        let next = queue.waiting.pop_first();
        if next.is_none() {
            self.is_over = true;
            self.inner.untying.end(queue);
        }
        next
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_over {
            self.inner.untying.end(self.inner.untying.queue());
        }
    }
}

impl Inner {
    /// Leaves the untying to a thread of its own, one a process.
    pub(super) fn untie_later(self: &Arc<Self>, repo: RepositoryName) {
        if !self.pool.has_threads() {
            return;
        }
        let mut queue = self.untying.queue();
        queue.waiting.insert(repo);
        let is_running = std::mem::replace(&mut queue.running, true);
        drop(queue);
        if !is_running {
            let mut turn = Turn {
                inner: Arc::clone(self),
                is_over: false,
            };
            self.pool.detach(move || {
                while let Some(repo) = turn.next() {
                    turn.inner.untie_now(&repo);
                }
            });
        }
    }

    fn untie_now(&self, repo: &RepositoryName) {
        if let Err(error) = self.finish(repo) {
            tracing::warn!(image.repository = %repo, %error, "tags of a deleted manifest are not untied yet; they answer \"unknown\", and it is tried again within the hour");
        }
        // What cannot be made now is made within the hour.
        drop(self.keep_spares());
    }
}
