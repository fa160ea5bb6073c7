//! What clients that read nothing can make a listener hold, in bytes of answers that are alive.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use holdfast_runtime::CancellationToken;
use holdfast_runtime::server::{self, Limits};
use holdfast_testkit::hostile::http2;

const PIECE: usize = 128 << 10;
const PIECES: usize = 64;
const STREAMS: u32 = 128;

/// How many bytes of answers are alive, and were at most.
#[derive(Debug, Default)]
struct Alive {
    now: AtomicUsize,
    most: AtomicUsize,
}

#[derive(Debug)]
struct Piece(Arc<Alive>, Vec<u8>);

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.1
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.0.now.fetch_sub(PIECE, SeqCst);
    }
}

/// An answer of [`PIECES`], each made when it is asked for.
struct Answer {
    alive: Arc<Alive>,
    left: usize,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        let now = self.alive.now.fetch_add(PIECE, SeqCst) + PIECE;
        self.alive.most.fetch_max(now, SeqCst);
        let piece = Piece(Arc::clone(&self.alive), vec![7; PIECE]);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(piece)))))
    }
}

async fn start(limits: Limits) -> (u16, Arc<Alive>, tokio_util::sync::DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let alive = Arc::new(Alive::default());
    let shared = Arc::clone(&alive);
    let service = server::service_fn(move |_: Request<server::RequestBody>| {
        let alive = Arc::clone(&shared);
        async move {
            let left = PIECES;
            Ok::<_, Infallible>(Response::new(Answer { alive, left }))
        }
    });
    let stop = CancellationToken::new();
    tokio::spawn(server::serve(listener, None, service, limits, stop.clone()));
    (port, alive, stop.drop_guard())
}

/// A client that opens every stream and every window, and reads nothing.
async fn hoard(port: u16, window: u32) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = ([127, 0, 0, 1], port).into();
    let mut client = socket.connect(address).await.unwrap();
    let sent = http2::requests("/", STREAMS, window, &[]);
    client.write_all(&sent).await.unwrap();
    client
}

async fn get(port: u16) -> usize {
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    answer.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_streams_hold_a_bounded_number_of_bytes() {
    const CONNECTIONS: usize = 16;
    for window in [http2::WINDOW, 0] {
        let (port, alive, _stop) = start(Limits {
            streams: STREAMS,
            ..Limits::default()
        })
        .await;
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(hoard(port, window).await);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        // What all connections may hold before they take one piece each, one piece each, and one of
        // each thread that looked before.
        let most = (24 << 20) + (CONNECTIONS + 4) * PIECE;
        let found = alive.most.load(SeqCst);
        assert!(
            found <= most,
            "window {window}: {found} bytes, {most} at most"
        );
        assert!(PIECE * PIECES < get(port).await, "others get their answers");
        drop(clients);
        for _ in 0..200 {
            if alive.now.load(SeqCst) == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(alive.now.load(SeqCst), 0, "all is given back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_is_cut_early_while_memory_is_short() {
    let (port, alive, _stop) = start(Limits {
        streams: STREAMS,
        header_timeout: Duration::from_secs(2),
        ..Limits::default()
    })
    .await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(hoard(port, http2::WINDOW).await);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!((24 << 20) <= alive.now.load(SeqCst), "memory is short");
    // What one gives back another one takes, so in the worst case they are cut one after the other,
    // each `PRESSURE_TIMEOUT` (5 s) after the last. Without a bound it would take a minute
    // (`Limits::idle`).
    for _ in 0..600 {
        if alive.now.load(SeqCst) < 24 << 20 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} bytes are still held", alive.now.load(SeqCst));
}

#[tokio::test]
async fn an_http2_request_with_too_many_headers_reaches_no_handler() {
    const LIMIT: usize = 20;
    let (port, alive, _stop) = start(Limits {
        headers: LIMIT,
        ..Limits::default()
    })
    .await;
    for (count, is_served) in [(LIMIT, true), (LIMIT + 1, false)] {
        let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let headers = vec![("accept", "*"); count];
        let sent = http2::requests("/", 1, http2::WINDOW, &headers);
        client.write_all(&sent).await.unwrap();
        // A refusal's headers end the stream; an answer's do not.
        let mut head = [0; 9];
        let flags = loop {
            client.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            client.read_exact(&mut payload).await.unwrap();
            if head[3] == 1 {
                break head[4];
            }
        };
        assert_eq!(flags & 1 == 0, is_served, "{count} headers");
        let pieces = alive.most.swap(0, SeqCst);
        assert!(is_served || pieces == 0, "the part was asked");
    }
}
