//! Clients that begin pulls and leave: nothing of them stays, and nobody waits behind them.

use std::time::{Duration, Instant};

use holdfast_testkit::{Fault, ImageBuilder, Upstream, eventually, faults::Kind};
use reqwest::{Client, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::fills::path;
use crate::replica::Site;

const LIMIT: Duration = Duration::from_secs(60);

/// Sends a request on a connection of its own, and leaves: after the first bytes of the answer, or
/// without waiting for it.
async fn begin(url: &str, path: &str, waits: bool) {
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    if waits {
        let mut some = [0; 200];
        assert!(stream.read(&mut some).await.unwrap() > 0);
    } else {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_pulls_of_a_growing_blob_leave_no_task_behind() {
    let image = ImageBuilder::new(210).layer(1_000_000).build();
    let layer = &image.layers[0];
    let upstream = Upstream::start().await;
    upstream.push("x/shared", "1", &image);
    let kind = Kind::Slow {
        bytes_per_second: 20_000,
    };
    let fault = Fault::new(kind).on(&format!("GET /v2/x/shared/blobs/{layer}"));
    upstream.faults().set(fault);
    let site = Site::new();
    let replica = site.replica(&upstream, "one").await;
    let http = Client::new();
    let manifest = path(&upstream, "x/shared", "manifests/1");
    let answer = http.get(format!("{}{manifest}", replica.url)).send().await;
    assert_eq!(answer.unwrap().status(), StatusCode::OK);
    let blob = path(&upstream, "x/shared", &format!("blobs/{layer}"));
    begin(&replica.url, &blob, true).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    for _ in 0..20 {
        let some = (0..20).map(|_| begin(&replica.url, &blob, true));
        futures::future::join_all(some).await;
    }
    eventually("as few tasks as before", LIMIT, || tasks() <= before + 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_pull_is_not_behind_abandoned_ones() {
    let image = ImageBuilder::new(211).layer(6000).build();
    let upstream = Upstream::start().await;
    upstream.push("good/app", "1", &image);
    let site = Site::new();
    let replica = site.replica(&upstream, "one").await;
    // At fifty requests a second these would take ten seconds.
    for round in 0..10 {
        let some = (0..50).map(|n| {
            let tag = format!("manifests/no{}", round * 50 + n);
            let (url, path) = (replica.url.clone(), path(&upstream, "good/app", &tag));
            async move { begin(&url, &path, false).await }
        });
        futures::future::join_all(some).await;
    }
    let begun = Instant::now();
    let manifest = path(&upstream, "good/app", "manifests/1");
    let answer = Client::new()
        .get(format!("{}{manifest}", replica.url))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
}
