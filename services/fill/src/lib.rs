//! Fills: copies of images from upstreams and from other replicas into the store.
//!
//! Owns authorization (which credentials may open what), one copy of a digest in the process and on
//! the volume, the streams between replicas, and the order in which an image becomes visible:
//! blobs, then the manifests that name them, then the index byte for byte, then the tag. Nothing is
//! visible before it is verified. Knows nothing of the distribution API, clients and Artifacts.
//! `docs/design/fills.md` is the protocol.

mod access;
mod blob;
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
pub mod metrics;
mod names;
mod offers;
mod on_demand;
mod peer_stream;
mod peers;
mod pending_manifests;
pub mod pull_through;
mod revalidate;
mod tally;
mod wanted;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, Shared};
use holdfast_api::fill::{Credential, FillRequest, FillResult, Priority};
use holdfast_core::{Digest, Host, ManifestRef, Reference, RepositoryName, rewrite};
use holdfast_store::{LockHolder, PartialBlob, Store};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;

pub use error::{Error, Result};
use grants::Grants;
use holdfast_upstream::{Interest, Login, SharedPriority, UpstreamRepository, Upstreams};
pub use metrics::Metrics;
pub use peers::Peers;
use pending_manifests::PendingManifests;
use revalidate::Checks;

/// The settings of fills.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Platforms that a pull alone copies of an index (`os/architecture`); others come when they
    /// are asked for.
    pub platforms: Vec<String>,
    /// How long a pull of something that nothing names yet waits for the controller.
    pub hold: Duration,
    /// First pause before a broken copy is continued; doubles.
    pub retry: Duration,
    /// Whether a pull of a tag that is local asks the upstream whether it moved.
    pub revalidate_pulls: bool,
    /// How long a tag counts as fresh after it was copied or compared.
    pub tag_fresh: Duration,
    /// Whether fill requests may come: then what nothing names yet may be named a moment later.
    pub has_controller: bool,
    /// Whether a pull alone may copy from an upstream that the settings list; otherwise only what a
    /// fill request named is copied.
    pub pull_through: bool,
    /// The upstreams that may be copied; `None`: every one.
    pub permitted: Option<holdfast_core::UpstreamFilter>,
    /// How long what came with a fill request serves pulls of what it named: longer than the
    /// controller's rounds.
    pub grant: Duration,
    /// The metrics.
    pub metrics: Metrics,
}

impl Default for Settings {
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            platforms: vec![format!("linux/{architecture}")],
            hold: Duration::from_secs(10),
            retry: Duration::from_millis(200),
            revalidate_pulls: false,
            tag_fresh: Duration::from_secs(300),
            has_controller: true,
            pull_through: true,
            permitted: None,
            grant: Duration::from_secs(30 * 60),
            metrics: Metrics::default(),
        }
    }
}

/// Fills are deduplicated by repository, reference, platforms and credentials, so one tenant's
/// credentials never serve another.
type ImageKey = (RepositoryName, String, Vec<String>, Vec<Login>);
type ImageFill = Shared<BoxFuture<'static, Result<FillResult>>>;
/// A fill of an image that runs, its priority, and the requests that wait for it.
type RunningImage = (ImageFill, SharedPriority, Arc<Interest>);

/// What this process has of a blob that arrives.
pub(crate) enum Growing {
    /// Its growing file.
    Local(PartialBlob),
    /// Bytes that the named repository may not read.
    NotAuthorized,
    /// No bytes so far.
    NotYet,
    /// Nothing.
    Nothing,
}

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
    peers: Peers,
    settings: Settings,
    grants: Grants,
    blobs: Mutex<HashMap<Digest, entry::Entry>>,
    images: Mutex<HashMap<ImageKey, RunningImage>>,
    checks: Mutex<Checks>,
    lists: lists::Lists,
    pending_manifests: PendingManifests,
    /// Manifests on the volume that are read at the same time.
    readers: Semaphore,
    names: names::Names,
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
        Self {
            inner: Arc::new(Inner {
                store,
                metrics: Metrics {
                    upstream: upstreams.metrics().clone(),
                    ..settings.metrics.clone()
                },
                upstreams,
                owner,
                peers,
                grants: Grants::new(settings.grant),
                settings,
                blobs: Mutex::default(),
                images: Mutex::default(),
                checks: Mutex::default(),
                lists: lists::Lists::default(),
                pending_manifests: PendingManifests::default(),
                readers: Semaphore::new(limits::MANIFESTS_READ),
                names: names::Names::default(),
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
        let NamedImage {
            source,
            repo,
            target,
        } = NamedImage::of(&request.source, &request.credentials, request.priority)?;
        let permitted = self.permit(&source.host);
        self.inner
            .grants
            .add(&repo, &target, &source.logins, Instant::now());
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
                self.record_root(&source, &repo, &target, &local.digest);
                return Ok(local);
            }
        }
        permitted?;
        // This request is explicit, and its caller pauses after each refusal.
        self.inner.upstreams.ask_again(&source, &target.to_string());
        self.image(&source, &repo, &target, &request.platforms)
            .await
    }

    /// Whether the settings let this upstream be copied. What is stored is served in any case.
    fn permit(&self, host: &Host) -> Result<()> {
        match &self.inner.settings.permitted {
            Some(permitted) if !permitted.include(host) => Err(Error::Forbidden(host.clone())),
            _ => Ok(()),
        }
    }

    /// Whether a pull alone may copy from this upstream.
    fn pulls_through(&self, host: &Host) -> bool {
        self.inner.settings.pull_through && self.inner.upstreams.is_listed(host)
    }

    /// [`Fills::permit`] for a local repository; one that is no upstream's is not its matter.
    fn permit_repository(&self, repo: &RepositoryName) -> Result<()> {
        rewrite::upstream_of(repo).map_or(Ok(()), |(host, _)| self.permit(&host))
    }

    /// What a replica may pass to another replica, for a repository if one is named. A request
    /// means that a client waits.
    pub(crate) fn growing(&self, digest: &Digest, repo: Option<&RepositoryName>) -> Growing {
        let Some(entry) = self.lock_blobs().get(digest).cloned() else {
            return Growing::Nothing;
        };
        self.inner
            .upstreams
            .raise(&entry.priority, Priority::Blocking);
        match &*entry.state.borrow() {
            entry::State::Growing(_) if repo.is_some_and(|repo| !entry.is_authorized(repo)) => {
                Growing::NotAuthorized
            }
            entry::State::Growing(growing) => Growing::Local(growing.clone()),
            entry::State::Starting => Growing::NotYet,
            _ => Growing::Nothing,
        }
    }

    /// The sizes that manifests on their way here claim for a blob; none: no manifest names it.
    pub(crate) fn named_here(&self, repo: &RepositoryName, digest: &Digest) -> Vec<u64> {
        self.inner.pending_manifests.blob(repo, digest)
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
        self.inner.pending_manifests.manifest(repo, reference)
    }

    /// The store that is filled.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    fn lock_blobs(&self) -> MutexGuard<'_, HashMap<Digest, entry::Entry>> {
        self.inner.blobs.lock()
    }

    /// Remembers where a target led with the credentials that came with its request.
    fn record_root(
        &self,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        target: &ManifestRef,
        digest: &str,
    ) {
        if let Ok(digest) = Digest::parse(digest) {
            let grants = &self.inner.grants;
            grants.record_root(repo, target, &source.logins, &digest);
        }
    }
}

/// The image that a request of the internal API names.
struct NamedImage {
    source: UpstreamRepository,
    repo: RepositoryName,
    target: ManifestRef,
}

impl NamedImage {
    /// Only what came with this request: another namespace's login must not open this one's images.
    fn of(text: &str, credentials: &[Credential], level: Priority) -> Result<Self> {
        let reference =
            Reference::parse(text).map_err(|error| Error::Request(format!("source: {error}")))?;
        let repo = rewrite::local_repository(reference.host(), reference.repository())
            .ok_or_else(|| Error::Request("the source has no local name".to_owned()))?;
        let target = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => ManifestRef::Digest(digest.clone()),
            (None, Some(tag)) => ManifestRef::Tag(tag.clone()),
            (None, None) => return Err(Error::Request("the source names no image".to_owned())),
        };
        let login = |credential: &Credential| {
            let (username, password) = (&credential.username, credential.password.expose());
            // Before there was a field for it, a token came with an empty user name.
            if credential.identity_token || username.is_empty() {
                Login::identity(username, password)
            } else {
                Login::new(username, password)
            }
        };
        let source = UpstreamRepository {
            host: reference.host().clone(),
            repository: reference.repository().clone(),
            logins: credentials.iter().map(login).collect(),
            priority: SharedPriority::new(level),
        };
        Ok(Self {
            source,
            repo,
            target,
        })
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
