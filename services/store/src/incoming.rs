//! Blobs that arrive from an upstream: they grow, are read while they grow, survive a crash, and become visible only when verified.

use std::{io, sync::Arc};

use bytes::Bytes;
use holdfast_core::digest::Digest;
use tokio::sync::watch;

use crate::{
    Error, Hasher, Lock, Pool, Progress, READ_CHUNK_BYTES, Result, Store, atomic, blobs,
    buffers::Buffers, error::absent, sink::Sink, volume::VolumeFile,
};

/// The one writer of a blob that arrives. Dropped without [`Incoming::commit`] it fails its readers and keeps what it has.
#[derive(Debug)]
pub struct Incoming {
    store: Store,
    digest: Digest,
    sink: Sink,
    accepted: u64,
    lock: Option<Lock>,
}

/// A reader's view of a blob that arrives. Clones are cheap; the writer neither waits for readers nor knows of them.
#[derive(Clone, Debug)]
pub struct GrowingBlob {
    digest: Digest,
    /// The size that this reader was told; other readers may have been told another one.
    claimed: Option<u64>,
    file: Arc<dyn VolumeFile>,
    progress: watch::Receiver<Progress>,
    pool: Pool,
    buffers: Buffers,
}

impl Store {
    /// Opens the growing file of a blob, keeping and hashing again what an earlier attempt left. The
    /// caller holds the blob's lock: there is one writer.
    ///
    /// No size is given here, because only the digest proves one: whoever knows a size from a manifest
    /// or a header compares it with what arrives, and readers give theirs to
    /// [`GrowingBlob::claiming`].
    pub async fn incoming(&self, digest: &Digest) -> Result<Incoming> {
        let wanted = digest.clone();
        let (path, file, offset, hasher) = self
            .run(move |inner| {
                let path = inner.layout.incoming(&wanted);
                let folder = atomic::parent(&path)?;
                atomic::create_dir_plain(inner.volume(), folder)?;
                let file = atomic::open_write(inner.volume(), &path, true)?
                    .ok_or_else(|| Error::io("create", &path)(io::ErrorKind::NotFound.into()))?;
                let size = file.metadata().map_err(Error::io("stat", &path))?.len;
                let hasher = hash_prefix(&*file, Hasher::new(wanted.algorithm()), size)
                    .map_err(Error::io("read", &path))?;
                Ok((path, file, size, hasher))
            })
            .await?;
        let sink = Sink::new(self.inner.pool.clone(), file, path, offset, hasher);
        Ok(Incoming {
            store: self.clone(),
            digest: digest.clone(),
            sink,
            accepted: offset,
            lock: None,
        })
    }
}

impl Incoming {
    /// Keeps the blob's lock until this writer is gone and its last write has ended.
    pub fn hold(&mut self, lock: Lock) {
        self.lock = Some(lock);
    }

    /// Bytes taken so far, those of earlier attempts included: where the upstream's range must begin.
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
    /// What the volume said to a write before.
    pub async fn is_whole(&self) -> Result<bool> {
        let (_, hasher) = self.sink.drain().await?;
        Ok(hasher.finish() == self.digest)
    }

    /// A reader of what is there and what will come.
    pub fn reader(&self) -> GrowingBlob {
        GrowingBlob {
            digest: self.digest.clone(),
            claimed: None,
            file: Arc::clone(self.sink.file()),
            progress: self.sink.progress().subscribe(),
            pool: self.store.inner.pool.clone(),
            buffers: self.store.inner.buffers.clone(),
        }
    }

    /// Takes the next bytes; waits only while the volume is behind.
    ///
    /// # Errors
    /// What the volume says.
    pub async fn append(&mut self, bytes: Bytes) -> Result<()> {
        // Before the wait: what the sink took counts, also when the caller does not wait for the end.
        self.accepted += bytes.len() as u64;
        self.sink.append(bytes).await
    }

    /// Verifies the digest, syncs, and makes the blob visible on the volume. Returns its size. On a mismatch everything received is
    /// thrown away, because no part of it can be trusted.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`], or what the volume says.
    pub async fn commit(self) -> Result<u64> {
        let (size, hasher) = self.sink.drain().await?;
        let actual = hasher.finish();
        if actual != self.digest {
            let expected = self.digest.clone();
            self.discard().await?;
            return Err(Error::DigestMismatch { expected, actual });
        }
        if let Some(lock) = &self.lock {
            lock.check().await?;
        }
        // Who reads along has verified bytes; that they will survive is for those who come later.
        self.sink.progress().send_replace(Progress::Complete(size));
        let (file, digest) = (Arc::clone(self.sink.file()), self.digest.clone());
        self.store
            .run(move |inner| {
                let path = inner.layout.incoming(&digest);
                inner.commit_blob(&*file, &path, &digest, size)
            })
            .await?;
        Ok(size)
    }

    /// Throws away what was received, and fails the readers.
    pub async fn discard(self) -> Result<()> {
        drop(self.sink.drain().await);
        let digest = self.digest.clone();
        self.store
            .run(move |inner| {
                let path = inner.layout.incoming(&digest);
                absent(inner.volume().remove_file(&path))
                    .map(drop)
                    .map_err(Error::io("remove", path))
            })
            .await
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take() {
            self.sink.when_idle(move || drop(lock));
        }
        self.sink.progress().send_if_modified(|progress| {
            let open = matches!(progress, Progress::Growing(_));
            if open {
                *progress = Progress::Failed;
            }
            open
        });
    }
}

impl GrowingBlob {
    /// The blob's name.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The same blob for a reader that was told this size, by a manifest for instance. It holds the
    /// last byte back until the digest is verified, so that a wrong body never ends cleanly, and fails
    /// when the blob turns out to have another size. Other readers notice nothing.
    #[must_use]
    pub fn claiming(self, size: Option<u64>) -> Self {
        let claimed = match *self.progress.borrow() {
            Progress::Complete(size) => Some(size),
            _ => size,
        };
        Self { claimed, ..self }
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

    /// Reads up to `limit` bytes at `offset`, waiting until there are some; empty only at the verified end.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the writer gave up, [`Error::SizeMismatch`] when the blob has another size
    /// than this reader was told: the reader's stream must end short, never cleanly.
    pub async fn read_at(&mut self, offset: u64, limit: u64) -> Result<Bytes> {
        let claimed = self.claimed;
        let readable = move |progress: &Progress| match *progress {
            Progress::Complete(size) => Some(Some(size)),
            Progress::Failed => Some(None),
            Progress::Growing(size) => {
                let visible = claimed.map_or(size, |claimed| size.min(claimed.saturating_sub(1)));
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

/// Hashes the first `size` bytes of a file.
pub(crate) fn hash_prefix(
    file: &dyn VolumeFile,
    mut hasher: Hasher,
    size: u64,
) -> io::Result<Hasher> {
    let mut buffer = Vec::new();
    let mut offset = 0;
    while offset < size {
        let want = usize::try_from(size - offset)
            .unwrap_or(usize::MAX)
            .min(READ_CHUNK_BYTES);
        buffer.clear();
        buffer.reserve_exact(want);
        if atomic::read_some(file, &mut buffer, offset)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The spare room may be larger than asked for.
        buffer.truncate(want);
        hasher.update(&buffer);
        offset += buffer.len() as u64;
    }
    Ok(hasher)
}
