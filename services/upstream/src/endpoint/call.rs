//! One request to an endpoint, before it is authorised and sent.

use http::Method;

use crate::UpstreamRepository;

/// Which bytes are requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bytes {
    /// All.
    All,
    /// From this one to the end.
    From(u64),
    /// The first one alone: whether it may be read at all.
    First,
}

/// A request for something of a repository.
pub(super) struct Call<'a> {
    pub(super) source: &'a UpstreamRepository,
    pub(super) method: Method,
    /// Below the repository: `manifests/1`.
    pub(super) path: &'a str,
    /// The query, without its question mark.
    pub(super) query: Option<&'a str>,
    pub(super) bytes: Bytes,
}

impl<'a> Call<'a> {
    /// Requests all bytes.
    pub(super) fn new(source: &'a UpstreamRepository, method: Method, path: &'a str) -> Self {
        Self {
            source,
            method,
            path,
            query: None,
            bytes: Bytes::All,
        }
    }

    /// Requests some of the bytes.
    pub(super) fn part(self, bytes: Bytes) -> Self {
        Self { bytes, ..self }
    }

    /// The repository, as the memory of failures names it.
    pub(super) fn repository(&self) -> &str {
        self.source.repository.as_str()
    }

    /// The key under which an authorisation is remembered: some registries want another scope for
    /// lists than for content.
    pub(super) fn topic(&self) -> String {
        let kind = match self.path.split('/').next() {
            Some("tags") => " tags",
            Some("referrers") => " referrers",
            _ => "",
        };
        format!("{}{kind}", self.source.repository)
    }
}
