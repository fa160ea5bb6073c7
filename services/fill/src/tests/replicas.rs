//! Several replicas on one volume, and replicas that die.

use super::*;
use holdfast_testkit::server;

struct Replica {
    fills: Fills,
    owner: LockHolder,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

/// A replica with its internal API on a port of its own.
async fn replica(folder: &Path, upstream: &Upstream, listed: bool, id: &str) -> Replica {
    let (listener, address) = server::bind("127.0.0.1:0").await.unwrap();
    let owner = LockHolder {
        address: address.to_string(),
        id: id.to_owned(),
    };
    let fills = fills_at(folder, upstream, listed, owner.clone(), Peers::plain()).await;
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(internal::serve(
        listener,
        None,
        fills.clone(),
        shutdown.clone(),
    ));
    Replica {
        fills,
        owner,
        shutdown,
        task,
    }
}

#[tokio::test]
async fn two_replicas_ask_the_upstream_once_and_both_stream() {
    let image = ImageBuilder::new(20).layer(2_000_000).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let one = replica(folder.path(), &upstream, true, "one").await;
    // This one has no credentials and no settings for the upstream: it lives off the other.
    let two = replica(folder.path(), &upstream, false, "two").await;
    let layer = digest(&image.layers[0]);
    upstream.faults().set(
        Fault::new(Kind::Hang {
            after: Some(700_000),
        })
        .on(layer.as_str()),
    );
    let repo = repo(&upstream);
    one.fills.manifest(&repo, &tag("1")).await.unwrap();
    let here = one.fills.blob(&repo, &layer).await.unwrap();
    let manifest = two.fills.manifest(&repo, &tag("1")).await.unwrap();
    assert_eq!(manifest.bytes, image.bytes());
    let there = two.fills.blob(&repo, &layer).await.unwrap();
    let PulledBlob::Remote(remote) = &there else {
        panic!("the other replica fills it")
    };
    assert_eq!(remote.size(), Some(2_000_000));
    let mut part = remote.open(600_000).await.unwrap();
    let first = part.next().await.unwrap().unwrap();
    assert_eq!(
        first,
        image.blobs[layer.as_str()][600_000..600_000 + first.len()],
        "before the copy ends"
    );
    let (here, there) = (tokio::spawn(read(here)), tokio::spawn(read(there)));
    upstream.faults().clear();
    assert_eq!(
        Bytes::from(here.await.unwrap().unwrap()),
        image.blobs[layer.as_str()]
    );
    assert_eq!(
        Bytes::from(there.await.unwrap().unwrap()),
        image.blobs[layer.as_str()]
    );
    assert_eq!(upstream.gets(layer.as_str()), 1);
    wait_for_tag(&two.fills, &upstream, &image).await;
}

#[tokio::test]
async fn two_replicas_asked_to_fill_at_once_copy_each_blob_once() {
    let image = ImageBuilder::new(21)
        .layer(300_000)
        .layer(200_000)
        .layer(10)
        .index(&["linux/amd64", "linux/arm64"]);
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let one = replica(folder.path(), &upstream, true, "one").await;
    let two = replica(folder.path(), &upstream, true, "two").await;
    let wanted = request(&upstream, ":1", &[]);
    let (first, second) = tokio::join!(one.fills.fill(&wanted), two.fills.fill(&wanted));
    assert_eq!(first.unwrap().digest, second.unwrap().digest);
    for blob in image.blobs.keys() {
        assert_eq!(upstream.gets(blob), 1, "{blob}");
    }
}

/// Runs `work` in a runtime of its own and ends it like a kill: no task goes on, no lock is
/// released.
fn killed<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work());
        runtime.shutdown_background();
    });
    thread.join().unwrap();
}

/// Makes every lock on the volume look as old as after a kill some time ago; puts back what an
/// orderly end released.
fn age_locks(store: &Store, digest: &Digest) {
    let path = store
        .layout()
        .lock(&format!("blob-{}-{}", digest.algorithm(), digest.hex()));
    if !path.exists() {
        std::fs::write(
            &path,
            r#"{"address":"127.0.0.1:1","id":"dead","token":"dead"}"#,
        )
        .unwrap();
    }
    let old = std::time::SystemTime::now() - Duration::from_secs(60);
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(old)
        .unwrap();
}

#[tokio::test]
async fn a_registry_killed_in_a_fill_goes_on_from_what_it_had() {
    let image = ImageBuilder::new(22).layer(1_500_000).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = Arc::new(upstream_with(&image).await);
    let layer = digest(&image.layers[0]);
    upstream.faults().set(
        Fault::new(Kind::Hang {
            after: Some(900_000),
        })
        .on(layer.as_str()),
    );
    let (path, source, wanted) = (
        folder.path().to_owned(),
        Arc::clone(&upstream),
        layer.clone(),
    );
    tokio::task::spawn_blocking(move || {
        killed(move || async move {
            let registry = fills(&path, &source).await;
            registry.manifest(&repo(&source), &tag("1")).await.unwrap();
            let PulledBlob::Growing(mut growing) =
                registry.blob(&repo(&source), &wanted).await.unwrap()
            else {
                panic!("it must still grow");
            };
            assert!(!growing.read_at(700_000, 10).await.unwrap().is_empty());
        });
    })
    .await
    .unwrap();
    upstream.faults().clear();
    let registry = fills(folder.path(), &upstream).await;
    age_locks(registry.store(), &layer);
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    assert_local(&registry, &upstream, &image, "1").await;
    let ranges = ranges(&upstream, layer.as_str());
    let start: u64 = ranges
        .last()
        .unwrap()
        .as_ref()
        .unwrap()
        .trim_start_matches("bytes=")
        .trim_end_matches('-')
        .parse()
        .unwrap();
    assert!(start >= 700_000, "{ranges:?}");
}

// SPEC 28
#[tokio::test]
async fn when_the_filler_dies_another_replica_takes_over_unnoticed() {
    let image = ImageBuilder::new(23).layer(2_000_000).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let layer = digest(&image.layers[0]);
    let repo = repo(&upstream);
    let two = replica(folder.path(), &upstream, true, "two").await;
    let one = replica(folder.path(), &upstream, true, "one").await;
    // The filler as a replica that holds the lock, has a part, and then is gone without a word.
    let lock = one
        .fills
        .store()
        .try_lock(&format!("blob-sha256-{}", layer.hex()), &one.owner)
        .await
        .unwrap();
    let holdfast_store::LockAttempt::Acquired(lock) = lock else {
        panic!("nobody else holds it")
    };
    let mut incoming = one.fills.store().ingest_blob(&layer).await.unwrap();
    incoming
        .append(image.blobs[layer.as_str()].slice(..800_000))
        .await
        .unwrap();
    let (announce, state) = tokio::sync::watch::channel(entry::State::Growing(incoming.reader()));
    let entry = entry::Entry::new(state, SharedPriority::default());
    entry.authorize(&repo);
    one.fills.copies.running().insert(layer.clone(), entry);

    two.fills.manifest(&repo, &tag("1")).await.unwrap();
    let there = two.fills.blob(&repo, &layer).await.unwrap();
    assert!(matches!(there, PulledBlob::Remote(_)));
    let PulledBlob::Remote(remote) = there else {
        unreachable!()
    };
    let mut stream = remote.open(0).await.unwrap();
    let mut bytes = stream.next().await.unwrap().unwrap().to_vec();
    one.shutdown.cancel();
    one.task.abort();
    drop((incoming, announce));
    one.fills.copies.running().clear();
    drop(lock);
    while let Some(next) = stream.next().await {
        bytes.extend_from_slice(&next.unwrap());
    }
    assert_eq!(Bytes::from(bytes), image.blobs[layer.as_str()]);
    let ranges = ranges(&upstream, layer.as_str());
    assert_eq!(
        ranges,
        [Some("bytes=800000-".to_owned())],
        "one request, for the rest only"
    );
    wait_for_tag(&two.fills, &upstream, &image).await;
}

/// A client of the internal API that trusts the authority in a folder and shows the folder's
/// certificate.
fn caller(folder: &Path) -> reqwest::Client {
    let tls = holdfast_runtime::tls::ClientTls::from_folder(folder).unwrap();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls.config().unwrap())
        .no_proxy()
        .build()
        .unwrap()
}

#[tokio::test]
async fn the_internal_api_knows_its_callers_by_their_certificates() {
    use holdfast_runtime::tls::{ClientAuth, ClientTls, ServerTls, TlsFiles};
    holdfast_testkit::tls::install_crypto_provider();
    let image = ImageBuilder::new(24).layer(300_000).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let authority = holdfast_testkit::tls::Authority::new().unwrap();
    let certificates = |name: &str| folder.path().join(name);
    authority
        .write(
            &certificates("replica"),
            "holdfast-registry",
            &["internal.test", "127.0.0.1"],
        )
        .unwrap();
    authority
        .write(&certificates("controller"), "holdfast-controller", &[])
        .unwrap();
    authority
        .write(&certificates("stranger"), "somebody", &[])
        .unwrap();

    let registry = fills(&folder.path().join("data"), &upstream).await;
    let (listener, address) = server::bind("127.0.0.1:0").await.unwrap();
    let tls = ServerTls::from_files(TlsFiles::in_folder(
        &certificates("replica"),
        ClientAuth::Required,
    ))
    .unwrap();
    tokio::spawn(internal::serve(
        listener,
        Some(tls),
        registry.clone(),
        CancellationToken::new(),
    ));
    let url = format!("https://{address}{}", holdfast_api::fill::PATH);
    let post = |client: reqwest::Client, body: String| {
        let url = url.clone();
        async move { client.post(url).body(body).send().await }
    };
    let wanted = serde_json::to_string(&request(&upstream, ":1", &[])).unwrap();

    let done = post(caller(&certificates("controller")), wanted.clone())
        .await
        .unwrap();
    assert_eq!(done.status(), 200);
    let result: FillResult = serde_json::from_slice(&done.bytes().await.unwrap()).unwrap();
    assert_eq!(result.digest, image.digest);
    let missing = serde_json::to_string(&request(&upstream, ":none", &[])).unwrap();
    let missing = post(caller(&certificates("controller")), missing)
        .await
        .unwrap();
    assert_eq!(missing.status(), 404);
    let error: FillError = serde_json::from_slice(&missing.bytes().await.unwrap()).unwrap();
    assert_eq!(error.code, FillErrorCode::NotFound);
    assert_eq!(
        post(caller(&certificates("controller")), "{}".to_owned())
            .await
            .unwrap()
            .status(),
        400
    );
    assert_eq!(
        post(caller(&certificates("stranger")), wanted.clone())
            .await
            .unwrap()
            .status(),
        403
    );
    let ca = std::fs::read(certificates("replica").join("ca.crt")).unwrap();
    let nobody =
        reqwest::Client::builder().tls_certs_only([reqwest::Certificate::from_pem(&ca).unwrap()]);
    assert!(post(nobody.build().unwrap(), wanted).await.is_err());

    // Replicas reach each other by address, and check the name of the internal Service.
    let peers = Peers::mutual(
        "internal.test",
        ClientTls::from_folder(&certificates("replica")).unwrap(),
    );
    let layer = digest(&image.layers[0]);
    let peers::Answer::Stream(mut stream) = peers
        .blob(&address.to_string(), &layer, 100_000, None, None)
        .await
    else {
        panic!("it has the blob")
    };
    let mut bytes = Vec::new();
    while let Some(next) = stream.next().await {
        bytes.extend_from_slice(&next.unwrap());
    }
    assert_eq!(bytes, image.blobs[layer.as_str()][100_000..]);
    let wrong = Peers::mutual(
        "other.test",
        ClientTls::from_folder(&certificates("replica")).unwrap(),
    );
    let refused = wrong
        .blob(&address.to_string(), &layer, 0, None, None)
        .await;
    assert!(matches!(refused, peers::Answer::Nothing));
}

#[tokio::test]
async fn a_blob_whose_manifest_went_with_its_replica_is_asked_of_the_upstream() {
    let image = ImageBuilder::new(23).layer(400_000).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let layer = digest(&image.layers[0]);
    let config = image
        .blobs
        .keys()
        .find(|blob| **blob != image.layers[0])
        .unwrap();
    let one = replica(folder.path(), &upstream, true, "one").await;
    // The copy breaks off for good: the manifest is never stored.
    upstream
        .faults()
        .set(Fault::new(Kind::Error { status: 404 }).on(&format!("/blobs/{config}")));
    let repo = repo(&upstream);
    one.fills.manifest(&repo, &tag("1")).await.unwrap();
    one.shutdown.cancel();
    one.task.abort();
    drop(one);
    // A client has the manifest and asks another replica, which has never heard of it.
    let two = replica(folder.path(), &upstream, true, "two").await;
    let blob = two.fills.blob(&repo, &layer).await.unwrap();
    if let PulledBlob::Growing(growing) = &blob {
        assert_eq!(growing.size(), Some(400_000), "so that ranges are answered");
    }
    assert_eq!(
        Bytes::from(read(blob).await.unwrap()),
        image.blobs[layer.as_str()]
    );
    // What the upstream does not have either is unknown.
    let none = holdfast_store::Hasher::digest(holdfast_core::Algorithm::Sha256, b"none");
    assert!(matches!(
        two.fills.blob(&repo, &none).await,
        Err(Error::NotFound)
    ));
}
