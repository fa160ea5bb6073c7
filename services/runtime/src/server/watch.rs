//! Watches one connection, and cuts it if its client sends no request, sends one too slowly, or
//! does not read the answer.
//!
//! The buffers of an answer are held until the client has read them, so a client that stops reading
//! must be cut. Over HTTP/1.1 the socket shows that. Over HTTP/2 a client can also keep the window
//! of one stream closed, so the pieces of each answer are tracked.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Limits;
use super::outgoing::{Outgoing, PRESSURE_TIMEOUT, Stream, UnreadBytes};
use super::requests::{Charge, Connection, Requests};

/// Why a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// No request for too long.
    Idle,
    /// The headers of a request took too long.
    Headers,
    /// The client read nothing of an answer for too long.
    Stalled,
    /// The client read an answer too slowly.
    Slow,
    /// Evicted for another client.
    Evicted,
    /// The TLS handshake, including the wait for its turn, took too long.
    Handshake,
    /// The TLS handshake failed: the client uses another protocol, trusts another CA, or presented
    /// no required certificate.
    HandshakeFailed,
}

impl Reason {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Headers => "headers",
            Self::Stalled => "stalled",
            Self::Slow => "slow",
            Self::Evicted => "evicted",
            Self::Handshake => "handshake",
            Self::HandshakeFailed => "handshake_failed",
        }
    }
}

/// The state of one connection. The socket, the requests and the answers update it.
#[derive(Debug)]
pub(super) struct Watch {
    begun: Instant,
    /// Requests in progress.
    requests: AtomicUsize,
    http2: AtomicBool,
    /// Milliseconds, plus one, at which the headers of the next request began to arrive; 0 before.
    head_since: AtomicU64,
    idle_since: AtomicU64,
    /// Milliseconds at which the connection became busy.
    busy_since: AtomicU64,
    is_authenticated: AtomicBool,
    is_evicted: AtomicBool,
    evicted: Notify,
    written: AtomicU64,
    blocked: AtomicBool,
    outgoing: Arc<Outgoing>,
    charged: Arc<Connection>,
    checked: Mutex<Checked>,
}

/// What a connection does at the moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Activity {
    /// A request is in progress.
    pub(super) busy: bool,
    /// The client is authenticated.
    pub(super) authenticated: bool,
    /// For how long it has been busy, or idle.
    pub(super) lasts: Duration,
}

/// The state at the last check.
#[derive(Debug, Default)]
struct Checked {
    socket: Progress,
    streams: Vec<(Weak<Stream>, Progress)>,
    /// Since when the connection holds something while the listener is under pressure, and what the
    /// client had read then.
    pressed: Option<(u64, u64)>,
}

impl Watch {
    #[cfg(test)]
    pub(super) fn new() -> Arc<Self> {
        Self::of_listener(UnreadBytes::default(), Requests::default())
    }

    pub(super) fn of_listener(held: UnreadBytes, requests: Requests) -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            requests: AtomicUsize::new(0),
            http2: AtomicBool::new(false),
            // The first request is due at once.
            head_since: AtomicU64::new(1),
            idle_since: AtomicU64::new(0),
            busy_since: AtomicU64::new(0),
            is_authenticated: AtomicBool::new(false),
            is_evicted: AtomicBool::new(false),
            evicted: Notify::new(),
            outgoing: Arc::new(Outgoing::new(held)),
            charged: Connection::new(requests),
            written: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            checked: Mutex::default(),
        })
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The client sent something.
    pub(super) fn received(&self) {
        if self.requests.load(Relaxed) == 0 && self.head_since.load(Relaxed) == 0 {
            self.head_since.store(self.millis() + 1, Relaxed);
        }
    }

    /// The socket accepted this number of bytes.
    pub(super) fn sent(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Relaxed);
        self.blocked.store(false, Relaxed);
    }

    /// The socket accepts nothing at the moment.
    pub(super) fn is_blocked(&self) {
        self.blocked.store(true, Relaxed);
    }

    /// The client is authenticated.
    pub(super) fn authenticated(&self) {
        self.is_authenticated.store(true, Relaxed);
    }

    /// Evicts the connection.
    pub(super) fn evict(&self) {
        self.is_evicted.store(true, Relaxed);
        self.evicted.notify_one();
    }

    #[cfg(test)]
    pub(super) fn is_evicted(&self) -> bool {
        self.is_evicted.load(Relaxed)
    }

    /// Waits until the connection is evicted.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    pub(super) fn activity(&self) -> Activity {
        let busy = 0 < self.requests.load(Relaxed);
        let since = if busy {
            self.busy_since.load(Relaxed)
        } else {
            self.idle_since.load(Relaxed)
        };
        Activity {
            busy,
            authenticated: self.is_authenticated.load(Relaxed),
            lasts: Duration::from_millis(self.millis().saturating_sub(since)),
        }
    }

    /// A request has arrived. Over HTTP/2 its memory is counted and the pieces of its answer are
    /// tracked. A connection that takes too much memory is evicted.
    pub(super) fn request(
        self: &Arc<Self>,
        bytes_over_http2: Option<u64>,
    ) -> (Underway, Option<Arc<Stream>>) {
        let http2 = bytes_over_http2.is_some();
        if self.requests.fetch_add(1, Relaxed) == 0 {
            self.busy_since.store(self.millis(), Relaxed);
        }
        self.head_since.store(0, Relaxed);
        self.http2.store(http2, Relaxed);
        let stream = http2.then(|| {
            let stream = Arc::new(Stream::new(Arc::clone(&self.outgoing)));
            let mut checked = self.checked.lock();
            let entry = (Arc::downgrade(&stream), Progress::default());
            checked.streams.push(entry);
            stream
        });
        let charge = bytes_over_http2.map(|bytes| {
            let (charge, is_too_much) = self.charged.begin(bytes);
            if is_too_much {
                self.evict();
            }
            charge
        });
        let underway = Underway {
            watch: Arc::clone(self),
            _charge: charge,
        };
        (underway, stream)
    }

    /// Checks the connection. Returns the reason if it must be cut.
    pub(super) fn check(&self, limits: &Limits) -> Option<Reason> {
        let now = self.millis();
        if self.requests.load(Relaxed) == 0 {
            let head_since = self.head_since.load(Relaxed);
            // Over HTTP/2, clients also send frames that belong to no request.
            let of_head = 0 < head_since && !self.http2.load(Relaxed);
            let (since, limit, reason) = if of_head {
                (head_since - 1, limits.header_timeout, Reason::Headers)
            } else {
                let idle_since = self.idle_since.load(Relaxed);
                (idle_since, limits.keep_alive, Reason::Idle)
            };
            if u128::from(now.saturating_sub(since)) >= limit.as_millis() {
                return Some(reason);
            }
        }
        let mut checked = self.checked.lock();
        let (blocked, written) = (self.blocked.load(Relaxed), self.written.load(Relaxed));
        let mut reason = checked.socket.check(blocked, written, now, limits);
        checked.streams.retain_mut(|(stream, progress)| {
            let Some(stream) = stream.upgrade() else {
                return false;
            };
            let (waits, moved) = (0 < stream.outstanding(), stream.moved());
            let of_stream = progress.check(waits, moved, now, limits);
            reason = reason.or(of_stream);
            true
        });
        self.outgoing.wake();
        reason.or_else(|| self.check_pressure(&mut checked.pressed, now))
    }

    /// While the listener is under pressure, a connection that reads less in [`PRESSURE_TIMEOUT`]
    /// than it holds is cut.
    fn check_pressure(&self, pressed: &mut Option<(u64, u64)>, now: u64) -> Option<Reason> {
        let (held, moved) = (self.outgoing.held(), self.outgoing.moved());
        if held == 0 || !self.outgoing.is_under_pressure() {
            *pressed = None;
            return None;
        }
        let (since, moved_before) = *pressed.get_or_insert((now, moved));
        if u128::from(now - since) < PRESSURE_TIMEOUT.as_millis() {
            return None;
        }
        *pressed = None;
        (moved - moved_before < held).then_some(Reason::Slow)
    }
}

/// A request in progress; it ends when dropped.
#[derive(Debug)]
pub(super) struct Underway {
    watch: Arc<Watch>,
    _charge: Option<Charge>,
}

impl Drop for Underway {
    fn drop(&mut self) {
        let watch = &self.watch;
        watch.idle_since.store(watch.millis(), Relaxed);
        watch.requests.fetch_sub(1, Relaxed);
    }
}

/// The progress of a transfer since the last check. Pure; times are in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    moved: u64,
    changed: Option<u64>,
    window: u64,
    moved_before: u64,
}

impl Progress {
    fn check(&mut self, waits: bool, moved: u64, now: u64, limits: &Limits) -> Option<Reason> {
        if !waits || self.changed.is_none() {
            *self = Self {
                moved,
                changed: waits.then_some(now),
                window: now,
                moved_before: moved,
            };
            return None;
        }
        if moved != self.moved {
            self.moved = moved;
            self.changed = Some(now);
        }
        let silent = now.saturating_sub(self.changed.unwrap_or(now));
        if u128::from(silent) >= limits.idle.as_millis() {
            return Some(Reason::Stalled);
        }
        let window = now.saturating_sub(self.window);
        if u128::from(window) >= limits.window.as_millis() {
            let taken = u128::from(moved - self.moved_before);
            if taken * 1000 < u128::from(limits.min_bytes_per_second) * u128::from(window) {
                return Some(Reason::Slow);
            }
            self.window = now;
            self.moved_before = moved;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every second: whether the client is waited for, and what it took in all.
    fn check(looks: impl IntoIterator<Item = (bool, u64)>) -> Option<(u64, Reason)> {
        let limits = Limits {
            idle: Duration::from_secs(10),
            min_bytes_per_second: 100,
            ..Limits::default()
        };
        let mut progress = Progress::default();
        (0..).zip(looks).find_map(|(second, (waits, moved))| {
            let reason = progress.check(waits, moved, second * 1000, &limits)?;
            Some((second, reason))
        })
    }

    #[test]
    fn a_client_that_reads_nothing_or_too_little_is_cut() {
        let hour = 0..3600_u64;
        assert_eq!(check(hour.clone().map(|_| (false, 0))), None, "we are slow");
        assert_eq!(
            check(hour.clone().map(|_| (true, 5))),
            Some((10, Reason::Stalled))
        );
        assert_eq!(check(hour.clone().map(|at| (true, at * 100))), None);
        assert_eq!(
            check(hour.clone().map(|at| (true, at * 99))),
            Some((60, Reason::Slow))
        );
        assert_eq!(
            check(hour.clone().map(|at| (at % 9 != 0, 0))),
            None,
            "short silences, each after the client took all"
        );
        assert_eq!(
            check(hour.map(|at| (true, at / 5))),
            Some((60, Reason::Slow)),
            "a byte now and then does not help"
        );
    }
}
