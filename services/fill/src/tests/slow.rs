//! Upstreams that send slowly, and clients that leave: other clients do not wait for them.

use super::*;

/// Bytes a second of an upstream that only trickles.
const TRICKLE: u64 = 2000;

async fn evil(images: &[(&str, Image)]) -> Upstream {
    let upstream = Upstream::start().await;
    for (name, image) in images {
        upstream.push(name, "1", image);
    }
    let trickles = Kind::Slow {
        bytes_per_second: TRICKLE,
    };
    upstream.faults().set(Fault::new(trickles).on("/blobs/"));
    upstream
}

/// The upstream sends 300,000 bytes of the layer and then nothing.
pub(super) fn hang_within(upstream: &Upstream, layer: &Digest) {
    let after = Some(300_000);
    upstream
        .faults()
        .set(Fault::new(Kind::Hang { after }).on(&format!("GET /v2/{REPO}/blobs/{layer}")));
}

/// A copy that stands still is not given up within the test.
pub(super) fn long_stall() -> Timeouts {
    Timeouts {
        stall: Duration::from_secs(60),
        ..timeouts()
    }
}

fn asked_for_blobs(upstream: &Upstream) -> usize {
    let all = upstream.requests().all();
    let gets = all.iter().filter(|one| one.method == http::Method::GET);
    gets.filter(|one| one.path.contains("/blobs/")).count()
}

fn layers(seed: u64, count: usize) -> Image {
    let builder = (0..count).fold(ImageBuilder::new(seed), |all, _| all.layer(60_000));
    builder.build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trickling_upstreams_leave_a_slot_to_a_healthy_one() {
    let images = [layers(110, 8), layers(111, 8)];
    let one = evil(&[("x/fill", images[0].clone())]).await;
    let two = evil(&[("x/fill", images[1].clone())]).await;
    let image = ImageBuilder::new(112).layer(300_000).build();
    let good = upstream_with(&image).await;
    let folder = tempfile::tempdir().unwrap();
    let all = [&one, &two, &good];
    let registry = fills_within(folder.path(), &all, uplink(), timeouts()).await;
    let slow: Vec<_> = [&one, &two]
        .map(|upstream| {
            let registry = registry.clone();
            let wanted = FillRequest {
                source: format!("{}/x/fill:1", upstream.host()),
                ..FillRequest::default()
            };
            tokio::spawn(async move { registry.fill(&wanted).await })
        })
        .into();
    eventually("all slots are taken", LIMIT, || {
        asked_for_blobs(&one) >= 8 && asked_for_blobs(&two) >= 8
    })
    .await;
    let begun = Instant::now();
    pull_all(&registry, &good, &image).await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert!(slow.iter().all(|fill| !fill.is_finished()), "they trickle");
    // Who gave a slot up kept what was there, and goes on.
    for upstream in [&one, &two] {
        upstream.faults().clear();
    }
    for fill in slow {
        let done = tokio::time::timeout(Duration::from_secs(60), fill).await;
        done.expect("it goes on").unwrap().unwrap();
    }
    for (upstream, image) in [(&one, &images[0]), (&two, &images[1])] {
        for layer in &image.layers {
            let begun = ranges(upstream, layer).len() as u64;
            // What was on its way when the slot was given up is sent again, and no more.
            assert!(upstream.sent(layer) < 61_000 + begun * 20_000, "{begun}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_goes_on_from_a_source_that_is_faster() {
    let image = ImageBuilder::new(113).layer(4_000_000).build();
    let layer = digest(&image.layers[0]);
    let slow = evil(&[(REPO, image.clone())]).await;
    let good = upstream_with(&image).await;
    let folder = tempfile::tempdir().unwrap();
    let registry = fills_within(folder.path(), &[&slow, &good], uplink(), timeouts()).await;
    registry.manifest(&repo(&slow), &tag("1")).await.unwrap();
    let first = registry.blob(&repo(&slow), &layer).await.unwrap();
    let first = tokio::spawn(read(first));
    eventually("something came", LIMIT, || slow.sent(layer.as_str()) > 500).await;
    let begun = Instant::now();
    registry.manifest(&repo(&good), &tag("1")).await.unwrap();
    let second = registry.blob(&repo(&good), &layer).await.unwrap();
    assert_eq!(read(second).await.unwrap(), image.blobs[layer.as_str()]);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_eq!(
        first.await.unwrap().unwrap(),
        image.blobs[layer.as_str()],
        "the second reader goes on"
    );
    let asked = ranges(&good, layer.as_str());
    assert!(
        matches!(&asked[..], [Some(range)] if range != "bytes=0-"),
        "{asked:?}"
    );
    assert_eq!(slow.gets(layer.as_str()), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_begun_again_with_one_source_alone() {
    let image = ImageBuilder::new(114).layer(1_000_000).build();
    let layer = digest(&image.layers[0]);
    let mut wrong = image.clone();
    wrong
        .blobs
        .insert(layer.to_string(), vec![1; 1_000_000].into());
    let bad = Upstream::start().await;
    bad.push(REPO, "1", &wrong);
    hang_within(&bad, &layer);
    let good = upstream_with(&image).await;
    let folder = tempfile::tempdir().unwrap();
    let registry = fills_within(folder.path(), &[&bad, &good], uplink(), long_stall()).await;
    registry.manifest(&repo(&bad), &tag("1")).await.unwrap();
    let poisoned = registry.blob(&repo(&bad), &layer).await.unwrap();
    let poisoned = tokio::spawn(read(poisoned));
    eventually("wrong bytes came", LIMIT, || {
        bad.sent(layer.as_str()) >= 200_000
    })
    .await;
    let wanted = request(&good, ":1", &[]);
    let done = tokio::time::timeout(LIMIT, registry.fill(&wanted)).await;
    done.expect("not held back").unwrap();
    assert_local(&registry, &good, &image, "1").await;
    assert!(poisoned.await.unwrap().is_err(), "never ended cleanly");
    let asked = ranges(&good, layer.as_str());
    assert_eq!(asked.len(), 2, "a range, then all of it: {asked:?}");
}

#[tokio::test]
async fn a_pull_that_leaves_keeps_nothing() {
    let image = ImageBuilder::new(115).layer(1_000_000).build();
    let layer = digest(&image.layers[0]);
    let upstream = upstream_with(&image).await;
    hang_within(&upstream, &layer);
    let folder = tempfile::tempdir().unwrap();
    let registry = fills_within(folder.path(), &[&upstream], uplink(), long_stall()).await;
    let repo = repo(&upstream);
    registry.manifest(&repo, &tag("1")).await.unwrap();
    drop(registry.blob(&repo, &layer).await.unwrap());
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    for _ in 0..1000 {
        let blob = registry.blob(&repo, &layer).await.unwrap();
        assert!(matches!(blob, PulledBlob::Growing(_)));
    }
    eventually("no task is left behind", LIMIT, || tasks() <= before + 8).await;
    upstream.faults().clear();
    wait_for_tag(&registry, &upstream, &image).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_pulls_of_tags_do_not_delay_an_honest_one() {
    let image = ImageBuilder::new(116).layer(1000).build();
    let upstream = upstream_with(&image).await;
    let folder = tempfile::tempdir().unwrap();
    let paced = Uplink {
        requests_per_second_per_host: 20,
        ..uplink()
    };
    let patient = Settings {
        hold: Duration::from_secs(60),
        ..quick()
    };
    let registry = fills_with(folder.path(), &upstream, true, paced, patient).await;
    let pulls: Vec<_> = (0..400)
        .map(|n| {
            let (registry, repo) = (registry.clone(), repo(&upstream));
            tokio::spawn(async move { registry.manifest(&repo, &tag(&format!("no{n}"))).await })
        })
        .collect();
    eventually("they are asked for", LIMIT, || {
        upstream.requests().all().len() >= 20
    })
    .await;
    for pull in &pulls {
        pull.abort();
    }
    for pull in pulls {
        drop(pull.await);
    }
    let begun = Instant::now();
    registry
        .manifest(&repo(&upstream), &tag("1"))
        .await
        .unwrap();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let asked = upstream.requests().all().len();
    assert!(asked < 200, "no request for those who left: {asked}");
}

#[tokio::test]
async fn a_pull_that_leaves_does_not_end_what_was_asked_for() {
    let image = ImageBuilder::new(117).layer(1000).build();
    let upstream = upstream_with(&image).await;
    let folder = tempfile::tempdir().unwrap();
    let paced = Uplink {
        requests_per_second_per_host: 1,
        ..uplink()
    };
    let registry = fills_with(folder.path(), &upstream, true, paced, quick()).await;
    // Takes the second's worth that may leave at once.
    drop(registry.manifest(&repo(&upstream), &tag("none")).await);
    let pull = {
        let (registry, repo) = (registry.clone(), repo(&upstream));
        tokio::spawn(async move { registry.manifest(&repo, &tag("1")).await })
    };
    tokio::task::yield_now().await;
    let wanted = request(&upstream, ":1", &[]);
    let fill = {
        let registry = registry.clone();
        tokio::spawn(async move { registry.fill(&wanted).await })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    pull.abort();
    fill.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_pull_that_has_its_manifest_leaves_a_copy_that_goes_on() {
    let image = ImageBuilder::new(118)
        .layer(1000)
        .index(&["linux/amd64", "linux/arm64"]);
    let upstream = upstream_with(&image).await;
    let folder = tempfile::tempdir().unwrap();
    let paced = Uplink {
        requests_per_second_per_host: 1,
        ..uplink()
    };
    let patient = Settings {
        hold: Duration::from_secs(60),
        ..quick()
    };
    let registry = fills_with(folder.path(), &upstream, true, paced, patient).await;
    // The next requests have to wait, and by then the client is gone.
    registry
        .manifest(&repo(&upstream), &tag("1"))
        .await
        .unwrap();
    let name = Tag::parse("1").unwrap();
    let end = tokio::time::Instant::now() + LIMIT;
    let store = registry.store();
    while store.tag(&repo(&upstream), &name).await.unwrap().is_none() {
        assert!(tokio::time::Instant::now() < end, "the copy ended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Its manifest can become pending between the look and the join: nothing more is announced then.
#[tokio::test]
async fn a_pull_that_joins_late_does_not_wait_for_the_blobs() {
    let image = ImageBuilder::new(115).layer(1_000_000).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills_within(folder.path(), &[&upstream], uplink(), long_stall()).await;
    hang_within(&upstream, &digest(&image.layers[0]));
    let (repo, tag) = (repo(&upstream), tag("1"));
    registry.manifest(&repo, &tag).await.unwrap();
    let source = registry.sources.of_manifest(&repo, &tag).await.unwrap();
    let joined = registry.manifest_pulls.begin_image(&source, &repo, &tag);
    let joined = tokio::time::timeout(LIMIT, joined).await;
    joined.expect("the manifest is pending").unwrap();
}
