//! The facts of nodes and namespaces.

use holdfast_api::labels;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;

/// The facts of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is being deleted; nothing can be created in it then.
    pub terminating: bool,
}

/// The facts of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its Ready condition.
    pub ready: bool,
    /// `os/architecture`.
    pub platform: Option<String>,
    /// Its UID, which differs for a node that joins again under the same name.
    pub uid: String,
    /// When its object was made, in seconds since 1970.
    pub created: i64,
    /// Whether it has the startup taint.
    pub tainted: bool,
    /// Whether no pod is scheduled on it (`kubectl cordon`).
    pub cordoned: bool,
}

/// The facts of a node.
pub fn node_facts(node: &Node) -> NodeFacts {
    let node_labels = node.metadata.labels.clone().unwrap_or_default();
    let status = node.status.as_ref();
    let ready = status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default()
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let platform = match (
        node_labels.get("kubernetes.io/os"),
        node_labels.get("kubernetes.io/arch"),
    ) {
        (Some(os), Some(architecture)) => Some(format!("{os}/{architecture}")),
        _ => status
            .and_then(|status| status.node_info.as_ref())
            .filter(|info| !info.operating_system.is_empty() && !info.architecture.is_empty())
            .map(|info| format!("{}/{}", info.operating_system, info.architecture)),
    };
    let spec = node.spec.as_ref();
    let tainted = spec
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default()
        .iter()
        .any(|taint| taint.key == labels::NOT_READY_TAINT);
    NodeFacts {
        labels: node_labels,
        ready,
        platform,
        uid: node.metadata.uid.clone().unwrap_or_default(),
        created: created(&node.metadata),
        tainted,
        cordoned: spec.is_some_and(|spec| spec.unschedulable == Some(true)),
    }
}

/// When an object was made, in seconds since 1970.
pub(crate) fn created(metadata: &ObjectMeta) -> i64 {
    metadata
        .creation_timestamp
        .as_ref()
        .map_or(0, |time| time.0.as_second())
}
