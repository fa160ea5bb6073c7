//! Fills: images on their way from an upstream into the store.
//!
//! Owns what may be fetched and with which credentials, the single flight of a digest in the
//! process and on the volume, and the order in which an image becomes visible: blobs, then the
//! manifests that name them, then the index byte for byte, then the tag. Nothing is visible before
//! it is verified. Knows nothing of HTTP routes, clients and Artifacts.

mod access;
mod arriving;
mod blob;
mod candidates;
mod entry;
mod failures;
mod fresh;
mod grants;
mod image;
pub mod internal;
pub mod limits;
mod lists;
pub mod metrics;
mod names;
mod offers;
mod peers;
mod pull;
mod relay;
mod shared;
pub mod source;
mod tally;
mod wanted;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, Shared};
use holdfast_api::fill::{Credential, FillError, FillErrorCode, FillRequest, FillResult, Priority};
use holdfast_core::{Digest, Host, ManifestRef, Reference, RepositoryName, rewrite};
use holdfast_store::{LockHolder, PartialBlob, Store};
use tokio::sync::Semaphore;

use crate::source::SourceError;
use arriving::Arriving;
use fresh::Checks;
use grants::Grants;
use holdfast_upstream::{self as upstream, Interest, Login, SharedPriority, Source, Upstreams};
pub use metrics::Metrics;
pub use peers::Peers;

/// Why a fill failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The upstream says that it does not exist.
    #[error("the upstream has no such image")]
    NotFound,
    /// The upstream refused every credential.
    #[error("the upstream refused every credential")]
    Unauthorized,
    /// The upstream, or the replica that copies, cannot be reached or fails.
    #[error("{0}")]
    Unavailable(String),
    /// The same, and the upstream says when it may be asked again.
    #[error("{0}")]
    Later(String, Duration),
    /// The upstream asks to be left alone for so long.
    #[error("too many requests, the upstream asks for a pause of {} s", .0.as_secs_f64().ceil())]
    TooMany(Duration),
    /// The upstream's bytes do not match their digest or are no image.
    #[error("{0}")]
    Invalid(String),
    /// The upstream's bytes have the right digest and are no manifest that is taken.
    #[error("{0}")]
    NoManifest(String),
    /// Neither an Artifact nor the settings name it.
    #[error("nothing allows to fetch it")]
    NotAllowed,
    /// The settings do not list its upstream, and nothing else may name it.
    #[error("its upstream is not listed")]
    NotListed,
    /// The settings rule its upstream out.
    #[error("{0} is not copied: `sources` or `onlyListedUpstreams` of the values rule it out")]
    Forbidden(Host),
    /// The request is malformed.
    #[error("{0}")]
    Request(String),
    /// The volume has no room for it.
    #[error("{0}")]
    NoSpace(String),
    /// Too much waits already; it may be tried again.
    #[error("{0}")]
    Busy(String),
    /// The store failed; details are in the log.
    #[error("the store failed: {0}")]
    Store(&'static str),
}

impl Error {
    /// The error as a label.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Unauthorized => "unauthorized",
            Self::Unavailable(_) | Self::Later(..) | Self::TooMany(_) => "unavailable",
            Self::Invalid(_) | Self::NoManifest(_) => "invalid",
            Self::NotAllowed | Self::NotListed => "not_allowed",
            Self::Forbidden(_) => "forbidden",
            Self::Request(_) => "bad_request",
            Self::NoSpace(_) => "no_space",
            Self::Busy(_) => "busy",
            Self::Store(_) => "store_failed",
        }
    }
}

/// Result of a fill.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<upstream::Error> for Error {
    fn from(error: upstream::Error) -> Self {
        match error {
            upstream::Error::NotFound => Self::NotFound,
            upstream::Error::Unauthorized => Self::Unauthorized,
            upstream::Error::Invalid(what) => Self::Invalid(what),
            upstream::Error::Busy(_) => Self::Busy(error.to_string()),
            upstream::Error::TooMany(pause) => Self::TooMany(pause),
            upstream::Error::Later(what, pause) => Self::Later(what, pause),
            upstream::Error::NoManifest(what) => Self::NoManifest(what),
            upstream::Error::Unavailable(what) | upstream::Error::Settings(what) => {
                Self::Unavailable(what)
            }
        }
    }
}

impl From<holdfast_store::Error> for Error {
    fn from(error: holdfast_store::Error) -> Self {
        if let holdfast_store::Error::NoSpace { available_bytes } = error {
            let what = format!("the volume is full ({available_bytes} bytes left)");
            return Self::NoSpace(what);
        }
        tracing::error!(%error, source = std::error::Error::source(&error), "the store failed during a copy");
        Self::Store(error.category())
    }
}

impl From<Error> for FillError {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::NotFound => FillErrorCode::NotFound,
            Error::Unauthorized => FillErrorCode::Unauthorized,
            Error::Unavailable(_) | Error::Later(..) | Error::TooMany(_) | Error::Busy(_) => {
                FillErrorCode::UpstreamUnavailable
            }
            Error::Store(_) => FillErrorCode::StoreFailed,
            Error::Invalid(_) | Error::NoManifest(_) => FillErrorCode::UpstreamInvalid,
            Error::NoSpace(_) => FillErrorCode::NoSpace,
            Error::Request(_) | Error::NotAllowed | Error::NotListed | Error::Forbidden(_) => {
                FillErrorCode::Invalid
            }
        };
        Self {
            code,
            message: error.to_string(),
        }
    }
}

impl From<Error> for SourceError {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound => Self::NotFound,
            Error::Forbidden(_) => Self::Forbidden(error.to_string()),
            Error::Unauthorized => Self::Unauthorized("no credential fits".to_owned()),
            Error::Unavailable(what) => Self::Unavailable(what),
            Error::Later(what, pause) => Self::Later(what, pause),
            Error::TooMany(pause) => Self::TooMany(pause),
            Error::Invalid(what) | Error::NoManifest(what) => Self::Invalid(what),
            Error::NotAllowed | Error::Request(_) => Self::NotAllowed,
            Error::NoSpace(what) => Self::NoSpace(what),
            Error::Busy(_) => Self::Overloaded,
            Error::NotListed => Self::NotListed,
            Error::Store(_) => Self::Store(holdfast_store::Error::Busy),
        }
    }
}

/// How fills behave.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Platforms that a pull alone copies of an index (`os/architecture`); others come when they
    /// are asked for.
    pub platforms: Vec<String>,
    /// How long a pull of something that nothing names yet waits for the controller.
    pub hold: Duration,
    /// First pause before a broken copy goes on; doubles.
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
        }
    }
}

/// What makes two fills the same one: nobody's credentials open an image for somebody else.
type ImageKey = (RepositoryName, String, Vec<String>, Vec<Login>);
type ImageFill = Shared<BoxFuture<'static, Result<FillResult>>>;
/// A fill of an image that runs, how urgent it is, and who waits for it.
type RunningImage = (ImageFill, SharedPriority, Arc<Interest>);

/// What this process has of a blob that is on its way.
pub(crate) enum Growing {
    /// Its growing file.
    Here(PartialBlob),
    /// Something, and not for the repository that was named.
    OfOthers,
    /// No bytes so far.
    NotYet,
    /// Nothing.
    No,
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
    arriving: Arriving,
    /// Manifests on the volume that are read at the same time.
    readers: Semaphore,
    names: names::Names,
    streams: shared::Streams,
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
                metrics: Metrics::of(&upstreams),
                upstreams,
                owner,
                peers,
                grants: Grants::new(settings.grant),
                settings,
                blobs: Mutex::default(),
                images: Mutex::default(),
                checks: Mutex::default(),
                lists: lists::Lists::default(),
                arriving: Arriving::default(),
                readers: Semaphore::new(limits::MANIFESTS_READ),
                names: names::Names::default(),
                streams: shared::Streams::default(),
            }),
        }
    }

    /// Makes an image local and says what it is. Local already and not to be revalidated: no
    /// upstream is asked (SPEC 14). The fill goes on when the caller leaves.
    ///
    /// # Errors
    /// Why the image is not local.
    pub async fn fill(&self, request: &FillRequest) -> Result<FillResult> {
        let Asked {
            source,
            repo,
            target,
        } = Asked::of(&request.source, &request.credentials, request.priority)?;
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
                self.led_to(&source, &repo, &target, &local.digest);
                return Ok(local);
            }
        }
        permitted?;
        // Somebody asks on purpose, and with a pause of their own after each refusal.
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

    /// What a replica may hand to another one, for a repository if one is named. Whoever asks has
    /// somebody who waits.
    pub(crate) fn growing(&self, digest: &Digest, repo: Option<&RepositoryName>) -> Growing {
        let Some(entry) = self.lock_blobs().get(digest).cloned() else {
            return Growing::No;
        };
        self.inner
            .upstreams
            .raise(&entry.priority, Priority::Blocking);
        match &*entry.state.borrow() {
            entry::State::Growing(_) if repo.is_some_and(|repo| !entry.is_proven(repo)) => {
                Growing::OfOthers
            }
            entry::State::Growing(growing) => Growing::Here(growing.clone()),
            entry::State::Starting => Growing::NotYet,
            _ => Growing::No,
        }
    }

    /// The sizes that manifests on their way here claim for a blob; none: no manifest names it.
    pub(crate) fn named_here(&self, repo: &RepositoryName, digest: &Digest) -> Vec<u64> {
        self.inner.arriving.blob(repo, digest)
    }

    /// The numbers of fills and upstreams.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// A manifest that this process has verified and not stored yet, with its media type.
    pub(crate) fn arriving(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Option<arriving::Entry> {
        self.inner.arriving.manifest(repo, reference)
    }

    /// The store that is filled.
    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }

    fn lock_blobs(&self) -> MutexGuard<'_, HashMap<Digest, entry::Entry>> {
        self.inner
            .blobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers where a target led with the credentials that came with its request.
    fn led_to(&self, source: &Source, repo: &RepositoryName, target: &ManifestRef, digest: &str) {
        if let Ok(digest) = Digest::parse(digest) {
            let grants = &self.inner.grants;
            grants.led_to(repo, target, &source.logins, &digest);
        }
    }
}

/// What a request of the internal API names.
struct Asked {
    source: Source,
    repo: RepositoryName,
    target: ManifestRef,
}

impl Asked {
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
            // An empty user name with a token is how it was said before there was a field for it.
            if credential.identity_token || username.is_empty() {
                Login::identity(username, password)
            } else {
                Login::new(username, password)
            }
        };
        let source = Source {
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
