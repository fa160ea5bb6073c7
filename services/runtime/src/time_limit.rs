//! Limits of time for what others do: an upstream, another replica.
//!
//! A timer that has run out proves nothing on a busy machine, or after the process stood still: the
//! answer may have been there for long, and nobody had the time to read it. So a limit is counted
//! in steps, and a step that ends late counts as one that ended in time. On a machine with time to
//! spare the steps add up to the limit; on a busy one the limit grows with the delay of the
//! scheduler.

use std::{pin::pin, time::Duration};

use tokio::time::Instant;

/// Steps of a limit. Each one is a turn of the scheduler that whatever is waited for can use.
const STEPS: u32 = 40;
/// Bounds of a step: shorter ones cost wake-ups, and longer ones forgive little.
const SHORTEST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_millis(250);

/// A limit for one or for several waits together.
#[derive(Debug, Clone)]
pub struct TimeLimit {
    step: Duration,
    left: Duration,
    used: Duration,
    late: Duration,
}

impl TimeLimit {
    /// A limit of which nothing is used.
    pub fn new(limit: Duration) -> Self {
        Self {
            step: (limit / STEPS).clamp(SHORTEST, LONGEST),
            left: limit,
            used: Duration::ZERO,
            late: Duration::ZERO,
        }
    }

    /// Waits for `work` for as long as the limit lasts; `None` when it is used up.
    pub async fn run<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            let (step, begun) = (self.step.min(self.left), Instant::now());
            let outcome = tokio::time::timeout(step, work.as_mut()).await;
            let took = begun.elapsed();
            let counted = took.min(step);
            self.used += counted;
            self.late += took.saturating_sub(counted);
            self.left = self.left.saturating_sub(counted);
            if let Ok(outcome) = outcome {
                return Some(outcome);
            }
            if self.left.is_zero() {
                return None;
            }
        }
    }

    /// What was used so far.
    pub fn used(&self) -> Duration {
        self.used
    }

    /// How much longer than that the waits took, because the process was not scheduled.
    pub fn late(&self) -> Duration {
        self.late
    }
}

/// Waits for `work` for at most `limit`; `None` when it takes longer.
pub async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    TimeLimit::new(limit).run(work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    #[tokio::test(start_paused = true)]
    async fn a_limit_lasts_as_long_as_it_says() {
        let begun = Instant::now();
        let mut limit = TimeLimit::new(LIMIT);
        let wait = |millis| tokio::time::sleep(Duration::from_millis(millis));
        assert!(limit.run(wait(150)).await.is_some());
        assert!(limit.run(wait(100)).await.is_none(), "of both together");
        let took = begun.elapsed().as_millis();
        assert!((200..=250).contains(&took), "{took}");
        assert!(limit.run(std::future::pending::<()>()).await.is_none());
        assert_eq!(limit.run(std::future::ready(1)).await, Some(1));
    }

    /// Needs several turns of the scheduler, the first of which takes long.
    async fn after_a_standstill() -> u8 {
        std::thread::sleep(LIMIT * 3);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        7
    }

    #[tokio::test]
    async fn a_process_that_stood_still_has_the_rest_of_the_limit() {
        let timer = tokio::time::timeout(LIMIT, after_a_standstill()).await;
        assert!(timer.is_err(), "a mere timer has run out");
        let mut limit = TimeLimit::new(LIMIT);
        assert_eq!(limit.run(after_a_standstill()).await, Some(7));
        assert!(limit.used() < LIMIT, "{limit:?}");
        assert!(limit.late() >= LIMIT, "{limit:?}");
    }
}
