//! Manifests of a repository: revisions, tags, and who refers to whom.

use std::{collections::BTreeSet, path::PathBuf};

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    oci::MANIFEST_BYTES,
    reference::{RepositoryName, Tag},
};

use crate::{Error, Hasher, Result, Store, durable, links, store::Inner};

/// Largest manifest that is stored, and that is read from the volume into memory. What is taken
/// from clients and upstreams is bounded by the configuration, far below. A larger one that lies on
/// the volume is not served, and it stays: its size says nothing of its bytes.
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

impl Store {
    /// The exact bytes of a repository's manifest, checked against its digest.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the bytes are damaged; they are moved aside.
    /// [`Error::ManifestTooLarge`].
    pub async fn manifest(&self, repo: &RepositoryName, digest: &Digest) -> Result<Option<Bytes>> {
        if let Some(found) = self.try_nonblocking(|inner| inner.manifest(repo, digest)) {
            return found;
        }
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |inner| inner.manifest(&repo, &digest)).await
    }

    /// The digest that a tag names and the manifest's bytes, in one go.
    pub async fn tagged_manifest(
        &self,
        repo: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<(Digest, Bytes)>> {
        if let Some(found) = self.try_nonblocking(|inner| inner.tagged_manifest(repo, tag)) {
            return found;
        }
        let (repo, tag) = (repo.clone(), tag.clone());
        self.run(move |inner| inner.tagged_manifest(&repo, &tag))
            .await
    }

    /// Whether the repository has the manifest and its bytes are there.
    pub async fn has_manifest(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |inner| {
            match links::read(inner.volume(), &inner.layout.revision_link(&repo, &digest))? {
                Some(target) => Ok(inner.stat_blob(&target)?.is_some()),
                None => Ok(false),
            }
        })
        .await
    }

    /// Stores a manifest byte for byte. The caller must have stored what it refers to before.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] when the bytes have another digest, [`Error::ManifestTooLarge`].
    pub async fn put_manifest(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
        bytes: Bytes,
    ) -> Result<()> {
        refuse_oversize(digest, bytes.len() as u64)?;
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |inner| {
            inner.put_blob(&digest, &bytes)?;
            inner.put_revision(&repo, &digest)
        })
        .await
    }

    /// Stores the bytes of a manifest without a link to a repository: no reader sees them before
    /// [`Store::link_manifest`].
    ///
    /// # Errors
    /// As [`Store::put_manifest`].
    pub async fn stage_manifest(&self, digest: &Digest, bytes: Bytes) -> Result<()> {
        refuse_oversize(digest, bytes.len() as u64)?;
        let digest = digest.clone();
        self.run(move |inner| inner.put_blob(&digest, &bytes)).await
    }

    /// The bytes of a manifest that [`Store::stage_manifest`] stored, of any repository. The caller
    /// decides who may read them.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the bytes are damaged; they are moved aside.
    pub async fn staged_manifest(&self, digest: &Digest) -> Result<Option<Bytes>> {
        let digest = digest.clone();
        self.run(move |inner| inner.manifest_at(&digest, &digest))
            .await
    }

    /// Links a manifest that [`Store::stage_manifest`] stored to a repository. The caller must have
    /// stored what it refers to before.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the bytes are gone since.
    pub async fn link_manifest(&self, repo: &RepositoryName, digest: &Digest) -> Result<()> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |inner| {
            if !inner.touch_if_present(&digest)? {
                return Err(Error::Corrupt { digest });
            }
            inner.put_revision(&repo, &digest)
        })
        .await
    }

    /// The first blob that the repository does not link, or manifest that it does not have; what is
    /// there is touched, so that no collection takes it before the manifest that refers to it
    /// is written.
    pub async fn first_missing(
        &self,
        repo: &RepositoryName,
        blobs: Vec<Digest>,
        manifests: Vec<Digest>,
    ) -> Result<Option<Digest>> {
        let repo = repo.clone();
        self.run(move |inner| {
            let link = |path: PathBuf| links::read_durable(&inner.files, &path);
            for digest in blobs {
                match link(inner.layout.layer_link(&repo, &digest))? {
                    Some(target) if inner.touch_if_present(&target)? => {}
                    _ => return Ok(Some(digest)),
                }
            }
            for digest in manifests {
                match link(inner.layout.revision_link(&repo, &digest))? {
                    Some(target) if inner.touch_if_present(&target)? => {}
                    _ => return Ok(Some(digest)),
                }
            }
            Ok(None)
        })
        .await
    }

    /// Renews the modification times of those of the contents that are there, in whatever role;
    /// says nothing of the others.
    pub async fn touch_present(&self, digests: Vec<Digest>) -> Result<()> {
        self.run(move |inner| {
            for digest in digests {
                inner.touch_if_present(&digest)?;
            }
            Ok(())
        })
        .await
    }

    /// The digest that a tag names, whether or not the repository still has the manifest.
    pub async fn tag(&self, repo: &RepositoryName, tag: &Tag) -> Result<Option<Digest>> {
        let (repo, tag) = (repo.clone(), tag.clone());
        self.run(move |inner| inner.tag(&repo, &tag)).await
    }

    /// At most `limit` digests that the repository's revisions are named by, in no order, whether
    /// or not their content is there; `None` if the repository does not exist.
    pub async fn revisions(
        &self,
        repo: &RepositoryName,
        limit: usize,
    ) -> Result<Option<Vec<Digest>>> {
        let repo = repo.clone();
        self.run(move |inner| {
            if !inner.repository_exists(&repo)? {
                return Ok(None);
            }
            let folder = inner.layout.manifests(&repo).join("revisions");
            let mut found = Vec::new();
            for algorithm in links::names(inner.volume(), &folder)? {
                for hex in links::names(inner.volume(), &folder.join(&algorithm))? {
                    if found.len() >= limit {
                        return Ok(Some(found));
                    }
                    found.extend(format!("{algorithm}:{hex}").parse().ok());
                }
            }
            Ok(Some(found))
        })
        .await
    }

    /// Points a tag at a manifest.
    pub async fn set_tag(&self, repo: &RepositoryName, tag: &Tag, digest: &Digest) -> Result<()> {
        let (repo, tag, digest) = (repo.clone(), tag.clone(), digest.clone());
        self.run(move |inner| {
            let history = inner.layout.tag_index_link(&repo, &tag, &digest);
            let current = inner.layout.tag_link(&repo, &tag);
            loop {
                links::ensure(&inner.files, &history, &digest)?;
                links::ensure(&inner.files, &current, &digest)?;
                if inner.abort_untags(&repo, &digest)? {
                    // Whatever became of the link must be so for good before it is looked at.
                    inner.files.sync_removal(&current)?;
                    continue;
                }
                // Somebody who deleted the tag at the same moment may have taken the history
                // between the two.
                if links::read(inner.volume(), &history)?.is_some() {
                    return Ok(());
                }
            }
        })
        .await
    }

    /// Removes a tag. `false` if it was not there.
    pub async fn delete_tag(&self, repo: &RepositoryName, tag: &Tag) -> Result<bool> {
        let (repo, tag) = (repo.clone(), tag.clone());
        self.run(move |inner| inner.delete_tag(&repo, &tag)).await
    }

    /// All tags of a repository in ASCII order; `None` if the repository does not exist.
    pub async fn tags(&self, repo: &RepositoryName) -> Result<Option<Vec<Tag>>> {
        let repo = repo.clone();
        self.list(move |inner| {
            if inner.repository_exists(&repo)? {
                inner.tags(&repo).map(Some)
            } else {
                Ok(None)
            }
        })
        .await
    }

    /// At most `limit` tags in ASCII order behind `after`, and whether there are more; `None` if
    /// the repository does not exist. Only the tags of the page are looked at, beyond their
    /// names.
    pub async fn tags_page(
        &self,
        repo: &RepositoryName,
        after: Option<String>,
        limit: usize,
    ) -> Result<Option<(Vec<Tag>, bool)>> {
        let repo = repo.clone();
        self.list(move |inner| {
            if !inner.repository_exists(&repo)? {
                return Ok(None);
            }
            let mut page = inner.tags_behind(&repo, after.as_deref(), limit.saturating_add(1))?;
            let more = limit > 0 && page.len() > limit;
            page.truncate(limit);
            Ok(Some((page, more)))
        })
        .await
    }

    /// Records that `referrer` names `subject`. The index is derivable and re-checked by its
    /// readers.
    pub async fn add_referrer(
        &self,
        repo: &RepositoryName,
        subject: &Digest,
        referrer: &Digest,
    ) -> Result<()> {
        let (repo, subject, referrer) = (repo.clone(), subject.clone(), referrer.clone());
        self.run(move |inner| {
            links::ensure(
                &inner.files,
                &inner.layout.referrer_link(&repo, &subject, &referrer),
                &referrer,
            )
        })
        .await
    }

    /// Forgets that `referrer` names `subject`.
    pub async fn remove_referrer(
        &self,
        repo: &RepositoryName,
        subject: &Digest,
        referrer: &Digest,
    ) -> Result<()> {
        let (repo, subject, referrer) = (repo.clone(), subject.clone(), referrer.clone());
        self.run(move |inner| {
            inner
                .files
                .remove_file(&inner.layout.referrer_link(&repo, &subject, &referrer))
                .map(drop)
        })
        .await
    }

    /// Who names `subject`, in order; some of them may be gone.
    pub async fn referrers(&self, repo: &RepositoryName, subject: &Digest) -> Result<Vec<Digest>> {
        let (repo, subject) = (repo.clone(), subject.clone());
        self.list(move |inner| {
            links::list(inner.volume(), &inner.layout.referrers(&repo, &subject))
        })
        .await
    }
}

impl Inner {
    fn tagged_manifest(&self, repo: &RepositoryName, tag: &Tag) -> Result<Option<(Digest, Bytes)>> {
        let path = self.layout.tag_link(repo, tag);
        while let Some((digest, tagged)) = links::read_known(self.volume(), &path)? {
            let revision = self.layout.revision_link(repo, &digest);
            let Some((target, put)) = links::read_known(self.volume(), &revision)? else {
                return Ok(None);
            };
            let found = self.manifest_at(&digest, &target)?;
            // Who pushes writes the manifest, then the tag. In the other order it may be one that
            // was deleted and came back without the tag, between the two looks.
            if put.modified <= tagged.modified
                || links::read(self.volume(), &path)?.as_ref() == Some(&digest)
            {
                return Ok(found.map(|bytes| (digest, bytes)));
            }
        }
        let Some(digest) = self.tag(repo, tag)? else {
            return Ok(None);
        };
        Ok(self.manifest(repo, &digest)?.map(|bytes| (digest, bytes)))
    }

    pub(crate) fn manifest(&self, repo: &RepositoryName, digest: &Digest) -> Result<Option<Bytes>> {
        let revision = self.layout.revision_link(repo, digest);
        match links::read(self.volume(), &revision)? {
            Some(target) => self.manifest_at(digest, &target),
            None => Ok(None),
        }
    }

    /// The bytes that a revision's link names, if they are `digest`'s.
    fn manifest_at(&self, digest: &Digest, target: &Digest) -> Result<Option<Bytes>> {
        let path = self.layout.blob(target);
        let Some((bytes, metadata)) = durable::with_file(self.volume(), &path, |file| {
            let metadata = file.metadata().map_err(Error::io("stat", &path))?;
            refuse_oversize(digest, metadata.len)?;
            let length = usize::try_from(metadata.len).unwrap_or(usize::MAX);
            let bytes = durable::read_up_to(file, length).map_err(Error::io("read", &path))?;
            Ok((bytes, metadata))
        })?
        else {
            return Ok(None);
        };
        if Hasher::digest(digest.algorithm(), &bytes) != *digest {
            // A link that names other, sound content is itself what is wrong.
            if target == digest || Hasher::digest(target.algorithm(), &bytes) != *target {
                self.quarantine_blob(target, &metadata)?;
            }
            return Err(Error::Corrupt {
                digest: digest.clone(),
            });
        }
        Ok(Some(bytes.into()))
    }

    fn tag(&self, repo: &RepositoryName, tag: &Tag) -> Result<Option<Digest>> {
        let path = self.layout.tag_link(repo, tag);
        if let Some(digest) = links::read(self.volume(), &path)? {
            return Ok(Some(digest));
        }
        // A link that is there but empty is a crash of an older registry: the tag's history may
        // settle it.
        if !links::is_damaged(self.volume(), &path)? {
            // Absent, or set a moment ago.
            return links::read(self.volume(), &path);
        }
        let mut known = Vec::new();
        for digest in links::list(self.volume(), &self.layout.tag_index(repo, tag))? {
            if links::read(self.volume(), &self.layout.revision_link(repo, &digest))?.is_some()
                && self.stat_blob(&digest)?.is_some()
            {
                known.push(digest);
            }
        }
        match known.as_slice() {
            [only] => {
                tracing::warn!(image.repository = %repo, image.tag = %tag, image.digest = %only, "tag without content was repaired from its history");
                links::write(&self.files, &path, only)?;
                Ok(Some(only.clone()))
            }
            _ => Ok(None),
        }
    }

    fn delete_tag(&self, repo: &RepositoryName, tag: &Tag) -> Result<bool> {
        let link = self.layout.tag_link(repo, tag);
        let is_hidden = self.names_one_of(repo, tag, &self.deleted_manifests(repo)?)?;
        let removed = self.files.remove_file(&link)?;
        // The history before the folder of the link: who sets the tag again at this moment keeps
        // both or loses both.
        durable::remove_tree(self.volume(), &self.layout.tag_index(repo, tag))?;
        durable::remove_tree(self.volume(), durable::parent(&link)?)?;
        durable::remove_tree(self.volume(), &self.layout.tag(repo, tag))?;
        Ok(removed && !is_hidden)
    }

    /// Whether a tag names one of these manifests; where there are none it is not read.
    fn names_one_of(
        &self,
        repo: &RepositoryName,
        tag: &Tag,
        digests: &BTreeSet<Digest>,
    ) -> Result<bool> {
        Ok(!digests.is_empty()
            && self
                .tag(repo, tag)?
                .is_some_and(|digest| digests.contains(&digest)))
    }

    fn tags(&self, repo: &RepositoryName) -> Result<Vec<Tag>> {
        self.tags_behind(repo, None, usize::MAX)
    }

    fn tags_behind(
        &self,
        repo: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Tag>> {
        // Before the names: a tombstone is removed only after the tags of its manifest.
        let hidden = self.deleted_manifests(repo)?;
        let folder = self.layout.tags(repo);
        let mut tags = Vec::new();
        for name in links::names(self.volume(), &folder)? {
            if tags.len() >= limit {
                break;
            }
            if after.is_some_and(|after| name.as_str() <= after) {
                continue;
            }
            let Ok(tag) = Tag::parse(&name) else { continue };
            if self.names_one_of(repo, &tag, &hidden)? {
                continue;
            }
            let link = folder.join(&name).join("current/link");
            let Some(metadata) = durable::metadata(self.volume(), &link)? else {
                continue;
            };
            // One look at the size tells a link from what a crash of an older registry left: then
            // the tag's history may settle it.
            let is_link = [Algorithm::Sha256, Algorithm::Sha512]
                .iter()
                .any(|algorithm| {
                    metadata.len == (algorithm.as_str().len() + 1 + algorithm.hex_length()) as u64
                });
            if is_link || self.tag(repo, &tag)?.is_some() {
                tags.push(tag);
            }
        }
        Ok(tags)
    }
}
