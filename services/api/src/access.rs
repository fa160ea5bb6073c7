//! Who an upstream gives an image to: `POST /internal/v1/access` on the registry's internal port.
//!
//! The question is one of its own, beside the fill: an image that is local is answered without any
//! upstream, a copy that fails has no answer to carry, and an older registry refuses a
//! [`FillRequest`](crate::fill::FillRequest) with fields that it does not know, while it answers
//! 404 to a path that it does not know.

use crate::fill::Credential;
use crate::state::ClusterState;
use holdfast_core::Reference;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The path of the endpoint.
pub const PATH: &str = "/internal/v1/access";

/// "Who may read this image at its upstream?": what the controller sends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessRequest {
    /// The full upstream reference, `registry.example/team/app:1`.
    pub source: String,
    /// The credentials of one namespace, tried in turn after anonymous access and the operator's
    /// own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<Credential>,
}

/// The answer with status 200.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessResult {
    /// The first that opened the image.
    #[serde(default)]
    pub access: Access,
}

/// Who an upstream gives a repository to. Each is an answer of the upstream, given when it was
/// asked; what the registry has stored is none.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Access {
    /// Everyone, without a credential.
    Public,
    /// Access with a credential of `upstreams` in the values, or from a mirror that is listed
    /// there.
    Configured,
    /// A credential that came with the request.
    Proved,
    /// None of these: the upstream refused, or said that there is no such image, to all of them.
    Denied,
    /// The upstream did not answer.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Access {
    /// Every answer.
    pub const ALL: [Self; 5] = [
        Self::Public,
        Self::Configured,
        Self::Proved,
        Self::Denied,
        Self::Unknown,
    ];

    /// The word on the wire, in statuses and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Configured => "configured",
            Self::Proved => "proved",
            Self::Denied => "denied",
            Self::Unknown => "unknown",
        }
    }

    /// Whether pods of every namespace may have the image.
    pub const fn is_everybodys(self) -> bool {
        matches!(self, Self::Public | Self::Configured)
    }
}

/// Bytes of all names on an [`AccessList`] as they are written: what an object of the API may hold,
/// with room for the rest of the state.
pub const MAX_LIST_BYTES: usize = 256 * 1024;
/// Bytes of the names that one namespace's Artifacts bring onto the list.
pub const MAX_LIST_BYTES_OF_NAMESPACE: usize = 32 * 1024;

/// The repositories (`host/repository`, canonical) whose images pods may be given: what is not
/// listed is not known to be theirs. Bounded by [`MAX_LIST_BYTES`] and
/// [`MAX_LIST_BYTES_OF_NAMESPACE`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AccessList {
    /// Repositories for every namespace.
    pub everybody: BTreeSet<String>,
    /// Additional repositories by namespace.
    pub namespaces: BTreeMap<String, BTreeSet<String>>,
}

/// A repository as it stands on an [`AccessList`].
pub fn repository_of(source: &Reference) -> String {
    format!("{}/{}", source.host(), source.repository())
}

/// Which images pods may pull from the registry. Everything that rewrites a reference checks this.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImageAccess {
    /// Every image in every namespace (`access.privateImages: node`).
    #[default]
    Every,
    /// What is listed (`access.privateImages: namespace`).
    Listed(Arc<AccessList>),
}

impl ImageAccess {
    /// The setting in effect, from the value and the shared state. Without a list nothing is
    /// permitted.
    pub fn new(by_namespace: bool, state: Option<&ClusterState>) -> Self {
        if !by_namespace {
            return Self::Every;
        }
        let list = state.and_then(|state| state.access.clone());
        Self::Listed(Arc::new(list.unwrap_or_default()))
    }

    /// Whether pods of `namespace` may have the image of `source` from the registry.
    pub fn permits(&self, namespace: &str, source: &Reference) -> bool {
        let Self::Listed(list) = self else {
            return true;
        };
        let repository = repository_of(source);
        let own = list.namespaces.get(namespace);
        list.everybody.contains(&repository)
            || own.is_some_and(|repositories| repositories.contains(&repository))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_listed_is_nobodys() {
        let list = AccessList {
            everybody: ["docker.io/library/nginx".to_owned()].into(),
            namespaces: [("shop".to_owned(), ["r.io:5000/team/app".to_owned()].into())].into(),
        };
        let state = ClusterState {
            access: Some(list),
            ..ClusterState::default()
        };
        for (namespace, source, expect) in [
            ("shop", "nginx", true),
            ("other", "nginx:1", true),
            ("other", "docker.io/nginx", true),
            ("shop", "r.io:5000/team/app:2", true),
            ("other", "r.io:5000/team/app:2", false),
            ("shop", "r.io/team/app:2", false),
            ("shop", "r.io:5000/team/app2:2", false),
            ("shop", "r.io:5000/team/app/x:2", false),
        ] {
            let source = Reference::parse(source).unwrap();
            let permits = |by_namespace, state| {
                ImageAccess::new(by_namespace, state).permits(namespace, &source)
            };
            assert_eq!(permits(true, Some(&state)), expect, "{namespace} {source}");
            assert!(permits(false, Some(&state)), "{namespace} {source}");
            let older = ClusterState::default();
            assert!(!permits(true, None) && !permits(true, Some(&older)));
        }
    }

    #[test]
    fn answers_are_written_as_they_are_named_and_others_mean_nothing() {
        for access in Access::ALL {
            assert_eq!(serde_json::to_value(access).unwrap(), access.as_str());
        }
        for text in [r#"{"access":"of a newer registry"}"#, "{}"] {
            let result: AccessResult = serde_json::from_str(text).unwrap();
            assert_eq!(result.access, Access::Unknown, "{text}");
        }
    }
}
