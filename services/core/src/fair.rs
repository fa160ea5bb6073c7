//! Fair scheduling: a queue that serves parties round-robin, and a semaphore with such a queue.
//!
//! Each party has its own queue, so a party with a thousand entries delays itself and no other one.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::{Mutex, MutexGuard};

/// A queue of entries `T` that serves parties `K` round-robin.
#[derive(Debug)]
pub struct FairQueue<K, T> {
    queues: BTreeMap<K, VecDeque<(u64, T)>>,
    /// Parties with an entry, the next one first.
    order: VecDeque<K>,
    arrivals: u64,
    len: usize,
}

impl<K, T> Default for FairQueue<K, T> {
    fn default() -> Self {
        Self {
            queues: BTreeMap::new(),
            order: VecDeque::new(),
            arrivals: 0,
            len: 0,
        }
    }
}

impl<K: Copy + Ord, T> FairQueue<K, T> {
    /// Appends an entry to the queue of its party. The returned number is for
    /// [`FairQueue::remove`].
    pub fn push(&mut self, party: K, entry: T) -> u64 {
        self.arrivals += 1;
        self.len += 1;
        let queue = self.queues.entry(party).or_default();
        if queue.is_empty() {
            self.order.push_back(party);
        }
        queue.push_back((self.arrivals, entry));
        self.arrivals
    }

    /// Takes the first entry of the next party.
    pub fn pop(&mut self) -> Option<T> {
        let party = self.order.pop_front()?;
        let queue = self.queues.get_mut(&party)?;
        let (_, entry) = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&party);
        } else {
            self.order.push_back(party);
        }
        self.len -= 1;
        Some(entry)
    }

    /// An entry that was not taken yet.
    fn get_mut(&mut self, party: K, number: u64) -> Option<&mut T> {
        let queue = self.queues.get_mut(&party)?;
        let at = queue.binary_search_by_key(&number, |(number, _)| *number);
        queue.get_mut(at.ok()?).map(|(_, entry)| entry)
    }

    /// Removes an entry that was not taken yet.
    pub fn remove(&mut self, party: K, number: u64) -> Option<T> {
        let queue = self.queues.get_mut(&party)?;
        let at = queue
            .binary_search_by_key(&number, |(number, _)| *number)
            .ok()?;
        let (_, entry) = queue.remove(at)?;
        if queue.is_empty() {
            self.queues.remove(&party);
            self.order.retain(|other| *other != party);
        }
        self.len -= 1;
        Some(entry)
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A semaphore that serves waiting parties `K` round-robin. Clones share it.
#[derive(Clone, Debug)]
pub struct FairSemaphore<K> {
    permits: usize,
    state: Arc<Mutex<State<K>>>,
}

#[derive(Debug)]
struct State<K> {
    running: usize,
    waiting: FairQueue<K, Waker>,
}

/// A permit, released when dropped.
#[derive(Debug)]
#[must_use]
pub struct Permit<K: Copy + Ord>(FairSemaphore<K>);

/// Waits for a permit. Dropping it gives up the place in the queue.
#[derive(Debug)]
#[must_use]
pub struct Acquire<K: Copy + Ord> {
    semaphore: FairSemaphore<K>,
    party: K,
    number: u64,
    done: bool,
}

impl<K: Copy + Ord> FairSemaphore<K> {
    /// A semaphore with `permits` permits.
    pub fn new(permits: usize) -> Self {
        let state = State {
            running: 0,
            waiting: FairQueue::default(),
        };
        Self {
            permits,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The total number of permits.
    pub fn permits(&self) -> usize {
        self.permits
    }

    /// Queues a request of `party` for a permit, at the time of this call.
    pub fn acquire(&self, party: K) -> Acquire<K> {
        let number = self.state().waiting.push(party, Waker::noop().clone());
        self.serve();
        Acquire {
            semaphore: self.clone(),
            party,
            number,
            done: false,
        }
    }

    /// Hands out free permits. A request leaves the queue when it gets a permit.
    fn serve(&self) {
        loop {
            let mut state = self.state();
            if self.permits <= state.running {
                return;
            }
            let Some(waker) = state.waiting.pop() else {
                return;
            };
            state.running += 1;
            drop(state);
            waker.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock()
    }
}

impl<K: Copy + Ord + Unpin> Future for Acquire<K> {
    type Output = Permit<K>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Permit<K>> {
        let (party, number) = (self.party, self.number);
        let mut state = self.semaphore.state();
        if let Some(waker) = state.waiting.get_mut(party, number) {
            waker.clone_from(context.waker());
            return Poll::Pending;
        }
        drop(state);
        self.done = true;
        Poll::Ready(Permit(self.semaphore.clone()))
    }
}

impl<K: Copy + Ord> Drop for Acquire<K> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let waits = self
            .semaphore
            .state()
            .waiting
            .remove(self.party, self.number);
        if waits.is_none() {
            // The permit came too late and goes to the next one.
            drop(Permit(self.semaphore.clone()));
        }
    }
}

impl<K: Copy + Ord> Drop for Permit<K> {
    fn drop(&mut self) {
        self.0.state().running -= 1;
        self.0.serve();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls once.
    fn now<F: Future + Unpin>(wait: &mut F) -> Option<F::Output> {
        let mut context = Context::from_waker(Waker::noop());
        match Pin::new(wait).poll(&mut context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_fair_semaphore_serves_parties_round_robin() {
        let semaphore = FairSemaphore::new(1);
        let mut running = now(&mut semaphore.acquire(0));
        let mut waiting: Vec<_> = [1, 1, 1, 1, 2, 3, 2]
            .map(|party| (party, semaphore.acquire(party)))
            .into();
        for (_, turn) in &mut waiting {
            assert!(now(turn).is_none(), "two at once");
        }
        let mut order = Vec::new();
        while !waiting.is_empty() {
            assert!(running.take().is_some(), "nobody was served");
            waiting.retain_mut(|(party, turn)| match now(turn) {
                Some(turn) => {
                    order.push(*party);
                    assert!(running.replace(turn).is_none(), "two at once");
                    false
                }
                None => true,
            });
        }
        drop(running);
        assert_eq!(order, [1, 2, 3, 1, 2, 1, 1]);
        let state = semaphore.state();
        assert!(state.running == 0 && state.waiting.is_empty());
    }

    #[test]
    fn a_cancelled_request_takes_no_turn() {
        let semaphore = FairSemaphore::new(1);
        let running = now(&mut semaphore.acquire(1)).unwrap();
        let [mut gone, mut served, mut last] = [1, 2, 3].map(|party| semaphore.acquire(party));
        for turn in [&mut gone, &mut served, &mut last] {
            assert!(now(turn).is_none());
        }
        drop(gone);
        drop(running);
        // It has its turn and does not take it.
        drop(served);
        let turn = now(&mut last).unwrap();
        assert_eq!(semaphore.state().running, 1);
        drop((turn, last));
        assert_eq!(semaphore.state().running, 0);
        assert!(semaphore.state().waiting.is_empty());
    }

    #[test]
    fn a_request_with_a_permit_is_woken() {
        use std::sync::atomic::{AtomicUsize, Ordering};

        struct Count(AtomicUsize);

        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }

        let semaphore = FairSemaphore::new(2);
        let [one, two] = [1, 1].map(|party| now(&mut semaphore.acquire(party)).unwrap());
        let woken = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut third = semaphore.acquire(1);
        let polled = Pin::new(&mut third).poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        drop(one);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        drop(two);
        assert!(now(&mut third).is_some());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        drop(third);
        assert_eq!(semaphore.state().running, 0);
    }

    fn drained(turns: &mut FairQueue<char, u32>) -> Vec<u32> {
        std::iter::from_fn(|| turns.pop()).collect()
    }

    #[test]
    fn parties_are_served_round_robin() {
        let mut turns = FairQueue::default();
        for (party, entry) in [('a', 1), ('a', 2), ('a', 3), ('b', 4), ('c', 5), ('b', 6)] {
            turns.push(party, entry);
        }
        assert_eq!(turns.len(), 6);
        assert_eq!(drained(&mut turns), [1, 4, 5, 2, 6, 3]);
        assert!(turns.is_empty() && turns.queues.is_empty() && turns.order.is_empty());
    }

    #[test]
    fn a_removed_entry_takes_no_turn() {
        let mut turns = FairQueue::default();
        let numbers = [('a', 1), ('b', 2), ('a', 3), ('c', 4)]
            .map(|(party, entry)| (party, turns.push(party, entry)));
        for (at, expect) in [(1, Some(2)), (1, None), (2, Some(3))] {
            let (party, number) = numbers[at];
            assert_eq!(turns.remove(party, number), expect);
        }
        assert_eq!(turns.len(), 2);
        assert_eq!(drained(&mut turns), [1, 4]);
        let (party, number) = numbers[0];
        assert_eq!(turns.remove(party, number), None, "it had its turn");
        assert!(turns.queues.is_empty() && turns.order.is_empty());
    }
}
