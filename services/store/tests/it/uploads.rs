//! Uploads that come in one request: several at once, broken off, and for sessions that are not
//! there.

#![allow(clippy::unwrap_used, reason = "a test, helpers included")]

use std::{fs, path::PathBuf, time::Duration};

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};
use holdfast_store::{
    CarriedHash, Error, Hasher, LockHolder, Options, Store, UploadId, UploadWriter,
};

struct Scene {
    _folder: tempfile::TempDir,
    store: Store,
    repo: RepositoryName,
    id: UploadId,
    digest: Digest,
}

const CONTENT: Bytes = Bytes::from_static(b"all of it");

async fn scene() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Options::unlimited())
        .await
        .unwrap();
    let repo = RepositoryName::parse("team/app").unwrap();
    let id = store
        .create_upload(&repo, "2026-01-01T00:00:00Z")
        .await
        .unwrap();
    Scene {
        _folder: folder,
        store,
        repo,
        id,
        digest: Hasher::digest(Algorithm::Sha256, &CONTENT),
    }
}

impl Scene {
    async fn writer(&self, bytes: Bytes) -> Result<UploadWriter, Error> {
        let (repo, id) = (&self.repo, &self.id);
        let writer = self
            .store
            .whole_upload_writer(repo, id, Algorithm::Sha256)
            .await;
        let mut writer = writer?;
        writer.append(bytes).await.unwrap();
        Ok(writer)
    }

    fn session(&self) -> PathBuf {
        self.store.layout().upload(&self.repo, self.id.as_str())
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.session()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

#[tokio::test]
async fn what_a_request_that_breaks_off_brought_goes_with_it() {
    let s = scene().await;
    let writer = s.writer(CONTENT.slice(..3)).await.unwrap();
    assert_eq!(s.files().len(), 2);
    drop(writer);
    for _ in 0..1_000 {
        if s.files() == ["startedat"] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(s.files(), ["startedat"]);
    let status = s.store.upload_status(&s.repo, &s.id).await.unwrap();
    assert_eq!(status.unwrap().size, 0, "the session can go on");
    let writer = s.writer(CONTENT).await.unwrap();
    assert_eq!(writer.commit(&s.digest).await.unwrap(), 9);
    assert!(!s.session().exists());
}

#[tokio::test]
async fn one_that_is_sent_again_does_not_wait_for_the_first() {
    let s = scene().await;
    // The client gave up waiting and sends it again while the first is still under way.
    let first = s.writer(CONTENT.slice(..3)).await.unwrap();
    let again = s.writer(CONTENT).await.unwrap();
    assert_eq!(again.commit(&s.digest).await.unwrap(), 9);
    drop(first);
    assert!(s.store.repo_has_blob(&s.repo, &s.digest).await.unwrap());
    let gone = s.writer(CONTENT).await.unwrap_err();
    assert!(matches!(gone, Error::UploadUnknown), "{gone}");
}

#[tokio::test]
async fn one_beside_a_piece_of_the_same_session_takes_nothing_of_it() {
    let s = scene().await;
    let owner = LockHolder {
        address: String::new(),
        id: "one".to_owned(),
    };
    let carried = CarriedHash::none(Algorithm::Sha256);
    let mut piece = s
        .store
        .upload_writer(&s.repo, &s.id, 0, carried, &owner)
        .await
        .unwrap();
    piece.append(Bytes::from_static(b"other")).await.unwrap();
    let whole = s.writer(CONTENT).await.unwrap();
    piece.append(Bytes::from_static(b" bytes")).await.unwrap();
    whole.commit(&s.digest).await.unwrap();
    drop(piece);
    let blob = s.store.open_blob(&s.digest).await.unwrap().unwrap();
    assert_eq!(blob.read_at(0, 100).await.unwrap(), CONTENT);
}

#[tokio::test]
async fn wrong_bytes_end_the_session() {
    let s = scene().await;
    let writer = s.writer(Bytes::from_static(b"wrong")).await.unwrap();
    let refused = writer.commit(&s.digest).await.unwrap_err();
    assert!(matches!(refused, Error::DigestMismatch { .. }), "{refused}");
    assert!(!s.session().exists());
}

#[tokio::test]
async fn a_session_that_ends_under_its_writer_is_unknown_and_no_failure() {
    let s = scene().await;
    let writer = s.writer(CONTENT).await.unwrap();
    assert!(s.store.cancel_upload(&s.repo, &s.id).await.unwrap());
    let refused = writer.commit(&s.digest).await.unwrap_err();
    assert!(matches!(refused, Error::UploadUnknown), "{refused}");
    assert!(!s.session().exists());
}
