//! Checks of who may pull an image from its upstream: `POST /internal/v1/access` on the registry's
//! internal port.
//!
//! The endpoint is separate from the fill: a fill of a local image makes no upstream request, a
//! failed copy has no result to carry, and an older registry refuses a
//! [`FillRequest`](crate::fill::FillRequest) with fields that it does not know, while it answers
//! 404 to an unknown path.

use crate::fill::Credential;
use holdfast_core::Reference;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The path of the endpoint.
pub const PATH: &str = "/internal/v1/access";

/// The request of the controller.
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
    /// The first access by which the image can be pulled.
    #[serde(default)]
    pub access: Access,
}

/// Who may pull from a repository of an upstream, by the upstream's answer at the time of the
/// request. The registry's own content does not count.
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
    /// None of these: the upstream denied all of them, or has no such image.
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

    /// The text on the wire, in statuses and in metrics.
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
    pub const fn is_for_all_namespaces(self) -> bool {
        matches!(self, Self::Public | Self::Configured)
    }
}

/// Bytes of all names on a written [`AccessList`]: what an API object may hold, minus the rest of
/// the state.
pub const MAX_LIST_BYTES: usize = 256 * 1024;
/// Bytes of the names that one namespace's Artifacts add to the list.
pub const MAX_LIST_BYTES_OF_NAMESPACE: usize = 32 * 1024;

/// The repositories (`host/repository`, canonical) whose images pods may pull. Bounded by
/// [`MAX_LIST_BYTES`] and [`MAX_LIST_BYTES_OF_NAMESPACE`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AccessList {
    /// Repositories for every namespace.
    pub everybody: BTreeSet<String>,
    /// Additional repositories by namespace.
    pub namespaces: BTreeMap<String, BTreeSet<String>>,
}

/// The name of a source's repository on an [`AccessList`].
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
    /// The setting in effect, from the value and the list of the shared state. Without a list
    /// nothing is permitted.
    pub fn new(by_namespace: bool, list: Option<&AccessList>) -> Self {
        if !by_namespace {
            return Self::Every;
        }
        Self::Listed(Arc::new(list.cloned().unwrap_or_default()))
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
    fn what_is_not_listed_is_not_permitted() {
        let list = AccessList {
            everybody: ["docker.io/library/nginx".to_owned()].into(),
            namespaces: [("shop".to_owned(), ["r.io:5000/team/app".to_owned()].into())].into(),
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
            let permits = |by_namespace, list| {
                ImageAccess::new(by_namespace, list).permits(namespace, &source)
            };
            assert_eq!(permits(true, Some(&list)), expect, "{namespace} {source}");
            assert!(permits(false, Some(&list)), "{namespace} {source}");
            let empty = AccessList::default();
            assert!(!permits(true, None) && !permits(true, Some(&empty)));
        }
    }

    #[test]
    fn access_is_written_by_name_and_other_names_are_unknown() {
        for access in Access::ALL {
            assert_eq!(serde_json::to_value(access).unwrap(), access.as_str());
        }
        for text in [r#"{"access":"of a newer registry"}"#, "{}"] {
            let result: AccessResult = serde_json::from_str(text).unwrap();
            assert_eq!(result.access, Access::Unknown, "{text}");
        }
    }
}
