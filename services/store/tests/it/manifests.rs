//! Sound content is never taken for damaged, and damaged content is not believed for long.

#![allow(clippy::unwrap_used, reason = "a test, helpers included")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use holdfast_core::{Algorithm, Digest, RepositoryName};
use holdfast_store::{Error, Hasher, MAX_MANIFEST_BYTES, Options, Store};

fn bytes(size: u64) -> (Digest, Bytes) {
    let bytes = Bytes::from(vec![b' '; usize::try_from(size).unwrap()]);
    (Hasher::digest(Algorithm::Sha256, &bytes), bytes)
}

#[tokio::test]
async fn a_sound_manifest_is_not_taken_for_damaged_whatever_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Options::unlimited())
        .await
        .unwrap();
    let repo = RepositoryName::parse("a/b").unwrap();
    for (size, fits) in [
        (MAX_MANIFEST_BYTES - 1, true),
        (MAX_MANIFEST_BYTES, true),
        (MAX_MANIFEST_BYTES + 1, false),
    ] {
        let (digest, bytes) = bytes(size);
        let put = store.put_manifest(&repo, &digest, bytes.clone()).await;
        if fits {
            put.unwrap();
            assert!(store.manifest(&repo, &digest).await.unwrap().unwrap() == bytes);
        } else {
            assert!(
                matches!(put, Err(Error::ManifestTooLarge { .. })),
                "{put:?}"
            );
            // As another registry on the same volume stored it.
            store.put_blob(&digest, bytes).await.unwrap();
            let link = store.layout().revision_link(&repo, &digest);
            std::fs::create_dir_all(link.parent().unwrap()).unwrap();
            std::fs::write(link, digest.as_str()).unwrap();
            let read = store.manifest(&repo, &digest).await;
            assert!(
                matches!(read, Err(Error::ManifestTooLarge { .. })),
                "{read:?}"
            );
        }
        let there = store.verify_blob(&digest).await.unwrap();
        assert_eq!(there, Some(size), "it stays where it is");
    }
    assert!(!store.layout().own().join("quarantine").exists());
}

#[tokio::test]
async fn content_that_was_found_damaged_and_cannot_be_moved_wins_over_no_push() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Options::unlimited())
        .await
        .unwrap();
    let (digest, sound) = bytes(5000);
    // The second one hashes what the first one left, so it is believed from now on.
    for _ in 0..2 {
        store.put_blob(&digest, sound.clone()).await.unwrap();
    }
    let path = store.layout().blob(&digest);
    damage(&path);
    let quarantine = store.layout().own().join("quarantine");
    std::fs::write(&quarantine, "no folder").unwrap();
    store.verify_blob(&digest).await.unwrap_err();
    store.put_blob(&digest, sound.clone()).await.unwrap_err();
    std::fs::remove_file(&quarantine).unwrap();
    store.put_blob(&digest, sound.clone()).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == sound);
}

#[tokio::test]
async fn a_link_that_names_other_content_harms_no_content() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Options::unlimited())
        .await
        .unwrap();
    let repo = RepositoryName::parse("a/b").unwrap();
    let (sound, content) = bytes(10);
    store.put_manifest(&repo, &sound, content).await.unwrap();
    let (other, _) = bytes(11);
    let link = store.layout().revision_link(&repo, &other);
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    std::fs::write(link, sound.as_str()).unwrap();
    let read = store.manifest(&repo, &other).await;
    assert!(matches!(read, Err(Error::Corrupt { .. })), "{read:?}");
    assert!(store.manifest(&repo, &sound).await.unwrap().is_some());
}

// What is pushed every day is hashed again as often as what is pushed once.
#[tokio::test]
async fn pushes_do_not_prolong_the_time_for_which_content_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        verified_for: Duration::from_secs(1),
        ..Options::unlimited()
    };
    let store = Store::open(folder.path(), options).await.unwrap();
    let (digest, sound) = bytes(5000);
    // The second one hashes what the first one left, so it is believed from now on.
    for _ in 0..2 {
        store.put_blob(&digest, sound.clone()).await.unwrap();
    }
    let path = store.layout().blob(&digest);
    damage(&path);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        store.put_blob(&digest, sound.clone()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(std::fs::read(&path).unwrap() == sound);
}

/// Overwrites a file and leaves no trace of it in its size and time.
fn damage(path: &Path) {
    let before = std::fs::metadata(path).unwrap();
    let size = usize::try_from(before.len()).unwrap();
    std::fs::write(path, vec![b'!'; size]).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
}
