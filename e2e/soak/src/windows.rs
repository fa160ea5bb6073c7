//! Kinds of faults, and a record of when each of them was, so that answers can be judged by it.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// SIGKILL, then a new process.
    Kill,
    /// SIGSTOP for longer than a lock lives without its owner's heartbeat, then SIGCONT.
    Stop,
    /// The volume is full.
    Full,
    /// SIGTERM, then a new process.
    Term,
    /// The upstream is slow, cuts bodies or is down.
    Upstream,
}

/// All kinds.
pub(crate) const ALL: [Kind; 5] = [
    Kind::Kill,
    Kind::Stop,
    Kind::Full,
    Kind::Term,
    Kind::Upstream,
];

/// How long traces of a fault may show after its end.
const AFTER: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
struct Window {
    kind: Kind,
    from: Instant,
    to: Option<Instant>,
}

/// When which fault was.
#[derive(Debug, Default)]
pub(crate) struct Windows(Mutex<Vec<Window>>);

impl Windows {
    /// A fault begins; the number by which [`Self::close`] ends it.
    pub(crate) fn open(&self, kind: Kind) -> usize {
        let mut windows = self.0.lock();
        windows.push(Window {
            kind,
            from: Instant::now(),
            to: None,
        });
        windows.len() - 1
    }

    /// The fault has ended.
    pub(crate) fn close(&self, at: usize) {
        let mut windows = self.0.lock();
        if let Some(window) = windows.get_mut(at) {
            window.to = Some(Instant::now());
        }
    }

    /// Since when a replica stands still, if one does.
    pub(crate) fn stopped_since(&self) -> Option<Instant> {
        let windows = self.0.lock();
        windows
            .iter()
            .filter(|window| window.kind == Kind::Stop && window.to.is_none())
            .map(|window| window.from)
            .min()
    }

    /// Whether one of these faults touched the time from `from` until now.
    pub(crate) fn touched(&self, kinds: &[Kind], from: Instant) -> bool {
        let windows = self.0.lock();
        windows.iter().any(|window| {
            kinds.contains(&window.kind) && window.to.is_none_or(|to| to + AFTER >= from)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_excuses_what_it_touched_and_nothing_later() {
        let windows = Windows::default();
        let before = Instant::now();
        assert!(!windows.touched(&ALL, before));
        let at = windows.open(Kind::Kill);
        assert!(windows.touched(&[Kind::Kill], before));
        assert!(!windows.touched(&[Kind::Full], before));
        windows.close(at);
        assert!(windows.touched(&[Kind::Kill], before));
        let later = Instant::now() + AFTER + Duration::from_millis(1);
        assert!(!windows.touched(&ALL, later));
    }
}
