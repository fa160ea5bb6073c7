//! A token bucket. Time is an argument.

use std::time::{Duration, Instant};

/// Tokens that are refilled at a steady rate, up to a capacity.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenBucket {
    capacity: f64,
    per_second: f64,
    level: f64,
    at: Option<Instant>,
}

impl TokenBucket {
    /// A full bucket of `capacity` tokens, with one refilled every `every`.
    pub fn new(capacity: u32, every: Duration) -> Self {
        let capacity = f64::from(capacity);
        Self {
            capacity,
            per_second: 1.0 / every.as_secs_f64().max(0.001),
            level: capacity,
            at: None,
        }
    }

    /// Takes a token if there is one. A clock that goes back refills none.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = self
            .at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
        self.level = (self.level + passed.as_secs_f64() * self.per_second).min(self.capacity);
        let enough = self.level >= 1.0;
        if enough {
            self.level -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_steady_rate_and_never_more_than_the_burst() {
        let begun = Instant::now();
        let mut bucket = TokenBucket::new(2, Duration::from_secs(10));
        let mut taken = |second: u64| bucket.take(begun + Duration::from_secs(second));
        let found: Vec<_> = [0, 0, 0, 9, 10, 10, 1000, 1000, 1000, 5]
            .into_iter()
            .map(&mut taken)
            .collect();
        let expect = [
            true, true, false, false, true, false, true, true, false, false,
        ];
        assert_eq!(found, expect);
    }
}
