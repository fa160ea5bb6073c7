//! Fills: copies of images from upstreams and from other replicas into the store.
//!
//! Owns authorization (which credentials may open what), one copy of a digest in the process and on
//! the volume, the streams between replicas, and the order in which an image becomes visible:
//! blobs, then the manifests that name them, then the index byte for byte, then the tag. Nothing is
//! visible before it is verified. Knows nothing of the distribution API, clients and Artifacts.
//! `docs/design/fills.md` is the protocol.

mod blob_copies;
mod blob_copy;
mod candidates;
mod entry;
mod error;
mod failures;
mod fan_out;
mod grants;
mod image;
pub mod internal;
pub mod limits;
mod lists;
mod manifests;
pub mod metrics;
mod names;
mod offers;
mod on_demand;
mod peer_stream;
mod peers;
mod pending_manifests;
pub mod pull_through;
mod request;
mod revalidate;
mod settings;
mod sources;
mod tally;
mod wanted;

use std::{collections::HashMap, sync::Arc};

use futures::future::{BoxFuture, Shared};
use holdfast_api::{
    access::{Access, AccessRequest},
    fill::{FillRequest, FillResult},
};
use holdfast_core::{Digest, ManifestRef, RepositoryName};
use holdfast_store::{LockHolder, Store};
use parking_lot::Mutex;

use blob_copies::{BlobCopies, Growing};
use blob_copy::Copier;
pub use error::{Error, Result};
use holdfast_upstream::{Interest, Login, SharedPriority, Upstreams};
use manifests::Manifests;
pub use metrics::Metrics;
pub use peers::Peers;
use request::NamedImage;
use revalidate::Checks;
pub use settings::Settings;
use sources::Sources;

/// Fills are deduplicated by repository, reference, platforms and credentials, so one tenant's
/// credentials never serve another.
type ImageKey = (RepositoryName, String, Vec<String>, Vec<Login>);
type ImageFill = Shared<BoxFuture<'static, Result<FillResult>>>;
/// A fill of an image that runs, its priority, and the requests that wait for it.
type RunningImage = (ImageFill, SharedPriority, Arc<Interest>);

/// All fills of a process. Clones share everything.
#[derive(Clone)]
pub struct Fills {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    upstreams: Upstreams,
    metrics: Metrics,
    owner: LockHolder,
    peers: Arc<Peers>,
    settings: Settings,
    manifests: Arc<Manifests>,
    sources: Arc<Sources>,
    copies: Arc<BlobCopies>,
    images: Mutex<HashMap<ImageKey, RunningImage>>,
    checks: Mutex<Checks>,
    lists: lists::Lists,
    streams: fan_out::Streams,
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
        let copies = BlobCopies::new(Copier {
            store: store.clone(),
            upstreams: upstreams.clone(),
            peers: Arc::clone(&peers),
            metrics: metrics.clone(),
            owner: owner.clone(),
            retry: settings.retry,
        });
        Self {
            inner: Arc::new(Inner {
                store,
                metrics,
                upstreams,
                owner,
                peers,
                manifests,
                sources: Arc::new(sources),
                settings,
                copies: Arc::new(copies),
                images: Mutex::default(),
                checks: Mutex::default(),
                lists: lists::Lists::default(),
                streams: fan_out::Streams::default(),
            }),
        }
    }

    /// Makes an image local and says what it is. Local already and not to be revalidated: no
    /// upstream is asked (SPEC 14). The fill goes on when the caller leaves.
    ///
    /// # Errors
    /// Why the image is not local.
    pub async fn fill(&self, request: &FillRequest) -> Result<FillResult> {
        let image = NamedImage::of(&request.source, &request.credentials, request.priority)?;
        let sources = &self.inner.sources;
        let permitted = sources.permit(&image.source.host);
        sources.grant(&image);
        let NamedImage {
            source,
            repo,
            target,
        } = image;
        if let Some(local) = self.local(&repo, &target, &request.platforms).await? {
            let moved = match (&target, request.revalidate && permitted.is_ok()) {
                (ManifestRef::Tag(tag), true) => {
                    match self.inner.upstreams.revalidate(&source, tag.as_str()).await {
                        Ok(current) => current.as_str() != local.digest,
                        // Asked and not answered: what is local stays good.
                        Err(_) => false,
                    }
                }
                _ => false,
            };
            if !moved {
                if let Ok(digest) = Digest::parse(&local.digest) {
                    sources.record_root(&source, &repo, &target, &digest);
                }
                return Ok(local);
            }
        }
        permitted?;
        // This request is explicit, and its caller pauses after each refusal.
        self.inner.upstreams.ask_again(&source, &target.to_string());
        self.image(&source, &repo, &target, &request.platforms)
            .await
    }

    /// Asks the upstream of an image which of the request's credentials it accepts. Allows no pull.
    ///
    /// # Errors
    /// [`Error::Request`] when the source is malformed.
    pub async fn access(&self, request: &AccessRequest) -> Result<Access> {
        self.inner.sources.access(request).await
    }

    /// What another replica may read of a blob that this process copies, for a repository if one is
    /// named.
    pub(crate) fn growing(&self, digest: &Digest, repo: Option<&RepositoryName>) -> Growing {
        self.inner.copies.growing(digest, repo)
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
        self.inner.sources.permit(&source.host)?;
        Ok(self.inner.copies.take_offer(digest, claim, source, &repo))
    }

    /// The sizes that manifests on their way here claim for a blob; none: no manifest names it.
    pub(crate) fn named_here(&self, repo: &RepositoryName, digest: &Digest) -> Vec<u64> {
        self.inner.manifests.pending_sizes(repo, digest)
    }

    /// The metrics of fills and upstreams.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// A manifest that this process has verified and not stored yet, with its media type.
    pub(crate) fn pending_manifests(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Option<pending_manifests::PendingManifest> {
        self.inner.manifests.pending(repo, reference)
    }

    /// The store that is filled.
    pub fn store(&self) -> &Store {
        &self.inner.store
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
