//! Mirrors that fail in the middle, lie, or change; and which request waits for which.

use holdfast_api::fill::Priority;
use holdfast_testkit::raw::{Raw, Reply};

use super::*;
use holdfast_upstream::metrics::UpstreamLabel;

/// A registry with a mirror before its upstream; images are named by the upstream's host.
async fn mirrored(folder: &Path, mirror: &str, upstream: &Upstream) -> Fills {
    holdfast_testkit::tls::install_crypto_provider();
    let settings =
        UpstreamSettings::anonymous(&upstream.host(), &[mirror.to_owned(), upstream.url()]);
    let store = Store::open(folder, Options::unlimited()).await.unwrap();
    let upstreams = Upstreams::new(&[settings], &Proxy::default(), &uplink(), timeouts()).unwrap();
    let owner = LockHolder {
        address: String::new(),
        id: "one".to_owned(),
    };
    Fills::new(store, upstreams, owner, Peers::none(), quick())
}

#[tokio::test]
async fn the_next_mirror_goes_on_in_the_middle_of_a_blob() {
    let image = ImageBuilder::new(50).layer(1_000_000).build();
    let (mirror, upstream) = (upstream_with(&image).await, upstream_with(&image).await);
    let folder = tempfile::tempdir().unwrap();
    let registry = mirrored(folder.path(), &mirror.url(), &upstream).await;
    let layer = &image.layers[0];
    mirror
        .faults()
        .set(Fault::new(Kind::Truncate { after: 300_000 }).on(layer));
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    assert_local(&registry, &upstream, &image, "1").await;
    assert_eq!(ranges(&upstream, layer), [Some("bytes=300000-".to_owned())]);
    assert_eq!((mirror.gets(layer), upstream.gets(layer)), (1, 1));
}

#[tokio::test]
async fn a_mirror_that_lies_is_left_alone_and_its_readers_are_cut_short() {
    let image = ImageBuilder::new(51).layer(600_000).build();
    let (mirror, upstream) = (upstream_with(&image).await, upstream_with(&image).await);
    let folder = tempfile::tempdir().unwrap();
    let registry = mirrored(folder.path(), &mirror.url(), &upstream).await;
    let layer = digest(&image.layers[0]);
    mirror
        .faults()
        .set(Fault::new(Kind::WrongBytes).on(layer.as_str()));
    registry
        .manifest(&repo(&upstream), &tag("1"))
        .await
        .unwrap();
    if let Ok(blob) = registry.blob(&repo(&upstream), &layer).await {
        match read(blob).await {
            Ok(bytes) => assert_eq!(
                bytes,
                image.blobs[layer.as_str()],
                "late enough for the good one"
            ),
            Err(error) => assert!(!error.is_empty()),
        }
    }
    wait_for_tag(&registry, &upstream, &image).await;
    let gets = (mirror.gets(layer.as_str()), upstream.gets(layer.as_str()));
    assert_eq!(gets, (1, 1));
    let label = UpstreamLabel {
        upstream: upstream.host(),
    };
    let counted = registry
        .metrics()
        .upstream
        .quarantines
        .get_or_create(&label)
        .get();
    assert_eq!(counted, 1);
}

#[tokio::test]
async fn a_portal_in_the_place_of_a_mirror_costs_nothing_but_a_try() {
    let image = ImageBuilder::new(52).layer(1000).build();
    let portal = Raw::start(|_| {
        Reply::http(
            "200 OK",
            &[("content-type", "text/html")],
            b"<html>log in</html>",
        )
    })
    .await;
    let upstream = upstream_with(&image).await;
    let folder = tempfile::tempdir().unwrap();
    let registry = mirrored(folder.path(), &portal.url(), &upstream).await;
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    assert_local(&registry, &upstream, &image, "1").await;
}

/// A registry alone with an upstream that has one image, whose layer it sends as `layer` says; the
/// first argument is whether a range was asked for.
async fn strange(
    image: &Image,
    layer: impl Fn(Option<u64>) -> Reply + Send + Sync + 'static,
) -> (Raw, Fills, tempfile::TempDir) {
    let image = image.clone();
    let raw = Raw::start(move |request| {
        let path = request.split(' ').nth(1).unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let start = request
            .lines()
            .find_map(|line| line.strip_prefix("range: bytes="))
            .and_then(|range| range.trim_end_matches('-').parse().ok());
        if request.starts_with("HEAD") {
            return Reply::http("200 OK", &[], b"");
        }
        if path.contains("/manifests/") {
            return Reply::http(
                "200 OK",
                &[("content-type", &image.media_type)],
                &image.bytes(),
            );
        }
        match image.blobs.get(name) {
            Some(_) if name == image.layers[0] => layer(start),
            Some(bytes) => Reply::http("200 OK", &[], bytes),
            None => Reply::http("404 Not Found", &[], b""),
        }
    })
    .await;
    holdfast_testkit::tls::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    let settings = UpstreamSettings::anonymous(&raw.host(), &[raw.url()]);
    let store = Store::open(folder.path(), Options::unlimited())
        .await
        .unwrap();
    let upstreams = Upstreams::new(&[settings], &Proxy::default(), &uplink(), timeouts()).unwrap();
    let owner = LockHolder {
        address: String::new(),
        id: "one".to_owned(),
    };
    let fills = Fills::new(store, upstreams, owner, Peers::none(), quick());
    (raw, fills, folder)
}

fn of(raw: &Raw) -> FillRequest {
    FillRequest {
        source: format!("{}/{REPO}:1", raw.host()),
        ..FillRequest::default()
    }
}

/// The first `sent` of `all` bytes under the whole length, then the end of the connection.
fn broken(all: &[u8], sent: usize, etag: &str) -> Reply {
    let mut bytes = holdfast_testkit::raw::head("200 OK", &[("etag", etag)]);
    bytes.extend(format!("content-length: {}\r\n\r\n", all.len()).bytes());
    bytes.extend(&all[..sent]);
    Reply::Bytes(bytes)
}

#[tokio::test]
async fn a_server_without_ranges_sends_everything_again_and_it_fits() {
    let image = ImageBuilder::new(53).layer(400_000).build();
    for answer in ["200", "416", "wrong range"] {
        let bytes = image.blobs[&image.layers[0]].clone();
        let first = std::sync::atomic::AtomicBool::new(true);
        let (raw, registry, _folder) = strange(&image, move |start| {
            if first.swap(false, std::sync::atomic::Ordering::Relaxed) {
                return broken(&bytes, 200_000, "\"a\"");
            }
            match (start, answer) {
                (Some(_), "416") => Reply::http("416 No", &[], b""),
                (Some(_), "wrong range") => Reply::http(
                    "206 Partial",
                    &[("content-range", "bytes 399999-399999/400000")],
                    b"x",
                ),
                _ => Reply::http("200 OK", &[("etag", "\"a\"")], &bytes),
            }
        })
        .await;
        registry.fill(&of(&raw)).await.expect(answer);
    }
}

#[tokio::test]
async fn content_that_changes_during_a_copy_is_copied_again() {
    let image = ImageBuilder::new(54).layer(400_000).build();
    let bytes = image.blobs[&image.layers[0]].clone();
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let (raw, registry, _folder) = strange(&image, move |start| {
        // Other bytes under the same name, until the upstream is repaired.
        if count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            return broken(&vec![9; 400_000], 200_000, "\"old\"");
        }
        let start = usize::try_from(start.unwrap_or(0)).unwrap();
        let range = format!("bytes {start}-399999/400000");
        let headers = [("etag", "\"new\""), ("content-range", range.as_str())];
        Reply::http("206 Partial", &headers, &bytes[start..])
    })
    .await;
    registry.fill(&of(&raw)).await.unwrap();
    let asked = asked.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(asked, 3, "a break, a range that tells, and the whole");
}

#[tokio::test]
async fn a_descriptor_that_lies_about_its_size_is_refused() {
    let image = ImageBuilder::new(55).layer(5000).build();
    for (sent, chunked) in [(4000, false), (6000, false), (4000, true), (6000, true)] {
        let bytes: Vec<u8> = vec![7; sent];
        let (raw, registry, _folder) = strange(&image, move |_| {
            if !chunked {
                return Reply::http("200 OK", &[], &bytes);
            }
            let mut all = holdfast_testkit::raw::head("200 OK", &[]);
            all.extend(format!("transfer-encoding: chunked\r\n\r\n{sent:x}\r\n").bytes());
            all.extend(&bytes);
            all.extend(b"\r\n0\r\n\r\n");
            Reply::Bytes(all)
        })
        .await;
        let begun = Instant::now();
        let error = registry.fill(&of(&raw)).await.unwrap_err();
        assert!(
            matches!(error, Error::Invalid(_) | Error::Unavailable(_)),
            "{sent} {chunked}: {error}"
        );
        assert!(begun.elapsed() < Duration::from_secs(5));
        let layer = digest(&image.layers[0]);
        assert_eq!(registry.store().stat_blob(&layer).await.unwrap(), None);
    }
}

#[tokio::test]
async fn an_endless_body_is_cut_off_at_its_size() {
    let image = ImageBuilder::new(56).layer(100_000).build();
    let (raw, registry, _folder) = strange(&image, |_| {
        let mut head = holdfast_testkit::raw::head("200 OK", &[]);
        head.extend(b"transfer-encoding: chunked\r\n\r\n");
        let mut piece = b"10000\r\n".to_vec();
        piece.extend(vec![7; 65_536]);
        piece.extend(b"\r\n");
        Reply::Endless { head, piece }
    })
    .await;
    let begun = Instant::now();
    let error = registry.fill(&of(&raw)).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn what_is_copied_ahead_does_not_stand_in_the_way_of_a_pull() {
    let upstream = Upstream::start().await;
    let ahead: Vec<Image> = (0..6)
        .map(|n| ImageBuilder::new(60 + n).layer(100_000).build())
        .collect();
    for (n, image) in ahead.iter().enumerate() {
        upstream.push(REPO, &format!("ahead-{n}"), image);
        for layer in &image.layers {
            upstream.faults().set(
                Fault::new(Kind::Slow {
                    bytes_per_second: 50_000,
                })
                .on(layer),
            );
        }
    }
    let image = ImageBuilder::new(70).layer(100_000).build();
    upstream.push(REPO, "1", &image);
    let folder = tempfile::tempdir().unwrap();
    let narrow = Uplink {
        concurrent_fills: 4,
        concurrent_fills_per_host: 4,
        ..uplink()
    };
    let registry = fills_with(folder.path(), &upstream, true, narrow, quick()).await;
    let slow: Vec<_> = (0..ahead.len())
        .map(|n| {
            let (registry, mut wanted) = (
                registry.clone(),
                request(&upstream, &format!(":ahead-{n}"), &[]),
            );
            wanted.priority = Priority::Prefetch;
            tokio::spawn(async move { registry.fill(&wanted).await })
        })
        .collect();
    eventually("copies ahead are under way", LIMIT, || {
        ahead
            .iter()
            .any(|image| upstream.gets(&image.layers[0]) > 0)
    })
    .await;
    let begun = Instant::now();
    pull_all(&registry, &upstream, &image).await;
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    let begun_ahead = ahead
        .iter()
        .filter(|image| upstream.gets(&image.layers[0]) > 0)
        .count();
    assert!(begun_ahead <= 2, "half of the slots: {begun_ahead}");
    for one in slow {
        one.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_reader_that_stands_still_slows_nothing() {
    let image = ImageBuilder::new(71).layer(3_000_000).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    let layer = digest(&image.layers[0]);
    registry
        .manifest(&repo(&upstream), &tag("1"))
        .await
        .unwrap();
    let mut idle = Vec::new();
    for _ in 0..32 {
        idle.push(registry.blob(&repo(&upstream), &layer).await.unwrap());
    }
    wait_for_tag(&registry, &upstream, &image).await;
    assert_eq!(upstream.gets(layer.as_str()), 1);
    for blob in idle {
        assert_eq!(read(blob).await.unwrap(), image.blobs[layer.as_str()]);
    }
}
