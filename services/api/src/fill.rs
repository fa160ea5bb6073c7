//! The fill API between controller and registry: `POST /internal/v1/fills` on port 5001 with mutual
//! TLS.
//!
//! Types of the wire only; the caller is the controller, the server is the registry.

use crate::secret::SecretString;
use serde::{Deserialize, Serialize};

/// The path of the fill endpoint.
pub const PATH: &str = "/internal/v1/fills";

/// Asks the registry to hold an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FillRequest {
    /// The full upstream reference, `registry.example/team/app:1`.
    pub source: String,
    /// Platforms to copy at once, `os/architecture[/variant]`; empty means every platform of the
    /// index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// Credentials to try in turn (SPEC 35); empty means anonymous or what the registry is
    /// configured with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<Credential>,
    /// Ask the upstream whether a tag moved even when the image is local.
    #[serde(default)]
    pub revalidate: bool,
    /// How urgent it is.
    #[serde(default)]
    pub priority: Priority,
}

/// How urgent a fill is, the most urgent first. A fill takes the priority of its most urgent
/// requester.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum Priority {
    /// A pod, or a pull, waits for it.
    #[default]
    Blocking,
    /// Pods that use it are running; it is copied for their next start.
    Running,
    /// No pod uses it yet.
    Prefetch,
}

impl Priority {
    /// Every priority, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Blocking, Self::Running, Self::Prefetch];

    /// The word on the wire and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::Running => "running",
            Self::Prefetch => "prefetch",
        }
    }
}

/// A user name and password, or an identity token, for one upstream. The password never prints.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Credential {
    /// The user name; may be empty with an identity token.
    pub username: String,
    /// The password or token.
    pub password: SecretString,
    /// Whether `password` is an OAuth 2 refresh token (`identitytoken` of a docker configuration):
    /// it is exchanged at the upstream's token server and never sent as a password there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub identity_token: bool,
}

/// "It is here": the answer with status 200.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FillResult {
    /// The digest of the manifest or index.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Bytes of manifests and blobs that belong to it.
    pub size_bytes: u64,
    /// How many blobs belong to it.
    pub blobs: u64,
    /// True when nothing had to be fetched (SPEC 14).
    pub already_local: bool,
    /// What the registry does not hold of an index, with the cause: platforms that were asked for
    /// and are not in it, entries that the upstream does not have or that are no manifests. At
    /// most 16 are named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// Why a fill failed; the body of every other status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillError {
    /// The kind of failure.
    pub code: FillErrorCode,
    /// For people; carries no credential.
    pub message: String,
}

impl std::fmt::Display for FillError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)
    }
}

impl std::error::Error for FillError {}

/// The kinds of failure of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FillErrorCode {
    /// The upstream says that there is no such image.
    NotFound,
    /// The upstream refused every credential.
    Unauthorized,
    /// The upstream cannot be reached, is too slow, or fails.
    UpstreamUnavailable,
    /// The upstream's bytes do not match their digest or are no image.
    UpstreamInvalid,
    /// The volume takes no more writes.
    NoSpace,
    /// The request is malformed or names what may not be fetched.
    Invalid,
    /// The registry's volume failed.
    StoreFailed,
    /// The registry takes no more work now, or the upstream asked for a pause. Nothing is known of
    /// the image.
    Busy,
}

impl FillErrorCode {
    /// Every code, in the order of the document.
    pub const ALL: [Self; 8] = [
        Self::NotFound,
        Self::Unauthorized,
        Self::UpstreamUnavailable,
        Self::UpstreamInvalid,
        Self::NoSpace,
        Self::Invalid,
        Self::StoreFailed,
        Self::Busy,
    ];

    /// The HTTP status that goes with the code.
    pub const fn status(self) -> u16 {
        match self {
            Self::NotFound => 404,
            Self::Unauthorized => 403,
            Self::UpstreamUnavailable | Self::UpstreamInvalid => 502,
            Self::NoSpace => 507,
            Self::Invalid => 400,
            Self::StoreFailed => 500,
            Self::Busy => 503,
        }
    }

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "NOT_FOUND",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::UpstreamUnavailable => "UPSTREAM_UNAVAILABLE",
            Self::UpstreamInvalid => "UPSTREAM_INVALID",
            Self::NoSpace => "NO_SPACE",
            Self::Invalid => "INVALID",
            Self::StoreFailed => "STORE_FAILED",
            Self::Busy => "BUSY",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_as_they_are_named() {
        for code in FillErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    #[test]
    fn the_request_reads_as_documented() {
        let body = r#"{"source":"registry.example/team/app:1","platforms":["linux/amd64"],
            "credentials":[{"username":"u","password":"p"}],"revalidate":false}"#;
        let request: FillRequest = serde_json::from_str(body).unwrap();
        assert_eq!(request.credentials[0].password.expose(), "p");
        assert!(!format!("{request:?}").contains("\"p\""));
        let least: FillRequest = serde_json::from_str(r#"{"source":"a/b:1"}"#).unwrap();
        assert!(least.platforms.is_empty() && !least.revalidate);
        assert_eq!(least.priority, Priority::Blocking);
        for priority in Priority::ALL {
            assert_eq!(serde_json::to_value(priority).unwrap(), priority.as_str());
        }
        assert!(Priority::Blocking < Priority::Running && Priority::Running < Priority::Prefetch);
    }
}
