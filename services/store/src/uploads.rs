//! Upload sessions, in distribution's folders. The size of a session's file is its state; a request
//! that continues the session names the offset.
//!
//! A hash of a session's first bytes travels through the client ([`CarriedHash`]), so that no chunk
//! is read twice. It is true for the bytes that it was taken over and says nothing of the bytes in
//! the file now: a client may send an older state again, with other bytes. So it names a
//! **generation**: a second name of the same file, below `hashstates`. That name is removed,
//! durably, before acknowledged bytes are cut off. A hash whose generation is gone, or names
//! another file, is not believed, and the file is hashed from its start. Distribution ignores the
//! name and removes it with the session.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};
use uuid::Uuid;

use crate::{
    Error, Hasher, Layout, Lock, LockAttempt, LockHolder, Pool, Result, WriteGate,
    blobs::{Blobs, Proof},
    durable::DurableFs,
    files,
    hashing_writer::HashingWriter,
    layout::names,
    locks::Locks,
    partial::{PartialFile, or_lock_lost},
};

mod file;
mod guard;
pub(crate) mod purge;
mod rehash_slots;

use file::MAX_ATTEMPTS;
use guard::{WhenDropped, WriterGuard};
use rehash_slots::RehashSlots;

/// Name of an upload session: a UUID of any version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UploadId(String);

impl UploadId {
    /// Parses the canonical form of a UUID; `None` for anything else, so that it is safe in a path.
    pub fn parse(text: &str) -> Option<Self> {
        let id = Uuid::try_parse(text).ok()?.hyphenated().to_string();
        (id == text).then_some(Self(id))
    }

    /// The canonical form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How often a request tries to take the lock of its session.
const MAX_LOCK_ATTEMPTS: usize = 60;
/// The pause between two attempts.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(25);

/// What a session holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadStatus {
    /// Bytes received.
    pub size: u64,
}

/// The hash of a session's first bytes on its way from one request to the next, through a client.
#[derive(Clone, Debug)]
pub struct CarriedHash {
    /// The hash at the offset where the session goes on.
    pub hasher: Hasher,
    /// The generation of the file that it was taken over. Without one only its algorithm is used.
    pub generation: Option<Uuid>,
}

impl CarriedHash {
    /// No hash: the bytes in the file are hashed.
    pub fn none(algorithm: Algorithm) -> Self {
        Self {
            hasher: Hasher::new(algorithm),
            generation: None,
        }
    }
}

/// A writer of a session, for the length of one request.
#[derive(Debug)]
pub struct UploadWriter {
    uploads: Arc<Uploads>,
    repo: RepositoryName,
    id: UploadId,
    writer: HashingWriter,
    accepted: u64,
    proof: Proof,
    generation: Option<Uuid>,
    /// Whether the request brings all bytes of the session.
    is_whole: bool,
    /// `None` once it moved into the work that ends the request.
    held: Option<WriterGuard>,
}

/// A file that is written, and what is known of the bytes in it.
#[derive(Debug)]
struct Opened {
    partial: PartialFile,
    hasher: Hasher,
    /// What shows that the hash is that of the file's bytes.
    proof: Proof,
    /// The generation that the file is of, if it is known.
    generation: Option<Uuid>,
}

/// The upload sessions of the volume.
#[derive(Debug)]
pub(crate) struct Uploads {
    files: DurableFs,
    layout: Layout,
    pool: Pool,
    gate: Arc<WriteGate>,
    blobs: Blobs,
    locks: Arc<Locks>,
    rehash_slots: RehashSlots,
}

impl Uploads {
    pub(crate) fn new(
        files: DurableFs,
        layout: Layout,
        pool: Pool,
        gate: Arc<WriteGate>,
        blobs: Blobs,
        locks: Arc<Locks>,
    ) -> Self {
        Self {
            files,
            layout,
            pool,
            gate,
            blobs,
            locks,
            rehash_slots: RehashSlots::default(),
        }
    }

    /// Starts a session.
    pub(crate) fn create(&self, repo: &RepositoryName, started_at: &str) -> Result<UploadId> {
        let id = UploadId(Uuid::new_v4().to_string());
        // A session need not survive a crash. Its commit makes the folders of the blob durable.
        let folder = self.layout.upload(repo, id.as_str());
        files::create_dir_unsynced(self.files.volume(), &folder)?;
        files::write_unsynced(
            self.files.volume(),
            &folder.join(names::STARTED_AT),
            started_at.as_bytes(),
        )?;
        Ok(id)
    }

    /// What a session holds; `None` if there is no such session.
    pub(crate) fn status(
        &self,
        repo: &RepositoryName,
        id: &UploadId,
    ) -> Result<Option<UploadStatus>> {
        let size = self.upload_size(repo, id)?;
        Ok(size.map(|size| UploadStatus { size }))
    }

    /// Ends a session and frees its bytes at once. `false` if there was none.
    pub(crate) fn cancel(&self, repo: &RepositoryName, id: &UploadId) -> Result<bool> {
        let known = self.upload_size(repo, id)?.is_some();
        let session = self.layout.upload(repo, id.as_str());
        for _ in 0..MAX_ATTEMPTS {
            files::remove_tree(self.files.volume(), &session)?;
            // A request that breaks off at this moment may have released its file into it.
            if files::metadata(self.files.volume(), &session)?.is_none() {
                break;
            }
        }
        Ok(known)
    }

    /// Continues a session at `offset`; see `Store::upload_writer`.
    pub(crate) async fn writer(
        self: &Arc<Self>,
        repo: &RepositoryName,
        id: &UploadId,
        offset: u64,
        carried: CarriedHash,
        owner: &LockHolder,
    ) -> Result<UploadWriter> {
        let mut lock = self.lock_upload(id, owner).await?;
        let mut slot = None;
        loop {
            let (uploads, name, session) = (Arc::clone(self), repo.clone(), id.clone());
            let (free, carried) = (slot.take(), carried.clone());
            // The writer is made, and the lock kept, where the file is taken. So a caller that is
            // gone by then leaves nothing behind, and no other request uses the file in between.
            let opened = self.pool.run(move || {
                match uploads.open_upload(&name, &session, offset, carried, free) {
                    Ok(Some(opened)) => {
                        let writer = uploads.writing(name, session, opened, offset, Some(lock));
                        Ok(Ok(writer))
                    }
                    Ok(None) => Ok(Err(lock)),
                    Err(error) => {
                        lock.release_here();
                        Err(error)
                    }
                }
            });
            match opened.await? {
                Ok(writer) => return Ok(writer),
                Err(kept) => lock = kept,
            }
            slot = Some(self.rehash_slots.begin(repo).await?);
        }
    }

    /// A writer for a request that brings all bytes of a session; see
    /// `Store::whole_upload_writer`.
    pub(crate) fn whole_writer(
        self: &Arc<Self>,
        repo: &RepositoryName,
        id: &UploadId,
        algorithm: Algorithm,
    ) -> Result<UploadWriter> {
        let session = self.layout.upload(repo, id.as_str());
        let partial = PartialFile::create(&self.files, &session.join("whole"))?;
        let opened = Opened {
            partial: partial.ok_or(Error::UploadUnknown)?,
            hasher: Hasher::new(algorithm),
            proof: Proof::Hashed,
            generation: None,
        };
        let uploads = Arc::clone(self);
        Ok(uploads.writing(repo.clone(), id.clone(), opened, 0, None))
    }

    fn writing(
        self: Arc<Self>,
        repo: RepositoryName,
        id: UploadId,
        opened: Opened,
        offset: u64,
        lock: Option<Lock>,
    ) -> UploadWriter {
        let Opened {
            partial,
            hasher,
            proof,
            generation,
        } = opened;
        let (file, path) = (Arc::clone(&partial.file), partial.path.clone());
        let is_whole = lock.is_none();
        UploadWriter {
            writer: HashingWriter::new(self.pool.clone(), file, path, offset, hasher),
            held: Some(WriterGuard {
                uploads: Arc::clone(&self),
                partial,
                lock,
                when_dropped: if is_whole {
                    WhenDropped::Remove
                } else {
                    WhenDropped::Release
                },
            }),
            uploads: self,
            repo,
            id,
            accepted: offset,
            proof,
            generation,
            is_whole,
        }
    }

    /// Takes the lock of a session. A request that just ended, or whose client just broke off, may
    /// hold it for a moment.
    async fn lock_upload(&self, id: &UploadId, owner: &LockHolder) -> Result<Lock> {
        let name = format!("upload-{}", id.as_str());
        for _ in 0..MAX_LOCK_ATTEMPTS {
            if let LockAttempt::Acquired(lock) = self.locks.try_lock(&name, owner).await? {
                return Ok(lock);
            }
            tokio::time::sleep(LOCK_POLL_INTERVAL).await;
        }
        Err(Error::UploadInUse)
    }
}

impl UploadWriter {
    /// Bytes of the session, those of earlier requests included.
    pub fn offset(&self) -> u64 {
        self.accepted
    }

    /// Takes the next bytes; waits only while the volume is behind.
    pub async fn append(&mut self, bytes: Bytes) -> Result<()> {
        let length = bytes.len() as u64;
        or_lock_lost(self.writer.append(bytes).await)?;
        self.accepted += length;
        Ok(())
    }

    /// Waits until all bytes are written and synced; returns the size, and the hash with which the
    /// session continues. Nothing stays of a writer of
    /// [`Store::whole_upload_writer`](crate::Store::whole_upload_writer).
    ///
    /// # Errors
    /// [`Error::UploadUnknown`] when the session ended meanwhile, [`Error::LockLost`] when this
    /// request stalled for so long that another one continued, or an error of the volume.
    pub async fn finish(mut self) -> Result<(u64, CarriedHash)> {
        let (size, hasher) = or_lock_lost(self.writer.drain().await)?;
        if self.is_whole {
            let generation = None;
            return Ok((size, CarriedHash { hasher, generation }));
        }
        let mut held = self.held.take().ok_or(Error::Busy)?;
        let session = self.uploads.layout.upload(&self.repo, self.id.as_str());
        let generation = self.generation;
        let uploads = Arc::clone(&self.uploads);
        let generation = self.uploads.pool.run(move || {
            held.check()?;
            held.when_dropped = WhenDropped::Leave;
            let generation = uploads.release_file(&session, &held.partial, generation);
            held.release();
            generation
        });
        let generation = generation.await?;
        Ok((size, CarriedHash { hasher, generation }))
    }

    /// Commits the session's bytes as the blob `digest` of its repository and ends the session. A
    /// wrong digest ends it, too: no further byte can correct it, so the space is freed at once.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`], [`Error::UploadUnknown`] when the session ended meanwhile,
    /// [`Error::LockLost`] when this request stalled for so long that another one continued, or an
    /// error of the volume.
    pub async fn commit(mut self, digest: &Digest) -> Result<u64> {
        let (size, hasher) = or_lock_lost(self.writer.drain().await)?;
        let mut held = self.held.take().ok_or(Error::Busy)?;
        let (repo, id, digest) = (self.repo.clone(), self.id.clone(), digest.clone());
        let (proof, is_whole) = (self.proof, self.is_whole);
        let uploads = Arc::clone(&self.uploads);
        let committed = self.uploads.pool.run(move || {
            held.check()?;
            if !is_whole {
                // If the commit fails, the session continues with a copy.
                held.when_dropped = WhenDropped::Leave;
            }
            let received = (&held.partial, hasher, proof);
            let committed = uploads.commit_upload(&repo, &id, received, size, &digest);
            if committed.is_ok() {
                held.when_dropped = WhenDropped::Leave;
            }
            held.release();
            committed
        });
        committed.await
    }
}

impl Drop for UploadWriter {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.writer.when_idle(move || drop(held));
        }
    }
}

impl From<UploadId> for String {
    fn from(id: UploadId) -> Self {
        id.0
    }
}
