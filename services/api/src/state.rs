//! The two documents by which the controller tells the other parts what is true of the cluster.

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
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
    /// Sources that the registry cannot get though their upstream answers; pods that name them
    /// keep them. The oldest first, at most [`MAX_LEFT_ALONE_OF_NAMESPACE`] of a namespace and
    /// [`MAX_LEFT_ALONE`] in all; and, beside these, at most [`MAX_POLICIES`] namespaces whose
    /// pods keep [`EVERY_SOURCE`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_alone: Vec<SourceLeftAlone>,
    /// Whose pods may have which images, where `access.privateImages` is `namespace`; else absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<AccessList>,
}

/// As a source: everything that pods of the namespace name. A policy refuses the registry's
/// references there.
pub const EVERY_SOURCE: &str = "*";

/// Sources that are left alone in all namespaces together: what an object of the API may hold, with
/// room to spare.
pub const MAX_LEFT_ALONE: usize = 500;
/// Sources of one namespace that are left alone; a further one takes the place of that namespace's
/// oldest.
pub const MAX_LEFT_ALONE_OF_NAMESPACE: usize = 20;
/// Namespaces whose pods keep every source, because a policy refuses the registry's references.
pub const MAX_POLICIES: usize = 500;

/// A source that pods of a namespace get from its upstream themselves, until the registry can get
/// it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceLeftAlone {
    /// The namespace; others may bring credentials that open it.
    pub namespace: String,
    /// The upstream's reference, canonical, or [`EVERY_SOURCE`].
    pub source: String,
    /// The reason of the Artifact's Ready condition, or who refuses the registry's references.
    pub reason: String,
    /// Since when.
    pub since: Time,
}

/// What the node agent is to write on its host: Secret `F-node`.
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
    /// The user name by which nodes pull.
    #[serde(default)]
    pub username: String,
    /// The password by which nodes pull.
    #[serde(default)]
    pub password: SecretString,
    /// The image by which an agent proves that its node can pull.
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
        let text = r#"{"registryAddress":"a","aliases":[],"rewrite":true,"reason":"","leftAlone":[{"namespace":"apps","source":"r.io/a:1","reason":"Unauthorized","since":"2026-01-02T03:04:05Z"}],"access":{"everybody":["r.io/b"],"namespaces":{"apps":["r.io/c"]}}}"#;
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
