//! What one connection may cost, over real sockets: what a client sees that sends too much, too
//! slowly, or takes nothing.

mod http2;

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use holdfast_runtime::CancellationToken;
use holdfast_runtime::server::{self, Counts, Limits};

/// More than the buffers of two sockets hold.
const LARGE: usize = 32 << 20;

struct Server {
    port: u16,
    numbers: Registry,
    _stop: tokio_util::sync::DropGuard,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut numbers = Registry::default();
        let counts = Counts::register(&mut numbers);
        let stop = CancellationToken::new();
        let service = server::service_fn(|request: Request<server::RequestBody>| async move {
            let body = match request.uri().path() {
                "/large" => Bytes::from(vec![7; LARGE]),
                "/body" => match request.into_body().collect().await {
                    Ok(body) => body.to_bytes(),
                    Err(error) => {
                        let mut answer = Response::new(Full::new(error.to_string().into()));
                        *answer.status_mut() = error.status();
                        return Ok(answer);
                    }
                },
                "/slow" => {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    Bytes::from_static(b"slow")
                }
                _ => Bytes::from_static(b"hello"),
            };
            Ok::<_, Infallible>(Response::new(Full::new(body)))
        });
        let serve = server::serve_counted(listener, None, service, limits, counts, stop.clone());
        tokio::spawn(serve);
        Self {
            port,
            numbers,
            _stop: stop.drop_guard(),
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    /// From an address of the loopback network.
    async fn connect_from(&self, last: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, last], 0).into()).unwrap();
        let server = ([127, 0, 0, 1], self.port).into();
        socket.connect(server).await.unwrap()
    }

    fn number(&self, line: &str) -> bool {
        let text = holdfast_runtime::metrics::encode(&self.numbers);
        text.lines().any(|found| found == line)
    }
}

/// Everything until the server closes the connection, and how long that took; a reset counts as a
/// close.
async fn until_closed(stream: &mut TcpStream) -> (Vec<u8>, Duration) {
    let begun = Instant::now();
    let mut bytes = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        while let Ok(count) = stream.read(&mut buffer).await {
            if count == 0 {
                break;
            }
            bytes.extend_from_slice(&buffer[..count]);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .expect("the server closes the connection");
    (bytes, begun.elapsed())
}

async fn answer(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 4096];
    let count = stream.read(&mut buffer).await.unwrap();
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn headers_beyond_the_limit_are_answered_with_431() {
    let server = Server::start(Limits {
        header_bytes: 32 << 10,
        ..Limits::default()
    })
    .await;
    for (headers, expect) in [
        (format!("x: {}\r\n", "y".repeat(30 << 10)), "HTTP/1.1 200"),
        (format!("x: {}\r\n", "y".repeat(33 << 10)), "HTTP/1.1 431"),
        ("x: y\r\n".repeat(99), "HTTP/1.1 200"),
        ("x: y\r\n".repeat(101), "HTTP/1.1 431"),
    ] {
        let mut stream = server.connect().await;
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
        let found = answer(&mut stream, &request).await;
        assert!(
            found.starts_with(expect),
            "{} bytes: {found}",
            request.len()
        );
    }
}

#[tokio::test]
async fn a_client_that_sends_its_headers_slowly_is_cut() {
    let server = Server::start(Limits {
        header_timeout: Duration::from_millis(400),
        ..Limits::default()
    })
    .await;
    let mut silent = server.connect().await;
    let (bytes, took) = until_closed(&mut silent).await;
    assert!(
        bytes.is_empty() && Duration::from_millis(300) < took,
        "{took:?}"
    );
    let mut slow = server.connect().await;
    assert!(answer(&mut slow, GET).await.starts_with("HTTP/1.1 200"));
    // A byte now and then keeps nothing open.
    let begun = Instant::now();
    for byte in GET.bytes().cycle() {
        if slow.write_all(&[byte]).await.is_err() || begun.elapsed() > Duration::from_secs(10) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert!(server.number(r#"holdfast_connections_cut_total{reason="headers"} 2"#));
}

#[tokio::test]
async fn an_idle_connection_is_closed_later_than_slow_headers() {
    let server = Server::start(Limits {
        header_timeout: Duration::from_millis(200),
        keep_alive: Duration::from_millis(900),
        ..Limits::default()
    })
    .await;
    let mut stream = server.connect().await;
    assert!(answer(&mut stream, GET).await.starts_with("HTTP/1.1 200"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        answer(&mut stream, GET).await.starts_with("HTTP/1.1 200"),
        "idle for longer than headers may take"
    );
    let (_, took) = until_closed(&mut stream).await;
    assert!(Duration::from_millis(700) < took, "{took:?}");
    assert!(server.number(r#"holdfast_connections_cut_total{reason="idle"} 1"#));
}

/// A connection that asked for a large answer and has read nothing.
async fn request_large(server: &Server, headers: &str) -> TcpStream {
    let mut stream = server.connect().await;
    let request = format!("GET /large HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_client_that_reads_no_answer_is_cut() {
    let server = Server::start(Limits {
        idle: Duration::from_millis(500),
        ..Limits::default()
    })
    .await;
    let mut stream = request_large(&server, "").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(server.number(r#"holdfast_connections_cut_total{reason="stalled"} 1"#));
    let (bytes, _) = until_closed(&mut stream).await;
    assert!(bytes.len() < LARGE, "never a whole answer");
}

#[tokio::test]
async fn a_client_that_reads_too_slowly_is_cut() {
    let server = Server::start(Limits {
        window: Duration::from_secs(1),
        min_bytes_per_second: 8 << 20,
        ..Limits::default()
    })
    .await;
    let mut stream = request_large(&server, "").await;
    let begun = Instant::now();
    let mut buffer = vec![0; 16 << 10];
    let line = r#"holdfast_connections_cut_total{reason="slow"} 1"#;
    while !server.number(line) && begun.elapsed() < Duration::from_secs(15) {
        if stream.read(&mut buffer).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(server.number(line));
}

#[tokio::test]
async fn a_slow_but_steady_client_gets_everything() {
    let server = Server::start(Limits {
        idle: Duration::from_millis(500),
        ..Limits::default()
    })
    .await;
    let mut stream = request_large(&server, "connection: close\r\n").await;
    let mut taken = 0;
    let mut buffer = vec![0; 4 << 20];
    loop {
        let count = stream.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        taken += count;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(LARGE < taken, "{taken}");
}

#[tokio::test]
async fn the_connections_of_an_address_are_bounded() {
    let server = Server::start(Limits {
        connections_per_address: 2,
        ..Limits::default()
    })
    .await;
    let mut first = server.connect().await;
    let mut second = server.connect().await;
    for stream in [&mut first, &mut second] {
        assert!(answer(stream, GET).await.starts_with("HTTP/1.1 200"));
    }
    let mut third = server.connect().await;
    let (bytes, _) = until_closed(&mut third).await;
    assert!(bytes.is_empty(), "closed without an answer");
    assert!(server.number(r#"holdfast_connections_refused_total{reason="address"} 1"#));
    assert!(server.number("holdfast_connections_open 2"));
    drop(first);
    for _ in 0..100 {
        let mut again = server.connect().await;
        again.write_all(GET.as_bytes()).await.ok();
        let mut buffer = [0; 12];
        if again.read_exact(&mut buffer).await.is_ok() {
            assert_eq!(&buffer, b"HTTP/1.1 200");
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the slot of a connection that ended is not released");
}

const SLOW: &str = "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn connections_above_the_limit_wait() {
    let server = Server::start(Limits {
        connections: 1,
        ..Limits::default()
    })
    .await;
    let mut first = server.connect().await;
    first.write_all(SLOW.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut second = server.connect().await;
    let waits = tokio::time::timeout(Duration::from_millis(300), answer(&mut second, GET)).await;
    assert!(
        waits.is_err(),
        "the one slot is taken by a request in progress"
    );
    drop(first);
    let mut buffer = [0; 12];
    second.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn waiting_connections_are_bounded_and_further_ones_are_closed() {
    let server = Server::start(Limits {
        connections: 1,
        header_timeout: Duration::from_secs(2),
        ..Limits::default()
    })
    .await;
    let mut busy = server.connect_from(1).await;
    busy.write_all(SLOW.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut waiting = Vec::new();
    for last in 2..6 {
        for _ in 0..server::MAX_WAITING / 4 {
            waiting.push(server.connect_from(last).await);
        }
    }
    for last in [2, 6] {
        let (_, took) = until_closed(&mut server.connect_from(last).await).await;
        assert!(took < Duration::from_secs(1), "{last}: {took:?}");
    }
    assert!(server.number(r#"holdfast_connections_refused_total{reason="full"} 2"#));
    let (_, took) = until_closed(&mut waiting[0]).await;
    assert!(Duration::from_secs(1) < took, "{took:?}");
}

#[tokio::test]
async fn a_full_listener_makes_room_for_other_addresses() {
    const EACH: usize = 4;
    for (way, sent) in [
        ("says nothing", ""),
        ("is idle after an answer", GET),
        ("sends half a header", "GET / HT"),
        ("waits for an answer", SLOW),
        (
            "does not send its body",
            "PUT /body HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n",
        ),
        ("takes nothing", "GET /large HTTP/1.1\r\nhost: a\r\n\r\n"),
    ] {
        let server = Server::start(Limits {
            connections: 4 * EACH,
            ..Limits::default()
        })
        .await;
        let mut hoarded = Vec::new();
        for last in 2..6 {
            for _ in 0..EACH {
                let mut stream = server.connect_from(last).await;
                stream.write_all(sent.as_bytes()).await.unwrap();
                hoarded.push(stream);
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        for round in 0..EACH - 1 {
            let mut honest = server.connect().await;
            let found =
                tokio::time::timeout(Duration::from_secs(3), answer(&mut honest, GET)).await;
            assert!(
                found.is_ok_and(|found| found.starts_with("HTTP/1.1 200")),
                "{way}: connection {round} of another address gets no slot"
            );
            hoarded.push(honest);
        }
        let count = EACH - 1;
        let line = format!(r#"holdfast_connections_cut_total{{reason="evicted"}} {count}"#);
        assert!(server.number(&line), "{way}");
    }
}

#[tokio::test]
async fn a_body_ends_with_the_bound_that_it_meets() {
    let base = Limits {
        idle: Duration::from_secs(3600),
        min_bytes_per_second: 0,
        window: Duration::from_secs(3600),
        ..Limits::default()
    };
    let silent = Limits {
        idle: Duration::from_millis(300),
        ..base
    };
    let slow = Limits {
        window: Duration::from_millis(500),
        min_bytes_per_second: 1000,
        ..base
    };
    let late = Limits {
        body_timeout: Some(Duration::from_millis(500)),
        ..base
    };
    let small = Limits {
        body_bytes: 10,
        ..base
    };
    let sized = |bytes: usize| format!("content-length: {bytes}\r\n\r\n");
    let chunked = "transfer-encoding: chunked\r\n\r\n";
    let trickle = "x".repeat(100);
    for (limits, rest, body, expect) in [
        (silent, sized(10), "12345", 408),
        (silent, chunked.to_owned(), "", 408),
        (slow, sized(1000), &trickle, 408),
        (late, sized(1000), &trickle, 408),
        (late, sized(10), "1234567890", 200),
        (small, sized(10), "1234567890", 200),
        (small, sized(11), "", 413),
        (
            small,
            chunked.to_owned(),
            "a\r\n1234567890\r\n1\r\nx\r\n",
            413,
        ),
    ] {
        let server = Server::start(limits).await;
        let (mut reader, mut writer) = server.connect().await.into_split();
        let head = format!("PUT /body HTTP/1.1\r\nhost: a\r\n{rest}");
        writer.write_all(head.as_bytes()).await.unwrap();
        let send = async {
            for byte in body.bytes() {
                if writer.write_all(&[byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            std::future::pending::<()>().await;
        };
        let mut buffer = [0; 12];
        let read = tokio::time::timeout(Duration::from_secs(10), reader.read_exact(&mut buffer));
        tokio::select! {
            () = send => {}
            read = read => drop(read.expect("an answer in time").unwrap()),
        }
        let expect = format!("HTTP/1.1 {expect}");
        assert_eq!(
            String::from_utf8_lossy(&buffer),
            expect,
            "{rest:?} {body:?}"
        );
    }
}
