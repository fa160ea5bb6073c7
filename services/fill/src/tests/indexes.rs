//! Indexes as they are: without the platform of the nodes, with entries that are no manifests or
//! are not there.

use std::collections::BTreeMap;

use holdfast_testkit::image::{OCI_INDEX, digest_of};
use serde_json::{Value, json};

use super::*;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image with one manifest, whose bytes are these.
fn made(kind: &str, text: String) -> Image {
    let digest = digest_of(text.as_bytes());
    Image {
        manifests: BTreeMap::from([(digest.clone(), (kind.to_owned(), text.into()))]),
        media_type: kind.to_owned(),
        digest,
        blobs: BTreeMap::new(),
        layers: Vec::new(),
        children: Vec::new(),
    }
}

fn entry(image: &Image, platform: Option<&str>) -> Value {
    let mut entry = json!({
        "mediaType": image.media_type, "digest": image.digest, "size": image.bytes().len(),
    });
    if let Some((os, architecture)) = platform.and_then(|platform| platform.split_once('/')) {
        entry["platform"] = json!({ "os": os, "architecture": architecture });
    }
    entry
}

/// An index of these entries; the contents of `images` come with it.
fn index(entries: &[Value], images: &[&Image]) -> Image {
    let text = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
    let mut index = made(OCI_INDEX, text.to_string());
    for image in images {
        index.manifests.extend(image.manifests.clone());
        index.blobs.extend(image.blobs.clone());
    }
    index
}

/// Copies an index for linux/amd64, asks again, and pulls it while the upstream is away.
async fn check(name: &str, image: &Image, missing: &[&str], is_whole: bool) {
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(image).await;
    let registry = fills(folder.path(), &upstream).await;
    let wanted = request(&upstream, ":1", &["linux/amd64"]);
    let result = registry.fill(&wanted).await;
    let result = result.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(result.missing, missing, "{name}");
    let again = registry.fill(&wanted).await.unwrap();
    assert_eq!(again.missing, missing, "{name}, again");
    assert_eq!(again.already_local, is_whole, "{name}");
    assert_eq!(
        (again.size_bytes, again.blobs),
        (result.size_bytes, result.blobs),
        "{name}"
    );
    upstream.faults().set(Fault::new(Kind::Down));
    let repo = repo(&upstream);
    let name_of_tag = Tag::parse("1").unwrap();
    let stored = registry
        .store()
        .tagged_manifest(&repo, &name_of_tag)
        .await
        .unwrap();
    let (found, bytes) = stored.unwrap_or_else(|| panic!("{name} is not stored"));
    assert_eq!(found.as_str(), image.digest, "{name}");
    assert_eq!(bytes, image.bytes(), "{name}: byte for byte");
}

#[tokio::test]
async fn an_index_is_stored_whatever_it_lacks() {
    let amd64 = ImageBuilder::new(300).layer(1000).build();
    let other = ImageBuilder::new(301).layer(1000).build();
    let wasm = index(&[entry(&other, Some("wasi/wasm"))], &[&other]);
    let none = "linux/amd64: the index has none";
    check("no platform fits", &wasm, &[none], true).await;
    let others = index(&[entry(&other, Some("linux/s390x"))], &[]);
    check("other platforms are not there", &others, &[none], true).await;
    let gone = index(&[entry(&amd64, Some("linux/amd64"))], &[]);
    let text = "linux/amd64: the upstream does not have it";
    check("the platform is not there", &gone, &[text], false).await;
    let both = [entry(&amd64, Some("linux/amd64")), entry(&other, None)];
    let partly = index(&both, &[&amd64]);
    let text = format!("{}: the upstream does not have it", other.digest);
    check("an entry is not there", &partly, &[&text], false).await;
    let odd = made(
        "application/vnd.oci.image.manifest.v1+json",
        json!({ "a": 1 }).to_string(),
    );
    let partly = index(
        &[entry(&amd64, Some("linux/amd64")), entry(&odd, None)],
        &[&amd64, &odd],
    );
    let text = format!("{}: it is no manifest", odd.digest);
    check("an entry is no manifest", &partly, &[&text], false).await;
    let old = json!({ "mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "digest": other.digest, "size": 5 });
    let partly = index(&[old, entry(&amd64, Some("linux/amd64"))], &[&amd64]);
    check("an entry of an old format", &partly, &[], true).await;
    check("an empty index", &index(&[], &[]), &[none], true).await;
    let mut nested = index(&[entry(&amd64, Some("linux/amd64"))], &[&amd64]);
    for _ in 0..holdfast_core::oci::IMAGE_DEPTH {
        nested = index(&[entry(&nested, None)], &[&nested]);
    }
    let text = "linux/amd64: indexes in it are nested too deeply";
    check("nested too deeply", &nested, &[text], true).await;
}

#[tokio::test]
async fn layers_that_an_index_lists_come_when_they_are_asked_for() {
    let (layer, config) = (
        Bytes::from_static(b"cached layer"),
        Bytes::from_static(b"{}"),
    );
    let of = |kind: &str, bytes: &Bytes| json!({ "mediaType": kind, "digest": digest_of(bytes), "size": bytes.len() });
    let config_type = "application/vnd.buildkit.cacheconfig.v0";
    let mut cache = index(&[of(LAYER, &layer), of(config_type, &config)], &[]);
    for bytes in [&layer, &config] {
        cache.blobs.insert(digest_of(bytes), bytes.clone());
    }
    let none = "linux/amd64: the index has none";
    check("a cache", &cache, &[none], true).await;
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&cache).await;
    let registry = fills(folder.path(), &upstream).await;
    registry
        .fill(&request(&upstream, ":1", &["linux/amd64"]))
        .await
        .unwrap();
    assert_eq!(upstream.gets(&digest_of(&layer)), 0);
    pull_all(&registry, &upstream, &cache).await;
    upstream.faults().set(Fault::new(Kind::Down));
    pull_all(&registry, &upstream, &cache).await;
}

#[tokio::test]
async fn an_entry_of_another_size_fails_the_copy_and_changes_nothing() {
    let image = ImageBuilder::new(302).layer(1000).build();
    let mut wrong = entry(&image, Some("linux/amd64"));
    wrong["size"] = json!(1);
    let index = index(&[wrong], &[&image]);
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&index).await;
    let registry = fills(folder.path(), &upstream).await;
    let error = registry
        .fill(&request(&upstream, ":1", &[]))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    let name = Tag::parse("1").unwrap();
    assert_eq!(
        registry.store().tag(&repo(&upstream), &name).await.unwrap(),
        None
    );
}

#[tokio::test]
async fn an_entry_that_is_listed_many_times_is_copied_once() {
    let image = ImageBuilder::new(303).layer(1000).build();
    let mut nested = index(&vec![entry(&image, None); 1000], &[&image]);
    for _ in 0..3 {
        nested = index(&vec![entry(&nested, None); 1000], &[&nested]);
    }
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&nested).await;
    let registry = fills(folder.path(), &upstream).await;
    let wanted = request(&upstream, ":1", &[]);
    let result = tokio::time::timeout(LIMIT, registry.fill(&wanted))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(result.blobs, 2);
    assert!(registry.fill(&wanted).await.unwrap().already_local);
    assert_eq!(upstream.gets(&image.digest), 1);
}

#[tokio::test]
async fn a_foreign_layer_is_copied_where_the_upstream_has_it() {
    let (config, layer) = (Bytes::from_static(b"{}"), Bytes::from_static(b"foreign"));
    for (kind, urls) in [
        (LAYER, json!(["https://elsewhere.example/layer"])),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            json!([]),
        ),
    ] {
        for has in [false, true] {
            let text = json!({
                "schemaVersion": 2,
                "config": { "mediaType": "c", "digest": digest_of(&config), "size": config.len() },
                "layers": [{ "mediaType": kind, "digest": digest_of(&layer), "size": layer.len(),
                    "urls": urls }],
            });
            let mut image = made(holdfast_testkit::image::OCI_MANIFEST, text.to_string());
            image.blobs.insert(digest_of(&config), config.clone());
            if has {
                image.blobs.insert(digest_of(&layer), layer.clone());
            }
            let folder = tempfile::tempdir().unwrap();
            let upstream = upstream_with(&image).await;
            let registry = fills(folder.path(), &upstream).await;
            let result = registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
            assert_eq!(result.blobs, 1, "what must be there");
            let store = registry.store();
            let layer = digest(&digest_of(&layer));
            let found = store.repo_has_blob(&repo(&upstream), &layer).await.unwrap();
            assert_eq!(found, has, "{kind}");
            assert!(
                registry
                    .fill(&request(&upstream, ":1", &[]))
                    .await
                    .unwrap()
                    .already_local
            );
        }
    }
}

#[tokio::test]
async fn manifests_count_under_the_bandwidth_cap() {
    let config = Bytes::from_static(b"{}");
    let text = json!({
        "schemaVersion": 2, "x": "p".repeat(1 << 20),
        "config": { "mediaType": "c", "digest": digest_of(&config), "size": config.len() },
    });
    let mut image = made(holdfast_testkit::image::OCI_MANIFEST, text.to_string());
    image.blobs.insert(digest_of(&config), config);
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let capped = Uplink {
        bandwidth_bytes_per_second: holdfast_config::ByteSize::from_bytes(512 << 10),
        ..uplink()
    };
    let registry = fills_with(folder.path(), &upstream, true, capped, quick()).await;
    let begun = Instant::now();
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    let least = Duration::from_millis(1500);
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_manifest_is_bounded_alike_for_clients_and_upstreams() {
    let config = Bytes::from_static(b"{}");
    let text = json!({
        "schemaVersion": 2, "x": "p".repeat(10_000),
        "config": { "mediaType": "c", "digest": digest_of(&config), "size": config.len() },
    });
    let mut image = made(holdfast_testkit::image::OCI_MANIFEST, text.to_string());
    image.blobs.insert(digest_of(&config), config);
    let length = image.bytes().len() as u64;
    let upstream = upstream_with(&image).await;
    for (most, expect) in [(length, true), (length - 1, false)] {
        let folder = tempfile::tempdir().unwrap();
        let of = UpstreamSettings::anonymous(&upstream.host(), &[upstream.url()]);
        let limits = Timeouts {
            manifest_bytes: most,
            ..timeouts()
        };
        let upstreams = Upstreams::new(&[of], &Proxy::default(), &uplink(), limits).unwrap();
        let store = Store::open(folder.path(), Options::unlimited())
            .await
            .unwrap();
        let owner = LockHolder {
            address: String::new(),
            id: "one".to_owned(),
        };
        let registry = Fills::new(store, upstreams, owner, Peers::none(), quick());
        let outcome = registry.fill(&request(&upstream, ":1", &[])).await;
        assert_eq!(outcome.is_ok(), expect, "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_limit_counts_what_is_under_way_on_all_levels_of_an_image() {
    const AT_ONCE: usize = limits::IMAGE_AT_ONCE;
    // Each entry of the outermost index is an index of an index of an image of many layers.
    let (mut entries, mut chains, mut hanging) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..AT_ONCE as u64 {
        let layers = 0..AT_ONCE + 4;
        let image = layers.fold(ImageBuilder::new(400 + number), |all, _| all.layer(100));
        let image = image.build();
        let inner = index(&[entry(&image, None)], &[&image]);
        let outer = index(&[entry(&inner, None)], &[&inner]);
        // Some of them get no further than one of the inner manifests.
        match number {
            0 => hanging.push(inner.digest.clone()),
            1 => hanging.push(image.digest.clone()),
            _ => {}
        }
        entries.push(entry(&outer, None));
        chains.push(outer);
    }
    let top = index(&entries, &chains.iter().collect::<Vec<_>>());
    let upstream = upstream_with(&top).await;
    let hang = || Fault::new(Kind::Hang { after: None });
    for digest in &hanging {
        upstream.faults().set(hang().on(digest));
    }
    let blobs = format!("/v2/{REPO}/blobs/");
    upstream.faults().set(hang().on(&blobs));
    let folder = tempfile::tempdir().unwrap();
    // Nothing else bounds them.
    let uplink = Uplink {
        concurrent_fills: 200,
        concurrent_fills_per_host: 200,
        ..uplink()
    };
    let limits = Timeouts {
        headers: LIMIT,
        ..timeouts()
    };
    let registry = fills_within(folder.path(), &[&upstream], uplink, limits).await;
    let wanted = request(&upstream, ":1", &[]);
    let fills = registry.clone();
    let fill = tokio::spawn(async move { fills.fill(&wanted).await });
    let under_way = || {
        let all = upstream.requests().all();
        let waits = |path: &str| {
            path.starts_with(&blobs) || hanging.iter().any(|digest| path.ends_with(digest))
        };
        all.iter().filter(|request| waits(&request.path)).count()
    };
    eventually("as many as may are under way", LIMIT, || {
        under_way() >= AT_ONCE
    })
    .await;
    // Whatever else may go out does so within this time.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(under_way(), AT_ONCE);
    upstream.faults().clear();
    fill.await.unwrap().unwrap();
    assert_local(&registry, &upstream, &top, "1").await;
}
