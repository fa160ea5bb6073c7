//! The fill of an image: what is fetched in which order, and in which order it becomes visible.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::{FutureExt, future::BoxFuture, stream, stream::TryStreamExt};
use holdfast_api::fill::FillResult;
use holdfast_core::{
    Digest, ManifestRef, RepositoryName,
    oci::{IMAGE_DEPTH, Manifest, Platform},
};

use holdfast_store::LockAttempt;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, oneshot};

use super::{
    Error, Fills, ImageFill, ImageKey, Result, failures,
    tally::{NAMED, Tally},
    wanted::{self, Part},
};
use crate::limits::IMAGE_AT_ONCE;
use holdfast_upstream::{self as upstream, Interest, Reserved, UpstreamRepository};

/// Parts of a manifest that are held in memory while they are copied; the others wait on the
/// volume.
const PAGE: usize = 64;
/// Why entries of an index are not held.
const TOO_DEEP: &str = "indexes in it are nested too deeply";

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
    fills: &'a Fills,
    source: &'a UpstreamRepository,
    repo: &'a RepositoryName,
    platforms: Vec<Platform>,
    /// Requests that are under way for anything of the image.
    requests: Semaphore,
    tally: Mutex<Tally>,
}

/// The name of the lock that tells other replicas who fills images of a repository.
pub(super) fn repo_lock_name(repo: &RepositoryName) -> String {
    format!(
        "repo-{}",
        holdfast_store::Hasher::digest(holdfast_core::Algorithm::Sha256, repo.as_str().as_bytes())
            .hex()
    )
}

impl Fills {
    /// Joins the fill of an image in this process or begins it, and waits for its end.
    pub(super) async fn image(
        &self,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        target: &ManifestRef,
        platforms: &[String],
    ) -> Result<FillResult> {
        let (running, interest) = self.join_image(source, repo, target, platforms);
        interest.keep();
        running.await
    }

    /// The same for a pull: while its first request waits for its turn at the upstream, the fill
    /// ends when its last client leaves.
    pub(super) async fn image_for_pull(
        &self,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        target: &ManifestRef,
        platforms: &[String],
    ) -> Result<FillResult> {
        let (running, interest) = self.join_image(source, repo, target, platforms);
        let _held = interest.hold();
        running.await
    }

    fn join_image(
        &self,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        target: &ManifestRef,
        platforms: &[String],
    ) -> (ImageFill, Arc<Interest>) {
        let mut platforms = platforms.to_vec();
        platforms.sort();
        let key: ImageKey = (
            repo.clone(),
            target.to_string(),
            platforms,
            source.logins.clone(),
        );
        let mut images = self.inner.images.lock();
        if let Some((running, priority, interest)) = images.get(&key) {
            self.inner.upstreams.join(priority, &source.priority);
            return (running.clone(), Arc::clone(interest));
        }
        let (tell, told) = oneshot::channel();
        let (interest, priority) = source.priority.clone().watched();
        let source = UpstreamRepository {
            priority: priority.clone(),
            ..source.clone()
        };
        let (fills, task, target) = (self.clone(), key.clone(), target.clone());
        // Its own task: a client that leaves does not stop it.
        tokio::spawn(async move {
            // A panic must not leave the entry behind: every later request would join it.
            let copy = AssertUnwindSafe(fills.fetch(&source, &task.0, &target, &task.2));
            let result = copy
                .catch_unwind()
                .await
                .unwrap_or(Err(Error::Store("panic")));
            fills.inner.images.lock().remove(&task);
            let label = result.as_ref().map_or_else(Error::label, |_| "ok");
            fills.inner.metrics.ended("image", label);
            match &result {
                Err(Error::Busy(_)) | Ok(_) => {}
                Err(error) => {
                    let upstreams = &fills.inner.upstreams;
                    failures::log_image(upstreams, &task.0, &target, error);
                }
            }
            // This fails if no request waits any more.
            drop(tell.send(result));
        });
        let running = told
            .map(|told| {
                told.unwrap_or_else(|_| Err(Error::Unavailable("shutting down".to_owned())))
            })
            .boxed()
            .shared();
        images.insert(key, (running.clone(), priority, Arc::clone(&interest)));
        (running, interest)
    }

    async fn fetch(
        &self,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        target: &ManifestRef,
        platforms: &[String],
    ) -> Result<FillResult> {
        // Tells other replicas where to ask; when another one has it, the locks of the blobs settle
        // who copies what.
        let _pointer = match self
            .inner
            .store
            .try_lock(&repo_lock_name(repo), &self.inner.owner)
            .await?
        {
            LockAttempt::Acquired(lock) => Some(lock),
            LockAttempt::Contended(_) => None,
        };
        let copy = ImageCopy {
            fills: self,
            source,
            repo,
            platforms: wanted::platforms(platforms),
            requests: Semaphore::new(IMAGE_AT_ONCE),
            tally: Mutex::default(),
        };
        let top = self
            .inner
            .upstreams
            .manifest(source, &target.to_string())
            .await?;
        // Its clients have the manifest now; the copy goes on without them.
        source.priority.keep();
        let digest = top.digest.clone();
        let parsed = self.inner.manifests.add(repo, target, &top)?;
        self.inner
            .sources
            .record_root(source, repo, target, &digest);
        let media_type = parsed.media_type.as_str().to_owned();
        copy.tally().missing = in_no_index(&parsed, &copy.platforms);
        let node = copy.hold(parsed, top).await?;
        copy.below(node, 0).await?;
        let tally = copy.finish().await?;
        if let ManifestRef::Tag(tag) = target {
            self.inner.store.set_tag(repo, tag, &digest).await?;
            self.mark_fresh(repo, tag, &digest);
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

    /// What is local of an image, when all that is wanted of it is.
    pub(super) async fn local(
        &self,
        repo: &RepositoryName,
        target: &ManifestRef,
        platforms: &[String],
    ) -> Result<Option<FillResult>> {
        let digest = match target {
            ManifestRef::Digest(digest) => Some(digest.clone()),
            ManifestRef::Tag(tag) => self.inner.store.tag(repo, tag).await?,
        };
        let Some(digest) = digest else {
            return Ok(None);
        };
        let platforms = wanted::platforms(platforms);
        let (mut tally, mut media_type) = (Tally::default(), None);
        let mut left = vec![(digest.clone(), 0)];
        while let Some((next, depth)) = left.pop() {
            if tally.seen.contains(&next) {
                continue;
            }
            let found = self.inner.manifests.stored(repo, &next, |manifest, bytes| {
                let lacking = in_no_index(manifest, &platforms);
                let parts = wanted::parts(manifest, &platforms);
                (manifest.media_type, parts, bytes, lacking)
            });
            let Some((kind, parts, bytes, lacking)) = found.await? else {
                return Ok(None);
            };
            if tally.add(&next, bytes).is_err() {
                return Ok(None);
            }
            if depth == 0 {
                (media_type, tally.missing) = (Some(kind), lacking);
            }
            if kind.is_index() {
                if depth < IMAGE_DEPTH {
                    left.extend(parts.into_iter().map(|child| (child.digest, depth + 1)));
                } else {
                    for child in &parts {
                        tally.lacks(child, TOO_DEEP);
                    }
                }
                continue;
            }
            for part in parts.iter().filter(|part| !part.is_foreign) {
                let store = &self.inner.store;
                let is_linked = store.repo_has_blob(repo, &part.digest).await?;
                if !is_linked || store.stat_blob(&part.digest).await? != Some(part.size) {
                    return Ok(None);
                }
            }
            tally.size.add(&parts);
        }
        Ok(media_type.map(|media_type| FillResult {
            digest: digest.to_string(),
            media_type: media_type.as_str().to_owned(),
            size_bytes: tally.size.bytes,
            blobs: tally.size.blobs,
            already_local: true,
            missing: tally.missing,
        }))
    }
}

/// The wanted platforms that an index has nothing for, for people.
fn in_no_index(manifest: &Manifest, wanted: &[Platform]) -> Vec<String> {
    let lacking = wanted::lacking(manifest, wanted).into_iter().take(NAMED);
    lacking
        .map(|platform| format!("{platform}: the index has none"))
        .collect()
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
        let manifests = &self.fills.inner.manifests;
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
        let manifest = self.fills.inner.manifests.staged(digest).await?;
        Ok(Page::of(&manifest, &self.platforms, from))
    }

    async fn blob(&self, part: Part) -> Result<()> {
        let _request = self.requests.acquire().await;
        let source = UpstreamRepository {
            priority: self.source.priority.part(),
            ..self.source.clone()
        };
        let copied = self
            .fills
            .inner
            .copies
            .complete(&source, self.repo, &part.digest, part.size)
            .await;
        match copied {
            // Nodes know where else it is.
            Err(error)
                if part.is_foreign && !matches!(error, Error::NoSpace(_) | Error::Store(_)) =>
            {
                tracing::debug!(image.digest = %part.digest, %error, "a foreign layer was not copied");
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
        let inner = &self.fills.inner;
        let reference = ManifestRef::Digest(child.digest.clone());
        let known = inner.manifests.bytes(self.repo, &child.digest).await?;
        let manifest = if let Some(bytes) = known {
            upstream::Manifest::new(child.digest.clone(), bytes, Reserved::default())
        } else {
            let upstreams = &inner.upstreams;
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
        let parsed = inner.manifests.add(self.repo, &reference, &manifest)?;
        self.hold(parsed, manifest).await
    }

    /// Makes a manifest visible; what it names is there.
    async fn show(&self, digest: &Digest, subject: Option<&Digest>) -> Result<()> {
        let manifests = &self.fills.inner.manifests;
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
