//! Commits of blobs: bytes that were verified get their final name, durably.

use holdfast_core::digest::Digest;

use super::{Blobs, Proof};
use crate::{
    Error, Hasher, Result, durable::PendingFile, error::absent, files, partial::PartialFile,
    volume::Volume,
};

impl Blobs {
    /// Stores bytes from memory as a blob.
    pub(crate) fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
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
    pub(crate) fn commit(
        &self,
        partial: &PartialFile,
        digest: &Digest,
        proof: Proof,
    ) -> Result<()> {
        self.commit_with_link(partial, digest, proof, None)
    }

    /// [`Blobs::commit`]; the bytes of a link that is to be named afterwards go to the disk
    /// together with those of the blob: a journal takes one commit for both.
    pub(crate) fn commit_with_link(
        &self,
        partial: &PartialFile,
        digest: &Digest,
        proof: Proof,
        link: Option<&PendingFile>,
    ) -> Result<()> {
        let source = &partial.path;
        if self.reuse_if_intact(digest)? {
            absent(self.files.volume().remove_file(source)).map_err(Error::io("remove", source))?;
            return link.map_or(Ok(()), PendingFile::sync);
        }
        let path = self.layout.blob(digest);
        // Before the sync of the bytes: on a journal the folder's own sync then finds nothing to
        // do.
        files::create_dir_unsynced(self.files.volume(), files::parent(&path)?)?;
        let (bytes, link) = match link {
            Some(link) => {
                join_blocking(self.files.volume(), || partial.file.sync(), || link.sync())
            }
            None => (partial.file.sync(), Ok(Ok(()))),
        };
        if let Err(error) = bytes {
            // What that did not write counts as written afterwards, so no writer may go on with
            // this file.
            partial.remove(&self.files);
            return Err(Error::io("sync", source)(error));
        }
        link??;
        let metadata = partial.file.metadata().map_err(Error::io("stat", source))?;
        self.files.install(&metadata, source, &path)?;
        if proof == Proof::Hashed {
            self.verified.insert(digest, &metadata);
        }
        Ok(())
    }

    /// Whether sound content is there; it is touched, and stays. Other content is moved aside: a
    /// push heals. What was never hashed as a whole is hashed now, so that nothing wrong is
    /// preferred to what is right, whatever its size.
    fn reuse_if_intact(&self, digest: &Digest) -> Result<bool> {
        files::retry_stale(&self.layout.blob(digest), || {
            let Some(blob) = self.open(digest)? else {
                return Ok(false);
            };
            if blob.verified || self.is_intact(&blob)? {
                return self.touch_if_present(digest);
            }
            self.quarantine(digest, &blob.metadata)?;
            Ok(false)
        })
    }
}

/// Both at once, where the volume takes its time.
fn join_blocking<A, B: Send>(
    volume: &dyn Volume,
    one: impl FnOnce() -> A,
    other: impl FnOnce() -> B + Send,
) -> (A, Result<B>) {
    if !volume.is_blocking() {
        return (one(), Ok(other()));
    }
    std::thread::scope(|scope| {
        let other = scope.spawn(other);
        let one = one();
        (one, other.join().map_err(|_| Error::Busy))
    })
}
