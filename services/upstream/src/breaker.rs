//! The circuit breaker of one endpoint: a pure state machine, time passed in.
//!
//! The breaker opens when the endpoint cannot be connected to, or fails for one repository after
//! the other. It stays open until a probe from the background succeeds, or an earlier request is
//! answered; no new request is sent meanwhile. When only one repository fails, requests for that
//! repository stop for a while, and a probe of the API decides whether more is wrong. A pause that
//! the endpoint asked for (429) ends by itself.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    time::{Duration, Instant, SystemTime},
};

/// Failures in a row that count: of connections, of one repository, of different repositories.
pub(super) const FAILURES: u32 = 3;
/// Failures are forgotten after this time.
const FORGET: Duration = Duration::from_secs(60);
/// The longest time that one repository is not asked for: no probe ends it.
const REPOSITORY_MAX: Duration = Duration::from_secs(60);
/// Repositories whose failures are remembered; above, those that failed longest ago go.
const MAX_REPOSITORIES: usize = 256;

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure<'a> {
    /// There was no connection: no name, no port, no trusted certificate.
    Connection,
    /// The endpoint was reached, and failed for this repository.
    Repository(&'a str),
}

/// What went wrong last, and since when nothing worked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause {
    text: String,
    since: SystemTime,
    /// When it may be asked again, as its answers say (5xx with `Retry-After`).
    asked: Option<Instant>,
}

impl Cause {
    /// The rest of the time that the answers asked for.
    pub(super) fn asked(&self, now: Instant) -> Option<Duration> {
        let left = self.asked?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.text)?;
        let since = jiff::Timestamp::try_from(self.since);
        since.map_or(Ok(()), |since| write!(f, ", failing since {since:.0}"))
    }
}

/// Why a request is not sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rejection {
    /// The endpoint failed; the probe is due after this time.
    Endpoint(Cause, Duration),
    /// It failed for this repository, which is asked for again after this time.
    Repository(Cause, Duration),
    /// It asked for a pause of this length.
    Pause(Duration),
}

/// The failures of one repository.
#[derive(Debug, Clone)]
struct RepositoryFailures {
    failures: u32,
    last: Instant,
    until: Option<Instant>,
    pause: Duration,
    cause: Cause,
}

/// Whether an endpoint may be asked.
#[derive(Debug, Clone)]
pub(super) struct Breaker {
    /// Connections in a row that failed, and when the last one did.
    connections: (u32, Option<Instant>),
    /// Different repositories that failed with no answer between, and when the last one did.
    streak: (BTreeSet<String>, Option<Instant>),
    repositories: HashMap<String, RepositoryFailures>,
    /// What went wrong last; the time is that of the first failure since the last answer.
    cause: Option<Cause>,
    /// When the next probe is due, while it is open.
    probe_at: Option<Instant>,
    /// Whether a probe runs.
    probing: bool,
    paused_until: Option<Instant>,
    open_for: Duration,
    min: Duration,
    max: Duration,
}

impl Breaker {
    /// A closed breaker that is probed after `min`, and after twice as long each time, up to `max`.
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self {
            connections: (0, None),
            streak: (BTreeSet::new(), None),
            repositories: HashMap::new(),
            cause: None,
            probe_at: None,
            probing: false,
            paused_until: None,
            open_for: min,
            min,
            max,
        }
    }

    /// Why a repository is not to be asked for, as far as is known; `None` when it may be.
    pub(super) fn rejection(&self, repository: &str, now: Instant) -> Option<Rejection> {
        let of_all = self.rejection_of_all(now);
        if of_all.is_some() {
            return of_all;
        }
        let failing = self.repositories.get(repository)?;
        let left = failing.until?.saturating_duration_since(now);
        (!left.is_zero()).then(|| Rejection::Repository(failing.cause.clone(), left))
    }

    /// Why nothing is to be asked for.
    pub(super) fn rejection_of_all(&self, now: Instant) -> Option<Rejection> {
        let left = |until: Instant| until.saturating_duration_since(now);
        if let Some(probe_at) = self.probe_at {
            let unknown = || Cause {
                text: "it fails".to_owned(),
                since: SystemTime::UNIX_EPOCH,
                asked: None,
            };
            let cause = self.cause.clone().unwrap_or_else(unknown);
            return Some(Rejection::Endpoint(cause, left(probe_at)));
        }
        let pause = self.paused_until.map(left);
        pause.filter(|pause| !pause.is_zero()).map(Rejection::Pause)
    }

    /// Whether it is open: no new request is sent. A probe or the answer to an earlier request
    /// closes it.
    pub(super) fn is_open(&self) -> bool {
        self.probe_at.is_some()
    }

    /// Records a failure. Returns when a probe is to begin, if one is.
    pub(super) fn failed(
        &mut self,
        failure: Failure<'_>,
        text: &str,
        now: Instant,
        clock: SystemTime,
    ) -> Option<Duration> {
        self.blame(text, clock);
        if self.is_open() {
            return None;
        }
        let is_old = |last: Option<Instant>| {
            last.is_none_or(|last| now.saturating_duration_since(last) >= FORGET)
        };
        let suspect = match failure {
            Failure::Connection => {
                let before = if is_old(self.connections.1) {
                    0
                } else {
                    self.connections.0
                };
                self.connections = (before + 1, Some(now));
                if self.connections.0 >= FAILURES {
                    let wait = self.open(now);
                    return self.begin_probing(wait);
                }
                false
            }
            Failure::Repository(name) => {
                if is_old(self.streak.1) {
                    self.streak.0.clear();
                }
                self.streak.1 = Some(now);
                if self.streak.0.len() < FAILURES as usize {
                    self.streak.0.insert(name.to_owned());
                }
                if self.streak.0.len() >= FAILURES as usize {
                    let wait = self.open(now);
                    return self.begin_probing(wait);
                }
                self.count(name, text, now, clock)
            }
        };
        if suspect {
            self.begin_probing(Duration::ZERO)
        } else {
            None
        }
    }

    /// Counts a failure of one repository; whether it is not asked for from now on.
    fn count(&mut self, name: &str, text: &str, now: Instant, clock: SystemTime) -> bool {
        self.repositories.retain(|_, known| {
            known.until.is_some_and(|until| until > now)
                || now.saturating_duration_since(known.last) < FORGET
        });
        if self.repositories.len() >= MAX_REPOSITORIES && !self.repositories.contains_key(name) {
            let oldest = self.repositories.iter().min_by_key(|(_, known)| known.last);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.repositories.remove(&oldest);
            }
        }
        let pause = self.min;
        let known =
            self.repositories
                .entry(name.to_owned())
                .or_insert_with(|| RepositoryFailures {
                    failures: 0,
                    last: now,
                    until: None,
                    pause,
                    cause: Cause {
                        text: String::new(),
                        since: clock,
                        asked: None,
                    },
                });
        known.failures += 1;
        known.last = now;
        text.clone_into(&mut known.cause.text);
        if known.failures < FAILURES || known.until.is_some_and(|until| until > now) {
            return false;
        }
        known.until = Some(now + known.pause);
        known.pause = (known.pause * 2).min(REPOSITORY_MAX.min(self.max));
        true
    }

    fn blame(&mut self, text: &str, clock: SystemTime) {
        let before = self.cause.as_ref();
        self.cause = Some(Cause {
            text: text.to_owned(),
            since: before.map_or(clock, |cause| cause.since),
            asked: before.and_then(|cause| cause.asked),
        });
    }

    /// Records the time that a failed answer asks for until the next request. Clients get it.
    /// The breaker does not wait for it: one server of many may say so, and the next one answers.
    pub(super) fn asks_for(&mut self, repository: &str, until: Instant) {
        let of_repository = self.repositories.get_mut(repository);
        let causes = of_repository.map(|known| &mut known.cause).into_iter();
        for cause in causes.chain(self.cause.as_mut()) {
            cause.asked = Some(until);
        }
    }

    fn begin_probing(&mut self, wait: Duration) -> Option<Duration> {
        if self.probing {
            return None;
        }
        self.probing = true;
        Some(wait)
    }

    /// Stays open, or opens; how long until the next probe.
    fn open(&mut self, now: Instant) -> Duration {
        let period = self.open_for;
        self.probe_at = Some(now + period);
        self.open_for = (period * 2).min(self.max);
        period
    }

    /// Records a probe without an answer; when to probe next.
    pub(super) fn probe_failed(&mut self, text: &str, now: Instant, clock: SystemTime) -> Duration {
        self.blame(text, clock);
        self.open(now)
    }

    /// Records a probe with an answer: the endpoint lives. True when this closed it.
    pub(super) fn probe_answered(&mut self) -> bool {
        self.probing = false;
        let was_open = self.is_open();
        if was_open {
            // Failures while nothing worked do not count any more.
            self.repositories.clear();
        }
        self.lives();
        was_open
    }

    /// Records that the probe ended.
    pub(super) fn probe_ended(&mut self) {
        self.probing = false;
    }

    /// Records an answer for a repository.
    pub(super) fn succeeded(&mut self, repository: &str) {
        if self.is_open() {
            self.repositories.clear();
        }
        self.repositories.remove(repository);
        self.lives();
    }

    fn lives(&mut self) {
        self.connections = (0, None);
        self.streak = (BTreeSet::new(), None);
        self.cause = None;
        self.probe_at = None;
        self.open_for = self.min;
    }

    /// The endpoint asked for a pause (429 with `Retry-After`).
    pub(super) fn pause(&mut self, now: Instant, period: Duration) {
        self.paused_until = self.paused_until.max(Some(now + period));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn new() -> (Breaker, Instant, SystemTime) {
        let clock = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        (
            Breaker::new(5 * SECOND, 300 * SECOND),
            Instant::now(),
            clock,
        )
    }

    #[test]
    fn three_lost_connections_open_it_until_a_probe_answers() {
        let (mut breaker, start, clock) = new();
        let fail = |breaker: &mut Breaker, at: u32| {
            breaker.failed(
                Failure::Connection,
                "connection refused",
                start + at * SECOND,
                clock + at * SECOND,
            )
        };
        assert_eq!(fail(&mut breaker, 0), None);
        assert_eq!(fail(&mut breaker, 0), None);
        assert_eq!(breaker.rejection("a", start), None);
        assert_eq!(fail(&mut breaker, 0), Some(5 * SECOND));
        let cause = Cause {
            text: "connection refused".to_owned(),
            since: clock,
            asked: None,
        };
        assert_eq!(
            breaker.rejection("a", start + 4 * SECOND),
            Some(Rejection::Endpoint(cause.clone(), SECOND))
        );
        assert_eq!(
            cause.to_string(),
            "connection refused, failing since 2027-01-15T08:00:00Z"
        );
        assert_eq!(fail(&mut breaker, 4), None, "already open");
        assert_eq!(
            breaker.rejection("a", start + 60 * SECOND),
            Some(Rejection::Endpoint(cause, Duration::ZERO)),
            "the probe may be late: no request goes before it"
        );
        for expect in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(
                breaker.probe_failed("no answer in time", start, clock),
                expect * SECOND
            );
        }
        assert!(breaker.probe_answered());
        assert_eq!(breaker.rejection("a", start), None);
        assert_eq!(fail(&mut breaker, 5), None, "counts from zero again");
        assert!(!breaker.probe_answered());
    }

    #[test]
    fn an_answer_to_a_request_under_way_closes_it() {
        let (mut breaker, start, clock) = new();
        for _ in 0..FAILURES {
            breaker.failed(Failure::Connection, "no connection", start, clock);
        }
        assert!(breaker.is_open());
        breaker.succeeded("a");
        assert!(!breaker.is_open());
        assert_eq!(breaker.rejection("b", start), None);
    }

    #[test]
    fn failures_of_one_repository_are_its_own() {
        let (mut breaker, start, clock) = new();
        let fail = |breaker: &mut Breaker, at: Instant| {
            breaker.failed(Failure::Repository("a"), "it answers 500", at, clock)
        };
        assert_eq!(fail(&mut breaker, start), None);
        assert_eq!(fail(&mut breaker, start), None);
        assert_eq!(
            fail(&mut breaker, start),
            Some(Duration::ZERO),
            "a probe at once"
        );
        assert!(matches!(
            breaker.rejection("a", start),
            Some(Rejection::Repository(_, left)) if left == 5 * SECOND
        ));
        assert_eq!(breaker.rejection("b", start), None);
        assert!(!breaker.probe_answered());
        assert!(breaker.rejection("a", start + 4 * SECOND).is_some());
        let later = start + 5 * SECOND;
        assert_eq!(breaker.rejection("a", later), None, "asked for again");
        assert_eq!(fail(&mut breaker, later), Some(Duration::ZERO));
        assert!(
            breaker.rejection("a", later + 9 * SECOND).is_some(),
            "twice as long"
        );
        breaker.succeeded("a");
        assert_eq!(breaker.rejection("a", later), None);
    }

    #[test]
    fn a_probe_that_fails_opens_it_for_all() {
        let (mut breaker, start, clock) = new();
        for _ in 0..3 {
            breaker.failed(Failure::Repository("a"), "it answers 500", start, clock);
        }
        breaker.probe_failed("it answers 503", start, clock);
        let rejection = breaker.rejection("b", start);
        assert!(
            matches!(&rejection, Some(Rejection::Endpoint(cause, _)) if cause.text == "it answers 503"),
            "{rejection:?}"
        );
        assert!(breaker.probe_answered());
        assert_eq!(breaker.rejection("a", start), None);
    }

    #[test]
    fn different_repositories_open_it_unless_one_is_answered() {
        let (breaker, start, clock) = new();
        let run = |names: &[&str]| {
            let mut breaker = breaker.clone();
            for name in names {
                match name.strip_prefix('+') {
                    Some(name) => breaker.succeeded(name),
                    None => {
                        breaker.failed(Failure::Repository(name), "it answers 500", start, clock);
                    }
                }
            }
            breaker.is_open()
        };
        assert!(run(&["a", "b", "c"]));
        assert!(!run(&["a", "a", "a", "a", "b"]));
        assert!(!run(&["a", "b", "+d", "c"]));
        assert!(!run(&["a", "+a", "b", "+b", "c", "+c"]));
    }

    #[test]
    fn old_failures_are_forgotten() {
        let (mut breaker, start, clock) = new();
        for at in 0..10 {
            let at = start + at * FORGET;
            for failure in [Failure::Connection, Failure::Repository("a")] {
                assert_eq!(breaker.failed(failure, "it fails", at, clock), None);
            }
        }
        for at in 10..20 {
            let (name, at) = (format!("r{at}"), start + at * FORGET);
            breaker.failed(Failure::Repository(&name), "it fails", at, clock);
        }
        assert!(!breaker.is_open());
    }

    #[test]
    fn the_memory_of_failures_is_bounded() {
        let (mut breaker, start, clock) = new();
        for name in 0..1000 {
            let name = format!("r{name}");
            breaker.failed(Failure::Repository(&name), "it fails", start, clock);
            breaker.succeeded("other");
        }
        assert_eq!(breaker.repositories.len(), MAX_REPOSITORIES);
        assert!(breaker.streak.0.len() <= FAILURES as usize);
    }

    #[test]
    fn what_answers_ask_for_is_told_until_it_is_over_and_changes_no_pause() {
        let (mut breaker, start, clock) = new();
        let asked =
            |breaker: &Breaker, name: &str, at: Instant| match breaker.rejection(name, at)? {
                Rejection::Endpoint(cause, left) | Rejection::Repository(cause, left) => {
                    Some((cause.asked(at), left))
                }
                Rejection::Pause(_) => None,
            };
        for _ in 0..3 {
            breaker.failed(Failure::Repository("a"), "it answers 503", start, clock);
            breaker.asks_for("a", start + 120 * SECOND);
        }
        let expect = Some((Some(118 * SECOND), 3 * SECOND));
        assert_eq!(asked(&breaker, "a", start + 2 * SECOND), expect);
        assert_eq!(
            breaker.rejection("a", start + 5 * SECOND),
            None,
            "asked again"
        );
        // It fails for other repositories, too: every request gets its last answer.
        for name in ["b", "c"] {
            breaker.failed(Failure::Repository(name), "it answers 503", start, clock);
        }
        breaker.probe_failed("no answer in time", start, clock);
        let expect = Some((Some(120 * SECOND), 10 * SECOND));
        assert_eq!(asked(&breaker, "d", start), expect);
        let over = start + 120 * SECOND;
        assert_eq!(asked(&breaker, "d", over), Some((None, Duration::ZERO)));
        breaker.probe_answered();
        breaker.failed(Failure::Repository("a"), "it answers 500", start, clock);
        breaker.probe_failed("it answers 500", start, clock);
        assert_eq!(asked(&breaker, "a", start), Some((None, 5 * SECOND)));
    }

    #[test]
    fn a_pause_ends_by_itself_and_an_answer_does_not_end_it() {
        let (mut breaker, start, _) = new();
        breaker.pause(start, 7 * SECOND);
        breaker.succeeded("a");
        assert_eq!(
            breaker.rejection("a", start),
            Some(Rejection::Pause(7 * SECOND))
        );
        assert_eq!(breaker.rejection("a", start + 7 * SECOND), None);
    }
}
