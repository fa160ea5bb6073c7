//! A memory with a bound that several parties share: when it is full, the party that has most loses
//! its oldest entry, so what one party sends takes no other one's place. Pure.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    time::Instant,
};

/// Entries by key, each of a party, all of them within a bound.
#[derive(Debug)]
pub struct Shares<P, K, V> {
    most_bytes: usize,
    most_entries: usize,
    bytes: usize,
    /// Counts insertions: the order of age.
    next: u64,
    entries: HashMap<K, Entry<P, V>>,
    parties: HashMap<P, Party<K>>,
    /// The parties in the order of their bytes.
    by_bytes: BTreeSet<(usize, P)>,
}

#[derive(Debug)]
struct Entry<P, V> {
    party: P,
    value: V,
    bytes: usize,
    number: u64,
    at: Instant,
}

#[derive(Debug)]
struct Party<K> {
    bytes: usize,
    by_age: BTreeMap<u64, K>,
}

impl<P: Clone + Hash + Ord, K: Clone + Eq + Hash, V> Shares<P, K, V> {
    /// At most this many bytes and this many entries.
    pub fn new(most_bytes: usize, most_entries: usize) -> Self {
        Self {
            most_bytes,
            most_entries,
            bytes: 0,
            next: 0,
            entries: HashMap::new(),
            parties: HashMap::new(),
            by_bytes: BTreeSet::new(),
        }
    }

    /// The bytes of all entries.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The value of a key.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// The entries of a party.
    pub fn of<Q: Eq + Hash + ?Sized>(&self, party: &Q) -> impl Iterator<Item = &V>
    where
        P: Borrow<Q>,
    {
        let keys = self.parties.get(party).into_iter();
        let keys = keys.flat_map(|party| party.by_age.values());
        keys.filter_map(|key| self.get(key))
    }

    /// Takes an entry in, or replaces it, and hands back what there is no room for any more.
    pub fn insert(&mut self, party: &P, key: K, (value, bytes): (V, usize), at: Instant) -> Vec<V> {
        self.remove(&key);
        let number = self.next;
        self.next += 1;
        self.bytes += bytes;
        self.change(party, |of| {
            of.bytes += bytes;
            of.by_age.insert(number, key.clone());
        });
        let entry = Entry {
            party: party.clone(),
            value,
            bytes,
            number,
            at,
        };
        self.entries.insert(key, entry);
        self.trim()
    }

    /// Counts an entry with another number of bytes, as the youngest of its party.
    pub fn resize(&mut self, key: &K, bytes: usize, at: Instant) {
        if let Some(entry) = self.take(key) {
            let party = entry.party.clone();
            self.insert(&party, key.clone(), (entry.value, bytes), at);
        }
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.take(key).map(|entry| entry.value)
    }

    /// Removes what was taken in before `limit`, and hands it back.
    pub fn expire(&mut self, limit: Instant) -> Vec<V> {
        let mut expired = Vec::new();
        for party in self.parties.values() {
            let old = |key: &&K| self.entries.get(*key).is_some_and(|entry| entry.at < limit);
            expired.extend(party.by_age.values().take_while(old).cloned());
        }
        let expired = expired.iter();
        expired.filter_map(|key| self.remove(key)).collect()
    }

    fn take(&mut self, key: &K) -> Option<Entry<P, V>> {
        let entry = self.entries.remove(key)?;
        self.bytes -= entry.bytes;
        self.change(&entry.party, |of| {
            of.bytes -= entry.bytes;
            of.by_age.remove(&entry.number);
        });
        Some(entry)
    }

    fn trim(&mut self) -> Vec<V> {
        let mut lost = Vec::new();
        while self.bytes > self.most_bytes || self.entries.len() > self.most_entries {
            let largest = self.by_bytes.last().map(|(_, party)| party);
            let party = largest.and_then(|party| self.parties.get(party));
            let oldest = party.and_then(|party| party.by_age.first_key_value());
            let Some(key) = oldest.map(|(_, key)| key.clone()) else {
                break;
            };
            lost.extend(self.remove(&key));
        }
        lost
    }

    fn change(&mut self, party: &P, change: impl FnOnce(&mut Party<K>)) {
        let known = self.parties.remove(party);
        let mut of = known.unwrap_or_else(|| Party {
            bytes: 0,
            by_age: BTreeMap::new(),
        });
        self.by_bytes.remove(&(of.bytes, party.clone()));
        change(&mut of);
        if !of.by_age.is_empty() {
            self.by_bytes.insert((of.bytes, party.clone()));
            self.parties.insert(party.clone(), of);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn put(
        shares: &mut Shares<&'static str, u32, u32>,
        party: &'static str,
        key: u32,
        bytes: usize,
    ) {
        shares.insert(&party, key, (key, bytes), Instant::now());
    }

    fn keys(shares: &Shares<&'static str, u32, u32>, party: &str) -> Vec<u32> {
        shares.of(party).copied().collect()
    }

    #[test]
    fn the_party_with_most_bytes_loses_its_oldest() {
        let mut shares = Shares::new(10, 100);
        put(&mut shares, "small", 0, 3);
        for key in 1..=4 {
            put(&mut shares, "large", key, 3);
        }
        assert_eq!(keys(&shares, "small"), [0], "the oldest of all");
        assert_eq!(keys(&shares, "large"), [3, 4]);
        shares.resize(&3, 1, Instant::now());
        assert_eq!((keys(&shares, "large"), shares.bytes()), (vec![4, 3], 7));
        put(&mut shares, "large", 4, 1);
        assert_eq!((keys(&shares, "large"), shares.bytes()), (vec![3, 4], 5));
        assert_eq!(shares.remove(&0), Some(0));
        assert_eq!((keys(&shares, "small"), shares.bytes()), (vec![], 2));
        put(&mut shares, "huge", 5, 11);
        assert_eq!((shares.get(&5), shares.bytes()), (None, 2));
    }

    #[test]
    fn the_entries_of_shares_are_bounded_and_expire() {
        let mut shares = Shares::new(100, 2);
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        shares.insert(&"a", 1, (1, 0), start);
        shares.insert(&"b", 2, (2, 0), later);
        assert_eq!(shares.insert(&"b", 3, (3, 0), later), [2]);
        assert_eq!(shares.expire(later), [1]);
        assert_eq!(keys(&shares, "b"), [3]);
    }
}
