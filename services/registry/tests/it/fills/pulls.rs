//! Pulls over HTTP of what is damaged, stale, wrong or still on its way.

use std::{path::Path, time::Duration};

use futures::future::join_all;
use holdfast_testkit::{Fault, ImageBuilder, Upstream, eventually, faults::Kind};
use reqwest::{Client, StatusCode, header};

use crate::replica::Site;

const LIMIT: Duration = Duration::from_secs(20);

fn local(upstream: &Upstream, path: &str) -> String {
    format!("/v2/{}/team/app/{path}", upstream.host().replace(':', "_"))
}

fn blob_file(data: &Path, digest: &str) -> std::path::PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    data.join("docker/registry/v2/blobs/sha256")
        .join(hex.get(..2).unwrap())
        .join(hex)
        .join("data")
}

fn tag_file(data: &Path, upstream: &Upstream) -> std::path::PathBuf {
    data.join(format!(
        "docker/registry/v2/repositories/{}/team/app/_manifests/tags/1/current/link",
        upstream.host().replace(':', "_")
    ))
}

// SPEC 37
#[tokio::test]
async fn a_damaged_blob_is_cut_short_once_and_then_fetched_again() {
    let image = ImageBuilder::new(92).layer(700_000).build();
    let layer = &image.layers[0];
    let upstream = Upstream::start().await;
    upstream.push("team/app", "1", &image);
    let site = Site::new();
    let one = site.replica(&upstream, "one").await;
    let http = Client::new();
    let path = local(&upstream, &format!("blobs/{layer}"));
    let get = async |base: &str| {
        let answer = http.get(format!("{base}{path}")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.bytes().await
    };
    http.get(format!("{}{}", one.url, local(&upstream, "manifests/1")))
        .send()
        .await
        .unwrap();
    assert_eq!(get(&one.url).await.unwrap(), image.blobs[layer]);
    let file = blob_file(&site.data(), layer);
    let tag = tag_file(&site.data(), &upstream);
    eventually("the image is stored", LIMIT, || tag.exists()).await;
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[350_000] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    one.stop();
    // Another process, which has not hashed it: the damage is found on the way out.
    let two = site.replica(&upstream, "two").await;
    assert!(get(&two.url).await.is_err(), "never a clean end");
    assert_eq!(get(&two.url).await.unwrap(), image.blobs[layer]);
    assert_eq!(upstream.gets(layer), 2);
}

#[tokio::test]
async fn a_blob_that_replaced_a_damaged_one_while_it_was_read_stays() {
    let image = ImageBuilder::new(98).layer(24_000_000).build();
    let layer = &image.layers[0];
    let upstream = Upstream::start().await;
    upstream.push("team/app", "1", &image);
    let site = Site::new();
    let one = site.replica(&upstream, "one").await;
    let http = Client::new();
    let base = &one.url;
    let manifest = format!("{base}{}", local(&upstream, "manifests/1"));
    http.get(manifest).send().await.unwrap();
    let file = blob_file(&site.data(), layer);
    let tag = tag_file(&site.data(), &upstream);
    eventually("the image is stored", LIMIT, || tag.exists()).await;
    let mut bytes = image.blobs[layer].to_vec();
    bytes[350_000] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let url = format!("{base}{}", local(&upstream, &format!("blobs/{layer}")));
    // More than connections buffer: the end is read after the first piece is taken.
    let mut damaged = http.get(&url).send().await.unwrap();
    damaged.chunk().await.unwrap().unwrap();
    let sound = file.with_extension("sound");
    std::fs::write(&sound, &image.blobs[layer]).unwrap();
    std::fs::rename(&sound, &file).unwrap();
    assert!(damaged.bytes().await.is_err(), "never a clean end");
    let answer = http.get(&url).send().await.unwrap();
    assert_eq!(answer.bytes().await.unwrap(), image.blobs[layer]);
    assert_eq!(upstream.gets(layer), 1, "the sound one was not set aside");
}

#[tokio::test]
async fn wrong_bytes_end_short_of_their_length() {
    let image = ImageBuilder::new(93).layer(700_000).build();
    let layer = &image.layers[0];
    let upstream = Upstream::start().await;
    upstream.push("team/app", "1", &image);
    upstream.faults().set(
        Fault::new(Kind::WrongBytes)
            .on(&format!("GET /v2/team/app/blobs/{layer}"))
            .times(1),
    );
    let site = Site::new();
    let one = site.replica(&upstream, "one").await;
    let http = Client::new();
    http.get(format!("{}{}", one.url, local(&upstream, "manifests/1")))
        .send()
        .await
        .unwrap();
    let url = format!("{}{}", one.url, local(&upstream, &format!("blobs/{layer}")));
    let answer = http.get(&url).send().await.unwrap();
    if answer.status() == StatusCode::OK {
        let body = answer.bytes().await;
        assert!(
            body.is_err() || body.unwrap() == image.blobs[layer],
            "wrong bytes under a clean end"
        );
    }
    // Its quarantine ends, and what comes then is right.
    let end = std::time::Instant::now() + LIMIT;
    loop {
        let answer = http.get(&url).send().await.unwrap();
        if answer.status() == StatusCode::OK
            && let Ok(bytes) = answer.bytes().await
        {
            assert_eq!(bytes, image.blobs[layer]);
            break;
        }
        assert!(std::time::Instant::now() < end, "it never healed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_part_far_ahead_waits_for_its_bytes() {
    let image = ImageBuilder::new(94).layer(2_000_000).build();
    let layer = &image.layers[0];
    let upstream = Upstream::start().await;
    upstream.push("team/app", "1", &image);
    upstream.faults().set(
        Fault::new(Kind::Hang {
            after: Some(500_000),
        })
        .on(&format!("GET /v2/team/app/blobs/{layer}")),
    );
    let site = Site::new();
    let one = site.replica(&upstream, "one").await;
    let http = Client::new();
    http.get(format!("{}{}", one.url, local(&upstream, "manifests/1")))
        .send()
        .await
        .unwrap();
    let url = format!("{}{}", one.url, local(&upstream, &format!("blobs/{layer}")));
    let range = |text: &str| http.get(&url).header(header::RANGE, text).send();
    let mut early = range("bytes=100000-199999").await.unwrap();
    assert_eq!(early.status(), StatusCode::PARTIAL_CONTENT);
    // All but its last byte, which waits until the digest is verified.
    let mut part = Vec::new();
    while part.len() < 99_999 {
        part.extend_from_slice(&early.chunk().await.unwrap().unwrap());
    }
    assert!(part == image.blobs[layer][100_000..199_999], "other bytes");
    let ahead = range("bytes=-1000").await.unwrap();
    assert_eq!(ahead.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(
        ahead.headers()[header::CONTENT_RANGE],
        "bytes 1999000-1999999/2000000"
    );
    let outside = range("bytes=2000000-").await.unwrap();
    assert_eq!(outside.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    upstream.faults().clear();
    assert_eq!(
        ahead.bytes().await.unwrap(),
        image.blobs[layer][1_999_000..]
    );
    assert_eq!(
        early.bytes().await.unwrap(),
        image.blobs[layer][199_999..200_000]
    );
    assert_eq!(upstream.gets(layer), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_wrong_bytes_never_ends_well() {
    let image = ImageBuilder::new(96).layer(2_000_000).build();
    let layer = &image.layers[0];
    let upstream = Upstream::start().await;
    upstream.push("team/app", "1", &image);
    upstream
        .faults()
        .set(Fault::new(Kind::WrongBytes).on(&format!("GET /v2/team/app/blobs/{layer}")));
    let site = Site::new();
    let replicas = [
        site.replica(&upstream, "one").await,
        site.replica(&upstream, "two").await,
    ];
    let http = Client::new();
    for _ in 0..4 {
        // The replica that copies, and one that relays.
        let parts = replicas.iter().map(|replica| {
            let (http, upstream) = (&http, &upstream);
            async move {
                let manifest = format!("{}{}", replica.url, local(upstream, "manifests/1"));
                http.get(manifest).send().await.unwrap();
                let blob = local(upstream, &format!("blobs/{layer}"));
                let url = format!("{}{blob}", replica.url);
                let part = http.get(url).header(header::RANGE, "bytes=0-99999");
                let part = part.send().await.unwrap();
                let is_part = part.status() == StatusCode::PARTIAL_CONTENT;
                assert!(!is_part || part.bytes().await.is_err(), "wrong bytes");
            }
        });
        join_all(parts).await;
    }
}

// SPEC 12
#[tokio::test]
async fn a_stale_tag_comes_with_a_warning_and_without_delay() {
    let image = ImageBuilder::new(95).layer(10).build();
    let upstream = Upstream::start().await;
    upstream.push("team/app", "1", &image);
    let mut site = Site::new();
    site.settings.revalidate_pulls = true;
    site.settings.tag_fresh = Duration::ZERO;
    let one = site.replica(&upstream, "one").await;
    let http = Client::new();
    let url = format!("{}{}", one.url, local(&upstream, "manifests/1"));
    let first = http.get(&url).send().await.unwrap();
    assert_eq!(first.status(), StatusCode::OK);
    let tag = tag_file(&site.data(), &upstream);
    eventually("the tag is stored", LIMIT, || tag.exists()).await;
    upstream.faults().set(Fault::new(Kind::Down));
    for _ in 0..5 {
        let begun = std::time::Instant::now();
        let stale = http.get(&url).send().await.unwrap();
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(stale.status(), StatusCode::OK);
        let warning = stale.headers()[header::WARNING]
            .to_str()
            .unwrap()
            .to_owned();
        assert!(warning.starts_with("299 - \"not revalidated"), "{warning}");
        assert_eq!(stale.bytes().await.unwrap(), image.bytes());
    }
    assert!(
        one.fills
            .metrics()
            .proxy
            .requests
            .get_or_create(&holdfast_upstream::metrics::TypeLabel { r#type: "manifest" })
            .get()
            >= 6
    );
}
