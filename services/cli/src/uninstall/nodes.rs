//! Which nodes are waited for, and what their agents answered: pure, except for the request to an
//! agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use holdfast_api::labels;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use serde::Deserialize;

/// The port on which agents answer.
const ADMIN_PORT: u16 = 9090;

/// An agent that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Agent {
    pub(crate) node: String,
    /// `http://10.0.0.1:9090`
    pub(crate) address: String,
}

/// The nodes and agents at one moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Agents on Ready nodes.
    pub(crate) agents: Vec<Agent>,
    /// Ready nodes where no agent runs. They are reported and not waited for.
    pub(crate) without_agent: BTreeSet<String>,
    /// Nodes that are not Ready: reported, never waited for (SPEC 42).
    pub(crate) not_ready: BTreeSet<String>,
}

/// Whether the condition Ready of the node is true.
pub(crate) fn is_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// A node's taints without the one that holds pods off until its agent is Ready; `None` where it
/// has no such taint.
pub(crate) fn without_startup_taint(taints: Option<&Vec<Taint>>) -> Option<Vec<Taint>> {
    let taints = taints?;
    let mut kept = taints.clone();
    kept.retain(|taint| taint.key != labels::NOT_READY_TAINT);
    (kept.len() < taints.len()).then_some(kept)
}

/// Sorts nodes and agent pods.
pub(crate) fn survey(nodes: &[Node], pods: &[Pod]) -> Survey {
    let mut survey = Survey::default();
    for node in nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        if !is_ready(node) {
            survey.not_ready.insert(name);
            continue;
        }
        let address = pods.iter().find_map(|pod| {
            // The remains of an evicted pod keep their address.
            let over = matches!(
                pod.status.as_ref()?.phase.as_deref(),
                Some("Failed" | "Succeeded")
            );
            let here = pod.spec.as_ref()?.node_name.as_deref() == Some(&name) && !over;
            let ip = pod
                .status
                .as_ref()?
                .pod_ip
                .as_ref()?
                .parse::<IpAddr>()
                .ok()?;
            here.then(|| match ip {
                IpAddr::V4(ip) => format!("http://{ip}:{ADMIN_PORT}"),
                IpAddr::V6(ip) => format!("http://[{ip}]:{ADMIN_PORT}"),
            })
        });
        match address {
            Some(address) => survey.agents.push(Agent {
                node: name,
                address,
            }),
            None => {
                survey.without_agent.insert(name);
            }
        }
    }
    survey
}

/// What an agent says of its host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Answer {
    state: String,
    #[serde(default)]
    detail: String,
}

/// Asks one agent. An error is text for people.
pub(crate) async fn ask(http: &reqwest::Client, address: &str) -> Result<Answer, String> {
    let response = http
        .get(format!("{address}/state"))
        .send()
        .await
        .map_err(|e| e.without_url().to_string())?;
    response
        .json()
        .await
        .map_err(|e| e.without_url().to_string())
}

/// The last answer of each agent.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    by_node: BTreeMap<String, Result<Answer, String>>,
}

impl Answers {
    /// Stores an answer.
    pub(crate) fn note(&mut self, node: String, answer: Result<Answer, String>) {
        self.by_node.insert(node, answer);
    }

    /// Whether the host of the node was restored.
    pub(crate) fn is_removed(&self, node: &str) -> bool {
        matches!(self.by_node.get(node), Some(Ok(answer)) if answer.state == "removed")
    }

    /// The nodes that are waited for.
    pub(crate) fn waiting<'a>(&self, survey: &'a Survey) -> Vec<&'a str> {
        let nodes = survey.agents.iter().map(|agent| agent.node.as_str());
        nodes.filter(|node| !self.is_removed(node)).collect()
    }

    /// One line a node: `Ok` what is done, `Err` what is left.
    pub(crate) fn lines(&self, survey: &Survey) -> Vec<Result<String, String>> {
        let agents = survey
            .agents
            .iter()
            .map(|Agent { node, .. }| match self.by_node.get(node) {
                Some(Ok(answer)) if answer.state == "removed" => {
                    Ok(format!("node {node}: {}", answer.detail))
                }
                Some(Ok(answer)) => {
                    Err(format!("node {node}: {} ({})", answer.state, answer.detail))
                }
                Some(Err(error)) => {
                    Err(format!("node {node}: its agent does not answer ({error})"))
                }
                None => Err(format!("node {node}: not asked")),
            });
        let silent = survey
            .without_agent
            .iter()
            .map(|node| Ok(format!("node {node}: no agent runs there")));
        let lost = survey.not_ready.iter().map(|node| {
            Err(format!("node {node} is not Ready and was not waited for: files below certs.d stay there, harmless"))
        });
        agents.chain(silent).chain(lost).collect()
    }
}
