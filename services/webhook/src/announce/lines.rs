//! What waits to be announced: a line for each namespace, taken from in turn, with limits for each
//! and for all. Pure.
//!
//! Whoever reaches the webhook can have images announced, so no namespace may take the others'
//! turns, and what waits is bounded. What is dropped is found by the controller, by the pods
//! themselves. Namespaces of which it is not known that they exist have a limit of their own, so
//! that invented ones use up nothing that others need.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Announcement;
use crate::metrics::Announced;

/// Announcements that may wait in all.
const WAITING: usize = 4096;
/// Of these, of one namespace.
const WAITING_OF_NAMESPACE: usize = 512;
/// Bytes of all that wait: an announcement may name 64 pull secrets.
const WAITING_BYTES: usize = 8 * 1024 * 1024;
/// Of these, of one namespace.
const WAITING_BYTES_OF_NAMESPACE: usize = 1024 * 1024;
/// Namespaces whose limits are remembered.
const NAMESPACES: usize = 4096;
/// How often lines of idle namespaces make room.
const SWEEP: Duration = Duration::from_secs(1);
/// How long an image is not announced again: a rollout announces the same image for each of its
/// pods.
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
/// Of all namespaces together that are known to exist.
const OF_ALL: Limit = Limit {
    burst: 1000,
    every: Duration::from_millis(50),
};
/// Of all others together: the API server has taken no Artifact of theirs yet.
const OF_UNKNOWN: Limit = Limit {
    burst: 250,
    every: Duration::from_millis(100),
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
    /// Bytes of these.
    bytes: usize,
    bucket: Bucket,
    /// Whether the API server took an Artifact of the namespace.
    exists: bool,
}

impl Line {
    fn new(now: Instant) -> Self {
        Self {
            waiting: VecDeque::new(),
            bytes: 0,
            bucket: Bucket::new(OF_NAMESPACE, now),
            exists: false,
        }
    }
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
    by_namespace: HashMap<Arc<str>, Line>,
    /// Namespaces of which something waits, the next one first.
    turns: VecDeque<Arc<str>>,
    waiting: usize,
    /// Bytes of all that wait.
    bytes: usize,
    /// Of namespaces that exist.
    bucket: Bucket,
    /// Of all others.
    unknown: Bucket,
    recent: BTreeSet<(Arc<str>, String)>,
    recent_since: Instant,
    swept: Option<Instant>,
}

impl Lines {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            by_namespace: HashMap::new(),
            turns: VecDeque::new(),
            waiting: 0,
            bytes: 0,
            bucket: Bucket::new(OF_ALL, now),
            unknown: Bucket::new(OF_UNKNOWN, now),
            recent: BTreeSet::new(),
            recent_since: now,
            swept: None,
        }
    }

    /// Puts an announcement into its namespace's line.
    pub(super) fn offer(&mut self, announcement: Announcement, now: Instant) -> Offer {
        self.forget_old(now);
        let key = (
            Arc::clone(&announcement.namespace),
            announcement.source.clone(),
        );
        if self.recent.contains(&key) {
            return Offer::Known;
        }
        let bytes = announcement.bytes();
        if self.waiting >= WAITING
            || self.recent.len() >= WAITING
            || self.bytes + bytes > WAITING_BYTES
        {
            return Offer::Full;
        }
        let known = self.by_namespace.get(&key.0);
        let shared = if known.is_some_and(|line| line.exists) {
            &mut self.bucket
        } else {
            &mut self.unknown
        };
        shared.fill(now);
        // Before it gets a line: a namespace that may announce nothing takes no room.
        if shared.tokens == 0 {
            return Offer::Limited;
        }
        if known.is_none() && !self.has_room(now) {
            return Offer::Full;
        }
        let line = self
            .by_namespace
            .entry(Arc::clone(&key.0))
            .or_insert_with(|| Line::new(now));
        line.bucket.fill(now);
        if line.waiting.len() >= WAITING_OF_NAMESPACE
            || line.bytes + bytes > WAITING_BYTES_OF_NAMESPACE
        {
            return Offer::Full;
        }
        if line.bucket.tokens == 0 {
            return Offer::Limited;
        }
        line.bucket.tokens -= 1;
        let shared = if line.exists {
            &mut self.bucket
        } else {
            &mut self.unknown
        };
        shared.tokens -= 1;
        if line.waiting.is_empty() {
            self.turns.push_back(Arc::clone(&key.0));
        }
        line.waiting.push_back(announcement);
        line.bytes += bytes;
        self.bytes += bytes;
        self.waiting += 1;
        self.recent.insert(key);
        Offer::Taken
    }

    /// Takes the next one: each namespace in turn.
    pub(super) fn next(&mut self) -> Option<Announcement> {
        let namespace = self.turns.pop_front()?;
        let line = self.by_namespace.get_mut(&namespace)?;
        let announcement = line.waiting.pop_front()?;
        let bytes = announcement.bytes();
        line.bytes -= bytes;
        self.bytes -= bytes;
        self.waiting -= 1;
        if !line.waiting.is_empty() {
            self.turns.push_back(namespace);
        }
        Some(announcement)
    }

    /// Takes in how an announcement ended. What failed may be announced again; what did not shows
    /// that its namespace exists.
    pub(super) fn ended(&mut self, announcement: &Announcement, announced: Announced) {
        if announced == Announced::Failed {
            let key = (
                Arc::clone(&announcement.namespace),
                announcement.source.clone(),
            );
            self.recent.remove(&key);
        } else if let Some(line) = self.by_namespace.get_mut(&announcement.namespace) {
            line.exists = true;
        }
    }

    /// Whether there is room for a line: those that used nothing lately go, first those of
    /// namespaces that may not exist.
    fn has_room(&mut self, now: Instant) -> bool {
        let is_due = |swept: Instant| now.saturating_duration_since(swept) >= SWEEP;
        if self.by_namespace.len() >= NAMESPACES && self.swept.is_none_or(is_due) {
            self.swept = Some(now);
            for existing in [false, true] {
                if self.by_namespace.len() >= NAMESPACES {
                    self.by_namespace.retain(|_, line| {
                        line.exists != existing
                            || !line.waiting.is_empty()
                            || !line.bucket.is_full(now)
                    });
                }
            }
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
            namespace: namespace.into(),
            ..announcement(&format!("r.io/a:{number}"))
        };
        lines.offer(announcement, now)
    }

    fn namespaces(lines: &mut Lines, count: usize) -> Vec<String> {
        let next = std::iter::from_fn(|| lines.next());
        next.take(count)
            .map(|next| next.namespace.to_string())
            .collect()
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

    /// Offers as fast as the limits allow, `waiting` times; each must be taken.
    fn fill(lines: &mut Lines, now: &mut Instant, namespaces: usize, waiting: usize) {
        for number in lines.waiting..waiting {
            *now += OF_NAMESPACE.every / u32::try_from(namespaces).unwrap();
            let namespace = format!("n{}", number % namespaces);
            let offer = offer(lines, &namespace, number, *now);
            assert_eq!(offer, Offer::Taken, "{number}");
        }
    }

    #[test]
    fn so_many_announcements_of_a_namespace_wait_and_no_more() {
        let mut now = Instant::now();
        let mut lines = Lines::new(now);
        fill(&mut lines, &mut now, 1, WAITING_OF_NAMESPACE);
        // It could announce: all of its limit is there again.
        now += OF_NAMESPACE.every * OF_NAMESPACE.burst;
        for number in 0..3 {
            let further = WAITING_OF_NAMESPACE + number;
            assert_eq!(offer(&mut lines, "n0", further, now), Offer::Full);
        }
        assert_eq!(lines.waiting, WAITING_OF_NAMESPACE);
        assert_eq!(offer(&mut lines, "a", 1, now), Offer::Taken);
        assert_eq!(&*lines.next().unwrap().namespace, "n0");
        let further = WAITING_OF_NAMESPACE;
        assert_eq!(offer(&mut lines, "n0", further, now), Offer::Taken);
        assert_eq!(offer(&mut lines, "n0", further + 1, now), Offer::Full);
    }

    #[test]
    fn so_many_announcements_wait_in_all_and_no_more() {
        let mut now = Instant::now();
        let mut lines = Lines::new(now);
        let namespaces = WAITING / WAITING_OF_NAMESPACE + 1;
        fill(&mut lines, &mut now, namespaces, WAITING);
        // No other limit is reached: none of a namespace, and what was announced is forgotten.
        now += REMEMBERED + OF_NAMESPACE.every * OF_NAMESPACE.burst;
        for namespace in ["n0", "n8", "new"] {
            assert_eq!(offer(&mut lines, namespace, WAITING, now), Offer::Full);
        }
        assert!(lines.recent.len() < WAITING && lines.bytes < WAITING_BYTES);
        let lines_of = lines.by_namespace.values();
        assert!(
            lines_of
                .clone()
                .all(|line| line.waiting.len() < WAITING_OF_NAMESPACE)
        );
        assert_eq!(lines.waiting, WAITING);
        lines.next().unwrap();
        assert_eq!(offer(&mut lines, "new", WAITING, now), Offer::Taken);
        assert_eq!(offer(&mut lines, "new", WAITING + 1, now), Offer::Full);
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
                namespace: format!("invented-{number}").into(),
                ..one.clone()
            };
            taken += u64::from(lines.offer(one, now) == Offer::Taken);
            assert!(lines.by_namespace.len() <= NAMESPACES);
            assert!(lines.waiting <= WAITING && lines.recent.len() <= WAITING);
            if number % 4 == 0 {
                lines.next();
            }
        }
        let most = u64::from(OF_UNKNOWN.burst) + offers * 10 / 100;
        assert!(taken <= most, "{taken} of at most {most}");
        assert!(taken > most / 2, "those that are idle make room: {taken}");
    }

    #[test]
    fn namespaces_that_exist_are_limited_together() {
        let now = Instant::now();
        let mut lines = Lines::new(now);
        for namespace in 0..10 {
            assert_eq!(
                offer(&mut lines, &format!("n{namespace}"), 0, now),
                Offer::Taken
            );
            let next = lines.next().unwrap();
            lines.ended(&next, Announced::Present);
        }
        let mut taken = 0;
        for number in 1..=150 {
            for namespace in 0..10 {
                let offer = offer(&mut lines, &format!("n{namespace}"), number, now);
                taken += u32::from(offer == Offer::Taken);
            }
        }
        assert_eq!(taken, OF_ALL.burst);
        assert_eq!(offer(&mut lines, "new", 0, now), Offer::Taken);
    }

    #[test]
    fn invented_namespaces_use_up_nothing_of_those_that_exist() {
        let mut now = Instant::now();
        let mut lines = Lines::new(now);
        assert_eq!(offer(&mut lines, "team", 0, now), Offer::Taken);
        let first = lines.next().unwrap();
        lines.ended(&first, Announced::Created);
        for second in 1..60 {
            now += Duration::from_secs(1);
            for number in 0..200 {
                let invented = format!("invented-{second}-{number}");
                if offer(&mut lines, &invented, 0, now) == Offer::Taken && number % 2 == 0 {
                    let next = lines.next().unwrap();
                    lines.ended(&next, Announced::Failed);
                }
            }
            assert_eq!(offer(&mut lines, "team", second, now), Offer::Taken);
        }
    }

    #[test]
    fn bytes_that_wait_are_bounded_of_a_namespace_and_in_all() {
        let now = Instant::now();
        let mut lines = Lines::new(now);
        let secrets: Vec<String> = (0..64).map(|index| format!("{index:0>253}")).collect();
        let secrets: Arc<[String]> = secrets.into();
        let mut large = |namespace: usize, number: usize| {
            let one = Announcement {
                namespace: format!("n{namespace}").into(),
                pull_secrets: Arc::clone(&secrets),
                ..announcement(&format!("r.io/a:{number}"))
            };
            let offer = lines.offer(one, now);
            assert!(lines.bytes <= WAITING_BYTES);
            offer
        };
        let bytes = 64 * 253;
        let of_namespace = WAITING_BYTES_OF_NAMESPACE / (bytes + 30);
        for number in 0..of_namespace {
            assert_eq!(large(0, number), Offer::Taken);
        }
        assert_eq!(large(0, of_namespace), Offer::Full);
        assert_eq!(large(1, 0), Offer::Taken);
        let room = WAITING_BYTES_OF_NAMESPACE / bytes * 3;
        let mut taken = of_namespace + 1;
        for number in 0..room {
            taken += usize::from(large(2 + number % 8, number) == Offer::Taken);
        }
        // New namespaces run into their own limit before; those that exist into this one.
        assert_eq!(taken, OF_UNKNOWN.burst as usize);
        for _ in 0..taken {
            let next = lines.next().unwrap();
            lines.ended(&next, Announced::Created);
        }
        assert_eq!(lines.bytes, 0);
        let mut taken = 0;
        let later = now + REMEMBERED + Duration::from_secs(1);
        for number in 0..2 * WAITING_BYTES / bytes {
            let one = Announcement {
                namespace: format!("n{}", number % 10).into(),
                pull_secrets: Arc::clone(&secrets),
                ..announcement(&format!("r.io/a:{number}"))
            };
            taken += usize::from(lines.offer(one, later) == Offer::Taken);
            assert!(lines.bytes <= WAITING_BYTES);
        }
        assert!(taken > WAITING_BYTES / (bytes + 100) - 2, "{taken}");
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
        lines.ended(&first, Announced::Failed);
        assert_eq!(offer(&mut lines, "a", 1, now), Offer::Taken);
        let later = now + REMEMBERED + Duration::from_secs(1);
        assert_eq!(offer(&mut lines, "b", 1, later), Offer::Taken);
    }
}
