//! The policy of `controller.restrictPatches`, rendered by the chart and evaluated by a real API
//! server. No object changes: every patch is a dry run, which policies judge like any other.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod bare;

use bare::{Bare, NAMESPACE, eventually};
use holdfast_cluster::programs::{Program, ensure};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Client;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Who the chart's ServiceAccount of the controller is.
const CONTROLLER: &str = "system:serviceaccount:holdfast-system:edge-controller";

const ANNOTATIONS: &str = "the controller changes annotations of holdfast.dev only";
const METADATA: &str = "the controller changes no labels, finalizers and owners";
const IMAGES: &str = "the controller changes images of pods only";
const TAINT: &str = "the controller changes the taint holdfast.dev/not-ready of nodes only";
/// The policy says nothing against it.
const ALLOWED: &str = "";

/// The objects of a release with every value away from its default.
fn render() -> Vec<Value> {
    let programs = ensure(&[Program::Helm]).unwrap();
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../chart");
    let output = Command::new(programs.path(Program::Helm).unwrap())
        .args(["template", "edge", "--namespace", NAMESPACE])
        .args(["--kube-version", "1.33.0", "--values"])
        .args([chart.join("ci/everything-values.yaml"), chart])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    holdfast_config::yaml::documents(&String::from_utf8(output.stdout).unwrap()).unwrap()
}

struct Site {
    bare: Bare,
    controller: Client,
}

impl Site {
    /// A server with the controller's rights and the policy; it holds already.
    async fn start() -> Self {
        let bare = Bare::start().await;
        let documents = tokio::task::spawn_blocking(render).await.unwrap();
        let of = |kind: &str, part: &str| {
            let name = |document: &Value| document["metadata"]["name"].as_str().map(str::to_owned);
            let mut found = documents.iter().filter(|document| {
                document["kind"] == kind && name(document).is_some_and(|name| name.contains(part))
            });
            let found = found.next();
            found
                .unwrap_or_else(|| panic!("no {kind} of {part}"))
                .clone()
        };
        let part = "edge-controller";
        bare.create_global::<ClusterRole>(of("ClusterRole", part))
            .await;
        bare.create_global::<ClusterRoleBinding>(of("ClusterRoleBinding", part))
            .await;
        bare.create_global::<ValidatingAdmissionPolicy>(of("ValidatingAdmissionPolicy", part))
            .await;
        let binding = of("ValidatingAdmissionPolicyBinding", part);
        bare.create_global::<ValidatingAdmissionPolicyBinding>(binding)
            .await;
        bare.namespace("apps").await;
        let controller = bare.client_as(CONTROLLER).await;
        let site = Self { bare, controller };
        site.objects().await;
        let foreign = json!([{"op": "add", "path": "/metadata/annotations/a", "value": "b"}]);
        eventually("the policy holds", async || {
            let refused = patch(&site.controller, "pods/plain", &foreign).await;
            refused.is_err_and(|message| message.contains(ANNOTATIONS))
        })
        .await;
        site
    }

    /// What is patched.
    async fn objects(&self) {
        for (name, more) in [
            ("plain", json!({})),
            (
                "gated",
                json!({"schedulingGates": [{"name": "a.example/gate"}]}),
            ),
        ] {
            let mut pod = json!({
                "metadata": {
                    "name": name,
                    "labels": {"app": "a"},
                    "annotations": {"theirs": "1", "holdfast.dev/image-history": "{}"},
                },
                "spec": {
                    "initContainers": [{"name": "i", "image": "registry.example/i:1"}],
                    "containers": [{"name": "c", "image": "registry.example/c:1"}],
                },
            });
            for (key, value) in more.as_object().unwrap() {
                pod["spec"][key] = value.clone();
            }
            self.bare.create::<Pod>("apps", pod).await;
        }
        let bare = json!({
            "metadata": {"name": "bare"},
            "spec": {"containers": [{"name": "c", "image": "registry.example/c:1"}]},
        });
        self.bare.create::<Pod>("apps", bare).await;
        let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
        for (name, taints) in [
            (
                "held",
                json!([taint("theirs"), taint("holdfast.dev/not-ready")]),
            ),
            ("free", json!([taint("theirs")])),
        ] {
            let node = json!({
                "metadata": {"name": name, "labels": {"disk": "fast"}, "annotations": {"theirs": "1"}},
                "spec": {"taints": taints},
            });
            self.bare.create_global::<Node>(node).await;
        }
    }

    /// Patches an object as the controller. What the policy refuses it, others may do: it is a
    /// change that the API server takes.
    async fn check(&self, object: &str, operations: Value, expect: &str) {
        let found = patch(&self.controller, object, &operations).await;
        if expect == ALLOWED {
            assert_eq!(found, Ok(()), "{object}: {operations}");
            return;
        }
        let message = found.expect_err(&operations.to_string());
        assert!(message.contains(expect), "{operations}: {message}");
        let found = patch(&self.bare.client, object, &operations).await;
        assert_eq!(found, Ok(()), "{object} by somebody else: {operations}");
    }
}

/// A dry run of a JSON patch; the error is what the API server says.
async fn patch(client: &Client, object: &str, operations: &Value) -> Result<(), String> {
    let path = match object.split_once('/') {
        Some(("pods", _)) => format!("/api/v1/namespaces/apps/{object}"),
        _ => format!("/api/v1/{object}"),
    };
    let request = http::Request::patch(format!("{path}?dryRun=All"))
        .header("content-type", "application/json-patch+json")
        .body(operations.to_string().into_bytes())
        .unwrap();
    match client.request::<Value>(request).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => panic!("{object}: {error}"),
    }
}

fn add(path: &str, value: Value) -> Value {
    json!([{"op": "add", "path": path, "value": value}])
}

fn remove(path: &str) -> Value {
    json!([{"op": "remove", "path": path}])
}

async fn check_pods(site: &Site) {
    let (image, init) = ("/spec/containers/0/image", "/spec/initContainers/0/image");
    let history = "/metadata/annotations/holdfast.dev~1image-history";
    let local = |name: &str| json!(format!("10.96.0.50/registry.example/{name}:1"));
    // As healing patches: images and annotations in one.
    let healed = json!([
        {"op": "add", "path": "/metadata/annotations", "value": {}},
        {"op": "replace", "path": image, "value": local("c")},
        {"op": "add", "path": history, "value": "{}"},
    ]);
    site.check("pods/bare", healed, ALLOWED).await;
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "u"}]);
    let term = json!({"matchExpressions": [{"key": "disk", "operator": "Exists"}]});
    let affinity = json!({"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]},
    }});
    let toleration = json!({"key": "disk", "operator": "Exists"});
    for (object, operations, expect) in [
        ("pods/plain", add(image, local("c")), ALLOWED),
        ("pods/plain", add(init, local("i")), ALLOWED),
        (
            "pods/plain",
            add(history, json!("{\"uid\":\"u\"}")),
            ALLOWED,
        ),
        ("pods/plain", remove(history), ALLOWED),
        (
            "pods/plain",
            add(
                "/metadata/annotations/holdfast.dev~1secrets-changed",
                json!("now"),
            ),
            ALLOWED,
        ),
        (
            "pods/plain",
            add("/metadata/annotations/new", json!("1")),
            ANNOTATIONS,
        ),
        (
            "pods/plain",
            add("/metadata/annotations/theirs", json!("2")),
            ANNOTATIONS,
        ),
        (
            "pods/plain",
            remove("/metadata/annotations/theirs"),
            ANNOTATIONS,
        ),
        ("pods/plain", remove("/metadata/annotations"), ANNOTATIONS),
        (
            "pods/plain",
            add(
                "/metadata/annotations/holdfast.dev.other.example~1a",
                json!("1"),
            ),
            ANNOTATIONS,
        ),
        (
            "pods/plain",
            add("/metadata/labels/app", json!("b")),
            METADATA,
        ),
        (
            "pods/bare",
            add("/metadata/labels", json!({"app": "a"})),
            METADATA,
        ),
        (
            "pods/plain",
            add("/metadata/finalizers", json!(["a.example/f"])),
            METADATA,
        ),
        (
            "pods/plain",
            add("/metadata/ownerReferences", owner),
            METADATA,
        ),
        (
            "pods/plain",
            add("/spec/activeDeadlineSeconds", json!(60)),
            IMAGES,
        ),
        ("pods/plain", add("/spec/tolerations/-", toleration), IMAGES),
        (
            "pods/gated",
            add("/spec/nodeSelector", json!({"disk": "fast"})),
            IMAGES,
        ),
        ("pods/gated", add("/spec/affinity", affinity), IMAGES),
        ("pods/gated", remove("/spec/schedulingGates"), IMAGES),
    ] {
        site.check(object, operations, expect).await;
    }
}

async fn check_nodes(site: &Site) {
    let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
    let (own, end) = (taint("holdfast.dev/not-ready"), "/spec/taints/-");
    let network = json!([
        {"op": "add", "path": "/spec/podCIDR", "value": "10.1.0.0/24"},
        {"op": "add", "path": "/spec/podCIDRs", "value": ["10.1.0.0/24"]},
    ]);
    for (object, operations, expect) in [
        ("nodes/free", add(end, own), ALLOWED),
        ("nodes/held", remove("/spec/taints/1"), ALLOWED),
        (
            "nodes/free",
            add("/metadata/annotations/holdfast.dev~1a", json!("1")),
            ALLOWED,
        ),
        ("nodes/free", add(end, taint("another")), TAINT),
        ("nodes/held", remove("/spec/taints/0"), TAINT),
        ("nodes/held", remove("/spec/taints"), TAINT),
        (
            "nodes/held",
            add("/spec/taints/0/effect", json!("NoExecute")),
            TAINT,
        ),
        ("nodes/free", add("/spec/unschedulable", json!(true)), TAINT),
        ("nodes/free", network, TAINT),
        ("nodes/free", add("/spec/providerID", json!("a://b")), TAINT),
        (
            "nodes/free",
            add("/metadata/annotations/theirs", json!("2")),
            ANNOTATIONS,
        ),
        (
            "nodes/free",
            add("/metadata/labels/disk", json!("slow")),
            METADATA,
        ),
        (
            "nodes/free",
            add("/metadata/finalizers", json!(["a.example/f"])),
            METADATA,
        ),
    ] {
        site.check(object, operations, expect).await;
    }
}

#[tokio::test]
async fn the_controller_may_change_images_and_its_taint_and_nothing_else() {
    let site = Site::start().await;
    check_pods(&site).await;
    check_nodes(&site).await;
}
