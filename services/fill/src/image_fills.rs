//! The fills of images: one for an image and its credentials in the process, which every request
//! joins, and what is local of an image.

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use holdfast_api::fill::FillResult;
use holdfast_core::{ManifestRef, RepositoryName, oci::IMAGE_DEPTH};
use holdfast_upstream::{Interest, Login, SharedPriority, UpstreamRepository};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    Error, Result, failures,
    image_copy::ImageCopier,
    metrics::Metrics,
    tally::{TOO_DEEP, Tally, in_no_index},
    wanted,
};

/// Fills are deduplicated by repository, reference, platforms and credentials, so one tenant's
/// credentials never serve another.
type ImageKey = (RepositoryName, String, Vec<String>, Vec<Login>);
type ImageFill = Shared<BoxFuture<'static, Result<FillResult>>>;
/// A fill of an image that runs, its priority, and the requests that wait for it.
type RunningImage = (ImageFill, SharedPriority, Arc<Interest>);

/// What is local of all that is wanted of an image.
pub(super) enum Presence {
    /// Everything.
    Whole(FillResult),
    /// Not the manifest of its name, or not all blobs.
    Lacking,
    /// Not all entries of an index: its upstream may lack them, too. Or it is too large.
    Unsure,
}

/// The fills of images in this process.
pub(super) struct ImageFills {
    copier: ImageCopier,
    metrics: Metrics,
    running: Mutex<HashMap<ImageKey, RunningImage>>,
}

impl ImageFills {
    pub(super) fn new(copier: ImageCopier, metrics: Metrics) -> Self {
        Self {
            copier,
            metrics,
            running: Mutex::default(),
        }
    }

    /// Joins the fill of an image in this process or begins it, and waits for its end.
    pub(super) async fn fill(
        self: &Arc<Self>,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        target: &ManifestRef,
        platforms: &[String],
    ) -> Result<FillResult> {
        let (running, interest) = self.join(source, repo, target, platforms);
        interest.keep();
        running.await
    }

    /// The same for a pull: while its first request waits for its turn at the upstream, the fill
    /// ends when its last client leaves.
    pub(super) async fn fill_for_pull(
        self: &Arc<Self>,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        target: &ManifestRef,
        platforms: &[String],
    ) -> Result<FillResult> {
        let (running, interest) = self.join(source, repo, target, platforms);
        let _held = interest.hold();
        running.await
    }

    fn join(
        self: &Arc<Self>,
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
        let mut running_images = self.running.lock();
        if let Some((running, priority, interest)) = running_images.get(&key) {
            self.copier.upstreams.join(priority, &source.priority);
            return (running.clone(), Arc::clone(interest));
        }
        let (tell, told) = oneshot::channel();
        let (interest, priority) = source.priority.clone().watched();
        let source = UpstreamRepository {
            priority: priority.clone(),
            ..source.clone()
        };
        let (images, task, target) = (Arc::clone(self), key.clone(), target.clone());
        // Its own task: a client that leaves does not stop it.
        tokio::spawn(async move {
            // A panic must not leave the entry behind: every later request would join it.
            let copy = AssertUnwindSafe(images.copier.copy(&source, &task.0, &target, &task.2));
            let result = copy
                .catch_unwind()
                .await
                .unwrap_or(Err(Error::Store("panic")));
            images.running.lock().remove(&task);
            let label = result.as_ref().map_or_else(Error::label, |_| "ok");
            images.metrics.ended("image", label);
            match &result {
                Err(Error::Busy(_)) | Ok(_) => {}
                Err(error) => {
                    let upstreams = &images.copier.upstreams;
                    failures::log_image(upstreams, &task.0, &target, error);
                }
            }
            // This fails if no request waits any more.
            drop(tell.send(result));
        });
        let running = told
            .map(|told| {
                told.unwrap_or_else(|_| {
                    Err(Error::Busy("the registry is shutting down".to_owned()))
                })
            })
            .boxed()
            .shared();
        running_images.insert(key, (running.clone(), priority, Arc::clone(&interest)));
        (running, interest)
    }

    /// An image, when all that is wanted of it is local.
    pub(super) async fn local(
        &self,
        repo: &RepositoryName,
        target: &ManifestRef,
        platforms: &[String],
    ) -> Result<Option<FillResult>> {
        Ok(match self.presence(repo, target, platforms).await? {
            Presence::Whole(local) => Some(local),
            Presence::Lacking | Presence::Unsure => None,
        })
    }

    /// What is local of an image.
    pub(super) async fn presence(
        &self,
        repo: &RepositoryName,
        target: &ManifestRef,
        platforms: &[String],
    ) -> Result<Presence> {
        let digest = match target {
            ManifestRef::Digest(digest) => Some(digest.clone()),
            ManifestRef::Tag(tag) => self.copier.store.tag(repo, tag).await?,
        };
        let Some(digest) = digest else {
            return Ok(Presence::Lacking);
        };
        let platforms = wanted::platforms(platforms);
        let (mut tally, mut media_type) = (Tally::default(), None);
        let mut left = vec![(digest.clone(), 0)];
        while let Some((next, depth)) = left.pop() {
            if tally.seen.contains(&next) {
                continue;
            }
            let found = self
                .copier
                .manifests
                .stored(repo, &next, |manifest, bytes| {
                    let lacking = in_no_index(manifest, &platforms);
                    let parts = wanted::parts(manifest, &platforms);
                    (manifest.media_type, parts, bytes, lacking)
                });
            let Some((kind, parts, bytes, lacking)) = found.await? else {
                return Ok(if depth == 0 {
                    Presence::Lacking
                } else {
                    Presence::Unsure
                });
            };
            if tally.add(&next, bytes).is_err() {
                return Ok(Presence::Unsure);
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
                let store = &self.copier.store;
                let is_linked = store.repo_has_blob(repo, &part.digest).await?;
                if !is_linked || store.stat_blob(&part.digest).await? != Some(part.size) {
                    return Ok(Presence::Lacking);
                }
            }
            tally.size.add(&parts);
        }
        let whole = media_type.map(|media_type| FillResult {
            digest: digest.to_string(),
            media_type: media_type.as_str().to_owned(),
            size_bytes: tally.size.bytes,
            blobs: tally.size.blobs,
            already_local: true,
            missing: tally.missing,
        });
        Ok(whole.map_or(Presence::Lacking, Presence::Whole))
    }
}
