//! The admin port under attack: probes are answered whatever other clients do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use holdfast_runtime::CancellationToken;
use holdfast_runtime::admin::{self, Admin};
use holdfast_runtime::health::Health;

async fn start() -> (u16, tokio_util::sync::DropGuard) {
    start_with(Vec::new()).await
}

async fn start_with(documents: Vec<admin::Document>) -> (u16, tokio_util::sync::DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let admin = Admin {
        health: Health::default(),
        registry: Arc::new(Registry::default()),
        level: None,
    };
    let stop = CancellationToken::new();
    tokio::spawn(admin.serve_with(documents, listener, stop.clone()));
    (port, stop.drop_guard())
}

async fn connect(port: u16, last: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, last], 0).into()).unwrap();
    let address = ([127, 0, 0, 1], port).into();
    socket.connect(address).await.unwrap()
}

/// A probe as the kubelet sends it: a connection of its own.
async fn probe(port: u16) -> String {
    let ask = async {
        let mut stream = connect(port, 1).await;
        let request = b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    match tokio::time::timeout(Duration::from_secs(5), ask).await {
        Ok(Ok(answer)) => answer.lines().next().unwrap_or_default().to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in 5 s".to_owned(),
    }
}

#[tokio::test]
async fn hostile_connections_cannot_starve_probes() {
    for (way, sent) in [
        ("says nothing", ""),
        ("sends half a header", "GET /livez HTTP/1.1\r\nx:"),
        (
            "is idle after an answer",
            "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n",
        ),
        (
            "sends a body slowly",
            "PUT /log-level HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n",
        ),
        (
            "sends another body slowly",
            "POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n",
        ),
    ] {
        // Hostile clients may have the address of the kubelet.
        for addresses in [1..2, 2..6] {
            let (port, _stop) = start().await;
            let mut held = Vec::new();
            for number in 0..5 * admin::CONNECTIONS {
                let last = addresses.start + u8::try_from(number % addresses.len()).unwrap();
                let mut stream = connect(port, last).await;
                stream.write_all(sent.as_bytes()).await.ok();
                held.push(stream);
            }
            for _ in 0..3 {
                assert_eq!(probe(port).await, "HTTP/1.1 200 OK", "{way} {addresses:?}");
                for stream in &mut held {
                    stream.write_all(b"a").await.ok();
                }
            }
        }
    }
}

#[tokio::test]
async fn a_remote_client_is_refused_before_the_body_of_a_log_level() {
    let (port, _stop) = start().await;
    let other = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    // Only an address that is not the loopback one shows it over a socket; without any,
    // `a_remote_client_is_refused_before_its_body_is_read` beside the code is what shows it.
    let Ok(other) = other.map(|address| address.ip()).map(|ip| (ip, port)) else {
        println!("not run: this machine has no address but loopback");
        return;
    };
    let listener = TcpListener::bind((other.0, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let admin = Admin {
        health: Health::default(),
        registry: Arc::new(Registry::default()),
        level: None,
    };
    let stop = CancellationToken::new();
    tokio::spawn(admin.serve(listener, stop.clone()));
    let _stop = stop.drop_guard();
    let mut stream = TcpStream::connect((other.0, port)).await.unwrap();
    let request = b"PUT /log-level HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = [0; 12];
    let read = stream.read_exact(&mut answer);
    let read = tokio::time::timeout(Duration::from_secs(3), read).await;
    read.expect("an answer before the body").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
}

#[tokio::test]
async fn the_bytes_of_a_log_level_are_bounded() {
    let (port, _stop) = start().await;
    // Without a switch there is nothing to set, which shows after the bound.
    for (bytes, expect) in [(admin::LEVEL_BYTES, "404"), (admin::LEVEL_BYTES + 1, "413")] {
        let mut stream = connect(port, 1).await;
        let head = format!("PUT /log-level HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n");
        let body = "x".repeat(usize::try_from(bytes).unwrap());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer[9..], expect.as_bytes(), "{bytes}");
    }
}

/// How a client of the admin port is slow, and what it sends.
const SLOW: [(&str, &str); 5] = [
    ("says nothing", ""),
    ("sends half a header", "GET /livez HTTP/1.1\r\nx:"),
    (
        "sends no body",
        "PUT /log-level HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n",
    ),
    (
        "sends a byte of a body now and then",
        "PUT /log-level HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\na",
    ),
    (
        "takes nothing of an answer",
        "GET /large HTTP/1.1\r\nhost: x\r\n\r\n",
    ),
];

/// Sends `sent`, and the last byte again every half a second if it is of a body; how long it takes
/// until the connection is closed.
async fn closed_after(port: u16, sent: &str) -> Duration {
    let begun = Instant::now();
    let (mut reader, mut writer) = connect(port, 1).await.into_split();
    writer.write_all(sent.as_bytes()).await.unwrap();
    let trickle = async {
        while sent.ends_with('a') && writer.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        std::future::pending::<()>().await;
    };
    let end = async {
        if sent.contains("/large") {
            // Until the server has given it up nothing is read.
            tokio::time::sleep(admin::limits().idle + Duration::from_secs(3)).await;
        }
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await.ok();
        rest.len()
    };
    let end = tokio::time::timeout(Duration::from_secs(20), end);
    let taken = tokio::select! {
        () = trickle => 0,
        taken = end => taken.expect("the connection is closed"),
    };
    assert!(taken < LARGE, "never a whole answer");
    begun.elapsed()
}

/// More than the buffers of two sockets hold.
const LARGE: usize = 32 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_connection_is_cut_although_slots_are_free() {
    let large: admin::Document = ("large", Arc::new(|| "x".repeat(LARGE)));
    let (port, _stop) = start_with(vec![large]).await;
    let timeout = Duration::from_secs(5);
    let all = SLOW.map(|(way, sent)| async move { (way, closed_after(port, sent).await) });
    for (way, took) in futures::future::join_all(all).await {
        assert!(
            timeout <= took + Duration::from_millis(100),
            "{way}: {took:?}"
        );
        assert!(took < 2 * timeout, "{way}: {took:?}");
    }
}
