//! The store's uploads, ingests, locks and state files.

use std::time::Duration;

use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};

use super::Store;
use crate::{
    BlobIngest, CarriedHash, LockAttempt, LockHolder, Result, UploadId, UploadStatus, UploadWriter,
    state_files, uploads::purge,
};

impl Store {
    /// Opens the partial file of a blob. It keeps what an earlier attempt left, and hashes it
    /// again. Each writer has a file of its own, and copies the file of a writer that did not end
    /// in order. So a lock only saves work; the correctness of the bytes does not depend on it.
    ///
    /// There is no size here, because only the digest proves one. A caller that knows a size from a
    /// manifest or a header compares it with what arrives; readers pass theirs to
    /// [`PartialBlob::claiming`](crate::PartialBlob::claiming).
    pub async fn ingest_blob(&self, digest: &Digest) -> Result<BlobIngest> {
        let digest = digest.clone();
        self.run(move |parts| parts.ingests.open(&digest)).await
    }

    /// Starts a session.
    pub async fn create_upload(&self, repo: &RepositoryName, started_at: &str) -> Result<UploadId> {
        let (repo, started_at) = (repo.clone(), started_at.to_owned());
        self.run(move |parts| parts.uploads.create(&repo, &started_at))
            .await
    }

    /// The state of a session; `None` if there is no such session.
    pub async fn upload_status(
        &self,
        repo: &RepositoryName,
        id: &UploadId,
    ) -> Result<Option<UploadStatus>> {
        let (repo, id) = (repo.clone(), id.clone());
        self.run(move |parts| parts.uploads.status(&repo, &id))
            .await
    }

    /// Cancels a session and frees its bytes at once. `false` if there was none.
    pub async fn cancel_upload(&self, repo: &RepositoryName, id: &UploadId) -> Result<bool> {
        let (repo, id) = (repo.clone(), id.clone());
        self.run(move |parts| parts.uploads.cancel(&repo, &id))
            .await
    }

    /// Continues a session at `offset`. Bytes behind it are cut off: they come from an attempt
    /// whose reply was lost. The file is hashed again unless `carried` is the hash of the bytes
    /// before the offset, of the file's own generation.
    ///
    /// # Errors
    /// [`Error::UploadUnknown`](crate::Error::UploadUnknown),
    /// [`Error::UploadInUse`](crate::Error::UploadInUse),
    /// [`Error::OffsetMismatch`](crate::Error::OffsetMismatch) when `offset` is behind the end.
    pub async fn upload_writer(
        &self,
        repo: &RepositoryName,
        id: &UploadId,
        offset: u64,
        carried: CarriedHash,
        owner: &LockHolder,
    ) -> Result<UploadWriter> {
        self.parts
            .uploads
            .writer(repo, id, offset, carried, owner)
            .await
    }

    /// A writer for a request that brings all bytes of a session and commits them. It needs no
    /// lock: earlier bytes of the session are not used, and dropping the writer without a commit
    /// removes what it wrote.
    ///
    /// # Errors
    /// [`Error::UploadUnknown`](crate::Error::UploadUnknown), or an error of the volume.
    pub async fn whole_upload_writer(
        &self,
        repo: &RepositoryName,
        id: &UploadId,
        algorithm: Algorithm,
    ) -> Result<UploadWriter> {
        let (repo, id) = (repo.clone(), id.clone());
        self.run(move |parts| parts.uploads.whole_writer(&repo, &id, algorithm))
            .await
    }

    /// Removes sessions and partial copies without activity for `idle`; returns their number. Ages
    /// are measured by the volume's clock.
    pub async fn purge_idle(&self, idle: Duration) -> Result<usize> {
        self.run(move |parts| purge::purge_idle(&parts.files, &parts.layout, idle))
            .await
    }

    /// Tries to take the lock `name` (a plain file name) for `owner`.
    pub async fn try_lock(&self, name: &str, owner: &LockHolder) -> Result<LockAttempt> {
        self.parts.locks.try_lock(name, owner).await
    }

    /// The holder of a lock, alive or not.
    pub async fn lock_holder(&self, name: &str) -> Result<Option<LockHolder>> {
        let name = name.to_owned();
        self.run(move |parts| parts.locks.holder(&name)).await
    }

    /// A small state file on the volume, under a plain file name; `None` if there is none.
    pub async fn state_file(&self, name: &'static str) -> Result<Option<Vec<u8>>> {
        self.run(move |parts| state_files::read(&parts.files, &parts.layout, name))
            .await
    }

    /// Replaces a small state file on the volume, under a plain file name.
    pub async fn write_state_file(&self, name: &'static str, bytes: Vec<u8>) -> Result<()> {
        self.run(move |parts| state_files::write(&parts.files, &parts.layout, name, &bytes))
            .await
    }
}
