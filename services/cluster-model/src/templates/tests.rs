//! Tables of owners and what is known of them.

use super::*;
use holdfast_config::Config;
use serde_json::json;

fn scope(values: &Value) -> Scope {
    let document = json!({
        "release": {"name": "holdfast", "namespace": "holdfast-system", "fullname": "holdfast", "version": "0.1.0"},
        "values": values,
    });
    Scope::new(&Config::parse(&document.to_string()).unwrap()).unwrap()
}

fn deployment(namespace: &str, labels: &Value, container: &Value) -> Value {
    json!({
        "metadata": {"name": "web", "namespace": namespace, "uid": "u", "labels": {"holdfast.dev/rewrite": "disabled"}},
        "spec": {"replicas": 0, "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}},
    })
}

fn check(values: &Value, object: &Value, expect: &[&str]) {
    let kind = workload::by_name("Deployment").unwrap();
    let facts = owner_facts(kind, object, &["10.96.0.50".to_owned()], &scope(values));
    let found: Vec<_> = facts.sources.iter().map(String::as_str).collect();
    assert_eq!(found, expect, "{object}");
}

// SPEC 9, SPEC 11, SPEC 41
#[test]
fn a_template_is_judged_as_the_pod_that_it_becomes() {
    let none = json!({});
    let app = json!({"name": "c", "image": "registry.example/app:1"});
    let source = &["registry.example/app:1"];
    check(&none, &deployment("apps", &none, &app), source);
    let out = json!({"holdfast.dev/rewrite": "disabled"});
    check(&none, &deployment("apps", &out, &app), &[]);
    check(&none, &deployment("kube-system", &none, &app), &[]);
    let exempt = json!({"app": "descheduler"});
    check(&none, &deployment("kube-system", &exempt, &app), source);
    let other = json!({"sources": ["other.example"]});
    check(&other, &deployment("apps", &none, &app), &[]);
    let never = json!({"name": "c", "image": "registry.example/app:1", "imagePullPolicy": "Never"});
    check(&none, &deployment("apps", &none, &never), &[]);
    let local = json!({"name": "c", "image": "10.96.0.50/registry.example/app:1"});
    check(&none, &deployment("apps", &none, &local), source);
    let own = json!({"name": "c", "image": "10.96.0.50/holdfast/probe:1"});
    check(&none, &deployment("apps", &none, &own), &[]);
    let by_account = json!({"global": {"networkfunctionextension": {"webhook": {"pod": {"mutation": {
        "matchConditionExpression": "object.spec.serviceAccountName == 'default' && \
            object.metadata.namespace == 'apps'"
    }}}}}});
    check(&by_account, &deployment("apps", &none, &app), source);
    check(&by_account, &deployment("other", &none, &app), &[]);
}

#[test]
fn a_sleeping_template_means_what_its_pods_will() {
    let none = json!({});
    let named = |image: &str| json!({"name": "c", "image": image});
    let source = &["registry.example/app:1"];
    let malformed = named("https://registry.example/app:1");
    check(&none, &deployment("apps", &none, &malformed), source);
    check(&none, &deployment("apps", &none, &named("auto")), &[]);
    let bare = &["docker.io/library/nginx:latest"];
    check(&none, &deployment("apps", &none, &named("nginx")), bare);
    let mut windows = deployment("apps", &none, &named("registry.example/app:1"));
    windows["spec"]["template"]["spec"]["os"] = json!({"name": "windows"});
    check(&none, &windows, &[]);
}
