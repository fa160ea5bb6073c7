//! Whether anybody still waits for an answer.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// Those who wait for one answer. It is of interest while anybody holds it, and for good once it is
/// kept.
#[derive(Debug, Default)]
pub struct Interest {
    held: AtomicUsize,
    kept: AtomicBool,
    left: Notify,
}

/// One of those who wait; dropped when it leaves.
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

    /// The answer is wanted whether anybody waits or not.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }

    /// Resolves when nobody is left.
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
