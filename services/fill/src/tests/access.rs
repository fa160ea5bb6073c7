//! Which credentials open which content: between namespaces, between repositories, and between
//! pulls and requests.

use holdfast_api::fill::Credential;

use super::*;

fn credential(username: &str) -> Credential {
    Credential {
        username: username.to_owned(),
        password: "pw".into(),
        identity_token: false,
    }
}

/// An upstream for `names`, and a registry whose settings do not name it.
async fn private(names: &[&str], folder: &Path) -> (Upstream, Fills) {
    let users = names
        .iter()
        .map(|name| ((*name).to_owned(), "pw".to_owned()));
    let upstream = Upstream::start_with(Auth::Basic(users.collect())).await;
    let owner = LockHolder {
        address: String::new(),
        id: "one".to_owned(),
    };
    let registry = fills_at(folder, &upstream, false, owner, Peers::none()).await;
    (upstream, registry)
}

#[tokio::test]
async fn a_pull_uses_a_login_for_what_came_with_it_and_for_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let (upstream, registry) = private(&["team"], folder.path()).await;
    let named = ImageBuilder::new(40)
        .layer(1000)
        .index(&["linux/amd64", "linux/arm64"]);
    let other = ImageBuilder::new(41).layer(1000).build();
    upstream.push(REPO, "1", &named);
    upstream.push(REPO, "2", &other);
    let mut wanted = request(&upstream, ":1", &["linux/amd64"]);
    wanted.credentials = vec![credential("team")];
    registry.fill(&wanted).await.unwrap();
    let repo = repo(&upstream);
    let asked = upstream.requests().len();
    for secret in [
        tag("2"),
        ManifestRef::Digest(digest(&other.digest)),
        tag("never-named"),
    ] {
        let refused = registry.manifest(&repo, &secret).await;
        assert!(
            matches!(refused, Err(Error::NotAllowed)),
            "{secret}: {refused:?}"
        );
    }
    assert_eq!(upstream.requests().len(), asked, "nobody was even asked");
    // What the index names is named.
    let child = ManifestRef::Digest(digest(&named.children[1]));
    let manifest = registry.manifest(&repo, &child).await.unwrap();
    assert_eq!(manifest.bytes, named.manifests[&named.children[1]].1);
    let layer = digest(&named.layers[1]);
    let blob = registry.blob(&repo, &layer).await.unwrap();
    assert_eq!(read(blob).await.unwrap(), named.blobs[&named.layers[1]]);
    // Another namespace may name the other one, with its own login.
    let mut theirs = request(&upstream, ":2", &[]);
    assert_eq!(registry.fill(&theirs).await, Err(Error::Unauthorized));
    theirs.credentials = vec![credential("team")];
    registry.fill(&theirs).await.unwrap();
}

#[tokio::test]
async fn a_login_counts_for_as_long_as_its_request_is_fresh() {
    let folder = tempfile::tempdir().unwrap();
    let users = vec![("team".to_owned(), "pw".to_owned())];
    let upstream = Upstream::start_with(Auth::Basic(users)).await;
    let image = ImageBuilder::new(42)
        .layer(10)
        .index(&["linux/amd64", "linux/arm64"]);
    upstream.push(REPO, "1", &image);
    let settings = Settings {
        grant: Duration::from_millis(300),
        hold: Duration::from_millis(100),
        ..Settings::default()
    };
    let registry = fills_with(folder.path(), &upstream, false, uplink(), settings).await;
    let mut wanted = request(&upstream, ":1", &["linux/amd64"]);
    wanted.credentials = vec![credential("team")];
    registry.fill(&wanted).await.unwrap();
    tokio::time::sleep(Duration::from_millis(350)).await;
    let child = ManifestRef::Digest(digest(&image.children[1]));
    let refused = registry.manifest(&repo(&upstream), &child).await;
    assert!(matches!(refused, Err(Error::NotAllowed)));
    // The controller asks again for as long as a pod needs it; what is local costs no request.
    let asked = upstream.requests().len();
    assert!(registry.fill(&wanted).await.unwrap().already_local);
    assert_eq!(upstream.requests().len(), asked);
    registry.manifest(&repo(&upstream), &child).await.unwrap();
}

/// An image in another repository of the same upstream that names a blob it does not have.
fn thief(image: &Image) -> Image {
    let mut thief = image.clone();
    thief.blobs.clear();
    thief
}

#[tokio::test]
async fn a_blob_that_is_here_for_another_repository_needs_the_upstreams_word() {
    let folder = tempfile::tempdir().unwrap();
    let image = ImageBuilder::new(43).layer(5000).build();
    let upstream = Upstream::start().await;
    upstream.push("team/secret", "1", &image);
    // Names the same blobs; the upstream does not have them there.
    upstream.push("evil/copy", "1", &thief(&image));
    let registry = fills(folder.path(), &upstream).await;
    let of = |name: &str| FillRequest {
        source: format!("{}/{name}:1", upstream.host()),
        ..FillRequest::default()
    };
    registry.fill(&of("team/secret")).await.unwrap();
    assert_eq!(registry.fill(&of("evil/copy")).await, Err(Error::NotFound));
    let evil =
        RepositoryName::parse(&format!("{}/evil/copy", upstream.host().replace(':', "_"))).unwrap();
    let layer = digest(&image.layers[0]);
    // The manifest is on its way and named it; a pull gets no further.
    drop(registry.manifest(&evil, &tag("1")).await);
    let stolen = registry.blob(&evil, &layer).await;
    assert!(matches!(stolen, Err(Error::NotFound)));
    assert!(!registry.store().repo_has_blob(&evil, &layer).await.unwrap());
    // A repository that has it costs no second copy.
    upstream.push("team/shared", "1", &image);
    registry.fill(&of("team/shared")).await.unwrap();
    let all = upstream.requests().all();
    let gets = all.iter().filter(|request| {
        request.method == http::Method::GET && request.path.ends_with(layer.as_str())
    });
    // Where HEAD finds nothing, the first byte is asked for.
    let (asked, copied): (Vec<_>, Vec<_>) =
        gets.partition(|request| request.path.contains("/evil/copy/"));
    assert_eq!(copied.len(), 1);
    for request in asked {
        assert_eq!(request.range.as_deref(), Some("bytes=0-0"));
    }
}

#[tokio::test]
async fn a_blob_on_its_way_for_another_repository_needs_it_too() {
    let folder = tempfile::tempdir().unwrap();
    let image = ImageBuilder::new(44).layer(500_000).build();
    let upstream = Upstream::start().await;
    upstream.push("team/secret", "1", &image);
    upstream.push("evil/copy", "1", &thief(&image));
    let registry = fills(folder.path(), &upstream).await;
    let local = |name: &str| {
        RepositoryName::parse(&format!("{}/{name}", upstream.host().replace(':', "_"))).unwrap()
    };
    let layer = digest(&image.layers[0]);
    upstream.faults().set(
        Fault::new(Kind::Hang {
            after: Some(300_000),
        })
        .on(&format!("GET /v2/team/secret/blobs/{layer}")),
    );
    registry
        .manifest(&local("team/secret"), &tag("1"))
        .await
        .unwrap();
    let open = registry.blob(&local("team/secret"), &layer).await.unwrap();
    assert!(matches!(open, PulledBlob::Growing(_)));
    drop(registry.manifest(&local("evil/copy"), &tag("1")).await);
    let stolen = registry.blob(&local("evil/copy"), &layer).await;
    assert!(matches!(stolen, Err(Error::NotFound)));
    upstream.faults().clear();
    assert_eq!(read(open).await.unwrap(), image.blobs[layer.as_str()]);
    assert!(
        !registry
            .store()
            .repo_has_blob(&local("evil/copy"), &layer)
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn a_blob_that_was_lost_is_found_by_any_manifest_of_its_repository() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let registry = fills(folder.path(), &upstream).await;
    // Pulled by digest, never by tag, among many that have one.
    let image = ImageBuilder::new(45).layer(5000).build();
    upstream.push(REPO, "1", &image);
    let by_digest = request(&upstream, &format!("@{}", image.digest), &[]);
    registry.fill(&by_digest).await.unwrap();
    let (store, repo) = (registry.store(), repo(&upstream));
    for n in 0..300 {
        let bytes = Bytes::from(format!(
            r#"{{"schemaVersion":2,"manifests":[],"annotations":{{"n":"{n}"}}}}"#
        ));
        let one = holdfast_store::Hasher::digest(holdfast_core::Algorithm::Sha256, &bytes);
        store.put_manifest(&repo, &one, bytes).await.unwrap();
        let name = Tag::parse(&format!("a{n}")).unwrap();
        store.set_tag(&repo, &name, &one).await.unwrap();
    }
    let layer = digest(&image.layers[0]);
    let blob = store.open_blob(&layer).await.unwrap().unwrap();
    assert!(store.quarantine_blob(&blob).await.unwrap());
    // Another process: nothing is remembered.
    let restarted = fills(folder.path(), &upstream).await;
    let blob = restarted.blob(&repo, &layer).await.unwrap();
    assert_eq!(read(blob).await.unwrap(), image.blobs[layer.as_str()]);
}

#[tokio::test]
async fn nothing_is_fetched_that_nothing_names() {
    let image = ImageBuilder::new(11).layer(100).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let owner = LockHolder {
        address: String::new(),
        id: "one".to_owned(),
    };
    let registry = fills_at(folder.path(), &upstream, false, owner, Peers::none()).await;
    let refused = registry.manifest(&repo(&upstream), &tag("1")).await;
    assert!(matches!(refused, Err(Error::NotAllowed)), "{refused:?}");
    assert!(upstream.requests().is_empty());
    // A blob that no manifest of the repository names is not of the repository, wherever it is
    // stored.
    let bytes = Bytes::from_static(b"another repository's");
    let other = holdfast_store::Hasher::digest(holdfast_core::Algorithm::Sha256, &bytes);
    registry.store().put_blob(&other, bytes).await.unwrap();
    assert!(matches!(
        registry.blob(&repo(&upstream), &other).await,
        Err(Error::NotFound)
    ));
}
