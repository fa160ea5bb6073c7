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
