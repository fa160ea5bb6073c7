//! Fills against an upstream with faults: one process, two replicas on one volume, and what happens
//! when things break.

use std::time::{Duration, Instant};
use std::{path::Path, sync::Arc};

use bytes::Bytes;
use futures::StreamExt;
use holdfast_api::fill::{Credential, FillError, FillErrorCode};
use holdfast_config::{Proxy, Uplink, UpstreamSettings};
use holdfast_core::{ManifestRef, Tag};
use holdfast_runtime::CancellationToken;
use holdfast_store::Options;
use holdfast_testkit::{Auth, Fault, Image, ImageBuilder, Upstream, eventually, faults::Kind};

use super::*;
use holdfast_upstream::{SharedPriority, Timeouts};

mod access;
mod busy;
mod claims;
mod held;
mod indexes;
mod lies;
mod names;
mod permitted;
mod proofs;
mod replicas;
mod slow;
mod sources;
mod tags;

const LIMIT: Duration = Duration::from_secs(20);
const REPO: &str = "team/app";

fn timeouts() -> Timeouts {
    Timeouts {
        headers: Duration::from_millis(500),
        stall: Duration::from_millis(500),
        revalidate: Duration::from_millis(300),
        quarantine: Duration::from_millis(50),
        breaker_min: Duration::from_millis(100),
        ..Timeouts::default()
    }
}

fn uplink() -> Uplink {
    Uplink {
        requests_per_second_per_host: 0,
        negative_seconds: 0,
        ..Uplink::default()
    }
}

fn quick() -> Settings {
    Settings {
        platforms: vec!["linux/amd64".to_owned()],
        hold: Duration::from_millis(500),
        retry: Duration::from_millis(10),
        ..Settings::default()
    }
}

/// A registry for one upstream. `listed`: its images may be fetched on a pull alone.
async fn fills_at(
    folder: &Path,
    upstream: &Upstream,
    listed: bool,
    owner: LockHolder,
    peers: Peers,
) -> Fills {
    made(folder, upstream, listed, uplink(), quick(), (owner, peers)).await
}

async fn fills_with(
    folder: &Path,
    upstream: &Upstream,
    listed: bool,
    uplink: Uplink,
    settings: Settings,
) -> Fills {
    let owner = LockHolder {
        address: String::new(),
        id: "one".to_owned(),
    };
    let alone = (owner, Peers::none());
    made(folder, upstream, listed, uplink, settings, alone).await
}

async fn made(
    folder: &Path,
    upstream: &Upstream,
    listed: bool,
    uplink: Uplink,
    settings: Settings,
    (owner, peers): (LockHolder, Peers),
) -> Fills {
    holdfast_testkit::tls::install_crypto_provider();
    let of = UpstreamSettings::anonymous(&upstream.host(), &[upstream.url()]);
    let store = Store::open(folder, Options::unlimited()).await.unwrap();
    let upstreams = Upstreams::new(&[of], &Proxy::default(), &uplink, timeouts()).unwrap();
    let settings = Settings {
        pull_through: listed,
        ..settings
    };
    Fills::new(store, upstreams, owner, peers, settings)
}

/// A registry alone for several upstreams, all of them listed.
async fn fills_within(
    folder: &Path,
    upstreams: &[&Upstream],
    uplink: Uplink,
    timeouts: Timeouts,
) -> Fills {
    holdfast_testkit::tls::install_crypto_provider();
    let listed: Vec<_> = upstreams
        .iter()
        .map(|upstream| UpstreamSettings::anonymous(&upstream.host(), &[upstream.url()]))
        .collect();
    let store = Store::open(folder, Options::unlimited()).await.unwrap();
    let upstreams = Upstreams::new(&listed, &Proxy::default(), &uplink, timeouts).unwrap();
    let owner = LockHolder {
        address: String::new(),
        id: "one".to_owned(),
    };
    Fills::new(store, upstreams, owner, Peers::none(), quick())
}

async fn fills(folder: &Path, upstream: &Upstream) -> Fills {
    let owner = LockHolder {
        address: String::new(),
        id: "one".to_owned(),
    };
    fills_at(folder, upstream, true, owner, Peers::none()).await
}

fn request(upstream: &Upstream, reference: &str, platforms: &[&str]) -> FillRequest {
    FillRequest {
        source: format!("{}/{REPO}{reference}", upstream.host()),
        platforms: platforms.iter().map(|text| (*text).to_owned()).collect(),
        ..FillRequest::default()
    }
}

fn repo(upstream: &Upstream) -> RepositoryName {
    RepositoryName::parse(&format!("{}/{REPO}", upstream.host().replace(':', "_"))).unwrap()
}

fn tag(name: &str) -> ManifestRef {
    ManifestRef::Tag(Tag::parse(name).unwrap())
}

fn digest(text: &str) -> Digest {
    Digest::parse(text).unwrap()
}

async fn read(blob: PulledBlob) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    match blob {
        PulledBlob::Stored(file) => loop {
            let next = file
                .read_at(bytes.len() as u64, 1 << 20)
                .await
                .map_err(|e| e.to_string())?;
            if next.is_empty() {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&next);
        },
        PulledBlob::Growing(mut growing) => loop {
            let next = growing
                .read_at(bytes.len() as u64, 1 << 20)
                .await
                .map_err(|e| e.to_string())?;
            if next.is_empty() {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&next);
        },
        PulledBlob::Remote(remote) => {
            let mut stream = remote.open(0).await.map_err(|e| e.to_string())?;
            while let Some(next) = stream.next().await {
                bytes.extend_from_slice(&next.map_err(|e| e.to_string())?);
            }
            Ok(bytes)
        }
    }
}

async fn assert_local(fills: &Fills, upstream: &Upstream, image: &Image, name: &str) {
    let repo = repo(upstream);
    let (found, bytes) = fills
        .store()
        .tagged_manifest(&repo, &Tag::parse(name).unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (found.as_str(), &bytes),
        (image.digest.as_str(), &image.bytes()),
        "byte for byte"
    );
    for layer in &image.layers {
        assert!(
            fills
                .store()
                .repo_has_blob(&repo, &digest(layer))
                .await
                .unwrap(),
            "{layer}"
        );
    }
}

/// Pulls an image as a node does that never had it.
async fn pull_all(fills: &Fills, upstream: &Upstream, image: &Image) {
    let repo = repo(upstream);
    assert_eq!(
        fills.manifest(&repo, &tag("1")).await.unwrap().bytes,
        image.bytes()
    );
    for (name, bytes) in &image.blobs {
        let blob = fills.blob(&repo, &digest(name)).await.unwrap();
        assert_eq!(read(blob).await.unwrap(), *bytes);
    }
}

async fn upstream_with(image: &Image) -> Upstream {
    let upstream = Upstream::start().await;
    upstream.push(REPO, "1", image);
    upstream
}

// SPEC 13, SPEC 14, SPEC 44
#[tokio::test]
async fn an_image_is_copied_once_and_then_no_upstream_is_asked() {
    for image in [
        ImageBuilder::new(1)
            .layer(100_000)
            .layer(0)
            .layer(7)
            .build(),
        ImageBuilder::new(2).docker().layer(100_000).build(),
        ImageBuilder::new(3)
            .layer(5000)
            .index(&["linux/amd64", "linux/arm64/v8"]),
        ImageBuilder::new(4)
            .docker()
            .layer(5000)
            .index(&["linux/amd64", "linux/arm64"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let upstream = upstream_with(&image).await;
        let registry = fills(folder.path(), &upstream).await;
        let result = registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
        assert!(!result.already_local);
        assert_eq!(
            (result.digest.as_str(), result.media_type.as_str()),
            (image.digest.as_str(), image.media_type.as_str())
        );
        assert_local(&registry, &upstream, &image, "1").await;
        let asked = upstream.requests().len();
        for reference in [":1".to_owned(), format!("@{}", image.digest)] {
            let again = registry
                .fill(&request(&upstream, &reference, &[]))
                .await
                .unwrap();
            assert!(again.already_local);
            assert_eq!(
                (again.size_bytes, again.blobs),
                (result.size_bytes, result.blobs)
            );
        }
        // A crash forgets nothing.
        let restarted = fills(folder.path(), &upstream).await;
        assert!(
            restarted
                .fill(&request(&upstream, ":1", &[]))
                .await
                .unwrap()
                .already_local
        );
        pull_all(&restarted, &upstream, &image).await;
        assert_eq!(upstream.requests().len(), asked);
        let reads = [http::Method::GET, http::Method::HEAD];
        let all = upstream.requests().all();
        assert!(
            all.iter().all(|request| reads.contains(&request.method)),
            "a read-only upstream is enough"
        );
    }
}

#[tokio::test]
async fn other_platforms_come_on_demand_and_the_index_is_whole_at_once() {
    let image = ImageBuilder::new(5)
        .layer(5000)
        .index(&["linux/amd64", "linux/arm64"]);
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    registry
        .fill(&request(&upstream, ":1", &["linux/amd64"]))
        .await
        .unwrap();
    assert_eq!(
        (
            upstream.gets(&image.layers[0]),
            upstream.gets(&image.layers[1])
        ),
        (1, 0)
    );
    let repo = repo(&upstream);
    let other = ManifestRef::Digest(digest(&image.children[1]));
    let manifest = registry.manifest(&repo, &other).await.unwrap();
    assert_eq!(manifest.bytes, image.manifests[&image.children[1]].1);
    let blob = registry
        .blob(&repo, &digest(&image.layers[1]))
        .await
        .unwrap();
    assert_eq!(read(blob).await.unwrap(), image.blobs[&image.layers[1]]);
    assert_eq!(upstream.gets(&image.layers[1]), 1);
}

#[tokio::test]
async fn sixty_four_cold_clients_cost_one_upstream_request() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    const CLIENTS: usize = 64;
    let image = ImageBuilder::new(6).layer(2_000_000).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    let layer = image.layers[0].clone();
    // Nobody can be served from a finished copy.
    upstream.faults().set(
        Fault::new(Kind::Hang {
            after: Some(500_000),
        })
        .on(&layer),
    );
    let served = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (registry, repo, layer) = (registry.clone(), repo(&upstream), digest(&layer));
            let served = Arc::clone(&served);
            tokio::spawn(async move {
                registry.manifest(&repo, &tag("1")).await.unwrap();
                let blob = registry.blob(&repo, &layer).await.unwrap();
                assert!(matches!(blob, PulledBlob::Growing(_)));
                served.fetch_add(1, Ordering::Relaxed);
                read(blob).await.unwrap()
            })
        })
        .collect();
    eventually("all clients are served", LIMIT, || {
        served.load(Ordering::Relaxed) == CLIENTS
    })
    .await;
    upstream.faults().clear();
    for client in clients {
        assert_eq!(Bytes::from(client.await.unwrap()), image.blobs[&layer]);
    }
    assert_eq!(upstream.gets(&layer), 1);
    assert_eq!(upstream.gets("manifests/1"), 1);
}

#[tokio::test]
async fn a_range_of_a_growing_blob_is_served_and_leaving_stops_nothing() {
    let image = ImageBuilder::new(7).layer(1_000_000).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    let layer = digest(&image.layers[0]);
    upstream.faults().set(
        Fault::new(Kind::Hang {
            after: Some(600_000),
        })
        .on(layer.as_str()),
    );
    registry
        .manifest(&repo(&upstream), &tag("1"))
        .await
        .unwrap();
    let PulledBlob::Growing(mut growing) = registry.blob(&repo(&upstream), &layer).await.unwrap()
    else {
        panic!("it must still grow");
    };
    let part = growing.read_at(400_000, 1000).await.unwrap();
    assert_eq!(part, image.blobs[layer.as_str()][400_000..401_000]);
    drop(growing);
    upstream.faults().clear();
    wait_for_tag(&registry, &upstream, &image).await;
    assert_eq!(upstream.gets(layer.as_str()), 1);
}

/// Waits for the tag, which comes last: whatever it names is there then.
async fn wait_for_tag(registry: &Fills, upstream: &Upstream, image: &Image) {
    let end = tokio::time::Instant::now() + LIMIT;
    let name = Tag::parse("1").unwrap();
    while registry
        .store()
        .tag(&repo(upstream), &name)
        .await
        .unwrap()
        .is_none()
    {
        assert!(tokio::time::Instant::now() < end, "the tag never came");
        tokio::task::yield_now().await;
    }
    assert_local(registry, upstream, image, "1").await;
}

#[tokio::test]
async fn the_tag_comes_last() {
    let image = ImageBuilder::new(8).layer(1000).index(&["linux/amd64"]);
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    upstream
        .faults()
        .set(Fault::new(Kind::Error { status: 404 }).on(&image.layers[0]));
    assert_eq!(
        registry.fill(&request(&upstream, ":1", &[])).await,
        Err(Error::NotFound)
    );
    let (store, repo) = (registry.store(), repo(&upstream));
    assert_eq!(
        store.tag(&repo, &Tag::parse("1").unwrap()).await.unwrap(),
        None
    );
    for manifest in image.manifests.keys() {
        assert!(
            !store.has_manifest(&repo, &digest(manifest)).await.unwrap(),
            "{manifest}"
        );
    }
}

#[tokio::test]
async fn a_broken_copy_goes_on_where_it_stopped() {
    let image = ImageBuilder::new(9).layer(1_000_000).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    upstream.faults().set(
        Fault::new(Kind::Truncate { after: 300_000 })
            .on(&image.layers[0])
            .times(1),
    );
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    assert_local(&registry, &upstream, &image, "1").await;
    let ranges = ranges(&upstream, &image.layers[0]);
    assert_eq!(ranges.len(), 2);
    assert!(
        ranges[1].as_ref().is_some_and(|range| range != "bytes=0-"),
        "{ranges:?}"
    );
}

fn ranges(upstream: &Upstream, layer: &str) -> Vec<Option<String>> {
    let all = upstream.requests().all();
    let gets = all
        .into_iter()
        .filter(|r| r.method == http::Method::GET && r.path.ends_with(layer));
    gets.map(|r| r.range).collect()
}

#[tokio::test]
async fn wrong_bytes_are_never_visible() {
    let image = ImageBuilder::new(10).layer(400_000).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    let layer = digest(&image.layers[0]);
    upstream
        .faults()
        .set(Fault::new(Kind::WrongBytes).on(layer.as_str()));
    registry
        .manifest(&repo(&upstream), &tag("1"))
        .await
        .unwrap();
    if let Ok(blob) = registry.blob(&repo(&upstream), &layer).await {
        assert!(
            read(blob).await.is_err(),
            "a waiter is cut short, never ended cleanly"
        );
    }
    assert!(matches!(
        registry.fill(&request(&upstream, ":1", &[])).await,
        Err(Error::Invalid(_))
    ));
    assert_eq!(registry.store().stat_blob(&layer).await.unwrap(), None);
    assert_eq!(
        registry
            .store()
            .tag(&repo(&upstream), &Tag::parse("1").unwrap())
            .await
            .unwrap(),
        None
    );
    upstream.faults().clear();
    let healed = async {
        while registry.fill(&request(&upstream, ":1", &[])).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, healed)
        .await
        .expect("the quarantine of the source ends");
    assert_local(&registry, &upstream, &image, "1").await;
}

// SPEC 35
#[tokio::test]
async fn a_fill_tries_each_secret_and_remembers_them_for_its_repository() {
    let image = ImageBuilder::new(12)
        .layer(100)
        .index(&["linux/amd64", "linux/arm64"]);
    let users = vec![("right".to_owned(), "pw".to_owned())];
    let upstream = Upstream::start_with(Auth::Bearer { users, realm: None }).await;
    upstream.push(REPO, "1", &image);
    let folder = tempfile::tempdir().unwrap();
    let registry = fills(folder.path(), &upstream).await;
    assert_eq!(
        registry
            .fill(&request(&upstream, ":1", &["linux/amd64"]))
            .await,
        Err(Error::Unauthorized)
    );
    let credential = |username: &str| Credential {
        identity_token: false,
        username: username.to_owned(),
        password: "pw".into(),
    };
    let mut with_secrets = request(&upstream, ":1", &["linux/amd64"]);
    with_secrets.credentials = vec![credential("wrong"), credential("right")];
    registry.fill(&with_secrets).await.unwrap();
    assert_eq!(upstream.gets(&image.layers[0]), 1);
    let other = ManifestRef::Digest(digest(&image.children[1]));
    registry
        .manifest(&repo(&upstream), &other)
        .await
        .expect("another platform with the same credentials");
    upstream.push(REPO, "2", &ImageBuilder::new(14).layer(100).build());
    assert_eq!(
        registry.fill(&request(&upstream, ":2", &[])).await,
        Err(Error::Unauthorized),
        "a request without credentials uses no others"
    );
}

// SPEC 12
#[tokio::test]
async fn a_local_image_needs_no_upstream_even_when_asked_to_revalidate() {
    let image = ImageBuilder::new(13).layer(100).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    for kind in [
        Kind::Hang { after: None },
        Kind::Down,
        Kind::Error { status: 503 },
    ] {
        upstream.faults().set(Fault::new(kind.clone()));
        let begun = Instant::now();
        let mut asks = request(&upstream, ":1", &[]);
        asks.revalidate = true;
        assert!(
            registry.fill(&asks).await.unwrap().already_local,
            "{kind:?}"
        );
        pull_all(&registry, &upstream, &image).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "{kind:?}");
        upstream.faults().clear();
    }
}

#[test]
fn errors_are_told_without_secrets_and_with_their_code() {
    let check =
        |error: Error, expect: FillErrorCode| assert_eq!(FillError::from(error).code, expect);
    check(Error::NotFound, FillErrorCode::NotFound);
    check(Error::Unauthorized, FillErrorCode::Unauthorized);
    check(Error::NoSpace(String::new()), FillErrorCode::NoSpace);
    check(
        Error::Invalid(String::new()),
        FillErrorCode::UpstreamInvalid,
    );
    check(
        Error::Unavailable(String::new()),
        FillErrorCode::UpstreamUnavailable,
    );
    check(Error::Store("io"), FillErrorCode::StoreFailed);
    check(Error::Request(String::new()), FillErrorCode::Invalid);
}
