//! The queue of Artifacts to reconcile: most urgent first, namespaces in turn, one run per Artifact
//! at a time. A wake-up during a run leads to another run.
//!
//! A copy may hold its place for long. So a namespace gets a place only while it holds fewer than
//! are free, which leaves places for other namespaces.

use holdfast_api::fill::Priority;
use holdfast_cluster_index::Key;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

/// Reconciles at a time; the registry bounds fills by itself.
pub const PLACES: usize = 32;
/// Of those, the places for images that no pod waits for.
pub const PLACES_AHEAD: usize = 16;
/// Due keys that are searched for the most urgent one, shared by the namespaces with due keys.
const LOOKED_AT: usize = 2000;
/// Least number of searched keys per namespace.
const LOOKED_AT_OF_NAMESPACE: usize = 8;

/// Keys and when they are due.
#[derive(Debug, Default)]
pub struct Queue {
    /// By namespace; no entry is empty.
    due: BTreeMap<String, BTreeSet<(Instant, String)>>,
    when: HashMap<Key, Instant>,
    running: HashMap<Key, Run>,
}

/// A run of a key.
#[derive(Clone, Copy, Debug)]
struct Run {
    priority: Priority,
    /// When it was woken during the run.
    again: Option<Instant>,
}

/// Places that are taken.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    all: usize,
    /// Of these, for images that no pod waits for.
    ahead: usize,
}

impl Taken {
    fn count(&mut self, priority: Priority) {
        self.all += 1;
        self.ahead += usize::from(priority != Priority::Blocking);
    }

    /// Whether a namespace with these places gets one more, when all namespaces hold `in_all`.
    const fn may_have_more(self, priority: Priority, in_all: Self) -> bool {
        let is_ahead = !matches!(priority, Priority::Blocking);
        self.all < PLACES.saturating_sub(in_all.all)
            && !(is_ahead && self.ahead >= PLACES_AHEAD.saturating_sub(in_all.ahead))
    }
}

impl Queue {
    /// Requests a run for `key` by `at`; an earlier request holds. During a run, it leads to
    /// another run afterwards.
    pub fn wake(&mut self, key: &Key, at: Instant) {
        if let Some(run) = self.running.get_mut(key) {
            run.again = Some(run.again.map_or(at, |earlier| earlier.min(at)));
            return;
        }
        if let Some(before) = self.when.get(key).copied() {
            if before <= at {
                return;
            }
            self.remove(key, before);
        }
        self.when.insert(key.clone(), at);
        let of_namespace = self.due.entry(key.0.clone()).or_default();
        of_namespace.insert((at, key.1.clone()));
    }

    fn remove(&mut self, key: &Key, at: Instant) {
        if let Some(of_namespace) = self.due.get_mut(&key.0) {
            of_namespace.remove(&(at, key.1.clone()));
            if of_namespace.is_empty() {
                self.due.remove(&key.0);
            }
        }
        self.when.remove(key);
    }

    /// Takes the most urgent key for which there is a place; of those, one of the namespace with
    /// the fewest places, and of those the one that is due longest. It counts as running until
    /// [`Queue::done`].
    pub fn take(&mut self, now: Instant, priority: impl Fn(&Key) -> Priority) -> Option<Key> {
        let mut in_all = Taken::default();
        let mut by_namespace: HashMap<&str, Taken> = HashMap::new();
        for (key, run) in &self.running {
            in_all.count(run.priority);
            by_namespace.entry(&key.0).or_default().count(run.priority);
        }
        let is_due = |of_namespace: &BTreeSet<(Instant, String)>| {
            of_namespace.first().is_some_and(|(at, _)| *at <= now)
        };
        let namespaces = self.due.values().filter(|all| is_due(all)).count();
        let looked_at = (LOOKED_AT / namespaces.max(1)).max(LOOKED_AT_OF_NAMESPACE);
        let mut best: Option<((Priority, usize, Instant), Key)> = None;
        for (namespace, all) in &self.due {
            let taken = by_namespace.get(namespace.as_str());
            let taken = taken.copied().unwrap_or_default();
            if !taken.may_have_more(Priority::Blocking, in_all) {
                continue;
            }
            let due = all.iter().take_while(|(at, _)| *at <= now).take(looked_at);
            for (at, name) in due {
                let key = (namespace.clone(), name.clone());
                let priority = priority(&key);
                let rank = (priority, taken.all, *at);
                if taken.may_have_more(priority, in_all)
                    && best.as_ref().is_none_or(|(so_far, _)| rank < *so_far)
                {
                    best = Some((rank, key));
                }
                if priority == Priority::Blocking {
                    break;
                }
            }
        }
        let ((priority, _, at), key) = best?;
        self.remove(&key, at);
        self.running.insert(
            key.clone(),
            Run {
                priority,
                again: None,
            },
        );
        Some(key)
    }

    /// Ends a run; `again` is when the next one is due.
    pub fn done(&mut self, key: &Key, again: Option<Instant>) {
        let woken = self.running.remove(key).and_then(|run| run.again);
        for at in [woken, again].into_iter().flatten() {
            self.wake(key, at);
        }
    }

    /// Ends every run and schedules it again at `at`, after a run that ended unexpectedly.
    pub fn recover(&mut self, at: Instant) {
        let keys: Vec<Key> = self.running.keys().cloned().collect();
        for key in keys {
            self.done(&key, Some(at));
        }
    }

    /// When the next key is due.
    pub fn next_due(&self) -> Option<Instant> {
        let firsts = self.due.values().filter_map(BTreeSet::first);
        firsts.map(|(at, _)| *at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn take(queue: &mut Queue, now: Instant) -> Option<Key> {
        queue.take(now, |_| Priority::Prefetch)
    }

    fn key(name: &str) -> Key {
        ("apps".to_owned(), name.to_owned())
    }

    #[test]
    fn the_earlier_request_holds() {
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
            "woken while it ran, before its own time"
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
        let priority = |key: &Key| match key.1.as_str() {
            "waited for" | "not due" => Priority::Blocking,
            "runs" => Priority::Running,
            _ => Priority::Prefetch,
        };
        for expect in ["waited for", "runs", "ahead", "ahead later"] {
            assert_eq!(queue.take(now, priority), Some(key(expect)));
        }
        assert_eq!(queue.take(now, priority), None);
    }

    fn of(namespace: &str, count: usize) -> Vec<Key> {
        let name = |index| (namespace.to_owned(), format!("{index:04}"));
        (0..count).map(name).collect()
    }

    fn fill(queue: &mut Queue, now: Instant, priority: Priority) -> Vec<Key> {
        std::iter::from_fn(|| queue.take(now, |_| priority)).collect()
    }

    fn count(taken: &[Key], namespace: &str) -> usize {
        taken.iter().filter(|key| key.0 == namespace).count()
    }

    #[test]
    fn a_namespace_takes_half_of_the_free_places_and_no_more() {
        for (priority, half) in [
            (Priority::Blocking, PLACES / 2),
            (Priority::Running, PLACES_AHEAD / 2),
            (Priority::Prefetch, PLACES_AHEAD / 2),
        ] {
            let (mut queue, now) = (Queue::default(), Instant::now());
            // More than are looked through.
            for key in of("a-loud", 3 * LOOKED_AT) {
                queue.wake(&key, now);
            }
            let loud = fill(&mut queue, now, priority);
            assert_eq!(loud.len(), half, "{priority:?}");
            let later = now + Duration::from_secs(1);
            for key in of("other", 3) {
                queue.wake(&key, later);
            }
            let others = fill(&mut queue, later, priority);
            assert_eq!(
                (others.len(), count(&others, "other")),
                (3, 3),
                "{priority:?}"
            );
            // A place that becomes free: the namespace with fewer places is first.
            queue.done(&loud[0], Some(now));
            queue.wake(&("other".to_owned(), "late".to_owned()), later);
            assert_eq!(
                queue.take(later, |_| priority).unwrap().1,
                "late",
                "{priority:?}"
            );
        }
    }

    #[test]
    fn busy_namespaces_leave_a_place_for_another_one() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for namespace in 0..4 {
            for key in of(&format!("loud-{namespace}"), 100) {
                queue.wake(&key, now);
            }
        }
        let loud = fill(&mut queue, now, Priority::Blocking);
        assert!(loud.len() < PLACES, "{}", loud.len());
        for namespace in 0..4 {
            let share = count(&loud, &format!("loud-{namespace}"));
            assert!((6..=7).contains(&share), "{share}");
        }
        queue.wake(&key("other"), now);
        assert_eq!(queue.take(now, |_| Priority::Blocking), Some(key("other")));
    }

    #[test]
    fn what_no_pod_waits_for_keeps_its_places_beside_what_pods_wait_for() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for namespace in ["waits", "ahead"] {
            for key in of(namespace, 100) {
                queue.wake(&key, now);
            }
        }
        let priority = |key: &Key| {
            if key.0 == "waits" {
                Priority::Blocking
            } else {
                Priority::Prefetch
            }
        };
        let taken: Vec<_> = std::iter::from_fn(|| queue.take(now, priority)).collect();
        assert_eq!(count(&taken, "waits"), PLACES / 2);
        assert_eq!(count(&taken, "ahead"), PLACES_AHEAD / 2);
    }

    #[test]
    fn a_run_that_ended_unexpectedly_is_repeated() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.wake(&key("a"), now);
        take(&mut queue, now);
        queue.recover(now);
        assert_eq!(take(&mut queue, now), Some(key("a")));
    }
}
