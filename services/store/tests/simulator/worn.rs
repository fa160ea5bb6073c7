//! A disk that loses what it should write: a sync that failed is not made good by one that
//! succeeds.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_core::digest::Digest;
use holdfast_simfs::{Faults, SimFs};
use holdfast_store::{Options, Result, Store};

use crate::program::World;

/// A copy from an upstream, or the rest of one.
async fn fill(store: &Store, digest: &Digest, bytes: &Bytes) -> Result<u64> {
    let mut incoming = store.ingest_blob(digest).await?;
    let offset = usize::try_from(incoming.offset()).unwrap();
    incoming.append(bytes.slice(offset..)).await?;
    incoming.commit().await
}

#[tokio::test]
async fn a_copy_whose_sync_failed_is_not_promised_until_it_is_written_again() {
    let fs = SimFs::new(1, 1, Faults::default());
    let open = || Store::open_on(Arc::new(fs.client(0)), "/r", Options::default());
    let store = open().await.unwrap();
    let world = World::new();
    let (digest, bytes) = &world.blobs[4];
    fs.set_faults(Faults {
        worn_out: true,
        ..Faults::default()
    });
    fill(&store, digest, bytes).await.unwrap_err();
    fs.set_faults(Faults::default());
    if fill(&store, digest, bytes).await.is_err() {
        // That one found the file of before.
        fill(&store, digest, bytes).await.unwrap();
    }
    fs.cut_power();
    fs.restart();
    let blob = open()
        .await
        .unwrap()
        .open_blob(digest)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(blob.read_at(0, blob.size()).await.unwrap(), bytes);
}
