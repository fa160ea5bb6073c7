//! Blobs: lookup, links of repositories, quarantine of damaged ones. Knows nothing of manifests.

use std::sync::Arc;

use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};
use uuid::Uuid;

use crate::{
    Error, Hasher, Layout, Pool, READ_CHUNK_BYTES, Result, buffers::Buffers, durable::DurableFs,
    error::absent, files, links, volume::Metadata,
};

mod commit;
mod file;
mod verified;

pub use file::BlobFile;
pub(crate) use file::read_at;
pub(crate) use verified::VerifiedBlobs;

/// What shows that bytes have the digest under which they are committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// This process hashed all of them.
    Hashed,
    /// It went on from a hash that came back from a client. That is enough to store them, not to
    /// serve them unread: the first reader of each replica hashes them.
    Carried,
}

/// The blobs of the volume, and the links that grant them to repositories.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    files: DurableFs,
    layout: Layout,
    pool: Pool,
    buffers: Buffers,
    verified: Arc<VerifiedBlobs>,
}

impl Blobs {
    pub(crate) fn new(
        files: DurableFs,
        layout: Layout,
        pool: Pool,
        buffers: Buffers,
        verified: Arc<VerifiedBlobs>,
    ) -> Self {
        Self {
            files,
            layout,
            pool,
            buffers,
            verified,
        }
    }

    /// The size of a blob; `None` if it does not exist.
    pub(crate) fn stat(&self, digest: &Digest) -> Result<Option<u64>> {
        let path = self.layout.blob(digest);
        let metadata = files::metadata(self.files.volume(), &path)?;
        Ok(metadata
            .filter(Metadata::is_file)
            .map(|metadata| metadata.len))
    }

    /// Opens a blob that the repository links. The link may name another digest (an alias).
    pub(crate) fn open_linked(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<BlobFile>> {
        match links::read(self.files.volume(), &self.layout.layer_link(repo, digest))? {
            Some(target) => self.open(&target),
            None => Ok(None),
        }
    }

    /// Opens a blob, whichever repository links it.
    pub(crate) fn open(&self, digest: &Digest) -> Result<Option<BlobFile>> {
        let path = self.layout.blob(digest);
        let found = files::retry_stale(&path, || {
            let Some(file) = files::open_read(self.files.volume(), &path)? else {
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
        let verified = self.verified.contains(digest, &metadata);
        Ok(Some(BlobFile {
            digest: digest.clone(),
            // It is read later, perhaps by a caller that may block.
            file: file.blocking_handle().unwrap_or(file),
            metadata,
            pool: self.pool.clone(),
            buffers: self.buffers.clone(),
            verified,
        }))
    }

    /// Whether the repository links the blob and its bytes exist.
    pub(crate) fn is_linked(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        match links::read(self.files.volume(), &self.layout.layer_link(repo, digest))? {
            Some(target) => Ok(self.stat(&target)?.is_some()),
            None => Ok(false),
        }
    }

    /// Links a blob of the volume to a repository.
    pub(crate) fn link(&self, repo: &RepositoryName, digest: &Digest) -> Result<()> {
        let path = self.layout.layer_link(repo, digest);
        match links::read_durable(&self.files, &path)? {
            Some(_) => Ok(()),
            None => links::write(&self.files, &path, digest),
        }
    }

    /// Hashes a blob; `true` if its bytes have its digest.
    pub(crate) fn is_intact(&self, blob: &BlobFile) -> Result<bool> {
        let mut hasher = Hasher::new(blob.digest.algorithm());
        let mut buffer = Vec::with_capacity(READ_CHUNK_BYTES);
        let mut offset = 0;
        loop {
            buffer.clear();
            let read = files::read_some(&*blob.file, &mut buffer, offset)
                .map_err(|error| Error::io("read", self.layout.blob(&blob.digest))(error))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer);
            offset += read as u64;
        }
        let sound = hasher.finish() == blob.digest;
        if sound {
            self.verified.insert(&blob.digest, &blob.metadata);
        }
        Ok(sound)
    }

    /// Renews the modification time of content and makes sure that it stays; `false` if it is gone.
    pub(crate) fn touch_if_present(&self, digest: &Digest) -> Result<bool> {
        let path = self.layout.blob(digest);
        let Some(before) = files::metadata(self.files.volume(), &path)? else {
            return Ok(false);
        };
        self.files.ensure_durable(&path, &before)?;
        if absent(self.files.volume().touch(&path))
            .map_err(Error::io("touch", &path))?
            .is_none()
        {
            return Ok(false);
        }
        let Some(after) = files::metadata(self.files.volume(), &path)? else {
            return Ok(false);
        };
        self.files.update_identity(&path, &before, &after);
        self.verified.touched(digest, &before, &after);
        Ok(true)
    }

    /// Touches those of the blobs that exist.
    pub(crate) fn touch_all(&self, digests: &[Digest]) -> Result<()> {
        for digest in digests {
            self.touch_if_present(digest)?;
        }
        Ok(())
    }

    /// Moves aside the content that was found damaged, not what has taken its place since.
    pub(crate) fn quarantine(&self, digest: &Digest, found: &Metadata) -> Result<bool> {
        let path = self.layout.blob(digest);
        let aside = self.layout.quarantine(digest, &Uuid::new_v4().to_string());
        // Also where it cannot be moved: it is not what it was taken for.
        self.verified.remove(digest);
        let is_moved = self.files.move_known(found, &path, &aside)?;
        if is_moved {
            tracing::warn!(image.digest = %digest, "damaged content was moved aside");
        }
        Ok(is_moved)
    }

    /// Removes the link of a repository to a blob. `false` if there was none.
    pub(crate) fn unlink(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        self.files
            .remove_file(&self.layout.layer_link(repo, digest))
    }

    /// Records that this very file was hashed and found intact.
    pub(crate) fn remember_verified(&self, blob: &BlobFile) {
        self.verified.insert(&blob.digest, &blob.metadata);
    }

    /// Quarantines the content of an open blob, unless other content took its place.
    pub(crate) fn quarantine_open(&self, blob: &BlobFile) -> Result<bool> {
        self.quarantine(&blob.digest, &blob.metadata)
    }

    /// Hashes a blob and quarantines it when it is damaged. Returns its size.
    pub(crate) fn verify(&self, digest: &Digest) -> Result<Option<u64>> {
        // Another machine may replace it meanwhile.
        files::retry_stale(&self.layout.blob(digest), || match self.open(digest)? {
            None => Ok(None),
            Some(blob) if self.is_intact(&blob)? => Ok(Some(blob.size())),
            Some(blob) => {
                self.quarantine_open(&blob)?;
                let digest = digest.clone();
                Err(Error::Corrupt { digest })
            }
        })
    }

    /// The blobs of one 256th of the names of an algorithm, in order. `part` is the first byte of
    /// the digest.
    pub(crate) fn list_part(&self, algorithm: Algorithm, part: u8) -> Result<Vec<Digest>> {
        let folder = self
            .layout
            .blobs()
            .join(algorithm.as_str())
            .join(format!("{part:02x}"));
        let names = links::names(self.files.volume(), &folder)?;
        Ok(names
            .iter()
            .filter_map(|hex| Digest::parse(&format!("{algorithm}:{hex}")).ok())
            .collect())
    }
}
