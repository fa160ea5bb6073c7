//! What an upstream says of its content, and not the content: what a tag names, which tags a repository has, and who refers to
//! a manifest. Bounded in pages, entries, bytes and time.

use std::collections::BTreeMap;

use holdfast_core::{Digest, Tag};
use serde::{Deserialize, Serialize};

use super::{Error, Result, Source, Upstreams, nowhere, worse};

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
pub(crate) struct Pages<T> {
    /// What was read.
    pub(crate) entries: Vec<T>,
    /// Whether it is all that there is, or the bounds were reached before.
    pub(crate) complete: bool,
    /// About the bytes that the entries take in memory.
    pub(crate) bytes: usize,
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
    /// What kind of artifact it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Free text of its maker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Upstreams {
    /// The digest that a tag names upstream, within the deadline of a revalidation.
    ///
    /// # Errors
    /// [`Error::Unavailable`] after the deadline.
    pub async fn revalidate(&self, source: &Source, target: &str) -> Result<Digest> {
        let ask = self.resolve(source, target);
        let found = tokio::time::timeout(self.inner.timeouts.revalidate, ask).await;
        let late = "no answer within the deadline of a revalidation";
        found.unwrap_or_else(|_| Err(self.late(source, late)))
    }

    /// The digest that a tag names upstream.
    ///
    /// # Errors
    /// The most telling error of all endpoints.
    pub async fn resolve(&self, source: &Source, target: &str) -> Result<Digest> {
        let mut failed = None;
        for endpoint in self.endpoints(&source.host)? {
            match endpoint.resolve(source, target).await {
                Ok(digest) => return Ok(digest),
                Err(error) => failed = Some(worse(failed, error)),
            }
        }
        Err(failed.unwrap_or_else(nowhere))
    }

    /// All tags of a repository.
    ///
    /// # Errors
    /// The most telling error of all endpoints; [`Error::Unavailable`] after the deadline.
    pub(crate) async fn tags(&self, source: &Source) -> Result<Pages<Tag>> {
        let ask = async {
            let mut failed = None;
            for endpoint in self.endpoints(&source.host)? {
                match endpoint.tags(source).await {
                    Ok(found) => return Ok(found),
                    Err(error) => failed = Some(worse(failed, error)),
                }
            }
            Err(failed.unwrap_or_else(nowhere))
        };
        self.in_time(source, ask).await
    }

    /// Who refers to a manifest.
    ///
    /// # Errors
    /// See [`Upstreams::tags`]. That there is nobody is an empty list.
    pub(crate) async fn referrers(
        &self,
        source: &Source,
        subject: &Digest,
    ) -> Result<Pages<Referrer>> {
        let ask = async {
            let mut failed = None;
            for endpoint in self.endpoints(&source.host)? {
                match endpoint.referrers(source, subject).await {
                    Ok(found) => return Ok(found),
                    Err(error) => failed = Some(worse(failed, error)),
                }
            }
            Err(failed.unwrap_or_else(nowhere))
        };
        self.in_time(source, ask).await
    }

    /// A list within its deadline.
    async fn in_time<T>(&self, source: &Source, ask: impl Future<Output = Result<T>>) -> Result<T> {
        let found = tokio::time::timeout(self.inner.timeouts.list, ask).await;
        let late = "the upstream did not send its list in time";
        found.unwrap_or_else(|_| Err(self.late(source, late)))
    }

    /// What is told where an answer comes too late: of a host inside this network no more than of
    /// its other failures.
    fn late(&self, source: &Source, what: &str) -> Error {
        let endpoints = self.endpoints(&source.host).unwrap_or_default();
        let last = endpoints.last();
        Error::Unavailable(last.map_or_else(|| what.to_owned(), |last| last.tellable(what)))
    }
}
