//! Which cluster, which release and which nodes a command reads, and what it says without them.

use super::*;

/// A file with the release's configuration, as `uninstall` reads it.
fn configuration(site: &Site) -> String {
    let document = json!({
        "release": {
            "name": "holdfast", "namespace": "holdfast-system", "fullname": "holdfast",
            "version": "0.1.0",
        },
        "values": {},
    });
    site.write("config.yaml", &document.to_string())
}

#[tokio::test]
async fn several_releases_are_a_wrong_command_line_also_while_watching() {
    let site = Site::start().await;
    let map = "/api/v1/namespaces/holdfast-system/configmaps/holdfast-config";
    let mut second = site.get(map).await.unwrap();
    let labels = second["metadata"]["labels"].take();
    let text = second["data"]["config.yaml"].as_str().unwrap();
    let text = text.replace("holdfast-system", "shop");
    let second = json!({
        "metadata": {"name": "holdfast-config", "labels": labels},
        "data": {"config.yaml": text},
    });
    site.post("/api/v1/namespaces/shop/configmaps", &second)
        .await;
    let told = ["several releases", "holdfast-system", "--release-namespace"];
    for arguments in [&["status"][..], &["status", "-w"], &["doctor", "-w"]] {
        site.run(arguments).await.check(64, &told);
    }
    let chosen = ["status", "--release-namespace", "holdfast-system"];
    site.run(&chosen).await.check(1, &["holdfast-system"]);
}

#[tokio::test]
async fn doctor_names_nodes_that_are_not_ready() {
    let site = Site::start().await;
    let node = json!({
        "metadata": {
            "name": "lost",
            "labels": {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"},
        },
    });
    site.post("/api/v1/nodes", &node).await;
    site.run(&["doctor"])
        .await
        .check(1, &["node lost is not Ready: its kubelet has not reported"]);
    let status = json!({"status": {"conditions": [{
        "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
        "message": "Kubelet stopped posting node status.",
    }]}});
    site.merge("/api/v1/nodes/lost/status", &status).await;
    site.run(&["doctor"]).await.check(
        1,
        &[
            "PROBLEM  node lost is not Ready: NodeStatusUnknown Kubelet stopped posting",
            "fix: kubectl describe node lost",
            "0 of 1 node prepared",
        ],
    );
    site.run(&["doctor", "-o", "jsonpath={.findings[*].code}"])
        .await
        .check(1, &["NodeNotReady"]);
}

// SPEC 12
#[tokio::test]
async fn diff_offline_judges_no_image_by_nodes_that_it_may_not_list() {
    let site = Site::start().await;
    let limited = site.limited_user().await;
    let diff = ["diff", "offline", "-n", "shop"];
    site.post(
        "/apis/apps/v1/namespaces/shop/deployments",
        &workload("web", "registry.example/web:1"),
    )
    .await;
    site.stands("shop", "registry.example/web:1", "NotFound")
        .await;
    let ended = site.run_as(&limited, &diff).await;
    ended.check(
        2,
        &[
            "Deployment/web",
            "not judged",
            "NotFound: so says the test; whether nodes hold it: nodes may not be listed",
            "1 owner: 1 not judged (0 images local,",
        ],
    );
    assert!(!ended.text.contains("MISSING"), "{}", ended.text);
    let json = [
        &diff[..],
        &["-o", "jsonpath={.owners[0].images[0].verdict}"],
    ]
    .concat();
    site.run_as(&limited, &json).await.check(2, &["notJudged"]);
    site.run(&diff).await.check(1, &["MISSING"]);
}

#[tokio::test]
async fn uninstall_acts_on_the_cluster_that_the_flags_name() {
    let site = Site::start().await;
    site.stands("shop", "registry.example/web:1", "Copied")
        .await;
    let config = configuration(&site);
    let elsewhere = site.folder.path().join("no-such-kubeconfig");
    let uninstall = ["uninstall", "--yes", "--timeout", "1s", "--config", &config];
    site.run_as(&elsewhere, &uninstall).await.check(2, &[]);
    let kubeconfig = site.kubeconfig.to_str().unwrap();
    let right = [&uninstall[..], &["--kubeconfig", kubeconfig]].concat();
    let nobody = [&right[..], &["--as", "nobody"]].concat();
    site.run_as(&elsewhere, &nobody)
        .await
        .check(1, &["forbidden"]);
    let artifacts = format!("{ARTIFACTS}/artifacts");
    assert_eq!(site.items(&artifacts).await.len(), 1);
    site.run_as(&elsewhere, &right)
        .await
        .check(0, &["1 Artifacts deleted"]);
    assert!(site.items(&artifacts).await.is_empty());
}
