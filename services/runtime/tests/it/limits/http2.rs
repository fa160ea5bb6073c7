//! What an HTTP/2 connection may cost.

use super::*;

/// A client that writes HTTP/2 frames by hand.
struct Http2(TcpStream);

const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The headers of a GET: indexed `:method GET` and `:scheme http`, then literals for `:path` and
/// `:authority`.
fn get_of(path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).unwrap();
    let mut block = vec![0x82, 0x86, 0x04, length];
    block.extend_from_slice(path.as_bytes());
    block.extend_from_slice(&[0x01, 1, b'a']);
    block
}

impl Http2 {
    async fn connect(server: &Server) -> Self {
        Self::over(server.connect().await).await
    }

    async fn over(mut stream: TcpStream) -> Self {
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let mut client = Self(stream);
        client.send(SETTINGS, 0, 0, &[]).await.unwrap();
        client
    }

    async fn send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> std::io::Result<()> {
        self.0.write_all(&frame(kind, flags, stream, payload)).await
    }

    /// GET of a path on a stream.
    async fn get(&mut self, stream: u32, path: &str) -> std::io::Result<()> {
        self.send(HEADERS, 0x5, stream, &get_of(path)).await
    }

    /// The next frame of one kind: stream and payload; `None` when the server closes first.
    async fn next(&mut self, wanted: u8) -> Option<(u32, Vec<u8>)> {
        let wait = async {
            loop {
                let mut head = [0; 9];
                self.0.read_exact(&mut head).await.ok()?;
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let mut payload = vec![0; length as usize];
                self.0.read_exact(&mut payload).await.ok()?;
                if head[3] == wanted {
                    let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
                    return Some((stream, payload));
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .expect("a frame or the end")
    }
}

/// A connection from an address, and the window of its streams that the server announces.
async fn window_from(server: &Server, last: u8) -> (Http2, u32) {
    let mut client = Http2::over(server.connect_from(last).await).await;
    let (_, settings) = client.next(SETTINGS).await.unwrap();
    let window = settings
        .chunks(6)
        .find(|setting| setting[..2] == [0, 4])
        .map_or(65_535, |setting| code(setting, 2));
    (client, window)
}

#[tokio::test]
async fn connections_with_a_large_window_are_bounded() {
    let windows = server::LARGE_WINDOWS_OF_ADDRESS + 4;
    let server = Server::start(Limits {
        http2_large_windows: windows,
        ..Limits::default()
    })
    .await;
    let mut clients = Vec::new();
    let mut large = [0; 2];
    for (address, large) in large.iter_mut().enumerate() {
        for _ in 0..windows {
            let last = u8::try_from(address).unwrap() + 1;
            let (client, window) = window_from(&server, last).await;
            if window == server::LARGE_WINDOW {
                *large += 1;
            } else {
                assert_eq!(window, Limits::default().http2_window);
            }
            clients.push(client);
        }
    }
    assert_eq!(large, [server::LARGE_WINDOWS_OF_ADDRESS, 4]);
    // A connection that ends gives its window to a later one.
    drop(clients);
    for _ in 0..500 {
        if window_from(&server, 3).await.1 == server::LARGE_WINDOW {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no window was given back");
}

fn code(payload: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(payload[at..at + 4].try_into().unwrap())
}

#[tokio::test]
async fn streams_that_are_reset_at_once_end_the_connection() {
    let server = Server::start(Limits::default()).await;
    let mut client = Http2::connect(&server).await;
    let mut stream = 1;
    while stream < 20_001 {
        let sent = client.get(stream, "/slow").await;
        let reset = client
            .send(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
            .await;
        if sent.is_err() || reset.is_err() {
            break;
        }
        stream += 2;
    }
    // The server may close before everything that it said is read: a reset of TCP then drops the
    // rest.
    if let Some((_, payload)) = client.next(GOAWAY).await {
        assert_eq!(code(&payload, 4), ENHANCE_YOUR_CALM);
    }
    let mut other = server.connect().await;
    assert!(answer(&mut other, GET).await.starts_with("HTTP/1.1 200"));
    for _ in 0..100 {
        if server.number("holdfast_connections_open 1") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the connection is still open");
}

/// This many streams that are reset at once, in one write: they come before the server looks at
/// any.
async fn reset_at_once(client: &mut Http2, count: usize) {
    let mut frames = Vec::new();
    for number in 0..u32::try_from(count).unwrap() {
        let stream = 2 * number + 1;
        frames.extend(frame(HEADERS, 0x5, stream, &get_of("/slow")));
        frames.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    client.0.write_all(&frames).await.unwrap();
}

#[tokio::test]
async fn resets_before_processing_are_bounded() {
    for resets in [5, Limits::default().resets] {
        let server = Server::start(Limits {
            resets,
            ..Limits::default()
        })
        .await;
        for (count, is_taken) in [(resets, true), (resets + 1, false)] {
            let mut client = Http2::connect(&server).await;
            // The server reads from here on.
            client.next(SETTINGS).await.unwrap();
            reset_at_once(&mut client, count).await;
            let next = u32::try_from(2 * count + 1).unwrap();
            if is_taken {
                client.get(next, "/").await.unwrap();
                let (stream, _) = client.next(HEADERS).await.unwrap();
                assert_eq!(stream, next, "{count} of {resets}");
            } else {
                let (_, payload) = client.next(GOAWAY).await.expect("told why");
                assert_eq!(code(&payload, 4), ENHANCE_YOUR_CALM, "{count} of {resets}");
            }
        }
    }
}

#[tokio::test]
async fn the_streams_of_a_connection_are_bounded() {
    let server = Server::start(Limits {
        streams: 4,
        ..Limits::default()
    })
    .await;
    let mut client = Http2::connect(&server).await;
    for stream in [1, 3, 5, 7, 9] {
        client.get(stream, "/slow").await.unwrap();
    }
    let (stream, payload) = client.next(RST_STREAM).await.unwrap();
    assert_eq!((stream, code(&payload, 0)), (9, REFUSED_STREAM));
}

#[tokio::test]
async fn a_stream_whose_window_stays_shut_ends_its_connection() {
    let server = Server::start(Limits {
        idle: Duration::from_millis(500),
        ..Limits::default()
    })
    .await;
    let mut client = Http2::connect(&server).await;
    client.get(1, "/large").await.unwrap();
    // Everything that comes is read, and no window is ever opened.
    let begun = Instant::now();
    assert_eq!(client.next(RST_STREAM).await, None);
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(server.number(r#"holdfast_connections_cut_total{reason="stalled"} 1"#));
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed_and_a_busy_one_is_not() {
    let server = Server::start(Limits {
        header_timeout: Duration::from_millis(200),
        keep_alive: Duration::from_millis(600),
        idle: Duration::from_millis(200),
        ..Limits::default()
    })
    .await;
    let mut client = Http2::connect(&server).await;
    client.get(1, "/slow").await.unwrap();
    let (stream, _) = client.next(HEADERS).await.unwrap();
    assert_eq!(
        stream, 1,
        "an answer that takes us long is no client's fault"
    );
    let begun = Instant::now();
    assert_eq!(client.next(RST_STREAM).await, None);
    assert!(Duration::from_millis(400) < begun.elapsed());
    assert!(server.number(r#"holdfast_connections_cut_total{reason="idle"} 1"#));
}
