//! Manifests of a repository: their bytes, and the revision links that grant them.

use std::path::PathBuf;

use bytes::Bytes;
use holdfast_core::{
    digest::Digest,
    oci::MANIFEST_BYTES,
    reference::{RepositoryName, Tag},
};

use crate::{
    Error, Hasher, Layout, Result, blobs::Blobs, deletes::Deletes, durable::DurableFs, files,
    layout::names, links, repositories, tags::Tags,
};

/// Largest manifest, in bytes, that is stored or read from the volume into memory. The
/// configuration bounds those of clients and upstreams far below. A larger one on the volume is not
/// served and not quarantined: its size does not prove that it is damaged.
pub const MAX_MANIFEST_BYTES: u64 = MANIFEST_BYTES;

fn refuse_oversize(digest: &Digest, size: u64) -> Result<()> {
    if size <= MAX_MANIFEST_BYTES {
        return Ok(());
    }
    Err(Error::ManifestTooLarge {
        digest: digest.clone(),
        size,
    })
}

/// The manifests of all repositories.
#[derive(Clone, Debug)]
pub(crate) struct Manifests {
    files: DurableFs,
    layout: Layout,
    blobs: Blobs,
    tags: Tags,
    deletes: Deletes,
}

impl Manifests {
    pub(crate) fn new(
        files: DurableFs,
        layout: Layout,
        blobs: Blobs,
        tags: Tags,
        deletes: Deletes,
    ) -> Self {
        Self {
            files,
            layout,
            blobs,
            tags,
            deletes,
        }
    }

    /// Whether the repository has the manifest and its bytes exist.
    pub(crate) fn has(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        match links::read(
            self.files.volume(),
            &self.layout.revision_link(repo, digest),
        )? {
            Some(target) => Ok(self.blobs.stat(&target)?.is_some()),
            None => Ok(false),
        }
    }

    /// Stores a manifest and links it to the repository.
    pub(crate) fn put(&self, repo: &RepositoryName, digest: &Digest, bytes: &[u8]) -> Result<()> {
        self.stage(digest, bytes)?;
        self.deletes.put_revision(repo, digest)
    }

    /// Stores the bytes of a manifest without a link.
    pub(crate) fn stage(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        refuse_oversize(digest, bytes.len() as u64)?;
        self.blobs.put(digest, bytes)
    }

    /// The bytes of a manifest, of any repository.
    pub(crate) fn get_staged(&self, digest: &Digest) -> Result<Option<Bytes>> {
        self.read(digest, digest)
    }

    /// Links a staged manifest to a repository.
    pub(crate) fn link(&self, repo: &RepositoryName, digest: &Digest) -> Result<()> {
        if !self.blobs.touch_if_present(digest)? {
            return Err(Error::Corrupt {
                digest: digest.clone(),
            });
        }
        self.deletes.put_revision(repo, digest)
    }

    /// The first blob or manifest that the repository lacks. What exists is touched.
    pub(crate) fn first_missing(
        &self,
        repo: &RepositoryName,
        blobs: Vec<Digest>,
        manifests: Vec<Digest>,
    ) -> Result<Option<Digest>> {
        let link = |path: PathBuf| links::read_durable(&self.files, &path);
        for digest in blobs {
            match link(self.layout.layer_link(repo, &digest))? {
                Some(target) if self.blobs.touch_if_present(&target)? => {}
                _ => return Ok(Some(digest)),
            }
        }
        for digest in manifests {
            match link(self.layout.revision_link(repo, &digest))? {
                Some(target) if self.blobs.touch_if_present(&target)? => {}
                _ => return Ok(Some(digest)),
            }
        }
        Ok(None)
    }

    /// At most `limit` digests of the revisions of a repository, in no order; `None` if the
    /// repository does not exist.
    pub(crate) fn revisions(
        &self,
        repo: &RepositoryName,
        limit: usize,
    ) -> Result<Option<Vec<Digest>>> {
        let volume = self.files.volume();
        if !repositories::exists(volume, &self.layout, repo)? {
            return Ok(None);
        }
        let folder = self.layout.manifests(repo).join(names::REVISIONS);
        let mut found = Vec::new();
        for algorithm in links::names(volume, &folder)? {
            for hex in links::names(volume, &folder.join(&algorithm))? {
                if found.len() >= limit {
                    return Ok(Some(found));
                }
                found.extend(format!("{algorithm}:{hex}").parse().ok());
            }
        }
        Ok(Some(found))
    }

    pub(crate) fn get_tagged(
        &self,
        repo: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<(Digest, Bytes)>> {
        let path = self.layout.tag_link(repo, tag);
        while let Some((digest, tagged)) = links::read_known(self.files.volume(), &path)? {
            let revision = self.layout.revision_link(repo, &digest);
            let Some((target, put)) = links::read_known(self.files.volume(), &revision)? else {
                return Ok(None);
            };
            let found = self.read(&digest, &target)?;
            // A push writes the manifest, then the tag. If the manifest is younger, it may have
            // been deleted and pushed again without the tag between the two reads.
            if put.modified <= tagged.modified
                || links::read(self.files.volume(), &path)?.as_ref() == Some(&digest)
            {
                return Ok(found.map(|bytes| (digest, bytes)));
            }
        }
        let Some(digest) = self.tags.get(repo, tag)? else {
            return Ok(None);
        };
        Ok(self.get(repo, &digest)?.map(|bytes| (digest, bytes)))
    }

    pub(crate) fn get(&self, repo: &RepositoryName, digest: &Digest) -> Result<Option<Bytes>> {
        let revision = self.layout.revision_link(repo, digest);
        match links::read(self.files.volume(), &revision)? {
            Some(target) => self.read(digest, &target),
            None => Ok(None),
        }
    }

    /// The bytes that the link of a revision names, checked against `digest`.
    fn read(&self, digest: &Digest, target: &Digest) -> Result<Option<Bytes>> {
        let path = self.layout.blob(target);
        let Some((bytes, metadata)) = files::with_file(self.files.volume(), &path, |file| {
            let metadata = file.metadata().map_err(Error::io("stat", &path))?;
            refuse_oversize(digest, metadata.len)?;
            let length = usize::try_from(metadata.len).unwrap_or(usize::MAX);
            let bytes = files::read_up_to(file, length).map_err(Error::io("read", &path))?;
            Ok((bytes, metadata))
        })?
        else {
            return Ok(None);
        };
        if Hasher::digest(digest.algorithm(), &bytes) != *digest {
            // If the link names other, intact content, the link is wrong and not the content.
            if target == digest || Hasher::digest(target.algorithm(), &bytes) != *target {
                self.blobs.quarantine(target, &metadata)?;
            }
            return Err(Error::Corrupt {
                digest: digest.clone(),
            });
        }
        Ok(Some(bytes.into()))
    }
}
