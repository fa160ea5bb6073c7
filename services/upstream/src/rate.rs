//! Caps over all copies of a process, bytes and requests alike: a token bucket whose arithmetic is
//! pure.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// The longest pause between two looks of what gives way to more urgent copies.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Units a second for all requests together; 0 is no cap.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: u64,
    burst: Duration,
    free_at: Mutex<Option<Instant>>,
}

impl Rate {
    /// A cap; after a pause, what `burst` is worth passes at once.
    pub(super) fn new(per_second: u64, burst: Duration) -> Self {
        Self {
            per_second,
            burst,
            free_at: Mutex::new(None),
        }
    }

    /// Books `units` at `now`; returns how long to wait before they may be used.
    pub(super) fn book(&self, now: Instant, units: usize) -> Duration {
        if self.per_second == 0 {
            return Duration::ZERO;
        }
        let cost = Duration::from_secs_f64(units as f64 / self.per_second as f64);
        let burst = now.checked_sub(self.burst).unwrap_or(now);
        let mut free_at = self.free_at.lock();
        let next = free_at.map_or(burst, |at| at.max(burst)) + cost;
        *free_at = Some(next);
        next.saturating_duration_since(now)
    }

    /// How far others are ahead of `now` with what they booked.
    fn behind(&self, now: Instant) -> Duration {
        let free_at = self.free_at.lock();
        free_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// Waits until `units` may be used. While `yields` is true, all others go first.
    pub(super) async fn take(&self, units: usize, yields: impl Fn() -> bool) {
        if self.per_second == 0 {
            return;
        }
        loop {
            let behind = self.behind(Instant::now());
            if behind.is_zero() || !yields() {
                break;
            }
            tokio::time::sleep(behind.min(POLL_INTERVAL)).await;
        }
        let wait = self.book(Instant::now(), units);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_copies_together_keep_the_cap() {
        let now = Instant::now();
        let rate = Rate::new(1000, Duration::from_millis(250));
        assert_eq!(rate.book(now, 250), Duration::ZERO, "a burst passes");
        assert_eq!(rate.book(now, 500), Duration::from_millis(500));
        assert_eq!(rate.book(now, 500), Duration::from_secs(1));
        assert_eq!(
            Rate::new(0, Duration::ZERO).book(now, usize::MAX),
            Duration::ZERO
        );
    }

    #[tokio::test]
    async fn what_gives_way_waits_for_as_long_as_others_are_served() {
        let rate = Rate::new(1000, Duration::ZERO);
        rate.book(Instant::now(), 100);
        let begun = Instant::now();
        rate.take(1, || false).await;
        rate.take(1, || true).await;
        assert!(begun.elapsed() >= Duration::from_millis(100));
    }
}
