//! Rate limit for log messages that a request can cause: each message once a minute, and at most
//! `MESSAGES_A_MINUTE` of all, so clients cannot fill the log.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::limits::MESSAGES_A_MINUTE;

const MINUTE: Duration = Duration::from_secs(60);

/// What was logged in the running minute.
#[derive(Debug, Default)]
pub struct Throttle {
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    since: Instant,
    logged: HashSet<String>,
}

impl Throttle {
    /// Whether a message of this kind about this thing is logged at `now`; else it was a moment
    /// ago, or too many others were.
    pub fn passes(&self, kind: &str, about: &str, now: Instant) -> bool {
        let mut held = self.running.lock();
        let ends = |running: &Running| now.saturating_duration_since(running.since) >= MINUTE;
        if held.as_ref().is_none_or(ends) {
            *held = Some(Running {
                since: now,
                logged: HashSet::new(),
            });
        }
        let Some(running) = held.as_mut() else {
            return false;
        };
        let has_room = running.logged.len() < MESSAGES_A_MINUTE;
        let passes = has_room && running.logged.insert(format!("{kind} {about}"));
        if passes && running.logged.len() == MESSAGES_A_MINUTE {
            tracing::warn!(
                "further failures of this minute are counted in the metrics and logged at level debug"
            );
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_logged_once_a_minute_and_so_many_of_all() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        for (kind, about, second, expect) in [
            ("blob", "a", 0, true),
            ("blob", "a", 59, false),
            ("image", "a", 59, true),
            ("blob", "a", 60, true),
            ("blob", "a", 61, false),
        ] {
            let now = start + Duration::from_secs(second);
            assert_eq!(throttle.passes(kind, about, now), expect, "{kind} {second}");
        }
        let later = start + Duration::from_secs(120);
        let logged = (0..10_000).filter(|about| throttle.passes("blob", &about.to_string(), later));
        assert_eq!(logged.count(), MESSAGES_A_MINUTE);
        assert!(throttle.passes("blob", "a", later + MINUTE));
    }
}
