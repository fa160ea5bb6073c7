//! Runs one thread at a time and chooses at every call, at random, which one goes on: threads
//! interleave, yet a run can be repeated.

use std::cell::Cell;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Rng;

thread_local! {
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Most calls that the other threads make while one is stalled.
const MAX_STALL_CALLS: usize = 200;

#[derive(Debug)]
pub(super) struct Scheduler {
    state: Mutex<State>,
    /// One for each thread, notified when it may run.
    wake_ups: Vec<Condvar>,
}

#[derive(Debug)]
struct State {
    running: usize,
    /// Which threads have not ended.
    alive: Vec<bool>,
    /// Calls of other threads for which a thread is stalled.
    stalled: Vec<usize>,
    rng: Rng,
    switch_of_10_000: u32,
}

impl Scheduler {
    pub(super) fn new(threads: usize, mut rng: Rng, switch_of_10_000: u32) -> Self {
        Self {
            wake_ups: (0..threads).map(|_| Condvar::new()).collect(),
            state: Mutex::new(State {
                running: rng.below(threads),
                alive: vec![true; threads],
                stalled: vec![0; threads],
                rng,
                switch_of_10_000,
            }),
        }
    }

    /// Makes the calling thread number `thread`, and waits until it may run.
    pub(super) fn enter(&self, thread: usize) {
        THREAD.set(Some(thread));
        drop(self.wait(self.state(), thread));
    }

    /// Ends the calling thread for the scheduler.
    pub(super) fn leave(&self) {
        let Some(thread) = THREAD.take() else { return };
        let mut state = self.state();
        state.alive[thread] = false;
        self.switch(&mut state);
    }

    /// May let another thread go on. A thread that stalls lets the others make many calls.
    pub(super) fn step(&self, stalls: bool) {
        let Some(thread) = THREAD.get() else { return };
        let mut state = self.state();
        for stalled in &mut state.stalled {
            *stalled = stalled.saturating_sub(1);
        }
        if stalls {
            state.stalled[thread] = state.rng.below(MAX_STALL_CALLS);
        }
        let rate = state.switch_of_10_000;
        if stalls || state.rng.chance(rate) {
            self.switch(&mut state);
            drop(self.wait(state, thread));
        }
    }

    fn switch(&self, state: &mut State) {
        let alive: Vec<_> = (0..state.alive.len())
            .filter(|thread| state.alive[*thread])
            .collect();
        let mut ready = alive.clone();
        ready.retain(|thread| state.stalled[*thread] == 0);
        let next = if ready.is_empty() { alive } else { ready };
        if !next.is_empty() {
            state.running = *state.rng.pick(&next);
            self.wake_ups[state.running].notify_one();
        }
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>, thread: usize) -> MutexGuard<'a, State> {
        while state.running != thread {
            self.wake_ups[thread].wait(&mut state);
        }
        state
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}
