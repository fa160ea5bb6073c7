//! Whether a client that sends a body is fast enough. Pure: only the time that was spent on waiting for it counts.

use std::time::Duration;

/// The account of one body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    least: u64,
    window: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// At least `least` bytes a second over each `window`.
    pub(crate) fn new(least: u64, window: Duration) -> Self {
        Self {
            least,
            window,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// So many bytes came after so long a wait; `false` when that is too slow.
    pub(crate) fn came(&mut self, bytes: usize, waited: Duration) -> bool {
        self.bytes += bytes as u64;
        self.waited += waited;
        if self.waited < self.window {
            return true;
        }
        let wanted = u128::from(self.least) * self.waited.as_millis() / 1000;
        let enough = wanted <= u128::from(self.bytes);
        self.waited = Duration::ZERO;
        self.bytes = 0;
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pieces: &[(usize, u64)], expect: bool) {
        let mut pace = Pace::new(100, Duration::from_secs(60));
        let enough = pieces
            .iter()
            .all(|(bytes, seconds)| pace.came(*bytes, Duration::from_secs(*seconds)));
        assert_eq!(enough, expect, "{pieces:?}");
    }

    #[test]
    fn a_client_sends_enough_over_each_window() {
        check(&[(0, 59)], true);
        check(&[(5999, 60)], false);
        check(&[(6000, 60)], true);
        check(&[(1, 30), (5999, 30)], true);
        check(&[(9000, 60), (10, 60)], false);
        check(&[(1, 0); 1000], true);
    }
}
