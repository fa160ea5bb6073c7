//! A writer whose file another replica removed, as a network file system tells it: by a stale
//! handle.

use std::sync::Arc;

use holdfast_simfs::{Faults, SimFs};
use holdfast_store::{Error, Options, Store};

use crate::program::World;

#[tokio::test]
async fn a_copy_that_another_writer_continued_fails_at_its_next_write() {
    let faults = Faults {
        stale_ms: 1000,
        ..Faults::default()
    };
    let fs = SimFs::new(1, 2, faults);
    let open = |client| Store::open_on(Arc::new(fs.client(client)), "/r", Options::default());
    let (one, other) = (open(0).await.unwrap(), open(1).await.unwrap());
    let world = World::new();
    let (digest, bytes) = &world.blobs[4];
    let mut silent = one.ingest_blob(digest).await.unwrap();
    let mut reader = silent.reader();
    silent.append(bytes.slice(..1)).await.unwrap();
    reader.read_at(0, 1).await.unwrap();
    let mut next = other.ingest_blob(digest).await.unwrap();
    let offset = usize::try_from(next.offset()).unwrap();
    next.append(bytes.slice(offset..)).await.unwrap();
    next.commit().await.unwrap();
    silent.append(bytes.slice(1..)).await.unwrap();
    // A write that fails is told by what comes after it.
    let refused = silent.commit().await;
    assert!(matches!(refused, Err(Error::LockLost)), "{refused:?}");
}
