//! The scrubber on a real volume with a real upstream: what is damaged is found, moved aside and
//! fetched again.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use holdfast_config::{Proxy, Uplink, UpstreamSettings};
use holdfast_core::{
    ManifestRef,
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};
use holdfast_fill::pull_through::PullThrough;
use holdfast_fill::{self as fill, Fills, Peers};
use holdfast_registry::{
    Metrics,
    scrub::{self, Scrubber},
};
use holdfast_runtime::{CancellationToken, metrics::encode};
use holdfast_store::{Hasher, LockHolder, Options, Store};
use holdfast_testkit::{ImageBuilder, Upstream};
use holdfast_upstream::{Timeouts, Upstreams};
use prometheus_client::registry::Registry;

struct Volume {
    store: Store,
    registry: Registry,
    numbers: scrub::Metrics,
    requests: Metrics,
    _dir: tempfile::TempDir,
}

fn owner(name: &str) -> LockHolder {
    LockHolder {
        address: String::new(),
        id: name.to_owned(),
    }
}

async fn volume() -> Volume {
    holdfast_runtime::tls::install_crypto_provider();
    let dir = tempfile::tempdir().unwrap();
    let options = Options::unlimited();
    let store = Store::open(dir.path(), options).await.unwrap();
    let mut registry = Registry::default();
    Volume {
        store,
        numbers: scrub::Metrics::register(&mut registry),
        requests: Metrics::register(&mut registry),
        registry,
        _dir: dir,
    }
}

impl Volume {
    fn scrubber(&self, name: &str, rate: u64, source: Option<Arc<dyn PullThrough>>) -> Scrubber {
        let settings = scrub::Settings {
            rate,
            every: Duration::from_secs(3600),
            look: Duration::from_millis(20),
        };
        Scrubber::new(
            self.store.clone(),
            source,
            owner(name),
            settings,
            self.numbers.clone(),
            self.requests.clone(),
        )
    }

    async fn put(&self, bytes: Vec<u8>) -> Digest {
        let digest = Hasher::digest(Algorithm::Sha256, &bytes);
        self.store
            .put_blob(&digest, Bytes::from(bytes))
            .await
            .unwrap();
        digest
    }

    fn file(&self, digest: &Digest) -> PathBuf {
        self.store.layout().blob(digest)
    }

    fn damage(&self, digest: &Digest) {
        let mut bytes = std::fs::read(self.file(digest)).unwrap();
        bytes[0] ^= 1;
        std::fs::write(self.file(digest), bytes).unwrap();
    }

    fn number(&self, name: &str) -> f64 {
        let text = encode(&self.registry);
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("holdfast_registry_scrub_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    }

    async fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        holdfast_testkit::eventually(what, Duration::from_secs(10), condition).await;
    }
}

// SPEC 37
#[tokio::test]
async fn a_damaged_blob_is_found_and_fetched_again_before_anybody_pulls_it() {
    let volume = volume().await;
    let upstream = Upstream::start().await;
    let image = ImageBuilder::new(7).layer(300_000).build();
    upstream.push("team/app", "1", &image);
    let settings = UpstreamSettings::anonymous("registry.example", &[upstream.url()]);
    let upstreams = Upstreams::new(
        &[settings],
        &Proxy::default(),
        &Uplink::default(),
        Timeouts::default(),
    )
    .unwrap();
    let fills = Fills::new(
        volume.store.clone(),
        upstreams,
        owner("fills"),
        Peers::none(),
        fill::Settings::default(),
    );
    let repo = RepositoryName::parse("registry.example/team/app").unwrap();
    let reference = ManifestRef::Tag(holdfast_core::reference::Tag::parse("1").unwrap());
    let source: Arc<dyn PullThrough> = Arc::new(fills);
    source.manifest(&repo, &reference).await.unwrap();
    let layer = Digest::parse(&image.layers[0]).unwrap();
    volume
        .until("the image is local", || volume.file(&layer).exists())
        .await;
    volume.damage(&layer);

    let stop = CancellationToken::new();
    let scrubber = volume.scrubber("a", 1 << 30, Some(source));
    let task = tokio::spawn(scrubber.run(stop.clone()));
    volume
        .until("a pass", || {
            volume.number("last_pass_timestamp_seconds") > 0.0
        })
        .await;
    assert!((volume.number("corrupt_total") - 1.0).abs() < 0.1);
    volume
        .until("it is whole again", || {
            std::fs::read(volume.file(&layer))
                .is_ok_and(|bytes| Hasher::digest(Algorithm::Sha256, &bytes) == layer)
        })
        .await;
    assert!((volume.number("refetched_total") - 1.0).abs() < 0.1);
    assert_eq!(upstream.gets(layer.as_str()), 2, "fetched once more");
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn damaged_content_without_an_upstream_is_never_served_again() {
    let volume = volume().await;
    let (good, bad) = (
        volume.put(vec![1; 1000]).await,
        volume.put(vec![2; 1000]).await,
    );
    volume.damage(&bad);
    let stop = CancellationToken::new();
    let task = tokio::spawn(volume.scrubber("a", 1 << 30, None).run(stop.clone()));
    volume
        .until("a pass", || {
            volume.number("last_pass_timestamp_seconds") > 0.0
        })
        .await;
    assert!(volume.file(&good).exists() && !volume.file(&bad).exists());
    assert!((volume.number("scanned_bytes_total") - 2000.0).abs() < 0.1);
    let aside = volume.store.layout().own().join("quarantine/sha256");
    assert_eq!(std::fs::read_dir(aside).unwrap().count(), 1);
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn it_reads_no_faster_than_it_may() {
    let volume = volume().await;
    for seed in 0..8_u8 {
        volume.put(vec![seed; 100_000]).await;
    }
    // 800 kB at 400 kB/s take two seconds; it is stopped after one.
    let stop = CancellationToken::new();
    let task = tokio::spawn(volume.scrubber("a", 400_000, None).run(stop.clone()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let scanned = volume.number("scanned_bytes_total");
    assert!((100_000.0..=700_000.0).contains(&scanned), "{scanned}");
    stop.cancel();
    task.await.unwrap();
    assert!(volume.number("last_pass_timestamp_seconds") < 1.0);
}

#[tokio::test]
async fn what_was_hashed_is_not_hashed_again_after_a_restart() {
    let volume = volume().await;
    let mut digests = Vec::new();
    for seed in 0..8_u8 {
        digests.push(volume.put(vec![seed; 1000]).await);
    }
    digests.sort_by(|a, b| a.hex().cmp(b.hex()));
    let note =
        serde_json::json!({ "began": 1.0, "after": digests[4].to_string(), "finished": 0.0 });
    volume
        .store
        .write_state_file("scrub", serde_json::to_vec(&note).unwrap())
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(volume.scrubber("b", 1 << 30, None).run(stop.clone()));
    volume
        .until("a pass", || {
            volume.number("last_pass_timestamp_seconds") > 0.0
        })
        .await;
    assert!(
        volume.number("scanned_bytes_total") >= 3000.0,
        "the three that were left"
    );
    stop.cancel();
    task.await.unwrap();
    let scanned = volume.number("scanned_bytes_total");
    assert!(
        (scanned - 3000.0).abs() < 0.1 || (scanned - 11_000.0).abs() < 0.1,
        "{scanned}"
    );
}

#[tokio::test]
async fn one_replica_scrubs_at_a_time() {
    let volume = volume().await;
    volume.put(vec![1; 200_000]).await;
    let stop = CancellationToken::new();
    let tasks: Vec<_> = ["a", "b", "c"]
        .map(|name| tokio::spawn(volume.scrubber(name, 1 << 30, None).run(stop.clone())))
        .into_iter()
        .collect();
    volume
        .until("a pass", || {
            volume.number("last_pass_timestamp_seconds") > 0.0
        })
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!((volume.number("scanned_bytes_total") - 200_000.0).abs() < 0.1);
    stop.cancel();
    for task in tasks {
        task.await.unwrap();
    }
}
