//! Upstreams that lie about sizes or trickle: their own images suffer, and nobody else's.

use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_testkit::{
    Image, ImageBuilder, Upstream, eventually,
    image::{OCI_MANIFEST, digest_of},
};
use reqwest::{Client, StatusCode};

use crate::replica::{Replica, Site, trickling};

const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn path(upstream: &Upstream, name: &str, rest: &str) -> String {
    format!("/v2/{}/{name}/{rest}", upstream.host().replace(':', "_"))
}

async fn status(http: &Client, url: String) -> StatusCode {
    http.get(url).send().await.unwrap().status()
}

/// Pushes an image under `team/app:1` as a client does.
async fn push(http: &Client, replica: &Replica, image: &Image) {
    for (digest, bytes) in &image.blobs {
        let url = format!("{}/v2/team/app/blobs/uploads/?digest={digest}", replica.url);
        let octets = http
            .post(url)
            .header("content-type", "application/octet-stream");
        let answer = octets.body(bytes.clone()).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
    }
    let url = format!("{}/v2/team/app/manifests/1", replica.url);
    let put = http.put(url).header("content-type", OCI_MANIFEST);
    let answer = put.body(image.bytes()).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strange_manifest_with_a_wrong_size_leaves_a_pushed_image_whole() {
    let image = ImageBuilder::new(200).layer(5000).build();
    let layer = &image.layers[0];
    let upstream = Upstream::start().await;
    let site = Site::new();
    let replica = site.replica(&upstream, "one").await;
    let http = Client::new();
    push(&http, &replica, &image).await;
    for (n, size) in [0, 1, 4999, 5001, 1_000_000_000_000_000_u64]
        .into_iter()
        .enumerate()
    {
        let text = String::from_utf8(image.bytes().to_vec()).unwrap();
        let manifest = Bytes::from(text.replace("5000", &size.to_string()));
        let digest = digest_of(&manifest);
        let mut strange = image.clone();
        strange.blobs.remove(layer);
        strange.manifests = [(digest.clone(), (OCI_MANIFEST.to_owned(), manifest))].into();
        strange.digest = digest;
        upstream.push("stranger/x", &n.to_string(), &strange);
        let manifest = path(&upstream, "stranger/x", &format!("manifests/{n}"));
        status(&http, format!("{}{manifest}", replica.url)).await;
        let blob = path(&upstream, "stranger/x", &format!("blobs/{layer}"));
        let refused = status(&http, format!("{}{blob}", replica.url)).await;
        assert_eq!(refused, StatusCode::NOT_FOUND, "it does not have the layer");
        let own = format!("{}/v2/team/app/blobs/{layer}", replica.url);
        let answer = http.get(own).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{size}");
        assert_eq!(answer.bytes().await.unwrap(), image.blobs[layer]);
    }
}

async fn pull(http: &Client, replica: &Replica, upstream: &Upstream, name: &str, image: &Image) {
    let manifest = path(upstream, name, "manifests/1");
    let answer = http.get(format!("{}{manifest}", replica.url)).send().await;
    assert_eq!(answer.unwrap().bytes().await.unwrap(), image.bytes());
    for (digest, bytes) in &image.blobs {
        let blob = path(upstream, name, &format!("blobs/{digest}"));
        let answer = http.get(format!("{}{blob}", replica.url)).send().await;
        assert_eq!(answer.unwrap().bytes().await.unwrap(), bytes, "{digest}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_trickles_a_public_layer_holds_back_nobody() {
    let image = ImageBuilder::new(201).layer(4_000_000).build();
    let layer = &image.layers[0];
    let evil = trickling("x/shared", &image).await;
    let good = Upstream::start().await;
    good.push("good/app", "1", &image);
    let site = Site::new();
    let replica = site.replica_of(&[&evil, &good], "one").await;
    let http = Client::new();
    let manifest = path(&evil, "x/shared", "manifests/1");
    status(&http, format!("{}{manifest}", replica.url)).await;
    let blob = path(&evil, "x/shared", &format!("blobs/{layer}"));
    drop(http.get(format!("{}{blob}", replica.url)).send().await);
    eventually("the stranger's copy runs", LIMIT, || evil.sent(layer) > 0).await;
    let begun = Instant::now();
    pull(&http, &replica, &good, "good/app", &image).await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(good.gets(layer), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_trickling_upstreams_do_not_take_all_slots() {
    let full = |seed| {
        let builder = (0..8).fold(ImageBuilder::new(seed), |all, _| all.layer(200_000));
        builder.build()
    };
    let images = [full(202), full(203)];
    let evil = [
        trickling("x/fill", &images[0]).await,
        trickling("x/fill", &images[1]).await,
    ];
    let own = ImageBuilder::new(204).layer(300_000).build();
    let good = Upstream::start().await;
    good.push("good/other", "1", &own);
    let site = Site::new();
    let replica = site.replica_of(&[&evil[0], &evil[1], &good], "one").await;
    let http = Client::new();
    for (upstream, image) in evil.iter().zip(&images) {
        let manifest = path(upstream, "x/fill", "manifests/1");
        status(&http, format!("{}{manifest}", replica.url)).await;
        for layer in &image.layers {
            // The clients wait for their layers all the time.
            let blob = path(upstream, "x/fill", &format!("blobs/{layer}"));
            let get = http.get(format!("{}{blob}", replica.url)).send();
            tokio::spawn(async move { get.await?.bytes().await });
        }
    }
    eventually("they take what they get", LIMIT, || {
        let asked = |upstream: &Upstream| {
            let all = upstream.requests().all();
            let gets = all.iter().filter(|one| one.method == http::Method::GET);
            gets.filter(|one| one.path.contains("/blobs/")).count()
        };
        evil.iter().all(|upstream| asked(upstream) >= 8)
    })
    .await;
    let begun = Instant::now();
    pull(&http, &replica, &good, "good/other", &own).await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
}
