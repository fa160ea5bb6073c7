//! The contract between the distribution API and what fetches from upstreams: what a miss asks for,
//! and what may come back.
//!
//! Implemented by [`crate::fill`]; a registry without upstreams has none. Everything found is
//! either in the store already or on its way into it; the API never writes an upstream's content
//! itself.

use std::sync::Arc;

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use holdfast_core::{
    digest::Digest,
    reference::{ManifestRef, RepositoryName, Tag},
};
use holdfast_store::{BlobFile, PartialBlob};

pub use holdfast_upstream::Referrer;

/// A manifest that is now in the store.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Digest of `bytes`, computed here.
    pub digest: Digest,
    /// The exact bytes of the upstream.
    pub bytes: Bytes,
}

/// A blob that can be read now.
pub enum SourceBlob {
    /// It is in the store.
    Stored(BlobFile),
    /// This replica fills it; readers follow the growing file.
    Growing(PartialBlob),
    /// Another replica fills it; its bytes come over the internal API.
    Remote(Box<dyn RemoteBlob>),
}

/// A blob that another replica fills.
pub trait RemoteBlob: Send + Sync {
    /// Size in bytes, if it is known.
    fn size(&self) -> Option<u64>;

    /// The bytes from `offset` to the end. Ends with an error, never cleanly, when the blob does
    /// not get complete.
    fn open(
        &self,
        offset: u64,
    ) -> BoxFuture<'_, Result<BoxStream<'static, std::io::Result<Bytes>>, SourceError>>;
}

/// How what is local for a tag compares with the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Serve what is local: it is current, or nothing asks for more.
    Current,
    /// The tag moved, and the new manifest is in the store now.
    Moved(Digest),
    /// The upstream did not tell in time: serve what is local and say so.
    Unknown {
        /// For the `Warning` header; no secrets, no new lines.
        reason: String,
    },
}

/// Why an upstream's content is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The upstream itself says that there is no such thing.
    #[error("the upstream does not have it")]
    NotFound,
    /// Neither an Artifact nor the configured upstreams allow to fetch it (yet).
    #[error("nothing allows to fetch it")]
    NotAllowed,
    /// The settings rule the upstream out.
    #[error("{0}")]
    Forbidden(String),
    /// The upstream refused every credential.
    #[error("the upstream refuses access: {0}")]
    Unauthorized(String),
    /// The upstream cannot be reached or fails.
    #[error("the upstream is unavailable: {0}")]
    Unavailable(String),
    /// The same, and it says when it may be asked again.
    #[error("the upstream is unavailable: {0}")]
    Later(String, std::time::Duration),
    /// The upstream asks to be left alone for so long.
    #[error("the upstream is unavailable: it asks for a pause of {} s", .0.as_secs_f64().ceil())]
    TooMany(std::time::Duration),
    /// The upstream took too long.
    #[error("the upstream did not answer in time: {0}")]
    Timeout(String),
    /// What the upstream sent is wrong (digest, size, shape).
    #[error("the upstream sent something invalid: {0}")]
    Invalid(String),
    /// The volume has no room for it.
    #[error("{0}")]
    NoSpace(String),
    /// The registry runs alone, and its settings do not list the upstream: nothing will ever allow
    /// it.
    #[error("no upstream of this registry has that name")]
    NotListed,
    /// Too many fills at once; try again.
    #[error("too many fills at once")]
    Overloaded,
    /// The store failed, a full volume included.
    #[error("the store failed")]
    Store(#[from] holdfast_store::Error),
}

/// What is known of an upstream's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<T> {
    /// Its entries, or those that were told before; shared with the memory of lists.
    pub entries: Arc<[T]>,
    /// Why there may be others by now; for a `Warning` header.
    pub warning: Option<String>,
    /// Whether the upstream ever told: otherwise nothing follows from what is not among the
    /// entries.
    pub known: bool,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self {
            entries: Arc::default(),
            warning: None,
            known: true,
        }
    }
}

impl<T> Listed<T> {
    /// A list that could not be learned.
    pub fn unknown(why: &str) -> Self {
        Self {
            entries: Arc::default(),
            warning: Some(format!("only what is here is listed: {why}")),
            known: false,
        }
    }
}

/// What fetches from upstreams.
pub trait Source: Send + Sync + 'static {
    /// Whether the repository's content may be fetched on a pull, as things are now. Asks nobody.
    fn fetches(&self, _repo: &RepositoryName) -> bool {
        false
    }

    /// Fetches a manifest into the store (single flight by repository and reference). It may return
    /// before the blobs are there.
    fn manifest<'a>(
        &'a self,
        repo: &'a RepositoryName,
        reference: &'a ManifestRef,
    ) -> BoxFuture<'a, Result<Manifest, SourceError>>;

    /// Fetches a blob, returning as soon as its first bytes can be read (single flight by digest on
    /// the volume). A client that leaves does not stop it.
    fn blob<'a>(
        &'a self,
        repo: &'a RepositoryName,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<SourceBlob, SourceError>>;

    /// The tags that the upstream of a repository has. By default there is nobody to ask.
    fn tags<'a>(&'a self, _repo: &'a RepositoryName) -> BoxFuture<'a, Listed<Tag>> {
        Box::pin(async { Listed::default() })
    }

    /// Who refers to a manifest at the upstream of a repository. By default there is nobody to ask.
    fn referrers<'a>(
        &'a self,
        _repo: &'a RepositoryName,
        _subject: &'a Digest,
    ) -> BoxFuture<'a, Listed<Referrer>> {
        Box::pin(async { Listed::default() })
    }

    /// A pull of upstream content was answered with `bytes`, from the volume if `is_hit`; `kind` is
    /// `manifest` or `blob`. For the numbers only.
    fn served(&self, _kind: &'static str, _is_hit: bool, _bytes: u64) {}

    /// Whether a tag that is local should be served as it is; at most 500 ms.
    fn revalidate<'a>(
        &'a self,
        repo: &'a RepositoryName,
        tag: &'a Tag,
        local: &'a Digest,
    ) -> BoxFuture<'a, Freshness>;
}
