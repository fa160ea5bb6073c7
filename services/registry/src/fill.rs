//! Fills: images on their way from an upstream into the store.
//!
//! Owns what may be fetched and with which credentials, the single flight of a digest in the process and on the volume,
//! and the order in which an image becomes visible: blobs, then the manifests that name them, then the index byte for byte,
//! then the tag. Nothing is visible before it is verified. Knows nothing of HTTP routes, clients and Artifacts.

mod arriving;
mod blob;
mod document;
mod image;
mod peers;
mod pull;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::{BoxFuture, Shared};
use holdfast_api::fill::{FillError, FillErrorCode, FillRequest, FillResult};
use holdfast_core::{Digest, Reference, RepositoryName, rewrite};
use holdfast_store::{GrowingBlob, Owner, Store};
use tokio::sync::watch;

use crate::{
    source::{ManifestRef, SourceError},
    upstream::{self, Login, Source, Upstreams},
};
use arriving::Arriving;
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
    /// The upstream's bytes do not match their digest or are no image.
    #[error("{0}")]
    Invalid(String),
    /// Neither an Artifact nor the settings name it.
    #[error("nothing allows to fetch it")]
    NotAllowed,
    /// The request is malformed.
    #[error("{0}")]
    Request(String),
    /// The volume takes no more writes.
    #[error("the volume is full")]
    NoSpace,
    /// The store failed; details are in the log.
    #[error("the store failed: {0}")]
    Store(&'static str),
}

/// Result of a fill.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<upstream::Error> for Error {
    fn from(error: upstream::Error) -> Self {
        match error {
            upstream::Error::NotFound => Self::NotFound,
            upstream::Error::Unauthorized => Self::Unauthorized,
            upstream::Error::Invalid(what) => Self::Invalid(what),
            upstream::Error::Unavailable(what) | upstream::Error::Settings(what) => {
                Self::Unavailable(what)
            }
        }
    }
}

impl From<holdfast_store::Error> for Error {
    fn from(error: holdfast_store::Error) -> Self {
        if matches!(error, holdfast_store::Error::NoSpace { .. }) {
            return Self::NoSpace;
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
            Error::Unavailable(_) => FillErrorCode::UpstreamUnavailable,
            Error::Store(_) => FillErrorCode::StoreFailed,
            Error::Invalid(_) => FillErrorCode::UpstreamInvalid,
            Error::NoSpace => FillErrorCode::NoSpace,
            Error::Request(_) | Error::NotAllowed => FillErrorCode::Invalid,
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
            Error::Unauthorized => Self::Unauthorized("no credential fits".to_owned()),
            Error::Unavailable(what) => Self::Unavailable(what),
            Error::Invalid(what) => Self::Invalid(what),
            Error::NotAllowed | Error::Request(_) => Self::NotAllowed,
            Error::NoSpace => Self::Store(holdfast_store::Error::NoSpace { available_bytes: 0 }),
            Error::Store(_) => Self::Store(holdfast_store::Error::Busy),
        }
    }
}

/// How fills behave.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Platforms that a pull alone copies of an index (`os/architecture`); others come when they are asked for.
    pub platforms: Vec<String>,
    /// How long a pull of something that nothing names yet waits for the controller.
    pub hold: Duration,
    /// First pause before a broken copy goes on; doubles.
    pub retry: Duration,
    /// Whether a pull of a tag that is local asks the upstream whether it moved.
    pub revalidate_pulls: bool,
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
        }
    }
}

/// What makes two fills the same one.
type ImageKey = (RepositoryName, String, Vec<String>);
type ImageFill = Shared<BoxFuture<'static, Result<FillResult>>>;

/// All fills of a process. Clones share everything.
#[derive(Clone)]
pub struct Fills {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    upstreams: Upstreams,
    owner: Owner,
    peers: Peers,
    settings: Settings,
    grants: Mutex<HashMap<RepositoryName, Vec<Login>>>,
    blobs: Mutex<HashMap<Digest, watch::Receiver<blob::State>>>,
    images: Mutex<HashMap<ImageKey, ImageFill>>,
    arriving: Arriving,
}

/// Repositories whose credentials are remembered; above, new ones are refused no fill but forgotten after it.
const MAX_GRANTS: usize = 20_000;
/// Credentials that are remembered for one repository.
const MAX_LOGINS: usize = 8;

impl Fills {
    /// Fills into `store`. `owner` is what other replicas read in the locks: the address of this replica's internal API
    /// (`ip:port`, empty without one) and a name that no other process has.
    pub fn new(
        store: Store,
        upstreams: Upstreams,
        owner: Owner,
        peers: Peers,
        settings: Settings,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                upstreams,
                owner,
                peers,
                settings,
                grants: Mutex::default(),
                blobs: Mutex::default(),
                images: Mutex::default(),
                arriving: Arriving::default(),
            }),
        }
    }

    /// Makes an image local and says what it is. Local already and not to be revalidated: no upstream is asked (SPEC 14).
    /// The fill goes on when the caller leaves.
    ///
    /// # Errors
    /// Why the image is not local.
    pub async fn fill(&self, request: &FillRequest) -> Result<FillResult> {
        let reference = Reference::parse(&request.source)
            .map_err(|error| Error::Request(format!("source: {error}")))?;
        let repo = rewrite::local_repository(reference.host(), reference.repository())
            .ok_or_else(|| Error::Request("the source has no local name".to_owned()))?;
        let logins: Vec<Login> = request
            .credentials
            .iter()
            .map(|c| Login::new(&c.username, c.password.expose()))
            .collect();
        self.grant(&repo, &logins);
        let source = Source {
            host: reference.host().clone(),
            repository: reference.repository().clone(),
            // Only what came with this request: another namespace's login must not open this one's images.
            logins,
        };
        let target = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => ManifestRef::Digest(digest.clone()),
            (None, Some(tag)) => ManifestRef::Tag(tag.clone()),
            (None, None) => return Err(Error::Request("the source names no image".to_owned())),
        };
        if let Some(local) = self.local(&repo, &target, &request.platforms).await? {
            let moved = match (&target, request.revalidate) {
                (ManifestRef::Tag(tag), true) => {
                    match self.inner.upstreams.revalidate(&source, tag.as_str()).await {
                        Ok(Some(current)) => current.as_str() != local.digest,
                        // Asked and not answered: what is local stays good.
                        Ok(None) | Err(_) => false,
                    }
                }
                _ => false,
            };
            if !moved {
                return Ok(local);
            }
        }
        self.image(&source, &repo, &target, &request.platforms)
            .await
    }

    /// What a replica may hand to another one: the growing file of a blob that this process fills.
    pub(crate) fn growing(&self, digest: &Digest) -> Option<GrowingBlob> {
        match &*self.lock_blobs().get(digest)?.borrow() {
            blob::State::Growing(growing) => Some(growing.clone()),
            _ => None,
        }
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

    fn lock_blobs(&self) -> MutexGuard<'_, HashMap<Digest, watch::Receiver<blob::State>>> {
        self.inner
            .blobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that something names this repository, and the credentials that came with it, newest first.
    fn grant(&self, repo: &RepositoryName, logins: &[Login]) {
        let mut grants = self
            .inner
            .grants
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if grants.len() >= MAX_GRANTS && !grants.contains_key(repo) {
            return;
        }
        let known = grants.entry(repo.clone()).or_default();
        let mut merged = logins.to_vec();
        merged.extend(
            known
                .iter()
                .filter(|login| !logins.contains(login))
                .cloned(),
        );
        merged.truncate(MAX_LOGINS.max(logins.len()));
        *known = merged;
    }

    fn granted(&self, repo: &RepositoryName) -> Option<Vec<Login>> {
        self.inner
            .grants
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(repo)
            .cloned()
    }

    /// Where a local repository may be fetched from: `None` when neither a fill request nor the settings name it.
    fn source(&self, repo: &RepositoryName) -> Option<Source> {
        let (host, repository) = rewrite::upstream_of(repo)?;
        match self.granted(repo) {
            Some(logins) => Some(Source {
                host,
                repository,
                logins,
            }),
            None => self.inner.upstreams.is_listed(&host).then_some(Source {
                host,
                repository,
                logins: Vec::new(),
            }),
        }
    }
}

#[cfg(test)]
mod tests;
