//! When each Artifact is looked at: each at most once at a time, woken again while it runs, soonest first.

use crate::world::Key;
use holdfast_api::fill::Need;
use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

/// Keys that are due and looked through for the most urgent one.
const LOOKED_AT: usize = 2000;

/// Keys and when they are due.
#[derive(Debug, Default)]
pub struct Queue {
    due: BTreeSet<(Instant, Key)>,
    when: HashMap<Key, Instant>,
    running: HashMap<Key, Option<Instant>>,
}

impl Queue {
    /// Wants `key` looked at by `at`; an earlier wish holds. While it runs, it is looked at again afterwards.
    pub fn wake(&mut self, key: &Key, at: Instant) {
        if let Some(again) = self.running.get_mut(key) {
            *again = Some(again.map_or(at, |earlier| earlier.min(at)));
            return;
        }
        if let Some(before) = self.when.get(key).copied() {
            if before <= at {
                return;
            }
            self.due.remove(&(before, key.clone()));
        }
        self.when.insert(key.clone(), at);
        self.due.insert((at, key.clone()));
    }

    /// Takes the most urgent one, of those the one that is due longest; nothing when `only_waiting` and no pod waits. It
    /// counts as running until [`Queue::done`].
    pub fn take(
        &mut self,
        now: Instant,
        need: impl Fn(&Key) -> Need,
        only_waiting: bool,
    ) -> Option<Key> {
        let mut best: Option<(Need, &(Instant, Key))> = None;
        let due = self.due.iter().take_while(|(at, _)| *at <= now);
        for entry in due.take(LOOKED_AT) {
            let need = need(&entry.1);
            if best.is_none_or(|(so_far, _)| need < so_far) {
                best = Some((need, entry));
            }
            if need == Need::Waiting {
                break;
            }
        }
        let (need, chosen) = best?;
        if only_waiting && need != Need::Waiting {
            return None;
        }
        let chosen = chosen.clone();
        self.due.remove(&chosen);
        let (_, key) = chosen;
        self.when.remove(&key);
        self.running.insert(key.clone(), None);
        Some(key)
    }

    /// Ends a run; `again` is when it wants to be looked at next.
    pub fn done(&mut self, key: &Key, again: Option<Instant>) {
        let woken = self.running.remove(key).flatten();
        for at in [woken, again].into_iter().flatten() {
            self.wake(key, at);
        }
    }

    /// Ends every run, to be looked at again by `at`: after a run that ended without a word.
    pub fn recover(&mut self, at: Instant) {
        let keys: Vec<Key> = self.running.keys().cloned().collect();
        for key in keys {
            self.done(&key, Some(at));
        }
    }

    /// When the next one is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn take(queue: &mut Queue, now: Instant) -> Option<Key> {
        queue.take(now, |_| Need::Ahead, false)
    }

    fn key(name: &str) -> Key {
        ("apps".to_owned(), name.to_owned())
    }

    #[test]
    fn the_earlier_wish_holds() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let later = now + Duration::from_secs(60);
        queue.wake(&key("a"), later);
        assert_eq!(take(&mut queue, now), None);
        queue.wake(&key("a"), now);
        queue.wake(&key("a"), later);
        assert_eq!(take(&mut queue, now), Some(key("a")));
        assert_eq!(take(&mut queue, later), None, "it is taken once");
    }

    #[test]
    fn one_that_runs_is_not_taken_twice_but_again_afterwards() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.wake(&key("a"), now);
        assert_eq!(take(&mut queue, now), Some(key("a")));
        queue.wake(&key("a"), now);
        assert_eq!(take(&mut queue, now), None);
        queue.done(&key("a"), Some(now + Duration::from_secs(60)));
        assert_eq!(
            take(&mut queue, now),
            Some(key("a")),
            "woken while it ran, before its own wish"
        );
        queue.done(&key("a"), None);
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn the_most_urgent_overtakes_and_what_waits_keeps_its_share() {
        let (mut queue, begun) = (Queue::default(), Instant::now());
        let now = begun + Duration::from_secs(9);
        queue.wake(&key("ahead"), begun);
        queue.wake(&key("ahead later"), begun + Duration::from_secs(1));
        queue.wake(&key("runs"), now);
        queue.wake(&key("waited for"), now);
        queue.wake(&key("not due"), now + Duration::from_secs(9));
        let need = |key: &Key| match key.1.as_str() {
            "waited for" | "not due" => Need::Waiting,
            "runs" => Need::Running,
            _ => Need::Ahead,
        };
        assert_eq!(queue.take(now, need, true), Some(key("waited for")));
        assert_eq!(queue.take(now, need, true), None);
        for expect in ["runs", "ahead", "ahead later"] {
            assert_eq!(queue.take(now, need, false), Some(key(expect)));
        }
        assert_eq!(queue.take(now, need, false), None);
    }

    #[test]
    fn what_ended_without_a_word_is_looked_at_again() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.wake(&key("a"), now);
        take(&mut queue, now);
        queue.recover(now);
        assert_eq!(take(&mut queue, now), Some(key("a")));
    }
}
