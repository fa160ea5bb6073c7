//! From objects of the API to the facts that decide: pure.

use crate::owners::Owner;
use crate::pull_status::{self, StuckPod};
use crate::scope::Scope;
use holdfast_api::artifact::{MAX_SOURCE_BYTES, Reference};
use holdfast_api::labels;
use holdfast_api::names::Names;
use holdfast_core::{Host, pod as core_pod, rewrite, workload};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The facts of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// The pod's UID.
    pub uid: String,
    /// Its upstream images, canonical references; empty when the pod is not rewritten.
    pub sources: BTreeSet<String>,
    /// Whether it may still start containers; a finished pod needs no copy but is still a
    /// reference.
    pub alive: bool,
    /// Whether it is alive and has not started yet: the kubelet may wait for its images.
    pub waiting: bool,
    /// What controls it; itself when nothing does.
    pub owner: Owner,
    /// Names of its pull secrets.
    pub pull_secrets: Vec<String>,
    /// Its service account.
    pub service_account: String,
    /// Hosts of its images that are, or may have been, the registry's: IP addresses.
    pub addresses: BTreeSet<String>,
    /// What the pod is as a node agent, if it is one.
    pub agent: Option<Agent>,
    /// What healing needs to know of it, if it may need healing.
    pub stuck_pod: Option<Arc<StuckPod>>,
}

/// A node-agent pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// The node it runs on; empty while it is not scheduled.
    pub node: String,
    /// Whether its node has completed a test pull.
    pub ready: bool,
    /// When the pod was made, in seconds since 1970.
    pub created: i64,
}

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
    /// Its UID: a node that rejoins under an old name is another one.
    pub uid: String,
    /// When its object was made, in seconds since 1970.
    pub created: i64,
    /// Whether it carries the taint of nodes that wait for their agent.
    pub held: bool,
}

/// Whether a pod is one of the node agent's.
pub fn is_agent(
    names: &Names,
    namespace: Option<&str>,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    let has = |key: &str, value: &str| {
        labels
            .and_then(|labels| labels.get(key))
            .is_some_and(|found| found == value)
    };
    // The namespace decides too: any user who may create pods can label their own as agents of
    // nodes that are not prepared.
    namespace == Some(names.namespace.as_str())
        && has(labels::COMPONENT, labels::COMPONENT_NODE_AGENT)
        && has(labels::INSTANCE, &names.release)
}

/// The facts of a pod, with the registry's `addresses` known so far.
pub fn pod_facts(pod: &Pod, addresses: &[String], scope: &Scope, is_agent: bool) -> PodFacts {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let document = document(pod);
    let alive = workload::may_start("Pod", &document);
    let images = core_pod::images(&document);
    let mut facts = PodFacts {
        alive,
        waiting: alive && matches!(phase, None | Some("Pending")),
        owner: Owner::above(&document).unwrap_or_else(|| Owner {
            reference: Reference {
                kind: "Pod".to_owned(),
                name: pod.metadata.name.clone().unwrap_or_default(),
            },
            uid: uid.clone(),
        }),
        uid,
        pull_secrets: core_pod::pull_secret_names(&document),
        service_account: core_pod::service_account_name(&document).to_owned(),
        addresses: images
            .iter()
            .filter_map(|image| address_of(&image.image))
            .collect(),
        agent: is_agent.then(|| Agent {
            node: pod
                .spec
                .as_ref()
                .and_then(|spec| spec.node_name.clone())
                .unwrap_or_default(),
            ready: pod.metadata.deletion_timestamp.is_none()
                && workload::condition_is_true(&document, &["Ready"]),
            created: created(&pod.metadata),
        }),
        ..PodFacts::default()
    };
    facts.sources = sources(&document, addresses, scope);
    facts.stuck_pod = pull_status::stuck_pod(&document, addresses, &facts.sources, || {
        scope.condition_holds(&document)
    })
    .map(Arc::new);
    facts
}

/// The upstream images that a pod, or the pod that a template becomes, needs: canonical references.
/// A mirror pod brings none.
pub(crate) fn sources(
    document: &serde_json::Value,
    addresses: &[String],
    scope: &Scope,
) -> BTreeSet<String> {
    let images = core_pod::original_images(document, addresses);
    if images.is_empty() {
        return BTreeSet::new();
    }
    // What was rewritten needs its copy whatever the rules say today.
    let wanted = !core_pod::is_mirror(document)
        && !labels::opts_out(document)
        && scope.condition_holds(document);
    images
        .into_iter()
        .filter(|image| {
            image.rewritten
                || (wanted
                    && image.image.pull_policy.as_deref() != Some("Never")
                    && scope.includes_source(image.reference.host()))
        })
        .map(|image| image.reference.to_string())
        .filter(|source| source.len() <= MAX_SOURCE_BYTES)
        .collect()
}

/// The pod as JSON without its managed fields.
pub fn document(pod: &Pod) -> serde_json::Value {
    let mut document = serde_json::to_value(pod).unwrap_or_default();
    if let Some(metadata) = document
        .get_mut("metadata")
        .and_then(serde_json::Value::as_object_mut)
    {
        metadata.remove("managedFields");
    }
    document
}

/// The host of a reference when it is an IP address without a port: such may be an address of the
/// registry.
pub fn address_of(image: &str) -> Option<String> {
    let (first, _) = image.split_once('/')?;
    let bare = first.trim_start_matches('[').trim_end_matches(']');
    let address: std::net::IpAddr = bare.parse().ok()?;
    let host = match address {
        std::net::IpAddr::V4(address) => address.to_string(),
        std::net::IpAddr::V6(address) => format!("[{address}]"),
    };
    Host::parse(&host)
        .is_ok_and(|parsed| rewrite::is_at(&parsed, &host))
        .then_some(host)
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
    let held = node
        .spec
        .as_ref()
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
        held,
    }
}

fn created(metadata: &ObjectMeta) -> i64 {
    metadata
        .creation_timestamp
        .as_ref()
        .map_or(0, |time| time.0.as_second())
}

#[cfg(test)]
mod tests;
