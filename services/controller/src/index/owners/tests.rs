//! Chains of owners, and kinds that may not be read.

use super::*;
use holdfast_api::artifact::Reference;
use serde_json::json;

#[test]
fn the_chain_of_controllers_ends_where_nothing_more_is_known() {
    let owner = |kind: &str, name: &str, uid: &str| Owner {
        reference: Reference {
            kind: kind.to_owned(),
            name: name.to_owned(),
        },
        uid: uid.to_owned(),
    };
    let mut sets: WatchCache<OwnerFacts> = WatchCache::default();
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

#[test]
fn an_owner_is_kept_without_what_nobody_asks_for() {
    let mut object = json!({"metadata": {"name": "web", "namespace": "apps"}});
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
