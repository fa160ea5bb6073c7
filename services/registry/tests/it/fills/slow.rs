//! A slow upstream of one replica holds back no client of another one.

use std::time::{Duration, Instant};

use futures::future::join_all;
use holdfast_api::fill::{Credential, FillRequest};
use holdfast_testkit::{Auth, Image, ImageBuilder, Upstream, eventually};
use reqwest::{Client, StatusCode};

use crate::replica::{Replica, Site, trickling};

const LIMIT: Duration = Duration::from_secs(60);
/// A fill that does not wait for the slow upstream takes less: on a quiet machine three seconds.
/// From the slow upstream it takes ten times this.
const MAX_FILL_TIME: Duration = Duration::from_secs(50);

fn url(replica: &Replica, upstream: &Upstream, name: &str, rest: &str) -> String {
    let host = upstream.host().replace(':', "_");
    format!("{}/v2/{host}/{name}/{rest}", replica.url)
}

/// Begins to pull a layer, and returns while its copy runs.
async fn begin(http: &Client, replica: &Replica, upstream: &Upstream, name: &str, layer: &str) {
    let manifest = url(replica, upstream, name, "manifests/1");
    let answer = http.get(manifest).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let blob = url(replica, upstream, name, &format!("blobs/{layer}"));
    let get = http.get(blob).send();
    tokio::spawn(async move { get.await?.bytes().await });
    eventually("the copy runs", LIMIT, || upstream.sent(layer) > 0).await;
}

async fn pull(http: &Client, replica: &Replica, upstream: &Upstream, name: &str, image: &Image) {
    let manifest = url(replica, upstream, name, "manifests/1");
    let answer = http.get(manifest).send().await.unwrap();
    assert_eq!(answer.bytes().await.unwrap(), image.bytes());
    for (digest, bytes) in &image.blobs {
        let blob = url(replica, upstream, name, &format!("blobs/{digest}"));
        let answer = http.get(blob).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.bytes().await.unwrap(), bytes, "{digest}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_trickles_through_one_replica_holds_back_nobody_at_the_others() {
    let image = ImageBuilder::new(95).layer(4_000_000).build();
    let layer = &image.layers[0];
    let evil = trickling("x/shared", &image).await;
    let good = Upstream::start().await;
    good.push("good/app", "1", &image);
    let site = Site::new();
    let all = [&evil, &good];
    let replicas = join_all(["one", "two", "three"].map(|id| site.replica_of(&all, id))).await;
    let http = Client::new();
    begin(&http, &replicas[0], &evil, "x/shared", layer).await;
    let begun = Instant::now();
    let pulls = replicas[1..].iter();
    join_all(pulls.map(|replica| pull(&http, replica, &good, "good/app", &image))).await;
    let took = begun.elapsed();
    assert!(took < MAX_FILL_TIME, "{took:?}");
    assert_eq!(good.gets(layer), 1);
    let size = image.blobs[layer].len() as u64;
    assert!(good.sent(layer) <= size, "each byte once");
    assert_eq!(evil.gets(layer), 1, "nobody goes back to it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_of_another_replica_is_asked_with_its_own_login() {
    let image = ImageBuilder::new(96).layer(1_000_000).build();
    let layer = &image.layers[0];
    let evil = trickling("x/shared", &image).await;
    let users = vec![("user".to_owned(), "password".to_owned())];
    let good = Upstream::start_with(Auth::Basic(users)).await;
    good.push("good/app", "1", &image);
    let site = Site::new();
    let all = [&evil, &good];
    let [one, two] = ["one", "two"].map(|id| site.replica_of(&all, id));
    let (one, two) = (one.await, two.await);
    begin(&Client::new(), &one, &evil, "x/shared", layer).await;
    let request = FillRequest {
        source: format!("{}/good/app:1", good.host()),
        credentials: vec![Credential {
            username: "user".to_owned(),
            password: "password".into(),
            identity_token: false,
        }],
        ..FillRequest::default()
    };
    let filled = tokio::time::timeout(MAX_FILL_TIME, two.fills.fill(&request)).await;
    filled.expect("it is not held back").unwrap();
    assert_eq!(good.gets(layer), 1);
}
