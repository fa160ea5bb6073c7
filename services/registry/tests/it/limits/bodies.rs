//! Bodies that come slowly or not at all, and manifests that readers could read in two ways.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use holdfast_core::oci::MANIFEST_BYTES;
use holdfast_registry::{
    access_control::AccessControl,
    limits::{
        DISCARD_BYTES, DISCARD_FOR, JSON_DEPTH, Limits, MANIFEST_DESCRIPTORS, PUSH_MEMORY,
        PUSH_MEMORY_PER_ADDRESS, PUSH_MEMORY_WAIT, SMALL_MANIFEST_BYTES, SMALL_PUSH_MEMORY,
        SMALL_PUSH_MEMORY_PER_ADDRESS,
    },
};
use holdfast_runtime::server;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use crate::harness::{Registry, Setup, code, header, image, sha256};

async fn impatient(idle: Duration, window: Duration) -> Registry {
    Setup {
        connections: server::Limits {
            idle,
            window,
            min_bytes_per_second: 1000,
            ..server::Limits::default()
        },
        ..Setup::default()
    }
    .start()
    .await
}

/// A body that sends `piece` every so often, for as long as anybody listens.
fn slowly(piece: &'static str, every: Duration) -> reqwest::Body {
    let first = futures::stream::once(async move { Ok::<_, std::io::Error>(piece) });
    let rest = futures::stream::repeat(()).then(move |()| async move {
        tokio::time::sleep(every).await;
        Ok(piece)
    });
    reqwest::Body::wrap_stream(first.chain(rest))
}

#[tokio::test]
async fn a_body_that_stops_or_trickles_ends_with_408_and_the_upload_can_go_on() {
    let hour = Duration::from_secs(3600);
    for (idle, window, every) in [
        (Duration::from_millis(300), hour, hour),
        (hour, Duration::from_millis(500), Duration::from_millis(50)),
    ] {
        let registry = impatient(idle, window).await;
        let begun = registry.send("POST", "/v2/a/blobs/uploads/", &[], "").await;
        let location = header(begun.headers(), "location").to_owned();
        let answer = registry
            .send("PATCH", &location, &[], slowly("abc", every))
            .await;
        assert_eq!(
            code(answer).await,
            (408, "BLOB_UPLOAD_INVALID".into()),
            "{idle:?} {window:?}"
        );
        let target = format!("{location}&digest={}", sha256(b"whole"));
        let finished = registry.send("PUT", &target, &[], "whole").await;
        assert_eq!(
            finished.status(),
            201,
            "from the offset that was acknowledged"
        );
    }
}

#[tokio::test]
async fn a_body_that_is_slow_but_fast_enough_is_taken() {
    let registry = impatient(Duration::from_millis(900), Duration::from_millis(500)).await;
    let pieces = futures::stream::iter(0..10).then(|_| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok::<_, std::io::Error>("x".repeat(500))
    });
    let digest = sha256("x".repeat(5000).as_bytes());
    let answer = registry
        .send(
            "POST",
            &format!("/v2/a/blobs/uploads/?digest={digest}"),
            &[],
            reqwest::Body::wrap_stream(pieces),
        )
        .await;
    assert_eq!(answer.status(), 201);
}

#[tokio::test]
async fn a_manifest_that_could_be_read_in_two_ways_or_costs_too_much_is_refused() {
    let registry = Registry::start().await;
    let config = registry.push_blob("a", "{}").await;
    let with = |extra: &str| image(&config, 2, &[], extra);
    let layers = |count: usize| image(&config, 2, &vec![(&config, 2); count], "");
    let nested =
        |depth: usize| format!(r#","x":{}1{}"#, r#"{"a":"#.repeat(depth), "}".repeat(depth));
    for (manifest, expect) in [
        (with(r#","x":1"#), 201),
        (with(r#","x":1,"x":1"#), 400),
        (with(r#","layers":[]"#), 400),
        (with(r#","Layers":[]"#), 400),
        (with(",\"layer\u{17f}\":[]"), 400),
        (with(r#","annotations":{"a":"1","A":"2"}"#), 201),
        (with(r#","annotations":{"a":"1","a":"2"}"#), 400),
        (with(&nested(JSON_DEPTH - 1)), 201),
        (with(&nested(JSON_DEPTH)), 400),
        (layers(MANIFEST_DESCRIPTORS), 201),
        (layers(MANIFEST_DESCRIPTORS + 1), 400),
    ] {
        let answer = registry.put_manifest("a", "1", &manifest).await;
        if expect == 400 {
            let found = code(answer).await;
            assert_eq!(found, (400, "MANIFEST_INVALID".into()), "{manifest:.300}");
        } else {
            assert_eq!(answer.status(), expect, "{manifest:.300}");
        }
    }
}

#[tokio::test]
async fn the_largest_manifest_that_is_taken_is_served_and_never_moved_aside() {
    let most = usize::try_from(MANIFEST_BYTES).unwrap();
    let registry = Setup {
        limits: Limits {
            manifest_bytes: MANIFEST_BYTES,
            ..Limits::default()
        },
        ..Setup::default()
    }
    .start()
    .await;
    let config = registry.push_blob("a", "{}").await;
    let padded = |bytes: usize| {
        let length = image(&config, 2, &[], r#","x":"""#).len();
        image(
            &config,
            2,
            &[],
            &format!(r#","x":"{}""#, "p".repeat(bytes - length)),
        )
    };
    let manifest = padded(most);
    let digest = sha256(manifest.as_bytes());
    assert_eq!(
        registry.put_manifest("a", "1", &manifest).await.status(),
        201
    );
    assert_eq!(
        registry
            .put_manifest("a", "2", &padded(most + 1))
            .await
            .status(),
        413
    );
    for _ in 0..2 {
        let answer = registry.get("/v2/a/manifests/1").await;
        assert_eq!(answer.status(), 200);
        assert!(answer.bytes().await.unwrap() == manifest);
    }
    // Another program's bytes that nothing reads whole: nobody can say that they are damaged.
    let path = registry.store.layout().blob(&digest);
    std::fs::write(&path, vec![b'p'; most + 1]).unwrap();
    assert_eq!(registry.get("/v2/a/manifests/1").await.status(), 500);
    assert!(path.exists(), "it is left where it is");
}

#[tokio::test]
async fn a_refused_push_over_http_2_shows_its_answer_before_the_body_ends() {
    const PIECES: usize = 64;
    let (_registry, request) = refused_push().await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let pieces = futures::stream::iter(0..PIECES).map(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok::<_, std::io::Error>(vec![0_u8; 64 << 10])
    });
    let answer = request
        .body(reqwest::Body::wrap_stream(pieces))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 401);
    // A reset would end the body early.
    for _ in 0..500 {
        if sent.load(Ordering::Relaxed) == PIECES {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("reset after {} pieces", sent.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_manifest_has_so_many_bytes_and_no_more() {
    let limit = Limits::default().manifest_bytes;
    let registry = Registry::start().await;
    let config = registry.push_blob("a", "{}").await;
    let bare = image(&config, 2, &[], r#","annotations":{"n":""}"#).len();
    for (length, expect) in [(limit, 201), (limit + 1, 413)] {
        let note = "x".repeat(usize::try_from(length).unwrap() - bare);
        let note = format!(r#","annotations":{{"n":"{note}"}}"#);
        let manifest = image(&config, 2, &[], &note);
        assert_eq!(manifest.len() as u64, length);
        let answer = registry.put_manifest("a", "1", &manifest).await;
        if expect == 413 {
            assert_eq!(code(answer).await, (413, "SIZE_INVALID".into()));
        } else {
            assert_eq!(answer.status(), expect);
        }
    }
}

/// A registry that admits nobody without a password, and a push over HTTP/2 that has none.
async fn refused_push() -> (Registry, reqwest::RequestBuilder) {
    let registry = Setup {
        access_control: AccessControl::nodes("node", "secret"),
        ..Setup::default()
    }
    .start()
    .await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let url = &registry.url;
    let digest = sha256(b"x");
    let request = client.post(format!("{url}/v2/a/blobs/uploads/?digest={digest}"));
    (registry, request)
}

/// A refused push over HTTP/2 whose body consists of `pieces`: how many of them were taken until
/// the stream was reset, and when.
async fn refused(
    pieces: impl futures::Stream<Item = Vec<u8>> + Send + 'static,
) -> (usize, Duration) {
    let (_registry, request) = refused_push().await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    // The client drops the body when its stream is reset.
    let (alive, mut dropped) = tokio::sync::oneshot::channel::<()>();
    let pieces = pieces.map(move |piece| {
        let _alive = &alive;
        counted.fetch_add(piece.len(), Ordering::Relaxed);
        Ok::<_, std::io::Error>(piece)
    });
    let body = reqwest::Body::wrap_stream(pieces);
    let begun = Instant::now();
    let answer = request.body(body).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    let end = tokio::time::timeout(4 * DISCARD_FOR, &mut dropped).await;
    assert!(end.is_ok(), "the stream is still open");
    (sent.load(Ordering::Relaxed), begun.elapsed())
}

#[tokio::test]
async fn of_a_refused_body_so_much_is_thrown_away_and_no_more() {
    let pieces = futures::stream::repeat(vec![0_u8; 64 << 10]);
    let (sent, _) = refused(pieces).await;
    // What the windows of HTTP/2 and the client's own queue hold comes on top.
    assert!(DISCARD_BYTES <= sent, "{sent}");
    assert!(sent <= DISCARD_BYTES + (4 << 20), "{sent}");
}

#[tokio::test]
async fn a_refused_body_is_waited_for_so_long_and_no_longer() {
    let first = futures::stream::once(async { vec![0_u8; 1024] });
    let (_, took) = refused(first.chain(futures::stream::pending())).await;
    assert!(DISCARD_FOR < took + Duration::from_secs(1), "{took:?}");
}

/// Begins to push a manifest of `bytes` bytes from an address of the loopback network; returns what
/// the registry sends first. It sends `100 Continue` when it begins to read.
async fn begin_push(registry: &Registry, last: u8, bytes: u64) -> (TcpStream, String) {
    let port = registry.url.rsplit(':').next().unwrap().parse().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, last], 0).into()).unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = socket.connect(address).await.unwrap();
    let head = format!(
        "PUT /v2/a/manifests/1 HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n\
         content-length: {bytes}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 2048];
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut answer));
    let count = read.await.unwrap().unwrap();
    answer.truncate(count);
    (stream, String::from_utf8(answer).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_of_manifests_share_a_budget_by_address() {
    let registry = Registry::start().await;
    for (bytes, share) in [
        (4 << 20, PUSH_MEMORY_PER_ADDRESS),
        (SMALL_MANIFEST_BYTES, SMALL_PUSH_MEMORY_PER_ADDRESS),
    ] {
        let mut silent = Vec::new();
        for _ in 0..share / bytes {
            let (stream, answer) = begin_push(&registry, 1, bytes).await;
            assert!(answer.starts_with("HTTP/1.1 100"), "{answer}");
            silent.push(stream);
        }
        let begun = Instant::now();
        let (_, answer) = begin_push(&registry, 1, bytes).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        let waited = begun.elapsed();
        let longest = PUSH_MEMORY_WAIT + Duration::from_secs(5);
        assert!(PUSH_MEMORY_WAIT <= waited && waited < longest, "{waited:?}");
        let lower = answer.to_lowercase();
        assert!(lower.contains("retry-after: 5"), "{answer}");
        assert!(answer.contains("TOOMANYREQUESTS"), "{answer}");
        // Others are not held back, and its own place is free when a client breaks off.
        let (_, answer) = begin_push(&registry, 2, bytes).await;
        assert!(answer.starts_with("HTTP/1.1 100"), "{answer}");
        silent.pop();
        let (_, answer) = begin_push(&registry, 1, bytes).await;
        assert!(answer.starts_with("HTTP/1.1 100"), "{answer}");
    }
}

/// Whether a push that waits for its body was refused meanwhile.
async fn is_refused(mut stream: TcpStream) -> bool {
    let mut answer = [0; 12];
    let read = tokio::time::timeout(Duration::from_secs(1), stream.read_exact(&mut answer));
    match read.await {
        Ok(read) => {
            read.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 503");
            true
        }
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_of_manifests_of_all_addresses_share_a_budget() {
    let registry = Registry::start().await;
    for (bytes, all, share) in [
        (4 << 20, PUSH_MEMORY, PUSH_MEMORY_PER_ADDRESS),
        (
            SMALL_MANIFEST_BYTES,
            SMALL_PUSH_MEMORY,
            SMALL_PUSH_MEMORY_PER_ADDRESS,
        ),
    ] {
        let addresses = u8::try_from(all / share).unwrap();
        let mut silent = Vec::new();
        for last in 1..=addresses {
            for _ in 0..share / bytes {
                let (stream, answer) = begin_push(&registry, last, bytes).await;
                assert!(answer.starts_with("HTTP/1.1 100"), "{answer}");
                silent.push(stream);
            }
        }
        // One of another address finds no room, until one that came slowly makes some.
        let (_, answer) = begin_push(&registry, addresses + 1, bytes).await;
        assert!(answer.starts_with("HTTP/1.1 100"), "{answer}");
        let refused = futures::future::join_all(silent.into_iter().map(is_refused)).await;
        let refused = refused.into_iter().filter(|refused| *refused).count();
        assert_eq!(refused, 1, "{bytes} bytes each");
    }
}
