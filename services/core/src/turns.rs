//! A queue in which parties take turns, each with its own line: one that brings a thousand entries
//! delays itself and nobody else. And a gate that lets this many at a time through, by such a
//! queue.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// Entries of parties `K`, which take turns.
#[derive(Debug)]
pub struct Turns<K, T> {
    lines: BTreeMap<K, VecDeque<(u64, T)>>,
    /// Parties with an entry, in the order of their turns.
    order: VecDeque<K>,
    arrivals: u64,
    len: usize,
}

impl<K, T> Default for Turns<K, T> {
    fn default() -> Self {
        Self {
            lines: BTreeMap::new(),
            order: VecDeque::new(),
            arrivals: 0,
            len: 0,
        }
    }
}

impl<K: Copy + Ord, T> Turns<K, T> {
    /// Adds an entry at the end of its party's line. The number is for [`Turns::remove`].
    pub fn push(&mut self, party: K, entry: T) -> u64 {
        self.arrivals += 1;
        self.len += 1;
        let line = self.lines.entry(party).or_default();
        if line.is_empty() {
            self.order.push_back(party);
        }
        line.push_back((self.arrivals, entry));
        self.arrivals
    }

    /// Takes the first entry of the party whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let party = self.order.pop_front()?;
        let line = self.lines.get_mut(&party)?;
        let (_, entry) = line.pop_front()?;
        if line.is_empty() {
            self.lines.remove(&party);
        } else {
            self.order.push_back(party);
        }
        self.len -= 1;
        Some(entry)
    }

    /// An entry that has not had its turn yet.
    fn get_mut(&mut self, party: K, number: u64) -> Option<&mut T> {
        let line = self.lines.get_mut(&party)?;
        let at = line.binary_search_by_key(&number, |(number, _)| *number);
        line.get_mut(at.ok()?).map(|(_, entry)| entry)
    }

    /// Takes an entry that has not had its turn yet, and never will.
    pub fn remove(&mut self, party: K, number: u64) -> Option<T> {
        let line = self.lines.get_mut(&party)?;
        let at = line
            .binary_search_by_key(&number, |(number, _)| *number)
            .ok()?;
        let (_, entry) = line.remove(at)?;
        if line.is_empty() {
            self.lines.remove(&party);
            self.order.retain(|other| *other != party);
        }
        self.len -= 1;
        Some(entry)
    }

    /// How many entries wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no entry waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Lets this many at a time work; parties `K` that wait take turns. Clones share it.
#[derive(Clone, Debug)]
pub struct Gate<K> {
    at_once: usize,
    state: Arc<Mutex<State<K>>>,
}

#[derive(Debug)]
struct State<K> {
    running: usize,
    waiting: Turns<K, Waker>,
}

/// Leave to work, until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Turn<K: Copy + Ord>(Gate<K>);

/// Waits for a turn; the place in the queue is given up when this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Wait<K: Copy + Ord> {
    gate: Gate<K>,
    party: K,
    number: u64,
    done: bool,
}

impl<K: Copy + Ord> Gate<K> {
    /// A gate for `at_once` at a time.
    pub fn new(at_once: usize) -> Self {
        let state = State {
            running: 0,
            waiting: Turns::default(),
        };
        Self {
            at_once,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// How many work at a time.
    pub fn at_once(&self) -> usize {
        self.at_once
    }

    /// Waits for a turn of `party`, from now on.
    pub fn turn(&self, party: K) -> Wait<K> {
        let number = self.state().waiting.push(party, Waker::noop().clone());
        self.serve();
        Wait {
            gate: self.clone(),
            party,
            number,
            done: false,
        }
    }

    /// Gives turns while there is room: who has one is in the queue no more.
    fn serve(&self) {
        loop {
            let mut state = self.state();
            if self.at_once <= state.running {
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Ord + Unpin> Future for Wait<K> {
    type Output = Turn<K>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Turn<K>> {
        let (party, number) = (self.party, self.number);
        let mut state = self.gate.state();
        if let Some(waker) = state.waiting.get_mut(party, number) {
            waker.clone_from(context.waker());
            return Poll::Pending;
        }
        drop(state);
        self.done = true;
        Poll::Ready(Turn(self.gate.clone()))
    }
}

impl<K: Copy + Ord> Drop for Wait<K> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let waits = self.gate.state().waiting.remove(self.party, self.number);
        if waits.is_none() {
            // The turn that came too late goes to the next one.
            drop(Turn(self.gate.clone()));
        }
    }
}

impl<K: Copy + Ord> Drop for Turn<K> {
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
    fn at_a_gate_parties_take_turns_too() {
        let gate = Gate::new(1);
        let mut running = now(&mut gate.turn(0));
        let mut waiting: Vec<_> = [1, 1, 1, 1, 2, 3, 2]
            .map(|party| (party, gate.turn(party)))
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
        let state = gate.state();
        assert!(state.running == 0 && state.waiting.is_empty());
    }

    #[test]
    fn who_gives_up_takes_nobodys_turn() {
        let gate = Gate::new(1);
        let running = now(&mut gate.turn(1)).unwrap();
        let [mut gone, mut served, mut last] = [1, 2, 3].map(|party| gate.turn(party));
        for turn in [&mut gone, &mut served, &mut last] {
            assert!(now(turn).is_none());
        }
        drop(gone);
        drop(running);
        // It has its turn and does not take it.
        drop(served);
        let turn = now(&mut last).unwrap();
        assert_eq!(gate.state().running, 1);
        drop((turn, last));
        assert_eq!(gate.state().running, 0);
        assert!(gate.state().waiting.is_empty());
    }

    #[test]
    fn who_has_a_turn_is_woken() {
        use std::sync::atomic::{AtomicUsize, Ordering};

        struct Count(AtomicUsize);

        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }

        let gate = Gate::new(2);
        let [one, two] = [1, 1].map(|party| now(&mut gate.turn(party)).unwrap());
        let woken = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut third = gate.turn(1);
        let polled = Pin::new(&mut third).poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        drop(one);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        drop(two);
        assert!(now(&mut third).is_some());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        drop(third);
        assert_eq!(gate.state().running, 0);
    }

    fn drained(turns: &mut Turns<char, u32>) -> Vec<u32> {
        std::iter::from_fn(|| turns.pop()).collect()
    }

    #[test]
    fn parties_take_turns_whatever_one_of_them_brings() {
        let mut turns = Turns::default();
        for (party, entry) in [('a', 1), ('a', 2), ('a', 3), ('b', 4), ('c', 5), ('b', 6)] {
            turns.push(party, entry);
        }
        assert_eq!(turns.len(), 6);
        assert_eq!(drained(&mut turns), [1, 4, 5, 2, 6, 3]);
        assert!(turns.is_empty() && turns.lines.is_empty() && turns.order.is_empty());
    }

    #[test]
    fn what_is_removed_takes_nobodys_turn() {
        let mut turns = Turns::default();
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
        assert!(turns.lines.is_empty() && turns.order.is_empty());
    }
}
