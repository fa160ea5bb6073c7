//! The memory of requests in progress over HTTP/2.
//!
//! Over HTTP/1.1 a connection has one request. Over HTTP/2 each stream has one, with its headers
//! and its task, and a client may leave all of them waiting. Their bytes count in a budget of the
//! listener. While it is used up, a connection may still have [`CONNECTION_REQUEST_BYTES`]; one
//! with more is cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::Request;

/// Memory of a request besides its headers: its task and the state of its stream.
const OVERHEAD_BYTES: u64 = 8 << 10;
/// Memory of a header besides its name and value (RFC 9113, section 6.5.2).
const HEADER_BYTES: usize = 32;

/// Bytes of requests in progress over HTTP/2 on all connections of a listener. Beyond it, a
/// connection with more than [`CONNECTION_REQUEST_BYTES`] is cut.
pub(super) const LISTENER_REQUEST_BYTES: u64 = 32 << 20;

/// Bytes of requests that one connection may always have in progress.
pub(super) const CONNECTION_REQUEST_BYTES: u64 = 64 << 10;

/// Bytes of requests in progress on all connections of a listener. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Requests(Arc<AtomicU64>);

/// Bytes of requests in progress on one connection.
#[derive(Debug)]
pub(super) struct Connection {
    listener: Requests,
    held: AtomicU64,
}

impl Connection {
    pub(super) fn new(listener: Requests) -> Arc<Self> {
        Arc::new(Self {
            listener,
            held: AtomicU64::new(0),
        })
    }

    /// Counts a request. Also returns whether the connection exceeds what it may have at the
    /// moment.
    pub(super) fn begin(self: &Arc<Self>, bytes: u64) -> (Charge, bool) {
        let of_all = self.listener.0.fetch_add(bytes, Relaxed) + bytes;
        let own = self.held.fetch_add(bytes, Relaxed) + bytes;
        let charge = Charge {
            connection: Arc::clone(self),
            bytes,
        };
        let is_too_much = LISTENER_REQUEST_BYTES < of_all && CONNECTION_REQUEST_BYTES < own;
        (charge, is_too_much)
    }
}

/// The bytes of one request, released when its answer ends.
#[derive(Debug)]
pub(super) struct Charge {
    connection: Arc<Connection>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.connection.held.fetch_sub(self.bytes, Relaxed);
        self.connection.listener.0.fetch_sub(self.bytes, Relaxed);
    }
}

/// The bytes that a request counts.
pub(super) fn bytes<B>(request: &Request<B>) -> u64 {
    let headers = request.headers().iter();
    let headers = headers.map(|(name, value)| HEADER_BYTES + name.as_str().len() + value.len());
    let uri = request.uri();
    let target = uri.path().len() + uri.query().map_or(0, str::len);
    OVERHEAD_BYTES + (headers.sum::<usize>() + target) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_keeps_its_own_part_of_a_budget_that_is_used_up() {
        let listener = Requests::default();
        let connection = || Connection::new(listener.clone());
        let (hoarder, honest) = (connection(), connection());
        let (all, is_too_much) = hoarder.begin(LISTENER_REQUEST_BYTES);
        assert!(!is_too_much, "the budget is there to be used");
        let (first, is_too_much) = honest.begin(CONNECTION_REQUEST_BYTES);
        assert!(!is_too_much, "its own part");
        let (second, is_too_much) = honest.begin(1);
        assert!(is_too_much);
        drop((all, second));
        let (second, is_too_much) = honest.begin(CONNECTION_REQUEST_BYTES);
        assert!(!is_too_much, "the budget has room again");
        drop((first, second));
        assert_eq!(listener.0.load(Relaxed), 0);
    }

    #[test]
    fn a_request_counts_with_its_headers() {
        let request = Request::get("/abc?d").header("name", "value").body(());
        assert_eq!(bytes(&request.unwrap()), OVERHEAD_BYTES + 5 + 32 + 9);
    }
}
