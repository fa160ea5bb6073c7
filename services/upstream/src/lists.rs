//! What an upstream says about its content: the digest of a tag, the tags of a repository, and the
//! referrers of a manifest. Bounded in pages, entries, bytes and time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use holdfast_core::{Digest, Tag};
use serde::{Deserialize, Serialize};

use super::{Error, Result, UpstreamRepository, Upstreams, endpoint::Endpoint, nowhere, worse};

/// Most pages of one list.
pub(super) const MAX_PAGES: usize = 50;
/// Most bytes of one list.
pub(super) const MAX_BYTES: usize = 4 << 20;
/// Most tags of one list.
pub(super) const MAX_TAGS: usize = 20_000;
/// Most referrers of one list.
pub(super) const MAX_REFERRERS: usize = 2000;

/// A list as an upstream gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages<T> {
    /// The entries that were read.
    pub entries: Vec<T>,
    /// Whether the list is complete; `false` when a bound was reached.
    pub complete: bool,
    /// About the bytes that the entries take in memory.
    pub bytes: usize,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            complete: true,
            bytes: 0,
        }
    }
}

/// An entry of a list of referrers: what an upstream says of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    /// Media type of the manifest.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The type of the artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Annotations of its author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Upstreams {
    /// The digest that a tag names upstream, within the deadline of a revalidation.
    ///
    /// # Errors
    /// [`Error::Unavailable`] after the deadline.
    pub async fn revalidate(&self, source: &UpstreamRepository, target: &str) -> Result<Digest> {
        let endpoints = self.endpoints(&source.host)?;
        let limit = self.inner.timeouts.revalidate;
        let late = "no answer within the deadline of a revalidation";
        in_time(limit, late, &endpoints, resolve(&endpoints, source, target)).await
    }

    /// The digest that a tag names upstream.
    ///
    /// # Errors
    /// The most informative error of all endpoints.
    pub async fn resolve(&self, source: &UpstreamRepository, target: &str) -> Result<Digest> {
        resolve(&self.endpoints(&source.host)?, source, target).await
    }

    /// All tags of a repository.
    ///
    /// # Errors
    /// The most informative error of all endpoints; [`Error::Unavailable`] after the deadline.
    pub async fn tags(&self, source: &UpstreamRepository) -> Result<Pages<Tag>> {
        let endpoints = self.endpoints(&source.host)?;
        let ask = async {
            let mut failed = None;
            for endpoint in &endpoints {
                match endpoint.tags(source).await {
                    Ok(found) => return Ok(found),
                    Err(error) => failed = Some(worse(failed, endpoint, error)),
                }
            }
            Err(failed.unwrap_or_else(nowhere))
        };
        in_time(self.inner.timeouts.list, LATE_LIST, &endpoints, ask).await
    }

    /// The referrers of a manifest.
    ///
    /// # Errors
    /// See [`Upstreams::tags`]. A manifest without referrers has an empty list.
    pub async fn referrers(
        &self,
        source: &UpstreamRepository,
        subject: &Digest,
    ) -> Result<Pages<Referrer>> {
        let endpoints = self.endpoints(&source.host)?;
        let ask = async {
            let mut failed = None;
            for endpoint in &endpoints {
                match endpoint.referrers(source, subject).await {
                    Ok(found) => return Ok(found),
                    Err(error) => failed = Some(worse(failed, endpoint, error)),
                }
            }
            Err(failed.unwrap_or_else(nowhere))
        };
        in_time(self.inner.timeouts.list, LATE_LIST, &endpoints, ask).await
    }
}

/// The error of a list after its deadline.
const LATE_LIST: &str = "the upstream did not send its list in time";

async fn resolve(
    endpoints: &[Arc<Endpoint>],
    source: &UpstreamRepository,
    target: &str,
) -> Result<Digest> {
    let mut failed = None;
    for endpoint in endpoints {
        match endpoint.resolve(source, target).await {
            Ok(digest) => return Ok(digest),
            Err(error) => failed = Some(worse(failed, endpoint, error)),
        }
    }
    Err(failed.unwrap_or_else(nowhere))
}

/// The answer of these `endpoints` within its deadline. What is told after it says of a host inside
/// this network no more than its other failures do.
async fn in_time<T>(
    limit: Duration,
    late: &str,
    endpoints: &[Arc<Endpoint>],
    ask: impl Future<Output = Result<T>>,
) -> Result<T> {
    let found = tokio::time::timeout(limit, ask).await;
    found.unwrap_or_else(|_| {
        let last = endpoints.last();
        let told = last.map_or_else(|| late.to_owned(), |last| last.tellable(late));
        Err(Error::Unavailable(told))
    })
}
