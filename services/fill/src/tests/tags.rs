//! Tags by policy: fresh for a while, compared behind the pull, stale at once when the upstream
//! does not tell.

use super::*;

fn checking(tag_fresh: Duration) -> Settings {
    Settings {
        revalidate_pulls: true,
        tag_fresh,
        ..quick()
    }
}

async fn compare(registry: &Fills, upstream: &Upstream, local: &Image) -> Freshness {
    let name = Tag::parse("1").unwrap();
    registry
        .revalidate(&repo(upstream), &name, &digest(&local.digest))
        .await
}

fn heads(upstream: &Upstream) -> usize {
    upstream
        .requests()
        .count(&http::Method::HEAD, "manifests/1")
}

#[tokio::test]
async fn a_tag_is_compared_once_within_its_time_by_however_many_pulls() {
    let image = ImageBuilder::new(80).layer(10).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let fresh = Duration::from_millis(400);
    let registry = fills_with(folder.path(), &upstream, true, uplink(), checking(fresh)).await;
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    for _ in 0..20 {
        assert_eq!(
            compare(&registry, &upstream, &image).await,
            Freshness::Current
        );
    }
    assert_eq!(heads(&upstream), 0, "it was copied a moment ago");
    tokio::time::sleep(fresh).await;
    let pulls = (0..20).map(|_| compare(&registry, &upstream, &image));
    for outcome in futures::future::join_all(pulls).await {
        assert_eq!(outcome, Freshness::Current);
    }
    assert_eq!(heads(&upstream), 1);
}

#[tokio::test]
async fn without_the_policy_nobody_is_asked() {
    let image = ImageBuilder::new(81).layer(10).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    let asked = upstream.requests().len();
    assert_eq!(
        compare(&registry, &upstream, &image).await,
        Freshness::Current
    );
    assert_eq!(upstream.requests().len(), asked);
}

#[tokio::test]
async fn a_tag_that_moved_is_served_as_it_was_and_copied_behind_the_pull() {
    let (old, new) = (
        ImageBuilder::new(82).layer(10).build(),
        ImageBuilder::new(83).layer(10).build(),
    );
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&old).await;
    let registry = fills_with(
        folder.path(),
        &upstream,
        true,
        uplink(),
        checking(Duration::ZERO),
    )
    .await;
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    upstream.push(REPO, "1", &new);
    let told = compare(&registry, &upstream, &old).await;
    assert!(
        matches!(&told, Freshness::Unknown { reason } if reason.contains("moved")),
        "{told:?}"
    );
    let name = Tag::parse("1").unwrap();
    let end = tokio::time::Instant::now() + LIMIT;
    while registry.store().tag(&repo(&upstream), &name).await.unwrap() != Some(digest(&new.digest))
    {
        assert!(tokio::time::Instant::now() < end, "it was never copied");
        tokio::task::yield_now().await;
    }
    assert_eq!(
        compare(&registry, &upstream, &new).await,
        Freshness::Current
    );
}

// SPEC 12
#[tokio::test]
async fn a_stale_tag_is_served_at_once_when_the_upstream_errs() {
    let image = ImageBuilder::new(84).layer(10).build();
    for (kind, limit) in [
        (Kind::Error { status: 500 }, 200),
        (Kind::Down, 200),
        (Kind::TooMany { retry_after: 9 }, 200),
        (Kind::Hang { after: None }, 700),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let upstream = upstream_with(&image).await;
        let registry = fills_with(
            folder.path(),
            &upstream,
            true,
            uplink(),
            checking(Duration::ZERO),
        )
        .await;
        registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
        upstream.faults().set(Fault::new(kind.clone()));
        for _ in 0..3 {
            let begun = Instant::now();
            let told = compare(&registry, &upstream, &image).await;
            assert!(matches!(told, Freshness::Unknown { .. }), "{kind:?}");
            let took = begun.elapsed();
            assert!(took < Duration::from_millis(limit), "{kind:?}: {took:?}");
        }
        upstream.faults().clear();
    }
}

#[tokio::test]
async fn a_tag_that_moved_is_copied_when_a_fill_asks() {
    let (first, second) = (
        ImageBuilder::new(14).layer(100).build(),
        ImageBuilder::new(15).layer(100).build(),
    );
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&first).await;
    let registry = fills(folder.path(), &upstream).await;
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    upstream.push(REPO, "1", &second);
    assert_eq!(
        registry
            .fill(&request(&upstream, ":1", &[]))
            .await
            .unwrap()
            .digest,
        first.digest
    );
    let mut asks = request(&upstream, ":1", &[]);
    asks.revalidate = true;
    assert_eq!(registry.fill(&asks).await.unwrap().digest, second.digest);
}

// distribution#3792: such a tag was called current for ever.
#[tokio::test]
async fn a_tag_whose_head_has_no_digest_is_compared_by_its_content() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use holdfast_testkit::{
        image::{OCI_INDEX, digest_of},
        raw::{Raw, Reply},
    };

    let manifests = [
        r#"{"schemaVersion":2,"manifests":[]}"#,
        r#"{"schemaVersion":2,"manifests":[],"annotations":{"a":"b"}}"#,
    ];
    let state = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&state);
    let raw = Raw::start(
        move |request| match manifests.get(now.load(Ordering::Relaxed)) {
            _ if request.starts_with("HEAD") => Reply::http("200 OK", &[], b""),
            Some(text) => Reply::http("200 OK", &[("content-type", OCI_INDEX)], text.as_bytes()),
            None => Reply::http("503 Away", &[], b""),
        },
    )
    .await;
    holdfast_testkit::tls::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    let of = UpstreamSettings::anonymous(&raw.host(), &[raw.url()]);
    let store = Store::open(folder.path(), Options::unlimited())
        .await
        .unwrap();
    // What is asked twice takes its time on a machine that is busy.
    let patient = Timeouts {
        revalidate: LIMIT,
        ..Timeouts::default()
    };
    let upstreams = Upstreams::new(&[of], &Proxy::default(), &uplink(), patient).unwrap();
    let owner = LockHolder {
        address: String::new(),
        id: "one".to_owned(),
    };
    let settings = checking(Duration::ZERO);
    let registry = Fills::new(store, upstreams, owner, Peers::none(), settings);
    let request = FillRequest {
        source: format!("{}/{REPO}:1", raw.host()),
        ..FillRequest::default()
    };
    registry.fill(&request).await.unwrap();
    let repo = format!("{}/{REPO}", raw.host().replace(':', "_"));
    let (repo, name) = (
        RepositoryName::parse(&repo).unwrap(),
        Tag::parse("1").unwrap(),
    );
    let local = digest(&digest_of(manifests[0].as_bytes()));
    let compare = || registry.revalidate(&repo, &name, &local);
    assert_eq!(compare().await, Freshness::Current);
    state.store(2, Ordering::Relaxed);
    let told = compare().await;
    assert!(
        matches!(&told, Freshness::Unknown { reason } if reason.contains("not revalidated")),
        "what could not be proven is not called current: {told:?}"
    );
    state.store(1, Ordering::Relaxed);
    let told = compare().await;
    assert!(
        matches!(&told, Freshness::Unknown { reason } if reason.contains("moved")),
        "{told:?}"
    );
}
