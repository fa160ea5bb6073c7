//! Manifests of unusual sizes: what is sound is served or refused, and never taken for damaged.

#![allow(clippy::unwrap_used, reason = "a test, helpers included")]

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
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::write(&path, vec![b'!'; sound.len()]).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(before).unwrap();
    let quarantine = store.layout().own().join("quarantine");
    std::fs::write(&quarantine, "no folder").unwrap();
    store.verify_blob(&digest).await.unwrap_err();
    store.put_blob(&digest, sound.clone()).await.unwrap_err();
    std::fs::remove_file(&quarantine).unwrap();
    store.put_blob(&digest, sound.clone()).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == sound);
}
