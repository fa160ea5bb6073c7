//! Nodes: which are prepared, which have the startup taint, and their events.
//!
//! A node is prepared when its agent's pod is Ready, which requires a test pull through the node's
//! runtime. With `nodeAgent.startupTaint`, a node that joins has a taint until then, so that no pod
//! with a rewritten image is scheduled where it cannot start. `decide` decides from the index; this
//! file reads the live node and patches its taints only.

pub mod decide;

use crate::Context;
use decide::{Act, Memory, Node, Policy, Report, Why};
use holdfast_api::labels;
use holdfast_cluster_index::ClusterIndex;
use holdfast_cluster_index::apply::patch_params;
use holdfast_cluster_index::events::object;
use holdfast_runtime::supervise::Heartbeat;
use k8s_openapi::api::core::v1::{Node as ApiNode, Taint};
use kube::api::{Api, Patch};
use kube::runtime::events::EventType;
use serde_json::json;
use std::collections::HashMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// How often a round runs without a change.
const RESYNC_INTERVAL: Duration = Duration::from_secs(5);
/// Changes within this time are one.
const DEBOUNCE: Duration = Duration::from_millis(300);
/// Pause of a node after a patch, until the watch shows its result.
const PAUSE_AFTER_PATCH: Duration = Duration::from_secs(3);
/// As [`PAUSE_AFTER_PATCH`], after a refusal of the API server.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_secs(60);
/// Effect of the taint that the controller sets. It removes the taint whatever its effect is.
const EFFECT: &str = "NoSchedule";
/// After this time a kubelet has overwritten the states of pods that it reported before its Node
/// object was recreated.
const STALE_SECONDS: i64 = 60;

/// All nodes of the index.
pub fn survey(context: &Context, now: jiff::Timestamp) -> Vec<Node> {
    let agents: HashMap<String, i64> = ClusterIndex::read(&context.index.pods, |pods| {
        pods.iter()
            .filter_map(|(_, pod)| pod.agent.as_ref())
            .filter(|agent| agent.ready)
            .map(|agent| (agent.node.clone(), agent.created))
            .collect()
    });
    ClusterIndex::read(&context.index.nodes, |nodes| {
        nodes
            .iter()
            .map(|((_, name), facts)| {
                let age = now.as_second().saturating_sub(facts.created);
                // A pod of a node that was recreated looks Ready until the new kubelet reports it.
                let is_current = |made: &i64| *made >= facts.created || age >= STALE_SECONDS;
                Node {
                    name: name.clone(),
                    uid: facts.uid.clone(),
                    ready: facts.ready,
                    prepared: agents.get(name).is_some_and(is_current),
                    tainted: facts.tainted,
                    cordoned: facts.cordoned,
                    in_scope: context.scope.includes_node(facts),
                    age: Duration::from_secs(u64::try_from(age).unwrap_or(0)),
                }
            })
            .collect()
    })
}

/// Sets and removes the startup taint, and publishes the events of nodes. Runs for ever.
pub async fn run(context: Context, heart: Heartbeat) -> Result<(), Infallible> {
    let mut version = context.index.version.subscribe();
    let mut state = context.healing.state.subscribe();
    context.healing.known(&context.index, &heart).await;
    let policy = Policy::of(context.config.values.node_agent.startup_taint);
    let born = Instant::now();
    let mut memory = Memory::default();
    let mut paused: HashMap<String, Instant> = HashMap::new();
    loop {
        version.borrow_and_update();
        let rewriting = state
            .borrow_and_update()
            .as_ref()
            .is_some_and(|state| state.rewrite);
        let nodes = survey(&context, jiff::Timestamp::now());
        record_metrics(&context, &nodes);
        let ids = nodes.iter();
        let ids = ids.map(|node| (node.name.as_str(), node.uid.as_str()));
        context.reports.retain(&ids.collect());
        context
            .metrics
            .report_age(context.reports.age(Instant::now()));
        let now = born.elapsed();
        paused.retain(|_, until| *until > Instant::now());
        for (node, act) in memory.decide(&nodes, policy, rewriting, now) {
            if paused.contains_key(&node.uid) {
                continue;
            }
            heart.beat();
            let pause = perform(&context, node, act, policy).await;
            paused.insert(node.uid.clone(), Instant::now() + pause);
        }
        for (node, event) in memory.reports(&nodes, now) {
            report(&context, node, event, rewriting).await;
        }
        heart.success();
        tokio::select! {
            _ = version.changed() => {}
            _ = state.changed() => {}
            () = tokio::time::sleep(RESYNC_INTERVAL) => {}
        }
        tokio::time::sleep(DEBOUNCE).await;
    }
}

/// Applies `act` to a node. Returns the pause until the node's next patch.
async fn perform(context: &Context, node: &Node, act: Act, policy: Policy) -> Duration {
    match patch(context, node, act).await {
        Ok(false) => PAUSE_AFTER_PATCH,
        Ok(true) => {
            let (reason, warning, note) = event_of(act, policy);
            if warning {
                tracing::warn!(node.name = node.name, "{note}");
            } else {
                tracing::info!(node.name = node.name, "{note}");
            }
            publish(context, node, warning, reason, &note).await;
            PAUSE_AFTER_PATCH
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Duration::from_millis(200),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            let note = format!(
                "the controller may not change the taint {}, so it stays; to remove it: kubectl \
                 taint nodes {} {}-",
                labels::NOT_READY_TAINT,
                node.name,
                labels::NOT_READY_TAINT
            );
            tracing::warn!(node.name = node.name, error = %status, "{note}");
            publish(context, node, true, "StartupTaintStuck", &note).await;
            PAUSE_AFTER_REFUSAL
        }
        Err(error) => {
            tracing::warn!(
                node.name = node.name, %error,
                "cannot change the taints of a node; retrying"
            );
            PAUSE_AFTER_PATCH
        }
    }
}

/// Changes the taints of the live node, if it has the same UID and did not change meanwhile. True
/// if something was written.
async fn patch(context: &Context, node: &Node, act: Act) -> Result<bool, kube::Error> {
    let api: Api<ApiNode> = Api::all(context.client.clone());
    let Some(live) = api.get_opt(&node.name).await? else {
        return Ok(false);
    };
    if live.metadata.uid.as_deref() != Some(node.uid.as_str()) {
        return Ok(false);
    }
    let before = live.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let after = taints(&before, act);
    if after == before {
        return Ok(false);
    }
    let change = json!({
        // A concurrent change leads to a conflict.
        "metadata": {"resourceVersion": live.metadata.resource_version},
        "spec": {"taints": after},
    });
    let params = patch_params();
    api.patch(&node.name, &params, &Patch::Merge(change))
        .await?;
    Ok(true)
}

/// The taints of a node after the act.
fn taints(before: &[Taint], act: Act) -> Vec<Taint> {
    let mut after = before.to_vec();
    match act {
        Act::AddTaint if before.iter().any(|t| t.key == labels::NOT_READY_TAINT) => {}
        Act::AddTaint => after.push(Taint {
            key: labels::NOT_READY_TAINT.to_owned(),
            effect: EFFECT.to_owned(),
            ..Taint::default()
        }),
        Act::RemoveTaint(_) => after.retain(|taint| taint.key != labels::NOT_READY_TAINT),
    }
    after
}

fn event_of(act: Act, policy: Policy) -> (&'static str, bool, String) {
    let (reason, warning, why) = match act {
        Act::AddTaint => (
            "StartupTaintSet",
            false,
            "no pod is scheduled here until the node agent has completed a test pull".to_owned(),
        ),
        Act::RemoveTaint(Why::Prepared) => (
            "StartupTaintRemoved",
            false,
            "the node agent has completed a test pull; pods may be scheduled here".to_owned(),
        ),
        Act::RemoveTaint(Why::SwitchedOff) => (
            "StartupTaintRemoved",
            false,
            "nodeAgent.startupTaint is disabled; pods may be scheduled here".to_owned(),
        ),
        Act::RemoveTaint(Why::OutOfScope) => (
            "StartupTaintRemoved",
            false,
            "the node is outside webhook.scope; pods may be scheduled here".to_owned(),
        ),
        Act::RemoveTaint(Why::TimedOut) => (
            "StartupTaintTimedOut",
            true,
            format!(
                "the node agent was not Ready within {} s \
                 (nodeAgent.startupTaint.timeoutSeconds); pods may be scheduled here, but \
                 those with rewritten images may fail to start",
                policy.timeout.unwrap_or_default().as_secs()
            ),
        ),
    };
    (reason, warning, why)
}

async fn report(context: &Context, node: &Node, event: Report, rewriting: bool) {
    let (warning, reason, note) = match event {
        Report::Unprepared => (
            true,
            "NodeNotPrepared",
            format!(
                "no Holdfast node agent has been Ready here for {} s, so pods with rewritten \
                 images may fail to start; {}. See the \
                 events of this node and the agent's pod",
                decide::UNPREPARED_GRACE.as_secs(),
                if rewriting {
                    "pods are still rewritten, because rewriting has begun"
                } else {
                    "no pod is rewritten until every Ready node is prepared or \
                     webhook.waitForNodes has passed"
                }
            ),
        ),
        Report::Prepared => (
            false,
            "NodePrepared",
            "the node agent has completed a test pull".to_owned(),
        ),
    };
    tracing::info!(node.name = node.name, event.reason = reason, "{note}");
    publish(context, node, warning, reason, &note).await;
}

async fn publish(context: &Context, node: &Node, warning: bool, reason: &str, note: &str) {
    let type_ = if warning {
        EventType::Warning
    } else {
        EventType::Normal
    };
    let object = object("Node", None, &node.name, Some(&node.uid));
    let events = &context.events;
    events
        .publish(&object, type_, reason, "PrepareNode", note)
        .await;
}

fn record_metrics(context: &Context, nodes: &[Node]) {
    let scope = || nodes.iter().filter(|node| node.in_scope);
    let prepared = scope().filter(|node| node.ready && node.prepared).count();
    let unprepared = scope().filter(|node| node.ready && !node.prepared).count();
    let not_ready = scope().filter(|node| !node.ready).count();
    let held = nodes.iter().filter(|node| node.tainted).count();
    for (state, count) in [
        ("prepared", prepared),
        ("unprepared", unprepared),
        ("not_ready", not_ready),
        ("held", held),
    ] {
        context.metrics.nodes(state, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, effect: &str) -> Taint {
        Taint {
            key: key.to_owned(),
            effect: effect.to_owned(),
            ..Taint::default()
        }
    }

    #[test]
    fn only_the_startup_taint_is_set_and_removed() {
        let others = vec![taint("a", "NoSchedule"), taint("b", "NoExecute")];
        let tainted = taints(&others, Act::AddTaint);
        assert_eq!(tainted[..2], others);
        assert_eq!(tainted[2], taint("holdfast.dev/not-ready", "NoSchedule"));
        assert_eq!(taints(&tainted, Act::AddTaint), tainted, "once");
        assert_eq!(taints(&tainted, Act::RemoveTaint(Why::Prepared)), others);
        let by_kubelet = vec![taint("holdfast.dev/not-ready", "NoExecute")];
        assert_eq!(taints(&by_kubelet, Act::AddTaint), by_kubelet);
        assert_eq!(taints(&by_kubelet, Act::RemoveTaint(Why::SwitchedOff)), []);
    }
}
