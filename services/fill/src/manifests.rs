//! The manifests of repositories: those on the volume, those that are verified and wait for what
//! they name, and what they name.
//!
//! Knows nothing of sources and copies.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use holdfast_core::{Digest, ManifestRef, RepositoryName, oci::Manifest};
use holdfast_store::Store;
use holdfast_upstream as upstream;
use tokio::sync::{Semaphore, watch};

use super::{
    Error, Result,
    names::{Budget, Names, Summary},
    pending_manifests::{PendingManifest, PendingManifests},
    wanted,
};
use crate::limits::{MANIFESTS_READ, SEARCHED_MANIFESTS};

/// Manifests below one that a request led to.
const REACHED_MANIFESTS: usize = 512;

/// The claims of a repository's manifests about a blob.
#[derive(Debug, Clone)]
pub(super) struct BlobClaims {
    /// The sizes that they claim: several when they do not agree. None: no manifest is here, and
    /// the upstream, which has the blob, does not say its size.
    pub(super) sizes: Vec<u64>,
    /// Whether that manifest is in the store: then everything that it names was this repository's
    /// once.
    pub(super) is_stored: bool,
}

impl BlobClaims {
    /// The claims of a manifest that is not stored here.
    pub(super) fn unstored(sizes: Vec<u64>) -> Self {
        Self {
            sizes,
            is_stored: false,
        }
    }

    /// The size that clients get before it is verified; `None` when manifests do not agree.
    pub(super) fn size(&self) -> Option<u64> {
        match self.sizes[..] {
            [size] => Some(size),
            _ => None,
        }
    }

    /// The claims that a copy is joined with: each is its manifest's own.
    pub(super) fn claims(&self) -> Vec<Option<u64>> {
        if self.sizes.is_empty() {
            return vec![None];
        }
        self.sizes.iter().copied().map(Some).collect()
    }
}

/// The manifests of all repositories.
pub(super) struct Manifests {
    store: Store,
    pending: PendingManifests,
    names: Names,
    /// Manifests on the volume that are read at the same time.
    pub(super) readers: Semaphore,
}

impl Manifests {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            pending: PendingManifests::default(),
            names: Names::default(),
            readers: Semaphore::new(MANIFESTS_READ),
        }
    }

    /// A manifest that is verified and not stored yet.
    pub(super) fn pending(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Option<PendingManifest> {
        self.pending.manifest(repo, reference)
    }

    /// The sizes that pending manifests claim for a blob; none: none of them names it.
    pub(super) fn pending_sizes(&self, repo: &RepositoryName, digest: &Digest) -> Vec<u64> {
        self.pending.blob(repo, digest)
    }

    /// Tells of every manifest that becomes pending.
    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.pending.changed()
    }

    /// A manifest that is pending or stored.
    pub(super) async fn known(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<Option<PendingManifest>> {
        if let Some(entry) = self.pending(repo, reference) {
            return Ok(Some(entry));
        }
        let stored = match reference {
            ManifestRef::Tag(tag) => self.store.tagged_manifest(repo, tag).await?,
            ManifestRef::Digest(digest) => self
                .store
                .manifest(repo, digest)
                .await?
                .map(|bytes| (digest.clone(), bytes)),
        };
        Ok(stored.map(|(digest, bytes)| PendingManifest {
            digest,
            media_type: "",
            bytes,
        }))
    }

    /// The bytes of a manifest for a copy. Damaged ones are missing: they are copied again.
    pub(super) async fn bytes(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Bytes>> {
        let reference = ManifestRef::Digest(digest.clone());
        if let Some(entry) = self.pending(repo, &reference) {
            return Ok(Some(entry.bytes));
        }
        let _reader = self.readers.acquire().await;
        match self.store.manifest(repo, digest).await {
            // Damaged content was moved aside.
            Err(holdfast_store::Error::Corrupt { .. }) => Ok(None),
            found => Ok(found?),
        }
    }

    /// Takes a verified manifest in: pulls of it are answered from now on.
    ///
    /// # Errors
    /// [`Error::NoManifest`] when it does not parse.
    pub(super) fn add(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
        manifest: &upstream::Manifest,
    ) -> Result<Manifest> {
        let parsed = Manifest::parse(&manifest.bytes)
            .map_err(|error| Error::NoManifest(format!("{}: {error}", manifest.digest)))?;
        let entry = PendingManifest {
            digest: manifest.digest.clone(),
            media_type: parsed.media_type.as_str(),
            bytes: manifest.bytes.clone(),
        };
        let blobs = wanted::blobs(&parsed).map(|blob| (blob.digest.clone(), blob.size));
        self.pending.add(repo, reference, entry, blobs.collect());
        Ok(parsed)
    }

    /// Puts the bytes of a manifest onto the volume, so that a copy does not keep them in memory.
    /// They are not visible before [`Manifests::show`].
    pub(super) async fn stage(&self, digest: &Digest, bytes: Bytes) -> Result<()> {
        Ok(self.store.stage_manifest(digest, bytes).await?)
    }

    /// A staged manifest.
    ///
    /// # Errors
    /// [`Error::Store`] also when it is not there.
    pub(super) async fn staged(&self, digest: &Digest) -> Result<Manifest> {
        let _reader = self.readers.acquire().await;
        let bytes = self.store.staged_manifest(digest).await?;
        let manifest = bytes.and_then(|bytes| Manifest::parse(&bytes).ok());
        manifest.ok_or(Error::Store("a held manifest is gone"))
    }

    /// Makes a staged manifest visible. What it names is there.
    pub(super) async fn show(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
        subject: Option<&Digest>,
    ) -> Result<()> {
        self.store.link_manifest(repo, digest).await?;
        if let Some(subject) = subject {
            self.store.add_referrer(repo, subject, digest).await?;
        }
        self.pending.remove(repo, digest);
        Ok(())
    }

    /// Reads a stored manifest of a repository, with its bytes; `None` when it is not there. A
    /// limited number is in memory at the same time.
    pub(super) async fn stored<T>(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
        read: impl FnOnce(&Manifest, u64) -> T,
    ) -> Result<Option<T>> {
        let _reader = self.readers.acquire().await;
        let bytes = match self.store.manifest(repo, digest).await {
            Ok(Some(bytes)) => bytes,
            // Damaged content was moved aside and is fetched again.
            Ok(None) | Err(holdfast_store::Error::Corrupt { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let manifest = Manifest::parse(&bytes).ok();
        Ok(manifest.map(|manifest| read(&manifest, bytes.len() as u64)))
    }

    /// What the repository's manifests claim of a blob: the pending ones, then the stored ones that
    /// were not `seen` by this request before.
    pub(super) async fn claims(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
        seen: &mut HashSet<Digest>,
    ) -> Result<Option<BlobClaims>> {
        let sizes = self.pending_sizes(repo, digest);
        if !sizes.is_empty() {
            return Ok(Some(BlobClaims::unstored(sizes)));
        }
        let revisions = self.store.revisions(repo, SEARCHED_MANIFESTS).await?;
        let claimed = self.claimed(repo, digest, revisions.unwrap_or_default(), seen);
        Ok(claimed.await.map(|size| BlobClaims {
            sizes: vec![size],
            is_stored: true,
        }))
    }

    /// The size that one of these stored manifests claims for a blob.
    async fn claimed(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
        revisions: Vec<Digest>,
        seen: &mut HashSet<Digest>,
    ) -> Option<u64> {
        let hash = self.names.hash(digest);
        let search = self.names.search(repo);
        let _alone = search.lock().await;
        let mut budget = Budget::default();
        for next in revisions.into_iter().rev() {
            if !seen.insert(next.clone()) {
                continue;
            }
            let summary = self.summary(repo, &next, &mut budget).await;
            if !summary.is_some_and(|summary| summary.names(hash)) {
                continue;
            }
            let size = |manifest: &Manifest, _| {
                let mut blobs = wanted::blobs(manifest);
                blobs
                    .find(|blob| blob.digest == *digest)
                    .map(|blob| blob.size)
            };
            if let Ok(Some(Some(size))) = self.stored(repo, &next, size).await {
                return Some(size);
            }
        }
        None
    }

    /// Those of `roots` from which `wanted`, a manifest or a blob, is reachable.
    pub(super) async fn leading_to(
        &self,
        repo: &RepositoryName,
        roots: Vec<Digest>,
        wanted: &Digest,
    ) -> Vec<Digest> {
        let hash = self.names.hash(wanted);
        let (mut leads, mut budget) = (Vec::new(), Budget::default());
        // It is reachable from the live ones and not from the dead ones.
        let (mut live, mut dead) = (HashSet::new(), HashSet::new());
        for root in roots {
            let (mut left, mut seen) = (vec![root.clone()], HashSet::new());
            let leads_there = loop {
                let Some(next) = left.pop() else {
                    break false;
                };
                if next == *wanted || live.contains(&next) {
                    break true;
                }
                let is_cut = seen.len() >= REACHED_MANIFESTS;
                if is_cut || dead.contains(&next) || !seen.insert(next.clone()) {
                    continue;
                }
                let Some(summary) = self.summary(repo, &next, &mut budget).await else {
                    continue;
                };
                if summary.names(hash) {
                    live.insert(next);
                    break true;
                }
                left.extend(summary.children().iter().cloned());
            };
            if leads_there {
                leads.push(root);
            } else if seen.len() < REACHED_MANIFESTS {
                dead.extend(seen);
            }
        }
        leads
    }

    /// What a manifest of the repository names; `None` when it is not here, or nothing is left of
    /// the budget to read it with.
    pub(super) async fn summary(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
        budget: &mut Budget,
    ) -> Option<Arc<Summary>> {
        let key = (repo.clone(), digest.clone());
        if let Some(known) = self.names.get(&key) {
            return Some(known);
        }
        if budget.0 == 0 {
            return None;
        }
        let reference = ManifestRef::Digest(digest.clone());
        let (summary, bytes) = if let Some(entry) = self.pending(repo, &reference) {
            let manifest = Manifest::parse(&entry.bytes).ok()?;
            (self.names.summary(&manifest), 0)
        } else {
            let read = |manifest: &Manifest, bytes| (self.names.summary(manifest), bytes);
            self.stored(repo, digest, read).await.ok()??
        };
        budget.0 = budget.0.saturating_sub(bytes);
        let summary = Arc::new(summary);
        self.names.insert(repo, key, &summary);
        Some(summary)
    }
}

#[cfg(test)]
impl Manifests {
    pub(super) fn readers(&self) -> &Semaphore {
        &self.readers
    }

    pub(super) fn hash(&self, blob: &Digest) -> u64 {
        self.names.hash(blob)
    }
}
