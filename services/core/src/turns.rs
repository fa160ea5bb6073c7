//! A queue in which parties take turns, each with its own line: one that brings a thousand entries
//! delays itself and nobody else.

use std::collections::{BTreeMap, VecDeque};

/// Entries of parties `K`, which take turns.
#[derive(Debug)]
pub struct Turns<K, T> {
    lines: BTreeMap<K, VecDeque<(u64, T)>>,
    /// Parties with an entry, in the order of their turns.
    order: VecDeque<K>,
    arrivals: u64,
    len: usize,
}

impl<K, T> Default for Turns<K, T> {
    fn default() -> Self {
        Self {
            lines: BTreeMap::new(),
            order: VecDeque::new(),
            arrivals: 0,
            len: 0,
        }
    }
}

impl<K: Copy + Ord, T> Turns<K, T> {
    /// Adds an entry at the end of its party's line. The number is for [`Turns::remove`].
    pub fn push(&mut self, party: K, entry: T) -> u64 {
        self.arrivals += 1;
        self.len += 1;
        let line = self.lines.entry(party).or_default();
        if line.is_empty() {
            self.order.push_back(party);
        }
        line.push_back((self.arrivals, entry));
        self.arrivals
    }

    /// Takes the first entry of the party whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let party = self.order.pop_front()?;
        let line = self.lines.get_mut(&party)?;
        let (_, entry) = line.pop_front()?;
        if line.is_empty() {
            self.lines.remove(&party);
        } else {
            self.order.push_back(party);
        }
        self.len -= 1;
        Some(entry)
    }

    /// Takes an entry that has not had its turn yet, and never will.
    pub fn remove(&mut self, party: K, number: u64) -> Option<T> {
        let line = self.lines.get_mut(&party)?;
        let at = line
            .binary_search_by_key(&number, |(number, _)| *number)
            .ok()?;
        let (_, entry) = line.remove(at)?;
        if line.is_empty() {
            self.lines.remove(&party);
            self.order.retain(|other| *other != party);
        }
        self.len -= 1;
        Some(entry)
    }

    /// How many entries wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no entry waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(turns: &mut Turns<char, u32>) -> Vec<u32> {
        std::iter::from_fn(|| turns.pop()).collect()
    }

    #[test]
    fn parties_take_turns_whatever_one_of_them_brings() {
        let mut turns = Turns::default();
        for (party, entry) in [('a', 1), ('a', 2), ('a', 3), ('b', 4), ('c', 5), ('b', 6)] {
            turns.push(party, entry);
        }
        assert_eq!(turns.len(), 6);
        assert_eq!(drained(&mut turns), [1, 4, 5, 2, 6, 3]);
        assert!(turns.is_empty() && turns.lines.is_empty() && turns.order.is_empty());
    }

    #[test]
    fn what_is_removed_takes_nobodys_turn() {
        let mut turns = Turns::default();
        let numbers = [('a', 1), ('b', 2), ('a', 3), ('c', 4)]
            .map(|(party, entry)| (party, turns.push(party, entry)));
        for (at, expect) in [(1, Some(2)), (1, None), (2, Some(3))] {
            let (party, number) = numbers[at];
            assert_eq!(turns.remove(party, number), expect);
        }
        assert_eq!(turns.len(), 2);
        assert_eq!(drained(&mut turns), [1, 4]);
        let (party, number) = numbers[0];
        assert_eq!(turns.remove(party, number), None, "it had its turn");
        assert!(turns.lines.is_empty() && turns.order.is_empty());
    }
}
