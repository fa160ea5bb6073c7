//! How urgent a copy is, and who requested it.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use holdfast_api::fill::Priority;
use parking_lot::{Mutex, MutexGuard};

use super::Interest;
use crate::Requester;

/// Requesters of one copy that are remembered; for further ones it goes with these.
const REQUESTERS: usize = 16;

/// How urgent a copy is, and for whom it is made. Clones share it; it only ever becomes more
/// urgent, and further requesters join.
#[derive(Debug, Clone)]
pub struct SharedPriority {
    own: Arc<AtomicU8>,
    /// That of the image, which all its parts have, too.
    whole: Option<Arc<AtomicU8>>,
    /// The requests that wait for the answer, if it is of no use without them.
    interest: Option<Arc<Interest>>,
    /// Who requested it; empty: the registry itself.
    requesters: Arc<Mutex<Vec<Requester>>>,
}

impl SharedPriority {
    /// A copy's priority.
    pub fn new(level: Priority) -> Self {
        Self {
            own: Arc::new(AtomicU8::new(rank(level))),
            whole: None,
            interest: None,
            requesters: Arc::default(),
        }
    }

    /// The same for a copy that is made for a requester.
    #[must_use]
    pub fn on_behalf_of(self, requester: Requester) -> Self {
        Self {
            requesters: Arc::new(Mutex::new(vec![requester])),
            ..self
        }
    }

    /// The priority of a part: as urgent as the whole, and by itself when a client waits for this
    /// part.
    #[must_use]
    pub fn part(&self) -> Self {
        Self {
            whole: Some(Arc::clone(&self.own)),
            requesters: Arc::clone(&self.requesters),
            ..Self::new(Priority::Prefetch)
        }
    }

    /// The same priority for a request that leaves its queue when the last hold of the interest is
    /// gone.
    #[must_use]
    pub fn watched(self) -> (Arc<Interest>, Self) {
        let interest = Arc::<Interest>::default();
        let watched = Self {
            interest: Some(Arc::clone(&interest)),
            ..self
        };
        (interest, watched)
    }

    /// From now on the work is done also without waiters.
    pub fn keep(&self) {
        if let Some(interest) = &self.interest {
            interest.keep();
        }
    }

    /// Resolves when the last request that waits for the answer is gone.
    pub async fn abandoned(&self) {
        match &self.interest {
            Some(interest) => interest.gone().await,
            None => std::future::pending().await,
        }
    }

    /// The most urgent need of all requests so far.
    pub fn level(&self) -> Priority {
        let whole = self.whole.iter().map(|rank| rank.load(Ordering::Relaxed));
        match whole.fold(self.own.load(Ordering::Relaxed), u8::min) {
            0 => Priority::Blocking,
            1 => Priority::Running,
            _ => Priority::Prefetch,
        }
    }

    /// Makes it as urgent as `level`; true when it was less.
    pub(super) fn raise(&self, level: Priority) -> bool {
        self.own.fetch_min(rank(level), Ordering::Relaxed) > rank(level)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Requester>> {
        self.requesters.lock()
    }

    /// It is made for those who wait for the other one as well.
    pub fn join(&self, other: &Self) {
        if Arc::ptr_eq(&self.requesters, &other.requesters) {
            return;
        }
        let (mut all, others) = (self.requesters(), other.requesters());
        for requester in others {
            if all.len() < REQUESTERS && !all.contains(&requester) {
                all.push(requester);
            }
        }
        *self.lock() = all;
    }

    /// Who requested it, at least one.
    pub fn requesters(&self) -> Vec<Requester> {
        let known = self.lock();
        if known.is_empty() {
            return vec![Requester::Internal];
        }
        known.clone()
    }
}

impl Default for SharedPriority {
    fn default() -> Self {
        Self::new(Priority::Blocking)
    }
}

pub(super) const fn rank(level: Priority) -> u8 {
    match level {
        Priority::Blocking => 0,
        Priority::Running => 1,
        Priority::Prefetch => 2,
    }
}
