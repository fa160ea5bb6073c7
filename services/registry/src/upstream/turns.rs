//! Whose turn it is to copy: slots over all and for each host, the most urgent first.
//!
//! What is copied ahead never takes more than half of the slots, and what pods run already no more than three quarters, so
//! that a pull finds one free. A copy that waits here becomes more urgent when somebody who waits joins it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use holdfast_api::fill::Need;
use tokio::sync::oneshot;

/// How urgent a copy is; clones share it, and it only ever becomes more urgent.
#[derive(Debug, Clone)]
pub struct Priority(Arc<AtomicU8>);

impl Priority {
    /// A copy's priority.
    pub fn new(need: Need) -> Self {
        Self(Arc::new(AtomicU8::new(rank(need))))
    }

    /// The most urgent need that anybody had so far.
    pub fn need(&self) -> Need {
        match self.0.load(Ordering::Relaxed) {
            0 => Need::Waiting,
            1 => Need::Running,
            _ => Need::Ahead,
        }
    }

    /// Makes it as urgent as `need`; true when it was less.
    fn raise(&self, need: Need) -> bool {
        self.0.fetch_min(rank(need), Ordering::Relaxed) > rank(need)
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::new(Need::Waiting)
    }
}

const fn rank(need: Need) -> u8 {
    match need {
        Need::Waiting => 0,
        Need::Running => 1,
        Need::Ahead => 2,
    }
}

/// Slots in use, by the need they were given for.
#[derive(Debug, Default, Clone, Copy)]
struct Used([usize; 3]);

impl Used {
    /// Whether one more fits into `slots`.
    fn takes(self, need: Need, slots: usize) -> bool {
        let [waiting, running, ahead] = self.0;
        let fits = |used: usize, share: usize| used < share.max(1);
        waiting + running + ahead < slots
            && match need {
                Need::Waiting => true,
                Need::Running => fits(running + ahead, slots * 3 / 4),
                Need::Ahead => fits(ahead, slots / 2) && fits(running + ahead, slots * 3 / 4),
            }
    }
}

struct Waiter {
    host: String,
    priority: Priority,
    give: oneshot::Sender<Turn>,
}

#[derive(Default)]
struct State {
    used: Used,
    hosts: HashMap<String, Used>,
    /// By arrival.
    queue: BTreeMap<u64, Waiter>,
    arrivals: u64,
}

/// The slots of all copies. Clones share them.
#[derive(Clone)]
pub(super) struct Turns {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    all: usize,
    each: usize,
}

/// A slot; it is free again when this is dropped.
pub(super) struct Turn {
    shared: Arc<Shared>,
    host: String,
    need: Need,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn")
            .field("host", &self.host)
            .field("need", &self.need)
            .finish_non_exhaustive()
    }
}

impl Turns {
    /// `all` slots, of which one host gets `each` at most.
    pub(super) fn new(all: usize, each: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                all: all.max(1),
                each: each.max(1),
            }),
        }
    }

    /// Queues for a slot; the future waits for it. A caller that leaves gives up its place.
    pub(super) fn take(
        &self,
        host: &str,
        priority: &Priority,
    ) -> impl Future<Output = Option<Turn>> + Send + use<> {
        let told = {
            let mut state = self.shared.lock();
            let (give, told) = oneshot::channel();
            let at = state.arrivals;
            state.arrivals += 1;
            let waiter = Waiter {
                host: host.to_owned(),
                priority: priority.clone(),
                give,
            };
            state.queue.insert(at, waiter);
            told
        };
        self.shared.dispatch();
        async move { told.await.ok() }
    }

    /// Makes a copy more urgent, wherever it stands.
    pub(super) fn raise(&self, priority: &Priority, need: Need) {
        if priority.raise(need) {
            self.shared.dispatch();
        }
    }

    /// Copies under way that a pod waits for.
    pub(super) fn is_anybody_waiting(&self) -> bool {
        let state = self.shared.lock();
        state.used.0[0] > 0
            || state
                .queue
                .values()
                .any(|waiter| waiter.priority.need() == Need::Waiting)
    }

    /// Copies that wait for a slot, and those that have one, by need.
    pub(super) fn count(&self, need: Need) -> (usize, usize) {
        let state = self.shared.lock();
        let waiting = state.queue.values();
        (
            waiting
                .filter(|waiter| waiter.priority.need() == need)
                .count(),
            state.used.0[usize::from(rank(need))],
        )
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives every slot that is free to the most urgent that may have it.
    fn dispatch(self: &Arc<Self>) {
        loop {
            let (give, turn) = {
                let mut state = self.lock();
                state.queue.retain(|_, waiter| !waiter.give.is_closed());
                let next = state
                    .queue
                    .iter()
                    .filter(|(_, waiter)| {
                        let need = waiter.priority.need();
                        let host = state.hosts.get(&waiter.host).copied().unwrap_or_default();
                        state.used.takes(need, self.all) && host.takes(need, self.each)
                    })
                    .min_by_key(|(at, waiter)| (waiter.priority.need(), **at))
                    .map(|(at, _)| *at);
                let Some(waiter) = next.and_then(|at| state.queue.remove(&at)) else {
                    return;
                };
                let need = waiter.priority.need();
                let slot = usize::from(rank(need));
                state.used.0[slot] += 1;
                state.hosts.entry(waiter.host.clone()).or_default().0[slot] += 1;
                let turn = Turn {
                    shared: Arc::clone(self),
                    host: waiter.host,
                    need,
                };
                (waiter.give, turn)
            };
            // One that left in between gives the slot back by being dropped; the lock is not held here.
            drop(give.send(turn));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            let slot = usize::from(rank(self.need));
            state.used.0[slot] = state.used.0[slot].saturating_sub(1);
            let is_idle = state.hosts.get_mut(&self.host).is_some_and(|used| {
                used.0[slot] = used.0[slot].saturating_sub(1);
                used.0 == [0; 3]
            });
            if is_idle {
                state.hosts.remove(&self.host);
            }
        }
        self.shared.dispatch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, poll};

    #[test]
    fn shares_leave_room_for_what_pods_wait_for() {
        let check = |used: [usize; 3], slots: usize, expect: [bool; 3]| {
            let found = Need::ALL.map(|need| Used(used).takes(need, slots));
            assert_eq!(found, expect, "{used:?} of {slots}");
        };
        check([0, 0, 0], 16, [true, true, true]);
        check([0, 0, 8], 16, [true, true, false]);
        check([0, 4, 8], 16, [true, false, false]);
        check([4, 4, 8], 16, [false, false, false]);
        check([16, 0, 0], 16, [false, false, false]);
        check([0, 0, 0], 1, [true, true, true]);
        check([0, 0, 1], 1, [false, false, false]);
        check([0, 0, 1], 2, [true, false, false]);
    }

    #[tokio::test]
    async fn the_most_urgent_goes_first_and_a_raised_one_overtakes() {
        let turns = Turns::new(1, 1);
        let first = turns.take("a", &Priority::default()).await.unwrap();
        let [slow, raised] = [Need::Ahead, Need::Ahead].map(Priority::new);
        let mut slow = Box::pin(turns.take("a", &slow));
        let mut joined = Box::pin(turns.take("a", &raised));
        let running = Priority::new(Need::Running);
        let mut running = Box::pin(turns.take("b", &running));
        assert!(poll!(&mut slow).is_pending());
        assert!(poll!(&mut joined).is_pending());
        assert!(poll!(&mut running).is_pending());
        turns.raise(&raised, Need::Waiting);
        assert_eq!(turns.count(Need::Waiting), (1, 1));
        drop(first);
        let turn = joined.now_or_never().flatten();
        assert!(turn.is_some(), "a pull joined it");
        assert!(poll!(&mut slow).is_pending() && poll!(&mut running).is_pending());
        drop(turn);
        assert!(running.now_or_never().flatten().is_some());
        assert!(slow.now_or_never().flatten().is_some(), "at last");
    }

    #[tokio::test]
    async fn one_host_does_not_take_every_slot_and_who_leaves_is_forgotten() {
        let turns = Turns::new(3, 2);
        let wait = Priority::default();
        let a1 = turns.take("a", &wait).await;
        let a2 = turns.take("a", &wait).await;
        let mut a3 = Box::pin(turns.take("a", &wait));
        assert!(poll!(&mut a3).is_pending());
        let b = turns.take("b", &wait).now_or_never().flatten();
        assert!(b.is_some(), "another host's slot is free");
        drop(a3);
        drop((a1, a2));
        assert_eq!(turns.count(Need::Waiting), (0, 1));
        assert!(turns.is_anybody_waiting());
    }
}
