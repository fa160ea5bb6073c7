//! Scheduler of copies: slots in all and for each host, given by priority, then in equal shares by
//! host and by repository, then by arrival.
//!
//! A copy may be preempted: it keeps its bytes, gives its slot up and queues again. A copy that
//! waits preempts one at most, and gets that slot. `preempt` has the rules:
//!
//! - A slow copy gives its slot to a copy that never ran, of a host or repository that has fewer.
//! - A host or repository with more than its share gives slots to those with less, after a quantum.
//! - One that has no slot gets one from the one with most, after a quantum: when more claim than
//!   there are slots, they take turns. A copy that runs again runs for twice as long before it
//!   gives its slot to another one that ran before, so turns become rare, and a copy that cannot go
//!   on where it stopped ends as well.
//!
//! At most `COPIES_WAITING` copies wait; `requester` decides which one makes room for a newcomer.
//!
//! Prefetching takes at most half of the slots, and together with images that pods run already at
//! most three quarters, so a pull finds a free one. A waiting copy becomes more urgent when a more
//! urgent request joins it. While a pod or a pull waits for something of a host, background copies
//! yield the host's bandwidth.

mod interest;
mod preempt;
mod priority;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use holdfast_api::fill::Priority;
use holdfast_runtime::CancellationToken;
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::oneshot, time::Instant};

use super::{
    flow::{Flow, FlowRate},
    requester,
};
use crate::limits::COPIES_WAITING;
pub use interest::Interest;
pub use priority::SharedPriority;
use priority::rank;

/// Pause between two checks whether a pod or a pull still waits.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long a background copy pauses at most to yield bandwidth: an upstream that cannot send for
/// long closes the connection.
const MAX_YIELD: Duration = Duration::from_secs(1);
/// How often copies without a slot look for one that should give its slot up.
const PREEMPT_INTERVAL: Duration = Duration::from_millis(250);

/// Slots in use, by the need they were given for.
#[derive(Debug, Default, Clone, Copy)]
struct SlotsInUse([usize; 3]);

impl SlotsInUse {
    /// Whether one more fits into `slots`.
    fn takes(self, level: Priority, slots: usize) -> bool {
        let [waiting, running, ahead] = self.0;
        let fits = |used: usize, share: usize| used < share.max(1);
        waiting + running + ahead < slots
            && match level {
                Priority::Blocking => true,
                Priority::Running => fits(running + ahead, slots * 3 / 4),
                Priority::Prefetch => {
                    fits(ahead, slots / 2) && fits(running + ahead, slots * 3 / 4)
                }
            }
    }
}

struct Waiter {
    host: String,
    repository: String,
    priority: SharedPriority,
    /// How often it had a slot before and was preempted.
    yielded: u32,
    give: oneshot::Sender<Slot>,
}

/// A copy under way.
struct Running {
    host: String,
    repository: String,
    priority: SharedPriority,
    /// `None`: another replica copies, and no slot is taken here.
    slot: Option<SlotState>,
}

struct SlotState {
    flow: Arc<Flow>,
    rated: FlowRate,
    since: Instant,
    /// How often the copy was preempted before.
    yielded: u32,
    preempted: CancellationToken,
    /// For which of those that wait it was preempted.
    gives_to: Option<u64>,
}

/// Slots of one host, in all and by repository.
#[derive(Default)]
struct HostSlots {
    used: SlotsInUse,
    repositories: HashMap<String, usize>,
}

#[derive(Default)]
struct State {
    used: SlotsInUse,
    hosts: HashMap<String, HostSlots>,
    /// By arrival.
    queue: BTreeMap<u64, Waiter>,
    /// Copies under way, here or at another replica for a client here, with their hosts.
    under_way: HashMap<u64, Running>,
    arrivals: u64,
    /// When it was last checked whether a copy should give its slot up.
    looked: Option<Instant>,
}

impl State {
    fn arrival(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    /// The order of the queue: what pods wait for, then whose host has the fewest slots, then whose
    /// repository has the fewest, then by arrival, so that newcomers keep no entry waiting for
    /// ever.
    fn place(&self, at: u64, waiter: &Waiter) -> (Priority, usize, usize, u64) {
        let (host, repository) = self.used(&waiter.host, &waiter.repository);
        (waiter.priority.level(), host, repository, at)
    }

    /// Slots of a host, and of one of its repositories.
    fn used(&self, host: &str, repository: &str) -> (usize, usize) {
        self.hosts.get(host).map_or((0, 0), |host| {
            let of_repository = host.repositories.get(repository).copied();
            (host.used.0.iter().sum(), of_repository.unwrap_or(0))
        })
    }

    /// Makes room for one more that waits; false when it has to go instead.
    fn make_room(&mut self, repository: &str, priority: &SharedPriority) -> bool {
        if self.queue.len() < COPIES_WAITING {
            return true;
        }
        let held = self.queue.iter();
        let held = held.map(|(at, waiter)| (*at, waiter.repository.as_str(), &waiter.priority));
        let greediest = requester::greediest(held, (repository, priority));
        // Its future ends without a slot.
        greediest.and_then(|at| self.queue.remove(&at)).is_some()
    }

    fn give(&mut self, host: &str, repository: &str, level: Priority) {
        let slot = usize::from(rank(level));
        self.used.0[slot] += 1;
        let host = self.hosts.entry(host.to_owned()).or_default();
        host.used.0[slot] += 1;
        let of_repository = host.repositories.entry(repository.to_owned());
        *of_repository.or_default() += 1;
    }

    fn take_back(&mut self, host: &str, repository: &str, level: Priority) {
        let slot = usize::from(rank(level));
        self.used.0[slot] = self.used.0[slot].saturating_sub(1);
        let Some(of_host) = self.hosts.get_mut(host) else {
            return;
        };
        of_host.used.0[slot] = of_host.used.0[slot].saturating_sub(1);
        if let Some(held) = of_host.repositories.get_mut(repository) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                of_host.repositories.remove(repository);
            }
        }
        if of_host.used.0 == [0; 3] {
            self.hosts.remove(host);
        }
    }
}

/// The slots of all copies. Clones share them.
#[derive(Clone)]
pub(super) struct FillScheduler {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    all: usize,
    each: usize,
}

/// A slot; it is free again when this is dropped.
pub(super) struct Slot {
    shared: Arc<Shared>,
    host: String,
    level: Priority,
    at: u64,
    flow: Arc<Flow>,
    preempted: CancellationToken,
}

/// A place in the queue; given up when this is dropped.
struct Queued {
    shared: Arc<Shared>,
    at: u64,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.shared.lock().queue.remove(&self.at);
    }
}

/// A client here waits for what another replica copies, until this is dropped.
pub struct Wait {
    shared: Arc<Shared>,
    at: u64,
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.shared.lock().under_way.remove(&self.at);
    }
}

impl std::fmt::Debug for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wait")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot")
            .field("host", &self.host)
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

impl FillScheduler {
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
    /// `yielded`: how often it had one and was preempted. `None`: too many wait, and the place goes
    /// to others.
    pub(super) fn take(
        &self,
        (host, repository): (&str, &str),
        priority: &SharedPriority,
        yielded: u32,
    ) -> impl Future<Output = Option<Slot>> + Send + use<> {
        let (give, mut told) = oneshot::channel();
        let queued = {
            let mut state = self.shared.lock();
            let at = state.arrival();
            if state.make_room(repository, priority) {
                let waiter = Waiter {
                    host: host.to_owned(),
                    repository: repository.to_owned(),
                    priority: priority.clone(),
                    yielded,
                    give,
                };
                state.queue.insert(at, waiter);
            }
            Queued {
                shared: Arc::clone(&self.shared),
                at,
            }
        };
        self.shared.dispatch(None);
        let shared = Arc::clone(&self.shared);
        async move {
            let _queued = queued;
            loop {
                tokio::select! {
                    biased;
                    slot = &mut told => return slot.ok(),
                    () = tokio::time::sleep(PREEMPT_INTERVAL) => shared.preempt(Instant::now()),
                }
            }
        }
    }

    /// Makes a copy more urgent, whether it runs or waits.
    pub(super) fn raise(&self, priority: &SharedPriority, level: Priority) {
        if priority.raise(level) {
            self.shared.dispatch(None);
        }
    }

    /// Records that a client waits for content of `host` that another replica copies.
    pub(super) fn wait(&self, host: &str) -> Wait {
        let mut state = self.shared.lock();
        let at = state.arrival();
        let waits = Running {
            host: host.to_owned(),
            repository: String::new(),
            priority: SharedPriority::default(),
            slot: None,
        };
        state.under_way.insert(at, waits);
        Wait {
            shared: Arc::clone(&self.shared),
            at,
        }
    }

    /// Whether there is a copy, queued or under way, that a pod waits for.
    pub(super) fn is_anybody_waiting(&self) -> bool {
        let state = self.shared.lock();
        let queued = state.queue.values().map(|waiter| &waiter.priority);
        let under_way = state.under_way.values().map(|running| &running.priority);
        queued
            .chain(under_way)
            .any(|priority| priority.level() == Priority::Blocking)
    }

    /// Copies that wait for a slot, and those that have one, by need.
    pub(super) fn count(&self, level: Priority) -> (usize, usize) {
        let state = self.shared.lock();
        let waiting = state.queue.values();
        (
            waiting
                .filter(|waiter| waiter.priority.level() == level)
                .count(),
            state.used.0[usize::from(rank(level))],
        )
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn is_waited_for(&self, host: &str) -> bool {
        let state = self.lock();
        let mut under_way = state.under_way.values();
        under_way.any(|one| one.host == host && one.priority.level() == Priority::Blocking)
    }

    /// Has copies give their slots up to others that should have them.
    fn preempt(&self, now: Instant) {
        let mut state = self.lock();
        if state
            .looked
            .is_some_and(|at| now < at + PREEMPT_INTERVAL / 2)
        {
            return;
        }
        state.looked = Some(now);
        for (victim, waiter) in preempt::choose(&mut state, (self.all, self.each), now) {
            if let Some(Running {
                slot: Some(slot),
                host,
                ..
            }) = state.under_way.get_mut(&victim)
            {
                tracing::debug!(upstream.host = %host, "a copy gives its slot up");
                slot.gives_to = Some(waiter);
                slot.preempted.cancel();
            }
        }
    }

    /// Gives every slot that is free to the most urgent that may have it, in equal shares. `first`:
    /// for which of those that wait a slot was given up.
    fn dispatch(self: &Arc<Self>, mut first: Option<u64>) {
        loop {
            let (give, slot) = {
                let mut state = self.lock();
                if state.used.0.iter().sum::<usize>() >= self.all {
                    return;
                }
                let next = state
                    .queue
                    .iter()
                    .filter(|(_, waiter)| {
                        let level = waiter.priority.level();
                        let host = state.hosts.get(&waiter.host).map(|host| host.used);
                        state.used.takes(level, self.all)
                            && host.unwrap_or_default().takes(level, self.each)
                    })
                    .min_by_key(|(at, waiter)| (first != Some(**at), state.place(**at, waiter)))
                    .map(|(at, _)| *at);
                first = None;
                let Some((at, waiter)) = next.and_then(|at| state.queue.remove_entry(&at)) else {
                    return;
                };
                let level = waiter.priority.level();
                state.give(&waiter.host, &waiter.repository, level);
                let (flow, preempted) = (Arc::new(Flow::new()), CancellationToken::new());
                let running = Running {
                    host: waiter.host.clone(),
                    repository: waiter.repository,
                    priority: waiter.priority.clone(),
                    slot: Some(SlotState {
                        flow: Arc::clone(&flow),
                        rated: FlowRate::default(),
                        since: Instant::now(),
                        yielded: waiter.yielded,
                        preempted: preempted.clone(),
                        gives_to: None,
                    }),
                };
                state.under_way.insert(at, running);
                let slot = Slot {
                    shared: Arc::clone(self),
                    host: waiter.host,
                    level,
                    at,
                    flow,
                    preempted,
                };
                (waiter.give, slot)
            };
            // One that left in between gives the slot back by being dropped; the lock is not held
            // here.
            drop(give.send(slot));
        }
    }
}

impl Slot {
    /// What the copy brought so far.
    pub(super) fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// Cancelled when the copy has to give its slot up.
    pub(super) fn preempted(&self) -> &CancellationToken {
        &self.preempted
    }

    /// Pauses for a short time while another request waits for other content of the host.
    pub(super) async fn yield_to_waiters(&self, priority: &SharedPriority) {
        let until = Instant::now() + MAX_YIELD;
        while priority.level() != Priority::Blocking
            && self.shared.is_waited_for(&self.host)
            && Instant::now() < until
        {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let gives_to = {
            let mut state = self.shared.lock();
            let ended = state.under_way.remove(&self.at);
            ended.and_then(|ended| {
                state.take_back(&ended.host, &ended.repository, self.level);
                ended.slot?.gives_to
            })
        };
        self.shared.dispatch(gives_to);
    }
}

#[cfg(test)]
mod tests;
