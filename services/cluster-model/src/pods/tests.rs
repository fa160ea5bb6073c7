//! Tables of pods and what is known of them.

use super::*;
use crate::nodes::{NamespaceFacts, NodeFacts};
use holdfast_config::Config;
use serde_json::json;

const ADDRESS: &str = "10.96.0.50";

fn scope(values: serde_json::Value) -> Scope {
    let document = json!({
        "release": {"name": "holdfast", "namespace": "holdfast-system", "fullname": "holdfast", "version": "0.1.0"},
        "values": values,
    });
    Scope::new(&Config::parse(&document.to_string()).unwrap()).unwrap()
}

fn pod(extra: serde_json::Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": "p", "namespace": "apps", "uid": "u"},
        "spec": {"containers": [{"name": "c", "image": "registry.example/team/app:1"}]},
    });
    merge(&mut pod, extra);
    serde_json::from_value(pod).unwrap()
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    match (into, from) {
        (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn check(values: serde_json::Value, extra: serde_json::Value, expect: &[&str]) {
    let facts = pod_facts(
        &pod(extra.clone()),
        &[ADDRESS.to_owned()],
        &scope(values),
        false,
    );
    assert_eq!(
        facts.sources.iter().map(String::as_str).collect::<Vec<_>>(),
        expect,
        "{extra}"
    );
}

/// Only the name that its node has can help it, and only healing can set that.
#[test]
fn a_pod_that_never_pulls_can_be_healed() {
    let stuck = |policy: &str, labels: serde_json::Value| {
        let container = json!({"name": "c", "image": "r.io/a:1", "imagePullPolicy": policy});
        let waits = json!({"waiting": {"reason": "ErrImageNeverPull"}});
        let extra = json!({
            "metadata": {"labels": labels},
            "spec": {"containers": [container]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "c", "state": waits}]},
        });
        let scope = scope(json!({}));
        let facts = pod_facts(&pod(extra), &[ADDRESS.to_owned()], &scope, false);
        (facts.stuck_pod.is_some(), facts.sources.len())
    };
    assert_eq!(stuck("Never", json!({})), (true, 0), "it needs no copy");
    assert_eq!(stuck("IfNotPresent", json!({})), (true, 1));
    let opted_out = json!({"holdfast.dev/rewrite": "disabled"});
    assert_eq!(stuck("Never", opted_out), (false, 0));
}

#[test]
fn what_a_pod_never_gets_under_another_name_is_kept() {
    let image = |image: &str, policy: &str| {
        let container = json!({"name": "c", "image": image, "imagePullPolicy": policy});
        json!({"spec": {"containers": [container]}})
    };
    let opted_out = json!({"metadata": {"labels": {"holdfast.dev/rewrite": "disabled"}}});
    let mirror = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}});
    let windows = json!({"metadata": {"labels": {"holdfast.dev/rewrite": "disabled"}},
        "spec": {"os": {"name": "windows"}}});
    let digest = format!("r.io/a:1@sha256:{}", "a".repeat(64));
    let listed = format!("r.io/a@sha256:{}", "a".repeat(64));
    let app = "registry.example/team/app:1";
    let mut always = image(app, "Always");
    merge(&mut always, opted_out.clone());
    for (extra, expect) in [
        (json!({}), None),
        (image("nginx", "IfNotPresent"), None),
        (opted_out, Some(app)),
        (mirror, Some(app)),
        (windows, None),
        (always, None),
        (
            image("nginx", "Never"),
            Some("docker.io/library/nginx:latest"),
        ),
        (image(&digest, "Never"), Some(listed.as_str())),
        (image("10.96.0.50/r.io/a:1", "Never"), None),
    ] {
        let scope = scope(json!({}));
        let facts = pod_facts(&pod(extra.clone()), &[ADDRESS.to_owned()], &scope, false);
        let kept: Vec<&str> = facts.kept.iter().map(String::as_str).collect();
        assert_eq!(kept, expect.into_iter().collect::<Vec<_>>(), "{extra}");
    }
}

// SPEC 41, SPEC 9, SPEC 11
#[test]
fn a_pod_needs_its_upstream_images_unless_it_opts_out() {
    let app = "registry.example/team/app:1";
    let image = |image: &str| json!({"spec": {"containers": [{"name": "c", "image": image}]}});
    check(json!({}), json!({}), &[app]);
    check(
        json!({}),
        image("10.96.0.50/registry.example/team/app:1"),
        &[app],
    );
    check(
        json!({}),
        image("nginx"),
        &["docker.io/library/nginx:latest"],
    );
    check(json!({}), image("10.96.0.50/own/thing:1"), &[]);
    check(json!({"sources": ["other.example"]}), json!({}), &[]);
    check(json!({"sources": ["registry.example"]}), json!({}), &[app]);
    let listed = |host: &str| json!({"onlyListedUpstreams": true, "upstreams": [{"host": host}]});
    check(listed("other.example"), json!({}), &[]);
    check(listed("registry.example"), json!({}), &[app]);
    check(
        json!({}),
        json!({"metadata": {"labels": {"holdfast.dev/rewrite": "disabled"}}}),
        &[],
    );
    check(
        json!({}),
        json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}),
        &[],
    );
    check(
        json!({}),
        json!({"metadata": {"namespace": "kube-system"}}),
        &[],
    );
    check(
        json!({}),
        json!({"metadata": {"namespace": "kube-system", "labels": {"app": "descheduler"}}}),
        &[app],
    );
    let never =
        json!({"spec": {"containers": [{"name": "c", "image": app, "imagePullPolicy": "Never"}]}});
    check(json!({}), never, &[]);
    let all = json!({"spec": {
        "initContainers": [{"name": "i", "image": "registry.example/init:1"}],
        "volumes": [{"name": "v", "image": {"reference": "registry.example/volume:1"}}],
    }});
    check(
        json!({}),
        all,
        &["registry.example/init:1", app, "registry.example/volume:1"],
    );
}

#[test]
fn facts_mean_what_the_webhook_means() {
    let app = "registry.example/team/app:1";
    let spec = |image: &str| json!({"containers": [{"name": "c", "image": image}]});
    let image = |image: &str| json!({"spec": spec(image)});
    check(
        json!({}),
        image("https://registry.example/team/app:1"),
        &[app],
    );
    check(json!({}), image("auto"), &[]);
    let long = format!("registry.example/{}:1", "a".repeat(230));
    check(json!({}), image(&long), &[]);
    let originals = json!({"containers/c": app}).to_string();
    let restored = json!({
        "metadata": {"annotations": {labels::ORIGINAL_IMAGES: originals}},
        "spec": spec("10.1.2.3/registry.example/team/app:1"),
    });
    check(json!({}), restored, &[app]);
    check(
        json!({}),
        json!({"spec": {"nodeSelector": {"kubernetes.io/os": "windows"}}}),
        &[],
    );
    check(json!({}), json!({"spec": {"os": {"name": "windows"}}}), &[]);
}

#[test]
fn a_pod_knows_its_owner_and_whether_it_is_alive() {
    let scope = scope(json!({}));
    let facts = |extra| pod_facts(&pod(extra), &[], &scope, true);
    let bare = facts(json!({}));
    assert_eq!(
        (
            bare.owner.reference.kind.as_str(),
            bare.owner.reference.name.as_str(),
            bare.alive
        ),
        ("Pod", "p", true)
    );
    assert_eq!(bare.agent, Some(Agent::default()));
    for (phase, waits) in [("Pending", true), ("Running", false), ("Failed", false)] {
        let pod = facts(json!({"status": {"phase": phase}}));
        assert_eq!(pod.waiting, waits, "{phase}");
    }
    assert!(bare.waiting, "nobody has looked at it yet");
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "x", "controller": true});
    let owned = facts(json!({
        "metadata": {"ownerReferences": [owner]},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Succeeded", "conditions": [{"type": "Ready", "status": "True"}]},
    }));
    assert_eq!(
        (owned.owner.reference.kind.as_str(), owned.alive),
        ("ReplicaSet", false)
    );
    assert_eq!(
        owned.agent,
        Some(Agent {
            node: "n1".to_owned(),
            ready: true,
            created: 0,
            addresses: Vec::new(),
        })
    );
}

#[test]
fn an_agent_has_the_addresses_of_its_pod_until_it_ends() {
    let scope = scope(json!({}));
    let facts = |extra| pod_facts(&pod(extra), &[], &scope, true);
    let addresses = |phase: &str| {
        let ips = json!([{"ip": "10.1.0.7"}, {"ip": "fd00::7"}, {"ip": "none"}]);
        let pod = facts(json!({"status": {"phase": phase, "podIPs": ips}}));
        let addresses = pod.agent.unwrap().addresses.into_iter();
        addresses
            .map(|address| address.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(addresses("Running"), ["10.1.0.7", "fd00::7"]);
    // Another pod may have them now.
    assert!(addresses("Succeeded").is_empty() && addresses("Failed").is_empty());
}

#[test]
fn addresses_that_pods_use_are_seen() {
    for (image, expect) in [
        ("10.96.0.50/registry.example/app:1", Some("10.96.0.50")),
        ("[fd00::1]/registry.example/app:1", Some("[fd00::1]")),
        ("registry.example/app:1", None),
        ("10.96.0.50:5000/app:1", None),
        ("nginx", None),
    ] {
        assert_eq!(address_of(image).as_deref(), expect, "{image}");
    }
}

#[test]
fn namespaces_opt_out_and_the_release_is_left_out() {
    let scope = scope(json!({}));
    let labels = |pairs: &[(&str, &str)]| NamespaceFacts {
        labels: pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        ..NamespaceFacts::default()
    };
    assert!(scope.includes("apps", &labels(&[])));
    assert!(!scope.includes("holdfast-system", &labels(&[])));
    assert!(!scope.includes("apps", &labels(&[("holdfast.dev/rewrite", "disabled")])));
}

#[test]
fn a_condition_only_the_api_server_understands_leaves_pods_covered() {
    let unknown = json!({"global": {"networkfunctionextension": {"webhook": {"pod": {"mutation": {
        "matchConditionExpression": "object.spec.futureFunction( < 3"
    }}}}}});
    check(unknown.clone(), json!({}), &[]);
    let rewritten = "10.96.0.50/registry.example/team/app:1";
    check(
        unknown,
        json!({"spec": {"containers": [{"name": "c", "image": rewritten}]}}),
        &["registry.example/team/app:1"],
    );
}

#[test]
fn only_pods_of_the_release_count_as_node_agents() {
    let names = Names {
        release: "holdfast".to_owned(),
        fullname: "holdfast".to_owned(),
        namespace: "holdfast-system".to_owned(),
    };
    let (agent, ours) = (labels::COMPONENT_NODE_AGENT, "holdfast-node-agent");
    for (namespace, component, owner, expect) in [
        ("holdfast-system", agent, Some(ours), true),
        (
            "holdfast-system",
            labels::COMPONENT_REGISTRY,
            Some(ours),
            false,
        ),
        ("tenant", agent, Some(ours), false),
        ("holdfast-system", agent, Some("other"), false),
        ("holdfast-system", agent, None, false),
    ] {
        let pod = json!({
            "namespace": namespace,
            "labels": {labels::COMPONENT: component, labels::INSTANCE: "holdfast"},
            "ownerReferences": owner.map(|name| json!([{
                "apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": "1",
                "controller": true,
            }])),
        });
        let pod = serde_json::from_value(pod).unwrap();
        assert_eq!(
            is_agent(&names, &pod),
            expect,
            "{component} of {owner:?} in {namespace}"
        );
    }
}

#[test]
fn nodes_that_no_agent_can_prepare_are_out_of_scope() {
    let pools = scope(json!({"webhook": {"scope": {"nodeSelector": {"pool": "edge"}}}}));
    for (platform, pool, expect) in [
        (Some("linux/amd64"), "edge", true),
        (None, "edge", true),
        (Some("windows/amd64"), "edge", false),
        (Some("linux/amd64"), "core", false),
    ] {
        let node = NodeFacts {
            labels: [("pool".to_owned(), pool.to_owned())].into(),
            ready: true,
            platform: platform.map(str::to_owned),
            ..NodeFacts::default()
        };
        assert_eq!(pools.includes_node(&node), expect, "{platform:?} {pool}");
    }
}
