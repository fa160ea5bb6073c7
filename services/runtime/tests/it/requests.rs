//! What clients that open many streams can make a listener hold, in requests that are alive.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use holdfast_runtime::CancellationToken;
use holdfast_runtime::server::{self, Limits};
use holdfast_testkit::hostile::http2;

const CONNECTIONS: usize = 40;
const STREAMS: u32 = 128;
/// Bytes of one header of each hostile request.
const HEADER: usize = 12 << 10;

/// Counts a request while it is alive.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// A listener that answers `/now` at once, and everything else never.
async fn start() -> (u16, Arc<AtomicUsize>, tokio_util::sync::DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let alive = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&alive);
    let service = server::service_fn(move |request: Request<server::RequestBody>| {
        let alive = Alive::new(&counted);
        async move {
            if request.uri().path() != "/now" {
                std::future::pending::<()>().await;
            }
            drop((alive, request));
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"here"))))
        }
    });
    let limits = Limits {
        streams: STREAMS,
        ..Limits::default()
    };
    let stop = CancellationToken::new();
    tokio::spawn(server::serve(listener, None, service, limits, stop.clone()));
    (port, alive, stop.drop_guard())
}

async fn send(port: u16, bytes: &[u8]) -> TcpStream {
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    client.write_all(bytes).await.unwrap();
    client
}

/// Reads frames until this many streams have ended.
async fn ended(client: &mut TcpStream, streams: usize) {
    let mut count = 0;
    while count < streams {
        let mut head = [0; 9];
        client.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        client.read_exact(&mut payload).await.unwrap();
        let (kind, flags) = (head[3], head[4]);
        // HEADERS or DATA with END_STREAM.
        count += usize::from(kind <= 1 && flags & 1 == 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_hold_a_bounded_number_of_bytes() {
    let (port, alive, _stop) = start().await;
    let header = "x".repeat(HEADER);
    let hostile = http2::requests("/never", STREAMS, http2::WINDOW, &[("x", &header)]);
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(send(port, &hostile).await);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The budget of the listener, what each connection may always have, and one request of each
    // thread that looked before.
    let most = (32 << 20) + CONNECTIONS * (64 << 10) + 4 * HEADER;
    let found = alive.load(SeqCst) * HEADER;
    assert!(found <= most, "{found} bytes, {most} at most");
    assert!(0 < found, "the budget is there to be used");
    let mut honest = send(port, &http2::requests("/now", 4, http2::WINDOW, &[])).await;
    let answers = tokio::time::timeout(Duration::from_secs(20), ended(&mut honest, 4));
    answers.await.expect("others get their answers");
    drop(clients);
    for _ in 0..400 {
        if alive.load(SeqCst) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} requests are still alive", alive.load(SeqCst));
}
