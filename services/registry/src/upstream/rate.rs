//! The bandwidth cap over all copies of a process: a token bucket whose arithmetic is pure.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Bytes a second for everybody together; 0 is no cap.
#[derive(Debug)]
pub(super) struct Rate {
    bytes_per_second: u64,
    free_at: Mutex<Option<Instant>>,
}

impl Rate {
    /// A cap.
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free_at: Mutex::new(None),
        }
    }

    /// Books `bytes` at `now`; returns how long to wait before they may be used. Up to a quarter of a second's worth passes
    /// at once after a pause.
    pub(super) fn book(&self, now: Instant, bytes: usize) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let burst = now.checked_sub(Duration::from_millis(250)).unwrap_or(now);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let next = free_at.map_or(burst, |at| at.max(burst)) + cost;
        *free_at = Some(next);
        next.saturating_duration_since(now)
    }

    /// Waits until `bytes` may be used.
    pub(super) async fn take(&self, bytes: usize) {
        let wait = self.book(Instant::now(), bytes);
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
        let rate = Rate::new(1000);
        assert_eq!(rate.book(now, 250), Duration::ZERO, "a burst passes");
        assert_eq!(rate.book(now, 500), Duration::from_millis(500));
        assert_eq!(rate.book(now, 500), Duration::from_secs(1));
        assert_eq!(Rate::new(0).book(now, usize::MAX), Duration::ZERO);
    }
}
