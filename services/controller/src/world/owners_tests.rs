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
        "matchConditionExpression": "object.spec.serviceAccountName == 'default' && object.metadata.namespace == 'apps'"
    }}}}}});
    check(&by_account, &deployment("apps", &none, &app), source);
    check(&by_account, &deployment("other", &none, &app), &[]);
}

#[test]
fn an_owner_is_kept_without_what_nobody_asks_for() {
    let mut object = deployment(
        "apps",
        &json!({}),
        &json!({"name": "c", "image": "registry.example/app:1"}),
    );
    object["metadata"]["managedFields"] = json!([{"manager": "kubectl", "operation": "Update"}]);
    object["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": "{}"});
    let raw: Raw = serde_json::from_value(object).unwrap();
    assert_eq!(raw.metadata.name.as_deref(), Some("web"));
    let text = raw.object.to_string();
    assert!(
        !text.contains("managedFields") && !text.contains("annotations"),
        "{text}"
    );
    assert!(serde_json::from_value::<Raw>(json!({"metadata": "x"})).is_err());
}

#[test]
fn the_chain_of_controllers_ends_where_nothing_more_is_known() {
    let owner = |kind: &str, name: &str, uid: &str| Owner {
        reference: Reference {
            kind: kind.to_owned(),
            name: name.to_owned(),
        },
        uid: uid.to_owned(),
    };
    let mut sets: Mirror<OwnerFacts> = Mirror::default();
    let mut add = |name: &str, above: Option<Owner>| {
        let raw = Raw {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some("apps".to_owned()),
                ..ObjectMeta::default()
            },
            object: Value::Null,
        };
        sets.apply(watcher::Event::Apply(raw), &mut |_| OwnerFacts {
            uid: name.to_owned(),
            controller: above.clone(),
            ..OwnerFacts::default()
        });
    };
    add("web-1", Some(owner("Deployment", "web", "d")));
    add("loop", Some(owner("ReplicaSet", "loop", "loop")));
    let view: View<'_> = [("ReplicaSet", &sets)].into();
    for (from, expect) in [
        (owner("ReplicaSet", "web-1", "web-1"), "Deployment/web"),
        (
            owner("ReplicaSet", "web-1", "of an earlier one"),
            "ReplicaSet/web-1",
        ),
        (owner("ReplicaSet", "loop", "loop"), "ReplicaSet/loop"),
        (owner("Pod", "p", "p"), "Pod/p"),
    ] {
        let top = top(&view, "apps", &from).reference;
        assert_eq!(format!("{}/{}", top.kind, top.name), expect);
    }
    let elsewhere = owner("ReplicaSet", "web-1", "web-1");
    assert_eq!(top(&view, "other", &elsewhere), elsewhere);
}

#[test]
fn only_a_clear_refusal_hides_a_kind() {
    let status = |code: u16| {
        Box::new(kube::core::Status {
            code,
            message: "no".to_owned(),
            ..kube::core::Status::default()
        })
    };
    for (code, expect) in [
        (403, true),
        (404, true),
        (405, true),
        (401, false),
        (410, false),
        (500, false),
    ] {
        let list = watcher::Error::InitialListFailed(kube::Error::Api(status(code)));
        assert_eq!(refusal(&list).is_some(), expect, "{code}");
        assert_eq!(
            refusal(&watcher::Error::WatchError(status(code))).is_some(),
            expect,
            "{code}"
        );
    }
    assert!(refusal(&watcher::Error::NoResourceVersion).is_none());
}
