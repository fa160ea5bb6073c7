//! Fills: copies of images from upstreams and from other replicas into the store.
//!
//! Owns authorization (which credentials may open what), one copy of a digest in the process and on
//! the volume, the streams between replicas, and the order in which an image becomes visible:
//! blobs, then the manifests that name them, then the index byte for byte, then the tag. Nothing is
//! visible before it is verified. Knows nothing of the distribution API, clients and Artifacts.
//! `docs/design/fills.md` is the protocol.
//!
//! [`Fills`] is the entrance to components that each own their state. From the lowest one:
//! [`Manifests`], [`Sources`] and [`Replicas`]; [`BlobCopies`] and [`ImageFills`]; [`HeldChecks`],
//! [`TagChecks`], [`Lists`], [`ManifestPulls`] and [`BlobPulls`]. [`internal`] serves them to the
//! controller and to other replicas.

mod blob_copies;
mod blob_copy;
mod blob_pulls;
mod candidates;
mod compared_tags;
mod entry;
mod error;
mod failures;
mod fan_out;
mod grants;
mod held;
mod image_copy;
mod image_fills;
pub mod internal;
pub mod limits;
mod lists;
mod manifest_pulls;
mod manifests;
pub mod metrics;
mod names;
mod offers;
mod peer_stream;
mod peers;
mod pending_manifests;
pub mod pull_through;
mod replicas;
mod request;
mod settings;
mod sources;
mod tag_checks;
mod tally;
mod wanted;

use std::sync::Arc;

use futures::future::BoxFuture;
use holdfast_api::{
    access::{Access, AccessRequest},
    fill::{FillRequest, FillResult},
    questions::{Answers, held::Image},
};
use holdfast_core::{Digest, ManifestRef, RepositoryName, Tag};
use holdfast_store::{LockHolder, Store};
use holdfast_upstream::{Referrer, Upstreams};

use blob_copies::{BlobCopies, Growing};
use blob_copy::BlobCopier;
use blob_pulls::BlobPulls;
use compared_tags::ComparedTags;
pub use error::{Error, Result};
use held::HeldChecks;
use image_copy::ImageCopier;
use image_fills::ImageFills;
use lists::Lists;
use manifest_pulls::ManifestPulls;
use manifests::Manifests;
pub use metrics::Metrics;
pub use peers::Peers;
use pull_through::{Freshness, Listed, PullThrough, PulledBlob};
use replicas::Replicas;
use request::NamedImage;
pub use settings::Settings;
use sources::Sources;
use tag_checks::TagChecks;

/// All fills of a process. Clones share everything.
#[derive(Clone)]
pub struct Fills {
    store: Store,
    upstreams: Upstreams,
    metrics: Arc<Metrics>,
    manifests: Arc<Manifests>,
    sources: Arc<Sources>,
    copies: Arc<BlobCopies>,
    images: Arc<ImageFills>,
    held_checks: Arc<HeldChecks>,
    tag_checks: Arc<TagChecks>,
    lists: Arc<Lists>,
    manifest_pulls: Arc<ManifestPulls>,
    blob_pulls: Arc<BlobPulls>,
}

impl Fills {
    /// Fills into `store`. `owner` is what other replicas read in the locks: the address of this
    /// replica's internal API (`ip:port`, empty without one) and a name that no other process
    /// has.
    pub fn new(
        store: Store,
        upstreams: Upstreams,
        owner: LockHolder,
        peers: Peers,
        settings: Settings,
    ) -> Self {
        let metrics = Metrics {
            upstream: upstreams.metrics().clone(),
            ..settings.metrics.clone()
        };
        let peers = Arc::new(peers);
        let manifests = Arc::new(Manifests::new(store.clone()));
        let sources = Sources::new(upstreams.clone(), Arc::clone(&manifests), &settings);
        let sources = Arc::new(sources);
        let replicas = Replicas::new(store.clone(), owner.clone(), Arc::clone(&peers));
        let replicas = Arc::new(replicas);
        let copies = Arc::new(BlobCopies::new(BlobCopier {
            store: store.clone(),
            upstreams: upstreams.clone(),
            peers,
            metrics: metrics.clone(),
            owner: owner.clone(),
            retry: settings.retry,
        }));
        let compared = Arc::<ComparedTags>::default();
        let copier = ImageCopier {
            store: store.clone(),
            upstreams: upstreams.clone(),
            manifests: Arc::clone(&manifests),
            sources: Arc::clone(&sources),
            copies: Arc::clone(&copies),
            compared: Arc::clone(&compared),
            owner,
        };
        let images = Arc::new(ImageFills::new(copier, metrics.clone()));
        let held_checks = Arc::new(HeldChecks::new(Arc::clone(&images)));
        let tag_checks = TagChecks::new(
            upstreams.clone(),
            metrics.clone(),
            Arc::clone(&sources),
            Arc::clone(&images),
            compared,
            &settings,
        );
        let lists = Lists::new(upstreams.clone(), Arc::clone(&sources), &settings);
        let manifest_pulls = ManifestPulls::new(
            upstreams.clone(),
            Arc::clone(&manifests),
            Arc::clone(&sources),
            Arc::clone(&images),
            Arc::clone(&replicas),
            &settings,
        );
        let blob_pulls = BlobPulls::new(
            store.clone(),
            upstreams.clone(),
            Arc::clone(&manifests),
            Arc::clone(&sources),
            Arc::clone(&copies),
            replicas,
            &settings,
        );
        Self {
            store,
            upstreams,
            metrics: Arc::new(metrics),
            manifests,
            sources,
            copies,
            images,
            held_checks,
            tag_checks: Arc::new(tag_checks),
            lists: Arc::new(lists),
            manifest_pulls: Arc::new(manifest_pulls),
            blob_pulls: Arc::new(blob_pulls),
        }
    }

    /// Makes an image local and says what it is. Local already and not to be revalidated: no
    /// upstream is asked (SPEC 14). The fill goes on when the caller leaves.
    ///
    /// # Errors
    /// Why the image is not local.
    pub async fn fill(&self, request: &FillRequest) -> Result<FillResult> {
        let image = NamedImage::of(&request.source, &request.credentials, request.priority)?;
        let permitted = self.sources.permit(&image.source.host);
        self.sources.grant(&image);
        let NamedImage {
            source,
            repo,
            target,
        } = image;
        if let Some(local) = self
            .images
            .local(&repo, &target, &request.platforms)
            .await?
        {
            let moved = match (&target, request.revalidate && permitted.is_ok()) {
                (ManifestRef::Tag(tag), true) => {
                    match self.upstreams.revalidate(&source, tag.as_str()).await {
                        Ok(current) => current.as_str() != local.digest,
                        // Asked and not answered: what is local stays good.
                        Err(_) => false,
                    }
                }
                _ => false,
            };
            if !moved {
                if let Ok(digest) = Digest::parse(&local.digest) {
                    self.sources.record_root(&source, &repo, &target, &digest);
                }
                return Ok(local);
            }
        }
        permitted?;
        // This request is explicit, and its caller pauses after each refusal.
        self.upstreams.ask_again(&source, &target.to_string());
        self.images
            .fill(&source, &repo, &target, &request.platforms)
            .await
    }

    /// Whether images are on the volume. `None`: too many requests ask that.
    pub(crate) async fn held(&self, images: Vec<Image>) -> Option<Answers> {
        self.held_checks.answers(images).await
    }

    /// Asks the upstream of an image which of the request's credentials it accepts. Allows no pull.
    ///
    /// # Errors
    /// [`Error::Request`] when the source is malformed.
    pub async fn access(&self, request: &AccessRequest) -> Result<Access> {
        self.sources.access(request).await
    }

    /// What another replica may read of a blob that this process copies, for a repository if one is
    /// named.
    pub(crate) fn growing(&self, digest: &Digest, repo: Option<&RepositoryName>) -> Growing {
        self.copies.growing(digest, repo)
    }

    /// Takes a source that another replica offers for a copy that runs here. `false`: none runs, or
    /// it takes no further sources.
    ///
    /// # Errors
    /// Why the source is not valid.
    pub(crate) fn take_offer(
        &self,
        digest: &Digest,
        claim: Option<u64>,
        request: &FillRequest,
    ) -> Result<bool> {
        let NamedImage {
            source,
            repo,
            target,
        } = NamedImage::of(&request.source, &request.credentials, request.priority)?;
        if target != ManifestRef::Digest(digest.clone()) {
            return Err(Error::Request("source: it names other content".to_owned()));
        }
        self.sources.permit(&source.host)?;
        Ok(self.copies.take_offer(digest, claim, source, &repo))
    }

    /// The sizes that manifests on their way here claim for a blob; none: no manifest names it.
    pub(crate) fn named_here(&self, repo: &RepositoryName, digest: &Digest) -> Vec<u64> {
        self.manifests.pending_sizes(repo, digest)
    }

    /// The metrics of fills and upstreams.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// A manifest that this process has verified and not stored yet, with its media type.
    pub(crate) fn pending_manifests(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Option<pending_manifests::PendingManifest> {
        self.manifests.pending(repo, reference)
    }

    /// The store that is filled.
    pub fn store(&self) -> &Store {
        &self.store
    }
}

impl PullThrough for Fills {
    fn fetches(&self, repo: &RepositoryName) -> bool {
        self.sources.fetches(repo)
    }

    fn manifest<'a>(
        &'a self,
        repo: &'a RepositoryName,
        reference: &'a ManifestRef,
    ) -> BoxFuture<'a, Result<pull_through::Manifest>> {
        Box::pin(async move {
            let entry = self.manifest_pulls.manifest(repo, reference).await?;
            Ok(pull_through::Manifest {
                digest: entry.digest,
                bytes: entry.bytes,
            })
        })
    }

    fn blob<'a>(
        &'a self,
        repo: &'a RepositoryName,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<PulledBlob>> {
        Box::pin(self.blob_pulls.blob(repo, digest))
    }

    fn served(&self, kind: &'static str, is_hit: bool, bytes: u64) {
        self.metrics.proxy.served(kind, is_hit, bytes);
    }

    fn tags<'a>(&'a self, repo: &'a RepositoryName) -> BoxFuture<'a, Listed<Tag>> {
        Box::pin(self.lists.tags(repo))
    }

    fn referrers<'a>(
        &'a self,
        repo: &'a RepositoryName,
        subject: &'a Digest,
    ) -> BoxFuture<'a, Listed<Referrer>> {
        Box::pin(self.lists.referrers(repo, subject))
    }

    fn revalidate<'a>(
        &'a self,
        repo: &'a RepositoryName,
        tag: &'a Tag,
        local: &'a Digest,
    ) -> BoxFuture<'a, Freshness> {
        Box::pin(self.tag_checks.revalidate(repo, tag, local))
    }
}

/// What a copy takes of an upstream's manifest: blobs that it must have, and children.
///
/// # Errors
/// Why it is no manifest.
#[doc(hidden)]
pub fn references(bytes: &[u8]) -> Result<(Vec<Digest>, Vec<Digest>), String> {
    let manifest = holdfast_core::oci::Manifest::parse(bytes).map_err(|error| error.to_string())?;
    let parts = wanted::parts(&manifest, &[]).into_iter();
    let digests = parts
        .filter(|part| !part.is_foreign)
        .map(|part| part.digest)
        .collect();
    Ok(if manifest.is_index() {
        (Vec::new(), digests)
    } else {
        (digests, Vec::new())
    })
}

#[cfg(test)]
mod tests;
