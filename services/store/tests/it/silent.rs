//! Writers that stall for longer than their lock lives, and go on when another writer took
//! their place: nothing of theirs gets into what the other one commits.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test, helpers included"
)]

use std::{
    fs::File,
    path::Path,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};
use holdfast_store::{
    CarriedHash, Error, Hasher, Lock, LockAttempt, LockHolder, Options, Store, UploadId,
    UploadWriter,
};

/// Two replicas on one volume.
struct Scene {
    _folder: tempfile::TempDir,
    one: Store,
    other: Store,
    repo: RepositoryName,
    id: UploadId,
    digest: Digest,
}

const CONTENT: Bytes = Bytes::from_static(b"the right bytes");
const OTHER: Bytes = Bytes::from_static(b"and wrong ones!");

fn owner(name: &str) -> LockHolder {
    LockHolder {
        address: String::new(),
        id: name.to_owned(),
    }
}

async fn scene() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::unlimited();
    let one = Store::open(folder.path(), options).await.unwrap();
    let other = Store::open(folder.path(), options).await.unwrap();
    let repo = RepositoryName::parse("team/app").unwrap();
    let id = one
        .create_upload(&repo, "2026-01-01T00:00:00Z")
        .await
        .unwrap();
    Scene {
        _folder: folder,
        one,
        other,
        repo,
        id,
        digest: Hasher::digest(Algorithm::Sha256, &CONTENT),
    }
}

/// As if the lock's owner had been silent for a minute.
fn silence(lock: &Path) {
    let past = SystemTime::now() - Duration::from_secs(60);
    File::open(lock).unwrap().set_modified(past).unwrap();
}

impl Scene {
    async fn writer(&self, store: &Store, offset: u64, carried: CarriedHash) -> UploadWriter {
        store
            .upload_writer(&self.repo, &self.id, offset, carried, &owner("any"))
            .await
            .unwrap()
    }

    fn none() -> CarriedHash {
        CarriedHash::none(Algorithm::Sha256)
    }

    fn silence(&self) {
        let name = format!("upload-{}", self.id.as_str());
        silence(&self.one.layout().lock(&name));
    }

    async fn stored(&self) -> Option<Bytes> {
        let blob = self.other.open_blob(&self.digest).await.unwrap()?;
        Some(blob.read_at(0, 1_000).await.unwrap())
    }
}

#[tokio::test]
async fn a_chunk_of_a_silent_writer_gets_into_no_others_upload() {
    let s = scene().await;
    let mut silent = s.writer(&s.one, 0, Scene::none()).await;
    silent.append(CONTENT.slice(..4)).await.unwrap();
    s.silence();
    let mut next = s.writer(&s.other, 0, Scene::none()).await;
    next.append(CONTENT).await.unwrap();
    // It wakes up, and writes over all that the other one has.
    silent.append(OTHER).await.unwrap();
    let refused = silent.finish().await.unwrap_err();
    assert!(matches!(refused, Error::LockLost), "{refused}");
    next.commit(&s.digest).await.unwrap();
    assert_eq!(s.stored().await.unwrap(), CONTENT);
}

#[tokio::test]
async fn a_silent_writer_that_ends_first_moves_its_own_file_only() {
    let s = scene().await;
    let mut silent = s.writer(&s.one, 0, Scene::none()).await;
    silent.append(CONTENT).await.unwrap();
    s.silence();
    let mut next = s.writer(&s.other, 0, Scene::none()).await;
    next.append(OTHER.slice(..4)).await.unwrap();
    let refused = silent.commit(&s.digest).await.unwrap_err();
    assert!(matches!(refused, Error::LockLost), "{refused}");
    assert_eq!(s.stored().await, None);
    // What the other one wrote is in its own file.
    next.append(OTHER.slice(4..)).await.unwrap();
    let other = Hasher::digest(Algorithm::Sha256, &OTHER);
    next.commit(&other).await.unwrap();
    let blob = s.one.open_blob(&other).await.unwrap().unwrap();
    assert_eq!(blob.read_at(0, 1_000).await.unwrap(), OTHER);
}

#[tokio::test]
async fn who_goes_on_for_a_silent_writer_hashes_what_it_copies() {
    let s = scene().await;
    let mut first = s.writer(&s.one, 0, Scene::none()).await;
    first.append(CONTENT.slice(..4)).await.unwrap();
    let (offset, carried) = first.finish().await.unwrap();
    // From the same state two requests go on, one after the other: the first of them stands still.
    let mut silent = s.writer(&s.one, offset, carried.clone()).await;
    silent.append(OTHER.slice(4..9)).await.unwrap();
    s.silence();
    let mut next = s.writer(&s.other, offset, carried.clone()).await;
    next.append(CONTENT.slice(4..9)).await.unwrap();
    let (offset, newer) = next.finish().await.unwrap();
    assert_ne!(newer.generation, carried.generation);
    drop(silent);
    let mut last = s.writer(&s.one, offset, newer).await;
    last.append(CONTENT.slice(9..)).await.unwrap();
    last.commit(&s.digest).await.unwrap();
    assert_eq!(s.stored().await.unwrap(), CONTENT);
}

#[tokio::test]
async fn what_a_client_carried_the_hash_of_is_read_before_it_is_believed() {
    for cuts in [&[][..], &[4], &[4, 9]] {
        let s = scene().await;
        let (mut offset, mut carried) = (0, Scene::none());
        for end in cuts {
            let mut writer = s.writer(&s.one, offset, carried).await;
            let from = usize::try_from(offset).unwrap();
            writer.append(CONTENT.slice(from..*end)).await.unwrap();
            (offset, carried) = writer.finish().await.unwrap();
            assert!(carried.generation.is_some(), "{cuts:?}");
        }
        let mut writer = s.writer(&s.one, offset, carried).await;
        let from = usize::try_from(offset).unwrap();
        writer.append(CONTENT.slice(from..)).await.unwrap();
        writer.commit(&s.digest).await.unwrap();
        let blob = s.one.open_blob(&s.digest).await.unwrap().unwrap();
        assert_eq!(blob.is_verified(), cuts.is_empty(), "{cuts:?}");
        assert!(!s.one.layout().upload(&s.repo, s.id.as_str()).exists());
    }
}

#[tokio::test]
async fn bytes_of_a_crashed_writer_are_not_lost_to_its_client() {
    let s = scene().await;
    let mut first = s.writer(&s.one, 0, Scene::none()).await;
    first.append(CONTENT.slice(..4)).await.unwrap();
    let (offset, carried) = first.finish().await.unwrap();
    let mut crashed = s.writer(&s.one, offset, carried.clone()).await;
    crashed.append(CONTENT.slice(4..9)).await.unwrap();
    // Nothing of it ends properly.
    std::mem::forget(crashed);
    s.silence();
    for _ in 0..1_000 {
        let status = s.other.upload_status(&s.repo, &s.id).await.unwrap();
        if status.unwrap().size == 9 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Both where its state says, and where the file ends.
    let next = s.writer(&s.other, offset, carried).await;
    let (offset, carried) = next.finish().await.unwrap();
    assert_eq!(offset, 4);
    let mut last = s.writer(&s.other, offset, carried).await;
    last.append(CONTENT.slice(4..)).await.unwrap();
    last.commit(&s.digest).await.unwrap();
    assert_eq!(s.stored().await.unwrap(), CONTENT);
}

async fn fill_lock(store: &Store, name: &str) -> Lock {
    match store.try_lock(name, &owner("any")).await.unwrap() {
        LockAttempt::Acquired(lock) => lock,
        LockAttempt::Contended(owner) => panic!("{owner:?} holds it"),
    }
}

#[tokio::test]
async fn a_silent_copy_writes_into_no_others_copy() {
    let s = scene().await;
    let mut silent = s.one.ingest_blob(&s.digest).await.unwrap();
    silent.attach_lock(fill_lock(&s.one, "fill").await);
    silent.append(OTHER.slice(..4)).await.unwrap();
    silence(&s.one.layout().lock("fill"));
    let mut next = s.other.ingest_blob(&s.digest).await.unwrap();
    next.attach_lock(fill_lock(&s.other, "fill").await);
    // Part of what the silent one had, perhaps; then it goes on.
    let wrong = next.offset();
    silent.append(OTHER.slice(4..)).await.unwrap();
    assert!(silent.commit().await.is_err());
    let from = usize::try_from(wrong).unwrap();
    next.append(CONTENT.slice(from..)).await.unwrap();
    let committed = next.commit().await;
    assert_eq!(committed.is_ok(), wrong == 0, "{committed:?}");
    match s.stored().await {
        Some(stored) => assert_eq!(stored, CONTENT),
        None => assert!(wrong > 0),
    }
}

#[tokio::test]
async fn a_copy_goes_on_where_another_one_ended_or_crashed() {
    for crashes in [false, true] {
        let s = scene().await;
        let mut first = s.one.ingest_blob(&s.digest).await.unwrap();
        let mut reader = first.reader();
        first.append(CONTENT.slice(..9)).await.unwrap();
        reader.read_at(8, 1).await.unwrap();
        if crashes {
            std::mem::forget(first);
        } else {
            drop(first);
        }
        let mut next = s.other.ingest_blob(&s.digest).await.unwrap();
        assert_eq!(next.offset(), 9);
        next.append(CONTENT.slice(9..)).await.unwrap();
        next.commit().await.unwrap();
        assert_eq!(s.stored().await.unwrap(), CONTENT);
    }
}

#[tokio::test]
async fn a_commit_that_has_no_file_any_more_says_who_has_it() {
    let s = scene().await;
    let mut silent = s.one.ingest_blob(&s.digest).await.unwrap();
    let mut reader = silent.reader();
    silent.append(CONTENT).await.unwrap();
    reader.read_at(14, 1).await.unwrap();
    let next = s.other.ingest_blob(&s.digest).await.unwrap();
    assert_eq!(next.offset(), CONTENT.len() as u64);
    let refused = silent.commit().await.unwrap_err();
    assert!(matches!(refused, Error::LockLost), "{refused}");
    next.commit().await.unwrap();
    assert_eq!(s.stored().await.unwrap(), CONTENT);
}
