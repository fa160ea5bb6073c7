//! Reports of node agents, from the agent's sender to the controller, against a real API server.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bare;

use bare::{Bare, NAMESPACE, Registry, eventually, run};
use holdfast_api::delivery::Delivery;
use holdfast_api::report::{NodeReport, ReportedImage};
use holdfast_controller::certificates;
use holdfast_core::Reference;
use holdfast_core::delivery::OnNodes;
use holdfast_core::kubelet::Credentials;
use holdfast_node_agent::send::Sender;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

/// The certificate in a Secret, as a pod mounts it.
async fn mount(bare: &Bare, secret: &str, folder: &Path) {
    let api: Api<Secret> = Api::namespaced(bare.client.clone(), NAMESPACE);
    for (file, bytes) in api.get(secret).await.unwrap().data.unwrap() {
        std::fs::write(folder.join(file), bytes.0).unwrap();
    }
}

/// Makes the `DaemonSet` of the release, and returns its UID.
async fn daemon_set(bare: &Bare) -> String {
    let labels = json!({"app": "agent"});
    let object = json!({
        "metadata": {"name": "holdfast-node-agent"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "c", "image": "holdfast:1"}]},
            },
        },
    });
    let made = bare.create::<DaemonSet>(NAMESPACE, object).await;
    made.metadata.uid.unwrap()
}

/// Makes a node and its agent, which has this address and belongs to the `DaemonSet` with this UID.
async fn node_with_agent(bare: &Bare, node: &str, address: &str, daemon_set: &str) {
    let object = json!({"metadata": {"name": node}});
    bare.create_global::<Node>(object).await;
    let name = format!("agent-{node}");
    let pod = json!({
        "metadata": {"name": name, "labels": {
            "app.kubernetes.io/component": "node-agent", "app.kubernetes.io/instance": "holdfast",
        }, "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "DaemonSet", "controller": true,
            "name": "holdfast-node-agent", "uid": daemon_set,
        }]},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "holdfast:1"}]},
    });
    bare.create::<Pod>(NAMESPACE, pod).await;
    let status = json!({"status": {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
    }});
    Api::<Pod>::namespaced(bare.client.clone(), NAMESPACE)
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
}

fn report(node: &str) -> NodeReport {
    NodeReport {
        node: node.to_owned(),
        gate: true,
        image_ids: vec![ReportedImage {
            id: "sha256:aa".to_owned(),
            names: vec!["docker.io/library/nginx:1".to_owned()],
            ..ReportedImage::default()
        }],
        foreign_hosts: vec!["nodes.example".to_owned()],
        ..NodeReport::default()
    }
}

#[tokio::test]
async fn only_the_agent_of_a_node_reports_it_and_the_report_goes_with_the_node() {
    let bare = Bare::start().await;
    bare.registry_service().await;
    let mut context = bare.context();
    certificates::round(&context).await.unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    context.agents = Some(address);
    let registry = Registry::start().await;
    let _running = run(&context, &registry);
    let agents = daemon_set(&bare).await;
    node_with_agent(&bare, "here", "127.0.0.1", &agents).await;
    node_with_agent(&bare, "there", "10.9.9.9", &agents).await;
    let nodes: Api<Node> = Api::all(bare.client.clone());
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let ready = Patch::Strategic(ready);
    nodes
        .patch_status("here", &PatchParams::default(), &ready)
        .await
        .unwrap();
    // Anybody who may make pods in the namespace can set labels and names.
    node_with_agent(&bare, "forged", "127.0.0.1", "another-uid").await;

    let folder = tempfile::tempdir().unwrap();
    mount(&bare, "holdfast-node-agent-tls", folder.path()).await;
    let deaf: SocketAddr = "127.0.0.1:1".parse().unwrap();
    eventually("the agent's report is taken", async || {
        let mut sender = Sender::new(&context.names, folder.path());
        sender
            .send(&report("here"), &[deaf, address])
            .await
            .unwrap()
    })
    .await;
    let starts = |node: &str| {
        let reports = &context.reports;
        reports.starts(
            "nginx:1",
            node,
            &Credentials::default(),
            std::time::Instant::now(),
        )
    };
    assert_eq!(starts("here"), Some(true));
    eventually(
        "the webhook knows what is on all schedulable nodes",
        async || {
            let maps: Api<ConfigMap> = Api::namespaced(bare.client.clone(), NAMESPACE);
            let map = maps.get_opt("holdfast-delivery").await.unwrap();
            let delivery = Delivery::of(&map.unwrap_or_default());
            let on_nodes = |text| delivery.source(&Reference::parse(text).unwrap()).1;
            on_nodes("nginx:1") == OnNodes::All
                && on_nodes("nginx:2") == OnNodes::None
                && delivery.is_foreign("nodes.example")
        },
    )
    .await;

    // The agent of another node, and a client that is no agent.
    let send = async |sender: &mut Sender, node: &str, to: &[SocketAddr]| {
        sender.send(&report(node), to).await.unwrap()
    };
    let mut sender = Sender::new(&context.names, folder.path());
    for other in ["there", "forged", "here/../there", "none"] {
        assert!(!send(&mut sender, other, &[address]).await, "{other}");
    }
    let other = tempfile::tempdir().unwrap();
    mount(&bare, "holdfast-registry-tls", other.path()).await;
    let mut registry = Sender::new(&context.names, other.path());
    assert!(!send(&mut registry, "here", &[address]).await);
    assert_eq!(starts("there"), None);
    let mut without = Sender::new(&context.names, Path::new("/nonexistent"));
    without.send(&report("here"), &[address]).await.unwrap_err();

    // A report that was taken is not sent again.
    assert!(send(&mut sender, "here", &[address]).await);
    assert!(send(&mut sender, "here", &[address]).await);
    assert!(!send(&mut sender, "here", &[deaf]).await);

    // A controller that restarted under its address does not confirm, and gets the report again.
    assert!(send(&mut sender, "here", &[address]).await);
    context.reports.retain(&BTreeMap::new());
    assert_eq!(starts("here"), None);
    sender.make_due();
    assert!(send(&mut sender, "here", &[address]).await);
    assert_eq!(starts("here"), Some(true));

    nodes
        .delete("here", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the report goes with its node", async || {
        starts("here").is_none()
    })
    .await;
}
