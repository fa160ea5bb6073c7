//! The circuit breaker of one endpoint: a pure state machine, time passed in.

use std::time::{Duration, Instant};

/// Failures in a row that open the breaker.
pub(super) const FAILURES: u32 = 3;

/// Whether an endpoint may be asked.
#[derive(Debug, Clone)]
pub(super) struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
    open_for: Duration,
    min: Duration,
    max: Duration,
}

impl Breaker {
    /// A closed breaker that opens for `min`, and for twice as long each time, up to `max`.
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self {
            failures: 0,
            open_until: None,
            open_for: min,
            min,
            max,
        }
    }

    /// How long the endpoint is not to be asked; `None` when it may be.
    pub(super) fn closed_for(&self, now: Instant) -> Option<Duration> {
        self.open_until
            .and_then(|until| until.checked_duration_since(now))
            .filter(|left| !left.is_zero())
    }

    /// Records a failure; returns for how long the breaker opened when this one opened it.
    pub(super) fn failed(&mut self, now: Instant) -> Option<Duration> {
        self.failures += 1;
        if self.failures < FAILURES || self.closed_for(now).is_some() {
            return None;
        }
        let period = self.open_for;
        self.open_until = Some(now + period);
        self.open_for = (period * 2).min(self.max);
        Some(period)
    }

    /// Records an answer: the endpoint lives.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
        self.open_until = None;
        self.open_for = self.min;
    }

    /// The endpoint asked for a pause (429 with `Retry-After`).
    pub(super) fn pause(&mut self, now: Instant, period: Duration) {
        self.open_until = self.open_until.max(Some(now + period));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_open_it_longer_and_longer() {
        let start = Instant::now();
        let seconds = Duration::from_secs;
        let mut breaker = Breaker::new(seconds(5), seconds(300));
        assert_eq!(breaker.failed(start), None);
        assert_eq!(breaker.failed(start), None);
        assert_eq!(breaker.failed(start), Some(seconds(5)));
        assert_eq!(breaker.closed_for(start + seconds(4)), Some(seconds(1)));
        assert_eq!(breaker.failed(start + seconds(4)), None, "already open");
        assert_eq!(
            breaker.closed_for(start + seconds(5)),
            None,
            "half open: one probe"
        );
        let mut now = start;
        for expect in [10, 20, 40, 80, 160, 300, 300] {
            now += seconds(301);
            assert_eq!(breaker.failed(now), Some(seconds(expect)));
        }
        breaker.succeeded();
        assert_eq!(breaker.closed_for(now), None);
        assert_eq!(breaker.failed(now), None, "counts from zero again");
    }

    #[test]
    fn a_pause_ends_by_itself() {
        let start = Instant::now();
        let mut breaker = Breaker::new(Duration::from_secs(5), Duration::from_secs(300));
        breaker.pause(start, Duration::from_secs(7));
        assert_eq!(breaker.closed_for(start), Some(Duration::from_secs(7)));
        assert_eq!(breaker.closed_for(start + Duration::from_secs(7)), None);
    }
}
