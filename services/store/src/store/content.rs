//! The store's blobs, manifests, tags, referrers and repositories.

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::{RepositoryName, Tag},
};

use super::Store;
use crate::{BlobFile, Result};

impl Store {
    /// The size of a blob in bytes, whichever repository links it; `None` if it does not exist.
    pub async fn stat_blob(&self, digest: &Digest) -> Result<Option<u64>> {
        let digest = digest.clone();
        self.run(move |parts| parts.blobs.stat(&digest)).await
    }

    /// Opens a blob, whichever repository links it.
    pub async fn open_blob(&self, digest: &Digest) -> Result<Option<BlobFile>> {
        let digest = digest.clone();
        self.run(move |parts| parts.blobs.open(&digest)).await
    }

    /// Opens a blob if the repository links it. The link may name another digest (an alias).
    pub async fn open_repo_blob(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<BlobFile>> {
        if let Some(found) = self.try_nonblocking(|parts| parts.blobs.open_linked(repo, digest)) {
            return found;
        }
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |parts| parts.blobs.open_linked(&repo, &digest))
            .await
    }

    /// Whether the repository links the blob and its bytes exist.
    pub async fn repo_has_blob(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |parts| parts.blobs.is_linked(&repo, &digest))
            .await
    }

    /// Links a blob of the volume to a repository.
    pub async fn link_blob(&self, repo: &RepositoryName, digest: &Digest) -> Result<()> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |parts| parts.blobs.link(&repo, &digest))
            .await
    }

    /// Removes the link of a repository to a blob; the bytes stay for garbage collection. `false`
    /// if there was no link.
    pub async fn unlink_blob(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |parts| parts.blobs.unlink(&repo, &digest))
            .await
    }

    /// Stores bytes from memory as a blob.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`](crate::Error::DigestMismatch) when the bytes have another digest.
    pub async fn put_blob(&self, digest: &Digest, bytes: Bytes) -> Result<()> {
        let digest = digest.clone();
        self.run(move |parts| parts.blobs.put(&digest, &bytes))
            .await
    }

    /// Renews the modification time of a blob, so that garbage collection does not take it for old.
    pub async fn touch_blob(&self, digest: &Digest) -> Result<()> {
        let digest = digest.clone();
        self.run(move |parts| parts.blobs.touch_if_present(&digest).map(drop))
            .await
    }

    /// Moves damaged content to the quarantine, so that the next request fetches it again. `false`
    /// if it is gone. Content that took its place stays.
    pub async fn quarantine_blob(&self, blob: &BlobFile) -> Result<bool> {
        let blob = blob.clone();
        self.run(move |parts| parts.blobs.quarantine_open(&blob))
            .await
    }

    /// Records that this very file was hashed and found intact.
    pub fn remember_verified(&self, blob: &BlobFile) {
        self.parts.blobs.remember_verified(blob);
    }

    /// Hashes a blob and returns its size. Damaged content is quarantined.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt).
    pub async fn verify_blob(&self, digest: &Digest) -> Result<Option<u64>> {
        let digest = digest.clone();
        self.run(move |parts| parts.blobs.verify(&digest)).await
    }

    /// The blobs, manifests included, of one 256th of the names of an algorithm, in order. `part`
    /// is the first byte of the digest.
    pub async fn blobs_of(&self, algorithm: Algorithm, part: u8) -> Result<Vec<Digest>> {
        self.run(move |parts| parts.blobs.list_part(algorithm, part))
            .await
    }

    /// The exact bytes of a manifest of the repository, checked against its digest.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) when the bytes are damaged; they are quarantined.
    /// [`Error::ManifestTooLarge`](crate::Error::ManifestTooLarge).
    pub async fn manifest(&self, repo: &RepositoryName, digest: &Digest) -> Result<Option<Bytes>> {
        if let Some(found) = self.try_nonblocking(|parts| parts.manifests.get(repo, digest)) {
            return found;
        }
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |parts| parts.manifests.get(&repo, &digest))
            .await
    }

    /// The digest that a tag names, and the bytes of that manifest.
    pub async fn tagged_manifest(
        &self,
        repo: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<(Digest, Bytes)>> {
        if let Some(found) = self.try_nonblocking(|parts| parts.manifests.get_tagged(repo, tag)) {
            return found;
        }
        let (repo, tag) = (repo.clone(), tag.clone());
        self.run(move |parts| parts.manifests.get_tagged(&repo, &tag))
            .await
    }

    /// Whether the repository has the manifest and its bytes exist.
    pub async fn has_manifest(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |parts| parts.manifests.has(&repo, &digest))
            .await
    }

    /// Stores a manifest byte for byte. The caller must have stored what it refers to before.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`](crate::Error::DigestMismatch) when the bytes have another digest,
    /// [`Error::ManifestTooLarge`](crate::Error::ManifestTooLarge).
    pub async fn put_manifest(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
        bytes: Bytes,
    ) -> Result<()> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |parts| parts.manifests.put(&repo, &digest, &bytes))
            .await
    }

    /// Stores the bytes of a manifest without a link to a repository: no reader sees them before
    /// [`Store::link_manifest`].
    ///
    /// # Errors
    /// As [`Store::put_manifest`].
    pub async fn stage_manifest(&self, digest: &Digest, bytes: Bytes) -> Result<()> {
        let digest = digest.clone();
        self.run(move |parts| parts.manifests.stage(&digest, &bytes))
            .await
    }

    /// The bytes of a manifest that [`Store::stage_manifest`] stored, of any repository. The caller
    /// decides who may read them.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) when the bytes are damaged; they are quarantined.
    pub async fn staged_manifest(&self, digest: &Digest) -> Result<Option<Bytes>> {
        let digest = digest.clone();
        self.run(move |parts| parts.manifests.get_staged(&digest))
            .await
    }

    /// Links a manifest that [`Store::stage_manifest`] stored to a repository. The caller must have
    /// stored what it refers to before.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) when the bytes are gone.
    pub async fn link_manifest(&self, repo: &RepositoryName, digest: &Digest) -> Result<()> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |parts| parts.manifests.link(&repo, &digest))
            .await
    }

    /// Removes a manifest. The tags that name it are unknown at once and are removed in the
    /// background. The bytes stay for garbage collection. `false` if it does not exist.
    ///
    /// # Errors
    /// After [`Error::NoSpace`](crate::Error::NoSpace) nothing has changed. After any other error
    /// of the volume the manifest may be deleted or not.
    pub async fn delete_manifest(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        let (repo, digest) = (repo.clone(), digest.clone());
        self.run(move |parts| parts.deletes.delete_manifest(&repo, &digest))
            .await
    }

    /// Removes the tags of all deleted manifests, for example after a crash; returns the number of
    /// repositories that had some. When it returns, no thread of this process removes tags any
    /// more, so another registry may take over the volume.
    ///
    /// # Errors
    /// Errors of the volume. The next call finds what is left.
    pub async fn finish_deletes(&self) -> Result<usize> {
        self.run(move |parts| parts.deletes.finish_all()).await
    }

    /// The first blob that the repository does not link, or manifest that it does not have. What
    /// exists is touched, so that garbage collection keeps it until the manifest that refers to it
    /// is written.
    pub async fn first_missing(
        &self,
        repo: &RepositoryName,
        blobs: Vec<Digest>,
        manifests: Vec<Digest>,
    ) -> Result<Option<Digest>> {
        let repo = repo.clone();
        self.run(move |parts| parts.manifests.first_missing(&repo, blobs, manifests))
            .await
    }

    /// Renews the modification times of those blobs and manifests that exist.
    pub async fn touch_present(&self, digests: Vec<Digest>) -> Result<()> {
        self.run(move |parts| parts.blobs.touch_all(&digests)).await
    }

    /// At most `limit` digests of the manifests of the repository, in no order, also of those whose
    /// bytes are missing; `None` if the repository does not exist.
    pub async fn revisions(
        &self,
        repo: &RepositoryName,
        limit: usize,
    ) -> Result<Option<Vec<Digest>>> {
        let repo = repo.clone();
        self.run(move |parts| parts.manifests.revisions(&repo, limit))
            .await
    }

    /// The digest that a tag names, whether or not the repository still has the manifest.
    pub async fn tag(&self, repo: &RepositoryName, tag: &Tag) -> Result<Option<Digest>> {
        let (repo, tag) = (repo.clone(), tag.clone());
        self.run(move |parts| parts.tags.get(&repo, &tag)).await
    }

    /// Points a tag at a manifest.
    pub async fn set_tag(&self, repo: &RepositoryName, tag: &Tag, digest: &Digest) -> Result<()> {
        let (repo, tag, digest) = (repo.clone(), tag.clone(), digest.clone());
        self.run(move |parts| parts.tags.set(&repo, &tag, &digest))
            .await
    }

    /// Removes a tag. `false` if it does not exist.
    pub async fn delete_tag(&self, repo: &RepositoryName, tag: &Tag) -> Result<bool> {
        let (repo, tag) = (repo.clone(), tag.clone());
        self.run(move |parts| parts.tags.delete(&repo, &tag)).await
    }

    /// All tags of a repository in ASCII order; `None` if the repository does not exist.
    pub async fn tags(&self, repo: &RepositoryName) -> Result<Option<Vec<Tag>>> {
        let repo = repo.clone();
        self.list(move |parts| parts.tags.list(&repo)).await
    }

    /// At most `limit` tags in ASCII order behind `after`, and whether there are more; `None` if
    /// the repository does not exist. Only the tags of the page are read.
    pub async fn tags_page(
        &self,
        repo: &RepositoryName,
        after: Option<String>,
        limit: usize,
    ) -> Result<Option<(Vec<Tag>, bool)>> {
        let repo = repo.clone();
        self.list(move |parts| parts.tags.page(&repo, after.as_deref(), limit))
            .await
    }

    /// Records that `referrer` names `subject`. Readers check the index again.
    pub async fn add_referrer(
        &self,
        repo: &RepositoryName,
        subject: &Digest,
        referrer: &Digest,
    ) -> Result<()> {
        let (repo, subject, referrer) = (repo.clone(), subject.clone(), referrer.clone());
        self.run(move |parts| parts.referrers.add(&repo, &subject, &referrer))
            .await
    }

    /// Removes the record that `referrer` names `subject`.
    pub async fn remove_referrer(
        &self,
        repo: &RepositoryName,
        subject: &Digest,
        referrer: &Digest,
    ) -> Result<()> {
        let (repo, subject, referrer) = (repo.clone(), subject.clone(), referrer.clone());
        self.run(move |parts| parts.referrers.remove(&repo, &subject, &referrer))
            .await
    }

    /// The manifests that name `subject`, in order; some of them may be gone.
    pub async fn referrers(&self, repo: &RepositoryName, subject: &Digest) -> Result<Vec<Digest>> {
        let (repo, subject) = (repo.clone(), subject.clone());
        self.list(move |parts| parts.referrers.list(&repo, &subject))
            .await
    }

    /// Whether the repository holds, or held, a manifest.
    pub async fn repository_exists(&self, repo: &RepositoryName) -> Result<bool> {
        let repo = repo.clone();
        self.run(move |parts| parts.repositories.exists(&repo))
            .await
    }

    /// All repositories in ASCII order of their names.
    pub async fn repositories(&self) -> Result<Vec<RepositoryName>> {
        Ok(self.repositories_page(None, usize::MAX).await?.0)
    }

    /// At most `limit` repositories in ASCII order behind `after`, which need not exist, and
    /// whether there are more. Folders whose names all lie before `after`, or behind the page,
    /// are not opened.
    pub async fn repositories_page(
        &self,
        after: Option<String>,
        limit: usize,
    ) -> Result<(Vec<RepositoryName>, bool)> {
        self.list(move |parts| parts.repositories.page(after.as_deref(), limit))
            .await
    }

    /// At most `limit` repositories that link the blob, with or without manifests. The search ends
    /// after `folders` folders.
    pub async fn repositories_with_blob(
        &self,
        digest: &Digest,
        folders: usize,
        limit: usize,
    ) -> Result<Vec<RepositoryName>> {
        let digest = digest.clone();
        self.run(move |parts| parts.repositories.with_blob(&digest, folders, limit))
            .await
    }

    /// Repositories that link the digest, and whether as a manifest.
    pub async fn referring(&self, digest: &Digest) -> Result<Vec<(RepositoryName, bool)>> {
        let repositories = self.repositories().await?;
        let digest = digest.clone();
        self.run(move |parts| parts.repositories.referring(repositories, &digest))
            .await
    }
}
