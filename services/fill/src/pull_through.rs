//! The contract between the distribution API and the code that fetches from upstreams: the requests
//! of a miss, and their answers.
//!
//! Implemented by [`crate::Fills`]; a registry without upstreams has none. Everything found is in
//! the store or on its way into it; the API never writes an upstream's content itself.

use std::sync::Arc;

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use holdfast_core::{
    digest::Digest,
    reference::{ManifestRef, RepositoryName, Tag},
};
use holdfast_store::{BlobFile, PartialBlob};

pub use holdfast_upstream::Referrer;

use crate::Result;

/// A manifest that is now in the store.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Digest of `bytes`, computed here.
    pub digest: Digest,
    /// The exact bytes of the upstream.
    pub bytes: Bytes,
}

/// A blob that can be read now.
pub enum PulledBlob {
    /// It is in the store.
    Stored(BlobFile),
    /// This replica fills it; readers follow the growing file.
    Growing(PartialBlob),
    /// Another replica fills it; its bytes come over the internal API.
    Remote(Box<dyn PeerBlob>),
}

/// A blob that another replica fills.
pub trait PeerBlob: Send + Sync {
    /// Size in bytes, if it is known.
    fn size(&self) -> Option<u64>;

    /// The bytes from `offset` to the end. Ends with an error, never cleanly, when the blob does
    /// not get complete.
    fn open(
        &self,
        offset: u64,
    ) -> BoxFuture<'_, Result<BoxStream<'static, std::io::Result<Bytes>>>>;
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

/// What is known of an upstream's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<T> {
    /// Its entries, or those of an earlier answer; shared with the cached list.
    pub entries: Arc<[T]>,
    /// Why there may be others by now; for a `Warning` header.
    pub warning: Option<String>,
    /// Whether the upstream ever answered. If not, what is not among the entries may exist.
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
pub trait PullThrough: Send + Sync + 'static {
    /// Whether the repository's content may be fetched on a pull now. Sends no request.
    fn fetches(&self, _repo: &RepositoryName) -> bool {
        false
    }

    /// Fetches a manifest into the store (single flight by repository and reference). It may return
    /// before the blobs are there.
    fn manifest<'a>(
        &'a self,
        repo: &'a RepositoryName,
        reference: &'a ManifestRef,
    ) -> BoxFuture<'a, Result<Manifest>>;

    /// Fetches a blob, returning as soon as its first bytes can be read (single flight by digest on
    /// the volume). A client that leaves does not stop it.
    fn blob<'a>(
        &'a self,
        repo: &'a RepositoryName,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<PulledBlob>>;

    /// The tags that the upstream of a repository has. By default there is no upstream.
    fn tags<'a>(&'a self, _repo: &'a RepositoryName) -> BoxFuture<'a, Listed<Tag>> {
        Box::pin(async { Listed::default() })
    }

    /// The referrers of a manifest at the repository's upstream. By default there is no upstream.
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
