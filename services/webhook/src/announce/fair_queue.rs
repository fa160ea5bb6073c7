//! The queue of announcements: one queue per namespace, served round-robin, with limits per
//! namespace and in total. Pure; time is an argument.
//!
//! Any client that reaches the webhook can cause announcements. Round-robin keeps one namespace
//! from delaying the others, and the limits bound memory. Dropped announcements are not lost: the
//! controller finds the images by its watch of pods. Namespaces that are not known to exist share
//! a limit of their own, so requests that invent namespace names do not use up the limit of real
//! ones.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Announcement;
use crate::metrics::Announced;

/// Queued announcements in total.
const MAX_WAITING: usize = 4096;
/// Queued announcements of one namespace.
const MAX_WAITING_PER_NAMESPACE: usize = 512;
/// Bytes of all queued announcements: one may name 64 pull secrets.
const MAX_WAITING_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of the queued announcements of one namespace.
const MAX_WAITING_BYTES_PER_NAMESPACE: usize = 1024 * 1024;
/// Namespaces whose state is kept.
const MAX_NAMESPACES: usize = 4096;
/// Least time between two removals of idle namespaces.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How long an announced image is not announced again: a rollout announces the same image for
/// each of its pods.
const DEDUPLICATION_WINDOW: Duration = Duration::from_secs(30);

/// The parameters of a token bucket: `burst` tokens at most, one more per `every`.
#[derive(Clone, Copy, Debug)]
struct Limit {
    burst: u32,
    every: Duration,
}

/// One namespace: room for a team that installs everything at once, then one per second.
const LIMIT_PER_NAMESPACE: Limit = Limit {
    burst: 200,
    every: Duration::from_secs(1),
};
/// All namespaces that are known to exist, together.
const LIMIT_OF_KNOWN_NAMESPACES: Limit = Limit {
    burst: 1000,
    every: Duration::from_millis(50),
};
/// All other namespaces together: the API server has not accepted an Artifact of theirs yet.
const LIMIT_OF_UNKNOWN_NAMESPACES: Limit = Limit {
    burst: 250,
    every: Duration::from_millis(100),
};

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    limit: Limit,
    tokens: u32,
    /// Tokens are accounted for up to this time.
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
struct NamespaceQueue {
    waiting: VecDeque<Announcement>,
    /// Bytes of `waiting`.
    bytes: usize,
    bucket: Bucket,
    /// Whether the API server accepted an Artifact of the namespace.
    exists: bool,
}

impl NamespaceQueue {
    fn new(now: Instant) -> Self {
        Self {
            waiting: VecDeque::new(),
            bytes: 0,
            bucket: Bucket::new(LIMIT_PER_NAMESPACE, now),
            exists: false,
        }
    }
}

/// The outcome of [`FairQueue::offer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// Queued.
    Queued,
    /// The same image is queued, or was announced a moment ago.
    Duplicate,
    /// A limit on queued announcements is reached.
    Full,
    /// The rate limit of the namespace, or of all together, is reached.
    RateLimited,
}

/// The queue of all announcements.
#[derive(Debug)]
pub(super) struct FairQueue {
    by_namespace: HashMap<Arc<str>, NamespaceQueue>,
    /// Namespaces with queued announcements, the next one first.
    round_robin: VecDeque<Arc<str>>,
    waiting: usize,
    /// Bytes of all queued announcements.
    bytes: usize,
    /// Rate of namespaces that are known to exist.
    known: Bucket,
    /// Rate of all other namespaces.
    unknown: Bucket,
    recent: BTreeSet<(Arc<str>, String)>,
    recent_since: Instant,
    swept: Option<Instant>,
}

impl FairQueue {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            by_namespace: HashMap::new(),
            round_robin: VecDeque::new(),
            waiting: 0,
            bytes: 0,
            known: Bucket::new(LIMIT_OF_KNOWN_NAMESPACES, now),
            unknown: Bucket::new(LIMIT_OF_UNKNOWN_NAMESPACES, now),
            recent: BTreeSet::new(),
            recent_since: now,
            swept: None,
        }
    }

    /// Puts an announcement into the queue of its namespace.
    pub(super) fn offer(&mut self, announcement: Announcement, now: Instant) -> Offer {
        self.forget_old(now);
        let key = (
            Arc::clone(&announcement.namespace),
            announcement.source.clone(),
        );
        if self.recent.contains(&key) {
            return Offer::Duplicate;
        }
        let bytes = announcement.bytes();
        if self.waiting >= MAX_WAITING
            || self.recent.len() >= MAX_WAITING
            || self.bytes + bytes > MAX_WAITING_BYTES
        {
            return Offer::Full;
        }
        let queue = self.by_namespace.get(&key.0);
        let is_new = queue.is_none();
        let shared = if queue.is_some_and(|queue| queue.exists) {
            &mut self.known
        } else {
            &mut self.unknown
        };
        shared.fill(now);
        // Checked before a queue is made: a namespace that may announce nothing costs no memory.
        if shared.tokens == 0 {
            return Offer::RateLimited;
        }
        if is_new && !self.has_room(now) {
            return Offer::Full;
        }
        let queue = self
            .by_namespace
            .entry(Arc::clone(&key.0))
            .or_insert_with(|| NamespaceQueue::new(now));
        queue.bucket.fill(now);
        if queue.waiting.len() >= MAX_WAITING_PER_NAMESPACE
            || queue.bytes + bytes > MAX_WAITING_BYTES_PER_NAMESPACE
        {
            return Offer::Full;
        }
        if queue.bucket.tokens == 0 {
            return Offer::RateLimited;
        }
        queue.bucket.tokens -= 1;
        let shared = if queue.exists {
            &mut self.known
        } else {
            &mut self.unknown
        };
        shared.tokens -= 1;
        if queue.waiting.is_empty() {
            self.round_robin.push_back(Arc::clone(&key.0));
        }
        queue.waiting.push_back(announcement);
        queue.bytes += bytes;
        self.bytes += bytes;
        self.waiting += 1;
        self.recent.insert(key);
        Offer::Queued
    }

    /// Takes the next announcement, round-robin among namespaces.
    pub(super) fn next(&mut self) -> Option<Announcement> {
        let namespace = self.round_robin.pop_front()?;
        let queue = self.by_namespace.get_mut(&namespace)?;
        let announcement = queue.waiting.pop_front()?;
        let bytes = announcement.bytes();
        queue.bytes -= bytes;
        self.bytes -= bytes;
        self.waiting -= 1;
        if !queue.waiting.is_empty() {
            self.round_robin.push_back(namespace);
        }
        Some(announcement)
    }

    /// Records the outcome of an announcement. A failed one may be announced again; any other shows
    /// that its namespace exists.
    pub(super) fn ended(&mut self, announcement: &Announcement, announced: Announced) {
        if announced == Announced::Failed {
            let key = (
                Arc::clone(&announcement.namespace),
                announcement.source.clone(),
            );
            self.recent.remove(&key);
        } else if let Some(queue) = self.by_namespace.get_mut(&announcement.namespace) {
            queue.exists = true;
        }
    }

    /// Whether one more namespace can be kept. Removes idle namespaces if needed, first those that
    /// may not exist.
    fn has_room(&mut self, now: Instant) -> bool {
        let is_due = |swept: Instant| now.saturating_duration_since(swept) >= SWEEP_INTERVAL;
        if self.by_namespace.len() >= MAX_NAMESPACES && self.swept.is_none_or(is_due) {
            self.swept = Some(now);
            for existing in [false, true] {
                if self.by_namespace.len() >= MAX_NAMESPACES {
                    self.by_namespace.retain(|_, queue| {
                        queue.exists != existing
                            || !queue.waiting.is_empty()
                            || !queue.bucket.is_full(now)
                    });
                }
            }
        }
        self.by_namespace.len() < MAX_NAMESPACES
    }

    fn forget_old(&mut self, now: Instant) {
        if now.saturating_duration_since(self.recent_since) > DEDUPLICATION_WINDOW {
            self.recent.clear();
            self.recent_since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::announcement;
    use super::*;

    fn offer(queue: &mut FairQueue, namespace: &str, number: usize, now: Instant) -> Offer {
        let announcement = Announcement {
            namespace: namespace.into(),
            ..announcement(&format!("r.io/a:{number}"))
        };
        queue.offer(announcement, now)
    }

    fn namespaces(queue: &mut FairQueue, count: usize) -> Vec<String> {
        let next = std::iter::from_fn(|| queue.next());
        next.take(count)
            .map(|next| next.namespace.to_string())
            .collect()
    }

    #[test]
    fn namespaces_are_served_round_robin() {
        let now = Instant::now();
        let mut queue = FairQueue::new(now);
        for number in 0..100 {
            assert_eq!(offer(&mut queue, "loud", number, now), Offer::Queued);
        }
        for namespace in ["a", "b"] {
            offer(&mut queue, namespace, 1, now);
            offer(&mut queue, namespace, 2, now);
        }
        assert_eq!(
            namespaces(&mut queue, 6),
            ["loud", "a", "b", "loud", "a", "b"]
        );
        assert_eq!(namespaces(&mut queue, 1000).len(), 98);
    }

    #[test]
    fn a_namespace_is_limited_and_others_are_not() {
        let now = Instant::now();
        let mut queue = FairQueue::new(now);
        let burst = LIMIT_PER_NAMESPACE.burst as usize;
        for number in 0..burst {
            assert_eq!(offer(&mut queue, "loud", number, now), Offer::Queued);
        }
        assert_eq!(offer(&mut queue, "loud", burst, now), Offer::RateLimited);
        assert_eq!(offer(&mut queue, "a", 1, now), Offer::Queued);
        let later = now + LIMIT_PER_NAMESPACE.every;
        assert_eq!(offer(&mut queue, "loud", burst, later), Offer::Queued);
        assert_eq!(
            offer(&mut queue, "loud", burst + 1, later),
            Offer::RateLimited
        );
    }

    /// Offers as fast as the limits allow, `waiting` times; each must be taken.
    fn fill(queue: &mut FairQueue, now: &mut Instant, namespaces: usize, waiting: usize) {
        for number in queue.waiting..waiting {
            *now += LIMIT_PER_NAMESPACE.every / u32::try_from(namespaces).unwrap();
            let namespace = format!("n{}", number % namespaces);
            let offer = offer(queue, &namespace, number, *now);
            assert_eq!(offer, Offer::Queued, "{number}");
        }
    }

    #[test]
    fn the_queued_announcements_of_a_namespace_are_bounded() {
        let mut now = Instant::now();
        let mut queue = FairQueue::new(now);
        fill(&mut queue, &mut now, 1, MAX_WAITING_PER_NAMESPACE);
        // It could announce: all of its limit is there again.
        now += LIMIT_PER_NAMESPACE.every * LIMIT_PER_NAMESPACE.burst;
        for number in 0..3 {
            let further = MAX_WAITING_PER_NAMESPACE + number;
            assert_eq!(offer(&mut queue, "n0", further, now), Offer::Full);
        }
        assert_eq!(queue.waiting, MAX_WAITING_PER_NAMESPACE);
        assert_eq!(offer(&mut queue, "a", 1, now), Offer::Queued);
        assert_eq!(&*queue.next().unwrap().namespace, "n0");
        let further = MAX_WAITING_PER_NAMESPACE;
        assert_eq!(offer(&mut queue, "n0", further, now), Offer::Queued);
        assert_eq!(offer(&mut queue, "n0", further + 1, now), Offer::Full);
    }

    #[test]
    fn all_queued_announcements_are_bounded() {
        let mut now = Instant::now();
        let mut queue = FairQueue::new(now);
        let namespaces = MAX_WAITING / MAX_WAITING_PER_NAMESPACE + 1;
        fill(&mut queue, &mut now, namespaces, MAX_WAITING);
        // No other limit is reached: none of a namespace, and what was announced is forgotten.
        now += DEDUPLICATION_WINDOW + LIMIT_PER_NAMESPACE.every * LIMIT_PER_NAMESPACE.burst;
        for namespace in ["n0", "n8", "new"] {
            assert_eq!(offer(&mut queue, namespace, MAX_WAITING, now), Offer::Full);
        }
        assert!(queue.recent.len() < MAX_WAITING && queue.bytes < MAX_WAITING_BYTES);
        let queues = queue.by_namespace.values();
        assert!(
            queues
                .clone()
                .all(|queue| queue.waiting.len() < MAX_WAITING_PER_NAMESPACE)
        );
        assert_eq!(queue.waiting, MAX_WAITING);
        queue.next().unwrap();
        assert_eq!(offer(&mut queue, "new", MAX_WAITING, now), Offer::Queued);
        assert_eq!(offer(&mut queue, "new", MAX_WAITING + 1, now), Offer::Full);
    }

    #[test]
    fn invented_namespaces_are_limited_together_and_bounded() {
        let mut now = Instant::now();
        let mut queue = FairQueue::new(now);
        let (mut taken, offers) = (0_u64, 5 * MAX_NAMESPACES as u64);
        let one = announcement("r.io/a:1");
        for number in 0..offers {
            now += Duration::from_millis(10);
            let one = Announcement {
                namespace: format!("invented-{number}").into(),
                ..one.clone()
            };
            taken += u64::from(queue.offer(one, now) == Offer::Queued);
            assert!(queue.by_namespace.len() <= MAX_NAMESPACES);
            assert!(queue.waiting <= MAX_WAITING && queue.recent.len() <= MAX_WAITING);
            if number % 4 == 0 {
                queue.next();
            }
        }
        let most = u64::from(LIMIT_OF_UNKNOWN_NAMESPACES.burst) + offers * 10 / 100;
        assert!(taken <= most, "{taken} of at most {most}");
        assert!(taken > most / 2, "those that are idle make room: {taken}");
    }

    #[test]
    fn namespaces_that_exist_are_limited_together() {
        let now = Instant::now();
        let mut queue = FairQueue::new(now);
        for namespace in 0..10 {
            assert_eq!(
                offer(&mut queue, &format!("n{namespace}"), 0, now),
                Offer::Queued
            );
            let next = queue.next().unwrap();
            queue.ended(&next, Announced::Present);
        }
        let mut taken = 0;
        for number in 1..=150 {
            for namespace in 0..10 {
                let offer = offer(&mut queue, &format!("n{namespace}"), number, now);
                taken += u32::from(offer == Offer::Queued);
            }
        }
        assert_eq!(taken, LIMIT_OF_KNOWN_NAMESPACES.burst);
        assert_eq!(offer(&mut queue, "new", 0, now), Offer::Queued);
    }

    #[test]
    fn invented_namespaces_use_up_nothing_of_those_that_exist() {
        let mut now = Instant::now();
        let mut queue = FairQueue::new(now);
        assert_eq!(offer(&mut queue, "team", 0, now), Offer::Queued);
        let first = queue.next().unwrap();
        queue.ended(&first, Announced::Created);
        for second in 1..60 {
            now += Duration::from_secs(1);
            for number in 0..200 {
                let invented = format!("invented-{second}-{number}");
                if offer(&mut queue, &invented, 0, now) == Offer::Queued && number % 2 == 0 {
                    let next = queue.next().unwrap();
                    queue.ended(&next, Announced::Failed);
                }
            }
            assert_eq!(offer(&mut queue, "team", second, now), Offer::Queued);
        }
    }

    #[test]
    fn bytes_that_wait_are_bounded_of_a_namespace_and_in_all() {
        let now = Instant::now();
        let mut queue = FairQueue::new(now);
        let secrets: Vec<String> = (0..64).map(|index| format!("{index:0>253}")).collect();
        let secrets: Arc<[String]> = secrets.into();
        let mut large = |namespace: usize, number: usize| {
            let one = Announcement {
                namespace: format!("n{namespace}").into(),
                pull_secrets: Arc::clone(&secrets),
                ..announcement(&format!("r.io/a:{number}"))
            };
            let offer = queue.offer(one, now);
            assert!(queue.bytes <= MAX_WAITING_BYTES);
            offer
        };
        let bytes = 64 * 253;
        let of_namespace = MAX_WAITING_BYTES_PER_NAMESPACE / (bytes + 30);
        for number in 0..of_namespace {
            assert_eq!(large(0, number), Offer::Queued);
        }
        assert_eq!(large(0, of_namespace), Offer::Full);
        assert_eq!(large(1, 0), Offer::Queued);
        let room = MAX_WAITING_BYTES_PER_NAMESPACE / bytes * 3;
        let mut taken = of_namespace + 1;
        for number in 0..room {
            taken += usize::from(large(2 + number % 8, number) == Offer::Queued);
        }
        // New namespaces run into their own limit before; those that exist into this one.
        assert_eq!(taken, LIMIT_OF_UNKNOWN_NAMESPACES.burst as usize);
        for _ in 0..taken {
            let next = queue.next().unwrap();
            queue.ended(&next, Announced::Created);
        }
        assert_eq!(queue.bytes, 0);
        let mut taken = 0;
        let later = now + DEDUPLICATION_WINDOW + Duration::from_secs(1);
        for number in 0..2 * MAX_WAITING_BYTES / bytes {
            let one = Announcement {
                namespace: format!("n{}", number % 10).into(),
                pull_secrets: Arc::clone(&secrets),
                ..announcement(&format!("r.io/a:{number}"))
            };
            taken += usize::from(queue.offer(one, later) == Offer::Queued);
            assert!(queue.bytes <= MAX_WAITING_BYTES);
        }
        assert!(taken > MAX_WAITING_BYTES / (bytes + 100) - 2, "{taken}");
    }

    #[test]
    fn the_same_is_announced_once_until_it_failed_or_time_passed() {
        let now = Instant::now();
        let mut queue = FairQueue::new(now);
        assert_eq!(offer(&mut queue, "a", 1, now), Offer::Queued);
        assert_eq!(offer(&mut queue, "a", 1, now), Offer::Duplicate);
        assert_eq!(offer(&mut queue, "b", 1, now), Offer::Queued);
        let first = queue.next().unwrap();
        assert_eq!(offer(&mut queue, "a", 1, now), Offer::Duplicate);
        queue.ended(&first, Announced::Failed);
        assert_eq!(offer(&mut queue, "a", 1, now), Offer::Queued);
        let later = now + DEDUPLICATION_WINDOW + Duration::from_secs(1);
        assert_eq!(offer(&mut queue, "b", 1, later), Offer::Queued);
    }
}
