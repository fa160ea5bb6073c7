//! The memory of manifests that arrive: a budget of bytes for the process, and a share of it for
//! each host, so that a slow host does not delay others.
//!
//! Waiting manifests get bytes in order: the host that holds the fewest first, then by arrival.
//! While the first of them waits, a manifest of a host that holds more than its own host is cut off
//! when it has been arriving for longer than [`MANIFEST_CUT_AFTER`]: the host with the most first,
//! and its oldest manifest.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use holdfast_core::Digest;
use holdfast_runtime::CancellationToken;
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::oneshot, time::Instant};

use crate::limits::{MANIFEST_CUT_AFTER, MANIFEST_MEMORY, MANIFEST_MEMORY_PER_HOST};

/// The unit of the budget, bytes.
const UNIT: u64 = 1 << 10;
/// How often a waiting request looks for a manifest to cut.
const CUT_EVERY: Duration = Duration::from_millis(100);

/// The budget. Clones share it.
#[derive(Clone, Debug)]
pub struct Memory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    all: u64,
    per_host: u64,
    state: Mutex<State>,
}

/// In units.
#[derive(Debug, Default)]
struct State {
    used: u64,
    hosts: HashMap<Arc<str>, u64>,
    arrivals: u64,
    /// By host, then by arrival.
    waiting: BTreeMap<(Arc<str>, u64), Waiting>,
    arriving: BTreeMap<u64, Arriving>,
}

#[derive(Debug)]
struct Waiting {
    units: u64,
    give: oneshot::Sender<CancellationToken>,
}

#[derive(Debug)]
struct Arriving {
    host: Arc<str>,
    units: u64,
    since: Instant,
    cut: CancellationToken,
}

/// Units that are in use until this is dropped.
#[derive(Debug)]
struct Allocation {
    shared: Arc<Shared>,
    host: Arc<str>,
    units: u64,
}

/// A place among those that wait, or whose manifest arrives, until this is dropped.
struct Place {
    shared: Arc<Shared>,
    host: Arc<str>,
    at: u64,
}

/// Bytes of the budget that are in use until the last clone of this is dropped.
#[derive(Clone, Debug, Default)]
pub struct Reserved {
    _held: Option<Arc<Allocation>>,
}

/// A manifest whose bytes were verified.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Computed from the bytes, not taken from a header.
    pub digest: Digest,
    /// The exact bytes.
    pub bytes: Bytes,
    /// Its part of the memory of manifests.
    _reserved: Reserved,
}

impl PartialEq for Manifest {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.bytes == other.bytes
    }
}

impl Eq for Manifest {}

impl Manifest {
    /// A verified manifest, with what it takes of the memory: nothing where it was read from the
    /// volume.
    pub fn new(digest: Digest, bytes: Bytes, reserved: Reserved) -> Self {
        Self {
            digest,
            bytes,
            _reserved: reserved,
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(MANIFEST_MEMORY, MANIFEST_MEMORY_PER_HOST)
    }
}

impl State {
    fn held(&self, host: &str) -> u64 {
        self.hosts.get(host).copied().unwrap_or(0)
    }

    fn take(&mut self, host: &Arc<str>, units: u64) {
        self.used += units;
        *self.hosts.entry(Arc::clone(host)).or_default() += units;
    }

    fn give_back(&mut self, host: &str, units: u64) {
        self.used = self.used.saturating_sub(units);
        if let Some(held) = self.hosts.get_mut(host) {
            *held = held.saturating_sub(units);
            if *held == 0 {
                self.hosts.remove(host);
            }
        }
    }

    /// Which request gets bytes next: one whose host has its share already does not.
    fn next(&self, per_host: u64) -> Option<(Arc<str>, u64)> {
        let mut of_host: Option<(&str, u64)> = None;
        let waiting = self.waiting.iter().filter_map(|((host, at), waiting)| {
            let held = match of_host {
                Some((known, held)) if known == &**host => held,
                _ => self.held(host),
            };
            of_host = Some((host, held));
            (held + waiting.units <= per_host).then_some((held, *at, host))
        });
        let (_, at, host) = waiting.min_by_key(|(held, at, _)| (*held, *at))?;
        Some((Arc::clone(host), at))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Gives those that wait what there is, in order.
    fn grant(&self, state: &mut State) {
        while let Some(next) = state.next(self.per_host) {
            let fits = |waiting: &Waiting| state.used + waiting.units <= self.all;
            if !state.waiting.get(&next).is_some_and(fits) {
                return;
            }
            let Some(Waiting { units, give }) = state.waiting.remove(&next) else {
                return;
            };
            let (host, at) = next;
            let cut = CancellationToken::new();
            if give.send(cut.clone()).is_err() {
                continue;
            }
            state.take(&host, units);
            let since = Instant::now();
            let arriving = Arriving {
                host,
                units,
                since,
                cut,
            };
            state.arriving.insert(at, arriving);
        }
    }

    /// Cuts what takes too long, as far as the one that waits needs it and is the next.
    fn cut_for(&self, place: &(Arc<str>, u64), now: Instant) {
        let state = self.lock();
        let Some(waiting) = state.waiting.get(place) else {
            return;
        };
        let wants = state.held(&place.0);
        // Many of a host that has its share may wait; they need not look at each other.
        if self.per_host < wants + waiting.units
            || state.next(self.per_host).as_ref() != Some(place)
        {
            return;
        }
        let (mut held, mut free) = (state.hosts.clone(), self.all.saturating_sub(state.used));
        for cut in state.arriving.values().filter(|one| one.cut.is_cancelled()) {
            free += cut.units;
            let of_host = held.entry(Arc::clone(&cut.host)).or_default();
            *of_host = of_host.saturating_sub(cut.units);
        }
        while free < waiting.units {
            let of_host = |host: &str| held.get(host).copied().unwrap_or(0);
            let late = state.arriving.iter().filter(|(_, one)| {
                !one.cut.is_cancelled()
                    && of_host(&one.host) > wants
                    && now.duration_since(one.since) >= MANIFEST_CUT_AFTER
            });
            let of_whom = late.max_by_key(|(at, one)| (of_host(&one.host), Reverse(**at)));
            let Some((_, victim)) = of_whom else {
                return;
            };
            tracing::debug!(upstream.host = %victim.host, "a manifest that arrives slowly is cut");
            victim.cut.cancel();
            free += victim.units;
            let of_host = held.entry(Arc::clone(&victim.host)).or_default();
            *of_host = of_host.saturating_sub(victim.units);
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.give_back(&self.host, self.units);
        self.shared.grant(&mut state);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.waiting.remove(&self.key());
        if let Some(left) = state.arriving.remove(&self.at) {
            state.give_back(&left.host, left.units);
        }
        self.shared.grant(&mut state);
    }
}

impl Place {
    fn key(&self) -> (Arc<str>, u64) {
        (Arc::clone(&self.host), self.at)
    }

    /// All has arrived: of what was taken, this many units stay in use.
    fn keep(self, units: u64) -> Reserved {
        let mut state = self.shared.lock();
        let held = state.arriving.remove(&self.at).map(|arrived| {
            let units = units.min(arrived.units);
            state.give_back(&arrived.host, arrived.units - units);
            Arc::new(Allocation {
                shared: Arc::clone(&self.shared),
                host: arrived.host,
                units,
            })
        });
        drop(state);
        Reserved { _held: held }
    }
}

impl Memory {
    /// A budget of `all` bytes, `per_host` of them for one host.
    pub fn new(all: u64, per_host: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                all: all.div_ceil(UNIT),
                per_host: per_host.min(all).div_ceil(UNIT),
                state: Mutex::default(),
            }),
        }
    }

    /// Waits for `most` bytes of the budget and of the host's share of it, reads, and gives back
    /// what the outcome's length leaves over.
    ///
    /// # Errors
    /// What `read` says; what `cut` says when it took too long while another host's manifest
    /// waited.
    pub async fn hold<E>(
        &self,
        host: &str,
        most: u64,
        cut: impl FnOnce() -> E,
        read: impl Future<Output = Result<Bytes, E>>,
    ) -> Result<(Bytes, Reserved), E> {
        let units = most.div_ceil(UNIT).min(self.shared.per_host);
        let (place, mut told) = self.enter(host, units);
        let is_cut = loop {
            tokio::select! {
                biased;
                told = &mut told => break told.unwrap_or_default(),
                () = tokio::time::sleep(CUT_EVERY) => {
                    self.shared.cut_for(&place.key(), Instant::now());
                }
            }
        };
        let bytes = {
            // Its bytes are dropped before what they took is given back.
            let read = pin!(read);
            tokio::select! {
                biased;
                read = read => read?,
                () = is_cut.cancelled() => return Err(cut()),
            }
        };
        let units = (bytes.len() as u64).div_ceil(UNIT);
        Ok((bytes, place.keep(units)))
    }

    /// As [`Memory::hold`], for one that waits for its bytes no longer than `wait`. `refuse` is
    /// also what one that is cut ends with.
    pub async fn hold_within<E>(
        &self,
        wait: Duration,
        (host, most): (&str, u64),
        refuse: impl Fn() -> E,
        read: impl Future<Output = Result<Bytes, E>>,
    ) -> Result<(Bytes, Reserved), E> {
        let (begin, begun) = oneshot::channel();
        let read = async {
            begin.send(()).ok();
            read.await
        };
        let mut held = Box::pin(self.hold(host, most, &refuse, read));
        tokio::select! {
            biased;
            outcome = &mut held => return outcome,
            begun = tokio::time::timeout(wait, begun) => if begun.is_err() {
                return Err(refuse());
            },
        }
        held.await
    }

    fn enter(&self, host: &str, units: u64) -> (Place, oneshot::Receiver<CancellationToken>) {
        let (give, told) = oneshot::channel();
        let mut state = self.shared.lock();
        state.arrivals += 1;
        let at = state.arrivals;
        let host: Arc<str> = host.into();
        let waiting = Waiting { units, give };
        state.waiting.insert((Arc::clone(&host), at), waiting);
        self.shared.grant(&mut state);
        let shared = Arc::clone(&self.shared);
        (Place { shared, host, at }, told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    async fn hold(memory: &Memory, host: &str, most: u64, bytes: usize) -> Reserved {
        let read = async { Ok::<_, ()>(Bytes::from(vec![0; bytes])) };
        memory.hold(host, most, || (), read).await.unwrap().1
    }

    #[tokio::test]
    async fn a_host_takes_its_share_and_all_hosts_the_whole() {
        let memory = Memory::new(8 * UNIT, 4 * UNIT);
        let unit = usize::try_from(UNIT).unwrap();
        let first = hold(&memory, "one", 4 * UNIT, 4 * unit).await;
        let mut next = std::pin::pin!(hold(&memory, "one", 1, 1));
        assert!(
            next.as_mut().now_or_never().is_none(),
            "the share is used up"
        );
        // What was announced and did not come is free again.
        let other = hold(&memory, "two", 4 * UNIT, unit).await;
        let third = hold(&memory, "two", 3 * UNIT, 3 * unit).await;
        assert!(
            hold(&memory, "three", 1, 1).now_or_never().is_none(),
            "all is used up"
        );
        drop(first.clone());
        assert!(
            hold(&memory, "three", 1, 1).now_or_never().is_none(),
            "a clone is left"
        );
        drop(first);
        next.await;
        drop((other, third));
        hold(&memory, "three", 4 * UNIT, 0).await;
    }

    #[tokio::test]
    async fn what_is_larger_than_a_share_waits_for_all_of_it() {
        let memory = Memory::new(4 * UNIT, 2 * UNIT);
        let small = hold(&memory, "one", 1, 1).await;
        assert!(hold(&memory, "one", 100 * UNIT, 1).now_or_never().is_none());
        drop(small);
        hold(&memory, "one", 100 * UNIT, 1).await;
    }

    /// A manifest of which nothing arrives; `true`: it was cut.
    async fn stall(memory: &Memory, host: &str, most: u64) -> bool {
        let read = std::future::pending();
        memory.hold(host, most, || (), read).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn slow_manifests_are_cut_while_another_host_waits() {
        let memory = Memory::new(8 * UNIT, 4 * UNIT);
        let stalled = ["one", "two"].map(|host| {
            let memory = memory.clone();
            tokio::spawn(async move { stall(&memory, host, 4 * UNIT).await })
        });
        tokio::task::yield_now().await;
        // Its own host has its share: no other host gives way to it.
        let mut same = std::pin::pin!(hold(&memory, "one", 1, 1));
        let soon = tokio::time::timeout(MANIFEST_CUT_AFTER * 10, same.as_mut()).await;
        assert!(soon.is_err());
        assert!(stalled.iter().all(|one| !one.is_finished()));
        let begun = Instant::now();
        let three = hold(&memory, "three", 2 * UNIT, 2 * 1024);
        let three = tokio::time::timeout(Duration::from_secs(60), three)
            .await
            .expect("served");
        assert!(begun.elapsed() <= 2 * CUT_EVERY, "they are late already");
        tokio::task::yield_now().await;
        let [one, two] = stalled;
        assert!(one.await.unwrap(), "the oldest");
        assert!(!two.is_finished(), "no more than is needed");
        same.await;
        drop(three);
        two.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_manifest_has_its_time_before_it_is_cut() {
        let memory = Memory::new(4 * UNIT, 4 * UNIT);
        let mut slow = std::pin::pin!(stall(&memory, "one", 4 * UNIT));
        assert!(slow.as_mut().now_or_never().is_none());
        let begun = Instant::now();
        let other = async { drop(hold(&memory, "two", 1, 1).await) };
        let both = async { tokio::join!(slow, other) };
        let both = tokio::time::timeout(Duration::from_secs(60), both).await;
        let (is_cut, ()) = both.expect("one is cut, the other one served");
        let took = begun.elapsed();
        assert!(is_cut && took >= MANIFEST_CUT_AFTER);
        assert!(took <= MANIFEST_CUT_AFTER + 3 * CUT_EVERY);
    }
}
