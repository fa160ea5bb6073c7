//! What `doctor` asks the API server. Each question may fail by itself; the answer then says why.

use std::collections::BTreeMap;

use holdfast_api::access::ImageAccess;
use holdfast_api::labels;
use holdfast_api::names::Names;
use holdfast_cli_kit::cluster::{
    self, NAMESPACES, NODES, PODS, Release, Resource, SECRETS, WEBHOOKS,
};
use holdfast_cli_kit::leader::LeaderArgs;
use holdfast_cluster_model::{NamespaceFacts, Scope, node_facts};
use holdfast_core::workload::{condition_is_true, text};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use serde_json::Value;

use super::access::{self, Unproved};
use super::api::{Fetched, listed, object};
use super::policy_dry_run::{self, DryRun};
use super::pull_records::{self, Policies, Risk};
use super::quotas::{self, FullQuota};
use super::scaling::{self, Scaling};
use super::verifiers::{self, Verifier};
use crate::status::{diagnose, fetch};

const CLAIMS: Resource = cluster::core("persistentvolumeclaims");
const EVENTS: Resource = cluster::core("events");

/// The volume's claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) phase: String,
    /// What was said of it last.
    pub(super) event: String,
}

/// The webhook's configuration, and the CA that its certificate is signed by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Webhook {
    /// The `caBundle` of each of its webhooks, PEM.
    pub(super) bundles: Vec<String>,
    /// The CA, PEM; nothing before there is a certificate.
    pub(super) authority: Option<Fetched<String>>,
}

/// The agent of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Agent {
    pub(super) pod: String,
    pub(super) ready: bool,
    /// Why it is not.
    pub(super) why: String,
}

/// A node in scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NodeReadiness {
    /// Its condition Ready is not true, for this reason.
    NotReady(String),
    /// It is Ready, and no agent runs there.
    WithoutAgent,
    /// It is Ready and has this agent.
    WithAgent(Agent),
}

/// Everything that was found out.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) status: diagnose::Facts,
    pub(super) claim: Fetched<Option<Claim>>,
    pub(super) webhook: Fetched<Option<Webhook>>,
    /// The nodes in scope.
    pub(super) nodes: Fetched<BTreeMap<String, NodeReadiness>>,
    pub(super) dry_runs: Vec<DryRun>,
    /// Whether the webhook, asked by a dry run, rewrote a pod; nothing where there is no pod to
    /// ask with.
    pub(super) rewrites: Option<Fetched<bool>>,
    /// Whether API servers must show the webhook a certificate (`webhook.clientCaSecret`).
    pub(super) client_ca: bool,
    /// The release's autoscalers and the API that they ask.
    pub(super) scaling: Fetched<Scaling>,
    /// Quotas that leave no room for further Artifacts.
    pub(super) quotas: Fetched<Vec<FullQuota>>,
    /// Policies that verify images by their names.
    pub(super) verifiers: Fetched<Vec<Verifier>>,
    /// How the kubelets of Ready nodes verify pull secrets.
    pub(super) policies: Policies,
    /// Images that running pods need, and that their nodes pull at the next start.
    pub(super) risks: Fetched<BTreeMap<String, Risk>>,
    /// Pods with images that their namespaces may not have; nothing where every pod may have every
    /// image.
    pub(super) unproved: Option<Fetched<Vec<Unproved>>>,
    /// What else could not be found out.
    pub(super) unknown: Vec<String>,
}

/// Asks everything.
pub(super) async fn facts(
    client: &Client,
    leader: &LeaderArgs,
    release: &Release,
    namespace: Option<&str>,
) -> Facts {
    let names = &release.names;
    let artifacts = fetch::artifacts(client, namespace, "").await;
    let artifacts = artifacts.map_err(|error| format!("{error:#}"));
    let status = fetch::facts(client, release, artifacts).await;
    let mut unknown = Vec::new();
    let scope = match &release.config {
        Ok(config) => Scope::new(config).map_err(|error| error.to_string()),
        Err(why) => Err(why.clone()),
    };
    let scope = scope.map_err(|why| unknown.push(why)).ok();
    let (claim, webhook, scaling, quotas, verifiers) = tokio::join!(
        claim(client, release),
        webhook(client, names),
        scaling::fetch(client, names),
        quotas::fetch(client, namespace),
        verifiers::fetch(client)
    );
    let nodes = match &scope {
        Some(scope) => nodes(client, names, scope).await,
        None => Err("which nodes are in scope is not known".to_owned()),
    };
    let ready = nodes.iter().flatten();
    let ready = ready.filter(|(_, state)| !matches!(state, NodeReadiness::NotReady(_)));
    let ready = ready.map(|(node, _)| node.clone()).collect();
    let policies = pull_records::policies(client, ready).await;
    let risks = risks(client, leader, names, namespace, &status, &policies).await;
    let image_access = access_of(release, &status);
    let unproved = match &image_access {
        ImageAccess::Every => None,
        access @ ImageAccess::Listed(_) => Some(unproved(client, namespace, &status, access).await),
    };
    let (mut tried, mut rewrites) = (Vec::new(), None);
    let address = match &status.state {
        Ok(Some(state)) if !state.registry_address.is_empty() => Some(&state.registry_address),
        _ => None,
    };
    if let (Some(scope), Some(address), Ok(artifacts)) = (&scope, address, &status.artifacts) {
        match namespaces(client, namespace).await {
            Ok(known) => {
                let candidates =
                    policy_dry_run::candidates(artifacts, scope, &image_access, &known);
                (tried, rewrites) = policy_dry_run::run(client, address, &status, candidates).await;
            }
            Err(why) => unknown.push(format!("whether policies refuse pods: {why}")),
        }
    }
    Facts {
        status,
        claim,
        webhook,
        nodes,
        dry_runs: tried,
        rewrites,
        client_ca: release
            .config
            .as_ref()
            .is_ok_and(|config| !config.values.webhook.client_ca_secret.is_empty()),
        scaling,
        quotas,
        verifiers,
        policies,
        risks,
        unproved,
        unknown,
    }
}

/// Which images pods may have from the registry; all of them where the configuration cannot be
/// read.
fn access_of(release: &Release, status: &diagnose::Facts) -> ImageAccess {
    let config = release.config.as_ref();
    let by_namespace = config.is_ok_and(|config| config.values.access.is_by_namespace());
    let state = status.state.as_ref().ok().and_then(Option::as_ref);
    ImageAccess::new(by_namespace, state.and_then(|state| state.access.as_ref()))
}

async fn unproved(
    client: &Client,
    namespace: Option<&str>,
    status: &diagnose::Facts,
    access: &ImageAccess,
) -> Fetched<Vec<Unproved>> {
    let state = status.state.as_ref().map_err(Clone::clone)?;
    let pods = listed(client, PODS, namespace, "").await?;
    let addresses = cluster::addresses(state.as_ref());
    Ok(access::unproved(&pods, &addresses, access))
}

/// The images at risk, as the leading controller knows them.
async fn risks(
    client: &Client,
    leader: &LeaderArgs,
    names: &Names,
    namespace: Option<&str>,
    status: &diagnose::Facts,
    policies: &Policies,
) -> Fetched<BTreeMap<String, Risk>> {
    let state = status.state.as_ref().map_err(Clone::clone)?;
    let pods = listed(client, PODS, namespace, "").await?;
    let asked = pull_records::questions(&pods, &cluster::addresses(state.as_ref()));
    if asked.is_empty() {
        return Ok(BTreeMap::new());
    }
    let questions: Vec<_> = asked.keys().cloned().collect();
    let said = leader
        .connect(client, names)
        .await?
        .starts(&questions)
        .await?;
    Ok(pull_records::risks(asked, &said, policies))
}

async fn claim(client: &Client, release: &Release) -> Fetched<Option<Claim>> {
    let names = &release.names;
    let namespace = Some(names.namespace.as_str());
    let storage = release
        .config
        .as_ref()
        .map(|it| &it.values.registry.storage);
    let name = match storage {
        Ok(storage) if !storage.existing_claim.is_empty() => storage.existing_claim.clone(),
        _ => names.registry(),
    };
    let Some(claim) = object(client, CLAIMS, namespace, &name).await? else {
        return Ok(None);
    };
    let phase = text(&claim, "/status/phase").to_owned();
    let mut event = String::new();
    if phase != "Bound" {
        let events = listed(client, EVENTS, namespace, "")
            .await
            .unwrap_or_default();
        let mut about: Vec<_> = events
            .iter()
            .filter(|event| text(event, "/involvedObject/uid") == text(&claim, "/metadata/uid"))
            .collect();
        about.sort_by_key(|event| text(event, "/lastTimestamp"));
        event = about
            .last()
            .map(|event| text(event, "/message").to_owned())
            .unwrap_or_default();
    }
    Ok(Some(Claim { phase, event }))
}

async fn webhook(client: &Client, names: &Names) -> Fetched<Option<Webhook>> {
    let Some(found) = object(client, WEBHOOKS, None, &names.webhook()).await? else {
        return Ok(None);
    };
    let webhooks = found.pointer("/webhooks").and_then(Value::as_array);
    let bundles = webhooks
        .into_iter()
        .flatten()
        .map(|webhook| decoded(webhook.pointer("/clientConfig/caBundle")))
        .collect();
    let namespace = Some(names.namespace.as_str());
    let authority = match object(client, SECRETS, namespace, &names.webhook_tls()).await {
        // The certificate only: the key beside it is not read.
        Ok(Some(secret)) => Some(Ok(decoded(secret.pointer("/data/ca.crt")))),
        Ok(None) => None,
        Err(why) => Some(Err(why)),
    };
    Ok(Some(Webhook { bundles, authority }))
}

fn decoded(value: Option<&Value>) -> String {
    let bytes: Option<ByteString> =
        value.and_then(|value| serde_json::from_value(value.clone()).ok());
    let bytes = bytes.unwrap_or_default().0;
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

async fn nodes(
    client: &Client,
    names: &Names,
    scope: &Scope,
) -> Fetched<BTreeMap<String, NodeReadiness>> {
    let nodes = listed(client, NODES, None, "").await?;
    let selector = format!(
        "{}={},{}={}",
        labels::INSTANCE,
        names.release,
        labels::COMPONENT,
        labels::COMPONENT_NODE_AGENT
    );
    let pods = listed(client, PODS, Some(&names.namespace), &selector).await?;
    let nodes = nodes
        .into_iter()
        .filter_map(|node| serde_json::from_value::<Node>(node).ok())
        .filter(|node| scope.includes_node(&node_facts(node)));
    Ok(nodes
        .map(|node| {
            let state = node_readiness(&node, &pods);
            (node.metadata.name.unwrap_or_default(), state)
        })
        .collect())
}

fn node_readiness(node: &Node, pods: &[Value]) -> NodeReadiness {
    if !node_facts(node).ready {
        return NodeReadiness::NotReady(not_ready(node));
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let agents = pods
        .iter()
        .filter(|pod| text(pod, "/spec/nodeName") == name)
        .map(agent);
    agents
        .max_by_key(|agent| agent.ready)
        .map_or(NodeReadiness::WithoutAgent, NodeReadiness::WithAgent)
}

/// What a node's condition Ready says.
fn not_ready(node: &Node) -> String {
    let conditions = node.status.as_ref().and_then(|it| it.conditions.as_deref());
    let mut conditions = conditions.unwrap_or_default().iter();
    let Some(ready) = conditions.find(|condition| condition.type_ == "Ready") else {
        return "its kubelet has not reported yet".to_owned();
    };
    let reason = ready.reason.as_deref().unwrap_or_default();
    let message = ready.message.as_deref().unwrap_or_default();
    format!("{reason} {message}").trim().to_owned()
}

fn agent(pod: &Value) -> Agent {
    let ready = condition_is_true(pod, &["Ready"]);
    let waiting = pod.pointer("/status/containerStatuses/0/state/waiting");
    let why = waiting
        .map(|waiting| format!("{} {}", text(waiting, "/reason"), text(waiting, "/message")));
    Agent {
        pod: text(pod, "/metadata/name").to_owned(),
        ready: ready && pod.pointer("/metadata/deletionTimestamp").is_none(),
        why: why
            .unwrap_or_else(|| "it has not made its first real pull".to_owned())
            .trim()
            .to_owned(),
    }
}

/// Labels of the namespaces, or of the one.
async fn namespaces(
    client: &Client,
    namespace: Option<&str>,
) -> Fetched<BTreeMap<String, NamespaceFacts>> {
    let items = match namespace {
        Some(name) => object(client, NAMESPACES, None, name)
            .await?
            .into_iter()
            .collect(),
        None => listed(client, NAMESPACES, None, "").await?,
    };
    Ok(items.iter().map(cluster::namespace_facts).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(status: &str) -> Node {
        let conditions = json!([
            {"type": "MemoryPressure", "status": "Unknown", "message": "another one"},
            {"type": "Ready", "status": status, "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status."},
        ]);
        let node = json!({"metadata": {"name": "two"}, "status": {"conditions": conditions}});
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn a_node_that_is_not_ready_says_why_and_a_ready_one_has_its_best_agent() {
        let pod = |node: &str, ready: &str| {
            json!({
                "metadata": {"name": format!("agent-{node}-{ready}")},
                "spec": {"nodeName": node},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        let pods = [pod("one", "True"), pod("two", "False"), pod("two", "True")];
        let why = "NodeStatusUnknown Kubelet stopped posting node status.";
        let lost = NodeReadiness::NotReady(why.to_owned());
        assert_eq!(node_readiness(&node("Unknown"), &pods), lost);
        assert_eq!(node_readiness(&node("False"), &pods), lost);
        match node_readiness(&node("True"), &pods) {
            NodeReadiness::WithAgent(agent) => assert_eq!(agent.pod, "agent-two-True"),
            other => panic!("{other:?}"),
        }
        assert_eq!(
            node_readiness(&node("True"), &pods[..1]),
            NodeReadiness::WithoutAgent
        );
        let new = NodeReadiness::NotReady("its kubelet has not reported yet".to_owned());
        assert_eq!(node_readiness(&Node::default(), &pods), new);
    }
}
