//! The order of the steps, against an API server that only records.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::client::Body;
use serde_json::{Value, json};

use super::nodes::{Agent, Answers, survey};
use super::*;

fn node(name: &str, ready: &str) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }))
    .unwrap()
}

fn agent(node: &str, ip: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": format!("agent-{node}")},
        "spec": {"nodeName": node, "containers": []},
        "status": {"podIP": ip},
    }))
    .unwrap()
}

// SPEC 42
#[tokio::test(start_paused = true)]
async fn an_api_server_that_hangs_ends_in_a_report() {
    holdfast_runtime::tls::install_crypto_provider();
    let service = tower::service_fn(|_: Request<Body>| {
        std::future::pending::<Result<Response<Full<Bytes>>, std::convert::Infallible>>()
    });
    let client = kube::Client::new(service, "default");
    let cluster = Cluster::new(client, Names::of_release("holdfast", "sys"));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let report = undo(&cluster, &http, Duration::from_secs(10), None).await;
    assert!(report.to_string().contains("after 70 s"), "{report}");
}

#[test]
fn the_remains_of_an_evicted_agent_are_not_asked() {
    let mut evicted = agent("a", "10.0.0.9");
    evicted.status.as_mut().unwrap().phase = Some("Failed".to_owned());
    let survey = survey(&[node("a", "True")], &[evicted, agent("a", "10.0.0.1")]);
    assert_eq!(survey.agents[0].address, "http://10.0.0.1:9090");
}

#[test]
fn nodes_that_are_not_ready_are_reported_and_not_waited_for() {
    let nodes = [
        node("a", "True"),
        node("b", "Unknown"),
        node("c", "True"),
        node("d", "True"),
    ];
    let pods = [
        agent("a", "10.0.0.1"),
        agent("b", "10.0.0.2"),
        agent("d", "fd00::1"),
    ];
    let survey = survey(&nodes, &pods);
    let expect = |node: &str, address: &str| Agent {
        node: node.to_owned(),
        address: address.to_owned(),
    };
    assert_eq!(
        survey.agents,
        [
            expect("a", "http://10.0.0.1:9090"),
            expect("d", "http://[fd00::1]:9090")
        ]
    );
    assert_eq!(survey.not_ready, BTreeSet::from(["b".to_owned()]));
    assert_eq!(survey.without_agent, BTreeSet::from(["c".to_owned()]));

    let mut answers = Answers::default();
    assert_eq!(answers.waiting(&survey), ["a", "d"]);
    let answer = |state: &str| {
        serde_json::from_value(json!({"state": state, "detail": "so it is"})).unwrap()
    };
    answers.note("a".to_owned(), Ok(answer("removed")));
    answers.note("d".to_owned(), Ok(answer("failed")));
    assert_eq!(answers.waiting(&survey), ["d"]);
    answers.note("d".to_owned(), Err("connection refused".to_owned()));
    let lines = answers.lines(&survey);
    let left: Vec<_> = lines
        .iter()
        .filter_map(|line| line.as_ref().err())
        .collect();
    assert_eq!(left.len(), 2, "{lines:?}");
    assert!(
        left[0].contains("connection refused") && left[1].contains("not Ready"),
        "{left:?}"
    );
}

/// An API server of canned answers that notes what it was asked to change.
fn api_server(answer: fn(&str, &str) -> Option<Value>) -> (kube::Client, Arc<Mutex<Vec<String>>>) {
    let log = Arc::<Mutex<Vec<String>>>::default();
    let seen = Arc::clone(&log);
    let service = tower::service_fn(move |request: Request<Body>| {
        let seen = Arc::clone(&seen);
        async move {
            let (head, body) = request.into_parts();
            let (method, path) = (head.method.as_str(), head.uri.path());
            let body =
                String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
            if method != "GET" {
                let body = if method == "PATCH" || body.contains("gracePeriodSeconds") {
                    format!(" {body}")
                } else {
                    String::new()
                };
                seen.lock().unwrap().push(format!("{method} {path}{body}"));
            }
            let (status, body) = match answer(method, path) {
                Some(body) => (200, body),
                None => (
                    404,
                    json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "message": "not found", "code": 404}),
                ),
            };
            let body = Full::new(Bytes::from(body.to_string()));
            Ok::<_, std::convert::Infallible>(
                Response::builder().status(status).body(body).unwrap(),
            )
        }
    });
    (kube::Client::new(service, "default"), log)
}

fn list(kind: &str, items: Value) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "metadata": {}, "items": items})
}

fn restoration(anyway: bool) -> Restoration {
    Restoration {
        limit: Duration::from_secs(600),
        anyway,
        leader: LeaderArgs::default(),
    }
}

async fn undone(answer: fn(&str, &str) -> Option<Value>) -> (Report, Vec<String>) {
    undone_with(answer, None).await
}

async fn undone_with(
    answer: fn(&str, &str) -> Option<Value>,
    restore: Option<Restoration>,
) -> (Report, Vec<String>) {
    holdfast_runtime::tls::install_crypto_provider();
    let (client, log) = api_server(answer);
    let cluster = Cluster::new(client, Names::of_release("holdfast", "sys"));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let report = undo(&cluster, &http, Duration::ZERO, restore).await;
    let log = log.lock().unwrap().clone();
    (report, log)
}

#[tokio::test]
async fn the_report_stays_as_an_event_on_the_namespace() {
    holdfast_runtime::tls::install_crypto_provider();
    let mut report = Report::default();
    report.done("webhook configuration deleted".to_owned());
    report.left("node lost is not Ready".to_owned());
    report.rewritten = vec!["shop/web".to_owned()];
    let summary = report.summary();
    assert_eq!(
        summary,
        "1 step done, 1 left; 1 running pod still names the registry; LEFT node lost is not Ready"
    );
    for _ in 0..100 {
        report.left("x".repeat(100));
    }
    assert_eq!(report.summary().chars().count(), 1000);
    let (client, log) = api_server(|method, path| {
        (method == "POST").then(|| json!({"metadata": {"name": "e"}, "path": path}))
    });
    let cluster = Cluster::new(client, Names::of_release("holdfast", "sys"));
    cluster.record(&report).await.unwrap();
    let log = log.lock().unwrap().clone();
    assert_eq!(log, ["POST /apis/events.k8s.io/v1/namespaces/sys/events"]);
}

// SPEC 80
#[tokio::test]
async fn the_webhook_goes_first_and_the_controller_before_the_nodes() {
    let (report, log) = undone(|method, path| {
        let partial = |name: &str, namespace: &str| {
            json!({"metadata": {"name": name, "namespace": namespace,
                "annotations": {"holdfast.dev/original-images": "{}"}}})
        };
        match (method, path) {
            ("GET", "/api/v1/nodes") => Some(list("NodeList", json!([{
                "metadata": {"name": "lost", "resourceVersion": "7"},
                "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "holdfast.dev/not-ready", "effect": "NoSchedule"}]},
            }]))),
            ("GET", "/api/v1/namespaces/sys/secrets/holdfast-node") => {
                Some(json!({"metadata": {"name": "holdfast-node"}, "data": {"state.json": "eyJwcm9iZSI6InAifQ=="}}))
            }
            ("GET", "/api/v1/namespaces/sys/secrets") => Some(list("SecretList", json!([partial("holdfast-ca", "sys")]))),
            ("GET", "/api/v1/namespaces/sys/configmaps") => Some(list("ConfigMapList", json!([]))),
            ("GET", "/api/v1/namespaces/sys/pods") => Some(list("PodList", json!([]))),
            ("GET", "/api/v1/pods") => Some(list("PodList", json!([partial("web", "shop")]))),
            ("GET", "/apis/holdfast.dev/v1alpha1/artifacts") => Some(list("ArtifactList", json!([partial("nginx", "shop")]))),
            ("PATCH", path) if path.ends_with("/scale") => {
                Some(json!({"metadata": {"name": "holdfast-controller"}, "spec": {"replicas": 0}}))
            }
            ("PATCH", _) => Some(json!({"metadata": {"name": "holdfast-node"}})),
            ("DELETE", _) => Some(json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success"})),
            _ => None,
        }
    })
    .await;
    assert_eq!(
        log,
        [
            "DELETE /apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/holdfast-webhook",
            r#"PATCH /apis/apps/v1/namespaces/sys/deployments/holdfast-controller/scale {"spec":{"replicas":0}}"#,
            r#"PATCH /api/v1/nodes/lost {"metadata":{"resourceVersion":"7"},"spec":{"taints":[{"effect":"NoSchedule","key":"a"}]}}"#,
            r#"PATCH /api/v1/namespaces/sys/secrets/holdfast-node {"stringData":{"state.json":"{\"probe\":\"p\",\"desired\":\"removed\"}"}}"#,
            "DELETE /api/v1/namespaces/sys/secrets/holdfast-ca",
            "DELETE /apis/coordination.k8s.io/v1/namespaces/sys/leases/holdfast-controller",
            "DELETE /apis/holdfast.dev/v1alpha1/namespaces/shop/artifacts/nginx",
            r#"PATCH /apis/apps/v1/namespaces/sys/deployments/holdfast-registry/scale {"spec":{"replicas":0}}"#,
        ],
        "{report}"
    );
    let text = report.to_string();
    assert!(text.contains("LEFT  node lost is not Ready"), "{text}");
    assert!(text.contains("shop/web"), "{text}");
}

// SPEC 42
#[tokio::test(start_paused = true)]
async fn a_registry_pod_on_a_dead_node_lets_go_of_the_claim() {
    let (report, log) = undone(|method, path| match (method, path) {
        ("GET", "/api/v1/nodes") => Some(list(
            "NodeList",
            json!([node("dead", "Unknown"), node("well", "True")]),
        )),
        ("GET", "/api/v1/namespaces/sys/pods") => {
            let pod = |name: &str, node: &str| json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": []}});
            Some(list(
                "PodList",
                json!([pod("on-dead", "dead"), pod("on-well", "well")]),
            ))
        }
        ("GET", path) if path.ends_with('s') => Some(list("List", json!([]))),
        ("PATCH", path) if path.ends_with("/scale") => {
            Some(json!({"metadata": {"name": "holdfast-registry"}, "spec": {"replicas": 0}}))
        }
        ("DELETE", _) => Some(json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success"})),
        _ => None,
    })
    .await;
    let pods: Vec<_> = log.iter().filter(|line| line.contains("/pods/")).collect();
    assert_eq!(
        pods,
        [r#"DELETE /api/v1/namespaces/sys/pods/on-dead {"gracePeriodSeconds":0}"#],
        "{report}"
    );
    let scaled = log
        .iter()
        .position(|line| line.contains("holdfast-registry/scale"));
    let deleted = log.iter().position(|line| line.contains("/pods/"));
    assert!(scaled.is_some() && scaled < deleted, "{log:?}");
}

#[tokio::test]
async fn a_release_that_is_gone_already_leaves_nothing_to_report() {
    let (report, _) = undone(|method, path| match (method, path) {
        ("GET", path) if path.ends_with('s') && !path.contains("holdfast") => {
            Some(list("List", json!([])))
        }
        _ => None,
    })
    .await;
    assert!(report.is_clean(), "{report}");
}

#[tokio::test]
async fn a_step_that_fails_does_not_stop_the_next_ones() {
    let (report, log) = undone(|_, path| {
        // Answers that are no objects: every step meets an error of some kind.
        (!path.contains("webhook")).then(|| json!("nonsense"))
    })
    .await;
    assert!(!report.is_clean());
    assert!(
        log.iter()
            .any(|line| line.starts_with("DELETE") && line.contains("leases")),
        "{log:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn pods_are_restored_between_the_webhook_and_the_nodes() {
    let pod = |name: &str, owners: Value| {
        json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "ownerReferences": owners},
            "spec": {"containers": [{"name": "c", "image": "10.96.0.50/docker.io/library/nginx:1"}]},
        })
    };
    let pods = move || {
        let owner = json!([{"kind": "ReplicaSet", "name": "web", "uid": "w", "controller": true}]);
        json!([pod("bare", json!([])), pod("web-1", owner)])
    };
    // A function pointer, so that the answers depend on nothing but the question.
    static PODS: std::sync::OnceLock<Value> = std::sync::OnceLock::new();
    PODS.set(pods()).unwrap();
    let (report, log) = undone_with(
        |method, path| match (method, path) {
            ("GET", "/api/v1/namespaces/sys/configmaps/holdfast-state") => Some(json!({
                "metadata": {"name": "holdfast-state"},
                "data": {"state.json": r#"{"registryAddress": "10.96.0.50"}"#},
            })),
            ("GET", "/api/v1/pods" | "/api/v1/namespaces/shop/pods") => {
                Some(list("PodList", PODS.get().cloned().unwrap_or_default()))
            }
            ("GET", "/apis/apps/v1/namespaces/shop/replicasets/web") => Some(json!({
                "metadata": {"name": "web", "uid": "w"},
                "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "nginx:1"}]}}},
            })),
            ("GET", "/api/v1/namespaces/sys/secrets/holdfast-node") => {
                Some(json!({"metadata": {"name": "holdfast-node"}, "data": {"state.json": "e30="}}))
            }
            ("GET", path) if path.ends_with('s') => Some(list("List", json!([]))),
            ("GET", _) => None,
            _ => Some(json!({"metadata": {"name": "x"}, "spec": {"replicas": 0}})),
        },
        Some(restoration(false)),
    )
    .await;
    let at = |part: &str| log.iter().position(|line| line.contains(part));
    let order = [
        at("DELETE /apis/admissionregistration"),
        at("holdfast-controller/scale"),
        at("PATCH /api/v1/namespaces/shop/pods/bare"),
        at("POST /api/v1/namespaces/shop/pods/web-1/eviction"),
        at("secrets/holdfast-node"),
    ];
    assert!(
        order.iter().all(Option::is_some) && order.is_sorted(),
        "{order:?} of {log:?}"
    );
    assert!(
        log[order[2].unwrap()].contains(r#""value":"docker.io/library/nginx:1""#),
        "{log:?}"
    );
    assert!(
        !log.iter()
            .any(|line| line.starts_with("DELETE") && line.contains("/pods/")),
        "nothing is deleted: {log:?}"
    );
    assert!(report.to_string().contains("2 pods restored"), "{report}");
}

// Stopping is a report: the deletion of the release goes on.
#[tokio::test(start_paused = true)]
async fn pods_keep_local_names_whose_originals_cannot_be_pulled() {
    let answer = |method: &str, path: &str| match (method, path) {
        ("GET", "/api/v1/namespaces/sys/configmaps/holdfast-state") => Some(json!({
            "metadata": {"name": "holdfast-state"},
            "data": {"state.json": r#"{"registryAddress": "10.96.0.50"}"#},
        })),
        ("GET", "/api/v1/namespaces/sys/configmaps/holdfast-delivery") => Some(json!({
            "metadata": {"name": "holdfast-delivery"},
            "data": {"delivery.json": r#"{"hosts": [
                {"host": "r.io", "state": "away", "confirmed": "2026-01-01T00:00:00Z"}
            ]}"#},
        })),
        ("GET", "/api/v1/pods" | "/api/v1/namespaces/shop/pods") => Some(list(
            "PodList",
            json!([{
                "metadata": {"name": "bare", "namespace": "shop", "uid": "bare"},
                "spec": {
                    "nodeName": "one",
                    "containers": [{"name": "c", "image": "10.96.0.50/r.io/app:1"}],
                },
            }]),
        )),
        ("GET", path) if path.ends_with('s') => Some(list("List", json!([]))),
        ("GET", _) => None,
        _ => Some(json!({"metadata": {"name": "x"}, "spec": {"replicas": 0}})),
    };
    let is_restored = |log: &[String]| {
        log.iter()
            .any(|it| it.contains("PATCH /api/v1/namespaces/shop"))
    };
    let (report, log) = undone_with(answer, Some(restoration(false))).await;
    let text = report.to_string();
    assert!(
        text.contains("note  node one may pull again: r.io/app:1"),
        "{text}"
    );
    assert!(
        text.contains("LEFT  pods were not restored") && text.contains("--anyway"),
        "{text}"
    );
    assert!(!is_restored(&log), "{log:?}");
    let (report, log) = undone_with(answer, Some(restoration(true))).await;
    assert!(is_restored(&log), "{report}: {log:?}");
}
