//! The volume: distribution's layout in both directions, and what a crash leaves.

use std::{fs, path::Path, time::Duration};

use bytes::Bytes;

use crate::harness::{Registry, Setup, image, noise, repo, sha256};

fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

// SPEC 16
#[tokio::test]
async fn tree_of_distribution_is_served() {
    let setup = Setup::default();
    let base = setup.dir.path().join("docker/registry/v2");
    let (config, layer) = (b"{}".as_slice(), noise(10_000));
    let (config_digest, layer_digest) = (sha256(config), sha256(&layer));
    let manifest = image(&config_digest, 2, &[(&layer_digest, layer.len())], "");
    let digest = sha256(manifest.as_bytes());
    for (digest, bytes) in [
        (&config_digest, config),
        (&layer_digest, &layer),
        (&digest, manifest.as_bytes()),
    ] {
        let hex = digest.hex();
        write(
            &base.join(format!("blobs/sha256/{}/{hex}/data", hex.split_at(2).0)),
            bytes,
        );
    }
    let repository = base.join("repositories/team/app");
    for digest in [&config_digest, &layer_digest] {
        write(
            &repository.join(format!("_layers/sha256/{}/link", digest.hex())),
            digest.as_str(),
        );
    }
    let manifests = repository.join("_manifests");
    write(
        &manifests.join(format!("revisions/sha256/{}/link", digest.hex())),
        digest.as_str(),
    );
    for tag in ["1", "broken", "lost"] {
        write(
            &manifests.join(format!("tags/{tag}/current/link")),
            if tag == "1" { digest.as_str() } else { "" },
        );
    }
    write(
        &manifests.join(format!("tags/broken/index/sha256/{}/link", digest.hex())),
        digest.as_str(),
    );
    write(&manifests.join("tags/1/current/link.123.tmp"), "half");
    write(&manifests.join("tags/.nfs0001"), "");
    write(
        &repository.join("_uploads/018f4d0c-0000-7000-8000-000000000001/startedat"),
        "2024-01-01T00:00:00Z",
    );
    let registry = setup.start().await;
    assert_eq!(
        registry
            .get("/v2/team/app/manifests/1")
            .await
            .text()
            .await
            .unwrap(),
        manifest
    );
    assert_eq!(
        registry
            .get(&format!("/v2/team/app/blobs/{layer_digest}"))
            .await
            .bytes()
            .await
            .unwrap(),
        layer
    );
    assert_eq!(
        registry.get("/v2/_catalog").await.text().await.unwrap(),
        r#"{"repositories":["team/app"]}"#
    );
    // An empty link is repaired where the tag's history settles it, and is absent where it does
    // not.
    assert_eq!(
        registry
            .get("/v2/team/app/manifests/broken")
            .await
            .text()
            .await
            .unwrap(),
        manifest
    );
    assert_eq!(
        registry.get("/v2/team/app/manifests/lost").await.status(),
        404
    );
    assert_eq!(
        registry
            .get("/v2/team/app/tags/list")
            .await
            .text()
            .await
            .unwrap(),
        r#"{"name":"team/app","tags":["1","broken"]}"#
    );
}

#[tokio::test]
async fn pushed_tree_has_distributions_form() {
    let registry = Registry::start().await;
    let (digest, _) = registry.push_image("team/app", "1", b"layer").await;
    let mut found = Vec::new();
    let base = registry.root().join("docker/registry/v2");
    let mut pending = vec![base.clone()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let relative = path
                .strip_prefix(&base)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if path.is_dir() {
                pending.push(path);
            } else if !relative.starts_with("_holdfast/") {
                found.push(relative);
            }
        }
    }
    found.sort();
    let (config, layer) = (sha256(b"{}"), sha256(b"layer"));
    let mut expect: Vec<_> = [&config, &layer, &digest]
        .iter()
        .map(|digest| {
            format!(
                "blobs/sha256/{}/{}/data",
                digest.hex().split_at(2).0,
                digest.hex()
            )
        })
        .collect();
    expect.extend(
        [&config, &layer]
            .iter()
            .map(|digest| format!("repositories/team/app/_layers/sha256/{}/link", digest.hex())),
    );
    expect.push(format!(
        "repositories/team/app/_manifests/revisions/sha256/{}/link",
        digest.hex()
    ));
    expect.push("repositories/team/app/_manifests/tags/1/current/link".into());
    expect.push(format!(
        "repositories/team/app/_manifests/tags/1/index/sha256/{}/link",
        digest.hex()
    ));
    expect.sort();
    assert_eq!(found, expect);
    let link =
        fs::read_to_string(base.join("repositories/team/app/_manifests/tags/1/current/link"))
            .unwrap();
    assert_eq!(link, digest.as_str(), "71 bytes, no new line");
}

#[tokio::test]
async fn symbolic_links_in_the_tree_are_not_followed() {
    let registry = Registry::start().await;
    let secret = registry.root().join("secret");
    fs::write(&secret, "secret").unwrap();
    let digest = registry.push_blob("a", "x").await;
    let file = registry.store.layout().blob(&digest);
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&secret, &file).unwrap();
    assert_eq!(
        registry
            .get(&format!("/v2/a/blobs/{digest}"))
            .await
            .status(),
        404
    );
}

// SPEC 14
#[tokio::test]
async fn fill_goes_on_where_a_crash_ended_it() {
    let registry = Registry::start().await;
    let bytes = noise(600_000);
    let digest = sha256(&bytes);
    let mut first = registry.store.ingest_blob(&digest).await.unwrap();
    let mut reader = first.reader();
    first
        .append(Bytes::copy_from_slice(&bytes[..400_000]))
        .await
        .unwrap();
    assert!(!reader.read_at(0, 10).await.unwrap().is_empty());
    let mut waiting = reader.clone();
    let waits = tokio::spawn(async move { waiting.read_at(500_000, 10).await });
    // The one file of the copy has a name of its writer's own.
    let at_rest = registry.store.layout().incoming(&digest);
    let written = || {
        let mut entries = fs::read_dir(at_rest.parent().unwrap()).unwrap();
        entries.next().unwrap().unwrap().metadata().unwrap().len()
    };
    while written() < 400_000 {
        tokio::task::yield_now().await;
    }
    drop(first);
    assert!(
        waits.await.unwrap().is_err(),
        "a reader of a fill that broke off learns it"
    );
    // A writer puts its file to rest in the background. Who holds the blob's lock, as every copy of
    // the registry does, comes after that.
    while !at_rest.exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut second = registry.store.ingest_blob(&digest).await.unwrap();
    assert_eq!(second.offset(), 400_000);
    second
        .append(Bytes::copy_from_slice(&bytes[400_000..]))
        .await
        .unwrap();
    let mut reader = second.reader();
    assert_eq!(second.commit().await.unwrap(), 600_000);
    assert_eq!(
        reader.read_at(599_990, 100).await.unwrap(),
        &bytes[599_990..]
    );
    assert!(reader.read_at(600_000, 100).await.unwrap().is_empty());
    assert_eq!(
        registry.store.verify_blob(&digest).await.unwrap(),
        Some(600_000)
    );
    assert!(!registry.store.layout().incoming(&digest).exists());
}

#[tokio::test]
async fn damaged_leftover_of_a_fill_is_thrown_away() {
    let registry = Registry::start().await;
    let bytes = noise(1000);
    let digest = sha256(&bytes);
    write(&registry.store.layout().incoming(&digest), vec![0; 500]);
    let mut incoming = registry.store.ingest_blob(&digest).await.unwrap();
    incoming
        .append(Bytes::copy_from_slice(&bytes[500..]))
        .await
        .unwrap();
    assert!(incoming.commit().await.is_err());
    assert_eq!(registry.store.stat_blob(&digest).await.unwrap(), None);
    assert_eq!(
        registry.store.ingest_blob(&digest).await.unwrap().offset(),
        0
    );
}

#[tokio::test]
async fn uploads_that_nobody_continues_are_removed_and_live_ones_stay() {
    let registry = Registry::start().await;
    let id = registry
        .store
        .create_upload(&repo("a"), "2024-01-01T00:00:00Z")
        .await
        .unwrap();
    assert_eq!(
        registry
            .store
            .purge_idle(Duration::from_secs(60))
            .await
            .unwrap(),
        0
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        registry
            .store
            .purge_idle(Duration::from_millis(10))
            .await
            .unwrap(),
        1
    );
    assert_eq!(
        registry.store.upload_status(&repo("a"), &id).await.unwrap(),
        None
    );
}
