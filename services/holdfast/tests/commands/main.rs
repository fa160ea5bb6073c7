//! The operator's commands, run as an operator runs them, against a real API server without nodes
//! and controllers: what a controller or a kubelet would say is written by the tests.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod causes;
mod cluster;
mod controller;
mod doctor;
mod rm;
mod watching;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_api::{Artifact, artifact_name};
use holdfast_cluster::apiserver::ApiServer;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, CustomResourceExt as _};
use serde_json::{Value, json};

const ARTIFACTS: &str = "/apis/holdfast.dev/v1alpha1";
const ADDRESS: &str = "10.96.0.50";

/// A cluster with a release's objects, as far as commands read them.
struct Site {
    client: Client,
    folder: tempfile::TempDir,
    kubeconfig: PathBuf,
    server: ApiServer,
}

/// How a command ended.
struct Ended {
    code: i32,
    text: String,
}

impl Ended {
    #[track_caller]
    fn check(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{}", self.text);
        for part in parts {
            assert!(
                self.text.contains(part),
                "{part:?} is not in:\n{}",
                self.text
            );
        }
    }
}

impl Site {
    async fn start() -> Self {
        holdfast_runtime::tls::install_crypto_provider();
        let server = tokio::task::spawn_blocking(ApiServer::start)
            .await
            .unwrap()
            .unwrap();
        let kubeconfig = server.kubeconfig();
        let config = kube::Config::from_custom_kubeconfig(
            Kubeconfig::read_from(&kubeconfig).unwrap(),
            &KubeConfigOptions::default(),
        )
        .await
        .unwrap();
        let site = Self {
            client: Client::try_from(config).unwrap(),
            folder: tempfile::tempdir().unwrap(),
            kubeconfig,
            server,
        };
        site.post(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            &serde_json::to_value(Artifact::crd()).unwrap(),
        )
        .await;
        let end = Instant::now() + Duration::from_secs(20);
        while site.get(&format!("{ARTIFACTS}/artifacts")).await.is_none() {
            assert!(Instant::now() < end, "the CRD is not served");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for namespace in ["holdfast-system", "shop"] {
            site.namespace(namespace).await;
        }
        let release = json!({
            "release": {"name": "holdfast", "namespace": "holdfast-system", "fullname": "holdfast", "version": "0.1.0"},
            "values": {},
        });
        let state = json!({"registryAddress": ADDRESS, "rewrite": true, "reason": "every node is prepared"});
        for (name, key, text, component) in [
            ("holdfast-config", "config.yaml", release, "config"),
            ("holdfast-state", "state.json", state, "state"),
        ] {
            let map = json!({
                "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "holdfast", "app.kubernetes.io/component": component}},
                "data": {key: text.to_string()},
            });
            site.post("/api/v1/namespaces/holdfast-system/configmaps", &map)
                .await;
        }
        site
    }

    async fn namespace(&self, name: &str) {
        self.post("/api/v1/namespaces", &json!({"metadata": {"name": name}}))
            .await;
    }

    async fn send(&self, method: &str, path: &str, kind: &str, body: &Value) -> Value {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(body.to_string().into_bytes())
            .unwrap();
        self.client
            .request(request)
            .await
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        self.send("POST", path, "application/json", body).await
    }

    async fn merge(&self, path: &str, body: &Value) -> Value {
        self.send("PATCH", path, "application/merge-patch+json", body)
            .await
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        self.client.request(request).await.ok()
    }

    async fn items(&self, path: &str) -> Vec<Value> {
        let list = self.get(path).await.unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// What the controller would write.
    async fn stands(&self, namespace: &str, source: &str, reason: &str) {
        self.stands_for(namespace, source, reason, "so says the test")
            .await;
    }

    async fn stands_for(&self, namespace: &str, source: &str, reason: &str, message: &str) {
        let name = artifact_name(source);
        let path = format!("{ARTIFACTS}/namespaces/{namespace}/artifacts");
        if self.get(&format!("{path}/{name}")).await.is_none() {
            let artifact = json!({
                "apiVersion": "holdfast.dev/v1alpha1", "kind": "Artifact",
                "metadata": {"name": name}, "spec": {"sourceArtifact": source},
            });
            self.post(&path, &artifact).await;
        }
        let status = json!({"status": {"sizeBytes": 2048, "conditions": [{
            "type": "Ready", "status": if reason == "Copied" { "True" } else { "False" }, "reason": reason,
            "message": message, "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]}});
        self.merge(&format!("{path}/{name}/status"), &status).await;
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        self.run_as(&self.kubeconfig, arguments).await
    }

    async fn run_as(&self, kubeconfig: &Path, arguments: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command
            .args(arguments)
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
            .unwrap();
        Ended {
            code: output.status.code().unwrap(),
            text: format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.folder.path().join(name)).unwrap()).unwrap()
    }

    /// A kubeconfig of a user who may read Artifacts, namespaces and some of what is in namespace
    /// shop.
    async fn limited_user(&self) -> PathBuf {
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let rules = json!([
            {"apiGroups": [""], "resources": ["pods", "replicationcontrollers", "namespaces", "configmaps"], "verbs": ["get", "list"]},
            {"apiGroups": ["apps"], "resources": ["*"], "verbs": ["get", "list"]},
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]},
            {"apiGroups": ["holdfast.dev"], "resources": ["artifacts"], "verbs": ["get", "list"]},
        ]);
        self.post(
            &format!("{rbac}/clusterroles"),
            &json!({"metadata": {"name": "some"}, "rules": rules}),
        )
        .await;
        let accounts = "/api/v1/namespaces/default/serviceaccounts";
        self.post(accounts, &json!({"metadata": {"name": "operator"}}))
            .await;
        let binding = json!({
            "metadata": {"name": "some"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "some"},
            "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": "default"}],
        });
        self.post(&format!("{rbac}/clusterrolebindings"), &binding)
            .await;
        let request =
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let token = self
            .post(&format!("{accounts}/operator/token"), &request)
            .await;
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(&self.kubeconfig).unwrap()).unwrap();
        config["users"][0]["user"]["token"] = token["status"]["token"].clone();
        PathBuf::from(self.write("limited", &config.to_string()))
    }
}

fn template(image: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "image": image, "imagePullPolicy": "IfNotPresent"}]},
    })
}

fn workload(name: &str, image: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "a"}}, "template": template(image)},
    })
}

fn cron_job(name: &str, image: &str) -> Value {
    let mut template = template(image);
    template["spec"]["restartPolicy"] = json!("Never");
    json!({
        "metadata": {"name": name},
        "spec": {"schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": {"spec": {"template": template}}},
    })
}

#[tokio::test]
async fn preload_makes_each_artifact_once_and_follows_it() {
    let site = Site::start().await;
    let list = site.write(
        "images.txt",
        "# ours\nregistry.example/app:1\nregistry.example/app:1\nbad image\n",
    );
    let manifests = site.folder.path().join("manifests");
    site.write(
        "manifests/web.yaml",
        "kind: Pod\nmetadata: {name: p, namespace: shop}\nspec: {containers: [{name: c, image: registry.example/web:1}]}\n---\n\
         kind: Pod\nmetadata: {name: q, namespace: not-there-yet}\nspec: {containers: [{name: c, image: registry.example/later:1}]}\n",
    );
    let json_file = site.folder.path().join("preload.json");
    let arguments = [
        "preload",
        "-f",
        &list,
        "--from-manifests",
        manifests.to_str().unwrap(),
        "--json",
        json_file.to_str().unwrap(),
    ];
    let dry = site.run(&[&arguments[..], &["--dry-run"]].concat()).await;
    dry.check(1, &["nothing was changed", "images.txt:4", "bad image"]);
    assert!(
        site.items(&format!("{ARTIFACTS}/artifacts"))
            .await
            .is_empty()
    );

    for _ in 0..2 {
        site.run(&arguments)
            .await
            .check(1, &["3 images: 0 local", "Waiting"]);
    }
    let artifacts = site.items(&format!("{ARTIFACTS}/artifacts")).await;
    let mut found: Vec<_> = artifacts
        .iter()
        .map(|artifact| {
            assert_eq!(artifact["metadata"]["labels"]["holdfast.dev/keep"], "asked");
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (
                text(&artifact["metadata"]["namespace"]),
                text(&artifact["spec"]["sourceArtifact"]),
            )
        })
        .collect();
    found.sort();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(
        found,
        [
            pair("holdfast-system", "registry.example/app:1"),
            // Its namespace does not exist yet.
            pair("holdfast-system", "registry.example/later:1"),
            pair("shop", "registry.example/web:1"),
        ]
    );
    assert_eq!(site.json("preload.json")["refused"][0]["text"], "bad image");

    site.stands("shop", "registry.example/web:1", "Copied")
        .await;
    let waits = ["preload", "registry.example/web:1", "-n", "shop", "--wait"];
    site.run(&waits)
        .await
        .check(0, &["1 local (2.00 KiB), 0 not"]);
    site.stands("shop", "registry.example/no:1", "NotFound")
        .await;
    site.run(&[
        "preload",
        "registry.example/no:1",
        "-n",
        "shop",
        "--wait",
        "--timeout",
        "3",
    ])
    .await
    .check(1, &["NotFound", "so says the test"]);

    // Everything of a namespace, sleeping or not.
    site.post(
        "/apis/apps/v1/namespaces/shop/deployments",
        &workload("zero", "registry.example/zero:1"),
    )
    .await;
    site.post(
        "/apis/batch/v1/namespaces/shop/cronjobs",
        &cron_job("night", &format!("{ADDRESS}/registry.example/night:1")),
    )
    .await;
    let whole = site
        .run(&["preload", "--from-namespace", "shop", "--dry-run"])
        .await;
    whole.check(
        0,
        &[
            "registry.example/zero:1",
            "registry.example/night:1",
            "Deployment/zero",
            "CronJob/night",
        ],
    );
    site.run(&["preload"]).await.check(64, &["IMAGE"]);
}

#[tokio::test]
async fn status_says_what_is_missing() {
    let site = Site::start().await;
    let json_file = site.folder.path().join("status.json");
    let status = ["status", "--json", json_file.to_str().unwrap()];
    site.stands("shop", "registry.example/web:1", "Copied")
        .await;
    site.stands("shop", "registry.example/no:1", "NotFound")
        .await;
    site.run(&status).await.check(
        1,
        &[
            "address     10.96.0.50",
            "rewriting   on: every node is prepared",
            "images      1 of 2 local (2.00 KiB), 1 NotFound",
            "registry.example/no:1",
            "no registry pod runs",
            "registry: 0 of 1 ready",
        ],
    );
    let found = site.json("status.json");
    assert_eq!(found["verdict"], "no");
    assert_eq!(found["kind"], "Status");
    let codes: Vec<_> = found["problems"].as_array().unwrap().iter().collect();
    assert!(
        codes.iter().any(|it| it["code"] == "PodsNotReady"),
        "{codes:?}"
    );
    assert_eq!(found["images"]["byReason"]["NotFound"], 1);

    let elsewhere = site.run(&["status", "--release-namespace", "shop"]).await;
    elsewhere.check(2, &["no release of Holdfast was found in namespace shop"]);
}

/// A pod with a rewritten reference, as the webhook leaves it.
fn rewritten(name: &str, owner: Option<&Value>) -> Value {
    let owners: Vec<_> = owner
        .into_iter()
        .map(|owner| {
            json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]})
        })
        .collect();
    json!({
        "metadata": {
            "name": name, "labels": {"app": "a"}, "ownerReferences": owners,
            "annotations": {"holdfast.dev/original-images": r#"{"containers/c":"nginx:1"}"#},
        },
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": format!("{ADDRESS}/docker.io/library/nginx:1")}]},
    })
}

#[tokio::test]
async fn restore_evicts_or_patches_pods_and_edits_no_owner() {
    let site = Site::start().await;
    let pods = "/api/v1/namespaces/shop/pods";
    let sets = "/apis/apps/v1/namespaces/shop/replicasets";
    let set = site.post(sets, &workload("web", "nginx:1")).await;
    let held_set = site.post(sets, &workload("held", "nginx:1")).await;
    for (name, owner) in [
        ("bare", None),
        ("web-1", Some(&set)),
        ("web-2", Some(&set)),
        ("held-1", Some(&held_set)),
    ] {
        let mut pod = rewritten(name, owner);
        if name == "held-1" {
            pod["metadata"]["labels"] = json!({"app": "held"});
        }
        site.post(pods, &pod).await;
    }
    // A budget that allows nothing guards pods that run.
    site.merge(
        &format!("{pods}/held-1/status"),
        &json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}),
    )
    .await;
    let budgets = "/apis/policy/v1/namespaces/shop/poddisruptionbudgets";
    site.post(
        budgets,
        &json!({"metadata": {"name": "none"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "held"}}}}),
    )
    .await;
    site.merge(
        &format!("{budgets}/none/status"),
        &json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}}),
    )
    .await;
    // It matches nothing; that it is there is what counts.
    let webhook = json!({
        "metadata": {"name": "holdfast-webhook", "labels": {"app.kubernetes.io/name": "holdfast", "app.kubernetes.io/component": "webhook"}},
        "webhooks": [],
    });
    site.post(
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
        &webhook,
    )
    .await;

    let restore = ["restore", "-n", "shop", "--rate", "600", "--yes"];
    site.run(&[&restore[..], &["--dry-run"]].concat())
        .await
        .check(
            0,
            &[
                "ReplicaSet/web",
                "evicted; its owner recreates it",
                "patched",
                "nothing was changed",
                "--opt-out",
            ],
        );
    site.run(&restore)
        .await
        .check(2, &["would be rewritten again", "--opt-out"]);
    assert_eq!(site.items(pods).await.len(), 4, "refused means untouched");

    let json_file = site.folder.path().join("restore.json");
    let arguments = [
        "--opt-out",
        "--timeout",
        "5",
        "--json",
        json_file.to_str().unwrap(),
    ];
    site.run(&[&restore[..], &arguments].concat()).await.check(
        1,
        &[
            "namespace shop opts out",
            "LEFT  shop/held-1 of ReplicaSet/held",
            "disruption budget",
            "3 pods restored, 1 left",
        ],
    );
    let left = site.items(pods).await;
    let names: Vec<_> = left
        .iter()
        .map(|pod| pod["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["bare", "held-1"]);
    assert_eq!(
        left[0]["spec"]["containers"][0]["image"], "nginx:1",
        "as its author wrote it"
    );
    assert!(
        left[0]["metadata"]["annotations"]["holdfast.dev/original-images"].is_null(),
        "{}",
        left[0]["metadata"]
    );
    let now = site.get(&format!("{sets}/web")).await.unwrap();
    assert_eq!(
        now["metadata"]["resourceVersion"], set["metadata"]["resourceVersion"],
        "the owner is as it was"
    );
    let namespace = site.get("/api/v1/namespaces/shop").await.unwrap();
    assert_eq!(
        namespace["metadata"]["labels"]["holdfast.dev/rewrite"],
        "disabled"
    );
    let events = site
        .items("/apis/events.k8s.io/v1/namespaces/shop/events")
        .await;
    let restored = events.iter().filter(|event| event["reason"] == "Restored");
    assert_eq!(restored.count(), 3, "{events:?}");
    let report = site.json("restore.json");
    assert_eq!(report["restored"].as_array().unwrap().len(), 3);
    assert_eq!(report["left"][0]["pod"], "held-1");
}
