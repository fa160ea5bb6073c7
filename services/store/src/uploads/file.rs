//! A session's file: who may write it, and which hash of its bytes is believed.

use std::path::{Path, PathBuf};

use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};
use uuid::Uuid;

use super::{CarriedHash, Opened, UploadId, Uploads, rehash_slots::RehashSlot};
use crate::{
    Error, Hasher, Result,
    blobs::Proof,
    files,
    layout::names,
    links,
    partial::{self, Found, PartialFile, hash_prefix},
    volume::Metadata,
};

/// How often a request looks for a session's file that others take and release at the same time.
pub(super) const MAX_ATTEMPTS: usize = 8;

impl Uploads {
    /// Takes a session's file at `offset`. `None` when its bytes must be hashed again and no slot
    /// for that was given or is free; the file is then where it was.
    pub(super) fn open_upload(
        &self,
        repo: &RepositoryName,
        id: &UploadId,
        offset: u64,
        carried: CarriedHash,
        place: Option<RehashSlot>,
    ) -> Result<Option<Opened>> {
        let place = || place.or_else(|| self.rehash_slots.try_begin(repo));
        let session = self.layout.upload(repo, id.as_str());
        let data = session.join(names::DATA);
        for _ in 0..MAX_ATTEMPTS {
            if let Some(partial) = PartialFile::take(&self.files, &data)? {
                let opened = self.resume(&session, &partial, offset, carried, place);
                if let Err(error) = &opened
                    && error.is_stale()
                    && partial.is_gone(&self.files)?
                {
                    // This request stalled, and another one continued a copy.
                    return Err(self.why_gone(&session)?);
                }
                if !matches!(opened, Ok(Some(_))) {
                    partial.release_if_free(&self.files);
                }
                return opened;
            }
            match partial::find_abandoned(&self.files, &data)? {
                Found::NoFolder => return Err(Error::UploadUnknown),
                Found::Released => {}
                Found::Abandoned(abandoned) => {
                    let algorithm = carried.hasher.algorithm();
                    return self.start_over(&session, &abandoned, offset, algorithm, place);
                }
            }
        }
        Err(Error::UploadInUse)
    }

    /// Continues a released file.
    fn resume(
        &self,
        session: &Path,
        partial: &PartialFile,
        offset: u64,
        carried: CarriedHash,
        place: impl FnOnce() -> Option<RehashSlot>,
    ) -> Result<Option<Opened>> {
        let metadata = partial
            .file
            .metadata()
            .map_err(Error::io("stat", &partial.path))?;
        let size = metadata.len;
        if size < offset {
            return Err(Error::OffsetMismatch { size, offset });
        }
        let CarriedHash { hasher, generation } = carried;
        let generation = match generation {
            Some(named) if self.is_of_generation(session, named, &metadata)? => Some(named),
            _ => None,
        };
        let (hasher, proof) = if offset == 0 {
            (Hasher::new(hasher.algorithm()), Proof::Hashed)
        } else if generation.is_some() {
            (hasher, Proof::Carried)
        } else {
            let Some(_place) = place() else {
                return Ok(None);
            };
            let hasher = Hasher::new(hasher.algorithm());
            let hasher = hash_prefix(&*partial.file, &partial.path, hasher, offset)?;
            (hasher, Proof::Hashed)
        };
        let mut opened = Opened {
            partial: partial.clone(),
            hasher,
            proof,
            generation,
        };
        if size > offset {
            self.forget_hashes(session)?;
            opened.generation = None;
            partial
                .file
                .set_len(offset)
                .map_err(Error::io("truncate", &partial.path))?;
        }
        Ok(Some(opened))
    }

    /// Starts with a file of its own: empty, or a copy of the file of another writer that stalls,
    /// ended, or may still be at work.
    fn start_over(
        &self,
        session: &Path,
        abandoned: &[(PathBuf, u64)],
        offset: u64,
        algorithm: Algorithm,
        place: impl FnOnce() -> Option<RehashSlot>,
    ) -> Result<Option<Opened>> {
        let data = session.join(names::DATA);
        let hasher = Hasher::new(algorithm);
        let size = abandoned.first().map_or(0, |(_, size)| *size);
        if size < offset {
            return Err(Error::OffsetMismatch { size, offset });
        }
        let reading = if offset == 0 { None } else { place() };
        if 0 < offset {
            if reading.is_none() {
                return Ok(None);
            }
            self.gate.check_now(self.files.volume(), offset)?;
        }
        if !abandoned.is_empty() {
            // Distribution's hash states are not bound to a file.
            self.forget_hashes(session)?;
        }
        let begun = match abandoned.first() {
            Some((from, _)) if 0 < offset => {
                PartialFile::copy(&self.files, &data, from, offset, hasher)?
            }
            _ => PartialFile::create(&self.files, &data)?.map(|partial| (partial, hasher, 0)),
        };
        drop(reading);
        let (partial, hasher, size) = begun.ok_or(Error::UploadUnknown)?;
        if size < offset {
            partial.remove(&self.files);
            return Err(Error::OffsetMismatch { size, offset });
        }
        partial::remove_abandoned(&self.files, abandoned);
        Ok(Some(Opened {
            partial,
            hasher,
            proof: Proof::Hashed,
            generation: None,
        }))
    }

    /// Whether the generation names this very file, read with fresh caches.
    fn is_of_generation(&self, session: &Path, generation: Uuid, file: &Metadata) -> Result<bool> {
        let path = session
            .join(names::HASH_STATES)
            .join(generation.to_string());
        self.files
            .volume()
            .refresh(&path)
            .map_err(Error::io("stat", &path))?;
        let named = files::metadata(self.files.volume(), &path)?;
        Ok(named.is_some_and(|named| named.inode == file.inode))
    }

    /// Gives the file a generation; `None` when that fails. The next request then hashes the file.
    fn begin_generation(&self, session: &Path, partial: &PartialFile) -> Option<Uuid> {
        let generation = Uuid::new_v4();
        let folder = session.join(names::HASH_STATES);
        let path = folder.join(generation.to_string());
        drop(self.files.volume().create_dir(&folder));
        if self.files.volume().link(&partial.path, &path).is_err() {
            // The link may exist, and only its reply was lost.
            let file = partial.file.metadata().ok()?;
            let named = files::metadata(self.files.volume(), &path).ok()??;
            return (named.inode == file.inode).then_some(generation);
        }
        Some(generation)
    }

    /// Removes all hashes of a session's bytes, durably: Holdfast's, and distribution's, which
    /// believes its own by the size of the file alone.
    fn forget_hashes(&self, session: &Path) -> Result<()> {
        let folder = session.join(names::HASH_STATES);
        files::remove_tree(self.files.volume(), &folder)?;
        let left = files::list(self.files.volume(), &folder)?.unwrap_or_default();
        // NFS removes its own leftovers when their reader ends.
        if left
            .iter()
            .any(|entry| !entry.name.to_string_lossy().starts_with(".nfs"))
        {
            return Err(Error::UploadInUse);
        }
        self.files.sync_removal(&folder.join("any"))
    }

    /// Syncs and releases a session's file; returns the generation for the hash of its bytes.
    pub(super) fn release_file(
        &self,
        session: &Path,
        partial: &PartialFile,
        generation: Option<Uuid>,
    ) -> Result<Option<Uuid>> {
        if let Err(error) = partial.file.sync() {
            if partial.is_gone(&self.files)? {
                return Err(self.why_gone(session)?);
            }
            partial.remove(&self.files);
            return Err(Error::io("sync", &partial.path)(error));
        }
        let generation = generation.or_else(|| self.begin_generation(session, partial));
        if partial.release(&self.files)? {
            return Ok(generation);
        }
        Err(self.why_gone(session)?)
    }

    pub(super) fn commit_upload(
        &self,
        repo: &RepositoryName,
        id: &UploadId,
        (partial, hasher, mut proof): (&PartialFile, Hasher, Proof),
        size: u64,
        digest: &Digest,
    ) -> Result<u64> {
        let hasher = if hasher.algorithm() == digest.algorithm() {
            hasher
        } else {
            proof = Proof::Hashed;
            let hasher = Hasher::new(digest.algorithm());
            hash_prefix(&*partial.file, &partial.path, hasher, size)?
        };
        let actual = hasher.finish();
        let session = self.layout.upload(repo, id.as_str());
        if actual != *digest {
            files::remove_tree(self.files.volume(), &session)?;
            return Err(Error::DigestMismatch {
                expected: digest.clone(),
                actual,
            });
        }
        let path_of_link = self.layout.layer_link(repo, digest);
        let link = links::create_pending(&self.files, &path_of_link, digest)?;
        let committed = self
            .blobs
            .commit_with_link(partial, digest, proof, link.as_ref());
        if let Err(error) = committed {
            return Err(
                if (error.is_absent() || error.is_stale()) && partial.is_gone(&self.files)? {
                    self.why_gone(&session)?
                } else {
                    error
                },
            );
        }
        if let Some(link) = link {
            match links::publish(&self.files, &path_of_link, link) {
                // A concurrent delete removed the folder.
                Err(error) if error.is_absent() => self.blobs.link(repo, digest)?,
                published => published?,
            }
        }
        // The push is done, and a leftover of the session is harmless.
        drop(files::remove_tree(self.files.volume(), &session));
        Ok(size)
    }

    /// Why a writer's file is gone.
    fn why_gone(&self, session: &Path) -> Result<Error> {
        // The session was cancelled, or the same request, sent twice, has ended it; or another
        // request continued a copy.
        Ok(match files::metadata(self.files.volume(), session)? {
            None => Error::UploadUnknown,
            Some(_) => Error::LockLost,
        })
    }

    pub(super) fn upload_size(&self, repo: &RepositoryName, id: &UploadId) -> Result<Option<u64>> {
        let path = self.layout.upload(repo, id.as_str()).join(names::DATA);
        for _ in 0..MAX_ATTEMPTS {
            // Opened, not only looked up: an open asks the server of a network file system for the
            // present size.
            let size = files::with_file(self.files.volume(), &path, |file| {
                file.metadata().map_err(Error::io("stat", &path))
            })?;
            if let Some(metadata) = size {
                return Ok(Some(metadata.len));
            }
            match partial::find_abandoned(&self.files, &path)? {
                Found::NoFolder => return Ok(None),
                Found::Released => {}
                Found::Abandoned(files) => {
                    return Ok(Some(files.first().map_or(0, |(_, size)| *size)));
                }
            }
        }
        Err(Error::UploadInUse)
    }
}
