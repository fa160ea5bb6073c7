//! Every scenario renders to objects that survive the API server's types unchanged.

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::helm::{FULLNAME, NAMESPACE, RELEASE, Render, name, render, render_release, scenarios};

fn typed<T: DeserializeOwned + Serialize>(document: &Value) -> Value {
    let object: T = serde_json::from_value(document.clone())
        .unwrap_or_else(|error| panic!("{}: {error}", name(document)));
    serde_json::to_value(object).unwrap()
}

fn through_its_type(document: &Value) -> Option<Value> {
    let kind = document["kind"].as_str().unwrap();
    Some(match kind {
        "ClusterRole" => typed::<ClusterRole>(document),
        "ClusterRoleBinding" => typed::<ClusterRoleBinding>(document),
        "ConfigMap" => typed::<ConfigMap>(document),
        "CustomResourceDefinition" => typed::<CustomResourceDefinition>(document),
        "DaemonSet" => typed::<DaemonSet>(document),
        "Deployment" => typed::<Deployment>(document),
        "HorizontalPodAutoscaler" => typed::<HorizontalPodAutoscaler>(document),
        "Job" => typed::<Job>(document),
        "MutatingWebhookConfiguration" => typed::<MutatingWebhookConfiguration>(document),
        "NetworkPolicy" => typed::<NetworkPolicy>(document),
        "PersistentVolumeClaim" => typed::<PersistentVolumeClaim>(document),
        "PodDisruptionBudget" => typed::<PodDisruptionBudget>(document),
        "Role" => typed::<Role>(document),
        "RoleBinding" => typed::<RoleBinding>(document),
        "Secret" => typed::<Secret>(document),
        "Service" => typed::<Service>(document),
        "ServiceAccount" => typed::<ServiceAccount>(document),
        "ValidatingAdmissionPolicy" => typed::<ValidatingAdmissionPolicy>(document),
        "ValidatingAdmissionPolicyBinding" => typed::<ValidatingAdmissionPolicyBinding>(document),
        // The Prometheus operator's; no type here.
        "PodMonitor" => return None,
        other => panic!("no type for {other}"),
    })
}

/// Paths of the document that its type does not carry.
fn lost(document: &Value, typed: &Value, path: &str, found: &mut Vec<String>) {
    match (document, typed) {
        (Value::Object(fields), _) => {
            for (key, field) in fields.iter().filter(|(_, field)| !field.is_null()) {
                match typed.get(key) {
                    Some(other) => lost(field, other, &format!("{path}.{key}"), found),
                    None if field.as_object().is_some_and(serde_json::Map::is_empty) => {}
                    None => found.push(format!("{path}.{key}")),
                }
            }
        }
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => {
            for (index, (item, other)) in items.iter().zip(others).enumerate() {
                lost(item, other, &format!("{path}[{index}]"), found);
            }
        }
        _ if document == typed => {}
        (Value::Number(left), Value::Number(right)) if left.as_f64() == right.as_f64() => {}
        _ => found.push(path.to_owned()),
    }
}

#[test]
fn every_document_of_every_scenario_survives_its_type() {
    for (scenario, values) in scenarios() {
        for document in render(&values).unwrap_or_else(|error| panic!("{scenario}: {error}")) {
            let Some(typed) = through_its_type(&document) else {
                continue;
            };
            let mut found = Vec::new();
            lost(&document, &typed, "", &mut found);
            assert!(
                found.is_empty(),
                "{scenario}: {} has fields that its type does not know: {found:?}",
                name(&document)
            );
        }
    }
}

#[test]
fn every_object_has_a_name_labels_and_the_right_namespace() {
    let cluster_wide = [
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "MutatingWebhookConfiguration",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ];
    for (scenario, values) in scenarios() {
        let documents = render(&values).unwrap();
        let mut names: Vec<String> = documents.iter().map(name).collect();
        names.sort();
        names.dedup();
        assert_eq!(
            names.len(),
            documents.len(),
            "{scenario}: two objects have one name"
        );
        for document in &documents {
            let what = format!("{scenario}: {}", name(document));
            let namespace = document
                .pointer("/metadata/namespace")
                .and_then(Value::as_str);
            // Events of nodes live in `default`; that is where the agents' grant is.
            let of_nodes = what.contains("Role") && what.ends_with("-node-agent-holdfast-system");
            let home = if of_nodes { "default" } else { NAMESPACE };
            let expected =
                Some(home).filter(|_| !cluster_wide.contains(&document["kind"].as_str().unwrap()));
            assert_eq!(namespace, expected, "{what}");
            let labels = &document["metadata"]["labels"];
            assert_eq!(labels["app.kubernetes.io/name"], "holdfast", "{what}");
            assert_eq!(labels["app.kubernetes.io/instance"], RELEASE, "{what}");
            assert!(labels["app.kubernetes.io/component"].is_string(), "{what}");
        }
    }
}

// SPEC 1
#[test]
fn while_it_is_off_nothing_but_the_definitions_is_rendered() {
    for values in [
        "{}",
        "enabled: false\nglobal: {networkfunctionextension: {enableClusterRegistry: true}}",
    ] {
        let kinds: Vec<String> = render(values).unwrap().iter().map(name).collect();
        assert_eq!(kinds, ["CustomResourceDefinition/artifacts.holdfast.dev"]);
    }
    assert_eq!(
        render("crds: {install: false}").unwrap(),
        Vec::<Value>::new()
    );
}

#[test]
fn definitions_are_kept_unless_a_value_says_otherwise() {
    let annotation = |values: &str| {
        render(values).unwrap()[0]
            .pointer("/metadata/annotations/helm.sh~1resource-policy")
            .cloned()
    };
    assert_eq!(annotation("{}"), Some(json!("keep")));
    assert_eq!(annotation("crds: {keep: false}"), None);
}

// SPEC 2
#[test]
fn the_older_spellings_switch_the_registry_on_and_size_its_volume() {
    let render = Render::scenario("legacy");
    assert_eq!(
        render.get("PersistentVolumeClaim", "registry")["spec"]["resources"]["requests"]["storage"],
        "1024Gi"
    );
}

// SPEC 15, SPEC 26
#[test]
fn the_volume_has_the_class_size_and_mode_that_were_asked_for() {
    let check = |scenario: &str, class: &str, size: &str, mode: &str| {
        let render = Render::scenario(scenario);
        let spec = &render.get("PersistentVolumeClaim", "registry")["spec"];
        assert_eq!(spec["storageClassName"], class);
        assert_eq!(spec["resources"]["requests"]["storage"], size);
        assert_eq!(spec["accessModes"], json!([mode]));
    };
    check("ha", "nexus-shared", "100Gi", "ReadWriteMany");
    check("single", "standard", "5Gi", "ReadWriteOnce");
    check("aks", "managed-csi", "1Ti", "ReadWriteOnce");
}

// SPEC 26
#[test]
fn high_availability_on_a_class_for_one_node_is_refused_with_two_fixes() {
    for class in [
        "managed-csi",
        "managed-premium",
        "nexus-volume",
        "standard",
        "local-path",
    ] {
        let values = json!({ "global": { "networkfunctionextension": {
            "enableClusterRegistry": true, "clusterRegistry": { "storageClassName": class } } } });
        let message = render(&values.to_string()).unwrap_err();
        for word in [
            "storageClassName",
            class,
            "highAvailability.enabled=false",
            "ReadWriteMany",
        ] {
            assert!(message.contains(word), "{message}");
        }
    }
}

#[test]
fn an_existing_claim_is_used_instead_of_a_new_one() {
    let documents = render(&scenarios()["everything"]).unwrap();
    assert!(
        !documents
            .iter()
            .any(|document| document["kind"] == "PersistentVolumeClaim")
    );
    let registry = documents
        .iter()
        .find(|document| name(document) == "Deployment/edge-registry")
        .unwrap();
    let volumes = registry
        .pointer("/spec/template/spec/volumes")
        .and_then(Value::as_array)
        .unwrap();
    assert!(
        volumes.contains(
            &json!({ "name": "data", "persistentVolumeClaim": { "claimName": "images" } })
        )
    );
}

#[test]
fn the_chart_and_the_services_give_a_release_the_same_name() {
    for release in ["edge", "holdfast", "my-holdfast"] {
        assert!(holdfast_api::names::fullname(release).contains("holdfast"));
    }
    assert_eq!(holdfast_api::names::fullname(RELEASE), FULLNAME);
}

// The API server refuses Services with dots in their names.
#[test]
fn the_dots_of_a_release_are_no_part_of_names() {
    let long = "site.a-long-name-that-is-cut-at-a-point.x";
    for release in ["edge.site-1.example", "my.holdfast", long] {
        let fullname = holdfast_api::names::fullname(release);
        let mut services = 0;
        for document in render_release(release, &scenarios()["everything"])
            .unwrap()
            .into_iter()
            .chain(render_release(release, &scenarios()["ha"]).unwrap())
        {
            assert_eq!(
                document.pointer("/metadata/labels/app.kubernetes.io~1instance"),
                Some(&json!(release)),
                "{}",
                name(&document)
            );
            if document["kind"] == "Service" {
                let name = document["metadata"]["name"].as_str().unwrap();
                assert!(!name.contains('.'), "{name}");
                services += usize::from(name.starts_with(&fullname));
            }
        }
        assert!(
            services >= 3,
            "{release}: {services} Services of {fullname}"
        );
    }
}

// SPEC 9, SPEC 10
#[test]
fn the_webhook_is_registered_by_contract_and_without_a_certificate() {
    let render = Render::scenario("ha");
    let webhook = &render.get("MutatingWebhookConfiguration", "webhook")["webhooks"][0];
    assert_eq!(webhook["failurePolicy"], "Ignore");
    assert_eq!(webhook["timeoutSeconds"], 5);
    assert_eq!(webhook["sideEffects"], "NoneOnDryRun");
    assert_eq!(webhook["matchPolicy"], "Equivalent");
    assert_eq!(webhook["reinvocationPolicy"], "IfNeeded");
    assert_eq!(
        webhook["rules"][0]["resources"],
        json!(["pods", "pods/ephemeralcontainers"])
    );
    assert_eq!(
        webhook["rules"][0]["operations"],
        json!(["CREATE", "UPDATE"])
    );
    assert_eq!(
        webhook["matchConditions"][0]["expression"],
        holdfast_config::DEFAULT_MATCH_CONDITION
    );
    let not_in =
        |key: &str, value: &str| json!({ "key": key, "operator": "NotIn", "values": [value] });
    let opted_out = not_in("holdfast.dev/rewrite", "disabled");
    let own = not_in("kubernetes.io/metadata.name", NAMESPACE);
    assert_eq!(
        webhook["namespaceSelector"],
        json!({ "matchExpressions": [own, opted_out] })
    );
    assert_eq!(
        webhook["objectSelector"],
        json!({ "matchExpressions": [opted_out] })
    );
    assert_eq!(webhook["clientConfig"]["service"]["path"], "/mutate");
    assert!(
        webhook["clientConfig"].get("caBundle").is_none(),
        "the controller owns caBundle"
    );
}

// SPEC 10
#[test]
fn names_at_the_registry_are_judged_first_and_in_every_pod() {
    let of = |scenario: &str| {
        let render = Render::scenario(scenario);
        let configuration = render.get("MutatingWebhookConfiguration", "webhook");
        configuration["webhooks"].as_array().unwrap().clone()
    };
    let names = |webhooks: &[Value]| -> Vec<Value> {
        let all = webhooks.iter();
        all.map(|webhook| webhook["name"].clone()).collect()
    };
    assert_eq!(names(&of("ha")), ["pods.holdfast.dev"]);
    let webhooks = of("private-images");
    assert_eq!(
        names(&webhooks),
        ["names.holdfast.dev", "pods.holdfast.dev"]
    );
    let guard = &webhooks[0];
    assert_eq!(guard["clientConfig"]["service"]["path"], "/put-back");
    assert_eq!(guard["reinvocationPolicy"], "Never");
    for narrows in ["objectSelector", "matchConditions"] {
        assert!(guard.get(narrows).is_none(), "{narrows}");
    }
    let spared = json!([{
        "key": "kubernetes.io/metadata.name",
        "operator": "NotIn",
        "values": [NAMESPACE, "kube-system"],
    }]);
    assert_eq!(guard["namespaceSelector"]["matchExpressions"], spared);
    for same in ["rules", "failurePolicy", "timeoutSeconds", "matchPolicy"] {
        assert_eq!(guard[same], webhooks[1][same], "{same}");
    }
}

// SPEC 10
#[test]
fn the_match_condition_and_the_scope_are_the_users() {
    let documents = render(&scenarios()["everything"]).unwrap();
    let webhook = documents
        .iter()
        .find(|document| document["kind"] == "MutatingWebhookConfiguration")
        .unwrap();
    let webhook = &webhook["webhooks"][0];
    let expression = webhook["matchConditions"][0]["expression"]
        .as_str()
        .unwrap();
    assert_eq!(
        expression,
        "object.metadata.namespace != \"kube-system\" && !(\"quiet\" in object.metadata.labels)"
    );
    assert_eq!(
        webhook["namespaceSelector"]["matchLabels"],
        json!({ "edge": "yes" })
    );
    assert_eq!(
        webhook["namespaceSelector"]["matchExpressions"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

// SPEC 32
#[test]
fn a_second_render_is_the_first_and_holds_no_certificate() {
    let (first, second) = (Render::scenario("ha").0, Render::scenario("ha").0);
    assert_eq!(first, second);
    assert!(!first.iter().any(|document| document["kind"] == "Secret"));
    assert!(!json!(first).to_string().contains("caBundle\""));
}
