//! One thread runs at a time, and chance decides at every call who goes on: threads interleave, yet
//! a run can be repeated.

use std::cell::Cell;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Rng;

thread_local! {
    static SEAT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Most calls that the others make while one stands still.
const MAX_STALL_CALLS: usize = 200;

#[derive(Debug)]
pub(super) struct Turns {
    table: Mutex<Table>,
    called: Vec<Condvar>,
}

#[derive(Debug)]
struct Table {
    current: usize,
    present: Vec<bool>,
    /// Calls of others for which a seat stands still.
    still: Vec<usize>,
    rng: Rng,
    switch_of_10_000: u32,
}

impl Turns {
    pub(super) fn new(seats: usize, mut rng: Rng, switch_of_10_000: u32) -> Self {
        Self {
            called: (0..seats).map(|_| Condvar::new()).collect(),
            table: Mutex::new(Table {
                current: rng.below(seats),
                present: vec![true; seats],
                still: vec![0; seats],
                rng,
                switch_of_10_000,
            }),
        }
    }

    /// Waits for the seat's first turn.
    pub(super) fn enter(&self, seat: usize) {
        SEAT.set(Some(seat));
        drop(self.wait(self.table(), seat));
    }

    /// Gives the turn away for good.
    pub(super) fn leave(&self) {
        let Some(seat) = SEAT.take() else { return };
        let mut table = self.table();
        table.present[seat] = false;
        self.pass(&mut table);
    }

    /// Perhaps lets another thread go on; one that stalls lets the others make many calls.
    pub(super) fn step(&self, stalls: bool) {
        let Some(seat) = SEAT.get() else { return };
        let mut table = self.table();
        for still in &mut table.still {
            *still = still.saturating_sub(1);
        }
        if stalls {
            table.still[seat] = table.rng.below(MAX_STALL_CALLS);
        }
        let rate = table.switch_of_10_000;
        if stalls || table.rng.chance(rate) {
            self.pass(&mut table);
            drop(self.wait(table, seat));
        }
    }

    fn pass(&self, table: &mut Table) {
        let present: Vec<_> = (0..table.present.len())
            .filter(|seat| table.present[*seat])
            .collect();
        let mut ready = present.clone();
        ready.retain(|seat| table.still[*seat] == 0);
        let next = if ready.is_empty() { present } else { ready };
        if !next.is_empty() {
            table.current = *table.rng.pick(&next);
            self.called[table.current].notify_one();
        }
    }

    fn wait<'a>(&self, mut table: MutexGuard<'a, Table>, seat: usize) -> MutexGuard<'a, Table> {
        while table.current != seat {
            self.called[seat].wait(&mut table);
        }
        table
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }
}
