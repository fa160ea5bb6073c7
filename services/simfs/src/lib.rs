//! A simulated file system for tests of the store, in memory. A run is repeatable by its seed, and
//! has all faults that real file systems may have.
//!
//! - A loss of power keeps what was synced. For the rest, each write is kept whole, torn or not at
//!   all, and each change of a directory is kept or lost, at random and in any combination.
//! - With [`Faults::stale_ms`] every client has caches of its own, as on a network mount: names,
//!   also absent ones, and attributes are remembered for that long; an open asks the server
//!   (close-to-open). A file that another client removed is stale (ESTALE), one that the same
//!   client has open becomes `.nfsXXXX`.
//! - Calls fail, take part of the bytes, or succeed and report a failure, at chosen rates. After a
//!   sync that failed the pages count as clean, as on Linux: a second sync succeeds and writes
//!   nothing.
//! - One thread runs at a time ([`SimFs::schedule_threads`]); at every call another one may go on.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use parking_lot::{Mutex, MutexGuard};

mod caches;
mod calls;
mod client;
mod files;
mod interruption;
mod rng;
mod scheduler;
mod tree;

pub use client::SimVolume;
pub use rng::Rng;

use caches::Caches;
use interruption::Interruption;
use scheduler::Scheduler;
use tree::Tree;

/// What goes wrong, and how often: rates are of ten thousand calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A call fails and does nothing (EIO); a sync loses what it should have written.
    pub io: u32,
    /// A call that needs room fails (ENOSPC).
    pub no_space: u32,
    /// Syncs of files lose what they should write, and files cannot be removed (EIO).
    pub worn_out: bool,
    /// No block is left: new folders, new files and bytes fail (ENOSPC), names find a place.
    pub full: bool,
    /// A file that grows beyond this number of bytes finds no block (ENOSPC).
    pub longest_file: Option<u64>,
    /// A read or a write handles fewer bytes than it could.
    pub short: u32,
    /// A change is made, and its reply is lost: the repeated request finds it done and reports
    /// "exists" or "not found", or the caller gets EIO.
    pub lost_reply: u32,
    /// A caller stands still before its call, for longer than a lock lives, while the others go
    /// on.
    pub stall: u32,
    /// For how long a client may believe what it knows; 0 = one machine, no caches.
    pub stale_ms: u64,
    /// Broken on purpose, to see that the checker finds it: syncs of directories do nothing.
    pub skip_dir_syncs: bool,
    /// Broken on purpose: syncs of files do nothing.
    pub skip_file_syncs: bool,
}

/// How long a caller stands still on the volume's clock: a lock of the store lives for 15 s without
/// its owner.
const STALL_MS: u64 = 20_000;

/// The server, and the clients that mount it.
#[derive(Clone, Debug)]
pub struct SimFs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    scheduler: Mutex<Arc<OnceLock<Scheduler>>>,
}

#[derive(Debug)]
struct State {
    tree: Tree,
    rng: Rng,
    faults: Faults,
    clients: Vec<Client>,
    now_ms: u64,
    calls: u64,
    power_cut_at: Option<u64>,
    kill_at: Option<(u64, usize)>,
    interruption: Option<Interruption>,
    down: bool,
    trace: Option<Vec<String>>,
}

#[derive(Debug, Default)]
struct Client {
    /// Grows with every start; handles of an earlier one are dead.
    boot: u64,
    dead: bool,
    caches: Caches,
}

impl SimFs {
    /// An empty volume with this number of clients.
    pub fn new(seed: u64, clients: usize, faults: Faults) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    tree: Tree::new(),
                    rng: Rng::new(seed),
                    faults,
                    clients: (0..clients).map(|_| Client::default()).collect(),
                    now_ms: 1_700_000_000_000,
                    calls: 0,
                    power_cut_at: None,
                    kill_at: None,
                    interruption: None,
                    down: false,
                    trace: None,
                }),
                scheduler: Mutex::default(),
            }),
        }
    }

    /// The volume as one client sees it.
    pub fn client(&self, client: usize) -> SimVolume {
        let boot = self.state().clients[client].boot;
        SimVolume::new(Arc::clone(&self.shared), client, boot)
    }

    /// Changes what goes wrong from now on; whether clients have caches stays as it was.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.state();
        state.faults = Faults {
            stale_ms: state.faults.stale_ms,
            ..faults
        };
    }

    /// Power fails at the call with this number from now on.
    pub fn cut_power_in(&self, calls: u64) {
        let mut state = self.state();
        state.power_cut_at = Some(state.calls + calls);
    }

    /// One client's process ends at the call with this number from now on; what it wrote stays.
    pub fn kill_in(&self, calls: u64, client: usize) {
        let mut state = self.state();
        state.kill_at = Some((state.calls + calls, client));
    }

    /// Runs `work` before the call with this number from now on, of any client. It may make calls
    /// itself.
    pub fn before_call(&self, calls: u64, work: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        state.interruption = Some(Interruption {
            at: state.calls + calls,
            work: Box::new(work),
        });
    }

    /// Cancels the work of [`SimFs::before_call`]; `false` if it was done already.
    pub fn cancel_before_call(&self) -> bool {
        self.state().interruption.take().is_some()
    }

    /// Whether power failed.
    pub fn is_down(&self) -> bool {
        self.state().down
    }

    /// Whether the client was killed, or power failed.
    pub fn is_dead(&self, client: usize) -> bool {
        let state = self.state();
        state.down || state.clients[client].dead
    }

    /// Power fails now.
    pub fn cut_power(&self) {
        self.state().cut_power();
    }

    /// Power is back, and the clients that ended start again with empty caches. Handles from before
    /// are dead.
    pub fn restart(&self) {
        let mut state = self.state();
        let down = std::mem::take(&mut state.down);
        state.power_cut_at = None;
        state.kill_at = None;
        for client in &mut state.clients {
            if down || client.dead {
                *client = Client {
                    boot: client.boot + 1,
                    ..Client::default()
                };
            }
        }
    }

    /// Lets time pass on the volume's clock.
    pub fn advance_ms(&self, ms: u64) {
        self.state().now_ms += ms;
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Every file with its path, as the server has it.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        self.state().tree.files()
    }

    /// Keeps a line for each call from now on.
    pub fn start_trace(&self) {
        self.state().trace = Some(Vec::new());
    }

    /// Adds a line to the trace, if there is one.
    pub fn note(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.state().trace {
            trace.push(line());
        }
    }

    /// The lines so far.
    pub fn trace(&self) -> Vec<String> {
        self.state().trace.clone().unwrap_or_default()
    }

    /// From now on one thread of this number runs at a time, and another one may go on at a call,
    /// at this rate of ten thousand. Each thread calls [`SimFs::enter`] first.
    pub fn schedule_threads(&self, threads: usize, switch_of_10_000: u32) {
        let rng = Rng::new(self.state().rng.bits());
        let scheduler = OnceLock::from(Scheduler::new(threads, rng, switch_of_10_000));
        *self.shared.scheduler() = Arc::new(scheduler);
    }

    /// Waits until thread number `thread` is to run first. When the returned value is dropped, the
    /// other threads go on without this one.
    pub fn enter(&self, thread: usize) -> ScheduledThread {
        let scheduler = Arc::clone(&*self.shared.scheduler());
        if let Some(scheduler) = scheduler.get() {
            scheduler.enter(thread);
        }
        ScheduledThread(scheduler)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

/// A thread that runs when the scheduler says so, until this is dropped.
#[derive(Debug)]
pub struct ScheduledThread(Arc<OnceLock<Scheduler>>);

impl Drop for ScheduledThread {
    fn drop(&mut self) {
        if let Some(scheduler) = self.0.get() {
            scheduler.leave();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn scheduler(&self) -> MutexGuard<'_, Arc<OnceLock<Scheduler>>> {
        self.scheduler.lock()
    }

    /// May let other threads go on first.
    fn step(&self) {
        let interruption = {
            let mut state = self.state();
            let next = state.calls + 1;
            state.interruption.take_if(|other| other.at <= next)
        };
        if let Some(interruption) = interruption {
            (interruption.work)();
        }
        let stalls = {
            let mut state = self.state();
            let rate = state.faults.stall;
            let stalls = state.rng.chance(rate);
            if stalls {
                state.now_ms += STALL_MS;
                state.line(|| "---- the next caller stands still".to_owned());
            }
            stalls
        };
        let scheduler = Arc::clone(&*self.scheduler());
        if let Some(scheduler) = scheduler.get() {
            scheduler.step(stalls);
        }
    }
}

impl State {
    fn cut_power(&mut self) {
        let mut rng = self.rng.clone();
        self.tree.cut_power(&mut rng);
        self.rng = rng;
        self.down = true;
        self.line(|| "---- power fails".to_owned());
    }

    fn line(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    fn is_network(&self) -> bool {
        self.faults.stale_ms > 0
    }
}

/// The parts of an absolute path.
fn parts(path: &Path) -> impl Iterator<Item = &str> {
    path.to_str()
        .unwrap_or_default()
        .split('/')
        .filter(|part| !part.is_empty())
}
