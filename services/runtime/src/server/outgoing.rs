//! Bounds the bytes of answers over HTTP/2 that clients have not read yet.
//!
//! Over HTTP/1.1 a connection has one answer, and the socket applies back-pressure. Over HTTP/2
//! each stream buffers what its window allows, so a client that opens many streams and reads none
//! could fill all of them. There are three bounds:
//!
//! - A stream buffers more than one piece only while its connection holds less than
//!   [`CONNECTION_BYTES`].
//! - While all connections of the listener hold [`LISTENER_BYTES`], the listener is under pressure:
//!   each connection holds one piece at a time.
//! - A connection that reads too little for [`PRESSURE_TIMEOUT`] is cut then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Buf;
use futures::task::AtomicWaker;
use parking_lot::Mutex;

/// Unread bytes of one connection beyond which its streams wait for each other. Each stream may
/// always hold one piece.
pub(super) const CONNECTION_BYTES: u64 = 512 << 10;

/// Unread bytes of all connections of a listener beyond which each holds one piece at a time.
pub(super) const LISTENER_BYTES: u64 = 24 << 20;

/// Time in which a client must read what its connection holds, while the listener is under
/// pressure. Otherwise the connection is cut.
pub(super) const PRESSURE_TIMEOUT: Duration = Duration::from_secs(5);

/// Unread bytes of all connections of a listener. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct UnreadBytes(Arc<AtomicU64>);

impl UnreadBytes {
    /// Whether the listener is under pressure.
    pub(super) fn is_under_pressure(&self) -> bool {
        LISTENER_BYTES <= self.0.load(Relaxed)
    }
}

/// The unread bytes of one connection.
#[derive(Debug)]
pub(super) struct Outgoing {
    listener: UnreadBytes,
    held: AtomicU64,
    moved: AtomicU64,
    /// Streams that wait under pressure until the connection holds nothing.
    pressed: Mutex<Vec<Waker>>,
    has_pressed: AtomicBool,
}

impl Outgoing {
    pub(super) fn new(listener: UnreadBytes) -> Self {
        Self {
            listener,
            held: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            pressed: Mutex::default(),
            has_pressed: AtomicBool::new(false),
        }
    }

    pub(super) fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// Bytes that the client has read since the connection began.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    pub(super) fn is_under_pressure(&self) -> bool {
        self.listener.is_under_pressure()
    }

    /// Wakes the streams that wait because of pressure.
    pub(super) fn wake(&self) {
        if self.has_pressed.swap(false, SeqCst) {
            let mut pressed = self.pressed.lock();
            let wakers = std::mem::take(&mut *pressed);
            drop(pressed);
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    fn wait(&self, waker: &Waker) {
        let mut pressed = self.pressed.lock();
        if !pressed.iter().any(|known| known.will_wake(waker)) {
            pressed.push(waker.clone());
        }
        drop(pressed);
        self.has_pressed.store(true, SeqCst);
    }
}

/// One answer over HTTP/2.
#[derive(Debug)]
pub(super) struct Stream {
    connection: Arc<Outgoing>,
    /// Bytes that the client has not read yet.
    outstanding: AtomicU64,
    /// Bytes of the pieces in memory. A piece that is read in part still holds all its memory.
    held: AtomicU64,
    moved: AtomicU64,
    waits: AtomicBool,
    waker: AtomicWaker,
}

impl Stream {
    pub(super) fn new(connection: Arc<Outgoing>) -> Self {
        Self {
            connection,
            outstanding: AtomicU64::new(0),
            held: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            waits: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }

    pub(super) fn outstanding(&self) -> u64 {
        self.outstanding.load(Relaxed)
    }

    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    /// Ready if the answer may hold one more piece. Otherwise the task is woken when it may.
    pub(super) fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        self.waker.register(context.waker());
        self.waits.store(true, SeqCst);
        if self.connection.is_under_pressure() {
            self.connection.wait(context.waker());
        }
        // Bytes that were read in the meantime did not wake this task.
        if self.has_room() {
            self.waits.store(false, SeqCst);
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn has_room(&self) -> bool {
        let held = self.connection.held.load(SeqCst);
        held == 0
            || !self.connection.is_under_pressure()
                && (held < CONNECTION_BYTES || self.held.load(SeqCst) == 0)
    }

    fn hold(&self, bytes: u64) {
        self.outstanding.fetch_add(bytes, Relaxed);
        self.held.fetch_add(bytes, SeqCst);
        self.connection.held.fetch_add(bytes, SeqCst);
        self.connection.listener.0.fetch_add(bytes, Relaxed);
    }

    fn took(&self, bytes: u64) {
        self.outstanding.fetch_sub(bytes, Relaxed);
        self.moved.fetch_add(bytes, Relaxed);
        self.connection.moved.fetch_add(bytes, Relaxed);
    }

    fn release(&self, bytes: u64) {
        let connection = &self.connection;
        connection.listener.0.fetch_sub(bytes, Relaxed);
        self.held.fetch_sub(bytes, SeqCst);
        let held = connection.held.fetch_sub(bytes, SeqCst) - bytes;
        if self.waits.load(SeqCst) && self.has_room() {
            self.waits.store(false, SeqCst);
            self.waker.wake();
        }
        if held == 0 {
            connection.wake();
        }
    }
}

/// A piece of an answer, tracked until the client has read it.
#[derive(Debug)]
pub(super) struct Piece<D: Buf> {
    data: D,
    bytes: u64,
    stream: Option<Arc<Stream>>,
}

impl<D: Buf> Piece<D> {
    pub(super) fn new(data: D, stream: Option<Arc<Stream>>) -> Self {
        let bytes = data.remaining() as u64;
        if let Some(stream) = &stream {
            stream.hold(bytes);
        }
        Self {
            data,
            bytes,
            stream,
        }
    }

    fn took(&self, bytes: u64) {
        if let Some(stream) = &self.stream {
            stream.took(bytes);
        }
    }
}

impl<D: Buf> Buf for Piece<D> {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [std::io::IoSlice<'a>]) -> usize {
        self.data.chunks_vectored(slices)
    }

    fn advance(&mut self, bytes: usize) {
        self.took(bytes as u64);
        self.data.advance(bytes);
    }

    fn copy_to_bytes(&mut self, bytes: usize) -> bytes::Bytes {
        self.took(bytes as u64);
        self.data.copy_to_bytes(bytes)
    }
}

impl<D: Buf> Drop for Piece<D> {
    fn drop(&mut self) {
        self.took(self.data.remaining() as u64);
        if let Some(stream) = &self.stream {
            stream.release(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(stream: &Stream) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        stream.poll_room(&mut context).is_ready()
    }

    fn piece(stream: &Arc<Stream>, bytes: u64) -> Piece<bytes::Bytes> {
        let data = vec![0; usize::try_from(bytes).unwrap()];
        Piece::new(data.into(), Some(Arc::clone(stream)))
    }

    fn stream(connection: &Arc<Outgoing>) -> Arc<Stream> {
        Arc::new(Stream::new(Arc::clone(connection)))
    }

    #[test]
    fn the_document_lists_the_bounds_of_listeners() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/LIMITS.md");
        let document = std::fs::read_to_string(path).unwrap();
        for (name, value) in [
            ("MAX_WAITING", crate::server::MAX_WAITING as u64),
            ("CONNECTION_BYTES", CONNECTION_BYTES),
            ("LISTENER_BYTES", LISTENER_BYTES),
            ("PRESSURE_TIMEOUT", PRESSURE_TIMEOUT.as_secs()),
            (
                "LISTENER_REQUEST_BYTES",
                crate::server::requests::LISTENER_REQUEST_BYTES,
            ),
            (
                "CONNECTION_REQUEST_BYTES",
                crate::server::requests::CONNECTION_REQUEST_BYTES,
            ),
            ("CONNECTIONS", crate::admin::CONNECTIONS as u64),
            ("LEVEL_BYTES", crate::admin::LEVEL_BYTES),
        ] {
            let cells = format!("| `{name}` | {value} |");
            assert!(document.contains(&cells), "docs/LIMITS.md lacks {cells}");
        }
    }

    #[test]
    fn a_piece_counts_until_it_is_taken() {
        let connection = Arc::new(Outgoing::new(UnreadBytes::default()));
        let stream = stream(&connection);
        let mut piece = piece(&stream, 10);
        let seen = || (stream.outstanding(), stream.moved(), connection.held());
        assert_eq!(seen(), (10, 0, 10));
        piece.advance(4);
        assert_eq!(seen(), (6, 4, 10), "it takes its memory as a whole");
        piece.copy_to_bytes(1);
        assert_eq!(seen(), (5, 5, 10));
        drop(piece);
        assert_eq!(seen(), (0, 10, 0));
        assert_eq!(connection.listener.0.load(Relaxed), 0);
    }

    #[test]
    fn streams_of_a_connection_wait_for_each_other_but_each_holds_a_piece() {
        let connection = Arc::new(Outgoing::new(UnreadBytes::default()));
        let (first, second) = (stream(&connection), stream(&connection));
        let much = piece(&first, CONNECTION_BYTES - 1);
        assert!(room(&first));
        let little = piece(&first, 1);
        assert!(!room(&first), "the connection holds enough");
        assert!(room(&second), "a stream that holds nothing goes on");
        let other = piece(&second, 1);
        assert!(!room(&second));
        drop(other);
        assert!(room(&second));
        drop(little);
        assert!(room(&first));
        drop(much);
    }

    #[test]
    fn a_listener_that_holds_too_much_gives_each_connection_one_piece() {
        let listener = UnreadBytes::default();
        let connection = || Arc::new(Outgoing::new(listener.clone()));
        let (hoarder, honest) = (connection(), connection());
        let hoard = piece(&stream(&hoarder), LISTENER_BYTES);
        let (first, second) = (stream(&honest), stream(&honest));
        assert!(room(&first), "a connection that holds nothing goes on");
        let one = piece(&first, 1);
        assert!(!room(&first) && !room(&second));
        assert!(honest.has_pressed.load(SeqCst));
        drop(one);
        assert!(room(&second));
        assert!(
            !honest.has_pressed.load(SeqCst),
            "waiting streams are woken"
        );
        let one = piece(&first, 1);
        drop(hoard);
        assert!(room(&first) && room(&second));
        drop(one);
    }
}
