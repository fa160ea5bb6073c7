//! Nodes that join and addresses that change, against a real API server.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bare;

use bare::{Bare, NAMESPACE, Registry, eventually, run};
use holdfast_api::state::ClusterState;
use holdfast_controller::state::AddressHistory;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const TAINT: &str = "holdfast.dev/not-ready";

async fn node(bare: &Bare, name: &str, taints: serde_json::Value) {
    let api: Api<Node> = Api::all(bare.client.clone());
    let labels = json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"});
    let node: Node = serde_json::from_value(
        json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}}),
    )
    .unwrap();
    api.create(&PostParams::default(), &node).await.unwrap();
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(ready))
        .await
        .unwrap();
}

/// Makes the node's agent, or says of it whether it is Ready.
async fn agent(bare: &Bare, node: &str, ready: &str) {
    let api: Api<Pod> = Api::namespaced(bare.client.clone(), NAMESPACE);
    let name = format!("agent-{node}");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {
            "app.kubernetes.io/component": "node-agent", "app.kubernetes.io/instance": "holdfast",
        }, "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "DaemonSet", "controller": true,
            "name": "holdfast-node-agent", "uid": "1",
        }]},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "holdfast:1"}]},
    }))
    .unwrap();
    if api.get_opt(&name).await.unwrap().is_none() {
        api.create(&PostParams::default(), &pod).await.unwrap();
    }
    let status =
        json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
}

async fn taints(bare: &Bare, name: &str) -> Vec<String> {
    let api: Api<Node> = Api::all(bare.client.clone());
    let node = api.get(name).await.unwrap();
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    // Taints of the API server do not count here.
    taints
        .into_iter()
        .map(|taint| taint.key)
        .filter(|key| !key.starts_with("node.kubernetes.io/"))
        .collect()
}

async fn state(bare: &Bare) -> Option<ClusterState> {
    let api: Api<ConfigMap> = Api::namespaced(bare.client.clone(), NAMESPACE);
    let map = api.get_opt("holdfast-state").await.unwrap()?;
    Some(serde_json::from_str(map.data?.get("state.json")?).unwrap())
}

async fn reasons(bare: &Bare, namespace: &str, object: &str) -> Vec<String> {
    let api: Api<Event> = Api::namespaced(bare.client.clone(), namespace);
    let events = api.list(&ListParams::default()).await.unwrap();
    events
        .into_iter()
        .filter(|event| event.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(object))
        .filter_map(|event| event.reason)
        .collect()
}

#[tokio::test]
async fn a_node_that_joins_is_held_until_its_agent_is_ready() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    bare.registry_service().await;
    node(&bare, "first", json!([])).await;
    let values = json!({"nodeAgent": {"startupTaint": {"enabled": true}}});
    let running = run(&bare.context_with(&values), &registry);
    eventually("the node is waited for by name", async || {
        state(&bare)
            .await
            .is_some_and(|state| state.reason.contains("not prepared: first"))
    })
    .await;
    assert_eq!(
        taints(&bare, "first").await,
        [""; 0],
        "nobody is held back while nothing is rewritten"
    );
    agent(&bare, "first", "True").await;
    eventually("pods are rewritten", async || {
        state(&bare).await.is_some_and(|state| state.rewrite)
    })
    .await;
    let told = reasons(&bare, NAMESPACE, "holdfast-state").await;
    assert!(
        told.contains(&"NotRewriting".to_owned()) && told.contains(&"Rewriting".to_owned()),
        "{told:?}"
    );

    let theirs = json!([{"key": "theirs", "effect": "NoSchedule"}]);
    node(&bare, "second", theirs).await;
    eventually("the node is held", async || {
        taints(&bare, "second").await == ["theirs", TAINT]
    })
    .await;
    agent(&bare, "second", "False").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(taints(&bare, "second").await, ["theirs", TAINT]);
    agent(&bare, "second", "True").await;
    eventually("the node is let go", async || {
        taints(&bare, "second").await == ["theirs"]
    })
    .await;
    agent(&bare, "second", "False").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        taints(&bare, "second").await,
        ["theirs"],
        "an agent that restarts holds nobody back"
    );
    let told = reasons(&bare, "default", "second").await;
    assert!(
        told.contains(&"StartupTaintSet".to_owned())
            && told.contains(&"StartupTaintRemoved".to_owned()),
        "{told:?}"
    );

    // A kubelet registered with the taint; the value goes off.
    drop(running);
    node(
        &bare,
        "third",
        json!([{"key": TAINT, "effect": "NoSchedule"}]),
    )
    .await;
    let _running = run(&bare.context(), &registry);
    eventually("the taint of a value that is off goes", async || {
        taints(&bare, "third").await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_former_address_stays_while_a_pod_names_it() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    bare.namespace("apps").await;
    let former = bare.registry_service().await;
    let mut context = bare.context();
    context.address_history = Arc::new(AddressHistory::for_at_least(Duration::from_secs(1)));
    let _running = run(&context, &registry);
    eventually("the address is known", async || {
        state(&bare)
            .await
            .is_some_and(|state| state.registry_address == former)
    })
    .await;
    let pods: Api<Pod> = Api::namespaced(bare.client.clone(), "apps");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "old"},
        "spec": {"containers": [{"name": "c", "image": format!("{former}/registry.example/team/app:1")}]},
    }))
    .unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let services: Api<Service> = Api::namespaced(bare.client.clone(), NAMESPACE);
    services
        .delete("holdfast-registry", &DeleteParams::default())
        .await
        .unwrap();
    // Holds the former address, so that the Service gets another one.
    let holder: Service = serde_json::from_value(json!({
        "metadata": {"name": "holder"}, "spec": {"clusterIP": former, "ports": [{"port": 1}]},
    }))
    .unwrap();
    services
        .create(&PostParams::default(), &holder)
        .await
        .unwrap();
    let address = bare.registry_service().await;
    eventually("the former address is an alias", async || {
        state(&bare).await.is_some_and(|state| {
            state.registry_address == address && state.aliases == [former.clone()]
        })
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let kept = state(&bare).await.unwrap().aliases;
    assert_eq!(kept.join(" "), former, "a pod names it");
    pods.delete("old", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    eventually("the alias goes with its last pod", async || {
        state(&bare)
            .await
            .is_some_and(|state| state.aliases.is_empty())
    })
    .await;
}
