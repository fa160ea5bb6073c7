//! What pods are made of, against a real API server: templates copied ahead, kinds that may not be
//! listed, platforms.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bare;

use bare::{Bare, Registry, copied, eventually, run};
use holdfast_api::fill::{FillResult, Priority};
use holdfast_api::{Artifact, artifact_name};
use holdfast_core::workload;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn image(name: &str) -> String {
    format!("registry.example/team/{name}:1")
}

fn template(name: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": name}},
        "spec": {
            "restartPolicy": "Always",
            "containers": [{"name": "c", "image": image(name)}],
            "imagePullSecrets": [{"name": "of-templates"}],
        },
    })
}

fn api(bare: &Bare, namespace: &str, kind: &str) -> Api<DynamicObject> {
    let kind = workload::by_name(kind).unwrap();
    let resource = ApiResource {
        group: kind.group.to_owned(),
        version: kind.version.to_owned(),
        api_version: kind.api_version(),
        kind: kind.kind.to_owned(),
        plural: kind.plural.to_owned(),
    };
    Api::namespaced_with(bare.client.clone(), namespace, &resource)
}

/// Creates an object of a kind, controlled by another one, and returns its UID.
async fn create(
    bare: &Bare,
    namespace: &str,
    kind: &str,
    name: &str,
    above: Option<(&str, &str, &str)>,
    rest: Value,
) -> String {
    let known = workload::by_name(kind).unwrap();
    let mut object = rest;
    object["apiVersion"] = json!(known.api_version());
    object["kind"] = json!(kind);
    object["metadata"] = json!({"name": name});
    if let Some((kind, name, uid)) = above {
        let version = workload::by_name(kind).unwrap().api_version();
        object["metadata"]["ownerReferences"] = json!([
            {"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": true},
        ]);
    }
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    api(bare, namespace, kind)
        .create(&PostParams::default(), &object)
        .await
        .unwrap()
        .metadata
        .uid
        .unwrap()
}

/// The specification of a workload of this kind that runs nothing at the moment.
fn asleep(kind: &str, name: &str) -> Value {
    let selector = json!({"matchLabels": {"app": name}});
    let mut once = template(name);
    once["spec"]["restartPolicy"] = json!("Never");
    json!({"spec": match kind {
        "DaemonSet" => json!({"selector": selector, "template": template(name)}),
        "StatefulSet" => json!({"replicas": 0, "serviceName": name, "selector": selector, "template": template(name)}),
        "ReplicationController" => json!({"replicas": 0, "selector": {"app": name}, "template": template(name)}),
        "Job" => json!({"suspend": true, "template": once}),
        "CronJob" => json!({"suspend": true, "schedule": "0 3 * * *", "jobTemplate": {"spec": {"template": once}}}),
        _ => json!({"replicas": 0, "selector": selector, "template": template(name)}),
    }})
}

async fn artifact(bare: &Bare, name: &str) -> Option<Artifact> {
    let api: Api<Artifact> = Api::namespaced(bare.client.clone(), "apps");
    api.get_opt(&artifact_name(&image(name))).await.unwrap()
}

async fn is_copied(bare: &Bare, name: &str) -> bool {
    let status = artifact(bare, name).await.and_then(|it| it.status);
    status.is_some_and(|status| {
        let condition = status.conditions.first();
        condition.is_some_and(|condition| condition.reason == "Copied")
    })
}

/// `Kind/name` of everything that an Artifact's status lists.
async fn references(bare: &Bare, name: &str) -> Vec<String> {
    let status = artifact(bare, name).await.and_then(|it| it.status);
    let status = status.unwrap_or_default();
    assert_eq!(
        status.reference_count,
        i64::try_from(status.references.len()).ok()
    );
    status
        .references
        .iter()
        .map(|owner| format!("{}/{}", owner.kind, owner.name))
        .collect()
}

async fn pull_secret(bare: &Bare) {
    let document =
        json!({"auths": {"registry.example": {"username": "u", "password": "right"}}}).to_string();
    let secret = json!({
        "metadata": {"name": "of-templates"}, "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": document},
    });
    bare.create::<Secret>("apps", secret).await;
}

// SPEC 6, SPEC 35, SPEC 41
#[tokio::test]
async fn what_pods_are_made_of_is_copied_ahead_with_the_templates_credentials() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    bare.namespace("apps").await;
    bare.namespace("left-alone").await;
    bare.label_namespace("left-alone", "holdfast.dev/rewrite", "disabled")
        .await;
    pull_secret(&bare).await;
    let mut expected = BTreeSet::new();
    for kind in [
        "DaemonSet",
        "ReplicationController",
        "Job",
        "CronJob",
        "ReplicaSet",
    ] {
        let name = kind.to_lowercase();
        create(&bare, "apps", kind, &name, None, asleep(kind, &name)).await;
        create(&bare, "left-alone", kind, &name, None, asleep(kind, &name)).await;
        expected.insert(image(&name));
    }
    let web = create(
        &bare,
        "apps",
        "Deployment",
        "web",
        None,
        asleep("Deployment", "web"),
    )
    .await;
    let above = Some(("Deployment", "web", web.as_str()));
    create(
        &bare,
        "apps",
        "ReplicaSet",
        "web-2",
        above,
        asleep("ReplicaSet", "web"),
    )
    .await;
    create(
        &bare,
        "apps",
        "ReplicaSet",
        "web-1",
        above,
        asleep("ReplicaSet", "web-before"),
    )
    .await;
    let db = create(
        &bare,
        "apps",
        "StatefulSet",
        "db",
        None,
        asleep("StatefulSet", "db"),
    )
    .await;
    let revision = json!({"revision": 1, "data": {"spec": {"template": template("db-before")}}});
    let above = Some(("StatefulSet", "db", db.as_str()));
    create(
        &bare,
        "apps",
        "ControllerRevision",
        "db-1",
        above,
        revision.clone(),
    )
    .await;
    // A revision without an owner is no workload.
    let forged = json!({"revision": 1, "data": {"spec": {"template": template("forged")}}});
    create(&bare, "apps", "ControllerRevision", "forged", None, forged).await;
    let mut out = asleep("Deployment", "out");
    out["spec"]["template"]["metadata"]["labels"]["holdfast.dev/rewrite"] = json!("disabled");
    create(&bare, "apps", "Deployment", "out", None, out).await;
    expected.extend(["web", "web-before", "db", "db-before"].map(image));

    let _running = run(&bare.context(), &registry);
    for source in &expected {
        let name = source.trim_start_matches("registry.example/team/");
        let name = name.trim_end_matches(":1").to_owned();
        eventually(source, async || is_copied(&bare, &name).await).await;
    }
    let requests = registry.requests.lock().unwrap().clone();
    let asked: BTreeSet<String> = requests.iter().map(|it| it.source.clone()).collect();
    assert_eq!(asked, expected);
    assert_eq!(requests.len(), expected.len(), "each was asked for once");
    for request in &requests {
        assert_eq!(request.priority, Priority::Prefetch, "{}", request.source);
        assert_eq!(request.credentials.len(), 1, "{}", request.source);
    }
    assert_eq!(references(&bare, "web").await, ["Deployment/web"]);
    assert_eq!(references(&bare, "web-before").await, ["Deployment/web"]);
    assert_eq!(references(&bare, "db-before").await, ["StatefulSet/db"]);
    let message = artifact(&bare, "cronjob")
        .await
        .unwrap()
        .status
        .unwrap()
        .conditions[0]
        .message
        .clone();
    assert!(
        message.ends_with("prefetched for CronJob cronjob"),
        "{message}"
    );

    // A hook or a workload that is gone leaves its copy, and its Artifact, behind.
    api(&bare, "apps", "CronJob")
        .delete("cronjob", &DeleteParams::background())
        .await
        .unwrap();
    eventually("nobody refers to it", async || {
        references(&bare, "cronjob").await.is_empty()
    })
    .await;
    assert!(is_copied(&bare, "cronjob").await);
    assert_eq!(registry.sources().len(), expected.len());
}

#[tokio::test]
async fn an_image_that_cannot_be_copied_ahead_is_told_to_its_owner() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    bare.namespace("apps").await;
    let refused = r#"{"code":"NOT_FOUND","message":"no such image"}"#;
    *registry.answer.lock().unwrap() = Box::new(move |_| (404, refused.to_owned()));
    let uid = create(
        &bare,
        "apps",
        "CronJob",
        "nightly",
        None,
        asleep("CronJob", "nightly"),
    )
    .await;
    let _running = run(&bare.context(), &registry);
    let events: Api<Event> = Api::namespaced(bare.client.clone(), "apps");
    eventually("the CronJob has an event", async || {
        let events = events.list(&ListParams::default()).await.unwrap().items;
        events.iter().any(|event| {
            event.reason.as_deref() == Some("NotFound")
                && event.regarding.as_ref().is_some_and(|it| {
                    it.kind.as_deref() == Some("CronJob") && it.uid.as_deref() == Some(&uid)
                })
        })
    })
    .await;
    let status = artifact(&bare, "nightly").await.unwrap().status.unwrap();
    let message = &status.conditions[0].message;
    assert!(
        message.contains("prefetched for CronJob nightly"),
        "{message}"
    );
}

#[tokio::test]
async fn kinds_that_may_not_be_listed_are_left_out_until_they_may() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    bare.namespace("apps").await;
    let look = ["get", "list", "watch"];
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    let role = json!({"metadata": {"name": "limited"}, "rules": [
        rule("", &["pods", "nodes", "namespaces"], &look),
        rule("apps", &["deployments"], &look),
        rule("", &["secrets", "serviceaccounts"], &["get"]),
        rule("holdfast.dev", &["artifacts", "artifacts/status"], &["*"]),
    ]});
    bare.create_global::<ClusterRole>(role).await;
    let binding = json!({
        "metadata": {"name": "limited"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "limited"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "limited"}],
    });
    bare.create_global::<ClusterRoleBinding>(binding).await;
    create(
        &bare,
        "apps",
        "Deployment",
        "web",
        None,
        asleep("Deployment", "web"),
    )
    .await;
    create(
        &bare,
        "apps",
        "CronJob",
        "nightly",
        None,
        asleep("CronJob", "nightly"),
    )
    .await;
    let pod = json!({
        "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": image("pod")}]},
    });
    bare.create::<Pod>("apps", pod).await;

    let context = Bare::context_of(bare.client_as("limited").await);
    let _running = run(&context, &registry);
    for name in ["pod", "web"] {
        eventually(name, async || is_copied(&bare, name).await).await;
    }
    assert!(
        context.index.owners.settled(),
        "what is hidden is not waited for"
    );
    assert!(artifact(&bare, "nightly").await.is_none());
    let more = json!({"rules": [
        rule("", &["pods", "nodes", "namespaces"], &look),
        rule("", &["secrets", "serviceaccounts"], &["get"]),
        rule("holdfast.dev", &["artifacts", "artifacts/status"], &["*"]),
        rule("apps", &["deployments"], &look),
        rule("batch", &["cronjobs"], &look),
    ]});
    Api::<ClusterRole>::all(bare.client.clone())
        .patch("limited", &PatchParams::default(), &Patch::Merge(more))
        .await
        .unwrap();
    eventually("what is shown later", async || {
        is_copied(&bare, "nightly").await
    })
    .await;
}

async fn node(bare: &Bare, name: &str, architecture: &str) {
    let labels = json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": architecture});
    let node = json!({"metadata": {"name": name, "labels": labels}});
    bare.create_global::<Node>(node).await;
}

#[tokio::test]
async fn a_new_architecture_makes_its_platform_wanted_for_every_index() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    bare.namespace("apps").await;
    *registry.answer.lock().unwrap() = Box::new(|request| {
        let (status, body) = copied();
        if request.source == image("plain") {
            let mut result: FillResult = serde_json::from_str(&body).unwrap();
            result.media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
            return (status, serde_json::to_string(&result).unwrap());
        }
        (status, body)
    });
    node(&bare, "one", "amd64").await;
    for name in ["plain", "index"] {
        create(
            &bare,
            "apps",
            "Deployment",
            name,
            None,
            asleep("Deployment", name),
        )
        .await;
    }
    let _running = run(&bare.context(), &registry);
    for name in ["plain", "index"] {
        eventually(name, async || is_copied(&bare, name).await).await;
    }
    let platforms = |name: &str| -> Vec<Vec<String>> {
        let requests = registry.requests.lock().unwrap();
        let of_image = requests.iter().filter(|it| it.source == image(name));
        of_image.map(|it| it.platforms.clone()).collect()
    };
    assert_eq!(platforms("index"), [["linux/amd64"]]);
    node(&bare, "two", "arm64").await;
    eventually("the index is asked for again", async || {
        platforms("index").len() == 2
    })
    .await;
    assert_eq!(platforms("index")[1], ["linux/amd64", "linux/arm64"]);
    node(&bare, "three", "arm64").await;
    Api::<Node>::all(bare.client.clone())
        .delete("two", &DeleteParams::default())
        .await
        .unwrap();
    // A workload that comes later shows that the looks in between are over.
    create(
        &bare,
        "apps",
        "Deployment",
        "later",
        None,
        asleep("Deployment", "later"),
    )
    .await;
    eventually("later", async || is_copied(&bare, "later").await).await;
    assert_eq!(platforms("later"), [["linux/amd64", "linux/arm64"]]);
    assert_eq!(
        platforms("index").len(),
        2,
        "no further platform, no further question"
    );
    assert_eq!(
        platforms("plain").len(),
        1,
        "an image without an index has one platform"
    );
}

#[test]
fn the_chart_lets_the_controller_see_every_kind() {
    let role = include_str!("../../../chart/templates/controller/rbac.yaml");
    let lines: Vec<&str> = role.lines().map(str::trim).collect();
    for kind in workload::KINDS {
        let group = if kind.group.is_empty() {
            "\"\""
        } else {
            kind.group
        };
        let granted = lines.windows(3).any(|rule| {
            let [groups, resources, verbs] = rule else {
                return false;
            };
            let names = |line: &str, key: &str| -> Vec<String> {
                let list = line.strip_prefix(key).unwrap_or_default();
                list.trim_matches(['[', ']'])
                    .split(", ")
                    .map(str::to_owned)
                    .collect()
            };
            names(groups, "- apiGroups: ").contains(&group.to_owned())
                && names(resources, "resources: ").contains(&kind.plural.to_owned())
                && ["list", "watch"]
                    .iter()
                    .all(|verb| names(verbs, "verbs: ").contains(&(*verb).to_owned()))
        });
        assert!(
            granted,
            "chart/templates/controller/rbac.yaml does not grant {}",
            kind.plural
        );
    }
}
