//! Blobs: lookup, reads, links of repositories, commits, and quarantine of damaged ones.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use holdfast_core::{digest::Digest, reference::RepositoryName};
use uuid::Uuid;

use crate::{
    Error, Hasher, Pool, READ_CHUNK_BYTES, Result, Store,
    buffers::{Buffer, Buffers},
    durable::{self, PendingFile},
    error::absent,
    links,
    partial::PartialFile,
    store::Inner,
    volume::{Metadata, VolumeFile},
};

/// What a file looked like when its content was last hashed and found sound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verified {
    inode: (u64, u64),
    size: u64,
    modified: Option<SystemTime>,
    at: Instant,
}

impl Verified {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.inode,
            size: metadata.len,
            modified: metadata.modified,
            at: Instant::now(),
        }
    }

    fn same(&self, metadata: &Metadata) -> bool {
        self.inode == metadata.inode
            && self.size == metadata.len
            && self.modified == metadata.modified
    }
}

/// What shows that bytes have the digest under which they are committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// This process hashed all of them.
    Hashed,
    /// It went on from a hash that came back from a client. That is enough to store them, not to
    /// serve them unread: the first reader of each replica hashes them.
    Carried,
}

/// Most blobs that are remembered as verified; above, the memory starts over.
const MAX_VERIFIED_BLOBS: usize = 50_000;

/// An open blob. Stays readable while it is moved or removed.
#[derive(Clone, Debug)]
pub struct BlobFile {
    digest: Digest,
    file: Arc<dyn VolumeFile>,
    metadata: Metadata,
    pool: Pool,
    buffers: Buffers,
    verified: bool,
}

impl BlobFile {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.metadata.len
    }

    /// The blob's name.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Whether this very file was hashed and found sound not long ago.
    pub fn is_verified(&self) -> bool {
        self.verified
    }

    /// [`BlobFile::read_at`], but only what the kernel has in memory; `None` when the volume has to
    /// be waited for.
    pub fn read_nonblocking(&self, offset: u64, limit: u64) -> Option<Result<Bytes>> {
        if limit == 0 {
            return Some(Ok(Bytes::new()));
        }
        read_nonblocking(&self.buffers, &*self.file, offset, limit).ok()
    }

    /// Reads up to `limit` bytes at `offset`; fewer when buffers are short; empty only at the end.
    pub async fn read_at(&self, offset: u64, limit: u64) -> Result<Bytes> {
        read_at(&self.pool, &self.buffers, &self.file, offset, limit).await
    }
}

/// Reads up to `limit` bytes of a file at `offset`, here and now where the kernel has them in
/// memory, else on the pool.
pub(crate) async fn read_at(
    pool: &Pool,
    buffers: &Buffers,
    file: &Arc<dyn VolumeFile>,
    offset: u64,
    limit: u64,
) -> Result<Bytes> {
    if limit == 0 {
        return Ok(Bytes::new());
    }
    let mut buffer = match read_nonblocking(buffers, &**file, offset, limit) {
        Ok(read) => return read,
        Err(buffer) => buffer,
    };
    let file = Arc::clone(file);
    pool.run(move || {
        let filled =
            read_into(&*file, buffer.room(), offset, true).map_err(Error::io("read", "blob"))?;
        Ok(buffer.into_bytes(filled))
    })
    .await
}

/// Reads without waiting for the volume; gives the buffer back when that cannot be.
fn read_nonblocking(
    buffers: &Buffers,
    file: &dyn VolumeFile,
    offset: u64,
    limit: u64,
) -> std::result::Result<Result<Bytes>, Buffer> {
    let mut buffer = buffers.take(limit);
    match read_into(file, buffer.room(), offset, false) {
        Ok(filled) => Ok(Ok(buffer.into_bytes(filled))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(buffer),
        Err(error) => Ok(Err(Error::io("read", "blob")(error))),
    }
}

fn read_into(file: &dyn VolumeFile, room: &mut [u8], offset: u64, wait: bool) -> io::Result<usize> {
    loop {
        match file.read_into(room, offset, wait) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl Store {
    /// Size of a blob of the volume, in whatever repository.
    pub async fn stat_blob(&self, digest: &Digest) -> Result<Option<u64>> {
        let digest = digest.clone();
        self.run(move |inner| inner.stat_blob(&digest)).await
    }

    /// Opens a blob of the volume, in whatever repository.
    pub async fn open_blob(&self, digest: &Digest) -> Result<Option<BlobFile>> {
        let digest = digest.clone();
        self.run(move |inner| inner.open_blob(&digest)).await
    }

    /// Opens a blob if the repository links it; follows a link that names another digest (an
    /// alias).
    pub async fn open_repo_blob(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<BlobFile>> {
        if let Some(found) = self.try_nonblocking(|inner| inner.open_repo_blob(repo, digest)) {
            return found;
        }
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |inner| inner.open_repo_blob(&repo, &digest))
            .await
    }

    /// Whether the repository links the blob and the bytes are there.
    pub async fn repo_has_blob(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |inner| inner.repo_has_blob(&repo, &digest))
            .await
    }

    /// Grants a repository a blob of the volume.
    pub async fn link_blob(&self, repo: &RepositoryName, digest: &Digest) -> Result<()> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |inner| inner.link_blob(&repo, &digest)).await
    }

    /// Takes a blob from a repository; the bytes stay for the sweep. `false` if it was not linked.
    pub async fn unlink_blob(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |inner| {
            inner
                .files
                .remove_file(&inner.layout.layer_link(&repo, &digest))
        })
        .await
    }

    /// Puts bytes from memory into the store as a blob.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] when the bytes have another digest.
    pub async fn put_blob(&self, digest: &Digest, bytes: Bytes) -> Result<()> {
        let digest = digest.clone();
        self.run(move |inner| inner.put_blob(&digest, &bytes)).await
    }

    /// Renews the modification time of a blob, so that garbage collection does not take it for old.
    pub async fn touch_blob(&self, digest: &Digest) -> Result<()> {
        let digest = digest.clone();
        self.run(move |inner| inner.touch_if_present(&digest).map(drop))
            .await
    }

    /// Moves content aside that was found damaged, so that the next request fills it again. `false`
    /// if it is not there any more; what has taken its place stays.
    pub async fn quarantine_blob(&self, blob: &BlobFile) -> Result<bool> {
        let (digest, found) = (blob.digest.clone(), blob.metadata);
        self.run(move |inner| inner.quarantine_blob(&digest, &found))
            .await
    }

    /// Remembers that this very file was hashed and found sound.
    pub fn remember_verified(&self, blob: &BlobFile) {
        self.inner.remember_verified(&blob.digest, &blob.metadata);
    }

    /// Hashes a blob. Damaged content is quarantined.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub async fn verify_blob(&self, digest: &Digest) -> Result<Option<u64>> {
        let digest = digest.clone();
        self.run(move |inner| {
            // Another machine may replace it meanwhile.
            durable::retry_stale(&inner.layout.blob(&digest), || {
                match inner.open_blob(&digest)? {
                    None => Ok(None),
                    Some(blob) if inner.is_intact(&blob)? => Ok(Some(blob.size())),
                    Some(blob) => {
                        inner.quarantine_blob(&digest, &blob.metadata)?;
                        let digest = digest.clone();
                        Err(Error::Corrupt { digest })
                    }
                }
            })
        })
        .await
    }
}

impl Inner {
    pub(crate) fn stat_blob(&self, digest: &Digest) -> Result<Option<u64>> {
        let path = self.layout.blob(digest);
        let metadata = durable::metadata(self.volume(), &path)?;
        Ok(metadata
            .filter(Metadata::is_file)
            .map(|metadata| metadata.len))
    }

    fn open_repo_blob(&self, repo: &RepositoryName, digest: &Digest) -> Result<Option<BlobFile>> {
        match links::read(self.volume(), &self.layout.layer_link(repo, digest))? {
            Some(target) => self.open_blob(&target),
            None => Ok(None),
        }
    }

    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<Option<BlobFile>> {
        let path = self.layout.blob(digest);
        let found = durable::retry_stale(&path, || {
            let Some(file) = durable::open_read(self.volume(), &path)? else {
                return Ok(None);
            };
            let metadata = file.metadata().map_err(Error::io("stat", &path))?;
            Ok(Some((file, metadata)))
        })?;
        let Some((file, metadata)) = found else {
            return Ok(None);
        };
        if !metadata.is_file() {
            return Ok(None);
        }
        let verified = self.is_verified(digest, &metadata);
        Ok(Some(BlobFile {
            digest: digest.clone(),
            // It is read later, by whomever.
            file: file.blocking_handle().unwrap_or(file),
            metadata,
            pool: self.pool.clone(),
            buffers: self.buffers.clone(),
            verified,
        }))
    }

    pub(crate) fn repo_has_blob(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        match links::read(self.volume(), &self.layout.layer_link(repo, digest))? {
            Some(target) => Ok(self.stat_blob(&target)?.is_some()),
            None => Ok(false),
        }
    }

    pub(crate) fn link_blob(&self, repo: &RepositoryName, digest: &Digest) -> Result<()> {
        let path = self.layout.layer_link(repo, digest);
        match links::read_durable(&self.files, &path)? {
            Some(_) => Ok(()),
            None => links::write(&self.files, &path, digest),
        }
    }

    pub(crate) fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let actual = Hasher::digest(digest.algorithm(), bytes);
        if actual != *digest {
            return Err(Error::DigestMismatch {
                expected: digest.clone(),
                actual,
            });
        }
        if self.reuse_if_intact(digest)? {
            return Ok(());
        }
        self.files.write_file(&self.layout.blob(digest), bytes)
    }

    /// Makes the bytes of `partial` the blob, for good; `size` and the digest were checked by the
    /// caller. Sound content that is there already wins: renaming over it would break its
    /// readers on other machines.
    pub(crate) fn commit_blob(
        &self,
        partial: &PartialFile,
        digest: &Digest,
        proof: Proof,
    ) -> Result<()> {
        self.commit_blob_and(partial, digest, proof, None)
    }

    /// [`Inner::commit_blob`]; the bytes of a link that is to be named afterwards go to the disk
    /// together with those of the blob: a journal takes one commit for both.
    pub(crate) fn commit_blob_and(
        &self,
        partial: &PartialFile,
        digest: &Digest,
        proof: Proof,
        link: Option<&PendingFile>,
    ) -> Result<()> {
        let source = &partial.path;
        if self.reuse_if_intact(digest)? {
            absent(self.volume().remove_file(source)).map_err(Error::io("remove", source))?;
            return link.map_or(Ok(()), PendingFile::sync);
        }
        let path = self.layout.blob(digest);
        // Before the sync of the bytes: on a journal the folder's own sync then finds nothing to
        // do.
        durable::create_dir_unsynced(self.volume(), durable::parent(&path)?)?;
        let (bytes, link) = match link {
            Some(link) => self.join_blocking(|| partial.file.sync(), || link.sync()),
            None => (partial.file.sync(), Ok(Ok(()))),
        };
        if let Err(error) = bytes {
            // What that did not write counts as written afterwards, so nobody may go on with this
            // file.
            partial.remove(self);
            return Err(Error::io("sync", source)(error));
        }
        link??;
        let metadata = partial.file.metadata().map_err(Error::io("stat", source))?;
        self.files.install(&metadata, source, &path)?;
        if proof == Proof::Hashed {
            self.remember_verified(digest, &metadata);
        }
        Ok(())
    }

    /// Both at once, where the volume takes its time.
    fn join_blocking<A, B: Send>(
        &self,
        one: impl FnOnce() -> A,
        other: impl FnOnce() -> B + Send,
    ) -> (A, Result<B>) {
        if !self.volume().is_blocking() {
            return (one(), Ok(other()));
        }
        std::thread::scope(|scope| {
            let other = scope.spawn(other);
            let one = one();
            (one, other.join().map_err(|_| Error::Busy))
        })
    }

    /// Whether sound content is there; it is touched, and stays. Other content is moved aside: a
    /// push heals. What was never hashed as a whole is hashed now, so that nothing wrong is
    /// preferred to what is right, whatever its size.
    fn reuse_if_intact(&self, digest: &Digest) -> Result<bool> {
        durable::retry_stale(&self.layout.blob(digest), || {
            let Some(blob) = self.open_blob(digest)? else {
                return Ok(false);
            };
            if blob.verified || self.is_intact(&blob)? {
                return self.touch_if_present(digest);
            }
            self.quarantine_blob(digest, &blob.metadata)?;
            Ok(false)
        })
    }

    pub(crate) fn is_intact(&self, blob: &BlobFile) -> Result<bool> {
        let mut hasher = Hasher::new(blob.digest.algorithm());
        let mut buffer = Vec::with_capacity(READ_CHUNK_BYTES);
        let mut offset = 0;
        loop {
            buffer.clear();
            let read = durable::read_some(&*blob.file, &mut buffer, offset)
                .map_err(|error| Error::io("read", self.layout.blob(&blob.digest))(error))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer);
            offset += read as u64;
        }
        let sound = hasher.finish() == blob.digest;
        if sound {
            self.remember_verified(&blob.digest, &blob.metadata);
        }
        Ok(sound)
    }

    /// Renews the modification time of content and makes sure that it stays; `false` if it is gone.
    pub(crate) fn touch_if_present(&self, digest: &Digest) -> Result<bool> {
        let path = self.layout.blob(digest);
        let Some(before) = durable::metadata(self.volume(), &path)? else {
            return Ok(false);
        };
        self.files.ensure_durable(&path, &before)?;
        if absent(self.volume().touch(&path))
            .map_err(Error::io("touch", &path))?
            .is_none()
        {
            return Ok(false);
        }
        let Some(after) = durable::metadata(self.volume(), &path)? else {
            return Ok(false);
        };
        self.files.update_identity(&path, &before, &after);
        // Another file may have taken the place of the one that was verified.
        if after.inode == before.inode
            && after.len == before.len
            && let Some(entry) = self.verified().get_mut(digest)
            && entry.same(&before)
        {
            // Nothing was hashed: it is believed no longer than before.
            entry.modified = after.modified;
        }
        Ok(true)
    }

    /// Moves aside the content that was found damaged, not what has taken its place since.
    pub(crate) fn quarantine_blob(&self, digest: &Digest, found: &Metadata) -> Result<bool> {
        let path = self.layout.blob(digest);
        let aside = self.layout.quarantine(digest, &Uuid::new_v4().to_string());
        // Also where it cannot be moved: it is not what it was taken for.
        self.verified().remove(digest);
        let is_moved = self.files.move_known(found, &path, &aside)?;
        if is_moved {
            tracing::warn!(image.digest = %digest, "damaged content was moved aside");
        }
        Ok(is_moved)
    }

    fn is_verified(&self, digest: &Digest, metadata: &Metadata) -> bool {
        self.verified()
            .get(digest)
            .is_some_and(|entry| entry.same(metadata) && entry.at.elapsed() < self.verified_for)
    }

    fn remember_verified(&self, digest: &Digest, metadata: &Metadata) {
        let mut verified = self.verified();
        if verified.len() >= MAX_VERIFIED_BLOBS {
            verified.clear();
        }
        verified.insert(digest.clone(), Verified::of(metadata));
    }

    fn verified(&self) -> MutexGuard<'_, HashMap<Digest, Verified>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
