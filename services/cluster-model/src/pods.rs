//! The facts of pods.

use crate::nodes::created;
use crate::owner::Owner;
use crate::pull_status::{self, StuckPod};
use crate::scope::Scope;
use crate::sources::{Sources, address_of, sources};
use holdfast_api::artifact::Reference;
use holdfast_api::labels;
use holdfast_api::names::Names;
use holdfast_core::{pod as core_pod, workload};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// The facts of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// The pod's UID.
    pub uid: String,
    /// Its upstream images, canonical references; empty when the pod is not rewritten.
    pub sources: BTreeSet<String>,
    /// The names, as runtimes list them, of images that it keeps whatever is known of them.
    pub kept: BTreeSet<String>,
    /// Whether it may still start containers. A finished pod needs no copy but counts as a
    /// reference.
    pub alive: bool,
    /// Whether it is alive and has not started yet: the kubelet may wait for its images.
    pub waiting: bool,
    /// What controls it; the pod itself if nothing does.
    pub owner: Owner,
    /// Names of its pull secrets.
    pub pull_secrets: Vec<String>,
    /// Its service account.
    pub service_account: String,
    /// Hosts of its images that are, or may have been, the registry's: IP addresses.
    pub addresses: BTreeSet<String>,
    /// What the pod is as a node agent, if it is one.
    pub agent: Option<Agent>,
    /// The facts for healing, if it may need that.
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
    /// Its IP addresses.
    pub addresses: Vec<IpAddr>,
}

/// Whether a pod is one of the node agent's: its `DaemonSet` controls it.
pub fn is_agent(names: &Names, pod: &ObjectMeta) -> bool {
    let has = |key: &str, value: &str| {
        let labels = pod.labels.as_ref();
        labels
            .and_then(|labels| labels.get(key))
            .is_some_and(|found| found == value)
    };
    let mut owners = pod.owner_references.iter().flatten();
    let is_controlled = owners.any(|owner| {
        owner.controller == Some(true)
            && owner.kind == "DaemonSet"
            && owner.name == names.node_agent()
    });
    // The namespace counts, too, because any user who may create pods can set these labels.
    pod.namespace.as_deref() == Some(names.namespace.as_str())
        && has(labels::COMPONENT, labels::COMPONENT_NODE_AGENT)
        && has(labels::INSTANCE, &names.release)
        && is_controlled
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
            addresses: addresses_of(pod),
        }),
        ..PodFacts::default()
    };
    let Sources {
        needed,
        kept,
        healed,
    } = sources(&document, addresses, scope);
    (facts.sources, facts.kept) = (needed, kept);
    facts.stuck_pod = pull_status::stuck_pod(&document, addresses, &healed, || {
        scope.condition_holds(&document)
    })
    .map(Arc::new);
    facts
}

/// The IP addresses of a pod; none of one that has ended, because another pod may have them.
fn addresses_of(pod: &Pod) -> Vec<IpAddr> {
    let has_ended = |phase: &str| matches!(phase, "Succeeded" | "Failed");
    let status = pod.status.as_ref();
    let status = status.filter(|status| !status.phase.as_deref().is_some_and(has_ended));
    let addresses = status
        .iter()
        .flat_map(|status| status.pod_ips.iter().flatten());
    addresses
        .filter_map(|address| address.ip.parse::<IpAddr>().ok())
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

#[cfg(test)]
mod tests;
