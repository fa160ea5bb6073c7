//! The two documents by which the controller shares the state of the cluster with webhook and node
//! agents.

use crate::access::AccessList;
use crate::secret::SecretString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

/// The key of both documents in their ConfigMap and Secret.
pub const KEY: &str = "state.json";

/// What the webhook needs: ConfigMap `F-state`. Without it, or with `rewrite: false`, the webhook
/// changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterState {
    /// The registry's address as it stands in a reference: the ClusterIP without a port, IPv6 in
    /// brackets.
    pub registry_address: String,
    /// Addresses that the registry had before and that pods still name.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Whether pods are rewritten.
    #[serde(default)]
    pub rewrite: bool,
    /// The reason, for people.
    #[serde(default)]
    pub reason: String,
    /// Sources that the registry cannot copy although their upstream answers; pods keep these
    /// references. The oldest first, at most [`MAX_EXCLUSIONS_OF_NAMESPACE`] of a namespace and
    /// [`MAX_EXCLUSIONS`] in all; and, beside these, at most [`MAX_EXCLUDED_NAMESPACES`] namespaces
    /// whose pods keep [`EVERY_SOURCE`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<Exclusion>,
    /// Owners that delete rewritten pods, because they compare images; their pods keep their
    /// references. The oldest first, at most [`MAX_EXCLUDED_OWNERS_OF_NAMESPACE`] of a namespace
    /// and [`MAX_EXCLUDED_OWNERS`] in all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded_owners: Vec<OwnerExclusion>,
    /// The images that pods of each namespace may pull, if `access.privateImages` is `namespace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<AccessList>,
}

/// Every source of a namespace, because a policy denies the registry's references there.
pub const EVERY_SOURCE: &str = "*";

/// Excluded sources in all namespaces together. They fit into one API object with a margin.
pub const MAX_EXCLUSIONS: usize = 500;
/// Excluded sources of one namespace; a further one replaces that namespace's oldest.
pub const MAX_EXCLUSIONS_OF_NAMESPACE: usize = 20;
/// Namespaces that are excluded as a whole because a policy denies the registry's references.
pub const MAX_EXCLUDED_NAMESPACES: usize = 500;
/// Excluded owners in all namespaces together, ended exclusions included.
pub const MAX_EXCLUDED_OWNERS: usize = 200;
/// Excluded owners of one namespace; a further one replaces that namespace's oldest.
pub const MAX_EXCLUDED_OWNERS_OF_NAMESPACE: usize = 20;

/// A source that pods of a namespace pull from its upstream, until the registry can copy it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exclusion {
    /// The namespace. Credentials of other namespaces may be accepted.
    pub namespace: String,
    /// The upstream's reference, canonical, or [`EVERY_SOURCE`].
    pub source: String,
    /// The reason of the Artifact's Ready condition, or what denies the registry's references.
    pub reason: String,
    /// When it was excluded.
    pub since: Time,
}

/// An owner that deletes its pods when their images are rewritten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerExclusion {
    /// The namespace of owner and pods.
    pub namespace: String,
    /// The kind of the owner, as in the owner references of its pods.
    pub kind: String,
    /// The name of the owner.
    pub name: String,
    /// When it was excluded.
    pub since: Time,
    /// When the exclusion ends.
    pub until: Time,
    /// Whether it has ended. The entry stays for a while, so that a further exclusion is longer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
}

/// What the node agent writes on its host: Secret `F-node`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// Whether the host configuration is to be there or gone.
    pub desired: Desired,
    /// The registry's addresses, the current one first, then aliases.
    #[serde(default)]
    pub hosts: Vec<Host>,
    /// The CA bundle, PEM.
    #[serde(default)]
    pub ca: String,
    /// The user name for pulls of nodes.
    #[serde(default)]
    pub username: String,
    /// The password for pulls of nodes.
    #[serde(default)]
    pub password: SecretString,
    /// The image of the test pull that shows that a node can pull.
    #[serde(default)]
    pub probe: String,
}

/// Whether the node's host configuration is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// Written and kept.
    #[default]
    Present,
    /// Undone, byte for byte.
    Removed,
}

/// One address of the registry and the ways to reach it, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    /// As it stands in a reference: `10.96.0.50`, `[fd00::1]`.
    pub address: String,
    /// URLs: `https://10.96.0.50`, `https://10.96.0.50:5000`.
    pub endpoints: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_state_reads_as_documented() {
        let state: ClusterState = serde_json::from_str(
            r#"{"registryAddress":"10.96.0.50","aliases":[],"rewrite":true,"reason":"every node is prepared"}"#,
        )
        .unwrap();
        assert!(state.rewrite);
        let least: ClusterState =
            serde_json::from_str(r#"{"registryAddress":"10.96.0.50"}"#).unwrap();
        assert!(!least.rewrite, "unsaid means no");
        let text = r#"{"registryAddress":"a","aliases":[],"rewrite":true,"reason":"","excluded":[{"namespace":"apps","source":"r.io/a:1","reason":"Unauthorized","since":"2026-01-02T03:04:05Z"}],"excludedOwners":[{"namespace":"apps","kind":"Cluster","name":"db","since":"2026-01-02T03:04:05Z","until":"2026-01-03T03:04:05Z"}],"access":{"everybody":["r.io/b"],"namespaces":{"apps":["r.io/c"]}}}"#;
        let state: ClusterState = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&state).unwrap(), text);
    }

    #[test]
    fn the_node_state_reads_as_documented_and_hides_its_password() {
        let text = r#"{"desired":"removed","hosts":[{"address":"10.96.0.50","endpoints":["https://10.96.0.50","https://10.96.0.50:5000"]}],"ca":"PEM","username":"node","password":"hunter2","probe":"10.96.0.50/holdfast/probe:1"}"#;
        let state: NodeState = serde_json::from_str(text).unwrap();
        assert_eq!(state.desired, Desired::Removed);
        assert!(!format!("{state:?}").contains("hunter2"));
        assert_eq!(serde_json::to_string(&state).unwrap(), text);
    }
}
