//! The route table: from method, raw path and query to an endpoint. Pure: every name, tag, digest
//! and session is parsed strictly here, before anything is looked up. Repository names contain
//! slashes, so a path is read from its end.

use holdfast_core::{
    ManifestRef,
    digest::{Algorithm, Digest},
    reference::{Host, RepositoryName, Tag},
};
use holdfast_store::UploadId;
use http::Method;

use crate::{
    error::{Code, Error},
    limits,
};

/// A position in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// At most this many entries.
    pub limit: Option<usize>,
    /// Only entries behind this one, which need not exist.
    pub last: Option<String>,
}

/// What is wanted. The identifiers are those of the distribution specification's table of
/// endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// end-1
    Base,
    /// `/v2/_catalog`, as distribution has it.
    Catalog(Page),
    /// end-2 (GET and HEAD)
    GetBlob(RepositoryName, Digest),
    /// end-3 (GET and HEAD)
    GetManifest(RepositoryName, ManifestRef),
    /// end-4a and end-4c: a session, hashed by that algorithm from its first byte.
    StartUpload(RepositoryName, Algorithm),
    /// end-4b
    PushBlob(RepositoryName, Digest),
    /// end-11: mount the blob from that repository, or from any.
    MountBlob(RepositoryName, Digest, Option<RepositoryName>),
    /// end-5
    PatchUpload(RepositoryName, UploadId, String),
    /// end-6
    FinishUpload(RepositoryName, UploadId, String, Digest),
    /// end-13
    UploadStatus(RepositoryName, UploadId, String),
    /// end-14
    CancelUpload(RepositoryName, UploadId, String),
    /// end-7a, end-7b: the tags are those of the query.
    PutManifest(RepositoryName, ManifestRef, Vec<Tag>),
    /// end-8a, end-8b
    Tags(RepositoryName, Page),
    /// end-9
    DeleteManifest(RepositoryName, ManifestRef),
    /// end-10
    DeleteBlob(RepositoryName, Digest),
    /// end-12a, end-12b; the text is the wanted artifact type.
    Referrers(RepositoryName, Digest, Option<String>, Page),
}

impl Endpoint {
    /// The repository of an endpoint that pulls from one.
    pub fn pulled_repository(&mut self) -> Option<&mut RepositoryName> {
        match self {
            Self::GetBlob(repo, _)
            | Self::GetManifest(repo, _)
            | Self::Tags(repo, _)
            | Self::Referrers(repo, ..) => Some(repo),
            _ => None,
        }
    }

    /// Bounded name for metrics and logs.
    pub fn handler(&self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Catalog(_) => "catalog",
            Self::GetBlob(..) | Self::DeleteBlob(..) => "blob",
            Self::GetManifest(..) | Self::PutManifest(..) | Self::DeleteManifest(..) => "manifest",
            Self::StartUpload(..) | Self::PushBlob(..) | Self::MountBlob(..) => "blob_upload",
            Self::PatchUpload(..)
            | Self::FinishUpload(..)
            | Self::UploadStatus(..)
            | Self::CancelUpload(..) => "blob_upload_chunk",
            Self::Tags(..) => "tags",
            Self::Referrers(..) => "referrers",
        }
    }
}

/// The `ns` of a query, as it stands there and parsed: the upstream whose content a client wants
/// from this registry as a mirror.
pub fn namespace(query: Option<&str>) -> Option<(String, Host)> {
    let query = Query::parse(query).ok()?;
    let text = query.get("ns")?;
    Some((text.to_owned(), Host::parse(text).ok()?))
}

/// Why a request is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// There is nothing at this path.
    NotFound,
    /// The path exists, the method does not; the text is `Allow`.
    Method(&'static str),
    /// The repository's name.
    Name,
    /// A digest, or its algorithm.
    Digest,
    /// A tag that nothing can have (reading).
    NoSuchTag,
    /// A tag that nothing can have (writing).
    Tag,
    /// A session that nothing can have.
    Upload,
    /// The number of entries of a page.
    Page,
    /// The query string is too long, or has too many tags.
    TooLong,
}

impl From<RouteError> for Error {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::NotFound => {
                Self::unknown(Code::NameUnknown, "there is nothing at this path")
            }
            RouteError::Method(allow) => Self::new(
                http::StatusCode::METHOD_NOT_ALLOWED,
                Code::Unsupported,
                "the method does not exist here",
            )
            .with(http::header::ALLOW, http::HeaderValue::from_static(allow)),
            RouteError::Name => {
                Self::invalid(Code::NameInvalid, "the repository's name is invalid")
            }
            RouteError::Digest => Self::invalid(
                Code::DigestInvalid,
                "the digest is invalid or its algorithm is not supported (sha256, sha512)",
            ),
            RouteError::NoSuchTag => {
                Self::unknown(Code::ManifestUnknown, "no tag can have this name")
            }
            RouteError::Tag => Self::invalid(Code::ManifestInvalid, "the tag is invalid"),
            RouteError::Upload => Self::unknown(Code::BlobUploadUnknown, "there is no such upload"),
            RouteError::Page => Self::invalid(
                Code::PaginationNumberInvalid,
                "the number of entries is invalid",
            ),
            RouteError::TooLong => Self::new(
                http::StatusCode::URI_TOO_LONG,
                Code::Unsupported,
                "the query is too long",
            ),
        }
    }
}

/// Reads a request. `path` is raw, as it came over the wire.
///
/// # Errors
/// [`RouteError`]
pub fn route(method: &Method, path: &str, query: Option<&str>) -> Result<Endpoint, RouteError> {
    let query = Query::parse(query)?;
    let read = method == Method::GET || method == Method::HEAD;
    let rest = match path.strip_prefix("/v2") {
        Some("" | "/") => {
            return if read {
                Ok(Endpoint::Base)
            } else {
                Err(RouteError::Method("GET, HEAD"))
            };
        }
        Some(rest) => rest.strip_prefix('/').ok_or(RouteError::NotFound)?,
        None => return Err(RouteError::NotFound),
    };
    if rest == "_catalog" {
        return if read {
            Ok(Endpoint::Catalog(query.page()?))
        } else {
            Err(RouteError::Method("GET"))
        };
    }
    let (rest, last) = rest.rsplit_once('/').ok_or(RouteError::NotFound)?;
    let (rest, kind) = rest.rsplit_once('/').ok_or(RouteError::NotFound)?;
    match (kind, last) {
        ("blobs", "uploads") => start_upload(method, name(rest)?, &query),
        ("uploads", id) if rest == "blobs" || rest.ends_with("/blobs") => {
            let repo = name(rest.strip_suffix("/blobs").ok_or(RouteError::Name)?)?;
            if id.is_empty() {
                start_upload(method, repo, &query)
            } else {
                session(method, repo, id, &query)
            }
        }
        ("tags", "list") => {
            let repo = name(rest)?;
            if read {
                Ok(Endpoint::Tags(repo, query.page()?))
            } else {
                Err(RouteError::Method("GET"))
            }
        }
        ("blobs", digest) => blob(method, name(rest)?, digest),
        ("manifests", reference) => manifest(method, name(rest)?, reference, &query),
        ("referrers", subject) => {
            let repo = name(rest)?;
            if !read {
                return Err(RouteError::Method("GET"));
            }
            let artifact_type = query
                .get("artifactType")
                .filter(|value| !value.is_empty())
                .map(ToOwned::to_owned);
            Ok(Endpoint::Referrers(
                repo,
                digest(subject)?,
                artifact_type,
                query.page()?,
            ))
        }
        _ => Err(RouteError::NotFound),
    }
}

fn blob(method: &Method, repo: RepositoryName, text: &str) -> Result<Endpoint, RouteError> {
    match *method {
        Method::GET | Method::HEAD => Ok(Endpoint::GetBlob(repo, digest(text)?)),
        Method::DELETE => Ok(Endpoint::DeleteBlob(repo, digest(text)?)),
        _ => Err(RouteError::Method("GET, HEAD, DELETE")),
    }
}

fn manifest(
    method: &Method,
    repo: RepositoryName,
    text: &str,
    query: &Query,
) -> Result<Endpoint, RouteError> {
    let reference = if text.contains(':') || text.contains('%') {
        digest(text).map(ManifestRef::Digest)
    } else {
        Tag::parse(text).map(ManifestRef::Tag).map_err(|_| {
            if method == Method::PUT {
                RouteError::Tag
            } else {
                RouteError::NoSuchTag
            }
        })
    };
    match *method {
        Method::GET | Method::HEAD => Ok(Endpoint::GetManifest(repo, reference?)),
        Method::DELETE => Ok(Endpoint::DeleteManifest(repo, reference?)),
        Method::PUT => {
            let tags: Vec<_> = query
                .all("tag")
                .map(|tag| Tag::parse(tag).map_err(|_| RouteError::Tag))
                .collect::<Result<_, _>>()?;
            if tags.len() > limits::MANIFEST_TAGS {
                return Err(RouteError::TooLong);
            }
            Ok(Endpoint::PutManifest(repo, reference?, tags))
        }
        _ => Err(RouteError::Method("GET, HEAD, PUT, DELETE")),
    }
}

fn start_upload(
    method: &Method,
    repo: RepositoryName,
    query: &Query,
) -> Result<Endpoint, RouteError> {
    if method != Method::POST {
        return Err(RouteError::Method("POST"));
    }
    if let Some(mount) = query.get("mount") {
        let digest = Digest::parse(mount).map_err(|_| RouteError::Digest)?;
        // A wrong `from` cannot be mounted from; the specification then asks for a session, not for
        // an error.
        return match query.get("from").map(RepositoryName::parse) {
            None => Ok(Endpoint::MountBlob(repo, digest, None)),
            Some(Ok(from)) => Ok(Endpoint::MountBlob(repo, digest, Some(from))),
            Some(Err(_)) => Ok(Endpoint::StartUpload(repo, digest.algorithm())),
        };
    }
    if let Some(digest) = query.get("digest") {
        return Ok(Endpoint::PushBlob(
            repo,
            Digest::parse(digest).map_err(|_| RouteError::Digest)?,
        ));
    }
    let algorithm = query
        .get("digest-algorithm")
        .map_or(Ok(Algorithm::Sha256), |name| {
            name.parse().map_err(|_| RouteError::Digest)
        })?;
    Ok(Endpoint::StartUpload(repo, algorithm))
}

fn session(
    method: &Method,
    repo: RepositoryName,
    id: &str,
    query: &Query,
) -> Result<Endpoint, RouteError> {
    let id = UploadId::parse(id).ok_or(RouteError::Upload)?;
    let state = query.get("_state").unwrap_or_default().to_owned();
    match *method {
        Method::GET | Method::HEAD => Ok(Endpoint::UploadStatus(repo, id, state)),
        Method::PATCH => Ok(Endpoint::PatchUpload(repo, id, state)),
        Method::PUT => {
            let digest = query
                .get("digest")
                .and_then(|text| Digest::parse(text).ok())
                .ok_or(RouteError::Digest)?;
            Ok(Endpoint::FinishUpload(repo, id, state, digest))
        }
        Method::DELETE => Ok(Endpoint::CancelUpload(repo, id, state)),
        _ => Err(RouteError::Method("GET, PATCH, PUT, DELETE")),
    }
}

fn name(text: &str) -> Result<RepositoryName, RouteError> {
    RepositoryName::parse(text).map_err(|_| RouteError::Name)
}

/// A digest in a path; its colon may come percent-encoded, nothing else may.
fn digest(text: &str) -> Result<Digest, RouteError> {
    Digest::parse(&text.replacen("%3A", ":", 1).replacen("%3a", ":", 1))
        .map_err(|_| RouteError::Digest)
}

struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: Option<&str>) -> Result<Self, RouteError> {
        let query = query.unwrap_or_default();
        if query.len() > limits::QUERY_BYTES {
            return Err(RouteError::TooLong);
        }
        Ok(Self(
            url::form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        ))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn page(&self) -> Result<Page, RouteError> {
        let limit = self
            .get("n")
            .filter(|n| !n.is_empty())
            .map(|n| n.parse().map_err(|_| RouteError::Page))
            .transpose()?;
        Ok(Page {
            limit,
            last: self
                .get("last")
                .filter(|last| !last.is_empty())
                .map(ToOwned::to_owned),
        })
    }
}

#[cfg(test)]
mod tests;
