//! How fast an upstream sends, measured over the time in which Holdfast waited for it: caps of
//! Holdfast and a slow volume do not make an upstream slow.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// Below this rate a copy is slow, bytes a second: it gives its slot up to a copy that has none.
pub const SLOW: u64 = 64 << 10;
/// A rate is measured over this time of waiting.
pub const WINDOW: Duration = Duration::from_secs(1);

/// The bytes of one body so far; one writer, any number of readers.
#[derive(Debug)]
pub struct Flow {
    begun: Instant,
    bytes: AtomicU64,
    /// Microseconds spent on waiting for the upstream, but for the wait that is under way.
    waited: AtomicU64,
    /// Since when the upstream is waited for now, in microseconds after `begun`, plus one; 0: it
    /// is not.
    since: AtomicU64,
}

/// A flow at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// Bytes that arrived.
    pub bytes: u64,
    /// How long they were waited for.
    pub waited: Duration,
}

impl Default for Flow {
    fn default() -> Self {
        Self::new()
    }
}

impl Flow {
    /// Nothing yet; the upstream is waited for from now on.
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            bytes: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            since: AtomicU64::new(1),
        }
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The upstream is waited for from now on.
    pub fn waits(&self) {
        self.since.store(self.micros() + 1, Ordering::Relaxed);
    }

    /// This many bytes came, and the upstream is not waited for any more.
    pub fn came(&self, bytes: usize) {
        let since = self.since.swap(0, Ordering::Relaxed);
        if since > 0 {
            let waited = (self.micros() + 1).saturating_sub(since);
            self.waited.fetch_add(waited, Ordering::Relaxed);
        }
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Where it is now.
    pub fn sample(&self) -> Sample {
        let since = self.since.load(Ordering::Relaxed);
        let now = match since {
            0 => 0,
            since => (self.micros() + 1).saturating_sub(since),
        };
        Sample {
            bytes: self.bytes.load(Ordering::Relaxed),
            waited: Duration::from_micros(self.waited.load(Ordering::Relaxed) + now),
        }
    }
}

/// The rate of one flow, from one look to the next.
#[derive(Debug, Clone, Copy, Default)]
pub struct FlowRate {
    last: Sample,
    rate: Option<u64>,
}

impl FlowRate {
    /// Bytes a second over the last whole window of waiting; `None` before there was one.
    pub fn look(&mut self, now: Sample) -> Option<u64> {
        let waited = now.waited.saturating_sub(self.last.waited);
        if waited >= WINDOW {
            let bytes = now.bytes.saturating_sub(self.last.bytes);
            let millis = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
            self.rate = Some(bytes.saturating_mul(1000) / millis.max(1));
            self.last = now;
        }
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_counts_only_the_time_of_waiting() {
        let mut rated = FlowRate::default();
        let at = |bytes, millis| Sample {
            bytes,
            waited: Duration::from_millis(millis),
        };
        assert_eq!(rated.look(at(5_000_000, 900)), None, "no whole window yet");
        assert_eq!(rated.look(at(5_000_000, 1000)), Some(5_000_000));
        assert_eq!(rated.look(at(5_000_100, 1500)), Some(5_000_000));
        assert_eq!(rated.look(at(5_002_000, 3000)), Some(1000));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_while_it_lasts_and_our_own_pauses_do_not() {
        let flow = Flow::new();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(flow.sample().waited, Duration::from_secs(2));
        flow.came(10);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let sample = flow.sample();
        assert_eq!((sample.bytes, sample.waited), (10, Duration::from_secs(2)));
        flow.waits();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(flow.sample().waited, Duration::from_secs(3));
    }
}
