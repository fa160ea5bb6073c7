//! Tests of private images: which image a pod gets depends on its namespace.

use super::tests::{pod, rules};
use super::*;
use crate::rules::Configured;
use holdfast_api::state::ClusterState;

const ADDRESS: &str = "10.96.0.50";

/// Rules that permit `registry.example/private` to the namespace `team`, and
/// `docker.io/library/nginx` to all.
fn rules_by_namespace(rewrite: bool) -> Rules {
    let access = json!({
        "everybody": ["docker.io/library/nginx"],
        "namespaces": {"team": ["registry.example/private", "docker.io/team/app"]},
    });
    let state = ClusterState {
        registry_address: ADDRESS.to_owned(),
        aliases: vec!["10.96.0.9".to_owned()],
        rewrite,
        access: Some(serde_json::from_value(access).unwrap()),
        ..ClusterState::default()
    };
    let configured = Configured {
        by_namespace: true,
        ..Configured::default()
    };
    Rules::new(configured, Some(&state))
}

/// The image of a pod of `namespace` after its creation, and the decisions of both endpoints.
fn created(namespace: &str, image: &str, change: &Value, rules: &Rules) -> (String, [Mutation; 2]) {
    let mut pod = pod(image);
    pod["metadata"]["namespace"] = json!(namespace);
    if let Some(labels) = change.get("labels") {
        pod["metadata"]["labels"] = labels.clone();
    }
    if let Some(policy) = change.get("imagePullPolicy") {
        pod["spec"]["containers"][0]["imagePullPolicy"] = policy.clone();
    }
    let mut ask = |decide: fn(&Value, Option<&Value>, Request, &Rules) -> Mutation| {
        let mutation = decide(&pod, None, Request::Create, rules);
        json_patch::patch(&mut pod, &mutation.patch).unwrap();
        mutation
    };
    let done = [ask(restore), ask(mutate)];
    for endpoint in [restore, mutate] {
        let again = ask(endpoint);
        assert!(again.patch.is_empty(), "{namespace} {image}: {again:?}");
    }
    let image = pod["spec"]["containers"][0]["image"].as_str().unwrap();
    (image.to_owned(), done)
}

#[test]
fn a_private_image_is_rewritten_where_its_namespace_proved_it() {
    let rules = rules_by_namespace(true);
    for (namespace, image, expect) in [
        ("team", "nginx:1", "10.96.0.50/docker.io/library/nginx:1"),
        ("other", "nginx:1", "10.96.0.50/docker.io/library/nginx:1"),
        (
            "team",
            "registry.example/private:2",
            "10.96.0.50/registry.example/private:2",
        ),
        (
            "other",
            "registry.example/private:2",
            "registry.example/private:2",
        ),
        (
            "",
            "registry.example/private:2",
            "registry.example/private:2",
        ),
        // Not in the access list.
        ("team", "registry.example/new:1", "registry.example/new:1"),
        (
            "team",
            "registry.example/private/more:1",
            "registry.example/private/more:1",
        ),
    ] {
        let (found, [guard, mutation]) = created(namespace, image, &json!({}), &rules);
        assert_eq!(found, expect, "{namespace} {image}");
        assert_eq!(guard, Mutation::default(), "{namespace} {image}");
        let kept = found == image;
        let reasons = if kept {
            vec![SkipReason::Private]
        } else {
            Vec::new()
        };
        assert_eq!(mutation.skipped, reasons, "{namespace} {image}");
        assert_eq!(mutation.images.len(), 1, "it is announced in any case");
    }
    // The configuration alone decides that it depends on namespaces: without a list nothing is
    // known.
    let older = ClusterState {
        access: None,
        ..state_of(&rules)
    };
    let configured = Configured {
        by_namespace: true,
        ..Configured::default()
    };
    let rules = Rules::new(configured, Some(&older));
    let (found, _) = created("team", "nginx:1", &json!({}), &rules);
    assert_eq!(found, "nginx:1");
}

fn state_of(rules: &Rules) -> ClusterState {
    ClusterState {
        registry_address: ADDRESS.to_owned(),
        rewrite: rules.address.is_some(),
        ..ClusterState::default()
    }
}

#[test]
fn a_local_name_is_restored_to_the_original_without_proved_access() {
    let (opted_out, holdfasts) = (
        json!({"labels": {"holdfast.dev/rewrite": "disabled"}}),
        json!({"labels": {"app.kubernetes.io/part-of": "holdfast"}}),
    );
    let never = json!({"imagePullPolicy": "Never"});
    for (image, expect) in [
        (
            "10.96.0.50/registry.example/private:1",
            "registry.example/private:1",
        ),
        (
            "10.96.0.50:5000/registry.example/private:1",
            "registry.example/private:1",
        ),
        (
            "10.96.0.9/registry.example/private:1",
            "registry.example/private:1",
        ),
        // The registry takes these for docker.io/team/app.
        ("10.96.0.50/docker.io/team/app:1", "docker.io/team/app:1"),
        (
            "10.96.0.50/index.docker.io/team/app:1",
            "docker.io/team/app:1",
        ),
    ] {
        for rewrites in [true, false] {
            let rules = rules_by_namespace(rewrites);
            for change in [&json!({}), &never, &opted_out, &holdfasts] {
                let (found, [guard, _]) = created("other", image, change, &rules);
                assert_eq!(found, expect, "{image} {change}");
                assert_eq!((guard.restored, guard.warnings.len()), (1, 1));
                assert_eq!(guard.skipped, [SkipReason::Private]);
                assert_eq!(guard.images.len(), 0);
                // Where it is proved it stays as it is written.
                assert_eq!(created("team", image, change, &rules).0, image);
            }
        }
        assert_eq!(created("other", image, &json!({}), &rules()).0, image);
    }
    let rules = rules_by_namespace(true);
    for image in ["10.96.0.50/docker.io/nginx:1", "10.96.0.50/team/pushed:1"] {
        assert_eq!(created("other", image, &json!({}), &rules).0, image);
    }
    // A pod that opted out is not rewritten.
    let (found, [guard, _]) = created("team", "nginx:1", &opted_out, &rules);
    assert_eq!((found.as_str(), guard), ("nginx:1", Mutation::default()));
    // A webhook that is called later puts such names into pods that are rewritten.
    let mut late = pod("10.96.0.50/registry.example/private:1");
    late["metadata"]["namespace"] = json!("other");
    let mutation = mutate(&late, None, Request::Create, &rules);
    assert_eq!((mutation.restored, mutation.images.len()), (1, 1));
    // What a pod has already is not touched by an update of something else.
    let mut old = pod("10.96.0.50/registry.example/private:1");
    old["metadata"]["namespace"] = json!("other");
    let mutation = mutate(&old, Some(&old), Request::Update, &rules);
    assert!(mutation.patch.is_empty());
    let mutation = mutate(&old, Some(&pod("x.example/a:1")), Request::Update, &rules);
    assert_eq!(mutation.restored, 1);
}
