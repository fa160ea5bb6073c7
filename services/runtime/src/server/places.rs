//! The places of a listener: counts connections in total and per address, and evicts one for a new
//! connection if needed.
//!
//! A full listener shares its places evenly among addresses, as far as possible. Connections
//! without a request are evicted first, unauthenticated ones before authenticated ones. A
//! connection with a request in progress is evicted only for an address that has fewer. So no set
//! of addresses can keep another one out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::Limits;
use super::eviction::{Candidate, order};
use super::watch::Watch;

/// Up to this number of connections, the eviction order is computed for each new connection. With
/// more it is cached, because a burst of new connections would cost a pass over thousands each.
const UNCACHED_CONNECTIONS: usize = 256;
/// How long the eviction order is cached. A connection that becomes idle may be overlooked for this
/// time.
const ORDER_TTL: Duration = Duration::from_millis(100);
/// Connections in the cached order.
const ORDER_LENGTH: usize = 64;

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
    /// The cached eviction order.
    order: Vec<Candidate>,
    /// The first authenticated connections of the order. If the first unauthenticated one may not
    /// be evicted, because its address has too few, only one of these may.
    known: Vec<Candidate>,
    /// When the order was computed.
    ordered: Option<Instant>,
    #[cfg(test)]
    looks: usize,
}

/// The place of one connection, released when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    id: u64,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// The address has the maximum number of connections.
    Address,
    /// No connection may be evicted for this one.
    Full,
}

impl Places {
    /// `most` places. `limits` says how they are shared.
    pub(super) fn new(most: usize, limits: &Limits) -> Self {
        Self {
            inner: Arc::new(Inner {
                most,
                most_of_address: limits.connections_per_address,
                recycles: limits.recycles,
                table: Mutex::default(),
                freed: Notify::new(),
            }),
        }
    }

    /// Whether a place is free.
    pub(super) fn has_room(&self) -> bool {
        self.table().taken.len() < self.inner.most
    }

    /// Takes a place for a connection of `address`. If all are taken, evicts the connection with
    /// the least claim to its place.
    pub(super) fn enter(&self, address: IpAddr, watch: &Arc<Watch>) -> Result<Place, NoPlace> {
        let key = client_address(address);
        let mut table = self.table();
        if self.inner.most_of_address <= table.count(key) {
            return Err(NoPlace::Address);
        }
        if self.inner.most <= table.taken.len() {
            let recycles = self.inner.recycles;
            let id = table.evicted(key, recycles).ok_or(NoPlace::Full)?;
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

    /// The position of the waiting address that goes before an arrival: the first that has no more
    /// connections than the arrival's. `None` if the arrival's has the maximum.
    pub(super) fn goes_before(
        &self,
        arrival: IpAddr,
        mut waiting: impl Iterator<Item = IpAddr>,
    ) -> Option<usize> {
        let table = self.table();
        let has = table.count(client_address(arrival));
        if self.inner.most_of_address <= has {
            return None;
        }
        waiting.position(|other| table.count(client_address(other)) <= has)
    }

    /// Waits until a place is released.
    pub(super) async fn freed(&self) {
        self.inner.freed.notified().await;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.inner.table.lock()
    }
}

impl Table {
    fn count(&self, key: IpAddr) -> usize {
        self.of_address.get(&key).copied().unwrap_or(0)
    }

    /// The connection to evict for a further one of `newcomer`. `None` if none has less claim to a
    /// place.
    fn evicted(&mut self, newcomer: IpAddr, recycles: bool) -> Option<u64> {
        let is_old = |at: Instant| ORDER_TTL <= at.elapsed();
        if self.taken.len() <= UNCACHED_CONNECTIONS || self.ordered.is_none_or(is_old) {
            self.order.clear();
        }
        let taken = &self.taken;
        let is_as_it_was = |candidate: &Candidate| {
            let watch = taken.get(&candidate.id).map(|(_, watch)| watch);
            watch.is_some_and(|watch| candidate.is_as_it_was(watch.activity()))
        };
        self.order.retain(is_as_it_was);
        self.known.retain(is_as_it_was);
        if self.order.is_empty() {
            self.put_in_order(recycles);
        }
        let has = self.count(newcomer);
        let may_end = |candidate: &&Candidate| {
            candidate.may_end_for(has, self.count(candidate.key), recycles)
        };
        let next = self.order.iter().chain(&self.known).find(may_end);
        next.map(|candidate| candidate.id)
    }

    fn put_in_order(&mut self, recycles: bool) {
        #[cfg(test)]
        {
            self.looks += 1;
        }
        self.order = order(self.candidates(), recycles);
        let further = self.order.split_off(ORDER_LENGTH.min(self.order.len()));
        let known = further.into_iter().filter(|one| one.activity.authenticated);
        self.known = known.take(ORDER_LENGTH).collect();
        self.ordered = Some(Instant::now());
    }

    fn candidates(&self) -> Vec<Candidate> {
        let taken = self.taken.iter();
        let candidates = taken.map(|(id, (key, watch))| Candidate {
            id: *id,
            key: *key,
            activity: watch.activity(),
        });
        candidates.collect()
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

/// The address that stands for a client: an IPv4 address in canonical form, or the /64 network from
/// which an IPv6 client chooses its addresses.
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
    use super::*;

    fn places(most: usize, most_of_address: usize) -> Places {
        let limits = Limits {
            connections_per_address: most_of_address,
            ..Limits::default()
        };
        Places::new(most, &limits)
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

    #[test]
    fn a_crowd_of_strangers_hides_nobody_who_has_more() {
        const ALL: usize = 300;
        let places = places(ALL, ALL);
        let enter = |address: [u8; 4]| {
            let watch = Watch::new();
            let request = watch.request(None);
            let place = places.enter(IpAddr::from(address), &watch);
            place.map(|place| (place, watch, request))
        };
        let two = [0, 0].map(|_| enter([10, 0, 0, 1]).unwrap());
        for (_, watch, _) in &two {
            watch.authenticated();
        }
        let strangers: Vec<_> = (2..ALL)
            .map(|number| {
                let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
                enter([10, 1, high, low]).unwrap()
            })
            .collect();
        let newcomer = enter([10, 2, 0, 1]);
        assert!(newcomer.is_ok());
        assert!(two.iter().any(|(_, watch, _)| watch.is_evicted()));
        assert!(strangers.iter().all(|(_, watch, _)| !watch.is_evicted()));
    }

    #[test]
    fn a_burst_that_is_refused_looks_at_all_connections_only_so_often() {
        const ALL: usize = 4096;
        let places = places(ALL, ALL);
        let address = |number: usize| {
            let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
            IpAddr::from([10, 0, high, low])
        };
        let busy: Vec<_> = (0..ALL)
            .map(|number| {
                let watch = Watch::new();
                let request = watch.request(None);
                let place = places.enter(address(number), &watch).unwrap();
                (place, watch, request)
            })
            .collect();
        let begun = Instant::now();
        for number in 0..500 {
            // Of strangers, and of clients that have a connection.
            let newcomer = places.enter(address(ALL - 250 + number), &Watch::new());
            assert_eq!(
                newcomer.err(),
                Some(NoPlace::Full),
                "one busy connection each"
            );
        }
        let most = 1 + begun.elapsed().as_millis() / ORDER_TTL.as_millis();
        let looks = places.table().looks;
        assert!(looks as u128 <= most, "{looks} looks, not {most}");
        drop(busy);
    }

    #[test]
    fn a_burst_at_a_full_listener_takes_places_from_who_has_most() {
        const ALL: usize = 4096;
        let places = places(ALL, ALL);
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let enter = |last: u8, requests: usize| {
            let watch = Watch::new();
            let requests: Vec<_> = (0..requests).map(|_| watch.request(None)).collect();
            let place = places.enter(address(last), &watch).unwrap();
            (place, watch, requests)
        };
        let known: Vec<_> = (0..8).map(|_| enter(1, 0)).collect();
        for (_, watch, _) in &known {
            watch.authenticated();
        }
        let busy: Vec<_> = (0..8).map(|_| enter(2, 1)).collect();
        let mut idle: Vec<_> = (0..2800).map(|_| enter(3, 0)).collect();
        idle.extend((0..ALL - 2816).map(|_| enter(4, 0)));
        idle.extend((0..3000).map(|_| enter(5, 0)));
        for (_, watch, _) in known.iter().chain(&busy) {
            assert!(!watch.is_evicted());
        }
        let counts = [3, 4, 5].map(|last| places.table().count(address(last)));
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        // An order is followed to its end while the newcomers' address grows.
        assert!(most - least <= 3 * ORDER_LENGTH, "places: {counts:?}");
        assert_eq!(places.table().taken.len(), ALL);
    }
}
