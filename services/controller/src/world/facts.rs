//! From objects of the API to the facts that decide: pure.

use super::health::{self, Patient};
use super::owners::Owner;
use crate::Error;
use holdfast_api::artifact::{MAX_SOURCE_BYTES, Reference};
use holdfast_api::labels;
use holdfast_api::names::Names;
use holdfast_conditions::{Condition, Facts};
use holdfast_config::Config;
use holdfast_core::UpstreamFilter;
use holdfast_core::{Host, pod as core_pod, rewrite, workload};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{Selector, SelectorExt as _};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What concerns Holdfast, by the configuration. The webhook's rules say the same to the API
/// server.
#[derive(Debug)]
pub struct Scope {
    /// `None`: the API server understands the expression, this process does not.
    condition: Option<Condition>,
    namespaces: Selector,
    upstreams: UpstreamFilter,
    release_namespace: String,
    /// Labels of the nodes in scope; empty means all.
    pub nodes: BTreeMap<String, String>,
}

/// A pod, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// The pod's UID.
    pub uid: String,
    /// Its upstream images, canonical references; empty when the pod is left alone.
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
    /// What healing needs of it, where it may need help.
    pub patient: Option<Arc<Patient>>,
}

/// A node-agent pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// The node it runs on; empty while it is not scheduled.
    pub node: String,
    /// Whether its node has made a real pull.
    pub ready: bool,
    /// When the pod was made, in seconds since 1970.
    pub created: i64,
}

/// A namespace, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is being deleted; nothing can be created in it then.
    pub terminating: bool,
}

/// A node, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its Ready condition.
    pub ready: bool,
    /// `os/architecture`.
    pub platform: Option<String>,
    /// Its UID: a node that joins anew under an old name is another one.
    pub uid: String,
    /// When its object was made, in seconds since 1970.
    pub created: i64,
    /// Whether it carries the taint of nodes that wait for their agent.
    pub held: bool,
}

impl Scope {
    /// Reads the configuration; an expression or selector that cannot be read is an error.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let values = &config.values;
        let expression = &values
            .global
            .networkfunctionextension
            .webhook
            .pod
            .mutation
            .match_condition_expression;
        let namespaces = Selector::try_from(values.webhook.scope.namespace_selector.clone())
            .map_err(|error| Error::Selector(error.to_string()))?;
        let configured = values
            .upstreams
            .iter()
            .filter_map(|upstream| Host::parse(&upstream.host).ok())
            .collect();
        Ok(Self {
            condition: Condition::parse(expression)
                .inspect_err(|error| {
                    tracing::error!(
                        %error,
                        "cannot evaluate webhook.pod.mutation.matchConditionExpression: images of pods that the webhook missed are not \
                         copied"
                    );
                })
                .ok(),
            namespaces,
            upstreams: UpstreamFilter::new(&values.sources, configured)
                .only_configured(values.only_listed_upstreams),
            release_namespace: config.release.namespace.clone(),
            nodes: values.webhook.scope.node_selector.clone(),
        })
    }

    /// Whether pods of a namespace concern Holdfast (the match condition has its own say on each
    /// pod).
    pub fn includes(&self, namespace: &str, facts: &NamespaceFacts) -> bool {
        namespace != self.release_namespace
            && !opted_out(Some(&facts.labels))
            && self.namespaces.matches(&facts.labels)
    }

    /// Whether `sources` and `onlyListedUpstreams` include images of this host.
    pub fn includes_source(&self, host: &Host) -> bool {
        self.upstreams.include(host)
    }

    /// Whether a node is in scope. One of another system has no agent, and would be waited for in
    /// vain.
    pub fn includes_node(&self, facts: &NodeFacts) -> bool {
        let linux = facts
            .platform
            .as_ref()
            .is_none_or(|platform| platform.starts_with("linux/"));
        linux
            && self
                .nodes
                .iter()
                .all(|(key, value)| facts.labels.get(key) == Some(value))
    }
}

fn opted_out(labels: Option<&BTreeMap<String, String>>) -> bool {
    labels
        .and_then(|labels| labels.get(labels::REWRITE))
        .is_some_and(|value| value == labels::REWRITE_DISABLED)
}

/// Whether a pod is one of the node agent's.
pub(super) fn is_agent(
    names: &Names,
    namespace: Option<&str>,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    let has = |key: &str, value: &str| {
        labels
            .and_then(|labels| labels.get(key))
            .is_some_and(|found| found == value)
    };
    // The namespace decides too: anybody who may create pods can label his own as agents of nodes
    // that are not prepared.
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
    facts.patient = health::patient(&document, addresses, &facts.sources, || {
        condition_holds(&document, scope)
    })
    .map(Arc::new);
    facts
}

/// The upstream images that a pod, or the pod that a template becomes, needs: canonical references.
/// A mirror pod brings none.
pub(super) fn sources(
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
        && condition_holds(document, scope);
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

fn condition_holds(document: &serde_json::Value, scope: &Scope) -> bool {
    // An error means what `failurePolicy: Ignore` means to the API server: left alone.
    scope.condition.as_ref().is_some_and(|condition| {
        condition
            .matches(document, &Facts::of_pod(document))
            .unwrap_or_else(|error| {
                tracing::debug!(%error, "the match condition fails for a pod; the pod is not rewritten");
                false
            })
    })
}

/// The pod as JSON without what nobody asks for.
pub(crate) fn document(pod: &Pod) -> serde_json::Value {
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
pub(super) fn address_of(image: &str) -> Option<String> {
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
#[path = "facts_tests.rs"]
mod tests;
