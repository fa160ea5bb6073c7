//! What waits to be announced: a line for each namespace, taken from in turn, with limits for each and for all. Pure.
//!
//! Whoever reaches the webhook can have images announced, so no namespace may take the others' turns, and what waits is
//! bounded. What is dropped is found by the controller, by the pods themselves.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::Announcement;

/// Announcements that may wait in all.
const WAITING: usize = 4096;
/// Of these, of one namespace.
const WAITING_OF_NAMESPACE: usize = 512;
/// Namespaces whose limits are remembered.
const NAMESPACES: usize = 4096;
/// How often lines of idle namespaces make room.
const SWEEP: Duration = Duration::from_secs(1);
/// How long an image is not announced again: a rollout announces the same image for each of its pods.
const REMEMBERED: Duration = Duration::from_secs(30);

/// How many announcements are taken at once, and how soon one more.
#[derive(Clone, Copy, Debug)]
struct Limit {
    burst: u32,
    every: Duration,
}

/// Of one namespace: a team that installs everything at once, then one a second.
const OF_NAMESPACE: Limit = Limit {
    burst: 200,
    every: Duration::from_secs(1),
};
/// Of all namespaces together.
const OF_ALL: Limit = Limit {
    burst: 1000,
    every: Duration::from_millis(50),
};

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    limit: Limit,
    tokens: u32,
    /// Up to when tokens were given back.
    filled: Instant,
}

impl Bucket {
    fn new(limit: Limit, now: Instant) -> Self {
        Self {
            limit,
            tokens: limit.burst,
            filled: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let every = self.limit.every.as_nanos();
        let since = now.saturating_duration_since(self.filled).as_nanos();
        let earned = u32::try_from(since / every).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(earned).min(self.limit.burst);
        if self.tokens == self.limit.burst {
            self.filled = now;
        } else {
            self.filled += self.limit.every * earned;
        }
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens == self.limit.burst
    }
}

#[derive(Debug)]
struct Line {
    waiting: VecDeque<Announcement>,
    bucket: Bucket,
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// It waits for its turn.
    Taken,
    /// The same was announced a moment ago, or waits.
    Known,
    /// Too many wait.
    Full,
    /// The namespace, or all together, announce too much.
    Limited,
}

/// The lines.
#[derive(Debug)]
pub(super) struct Lines {
    by_namespace: HashMap<String, Line>,
    /// Namespaces of which something waits, the next one first.
    turns: VecDeque<String>,
    waiting: usize,
    bucket: Bucket,
    recent: BTreeSet<(String, String)>,
    recent_since: Instant,
    swept: Option<Instant>,
}

impl Lines {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            by_namespace: HashMap::new(),
            turns: VecDeque::new(),
            waiting: 0,
            bucket: Bucket::new(OF_ALL, now),
            recent: BTreeSet::new(),
            recent_since: now,
            swept: None,
        }
    }

    /// Puts an announcement into its namespace's line.
    pub(super) fn offer(&mut self, announcement: Announcement, now: Instant) -> Offer {
        self.forget_old(now);
        let key = (announcement.namespace.clone(), announcement.source.clone());
        if self.recent.contains(&key) {
            return Offer::Known;
        }
        if self.waiting >= WAITING || self.recent.len() >= WAITING || !self.has_line(&key.0, now) {
            return Offer::Full;
        }
        self.bucket.fill(now);
        let line = self
            .by_namespace
            .entry(key.0.clone())
            .or_insert_with(|| Line {
                waiting: VecDeque::new(),
                bucket: Bucket::new(OF_NAMESPACE, now),
            });
        line.bucket.fill(now);
        if line.waiting.len() >= WAITING_OF_NAMESPACE {
            return Offer::Full;
        }
        if line.bucket.tokens == 0 || self.bucket.tokens == 0 {
            return Offer::Limited;
        }
        line.bucket.tokens -= 1;
        self.bucket.tokens -= 1;
        if line.waiting.is_empty() {
            self.turns.push_back(key.0.clone());
        }
        line.waiting.push_back(announcement);
        self.waiting += 1;
        self.recent.insert(key);
        Offer::Taken
    }

    /// Takes the next one: each namespace in turn.
    pub(super) fn next(&mut self) -> Option<Announcement> {
        let namespace = self.turns.pop_front()?;
        let line = self.by_namespace.get_mut(&namespace)?;
        let announcement = line.waiting.pop_front()?;
        self.waiting -= 1;
        if !line.waiting.is_empty() {
            self.turns.push_back(namespace);
        }
        Some(announcement)
    }

    /// Lets the same be announced again: it failed.
    pub(super) fn failed(&mut self, announcement: &Announcement) {
        self.recent
            .remove(&(announcement.namespace.clone(), announcement.source.clone()));
    }

    /// Whether a namespace has a line, or there is room for one: those that used nothing lately go first.
    fn has_line(&mut self, namespace: &str, now: Instant) -> bool {
        if self.by_namespace.len() < NAMESPACES || self.by_namespace.contains_key(namespace) {
            return true;
        }
        let is_due = |swept: Instant| now.saturating_duration_since(swept) >= SWEEP;
        if self.swept.is_none_or(is_due) {
            self.swept = Some(now);
            self.by_namespace
                .retain(|_, line| !line.waiting.is_empty() || !line.bucket.is_full(now));
        }
        self.by_namespace.len() < NAMESPACES
    }

    fn forget_old(&mut self, now: Instant) {
        if now.saturating_duration_since(self.recent_since) > REMEMBERED {
            self.recent.clear();
            self.recent_since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::announcement;
    use super::*;

    fn offer(lines: &mut Lines, namespace: &str, number: usize, now: Instant) -> Offer {
        let announcement = Announcement {
            namespace: namespace.to_owned(),
            ..announcement(&format!("r.io/a:{number}"))
        };
        lines.offer(announcement, now)
    }

    fn namespaces(lines: &mut Lines, count: usize) -> Vec<String> {
        let next = std::iter::from_fn(|| lines.next());
        next.take(count).map(|next| next.namespace).collect()
    }

    #[test]
    fn namespaces_take_turns_whatever_one_of_them_announces() {
        let now = Instant::now();
        let mut lines = Lines::new(now);
        for number in 0..100 {
            assert_eq!(offer(&mut lines, "loud", number, now), Offer::Taken);
        }
        for namespace in ["a", "b"] {
            offer(&mut lines, namespace, 1, now);
            offer(&mut lines, namespace, 2, now);
        }
        assert_eq!(
            namespaces(&mut lines, 6),
            ["loud", "a", "b", "loud", "a", "b"]
        );
        assert_eq!(namespaces(&mut lines, 1000).len(), 98);
    }

    #[test]
    fn a_namespace_is_limited_and_others_are_not() {
        let now = Instant::now();
        let mut lines = Lines::new(now);
        let burst = OF_NAMESPACE.burst as usize;
        for number in 0..burst {
            assert_eq!(offer(&mut lines, "loud", number, now), Offer::Taken);
        }
        assert_eq!(offer(&mut lines, "loud", burst, now), Offer::Limited);
        assert_eq!(offer(&mut lines, "a", 1, now), Offer::Taken);
        let later = now + OF_NAMESPACE.every;
        assert_eq!(offer(&mut lines, "loud", burst, later), Offer::Taken);
        assert_eq!(offer(&mut lines, "loud", burst + 1, later), Offer::Limited);
    }

    #[test]
    fn invented_namespaces_are_limited_together_and_bounded() {
        let mut now = Instant::now();
        let mut lines = Lines::new(now);
        let (mut taken, offers) = (0_u64, 5 * NAMESPACES as u64);
        let one = announcement("r.io/a:1");
        for number in 0..offers {
            now += Duration::from_millis(10);
            let one = Announcement {
                namespace: format!("invented-{number}"),
                ..one.clone()
            };
            taken += u64::from(lines.offer(one, now) == Offer::Taken);
            assert!(lines.by_namespace.len() <= NAMESPACES);
            assert!(lines.waiting <= WAITING && lines.recent.len() <= WAITING);
            if number % 4 == 0 {
                lines.next();
            }
        }
        let most = u64::from(OF_ALL.burst) + offers * 10 / 50;
        assert!(taken <= most, "{taken} of at most {most}");
        assert!(taken > most / 2, "those that are idle make room: {taken}");
    }

    #[test]
    fn the_same_is_announced_once_until_it_failed_or_time_passed() {
        let now = Instant::now();
        let mut lines = Lines::new(now);
        assert_eq!(offer(&mut lines, "a", 1, now), Offer::Taken);
        assert_eq!(offer(&mut lines, "a", 1, now), Offer::Known);
        assert_eq!(offer(&mut lines, "b", 1, now), Offer::Taken);
        let first = lines.next().unwrap();
        assert_eq!(offer(&mut lines, "a", 1, now), Offer::Known);
        lines.failed(&first);
        assert_eq!(offer(&mut lines, "a", 1, now), Offer::Taken);
        let later = now + REMEMBERED + Duration::from_secs(1);
        assert_eq!(offer(&mut lines, "b", 1, later), Offer::Taken);
    }
}
