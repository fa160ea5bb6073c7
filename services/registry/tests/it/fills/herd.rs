//! Many clients at once, all of them cold, through replicas that share a volume: the upstream sends
//! each byte once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, future::join_all};
use holdfast_testkit::{Fault, Image, ImageBuilder, Upstream, eventually, faults::Kind};
use reqwest::{Client, StatusCode, header};

use crate::replica::{Replica, Site};

/// A test that hangs ends after this time.
const LIMIT: Duration = Duration::from_secs(300);

/// How a client reads a blob.
#[derive(Debug, Clone, Copy)]
enum Way {
    Whole,
    /// In this number of parts at the same time, as containerd does.
    Parts(u64),
    /// From the end to the beginning, in this number of parts.
    Backwards(u64),
    /// A bit of it, and gone.
    Leaves,
}

const WAYS: [Way; 6] = [
    Way::Whole,
    Way::Parts(3),
    Way::Whole,
    Way::Backwards(4),
    Way::Leaves,
    Way::Parts(7),
];

fn local(upstream: &Upstream, path: &str) -> String {
    format!("/v2/{}/team/app/{path}", upstream.host().replace(':', "_"))
}

const TURN: Duration = Duration::from_millis(50);

/// Counts time in turns of the scheduler: what a busy machine adds does not count.
fn count_turns() -> Arc<AtomicU32> {
    let turns = Arc::<AtomicU32>::default();
    let counted = Arc::clone(&turns);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(TURN).await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    turns
}

/// Fails with the text of an answer that has another status.
async fn expect(answer: reqwest::Response, status: StatusCode) -> reqwest::Response {
    if answer.status() == status {
        return answer;
    }
    let (found, url) = (answer.status(), answer.url().to_string());
    panic!("{url}: {found} {}", answer.text().await.unwrap_or_default());
}

async fn part(http: &Client, url: &str, first: u64, end: u64) -> Bytes {
    let answer = http
        .get(url)
        .header(header::RANGE, format!("bytes={first}-{}", end - 1))
        .send()
        .await
        .unwrap();
    let answer = expect(answer, StatusCode::PARTIAL_CONTENT).await;
    let bytes = answer.bytes().await.unwrap();
    assert_eq!(bytes.len() as u64, end - first);
    bytes
}

async fn read(http: &Client, url: &str, size: u64, way: Way) -> Option<Vec<u8>> {
    match way {
        Way::Whole => {
            let answer = http.get(url).send().await.unwrap();
            let answer = expect(answer, StatusCode::OK).await;
            assert_eq!(answer.content_length(), Some(size));
            Some(answer.bytes().await.unwrap().to_vec())
        }
        Way::Leaves => {
            let answer = http.get(url).send().await.unwrap();
            drop(answer.bytes_stream().next().await);
            None
        }
        Way::Parts(count) => {
            let edges: Vec<u64> = (0..=count).map(|n| size * n / count).collect();
            let parts = edges
                .windows(2)
                .filter(|edge| edge[0] < edge[1])
                .map(|edge| part(http, url, edge[0], edge[1]));
            Some(join_all(parts).await.concat())
        }
        Way::Backwards(count) => {
            let edges: Vec<u64> = (0..=count).map(|n| size * n / count).collect();
            let mut parts = Vec::new();
            for edge in edges.windows(2).rev().filter(|edge| edge[0] < edge[1]) {
                parts.insert(0, part(http, url, edge[0], edge[1]).await);
            }
            Some(parts.concat())
        }
    }
}

/// Pulls the image, as `way` says, each request through the next replica: there is no affinity.
/// Every byte is compared.
async fn pull(
    bases: Vec<String>,
    manifest: String,
    blobs: Vec<(String, Bytes)>,
    image: Image,
    way: Way,
) {
    let http = Client::new();
    let answer = http
        .get(format!("{}{manifest}", bases[0]))
        .send()
        .await
        .unwrap();
    let answer = expect(answer, StatusCode::OK).await;
    assert_eq!(answer.bytes().await.unwrap(), image.bytes());
    let reads = blobs
        .into_iter()
        .enumerate()
        .map(async |(n, (path, bytes))| {
            let url = format!("{}{path}", bases[(n + 1) % bases.len()]);
            if let Some(found) = read(&http, &url, bytes.len() as u64, way).await {
                assert!(found == bytes, "{url} {way:?}");
            }
        });
    join_all(reads).await;
}

fn blobs(upstream: &Upstream, image: &Image) -> Vec<(String, Bytes)> {
    let path = |digest: &String| local(upstream, &format!("blobs/{digest}"));
    let mut all: Vec<_> = image
        .blobs
        .iter()
        .map(|(digest, bytes)| (path(digest), bytes.clone()))
        .collect();
    all.sort_by_key(|(_, bytes)| bytes.len());
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_herd_through_three_replicas_costs_each_byte_once() {
    let image = ImageBuilder::new(90)
        .layer(6_000_000)
        .layer(3_000_000)
        .layer(1)
        .build();
    let upstream = Upstream::start().await;
    upstream.push("team/app", "1", &image);
    for layer in &image.layers {
        let bytes_per_second = 4_000_000;
        upstream.faults().set(
            Fault::new(Kind::Slow { bytes_per_second })
                .on(&format!("GET /v2/team/app/blobs/{layer}")),
        );
    }
    let site = Site::new();
    let replicas: Vec<Replica> =
        join_all(["one", "two", "three"].map(|id| site.replica(&upstream, id))).await;
    let turns = count_turns();
    let clients = (0..64).map(|n| {
        let mut bases: Vec<String> = replicas.iter().map(|one| one.url.clone()).collect();
        bases.rotate_left(n % replicas.len());
        tokio::spawn(pull(
            bases,
            local(&upstream, "manifests/1"),
            blobs(&upstream, &image),
            image.clone(),
            WAYS[n % WAYS.len()],
        ))
    });
    let clients: Vec<_> = clients.collect();
    for client in clients {
        tokio::time::timeout(LIMIT, client)
            .await
            .expect("every client ends")
            .unwrap();
    }
    let took = TURN * turns.load(Ordering::Relaxed);
    let size: u64 = image.blobs.values().map(|bytes| bytes.len() as u64).sum();
    for (digest, bytes) in &image.blobs {
        assert_eq!(upstream.gets(digest), 1, "{digest}");
        assert_eq!(upstream.sent(digest), bytes.len() as u64, "{digest}");
    }
    let all = upstream.sent("");
    assert!(
        all * 100 <= size * 101,
        "{all} bytes sent for an image of {size}"
    );
    // The upstream needs 1.5 s for the largest layer.
    assert!(took < Duration::from_secs(30), "{took:?}");
}

// SPEC 28
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_other_replicas_notice_nothing_when_the_filler_is_killed() {
    let image = ImageBuilder::new(91).layer(4_000_000).build();
    let layer = &image.layers[0];
    let bytes = image.blobs[layer].clone();
    let upstream = Upstream::start().await;
    upstream.push("team/app", "1", &image);
    upstream.faults().set(
        Fault::new(Kind::Hang {
            after: Some(2_500_000),
        })
        .on(&format!("GET /v2/team/app/blobs/{layer}")),
    );
    let site = Site::new();
    let (one, doom) = site.doomed(&upstream, "one").await;
    let http = Client::new();
    let manifest = local(&upstream, "manifests/1");
    let first = http.get(format!("{}{manifest}", one.url)).send().await;
    assert_eq!(first.unwrap().status(), StatusCode::OK);
    eventually("the first replica copies the layer", LIMIT, || {
        upstream.sent(layer) >= 2_000_000
    })
    .await;
    let two = site.replica(&upstream, "two").await;
    let three = site.replica(&upstream, "three").await;
    for replica in [&two, &three] {
        let answer = http.get(format!("{}{manifest}", replica.url)).send().await;
        assert_eq!(answer.unwrap().status(), StatusCode::OK);
    }
    let path = local(&upstream, &format!("blobs/{layer}"));
    // The whole, and a part that begins in the middle: both are on their way when the replica dies.
    let mut open = Vec::new();
    for (replica, range) in [(&two, None), (&three, None), (&two, Some(1_000_000))] {
        let mut request = http.get(format!("{}{path}", replica.url));
        if let Some(first) = range {
            request = request.header(header::RANGE, format!("bytes={first}-"));
        }
        let mut answer = request.send().await.unwrap();
        let first = range.unwrap_or(0);
        let mut begun = Vec::new();
        // The replica has written these bytes, and the replica that takes over finds them.
        while first + begun.len() < 2_000_000 {
            begun.extend_from_slice(&answer.chunk().await.unwrap().unwrap());
        }
        open.push((answer, begun, first));
    }
    doom.kill();
    upstream.faults().clear();
    for (mut answer, mut found, first) in open {
        while let Some(more) = tokio::time::timeout(LIMIT, answer.chunk())
            .await
            .expect("goes on")
            .unwrap()
        {
            found.extend_from_slice(&more);
        }
        assert!(found == bytes[first..], "from {first}");
    }
    let asked = upstream.requests().all();
    let ranges: Vec<_> = asked
        .iter()
        .filter(|request| request.method == http::Method::GET && request.path.ends_with(layer))
        .map(|request| request.range.clone())
        .collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    let start = ranges[1].as_deref().unwrap();
    let start = start.trim_start_matches("bytes=").trim_end_matches('-');
    assert!(
        start.parse::<usize>().unwrap() >= 2_000_000,
        "what was kept is not copied again: {start}"
    );
}
