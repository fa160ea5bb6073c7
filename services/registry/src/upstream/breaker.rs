//! The circuit breaker of one endpoint: a pure state machine, time passed in.
//!
//! Once open it stays open until a probe from the background succeeds: no request ever finds out. A pause that the endpoint
//! asked for (429) ends by itself.

use std::time::{Duration, Instant};

/// Failures in a row that open the breaker.
pub(super) const FAILURES: u32 = 3;

/// Whether an endpoint may be asked.
#[derive(Debug, Clone)]
pub(super) struct Breaker {
    failures: u32,
    /// When the next probe is due, while it is open.
    probe_at: Option<Instant>,
    paused_until: Option<Instant>,
    open_for: Duration,
    min: Duration,
    max: Duration,
}

impl Breaker {
    /// A closed breaker that is probed after `min`, and after twice as long each time, up to `max`.
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self {
            failures: 0,
            probe_at: None,
            paused_until: None,
            open_for: min,
            min,
            max,
        }
    }

    /// How long the endpoint is not to be asked, as far as is known; `None` when it may be.
    pub(super) fn closed_for(&self, now: Instant) -> Option<Duration> {
        let left = |until: Instant| until.saturating_duration_since(now);
        let probe = self.probe_at.map(left);
        let pause = self.paused_until.map(left).filter(|pause| !pause.is_zero());
        probe.max(pause)
    }

    /// Whether it is open: only a probe closes it.
    pub(super) fn is_open(&self) -> bool {
        self.probe_at.is_some()
    }

    /// Records a failure; returns when to probe, when this failure opened it.
    pub(super) fn failed(&mut self, now: Instant) -> Option<Duration> {
        self.failures += 1;
        if self.failures < FAILURES || self.is_open() {
            return None;
        }
        Some(self.probe_failed(now))
    }

    /// Stays open, or opens; returns when to probe next.
    pub(super) fn probe_failed(&mut self, now: Instant) -> Duration {
        let period = self.open_for;
        self.probe_at = Some(now + period);
        self.open_for = (period * 2).min(self.max);
        period
    }

    /// Records an answer: the endpoint lives. True when this closed it.
    pub(super) fn succeeded(&mut self) -> bool {
        let was_open = self.is_open();
        self.failures = 0;
        self.probe_at = None;
        self.open_for = self.min;
        was_open
    }

    /// The endpoint asked for a pause (429 with `Retry-After`).
    pub(super) fn pause(&mut self, now: Instant, period: Duration) {
        self.paused_until = self.paused_until.max(Some(now + period));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_open_it_until_a_probe_answers() {
        let start = Instant::now();
        let seconds = Duration::from_secs;
        let mut breaker = Breaker::new(seconds(5), seconds(300));
        assert_eq!(breaker.failed(start), None);
        assert_eq!(breaker.failed(start), None);
        assert_eq!(breaker.closed_for(start), None);
        assert_eq!(breaker.failed(start), Some(seconds(5)));
        assert_eq!(breaker.closed_for(start + seconds(4)), Some(seconds(1)));
        assert_eq!(breaker.failed(start + seconds(4)), None, "already open");
        assert_eq!(
            breaker.closed_for(start + seconds(60)),
            Some(Duration::ZERO),
            "the probe may be late: no request goes before it"
        );
        for expect in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(breaker.probe_failed(start), seconds(expect));
        }
        assert!(breaker.succeeded());
        assert_eq!(breaker.closed_for(start), None);
        assert_eq!(breaker.failed(start), None, "counts from zero again");
        assert!(!breaker.succeeded());
    }

    #[test]
    fn a_pause_ends_by_itself_and_an_answer_does_not_end_it() {
        let start = Instant::now();
        let mut breaker = Breaker::new(Duration::from_secs(5), Duration::from_secs(300));
        breaker.pause(start, Duration::from_secs(7));
        breaker.succeeded();
        assert_eq!(breaker.closed_for(start), Some(Duration::from_secs(7)));
        assert_eq!(breaker.closed_for(start + Duration::from_secs(7)), None);
    }
}
