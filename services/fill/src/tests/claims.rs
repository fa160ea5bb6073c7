//! A size in a manifest is its author's claim: a wrong one spoils that image and nothing else.

use holdfast_simfs::{Faults, SimFs};

use super::*;
use holdfast_upstream::metrics::UpstreamLabel;

/// The image as somebody publishes it who gives its first layer another size.
fn claims(image: &Image, size: u64) -> Image {
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.bytes()).unwrap();
    manifest["layers"][0]["size"] = size.into();
    let bytes = Bytes::from(manifest.to_string());
    let digest = holdfast_testkit::image::digest_of(&bytes);
    Image {
        manifests: [(digest.clone(), (image.media_type.clone(), bytes))].into(),
        digest,
        ..image.clone()
    }
}

fn of(upstream: &Upstream, name: &str) -> FillRequest {
    FillRequest {
        source: format!("{}/{name}:1", upstream.host()),
        ..FillRequest::default()
    }
}

fn files_below(folder: std::path::PathBuf) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

/// The share of claims that the tests try for a layer of `size` bytes.
fn wrong(size: u64) -> [u64; 4] {
    [1, size - 1, size + 1, 1_000_000_000_000_000]
}

#[tokio::test]
async fn a_wrong_size_removes_no_stored_blob() {
    for size in wrong(5000) {
        let image = ImageBuilder::new(100).layer(5000).build();
        let folder = tempfile::tempdir().unwrap();
        let upstream = Upstream::start().await;
        // The stranger names the layer and does not even have it.
        let mut strange = claims(&image, size);
        strange.blobs.remove(&image.layers[0]);
        upstream.push("stranger/x", "1", &strange);
        let registry = fills(folder.path(), &upstream).await;
        let (store, layer) = (registry.store(), digest(&image.layers[0]));
        let team = RepositoryName::parse("team/app").unwrap();
        let bytes = image.blobs[&image.layers[0]].clone();
        store.put_blob(&layer, bytes.clone()).await.unwrap();
        store.link_blob(&team, &layer).await.unwrap();

        let error = registry
            .fill(&of(&upstream, "stranger/x"))
            .await
            .unwrap_err();
        assert!(
            matches!(error, Error::NotFound | Error::Invalid(_)),
            "{size}: {error}"
        );
        let file = store.open_repo_blob(&team, &layer).await.unwrap();
        let file = file.expect("the blob of the other repository stays");
        assert_eq!(read(PulledBlob::Stored(file)).await.unwrap(), bytes);
        let aside = store.layout().own().join("quarantine");
        assert_eq!(files_below(aside), 0, "nothing was moved aside");
    }
}

#[tokio::test]
async fn of_two_sizes_for_one_digest_the_right_one_succeeds() {
    // Which of both comes first, and whether the first is under way when the second comes.
    for (right_first, together) in [(true, true), (false, true), (true, false), (false, false)] {
        for size in wrong(300_000) {
            let image = ImageBuilder::new(101).layer(300_000).build();
            let folder = tempfile::tempdir().unwrap();
            let upstream = upstream_with(&image).await;
            upstream.push("stranger/x", "1", &claims(&image, size));
            let registry = fills(folder.path(), &upstream).await;
            let layer = &image.layers[0];
            if together {
                let after = Some(100_000);
                upstream
                    .faults()
                    .set(Fault::new(Kind::Hang { after }).on(&format!("blobs/{layer}")));
            }
            let mut order = ["stranger/x", REPO];
            if right_first {
                order.reverse();
            }
            let mut fills = Vec::new();
            for name in order {
                let (registry, wanted) = (registry.clone(), of(&upstream, name));
                let task = tokio::spawn(async move { registry.fill(&wanted).await });
                if together {
                    let path = format!("/{name}/blobs/");
                    eventually("its blobs are asked for", LIMIT, || {
                        let all = upstream.requests().all();
                        all.iter().any(|request| request.path.contains(&path))
                    })
                    .await;
                    fills.push((name, task));
                } else {
                    fills.push((name, tokio::spawn(async move { task.await.unwrap() })));
                    while !fills.last().unwrap().1.is_finished() {
                        tokio::task::yield_now().await;
                    }
                }
            }
            upstream.faults().clear();
            for (name, fill) in fills {
                let result = fill.await.unwrap();
                if name == REPO {
                    let case = format!("right first: {right_first}, together: {together}, {size}");
                    result.expect(&case);
                } else {
                    let error = result.unwrap_err();
                    assert!(matches!(error, Error::Invalid(_)), "{error}");
                    let text = error.to_string();
                    assert!(text.contains(&size.to_string()), "names the claim: {text}");
                }
            }
            assert_local(&registry, &upstream, &image, "1").await;
            let label = UpstreamLabel {
                upstream: upstream.host(),
            };
            let counted = registry
                .metrics()
                .upstream
                .quarantines
                .get_or_create(&label)
                .get();
            assert_eq!(counted, 0, "no bytes were wrong");
        }
    }
}

#[tokio::test]
async fn a_partial_file_keeps_its_bytes_whatever_size_is_claimed() {
    for size in wrong(500_000) {
        let image = ImageBuilder::new(102).layer(500_000).build();
        let folder = tempfile::tempdir().unwrap();
        let upstream = upstream_with(&image).await;
        upstream.push("stranger/x", "1", &claims(&image, size));
        let registry = fills(folder.path(), &upstream).await;
        let layer = &image.layers[0];
        // The first attempt brings a part, and the retries bring nothing.
        upstream.faults().set(
            Fault::new(Kind::Truncate { after: 300_000 })
                .on(&format!("GET /v2/{REPO}/blobs/{layer}"))
                .times(1),
        );
        upstream
            .faults()
            .set(Fault::new(Kind::Error { status: 404 }).on(&format!("/v2/{REPO}/blobs/{layer}")));
        let broken = registry.fill(&of(&upstream, REPO)).await;
        assert_eq!(broken, Err(Error::NotFound));
        upstream.faults().clear();
        upstream
            .faults()
            .set(Fault::new(Kind::Error { status: 404 }).on(&format!("stranger/x/blobs/{layer}")));
        let strange = registry.fill(&of(&upstream, "stranger/x")).await;
        assert!(strange.is_err());
        registry.fill(&of(&upstream, REPO)).await.unwrap();
        let asked = ranges(&upstream, layer);
        let last = asked.last().unwrap().clone();
        assert_eq!(last, Some("bytes=300000-".to_owned()), "{size}: {asked:?}");
    }
}

#[tokio::test]
async fn one_bad_manifest_or_refusal_blocks_no_digest_at_its_upstream() {
    let image = ImageBuilder::new(103).layer(5000).build();
    let layer = &image.layers[0];
    for refusal in [404, 403, 416] {
        let folder = tempfile::tempdir().unwrap();
        let upstream = upstream_with(&image).await;
        upstream.push("stranger/x", "1", &claims(&image, 1));
        upstream.push("stranger/y", "1", &image);
        upstream.faults().set(
            Fault::new(Kind::Error { status: refusal }).on(&format!("stranger/y/blobs/{layer}")),
        );
        // Longer than the test: who is left alone stays so.
        let mut limits = timeouts();
        limits.quarantine = Duration::from_secs(3600);
        let registry = fills_within(folder.path(), &[&upstream], uplink(), limits).await;
        for name in ["stranger/x", "stranger/y"] {
            let error = registry.fill(&of(&upstream, name)).await.unwrap_err();
            let text = error.to_string();
            assert!(!text.contains("wrong bytes"), "{name}: {text}");
        }
        registry.fill(&of(&upstream, REPO)).await.unwrap();
        let label = UpstreamLabel {
            upstream: upstream.host(),
        };
        let counted = registry
            .metrics()
            .upstream
            .quarantines
            .get_or_create(&label)
            .get();
        assert_eq!(counted, 0);
    }
}

#[tokio::test]
async fn a_huge_claim_is_no_full_volume_and_the_error_says_what_was_claimed() {
    let image = ImageBuilder::new(104).layer(5000).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    upstream.push(REPO, "1", &claims(&image, 1_000_000_000_000_000));
    let registry = fills(folder.path(), &upstream).await;
    let error = registry.fill(&of(&upstream, REPO)).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("1000000000000000") && text.contains("5000"),
        "{text}"
    );
}

/// A stranger's upstream sends bytes until the volume is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_fills_the_volume_fails_alone() {
    holdfast_testkit::tls::install_crypto_provider();
    let image = ImageBuilder::new(104).layer(400_000).build();
    let layer = &image.layers[0];
    let mut strange = claims(&image, 24 << 20);
    strange
        .blobs
        .insert(layer.clone(), vec![7; 24 << 20].into());
    let (stranger, upstream) = (Upstream::start().await, upstream_with(&image).await);
    stranger.push("stranger/x", "1", &strange);
    // Faster than what a copy leaves for another source.
    let rate = Kind::Slow {
        bytes_per_second: 4 << 20,
    };
    stranger
        .faults()
        .set(Fault::new(rate).on(&format!("blobs/{layer}")));
    let faults = Faults {
        longest_file: Some(6 << 20),
        ..Faults::default()
    };
    let volume = Arc::new(SimFs::new(1, 1, faults).client(0));
    let store = Store::open_on(volume, "/data", Options::default());
    let listed =
        [&stranger, &upstream].map(|one| UpstreamSettings::anonymous(&one.host(), &[one.url()]));
    let upstreams = Upstreams::new(&listed, &Proxy::default(), &uplink(), timeouts()).unwrap();
    let owner = LockHolder {
        address: String::new(),
        id: "one".to_owned(),
    };
    let registry = Fills::new(
        store.await.unwrap(),
        upstreams,
        owner,
        Peers::none(),
        quick(),
    );

    let wanted = of(&stranger, "stranger/x");
    let fills = registry.clone();
    let strange = tokio::spawn(async move { fills.fill(&wanted).await });
    eventually("the stranger's layer is asked for", LIMIT, || {
        stranger.gets(layer) > 0
    })
    .await;
    tokio::time::timeout(LIMIT, registry.fill(&of(&upstream, REPO)))
        .await
        .expect("the honest copy ends")
        .unwrap();
    let error = strange.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::NoSpace(_)), "{error}");
}
