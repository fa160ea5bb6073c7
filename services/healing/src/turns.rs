//! Turns of namespaces: actions with a limit serve namespaces in turn.

use std::collections::HashMap;

/// Namespaces whose last turn is remembered; beyond that all are forgotten.
const MAX_NAMESPACES: usize = 10_000;

/// When each namespace had its turn, as a count of turns.
#[derive(Debug, Default)]
pub struct Turns {
    last: HashMap<String, u64>,
    count: u64,
}

impl Turns {
    /// Orders `items` by turns: one of each namespace, then a second one of each; the namespace
    /// without a turn for the longest time is first. Items of one namespace keep their order.
    pub fn order<T>(&self, items: Vec<T>, namespace: impl Fn(&T) -> &str) -> Vec<T> {
        let mut before: HashMap<String, usize> = HashMap::new();
        let mut ranked: Vec<((usize, u64), T)> = Vec::with_capacity(items.len());
        for item in items {
            let namespace = namespace(&item);
            let last = self.last.get(namespace).copied().unwrap_or(0);
            let next = before.entry(namespace.to_owned()).or_default();
            let round = *next;
            *next += 1;
            ranked.push(((round, last), item));
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, item)| item).collect()
    }

    /// Records a turn of the namespace.
    pub fn record(&mut self, namespace: &str) {
        if self.last.len() >= MAX_NAMESPACES && !self.last.contains_key(namespace) {
            self.last.clear();
        }
        self.count += 1;
        self.last.insert(namespace.to_owned(), self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(item: &str) -> &str {
        item.split('/').next().unwrap()
    }

    fn order(turns: &Turns, items: &[&'static str]) -> Vec<&'static str> {
        turns.order(items.to_vec(), |item| namespace(item))
    }

    #[test]
    fn each_namespace_has_a_turn_before_one_has_a_second() {
        let items = ["a/1", "a/2", "a/3", "b/1", "b/2", "c/1"];
        let mut turns = Turns::default();
        assert_eq!(
            order(&turns, &items),
            ["a/1", "b/1", "c/1", "a/2", "b/2", "a/3"]
        );
        turns.record("a");
        turns.record("b");
        assert_eq!(
            order(&turns, &items),
            ["c/1", "a/1", "b/1", "a/2", "b/2", "a/3"]
        );
    }

    #[test]
    fn with_one_turn_at_a_time_no_namespace_waits_longer_than_a_round() {
        let mut turns = Turns::default();
        let mut done = Vec::new();
        for _ in 0..6 {
            // The first namespace always has something new.
            let first = order(&turns, &["a/1", "a/2", "b/1", "c/1"])[0];
            turns.record(namespace(first));
            done.push(first);
        }
        assert_eq!(done, ["a/1", "b/1", "c/1", "a/1", "b/1", "c/1"]);
    }

    #[test]
    fn the_number_of_remembered_namespaces_is_bounded() {
        let mut turns = Turns::default();
        for number in 0..=MAX_NAMESPACES {
            turns.record(&number.to_string());
            assert!(turns.last.len() <= MAX_NAMESPACES);
        }
    }
}
