//! One copy of an image: what is fetched in which order, and in which order it becomes visible.

use std::sync::Arc;

use futures::{future::BoxFuture, stream, stream::TryStreamExt};
use holdfast_api::fill::FillResult;
use holdfast_core::{
    Digest, ManifestRef, RepositoryName,
    oci::{IMAGE_DEPTH, Manifest, Platform},
};
use holdfast_store::{LockAttempt, LockHolder, Store};
use holdfast_upstream::{self as upstream, Reserved, UpstreamRepository, Upstreams};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;

use super::{
    Error, Result,
    blob_copies::BlobCopies,
    compared_tags::ComparedTags,
    manifests::Manifests,
    replicas::repo_lock_name,
    sources::Sources,
    tally::{TOO_DEEP, Tally, in_no_index},
    wanted::{self, Part},
};
use crate::limits::IMAGE_AT_ONCE;

/// Parts of a manifest that are held in memory while they are copied; the others wait on the
/// volume.
const PAGE: usize = 64;

/// A manifest that is on the volume, and the first of its parts.
struct Node {
    digest: Digest,
    subject: Option<Digest>,
    is_index: bool,
    page: Page,
}

/// Some of the parts of a manifest.
struct Page {
    parts: Vec<Part>,
    is_last: bool,
}

impl Page {
    fn of(manifest: &Manifest, platforms: &[Platform], from: usize) -> Self {
        let all = wanted::parts(manifest, platforms);
        Self {
            is_last: all.len() <= from + PAGE,
            parts: all.into_iter().skip(from).take(PAGE).collect(),
        }
    }
}

/// The copy of one image.
struct ImageCopy<'a> {
    copier: &'a ImageCopier,
    source: &'a UpstreamRepository,
    repo: &'a RepositoryName,
    platforms: Vec<Platform>,
    /// Requests that are under way for anything of the image.
    requests: Semaphore,
    tally: Mutex<Tally>,
}

/// What a copy of an image works with.
pub(super) struct ImageCopier {
    pub(super) store: Store,
    pub(super) upstreams: Upstreams,
    pub(super) manifests: Arc<Manifests>,
    pub(super) sources: Arc<Sources>,
    pub(super) copies: Arc<BlobCopies>,
    pub(super) compared: Arc<ComparedTags>,
    /// What other replicas read in the locks of this one.
    pub(super) owner: LockHolder,
}

impl ImageCopier {
    /// Copies an image.
    ///
    /// # Errors
    /// Why it is not local then.
    pub(super) async fn copy(
        &self,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        target: &ManifestRef,
        platforms: &[String],
    ) -> Result<FillResult> {
        // Tells other replicas where to ask; when another one has it, the locks of the blobs settle
        // who copies what.
        let _pointer = match self
            .store
            .try_lock(&repo_lock_name(repo), &self.owner)
            .await?
        {
            LockAttempt::Acquired(lock) => Some(lock),
            LockAttempt::Contended(_) => None,
        };
        let copy = ImageCopy {
            copier: self,
            source,
            repo,
            platforms: wanted::platforms(platforms),
            requests: Semaphore::new(IMAGE_AT_ONCE),
            tally: Mutex::default(),
        };
        let top = self.upstreams.manifest(source, &target.to_string()).await?;
        // Its clients have the manifest now; the copy goes on without them.
        source.priority.keep();
        let digest = top.digest.clone();
        let parsed = self.manifests.add(repo, target, &top)?;
        self.sources.record_root(source, repo, target, &digest);
        let media_type = parsed.media_type.as_str().to_owned();
        copy.tally().missing = in_no_index(&parsed, &copy.platforms);
        let node = copy.hold(parsed, top).await?;
        copy.below(node, 0).await?;
        let tally = copy.finish().await?;
        if let ManifestRef::Tag(tag) = target {
            self.store.set_tag(repo, tag, &digest).await?;
            self.compared.mark_fresh(repo, tag, &digest);
        }
        tracing::info!(
            image.repository = %repo,
            image.reference = %target,
            image.digest = %digest,
            bytes = tally.size.bytes,
            missing = tally.missing.join(", "),
            "image is local"
        );
        Ok(FillResult {
            digest: digest.to_string(),
            media_type,
            size_bytes: tally.size.bytes,
            blobs: tally.size.blobs,
            already_local: false,
            missing: tally.missing,
        })
    }
}

impl ImageCopy<'_> {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock()
    }

    /// Counts a manifest in and puts its bytes onto the volume, out of memory. Nothing shows them
    /// before what they name is there.
    async fn hold(&self, parsed: Manifest, manifest: upstream::Manifest) -> Result<Node> {
        let upstream::Manifest { digest, bytes, .. } = &manifest;
        self.tally().add(digest, bytes.len() as u64)?;
        let node = Node {
            digest: digest.clone(),
            is_index: parsed.is_index(),
            page: Page::of(&parsed, &self.platforms, 0),
            subject: parsed.subject,
        };
        let manifests = &self.copier.manifests;
        manifests.stage(digest, bytes.clone()).await?;
        Ok(node)
    }

    /// Copies everything below a manifest. An image becomes visible then, an index at the end.
    fn below(&self, node: Node, depth: usize) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let (mut page, mut from) = (node.page, 0);
            loop {
                let is_last = page.is_last;
                if !node.is_index {
                    self.tally().size.add(&page.parts);
                    stream::iter(page.parts.into_iter().map(Ok))
                        .try_for_each_concurrent(IMAGE_AT_ONCE, |part| self.blob(part))
                        .await?;
                } else if depth < IMAGE_DEPTH {
                    // Below the top one after the other: their number does not multiply.
                    let at_once = if depth == 0 { IMAGE_AT_ONCE } else { 1 };
                    stream::iter(page.parts.into_iter().map(Ok))
                        .try_for_each_concurrent(at_once, |child| self.child(child, depth + 1))
                        .await?;
                } else {
                    let mut tally = self.tally();
                    page.parts
                        .iter()
                        .for_each(|child| tally.lacks(child, TOO_DEEP));
                }
                if is_last {
                    break;
                }
                from += PAGE;
                page = self.page(&node.digest, from).await?;
            }
            if node.is_index {
                let done = (depth, node.digest, node.subject);
                self.tally().indexes.push(done);
                return Ok(());
            }
            self.show(&node.digest, node.subject.as_ref()).await
        })
    }

    /// Further parts of a manifest, from the volume.
    async fn page(&self, digest: &Digest, from: usize) -> Result<Page> {
        let manifest = self.copier.manifests.staged(digest).await?;
        Ok(Page::of(&manifest, &self.platforms, from))
    }

    async fn blob(&self, part: Part) -> Result<()> {
        let _request = self.requests.acquire().await;
        let source = UpstreamRepository {
            priority: self.source.priority.part(),
            ..self.source.clone()
        };
        let copied = self
            .copier
            .copies
            .complete(&source, self.repo, &part.digest, part.size)
            .await;
        match copied {
            // Nodes know where else it is.
            Err(error)
                if part.is_foreign && !matches!(error, Error::NoSpace(_) | Error::Store(_)) =>
            {
                tracing::debug!(
                    image.digest = %part.digest, %error, "a foreign layer was not copied"
                );
                Ok(())
            }
            copied => copied,
        }
    }

    /// Copies an entry of an index. One that the upstream does not have, or that is no manifest,
    /// does not keep the index from being stored.
    async fn child(&self, child: Part, depth: usize) -> Result<()> {
        if !self.tally().see(&child.digest)? {
            return Ok(());
        }
        let request = self.requests.acquire().await;
        let node = match self.take_child(&child).await {
            Ok(node) => node,
            Err(Error::NotFound) => {
                self.tally().lacks(&child, "the upstream does not have it");
                return Ok(());
            }
            Err(Error::NoManifest(_)) => {
                self.tally().lacks(&child, "it is no manifest");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        drop(request);
        self.below(node, depth).await
    }

    async fn take_child(&self, child: &Part) -> Result<Node> {
        let copier = self.copier;
        let reference = ManifestRef::Digest(child.digest.clone());
        let known = copier.manifests.bytes(self.repo, &child.digest).await?;
        let manifest = if let Some(bytes) = known {
            upstream::Manifest::new(child.digest.clone(), bytes, Reserved::default())
        } else {
            let upstreams = &copier.upstreams;
            upstreams
                .manifest(self.source, child.digest.as_str())
                .await?
        };
        let length = manifest.bytes.len() as u64;
        if length != child.size {
            return Err(Error::Invalid(format!(
                "{} has {length} bytes, its index says {}",
                child.digest, child.size
            )));
        }
        let parsed = copier.manifests.add(self.repo, &reference, &manifest)?;
        self.hold(parsed, manifest).await
    }

    /// Makes a manifest visible; what it names is there.
    async fn show(&self, digest: &Digest, subject: Option<&Digest>) -> Result<()> {
        let manifests = &self.copier.manifests;
        manifests.show(self.repo, digest, subject).await
    }

    /// Makes the indexes visible, the innermost first.
    async fn finish(self) -> Result<Tally> {
        let mut indexes = std::mem::take(&mut self.tally().indexes);
        indexes.sort_by_key(|(depth, ..)| std::cmp::Reverse(*depth));
        for (_, digest, subject) in &indexes {
            self.show(digest, subject.as_ref()).await?;
        }
        Ok(self.tally.into_inner())
    }
}
