//! Readers of a blob that arrives who were told its size: who was told a wrong one fails, and
//! nobody else notices.

#![allow(clippy::unwrap_used, reason = "a test, helpers included")]

use bytes::Bytes;
use holdfast_core::digest::Algorithm;
use holdfast_store::{Error, Hasher, Options, PartialBlob, Store};

const BYTES: &[u8] = b"the bytes of a blob that arrives";
const CONTENT: Bytes = Bytes::from_static(BYTES);
const SIZE: u64 = BYTES.len() as u64;

/// What a reader gets, and how it ends.
async fn read(mut blob: PartialBlob) -> (Vec<u8>, Result<(), Error>) {
    let mut bytes = Vec::new();
    loop {
        match blob.read_at(bytes.len() as u64, 7).await {
            Ok(next) if next.is_empty() => return (bytes, Ok(())),
            Ok(next) => bytes.extend_from_slice(&next),
            Err(error) => return (bytes, Err(error)),
        }
    }
}

#[tokio::test]
async fn a_reader_who_was_told_another_size_fails_alone() {
    // Whether the claim is made while the blob grows, or when all of it is there.
    for behind in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Options::unlimited()).await;
        let store = store.unwrap();
        let digest = Hasher::digest(Algorithm::Sha256, &CONTENT);
        let mut incoming = store.ingest_blob(&digest).await.unwrap();
        let reader = incoming.reader();
        let claims = [
            None,
            Some(SIZE),
            Some(1),
            Some(SIZE - 1),
            Some(SIZE + 1),
            Some(u64::MAX),
        ];
        let read_as = |claim| tokio::spawn(read(reader.clone().claiming(claim)));
        let readers = (!behind).then(|| claims.map(read_as));
        incoming.append(CONTENT.slice(..20)).await.unwrap();
        tokio::task::yield_now().await;
        incoming.append(CONTENT.slice(20..)).await.unwrap();
        assert_eq!(incoming.commit().await.unwrap(), SIZE);
        let readers = readers.unwrap_or_else(|| claims.map(read_as));
        for (claim, reader) in claims.into_iter().zip(readers) {
            let (bytes, end) = reader.await.unwrap();
            let is_wrong = !behind && claim.is_some_and(|claim| claim != SIZE);
            if !is_wrong {
                // Behind the proof nobody has to believe a claim.
                assert!(end.is_ok(), "{claim:?}: {end:?}");
                assert_eq!(bytes, CONTENT, "{claim:?}");
                continue;
            }
            let told = claim.unwrap();
            let Err(Error::SizeMismatch { expected, actual }) = end else {
                panic!("{claim:?}: {end:?}");
            };
            assert_eq!((expected, actual), (told, SIZE));
            assert!((bytes.len() as u64) < told, "{claim:?}: not a clean end");
            assert!(CONTENT.starts_with(&bytes), "{claim:?}");
        }
        assert_eq!(store.stat_blob(&digest).await.unwrap(), Some(SIZE));
    }
}
