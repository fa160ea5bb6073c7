//! Which copy gives its slot up, and for whom: a pure choice, time passed in.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use holdfast_api::fill::Need;
use tokio::time::Instant;

use super::{Running, State, Waiter, rank};
use crate::upstream::flow::SLOW;

/// How long a copy that is not slow keeps its slot though its host has more than its share.
const HOST_QUANTUM: Duration = Duration::from_secs(5);
/// The same for repositories of one host, which usually send equally fast: a copy that goes on later
/// costs another request.
const REPOSITORY_QUANTUM: Duration = Duration::from_secs(30);

/// What the copies under way have, as if those that give their slots up were gone already, and those that
/// get them had them.
struct Shares {
    hosts: HashMap<String, usize>,
    repositories: HashMap<(String, String), usize>,
}

impl Shares {
    fn of(state: &State) -> Self {
        let mut shares = Self {
            hosts: HashMap::new(),
            repositories: HashMap::new(),
        };
        for one in state.under_way.values() {
            let Some(slot) = &one.slot else { continue };
            match slot.gives_to.map(|waiter| state.queue.get(&waiter)) {
                None => shares.add(&one.host, &one.repository),
                Some(Some(waiter)) => shares.add(&waiter.host, &waiter.repository),
                Some(None) => {}
            }
        }
        shares
    }

    fn add(&mut self, host: &str, repository: &str) {
        *self.hosts.entry(host.to_owned()).or_default() += 1;
        let key = (host.to_owned(), repository.to_owned());
        *self.repositories.entry(key).or_default() += 1;
    }

    fn remove(&mut self, host: &str, repository: &str) {
        let key = (host.to_owned(), repository.to_owned());
        let held = [self.hosts.get_mut(host), self.repositories.get_mut(&key)];
        for held in held.into_iter().flatten() {
            *held = held.saturating_sub(1);
        }
    }

    fn host(&self, host: &str) -> usize {
        self.hosts.get(host).copied().unwrap_or(0)
    }

    fn repository(&self, host: &str, repository: &str) -> usize {
        let key = (host.to_owned(), repository.to_owned());
        self.repositories.get(&key).copied().unwrap_or(0)
    }
}

/// Pairs of a copy that gives its slot up and of one that waits. `slots`: over all and for each host.
pub(super) fn choose(
    state: &mut State,
    (all, each): (usize, usize),
    now: Instant,
) -> Vec<(u64, u64)> {
    // Of copies that have a slot here, where they are known.
    let mut rates: HashMap<u64, u64> = HashMap::new();
    let mut served = BTreeSet::new();
    for (at, one) in &mut state.under_way {
        if let Some(slot) = &mut one.slot {
            rates.extend(slot.rated.look(slot.flow.sample()).map(|rate| (*at, rate)));
            served.extend(slot.gives_to);
        }
    }
    let mut shares = Shares::of(state);
    let mut waiting: Vec<(u64, &Waiter)> = state
        .queue
        .iter()
        .filter(|(at, waiter)| {
            waiter.priority.need() == Need::Waiting && !waiter.yielded && !served.contains(at)
        })
        .map(|(at, waiter)| (*at, waiter))
        .collect();
    waiting.sort_by_key(|(at, waiter)| state.place(*at, waiter));
    let mut chosen: Vec<(u64, u64)> = Vec::new();
    for (at, waiter) in waiting.into_iter().take(all) {
        let victim = state
            .under_way
            .iter()
            .filter(|(running, one)| {
                !chosen.iter().any(|(victim, _)| victim == *running)
                    && may_give(
                        state,
                        &shares,
                        (one, rates.get(*running).copied()),
                        waiter,
                        (all, each),
                        now,
                    )
            })
            .max_by_key(|(running, one)| {
                let slowest = std::cmp::Reverse(rates.get(*running).copied().unwrap_or(u64::MAX));
                (shares.host(&one.host), slowest, **running)
            });
        if let Some((victim, one)) = victim {
            chosen.push((*victim, at));
            shares.remove(&one.host, &one.repository);
            shares.add(&waiter.host, &waiter.repository);
        }
    }
    chosen
}

/// Whether a copy under way, with its rate, should give its slot up to one that waits.
fn may_give(
    state: &State,
    shares: &Shares,
    (one, rate): (&Running, Option<u64>),
    waiter: &Waiter,
    (all, each): (usize, usize),
    now: Instant,
) -> bool {
    let Some(slot) = one.slot.as_ref().filter(|slot| slot.gives_to.is_none()) else {
        return false;
    };
    if rank(one.priority.need()) < rank(waiter.priority.need()) {
        return false;
    }
    let same_host = one.host == waiter.host;
    let is_capped = shares.host(&waiter.host) >= each;
    if is_capped && !same_host {
        return false;
    }
    // In relation to what waits: a host gives to one that has fewer slots, and so does a repository.
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
    if rate.is_some_and(|rate| rate < SLOW) {
        return true;
    }
    let (slots, claimants, quantum) = if same_host {
        let of_host = repositories(state, &waiter.host);
        (each.min(all), of_host, REPOSITORY_QUANTUM)
    } else {
        (all, hosts(state), HOST_QUANTUM)
    };
    let share = slots.div_ceil(claimants.max(1)).max(wants + 1);
    has > share && now.duration_since(slot.since) >= quantum
}

/// Hosts that copy or want to.
fn hosts(state: &State) -> usize {
    let running = state.under_way.values().filter(|one| one.slot.is_some());
    let waiting = state.queue.values().map(|waiter| &waiter.host);
    let all: BTreeSet<_> = running.map(|one| &one.host).chain(waiting).collect();
    all.len()
}

/// Repositories of a host that are copied or want to be.
fn repositories(state: &State, host: &str) -> usize {
    let running = state.under_way.values();
    let running = running.filter(|one| one.slot.is_some() && one.host == host);
    let waiting = state.queue.values().filter(|waiter| waiter.host == host);
    let all: BTreeSet<_> = running
        .map(|one| &one.repository)
        .chain(waiting.map(|waiter| &waiter.repository))
        .collect();
    all.len()
}
