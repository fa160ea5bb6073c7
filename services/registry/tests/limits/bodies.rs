//! Bodies that come slowly or not at all, and manifests that readers could read in two ways.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use holdfast_registry::{
    gate::Gate,
    limits::{JSON_DEPTH, Limits, MANIFEST_DESCRIPTORS},
};

use crate::harness::{Registry, Setup, code, header, image, sha256};

async fn impatient(idle: Duration, window: Duration) -> Registry {
    Setup {
        limits: Limits {
            idle,
            rate_window: window,
            min_bytes_per_second: 1000,
            ..Limits::default()
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
async fn a_refused_push_over_http_2_shows_its_answer_though_the_body_is_still_on_its_way() {
    const PIECES: usize = 64;
    let registry = Setup {
        gate: Gate::nodes("node", "secret"),
        ..Setup::default()
    }
    .start()
    .await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let pieces = futures::stream::iter(0..PIECES).map(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok::<_, std::io::Error>(vec![0_u8; 64 << 10])
    });
    let answer = client
        .post(format!(
            "{}/v2/a/blobs/uploads/?digest={}",
            registry.url,
            sha256(b"x")
        ))
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
