//! The fill of an image: what is fetched in which order, and in which order it becomes visible.

use std::{panic::AssertUnwindSafe, sync::Arc};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::BoxFuture,
    stream,
    stream::{StreamExt, TryStreamExt},
};
use holdfast_api::fill::FillResult;
use holdfast_core::{Digest, RepositoryName};
use holdfast_store::Claim;
use tokio::sync::oneshot;

use super::{
    Error, Fills, ImageFill, ImageKey, Result,
    arriving::Entry,
    document::{self, Descriptor, Document, Parsed},
};
use crate::{
    source::ManifestRef,
    upstream::{Interest, Manifest, Source},
};

/// Indexes inside indexes that are followed.
const MAX_DEPTH: usize = 3;
/// Blobs of one image that are asked for at once; how many are copied at once is the upstreams' business.
const AT_ONCE: usize = 8;

/// What an image amounts to.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    bytes: u64,
    blobs: u64,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.blobs += other.blobs;
    }
}

/// The name of the lock that tells other replicas who fills images of a repository.
pub(super) fn pointer(repo: &RepositoryName) -> String {
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
        source: &Source,
        repo: &RepositoryName,
        target: &ManifestRef,
        platforms: &[String],
    ) -> Result<FillResult> {
        let (running, interest) = self.join_image(source, repo, target, platforms);
        interest.keep();
        running.await
    }

    /// The same for a pull: while its first request waits for its turn at the upstream, the fill ends
    /// when nobody waits for it any more.
    pub(super) async fn image_for_pull(
        &self,
        source: &Source,
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
        source: &Source,
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
        let mut images = self
            .inner
            .images
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((running, priority, interest)) = images.get(&key) {
            let need = source.priority.need();
            self.inner.upstreams.raise(priority, need);
            return (running.clone(), Arc::clone(interest));
        }
        let (tell, told) = oneshot::channel();
        let (interest, priority) = source.priority.clone().watched();
        let source = Source {
            priority: priority.clone(),
            ..source.clone()
        };
        let (fills, task, target) = (self.clone(), key.clone(), target.clone());
        // Its own task: a client that leaves does not stop it.
        tokio::spawn(async move {
            // A panic must not leave the entry behind: everybody would join it for ever.
            let copy = AssertUnwindSafe(fills.fetch(&source, &task.0, &target, &task.2));
            let result = copy
                .catch_unwind()
                .await
                .unwrap_or(Err(Error::Store("panic")));
            fills
                .inner
                .images
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .remove(&task);
            let word = result.as_ref().map_or_else(Error::word, |_| "ok");
            fills.inner.upstreams.metrics().ended("image", word);
            match &result {
                Err(Error::Busy(_)) | Ok(_) => {}
                Err(error) => {
                    tracing::warn!(image.repository = %task.0, image.reference = %target, %error, "image was not copied");
                }
            }
            // Nobody waits any more when this fails.
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
        source: &Source,
        repo: &RepositoryName,
        target: &ManifestRef,
        platforms: &[String],
    ) -> Result<FillResult> {
        // Tells other replicas where to ask; when another one has it, the locks of the blobs settle who copies what.
        let _pointer = match self
            .inner
            .store
            .try_lock(&pointer(repo), &self.inner.owner)
            .await?
        {
            Claim::Held(lock) => Some(lock),
            Claim::Busy(_) => None,
        };
        let top = self
            .inner
            .upstreams
            .manifest(source, &target.to_string())
            .await?;
        // Its clients have the manifest now; the copy goes on without them.
        source.priority.keep();
        let (digest, bytes) = (top.digest.clone(), top.bytes.clone());
        let parsed = self.arrived(repo, target, top)?;
        let grants = &self.inner.grants;
        grants.led_to(repo, target, &source.logins, &digest);
        let media_type = parsed.media_type.clone();
        let sum = self
            .complete_document(source, repo, &digest, bytes, parsed, platforms, 0)
            .await?;
        if let ManifestRef::Tag(tag) = target {
            self.inner.store.set_tag(repo, tag, &digest).await?;
            self.is_fresh(repo, tag, &digest);
        }
        self.inner.arriving.remove(repo, &digest);
        tracing::info!(image.repository = %repo, image.reference = %target, image.digest = %digest, bytes = sum.bytes, "image is local");
        Ok(FillResult {
            digest: digest.to_string(),
            media_type,
            size_bytes: sum.bytes,
            blobs: sum.blobs,
            already_local: false,
        })
    }

    /// Takes a verified manifest in: pulls of it are answered from now on.
    pub(super) fn arrived(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
        manifest: Manifest,
    ) -> Result<Parsed> {
        let invalid =
            |error: document::Error| Error::Invalid(format!("{}: {error}", manifest.digest));
        let parsed = document::parse(&manifest.bytes, &manifest.media_type).map_err(invalid)?;
        let entry = Entry {
            digest: manifest.digest,
            media_type: parsed.media_type.clone(),
            bytes: manifest.bytes,
        };
        self.inner.arriving.add(repo, reference, entry, &parsed);
        Ok(parsed)
    }

    #[allow(clippy::too_many_arguments, reason = "one private recursion")]
    fn complete_document<'a>(
        &'a self,
        source: &'a Source,
        repo: &'a RepositoryName,
        digest: &'a Digest,
        bytes: Bytes,
        parsed: Parsed,
        platforms: &'a [String],
        depth: usize,
    ) -> BoxFuture<'a, Result<Sum>> {
        Box::pin(async move {
            let mut sum = Sum {
                bytes: bytes.len() as u64,
                blobs: 0,
            };
            match parsed.document {
                Document::Image(blobs) => {
                    sum.add(measure(&blobs));
                    stream::iter(blobs.into_iter().map(Ok::<_, Error>))
                        .try_for_each_concurrent(AT_ONCE, |blob| async move {
                            let source = Source {
                                priority: source.priority.part(),
                                ..source.clone()
                            };
                            self.complete(&source, repo, &blob.digest, blob.size).await
                        })
                        .await?;
                }
                Document::Index(children) => {
                    let chosen = document::choose(&children, platforms);
                    if chosen.is_empty() && !children.is_empty() {
                        return Err(Error::Invalid(format!(
                            "the index has nothing for {}",
                            platforms.join(", ")
                        )));
                    }
                    if depth >= MAX_DEPTH {
                        return Err(Error::Invalid(
                            "indexes inside indexes inside indexes".to_owned(),
                        ));
                    }
                    let chosen: Vec<Descriptor> = chosen
                        .into_iter()
                        .map(|child| child.descriptor.clone())
                        .collect();
                    let sums: Vec<Sum> = stream::iter(chosen.into_iter().map(|child| async move {
                        self.complete_child(source, repo, &child, platforms, depth + 1)
                            .await
                    }))
                    .buffer_unordered(AT_ONCE)
                    .try_collect()
                    .await?;
                    for part in sums {
                        sum.add(part);
                    }
                }
            }
            self.inner.store.put_manifest(repo, digest, bytes).await?;
            if let Some(subject) = parsed.subject {
                self.inner
                    .store
                    .add_referrer(repo, &subject, digest)
                    .await?;
            }
            Ok(sum)
        })
    }

    async fn complete_child(
        &self,
        source: &Source,
        repo: &RepositoryName,
        child: &Descriptor,
        platforms: &[String],
        depth: usize,
    ) -> Result<Sum> {
        let reference = ManifestRef::Digest(child.digest.clone());
        let known = match self.inner.arriving.manifest(repo, &reference) {
            Some(entry) => Some((entry.bytes, entry.media_type)),
            None => self
                .inner
                .store
                .manifest(repo, &child.digest)
                .await?
                .map(|bytes| (bytes, String::new())),
        };
        let (bytes, media_type) = if let Some(known) = known {
            known
        } else {
            let manifest = self
                .inner
                .upstreams
                .manifest(source, child.digest.as_str())
                .await?;
            (manifest.bytes, manifest.media_type)
        };
        if bytes.len() as u64 != child.size {
            return Err(Error::Invalid(format!(
                "{} has {} bytes, its index says {}",
                child.digest,
                bytes.len(),
                child.size
            )));
        }
        let manifest = Manifest {
            digest: child.digest.clone(),
            media_type,
            bytes: bytes.clone(),
        };
        let parsed = self.arrived(repo, &reference, manifest)?;
        let sum = self
            .complete_document(source, repo, &child.digest, bytes, parsed, platforms, depth)
            .await?;
        self.inner.arriving.remove(repo, &child.digest);
        Ok(sum)
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
        let Some((sum, media_type)) = self.local_document(repo, &digest, platforms, 0).await?
        else {
            return Ok(None);
        };
        Ok(Some(FillResult {
            digest: digest.to_string(),
            media_type,
            size_bytes: sum.bytes,
            blobs: sum.blobs,
            already_local: true,
        }))
    }

    fn local_document<'a>(
        &'a self,
        repo: &'a RepositoryName,
        digest: &'a Digest,
        platforms: &'a [String],
        depth: usize,
    ) -> BoxFuture<'a, Result<Option<(Sum, String)>>> {
        Box::pin(async move {
            let bytes = match self.inner.store.manifest(repo, digest).await {
                Ok(Some(bytes)) => bytes,
                // Damaged content was moved aside and is fetched again.
                Ok(None) | Err(holdfast_store::Error::Corrupt { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let Ok(parsed) = document::parse(&bytes, "") else {
                return Ok(None);
            };
            let mut sum = Sum {
                bytes: bytes.len() as u64,
                blobs: 0,
            };
            match &parsed.document {
                Document::Image(blobs) => {
                    for blob in blobs {
                        let linked = self.inner.store.repo_has_blob(repo, &blob.digest).await?;
                        if !linked
                            || self.inner.store.stat_blob(&blob.digest).await? != Some(blob.size)
                        {
                            return Ok(None);
                        }
                    }
                    sum.add(measure(blobs));
                }
                Document::Index(children) => {
                    if depth >= MAX_DEPTH {
                        return Ok(None);
                    }
                    for child in document::choose(children, platforms) {
                        let Some((part, _)) = self
                            .local_document(repo, &child.descriptor.digest, platforms, depth + 1)
                            .await?
                        else {
                            return Ok(None);
                        };
                        sum.add(part);
                    }
                }
            }
            Ok(Some((sum, parsed.media_type)))
        })
    }
}

fn measure(blobs: &[Descriptor]) -> Sum {
    Sum {
        bytes: blobs.iter().map(|blob| blob.size).sum(),
        blobs: blobs.len() as u64,
    }
}
