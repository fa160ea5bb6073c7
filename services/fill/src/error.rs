//! Why a copy failed: one type for fill requests and for pulls.

use std::time::Duration;

use holdfast_api::fill::{FillError, FillErrorCode};
use holdfast_core::Host;

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
    /// The upstream asked for a pause of this length (429).
    #[error("too many requests, the upstream asks for a pause of {} s", .0.as_secs_f64().ceil())]
    TooMany(Duration),
    /// The upstream's bytes do not match their digest or are no image.
    #[error("{0}")]
    Invalid(String),
    /// The upstream's bytes have the right digest and are no manifest that is taken.
    #[error("{0}")]
    NoManifest(String),
    /// Neither an Artifact nor the settings name it.
    #[error("no Artifact and no configured upstream allows fetching it")]
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
    pub fn label(&self) -> &'static str {
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

impl From<holdfast_upstream::Error> for Error {
    fn from(error: holdfast_upstream::Error) -> Self {
        match error {
            holdfast_upstream::Error::NotFound => Self::NotFound,
            holdfast_upstream::Error::Unauthorized => Self::Unauthorized,
            holdfast_upstream::Error::Invalid(what) => Self::Invalid(what),
            holdfast_upstream::Error::Busy(_) => Self::Busy(error.to_string()),
            holdfast_upstream::Error::TooMany(pause) => Self::TooMany(pause),
            holdfast_upstream::Error::Later(what, pause) => Self::Later(what, pause),
            holdfast_upstream::Error::NoManifest(what) => Self::NoManifest(what),
            holdfast_upstream::Error::Unavailable(what)
            | holdfast_upstream::Error::Settings(what) => Self::Unavailable(what),
        }
    }
}

impl From<holdfast_store::Error> for Error {
    fn from(error: holdfast_store::Error) -> Self {
        if let holdfast_store::Error::NoSpace { available_bytes } = error {
            let what = format!("the volume is full ({available_bytes} bytes left)");
            return Self::NoSpace(what);
        }
        tracing::error!(
            %error, source = std::error::Error::source(&error),
            "the store failed during a copy"
        );
        Self::Store(error.category())
    }
}

impl From<Error> for FillError {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::NotFound => FillErrorCode::NotFound,
            Error::Unauthorized => FillErrorCode::Unauthorized,
            Error::Unavailable(_) | Error::Later(..) => FillErrorCode::UpstreamUnavailable,
            // No reason to call the upstream away.
            Error::TooMany(_) | Error::Busy(_) => FillErrorCode::Busy,
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
