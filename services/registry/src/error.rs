//! The one place where a failure becomes an HTTP answer: OCI error codes, statuses, and the text
//! that a client may read.
//!
//! Paths and causes go to the log, never to the client.

use std::fmt;

use http::{HeaderValue, Response, StatusCode, header};

use crate::{
    body::{self, Body},
    limits,
};
use holdfast_fill::Error as FillError;
use holdfast_upstream as upstream;

/// Result of a handler.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Codes of the OCI distribution specification, and distribution's own for pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The blob is not known to the repository.
    BlobUnknown,
    /// The upload cannot go on like this.
    BlobUploadInvalid,
    /// There is no such upload.
    BlobUploadUnknown,
    /// The digest does not parse or does not match.
    DigestInvalid,
    /// The manifest refers to something that is not there.
    ManifestBlobUnknown,
    /// The manifest does not parse or is not acceptable.
    ManifestInvalid,
    /// There is no such manifest.
    ManifestUnknown,
    /// The repository's name does not parse.
    NameInvalid,
    /// There is no such repository.
    NameUnknown,
    /// The length is not the announced one.
    SizeInvalid,
    /// Credentials are needed.
    Unauthorized,
    /// The credentials do not suffice, or the operation is refused.
    Denied,
    /// The operation is not supported.
    Unsupported,
    /// Too many requests, or not now.
    TooManyRequests,
    /// The number of entries of a page does not parse.
    PaginationNumberInvalid,
    /// Something on our side.
    Unknown,
}

impl Code {
    /// As the specification writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// A refusal: status, code, text for the client, and headers that belong to it.
#[derive(Debug)]
pub struct Error {
    status: StatusCode,
    code: Code,
    message: String,
    headers: Vec<(header::HeaderName, HeaderValue)>,
}

impl Error {
    /// A refusal with a text for the client.
    pub fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            headers: Vec::new(),
        }
    }

    /// 400 with a code.
    pub fn invalid(code: Code, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 404 with a code.
    pub fn unknown(code: Code, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 503 with `Retry-After`.
    pub fn later(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Code::TooManyRequests,
            message,
        )
        .retry_after(limits::RETRY_AFTER_SECONDS)
    }

    /// 429 with `Retry-After`.
    pub fn too_many(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            Code::TooManyRequests,
            message,
        )
        .retry_after(limits::RETRY_AFTER_SECONDS)
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Adds `Retry-After`.
    fn retry_after(self, seconds: u64) -> Self {
        self.with(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The answer.
    pub(crate) fn into_response(self) -> Response<Body> {
        let json = serde_json::json!({ "errors": [{ "code": self.code.as_str(), "message": self.message, "detail": null }] });
        let mut response = Response::new(body::full(json.to_string()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        response.headers_mut().extend(self.headers);
        response
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {}",
            self.status.as_u16(),
            self.code.as_str(),
            self.message
        )
    }
}

impl From<holdfast_store::Error> for Error {
    fn from(error: holdfast_store::Error) -> Self {
        use holdfast_store::Error as Store;
        match error {
            Store::NoSpace { available_bytes } => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                Code::Denied,
                format!(
                    "the volume is full ({available_bytes} bytes left): \
                     writes are refused, pulls continue"
                ),
            ),
            Store::Busy => {
                Self::later("too much waits for the volume, or the volume does not answer")
            }
            Store::DigestMismatch { expected, actual } => Self::invalid(
                Code::DigestInvalid,
                format!("the content's digest is {actual}, not {expected}"),
            ),
            Store::SizeMismatch { expected, actual } => Self::invalid(
                Code::SizeInvalid,
                format!("the content has {actual} bytes, not {expected}"),
            ),
            Store::UploadUnknown => {
                Self::unknown(Code::BlobUploadUnknown, "there is no such upload")
            }
            Store::UploadInUse | Store::LockLost => Self::new(
                StatusCode::CONFLICT,
                Code::BlobUploadInvalid,
                "another request writes to this upload",
            ),
            Store::OffsetMismatch { size, offset } => Self::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                Code::BlobUploadInvalid,
                format!("the upload holds {size} bytes, the chunk begins at {offset}"),
            ),
            // A push that large is refused before it reaches the store: this is what another
            // program wrote.
            error @ Store::ManifestTooLarge { .. } => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                Code::Unknown,
                error.to_string(),
            ),
            Store::HashState => {
                Self::invalid(Code::BlobUploadInvalid, "the upload's state does not parse")
            }
            error @ (Store::Io { .. } | Store::Corrupt { .. }) => {
                let cause = std::error::Error::source(&error)
                    .map(ToString::to_string)
                    .unwrap_or_default();
                tracing::error!(%error, cause, "the store failed");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    Code::Unknown,
                    "the store failed",
                )
            }
        }
    }
}

/// The answer to a miss that failed; `unknown` is the code of content that does not exist.
pub(crate) fn from_fill(error: FillError, unknown: Code) -> Error {
    let unavailable = |what: &str, seconds: u64| {
        let text = format!("the upstream is unavailable: {what}");
        Error::new(StatusCode::BAD_GATEWAY, Code::Unknown, text).retry_after(seconds)
    };
    match error {
        FillError::NotFound => Error::unknown(unknown, "the upstream does not have it"),
        FillError::NotAllowed | FillError::Request(_) => Error::later(
            "this image may not be fetched: no Artifact names it and its upstream is not \
             configured",
        ),
        FillError::NotListed => Error::unknown(
            Code::NameUnknown,
            "the first part of the name is no upstream of this registry: it is not listed under upstreams in its configuration",
        ),
        FillError::Unauthorized => Error::new(
            StatusCode::FORBIDDEN,
            Code::Denied,
            "the upstream refuses access: no credential fits",
        ),
        FillError::Forbidden(_) => {
            Error::new(StatusCode::FORBIDDEN, Code::Denied, error.to_string())
        }
        FillError::Unavailable(what) => unavailable(&what, limits::RETRY_AFTER_SECONDS),
        FillError::Later(what, pause) => unavailable(&what, upstream::seconds(pause)),
        FillError::Invalid(what) | FillError::NoManifest(what) => Error::new(
            StatusCode::BAD_GATEWAY,
            Code::Unknown,
            format!("the upstream's answer is not valid: {what}"),
        )
        .retry_after(limits::RETRY_AFTER_SECONDS),
        FillError::TooMany(pause) => {
            let seconds = upstream::seconds(pause);
            Error::new(
                StatusCode::TOO_MANY_REQUESTS,
                Code::TooManyRequests,
                format!("the upstream is unavailable: it asks for a pause of {seconds} s"),
            )
            .retry_after(seconds)
        }
        FillError::NoSpace(what) => Error::new(
            StatusCode::INSUFFICIENT_STORAGE,
            Code::Denied,
            format!("{what}: it is copied when there is space, other pulls continue"),
        ),
        FillError::Busy(_) => Error::later("too many fills at once"),
        FillError::Store(_) => holdfast_store::Error::Busy.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: FillError, status: u16) {
        let text = error.to_string();
        assert_eq!(
            from_fill(error, Code::BlobUnknown).status().as_u16(),
            status,
            "{text}"
        );
    }

    #[test]
    fn a_pause_is_told_as_the_upstream_asked_for_it() {
        let pause = std::time::Duration::from_millis(6100);
        for error in [
            FillError::TooMany(pause),
            FillError::Later("it answers 503".into(), pause),
        ] {
            let answer = from_fill(error, Code::BlobUnknown).into_response();
            assert_eq!(answer.headers()[header::RETRY_AFTER], "7");
        }
    }

    #[test]
    fn only_the_upstreams_own_word_is_not_found() {
        check(FillError::NotFound, 404);
        check(FillError::NotAllowed, 503);
        check(FillError::NotListed, 404);
        check(FillError::Unauthorized, 403);
        check(
            FillError::Forbidden(holdfast_core::Host::parse("ruled.example").unwrap()),
            403,
        );
        check(FillError::Unavailable("refused".into()), 502);
        check(
            FillError::Later("503".into(), std::time::Duration::ZERO),
            502,
        );
        check(FillError::Invalid("digest".into()), 502);
        check(
            FillError::TooMany(std::time::Duration::from_millis(6100)),
            429,
        );
        check(FillError::Busy("too many copies wait".into()), 503);
        check(FillError::NoSpace("full".into()), 507);
        check(
            holdfast_store::Error::NoSpace { available_bytes: 1 }.into(),
            507,
        );
        check(holdfast_store::Error::Busy.into(), 503);
    }
}
