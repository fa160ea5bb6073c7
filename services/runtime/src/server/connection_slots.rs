//! The connection slots of a listener: counts connections in total and per address, and evicts one
//! for a new connection if needed.
//!
//! A full listener shares its slots evenly among addresses, as far as possible. Connections
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

/// Bits of the IPv6 network from which a client chooses its addresses.
pub(super) const CLIENT_PREFIX: u8 = 64;

/// The slots of a listener. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct ConnectionSlots {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    capacity: usize,
    capacity_of_address: usize,
    ipv6_prefix: u8,
    recycles: bool,
    table: Mutex<Table>,
    released: Notify,
}

#[derive(Debug, Default)]
struct Table {
    connections: HashMap<u64, (IpAddr, Arc<Watch>)>,
    of_address: HashMap<IpAddr, usize>,
    next: u64,
    /// The cached eviction order.
    order: Vec<Candidate>,
    /// The first authenticated connections of the order. If the first unauthenticated one may not
    /// be evicted, because its address has too few, only one of these may.
    authenticated: Vec<Candidate>,
    /// When the order was computed.
    ordered: Option<Instant>,
    #[cfg(test)]
    order_rebuilds: usize,
}

/// The slot of one connection, released when dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    slots: ConnectionSlots,
    id: u64,
}

/// Why there is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSlot {
    /// The address has the maximum number of connections.
    Address,
    /// No connection may be evicted for this one.
    Full,
}

impl ConnectionSlots {
    /// `capacity` slots. `limits` says how they are shared.
    pub(super) fn new(capacity: usize, limits: &Limits) -> Self {
        Self {
            inner: Arc::new(Inner {
                capacity,
                capacity_of_address: limits.connections_per_address,
                ipv6_prefix: limits.ipv6_prefix,
                recycles: limits.recycles,
                table: Mutex::default(),
                released: Notify::new(),
            }),
        }
    }

    /// The address that stands for a client of this listener.
    pub(super) fn client(&self, address: IpAddr) -> IpAddr {
        network(address, self.inner.ipv6_prefix)
    }

    /// Whether a slot is free.
    pub(super) fn has_free(&self) -> bool {
        self.table().connections.len() < self.inner.capacity
    }

    /// Takes a slot for a connection of `address`. If none is free, evicts the connection with the
    /// least claim to its slot.
    pub(super) fn acquire(
        &self,
        address: IpAddr,
        watch: &Arc<Watch>,
    ) -> Result<ConnectionSlot, NoSlot> {
        let key = self.client(address);
        let mut table = self.table();
        if self.inner.capacity_of_address <= table.count(key) {
            return Err(NoSlot::Address);
        }
        if self.inner.capacity <= table.connections.len() {
            let recycles = self.inner.recycles;
            let id = table.evicted(key, recycles).ok_or(NoSlot::Full)?;
            if let Some(watch) = table.remove(id) {
                watch.evict();
            }
        }
        let id = table.next;
        table.next += 1;
        table.connections.insert(id, (key, Arc::clone(watch)));
        *table.of_address.entry(key).or_insert(0) += 1;
        drop(table);
        Ok(ConnectionSlot {
            slots: self.clone(),
            id,
        })
    }

    /// The position of the waiting address that goes before an arrival: the first that has no more
    /// connections than the arrival's. `None` if the arrival's has the maximum.
    pub(super) fn waiting_before(
        &self,
        arrival: IpAddr,
        mut waiting: impl Iterator<Item = IpAddr>,
    ) -> Option<usize> {
        let table = self.table();
        let has = table.count(self.client(arrival));
        if self.inner.capacity_of_address <= has {
            return None;
        }
        waiting.position(|other| table.count(self.client(other)) <= has)
    }

    /// Waits until a slot is released.
    pub(super) async fn released(&self) {
        self.inner.released.notified().await;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.inner.table.lock()
    }
}

impl Table {
    fn count(&self, key: IpAddr) -> usize {
        self.of_address.get(&key).copied().unwrap_or(0)
    }

    /// The connection to evict for a further one of `arrival`. `None` if none has less claim to a
    /// slot.
    fn evicted(&mut self, arrival: IpAddr, recycles: bool) -> Option<u64> {
        let is_old = |at: Instant| ORDER_TTL <= at.elapsed();
        if self.connections.len() <= UNCACHED_CONNECTIONS || self.ordered.is_none_or(is_old) {
            self.order.clear();
        }
        let connections = &self.connections;
        let is_unchanged = |candidate: &Candidate| {
            let watch = connections.get(&candidate.id).map(|(_, watch)| watch);
            watch.is_some_and(|watch| candidate.is_unchanged(watch.activity()))
        };
        self.order.retain(is_unchanged);
        self.authenticated.retain(is_unchanged);
        if self.order.is_empty() {
            self.rebuild_order(recycles);
        }
        let has = self.count(arrival);
        let may_end = |candidate: &&Candidate| {
            candidate.may_be_evicted_for(has, self.count(candidate.key), recycles)
        };
        let next = self.order.iter().chain(&self.authenticated).find(may_end);
        next.map(|candidate| candidate.id)
    }

    fn rebuild_order(&mut self, recycles: bool) {
        #[cfg(test)]
        {
            self.order_rebuilds += 1;
        }
        self.order = order(self.candidates(), recycles);
        let further = self.order.split_off(ORDER_LENGTH.min(self.order.len()));
        let authenticated = further.into_iter().filter(|one| one.activity.authenticated);
        self.authenticated = authenticated.take(ORDER_LENGTH).collect();
        self.ordered = Some(Instant::now());
    }

    fn candidates(&self) -> Vec<Candidate> {
        let connections = self.connections.iter();
        let candidates = connections.map(|(id, (key, watch))| Candidate {
            id: *id,
            key: *key,
            activity: watch.activity(),
        });
        candidates.collect()
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Watch>> {
        let (key, watch) = self.connections.remove(&id)?;
        if let Some(count) = self.of_address.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.of_address.remove(&key);
            }
        }
        Some(watch)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.slots.table().remove(self.id);
        self.slots.inner.released.notify_one();
    }
}

/// The address that stands for a client: an IPv4 address in canonical form, or the /64 network from
/// which an IPv6 client chooses its addresses.
pub fn client_address(address: IpAddr) -> IpAddr {
    network(address, CLIENT_PREFIX)
}

/// An IPv4 address in canonical form, or the network of an IPv6 address with this many bits.
fn network(address: IpAddr, ipv6_prefix: u8) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let host_bits = u128::MAX.checked_shr(ipv6_prefix.into()).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !host_bits))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(capacity: usize, capacity_of_address: usize) -> ConnectionSlots {
        let limits = Limits {
            connections_per_address: capacity_of_address,
            ..Limits::default()
        };
        ConnectionSlots::new(capacity, &limits)
    }

    #[test]
    fn slots_are_counted_by_client_and_released() {
        let slots = slots(100, 2);
        let acquire = |text: &str| slots.acquire(text.parse().unwrap(), &Watch::new()).ok();
        let first = acquire("10.0.0.1");
        let second = acquire("::ffff:10.0.0.1");
        assert!(first.is_some() && second.is_some());
        assert!(acquire("10.0.0.1").is_none());
        assert!(acquire("10.0.0.2").is_some());
        drop(first);
        assert!(acquire("10.0.0.1").is_some());
        let one = acquire("2001:db8::1");
        let two = acquire("2001:db8::ffff:1");
        assert!(one.is_some() && two.is_some());
        assert!(acquire("2001:db8::2").is_none(), "one /64 is one client");
        assert!(acquire("2001:db8:0:1::2").is_some());
        drop((one, two, second));
        assert!(slots.table().connections.is_empty());
        assert!(slots.table().of_address.is_empty());
    }

    #[test]
    fn where_the_cluster_chooses_addresses_each_one_is_a_client() {
        let limits = Limits {
            connections_per_address: 1,
            ipv6_prefix: 128,
            ..Limits::default()
        };
        let slots = ConnectionSlots::new(100, &limits);
        let acquire = |text: &str| slots.acquire(text.parse().unwrap(), &Watch::new()).ok();
        let (one, two) = (acquire("2001:db8::1"), acquire("2001:db8::2"));
        assert!(one.is_some() && two.is_some());
        assert!(acquire("2001:db8::1").is_none());
    }

    #[test]
    fn a_full_listener_evicts_an_idle_connection_for_a_new_one() {
        let slots = slots(2, 2);
        let address = "10.0.0.1".parse().unwrap();
        let idle = Watch::new();
        let busy = Watch::new();
        let _request = busy.request(None);
        let _first = slots.acquire(address, &idle).unwrap();
        let _second = slots.acquire(address, &busy).unwrap();
        let other = "10.0.0.2".parse().unwrap();
        let arrival = Watch::new();
        let _request = arrival.request(None);
        let third = slots.acquire(other, &arrival).unwrap();
        assert!(idle.is_evicted() && !busy.is_evicted());
        assert_eq!(
            slots.acquire(other, &Watch::new()).err(),
            Some(NoSlot::Full),
            "one busy connection each"
        );
        drop(third);
        assert!(slots.acquire(other, &Watch::new()).is_ok());
    }

    #[test]
    fn addresses_with_one_connection_hide_no_address_with_more() {
        const ALL: usize = 300;
        let slots = slots(ALL, ALL);
        let acquire = |address: [u8; 4]| {
            let watch = Watch::new();
            let request = watch.request(None);
            let slot = slots.acquire(IpAddr::from(address), &watch);
            slot.map(|slot| (slot, watch, request))
        };
        let two = [0, 0].map(|_| acquire([10, 0, 0, 1]).unwrap());
        for (_, watch, _) in &two {
            watch.authenticated();
        }
        let single: Vec<_> = (2..ALL)
            .map(|number| {
                let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
                acquire([10, 1, high, low]).unwrap()
            })
            .collect();
        let arrival = acquire([10, 2, 0, 1]);
        assert!(arrival.is_ok());
        assert!(two.iter().any(|(_, watch, _)| watch.is_evicted()));
        assert!(single.iter().all(|(_, watch, _)| !watch.is_evicted()));
    }

    #[test]
    fn a_refused_burst_rebuilds_the_order_at_most_once_per_ttl() {
        const ALL: usize = 4096;
        let slots = slots(ALL, ALL);
        let address = |number: usize| {
            let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
            IpAddr::from([10, 0, high, low])
        };
        let busy: Vec<_> = (0..ALL)
            .map(|number| {
                let watch = Watch::new();
                let request = watch.request(None);
                let slot = slots.acquire(address(number), &watch).unwrap();
                (slot, watch, request)
            })
            .collect();
        let begun = Instant::now();
        for number in 0..500 {
            // Of new clients, and of clients that have a connection.
            let arrival = slots.acquire(address(ALL - 250 + number), &Watch::new());
            assert_eq!(
                arrival.err(),
                Some(NoSlot::Full),
                "one busy connection each"
            );
        }
        let most = 1 + begun.elapsed().as_millis() / ORDER_TTL.as_millis();
        let rebuilds = slots.table().order_rebuilds;
        assert!(rebuilds as u128 <= most, "{rebuilds} rebuilds, not {most}");
        drop(busy);
    }

    #[test]
    fn a_burst_at_a_full_listener_evicts_from_the_address_with_most() {
        const ALL: usize = 4096;
        let slots = slots(ALL, ALL);
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let acquire = |last: u8, requests: usize| {
            let watch = Watch::new();
            let requests: Vec<_> = (0..requests).map(|_| watch.request(None)).collect();
            let slot = slots.acquire(address(last), &watch).unwrap();
            (slot, watch, requests)
        };
        let authenticated: Vec<_> = (0..8).map(|_| acquire(1, 0)).collect();
        for (_, watch, _) in &authenticated {
            watch.authenticated();
        }
        let busy: Vec<_> = (0..8).map(|_| acquire(2, 1)).collect();
        let mut idle: Vec<_> = (0..2800).map(|_| acquire(3, 0)).collect();
        idle.extend((0..ALL - 2816).map(|_| acquire(4, 0)));
        idle.extend((0..3000).map(|_| acquire(5, 0)));
        for (_, watch, _) in authenticated.iter().chain(&busy) {
            assert!(!watch.is_evicted());
        }
        let counts = [3, 4, 5].map(|last| slots.table().count(address(last)));
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        // An order is followed to its end while the arrivals' address grows.
        assert!(most - least <= 3 * ORDER_LENGTH, "slots: {counts:?}");
        assert_eq!(slots.table().connections.len(), ALL);
    }
}
