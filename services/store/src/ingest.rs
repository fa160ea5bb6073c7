//! Ingest of blobs from an upstream: a blob is readable while it grows, its partial file survives a
//! crash, and it becomes visible in the store only after its digest is verified.

use std::{io, path::Path, sync::Arc};

use bytes::Bytes;
use holdfast_core::digest::Digest;
use tokio::sync::watch;

use crate::{
    Error, Hasher, Layout, Lock, Pool, Progress, Result, WriteGate,
    blobs::{self, Blobs, Proof},
    buffers::Buffers,
    durable::DurableFs,
    error::absent,
    files,
    hashing_writer::HashingWriter,
    partial::{self, Found, PartialFile, hash_prefix},
    volume::VolumeFile,
};

/// The only writer of an incoming blob. Dropping it without [`BlobIngest::commit`] fails its
/// readers and keeps the partial file.
#[derive(Debug)]
pub struct BlobIngest {
    ingests: Arc<Ingests>,
    digest: Digest,
    writer: HashingWriter,
    accepted: u64,
    lock: Option<Lock>,
    partial: PartialFile,
    /// Whether others may go on with the file once this writer is gone.
    keeps: bool,
}

/// A reader of an incoming blob. Clones are cheap. The writer never waits for its readers.
#[derive(Clone, Debug)]
pub struct PartialBlob {
    digest: Digest,
    /// The size that this reader was told; other readers may have been told another one.
    claimed: Option<u64>,
    /// What lies from here on is not read before the digest is verified.
    withheld: Option<u64>,
    file: Arc<dyn VolumeFile>,
    progress: watch::Receiver<Progress>,
    pool: Pool,
    buffers: Buffers,
}

/// The incoming blobs of the volume.
#[derive(Debug)]
pub(crate) struct Ingests {
    files: DurableFs,
    layout: Layout,
    pool: Pool,
    buffers: Buffers,
    gate: Arc<WriteGate>,
    blobs: Blobs,
}

/// How often a file is looked for that others take and put to rest at the same moment.
const MAX_ATTEMPTS: usize = 8;

impl Ingests {
    pub(crate) fn new(
        files: DurableFs,
        layout: Layout,
        pool: Pool,
        buffers: Buffers,
        gate: Arc<WriteGate>,
        blobs: Blobs,
    ) -> Self {
        Self {
            files,
            layout,
            pool,
            buffers,
            gate,
            blobs,
        }
    }

    /// Opens the partial file of a blob. It keeps what an earlier attempt left, and hashes it.
    pub(crate) fn open(self: &Arc<Self>, digest: &Digest) -> Result<BlobIngest> {
        let (partial, hasher, offset) = self.open_partial(digest)?;
        let (file, path) = (Arc::clone(&partial.file), partial.path.clone());
        Ok(BlobIngest {
            ingests: Arc::clone(self),
            digest: digest.clone(),
            writer: HashingWriter::new(self.pool.clone(), file, path, offset, hasher),
            accepted: offset,
            lock: None,
            partial,
            keeps: true,
        })
    }

    fn open_partial(&self, digest: &Digest) -> Result<(PartialFile, Hasher, u64)> {
        let path = self.layout.incoming(digest);
        let hasher = Hasher::new(digest.algorithm());
        files::create_dir_unsynced(self.files.volume(), files::parent(&path)?)?;
        for _ in 0..MAX_ATTEMPTS {
            if let Some(partial) = PartialFile::take(&self.files, &path)? {
                let kept = Self::keep(&partial, hasher);
                if kept.is_err() {
                    partial.release_if_free(&self.files);
                }
                return kept.map(|(hasher, offset)| (partial, hasher, offset));
            }
            if let Found::Abandoned(abandoned) = partial::find_abandoned(&self.files, &path)? {
                let largest = abandoned
                    .first()
                    .map(|(from, size)| (from.as_path(), *size));
                let opened = self.copy_incoming(&path, hasher.clone(), largest)?;
                partial::remove_abandoned(&self.files, &abandoned);
                // Its writer put it to rest while it was copied: the copy may be short, the file is
                // not.
                if files::metadata(self.files.volume(), &path)?.is_some() {
                    opened.0.remove(&self.files);
                    continue;
                }
                return Ok(opened);
            }
        }
        Err(Error::Busy)
    }

    /// Goes on with a file that an earlier attempt put to rest.
    fn keep(partial: &PartialFile, hasher: Hasher) -> Result<(Hasher, u64)> {
        let (file, path) = (&*partial.file, &partial.path);
        let size = file.metadata().map_err(Error::io("stat", path))?.len;
        Ok((hash_prefix(file, path, hasher, size)?, size))
    }

    /// Goes on with a copy of a file whose writer did not end, or begins with nothing: where there
    /// is no such file, and where there is no room for the copy.
    fn copy_incoming(
        &self,
        path: &Path,
        hasher: Hasher,
        from: Option<(&Path, u64)>,
    ) -> Result<(PartialFile, Hasher, u64)> {
        let gone = || Error::io("create", path)(io::ErrorKind::NotFound.into());
        if let Some((from, size)) = from
            && 0 < size
            && self.gate.check_now(self.files.volume(), size).is_ok()
        {
            match PartialFile::copy(&self.files, path, from, size, hasher.clone()) {
                Err(Error::NoSpace { .. }) => {}
                copied => return copied?.ok_or_else(gone),
            }
        }
        let partial = PartialFile::create(&self.files, path)?.ok_or_else(gone)?;
        Ok((partial, hasher, 0))
    }
}

impl BlobIngest {
    /// Keeps the blob's lock until this writer is gone and its last write has ended.
    pub fn attach_lock(&mut self, lock: Lock) {
        self.lock = Some(lock);
    }

    /// Bytes taken so far, those of earlier attempts included: where the upstream's range must
    /// begin.
    pub fn offset(&self) -> u64 {
        self.accepted
    }

    /// The blob's name.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Whether what is there is all of the blob, by its digest.
    ///
    /// # Errors
    /// [`Error::LockLost`] as for [`BlobIngest::append`], or the error of an earlier write.
    pub async fn is_whole(&self) -> Result<bool> {
        let (_, hasher) = partial::or_lock_lost(self.writer.drain().await)?;
        Ok(hasher.finish() == self.digest)
    }

    /// A reader of what is there and what will come.
    pub fn reader(&self) -> PartialBlob {
        PartialBlob {
            digest: self.digest.clone(),
            claimed: None,
            withheld: None,
            file: Arc::clone(self.writer.file()),
            progress: self.writer.progress().subscribe(),
            pool: self.ingests.pool.clone(),
            buffers: self.ingests.buffers.clone(),
        }
    }

    /// Takes the next bytes; waits only while the volume is behind.
    ///
    /// # Errors
    /// [`Error::LockLost`] when another writer went on with a copy, or what the volume says.
    pub async fn append(&mut self, bytes: Bytes) -> Result<()> {
        // Before the wait: what the writer took counts, also when the caller does not wait for the
        // end.
        self.accepted += bytes.len() as u64;
        partial::or_lock_lost(self.writer.append(bytes).await)
    }

    /// Verifies the digest, syncs, and makes the blob visible on the volume. Returns its size. On a
    /// mismatch everything received is discarded, because no part of it can be trusted.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`], [`Error::LockLost`] when this writer stood still for so long that
    /// another one went on, or what the volume says.
    pub async fn commit(mut self) -> Result<u64> {
        let (size, hasher) = match partial::or_lock_lost(self.writer.drain().await) {
            // The last bytes found no room, and those before only use up the rest of it.
            Err(full @ Error::NoSpace { .. }) => {
                self.discard().await?;
                return Err(full);
            }
            drained => drained?,
        };
        let actual = hasher.finish();
        if actual != self.digest {
            let expected = self.digest.clone();
            self.discard().await?;
            return Err(Error::DigestMismatch { expected, actual });
        }
        if let Some(lock) = &self.lock {
            lock.check().await?;
        }
        // Readers of the growing copy have verified bytes. Later readers also need them durable.
        self.writer
            .progress()
            .send_replace(Progress::Complete(size));
        // If this fails, the next attempt goes on with a copy.
        self.keeps = false;
        let (partial, digest) = (self.partial.clone(), self.digest.clone());
        let ingests = Arc::clone(&self.ingests);
        self.ingests
            .pool
            .run(
                move || match ingests.blobs.commit(&partial, &digest, Proof::Hashed) {
                    Err(error)
                        if (error.is_absent() || error.is_stale())
                            && partial.is_gone(&ingests.files)? =>
                    {
                        Err(Error::LockLost)
                    }
                    committed => committed,
                },
            )
            .await?;
        Ok(size)
    }

    /// Throws away what was received, and fails the readers.
    pub async fn discard(mut self) -> Result<()> {
        self.keeps = false;
        drop(self.writer.drain().await);
        let partial = self.partial.clone();
        let ingests = Arc::clone(&self.ingests);
        self.ingests
            .pool
            .run(move || {
                let removed = absent(ingests.files.volume().remove_file(&partial.path));
                ingests.gate.forget();
                removed
                    .map(drop)
                    .map_err(Error::io("remove", &partial.path))
            })
            .await
    }
}

impl Drop for BlobIngest {
    fn drop(&mut self) {
        let lock = self.lock.take();
        if self.keeps {
            let (ingests, partial) = (Arc::clone(&self.ingests), self.partial.clone());
            self.writer.when_idle(move || {
                let pool = ingests.pool.clone();
                pool.detach(move || {
                    partial.release_if_free(&ingests.files);
                    drop(lock);
                });
            });
        } else if let Some(lock) = lock {
            self.writer.when_idle(move || drop(lock));
        }
        self.writer.progress().send_if_modified(|progress| {
            let open = matches!(progress, Progress::Growing(_));
            if open {
                *progress = Progress::Failed;
            }
            open
        });
    }
}

impl PartialBlob {
    /// The blob's name.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The same blob for a reader that was told this size, by a manifest for instance. It holds the
    /// last byte back until the digest is verified, so that a wrong body never ends cleanly, and
    /// fails when the blob turns out to have another size. Other readers notice nothing.
    #[must_use]
    pub fn claiming(self, size: Option<u64>) -> Self {
        let claimed = match *self.progress.borrow() {
            Progress::Complete(size) => Some(size),
            _ => size,
        };
        Self { claimed, ..self }
    }

    /// The same blob for a reader of the bytes before `end`. It holds the last of them back until
    /// the digest is verified: no part has a digest of its own that would tell the reader.
    #[must_use]
    pub fn up_to(self, end: u64) -> Self {
        let withheld = Some(end.saturating_sub(1));
        Self { withheld, ..self }
    }

    /// The size that this reader was told, or the blob's once it is verified.
    pub fn size(&self) -> Option<u64> {
        match (self.claimed, *self.progress.borrow()) {
            (None, Progress::Complete(size)) => Some(size),
            (claimed, _) => claimed,
        }
    }

    /// How far the blob is.
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Reads up to `limit` bytes at `offset`, waiting until there are some; empty only at the
    /// verified end.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the writer gave up, [`Error::SizeMismatch`] when the blob has
    /// another size than this reader was told: the reader's stream must end short, never
    /// cleanly.
    pub async fn read_at(&mut self, offset: u64, limit: u64) -> Result<Bytes> {
        let claimed = self.claimed;
        let last = claimed.map(|claimed| claimed.saturating_sub(1));
        let withheld = last.into_iter().chain(self.withheld).min();
        let readable = move |progress: &Progress| match *progress {
            Progress::Complete(size) => Some(Some(size)),
            Progress::Failed => Some(None),
            Progress::Growing(size) => {
                let visible = withheld.map_or(size, |withheld| size.min(withheld));
                (visible > offset).then_some(Some(visible))
            }
        };
        let seen = match self
            .progress
            .wait_for(|progress| readable(progress).is_some())
            .await
        {
            Ok(progress) => readable(&progress).flatten(),
            Err(_) => None,
        };
        let Some(end) = seen else {
            return Err(Error::Corrupt {
                digest: self.digest.clone(),
            });
        };
        if let (Some(expected), Progress::Complete(actual)) = (claimed, *self.progress.borrow())
            && expected != actual
        {
            return Err(Error::SizeMismatch { expected, actual });
        }
        blobs::read_at(
            &self.pool,
            &self.buffers,
            &self.file,
            offset,
            limit.min(end.saturating_sub(offset)),
        )
        .await
    }
}
