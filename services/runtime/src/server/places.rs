//! The connections of a listener: how many there are in all and of each address, and which one ends when a newcomer needs its place.
//!
//! A full listener shares its places as evenly among addresses as their clients' behaviour allows. Connections without a request go
//! first, those that proved no identity before those that did, and a connection with a request under way goes only for an address
//! that has fewer. So no set of addresses keeps another one out.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Limits;
use super::watch::{Activity, Watch};

/// The places of a listener. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Places {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    most: usize,
    most_of_address: usize,
    recycles: bool,
    table: Mutex<Table>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    taken: HashMap<u64, (IpAddr, Arc<Watch>)>,
    of_address: HashMap<IpAddr, usize>,
    next: u64,
}

/// The place of one connection; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    id: u64,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// The address has as many connections as one may have.
    Address,
    /// All places are taken by connections that are not to end for this one.
    Full,
}

impl Places {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            inner: Arc::new(Inner {
                most: crate::descriptors::connections(limits.connections),
                most_of_address: limits.connections_per_address,
                recycles: limits.recycles,
                table: Mutex::default(),
                freed: Notify::new(),
            }),
        }
    }

    /// A place for a connection of `address`. When all are taken, the connection that has the least claim to its own is told to end.
    pub(super) fn enter(&self, address: IpAddr, watch: &Arc<Watch>) -> Result<Place, NoPlace> {
        let key = client_address(address);
        let mut table = self.table();
        if self.inner.most_of_address <= table.count(key) {
            return Err(NoPlace::Address);
        }
        if self.inner.most <= table.taken.len() {
            let candidates: Vec<_> = table
                .taken
                .iter()
                .map(|(id, (key, watch))| Candidate {
                    id: *id,
                    key: *key,
                    activity: watch.activity(),
                })
                .collect();
            let id = evicted(&candidates, key, self.inner.recycles).ok_or(NoPlace::Full)?;
            if let Some(watch) = table.leave(id) {
                watch.evict();
            }
        }
        let id = table.next;
        table.next += 1;
        table.taken.insert(id, (key, Arc::clone(watch)));
        *table.of_address.entry(key).or_insert(0) += 1;
        drop(table);
        Ok(Place {
            places: self.clone(),
            id,
        })
    }

    /// Ends when a place was given back.
    pub(super) async fn freed(&self) {
        self.inner.freed.notified().await;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.inner
            .table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn count(&self, key: IpAddr) -> usize {
        self.of_address.get(&key).copied().unwrap_or(0)
    }

    fn leave(&mut self, id: u64) -> Option<Arc<Watch>> {
        let (key, watch) = self.taken.remove(&id)?;
        if let Some(count) = self.of_address.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.of_address.remove(&key);
            }
        }
        Some(watch)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.table().leave(self.id);
        self.places.inner.freed.notify_one();
    }
}

/// A connection as the choice sees it.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u64,
    key: IpAddr,
    activity: Activity,
}

/// Which connection ends for one more of `newcomer`; `None` when none has less claim to a place than the newcomer. Pure.
fn evicted(candidates: &[Candidate], newcomer: IpAddr, recycles: bool) -> Option<u64> {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for candidate in candidates {
        *counts.entry(candidate.key).or_insert(0) += 1;
    }
    let count = |key: IpAddr| counts.get(&key).copied().unwrap_or(0);
    let has = count(newcomer);
    candidates
        .iter()
        .filter(|candidate| {
            // Taking a place from an address that has only one more would just swap the two.
            recycles || !candidate.activity.busy || has + 2 <= count(candidate.key)
        })
        .min_by_key(|candidate| {
            let activity = candidate.activity;
            let (busy, authenticated) = (activity.busy, activity.authenticated);
            (
                !recycles && busy,
                !recycles && authenticated,
                Reverse(count(candidate.key)),
                Reverse(activity.lasts),
                candidate.id,
            )
        })
        .map(|candidate| candidate.id)
}

/// One client: an IPv4 address, however it is written, or the /64 that an IPv6 client chooses its addresses from.
pub fn client_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn places(most: usize, most_of_address: usize) -> Places {
        Places::new(&Limits {
            connections: most,
            connections_per_address: most_of_address,
            ..Limits::default()
        })
    }

    #[test]
    fn places_are_counted_by_client_and_given_back() {
        let places = places(100, 2);
        let enter = |text: &str| places.enter(text.parse().unwrap(), &Watch::new()).ok();
        let first = enter("10.0.0.1");
        let second = enter("::ffff:10.0.0.1");
        assert!(first.is_some() && second.is_some());
        assert!(enter("10.0.0.1").is_none());
        assert!(enter("10.0.0.2").is_some());
        drop(first);
        assert!(enter("10.0.0.1").is_some());
        let one = enter("2001:db8::1");
        let two = enter("2001:db8::ffff:1");
        assert!(one.is_some() && two.is_some());
        assert!(enter("2001:db8::2").is_none(), "one /64 is one client");
        assert!(enter("2001:db8:0:1::2").is_some());
        drop((one, two, second));
        assert!(places.table().taken.is_empty());
        assert!(places.table().of_address.is_empty());
    }

    #[test]
    fn a_full_listener_ends_an_idle_connection_for_a_new_one() {
        let places = places(2, 2);
        let address = "10.0.0.1".parse().unwrap();
        let idle = Watch::new();
        let busy = Watch::new();
        let _request = busy.request(None);
        let _first = places.enter(address, &idle).unwrap();
        let _second = places.enter(address, &busy).unwrap();
        let other = "10.0.0.2".parse().unwrap();
        let newcomer = Watch::new();
        let _request = newcomer.request(None);
        let third = places.enter(other, &newcomer).unwrap();
        assert!(idle.is_evicted() && !busy.is_evicted());
        assert_eq!(
            places.enter(other, &Watch::new()).err(),
            Some(NoPlace::Full),
            "one busy connection each"
        );
        drop(third);
        assert!(places.enter(other, &Watch::new()).is_ok());
    }

    /// Connections in the form `ADDRESS STATE SECONDS`; the state is `idle` or `busy`, with `+` where it proved its identity.
    fn choose(connections: &[&str], newcomer: u8, recycles: bool) -> Option<usize> {
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let candidates: Vec<_> = connections
            .iter()
            .zip(0..)
            .map(|(text, id)| {
                let mut parts = text.split(' ');
                let mut part = || parts.next().unwrap();
                let key = address(part().parse().unwrap());
                let state = part();
                let activity = Activity {
                    busy: state.starts_with("busy"),
                    authenticated: state.ends_with('+'),
                    lasts: Duration::from_secs(part().parse().unwrap()),
                };
                Candidate { id, key, activity }
            })
            .collect();
        evicted(&candidates, address(newcomer), recycles).map(|id| usize::try_from(id).unwrap())
    }

    #[test]
    fn who_has_the_least_claim_to_a_place_ends_first() {
        for (connections, newcomer, expect, why) in [
            (
                &["1 idle 5", "1 idle 9"][..],
                2,
                Some(1),
                "the longest idle",
            ),
            (&["1 idle 5", "1 busy 9"], 2, Some(0), "idle before busy"),
            (&["1 busy 9", "1 idle+ 1"], 2, Some(1), "even a known one"),
            (&["1 idle+ 9", "1 idle 5"], 2, Some(1), "the unknown first"),
            (
                &["1 idle 9", "3 idle 1", "3 idle 2"],
                2,
                Some(2),
                "of the address that has most",
            ),
            (&["1 busy 9", "1 busy 5"], 2, Some(0), "two against none"),
            (&["1 busy+ 9", "1 busy 5"], 2, Some(1), "unknown first"),
            (&["1 busy 9", "3 busy 5"], 2, None, "one each"),
            (
                &["1 busy 9", "1 busy 5", "2 busy 1"],
                2,
                None,
                "two and one",
            ),
            (&["1 busy 9", "1 busy 5"], 1, None, "its own"),
            (&["1 busy 9", "1 idle 5"], 1, Some(1), "its own idle one"),
        ] {
            assert_eq!(choose(connections, newcomer, false), expect, "{why}");
        }
    }

    #[test]
    fn where_answers_are_short_the_oldest_connection_ends_whatever_it_does() {
        for (connections, expect) in [
            (&["1 busy 1", "1 busy 5"][..], 1),
            (&["1 busy 5", "1 idle 1"], 0),
            (&["2 busy+ 9", "1 busy 5", "1 idle 1"], 1),
        ] {
            assert_eq!(
                choose(connections, 1, true),
                Some(expect),
                "{connections:?}"
            );
        }
    }
}
