//! Which copy gives its slot up, and to which copy: a pure choice, time passed in.
//!
//! Slots are shared by host first, then by repository of a host. A copy that waits takes a slot
//! from those who have more of them than its own host has (of the same host: than its repository
//! has):
//!
//! 1. At once from a slow copy, if the copy that waits never ran.
//! 2. From a copy that ran for a quantum, if the copy that waits never ran, and the other one has
//!    more than its share: the slots, divided by those who claim any.
//! 3. From a copy that ran for a quantum, if who waits has no slot at all. When the copy that waits
//!    ran before, the quantum doubles with each time that both of them were preempted.
//!
//! Of several, the host with most slots gives, the slowest copy of it if one is slow, else one of
//! the repository with most, else the one that runs longest.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use holdfast_api::fill::Priority;
use tokio::time::Instant;

use super::{Running, SlotState, State, Waiter, rank};
use crate::flow::SLOW;

/// How long a copy that is not slow keeps its slot when another host should have it.
const HOST_QUANTUM: Duration = Duration::from_secs(5);
/// The same for repositories of one host, which usually send equally fast: a copy that goes on
/// later costs another request.
const REPOSITORY_QUANTUM: Duration = Duration::from_secs(30);
/// A quantum doubles so often at most.
const DOUBLED: u32 = 10;

/// What a host has, and its repositories that copy or want to, each with its slots.
#[derive(Default)]
struct Share<'a> {
    slots: usize,
    repositories: HashMap<&'a str, usize>,
}

/// What the copies under way have, as if those that give their slots up were gone already, and
/// those that get them had them. Every host and repository that copies or wants to is there.
#[derive(Default)]
struct Shares<'a> {
    hosts: HashMap<&'a str, Share<'a>>,
}

impl<'a> Shares<'a> {
    fn of(state: &'a State) -> Self {
        let mut shares = Self::default();
        for waiter in state.queue.values() {
            shares.add(&waiter.host, &waiter.repository, 0);
        }
        for one in state.under_way.values() {
            let Some(slot) = &one.slot else { continue };
            match slot.gives_to.map(|waiter| state.queue.get(&waiter)) {
                None => shares.add(&one.host, &one.repository, 1),
                Some(Some(waiter)) => shares.add(&waiter.host, &waiter.repository, 1),
                Some(None) => {}
            }
        }
        shares
    }

    fn add(&mut self, host: &'a str, repository: &'a str, slots: usize) {
        let share = self.hosts.entry(host).or_default();
        share.slots += slots;
        *share.repositories.entry(repository).or_default() += slots;
    }

    fn remove(&mut self, host: &str, repository: &str) {
        if let Some(share) = self.hosts.get_mut(host) {
            share.slots = share.slots.saturating_sub(1);
            if let Some(held) = share.repositories.get_mut(repository) {
                *held = held.saturating_sub(1);
            }
        }
    }

    fn host(&self, host: &str) -> usize {
        self.hosts.get(host).map_or(0, |share| share.slots)
    }

    fn repository(&self, host: &str, repository: &str) -> usize {
        let share = self.hosts.get(host);
        let held = share.and_then(|share| share.repositories.get(repository));
        held.copied().unwrap_or(0)
    }

    /// Repositories of a host that copy or want to.
    fn repositories(&self, host: &str) -> usize {
        self.hosts
            .get(host)
            .map_or(0, |share| share.repositories.len())
    }
}

/// Those that wait and may preempt, in order: the first of each repository, and of each host no
/// more than it may have slots.
fn preempting<'a>(state: &'a State, served: &BTreeSet<u64>, each: usize) -> Vec<(u64, &'a Waiter)> {
    let mut waiting: Vec<(u64, &Waiter)> = state
        .queue
        .iter()
        .filter(|(at, waiter)| {
            waiter.priority.level() == Priority::Blocking && !served.contains(at)
        })
        .map(|(at, waiter)| (*at, waiter))
        .collect();
    waiting.sort_by_cached_key(|(at, waiter)| state.place(*at, waiter));
    let mut seen: HashMap<&str, HashSet<(&str, bool)>> = HashMap::new();
    waiting.retain(|(_, waiter)| {
        let of_host = seen.entry(&waiter.host).or_default();
        // One that never ran may take what one that ran before may not.
        let kind = (waiter.repository.as_str(), waiter.yielded == 0);
        of_host.len() < 2 * each && of_host.insert(kind)
    });
    waiting
}

/// Pairs of a copy that gives its slot up and of one that waits. `slots`: over all and for each
/// host.
pub(super) fn choose(
    state: &mut State,
    (all, each): (usize, usize),
    now: Instant,
) -> Vec<(u64, u64)> {
    // A copy that another replica makes for a client here has no slot to give.
    let mut rates: HashMap<u64, u64> = HashMap::new();
    let mut served = BTreeSet::new();
    for (at, one) in &mut state.under_way {
        if let Some(slot) = &mut one.slot {
            rates.extend(slot.rated.look(slot.flow.sample()).map(|rate| (*at, rate)));
            served.extend(slot.gives_to);
        }
    }
    let state = &*state;
    let mut running: Vec<(u64, &Running, &SlotState)> = state
        .under_way
        .iter()
        .filter_map(|(at, one)| Some((*at, one, one.slot.as_ref()?)))
        .filter(|(_, _, slot)| slot.gives_to.is_none())
        .collect();
    let mut shares = Shares::of(state);
    let mut chosen: Vec<(u64, u64)> = Vec::new();
    for (at, waiter) in preempting(state, &served, each) {
        let rate = |running: u64| rates.get(&running).copied();
        let victim = running
            .iter()
            .enumerate()
            .filter(|(_, (running, one, slot))| {
                let victim = (*one, *slot, rate(*running));
                may_give(&shares, victim, waiter, (all, each), now)
            })
            .max_by_key(|(_, (running, one, slot))| {
                let slowness = Reverse(rate(*running).unwrap_or(SLOW).min(SLOW));
                let of_repository = shares.repository(&one.host, &one.repository);
                let longest = Reverse((slot.since, *running));
                (shares.host(&one.host), slowness, of_repository, longest)
            })
            .map(|(index, _)| index);
        if let Some(index) = victim {
            let (victim, one, _) = running.swap_remove(index);
            chosen.push((victim, at));
            shares.remove(&one.host, &one.repository);
            shares.add(&waiter.host, &waiter.repository, 1);
        }
    }
    chosen
}

/// Whether a copy under way, with its rate, should give its slot up to one that waits.
fn may_give(
    shares: &Shares<'_>,
    (one, slot, rate): (&Running, &SlotState, Option<u64>),
    waiter: &Waiter,
    (all, each): (usize, usize),
    now: Instant,
) -> bool {
    if rank(one.priority.level()) < rank(waiter.priority.level()) {
        return false;
    }
    let same_host = one.host == waiter.host;
    let is_capped = shares.host(&waiter.host) >= each;
    if is_capped && !same_host {
        return false;
    }
    // In relation to what waits: a host gives to one that has fewer slots, and so does a
    // repository.
    let (has, wants) = if same_host {
        (
            shares.repository(&one.host, &one.repository),
            shares.repository(&waiter.host, &waiter.repository),
        )
    } else {
        (shares.host(&one.host), shares.host(&waiter.host))
    };
    if has <= wants {
        return false;
    }
    let never_ran = waiter.yielded == 0;
    if never_ran && rate.is_some_and(|rate| rate < SLOW) {
        return true;
    }
    let (slots, claimants, quantum) = if same_host {
        let of_host = shares.repositories(&waiter.host);
        (each.min(all), of_host, REPOSITORY_QUANTUM)
    } else {
        (all, shares.hosts.len(), HOST_QUANTUM)
    };
    let share = slots.div_ceil(claimants.max(1)).max(wants + 1);
    let doubled = waiter.yielded.min(slot.yielded).min(DOUBLED);
    (wants == 0 || (never_ran && has > share))
        && now.duration_since(slot.since) >= quantum * (1 << doubled)
}
