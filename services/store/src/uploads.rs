//! Upload sessions, in distribution's folders. A session's truth is its file's size; whoever
//! continues it says at which offset.
//!
//! A hash of a session's first bytes travels through the client ([`CarriedHash`]), so that no chunk
//! is read again. It is the truth about the bytes that it was taken over, and says nothing of those
//! that are in the file now: a client may send an older state again, with other bytes. So it names
//! a **generation**: a second name, below `hashstates`, of the very file. The name is removed, for
//! good, before bytes that somebody acknowledged are cut off. A hash whose generation is gone, or
//! names another file, is not believed, and the file is hashed from its start. Distribution never
//! looks at that name, and removes it with the session; a Holdfast that knows no generations
//! removes all of `hashstates` before it cuts.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};
use uuid::Uuid;

use crate::{
    Error, Hasher, Lock, LockAttempt, LockHolder, Result, Store,
    blobs::Proof,
    durable,
    hashing_writer::HashingWriter,
    partial::{PartialFile, or_lock_lost},
};

mod file;
mod guard;
mod purge;
mod rehash_slots;

use file::MAX_ATTEMPTS;
use guard::{WhenDropped, WriterGuard};
pub(crate) use rehash_slots::RehashSlots;

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

/// How often, and after which pause, a session's lock is asked for.
const MAX_LOCK_ATTEMPTS: usize = 60;
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
    /// No hash at all: what is in the file is hashed.
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
    store: Store,
    repo: RepositoryName,
    id: UploadId,
    writer: HashingWriter,
    accepted: u64,
    proof: Proof,
    generation: Option<Uuid>,
    /// Whether the request brings all bytes of the session.
    is_whole: bool,
    /// `None` once it went with the work that ends the request.
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

impl Store {
    /// Starts a session.
    pub async fn create_upload(&self, repo: &RepositoryName, started_at: &str) -> Result<UploadId> {
        let (repo, started_at) = (repo.clone(), started_at.to_owned());
        self.run(move |inner| {
            let id = UploadId(Uuid::new_v4().to_string());
            // A session need not survive; what is made of it makes its own folders durable.
            let folder = inner.layout.upload(&repo, id.as_str());
            durable::create_dir_unsynced(inner.volume(), &folder)?;
            durable::write_unsynced(
                inner.volume(),
                &folder.join("startedat"),
                started_at.as_bytes(),
            )?;
            Ok(id)
        })
        .await
    }

    /// What a session holds; `None` if there is no such session.
    pub async fn upload_status(
        &self,
        repo: &RepositoryName,
        id: &UploadId,
    ) -> Result<Option<UploadStatus>> {
        let (repo, id) = (repo.clone(), id.clone());
        self.run(move |inner| {
            inner
                .upload_size(&repo, &id)
                .map(|size| size.map(|size| UploadStatus { size }))
        })
        .await
    }

    /// Ends a session and frees its bytes at once. `false` if there was none.
    pub async fn cancel_upload(&self, repo: &RepositoryName, id: &UploadId) -> Result<bool> {
        let (repo, id) = (repo.clone(), id.clone());
        self.run(move |inner| {
            let known = inner.upload_size(&repo, &id)?.is_some();
            let session = inner.layout.upload(&repo, id.as_str());
            for _ in 0..MAX_ATTEMPTS {
                durable::remove_tree(inner.volume(), &session)?;
                // A request that breaks off at this moment may have put its file to rest.
                if durable::metadata(inner.volume(), &session)?.is_none() {
                    break;
                }
            }
            Ok(known)
        })
        .await
    }

    /// Continues a session at `offset`. Bytes behind it are cut off: they come from an attempt
    /// whose reply was lost. The file is hashed again unless `carried` is the hash of the bytes
    /// before the offset, of the file's own generation.
    ///
    /// # Errors
    /// [`Error::UploadUnknown`], [`Error::UploadInUse`], [`Error::OffsetMismatch`] when `offset` is
    /// behind the end.
    pub async fn upload_writer(
        &self,
        repo: &RepositoryName,
        id: &UploadId,
        offset: u64,
        carried: CarriedHash,
        owner: &LockHolder,
    ) -> Result<UploadWriter> {
        let mut lock = self.lock_upload(id, owner).await?;
        let mut reading = None;
        loop {
            let (store, name, session) = (self.clone(), repo.clone(), id.clone());
            let (place, carried) = (reading.take(), carried.clone());
            // The writer is made, and the lock kept, where the file is taken: a caller that is gone
            // by then leaves nothing behind, and nobody else begins with the file before.
            let opened = self.run(move |inner| {
                match inner.open_upload(&name, &session, offset, carried, place) {
                    Ok(Some(opened)) => {
                        let writer = store.writing(name, session, opened, offset, Some(lock));
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
            reading = Some(self.inner.rehash_slots.begin(repo).await?);
        }
    }

    fn writing(
        self,
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
            writer: HashingWriter::new(self.inner.pool.clone(), file, path, offset, hasher),
            held: Some(WriterGuard {
                inner: Arc::clone(&self.inner),
                partial,
                lock,
                when_dropped: if is_whole {
                    WhenDropped::Remove
                } else {
                    WhenDropped::Release
                },
            }),
            store: self,
            repo,
            id,
            accepted: offset,
            proof,
            generation,
            is_whole,
        }
    }

    /// A writer for a request that brings all bytes of a session, to be committed at the end. It
    /// needs no lock, because what the session held is of no use any more, and what came is
    /// thrown away with the writer unless it is committed.
    ///
    /// # Errors
    /// [`Error::UploadUnknown`], or what the volume says.
    pub async fn whole_upload_writer(
        &self,
        repo: &RepositoryName,
        id: &UploadId,
        algorithm: Algorithm,
    ) -> Result<UploadWriter> {
        let (store, repo, id) = (self.clone(), repo.clone(), id.clone());
        self.run(move |inner| {
            let session = inner.layout.upload(&repo, id.as_str());
            let partial = PartialFile::create(inner, &session.join("whole"))?;
            let opened = Opened {
                partial: partial.ok_or(Error::UploadUnknown)?,
                hasher: Hasher::new(algorithm),
                proof: Proof::Hashed,
                generation: None,
            };
            Ok(store.writing(repo, id, opened, 0, None))
        })
        .await
    }

    /// The session's lock. A request that just ended, or whose client just broke off, may still
    /// hold it for a moment.
    async fn lock_upload(&self, id: &UploadId, owner: &LockHolder) -> Result<Lock> {
        let name = format!("upload-{}", id.as_str());
        for _ in 0..MAX_LOCK_ATTEMPTS {
            if let LockAttempt::Acquired(lock) = self.try_lock(&name, owner).await? {
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

    /// Waits until everything is on the volume and synced; returns the size, and the hash with
    /// which the session goes on there. For a session that goes on; of
    /// [`Store::whole_upload_writer`] nothing stays.
    ///
    /// # Errors
    /// [`Error::UploadUnknown`] when somebody ended the session meanwhile, [`Error::LockLost`] when
    /// this request stood still for so long that another one went on, or what the volume says.
    pub async fn finish(mut self) -> Result<(u64, CarriedHash)> {
        let (size, hasher) = or_lock_lost(self.writer.drain().await)?;
        if self.is_whole {
            let generation = None;
            return Ok((size, CarriedHash { hasher, generation }));
        }
        let mut held = self.held.take().ok_or(Error::Busy)?;
        let session = self.store.inner.layout.upload(&self.repo, self.id.as_str());
        let generation = self.generation;
        let generation = self.store.run(move |inner| {
            held.check()?;
            held.when_dropped = WhenDropped::Leave;
            let generation = inner.release_file(&session, &held.partial, generation);
            held.release();
            generation
        });
        let generation = generation.await?;
        Ok((size, CarriedHash { hasher, generation }))
    }

    /// Makes the session's bytes the blob `digest` of its repository and ends the session. A wrong
    /// digest ends it too: nothing can make those bytes right, so their room is freed at once.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`], [`Error::UploadUnknown`] when somebody ended the session
    /// meanwhile, [`Error::LockLost`] when this request stood still for so long that another
    /// one went on, or what the volume says.
    pub async fn commit(mut self, digest: &Digest) -> Result<u64> {
        let (size, hasher) = or_lock_lost(self.writer.drain().await)?;
        let mut held = self.held.take().ok_or(Error::Busy)?;
        let (repo, id, digest) = (self.repo.clone(), self.id.clone(), digest.clone());
        let (proof, is_whole) = (self.proof, self.is_whole);
        let committed = self.store.run(move |inner| {
            held.check()?;
            if !is_whole {
                // If the commit fails, the session goes on with a copy.
                held.when_dropped = WhenDropped::Leave;
            }
            let received = (&held.partial, hasher, proof);
            let committed = inner.commit_upload(&repo, &id, received, size, &digest);
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
