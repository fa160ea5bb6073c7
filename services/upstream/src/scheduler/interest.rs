//! Counts the requests that wait for one answer, so that work without waiters is cancelled.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// The requests that wait for one answer. Alive while a request holds it, or permanently after
/// [`Interest::keep`].
#[derive(Debug, Default)]
pub struct Interest {
    held: AtomicUsize,
    kept: AtomicBool,
    left: Notify,
}

/// One request that waits; dropped when it leaves.
#[derive(Debug)]
pub struct Hold {
    interest: Arc<Interest>,
}

impl Interest {
    /// One more waits.
    pub fn hold(self: &Arc<Self>) -> Hold {
        self.held.fetch_add(1, Ordering::AcqRel);
        Hold {
            interest: Arc::clone(self),
        }
    }

    /// Keeps the work running without waiters.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }

    /// Resolves when no request is left and the answer is not kept.
    pub async fn gone(&self) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            if self.held.load(Ordering::Acquire) == 0 && !self.kept.load(Ordering::Acquire) {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.interest.held.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.interest.left.notify_waiters();
        }
    }
}
