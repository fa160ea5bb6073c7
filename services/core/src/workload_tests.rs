//! Tables of workloads: where their templates are, who controls them, whether pods may still be
//! made of them.

use super::*;
use crate::pod;
use serde_json::json;

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn images(kind: &str, object: &Value) -> Vec<String> {
    pod_template(kind, object)
        .into_iter()
        .flat_map(pod::images)
        .map(|image| image.image)
        .collect()
}

// SPEC 41
#[test]
fn every_kind_keeps_its_template_somewhere() {
    let plain = json!({"spec": {"template": template("a:1")}});
    for (kind, object) in [
        ("Pod", template("a:1")),
        ("ReplicationController", plain.clone()),
        ("ReplicaSet", plain.clone()),
        ("Deployment", plain.clone()),
        ("StatefulSet", plain.clone()),
        ("DaemonSet", plain.clone()),
        ("Job", plain.clone()),
        (
            "CronJob",
            json!({"spec": {"jobTemplate": {"spec": {"template": template("a:1")}}}}),
        ),
        (
            "ControllerRevision",
            json!({"data": {"spec": {"template": template("a:1")}}, "revision": 3}),
        ),
    ] {
        assert_eq!(images(kind, &object), ["a:1"], "{kind}");
        assert!(by_name(kind).is_some(), "{kind} is in the list");
    }
    assert_eq!(KINDS.len(), 9, "a kind without a row above");
    assert_eq!(images("Rollout", &plain), Vec::<String>::new());
    assert!(by_name("Rollout").is_none());
}

#[test]
fn volcano_jobs_and_argo_workflows_have_templates() {
    let images = |api_version: &str, kind: &str, object: &Value| {
        let templates = custom_templates(api_version, kind, object)?;
        let found = templates.iter().flat_map(pod::images);
        Some(found.map(|image| image.image).collect::<Vec<_>>())
    };
    let job = json!({"spec": {"tasks": [
        {"name": "master", "template": template("a:1")},
        {"name": "worker", "template": template("b:1")},
        {"name": "none"},
    ]}});
    assert_eq!(
        images("batch.volcano.sh/v1alpha1", "Job", &job).unwrap(),
        ["a:1", "b:1"]
    );
    assert_eq!(images("batch/v1", "Job", &job), None);
    assert_eq!(images("v1", "Job", &job), None);

    let spec = json!({"entrypoint": "main", "templates": [
        {"name": "main", "steps": [[{"name": "one", "inline": {"container": {"image": "g:1"}}}]]},
        {"name": "dag", "dag": {"tasks": [{"inline": {"script": {"image": "h:1"}}}]}},
        {
            "name": "container",
            "initContainers": [{"name": "i", "image": "a:1"}],
            "container": {"image": "b:1"},
            "sidecars": [{"name": "s", "image": "c:1"}],
        },
        {"name": "script", "script": {"image": "d:1", "source": "true"}},
        {"name": "set", "containerSet": {"containers": [{"name": "x", "image": "e:1"}]}},
        {"name": "wait", "suspend": {}},
    ], "templateDefaults": {"container": {"image": "f:1"}}});
    let expect = ["g:1", "h:1", "a:1", "b:1", "c:1", "d:1", "e:1", "f:1"];
    for kind in ["Workflow", "WorkflowTemplate", "ClusterWorkflowTemplate"] {
        let mut found = images("argoproj.io/v1alpha1", kind, &json!({ "spec": spec })).unwrap();
        found.sort();
        let mut expect = expect;
        expect.sort_unstable();
        assert_eq!(found, expect, "{kind}");
    }
    let cron = json!({"spec": {"schedule": "* * * * *", "workflowSpec": spec}});
    let found = images("argoproj.io/v1alpha1", "CronWorkflow", &cron).unwrap();
    assert_eq!(found.len(), expect.len());
    assert_eq!(images("argoproj.io/v1alpha1", "Rollout", &job), None);
    assert_eq!(
        images("argoproj.io/v1alpha1", "Workflow", &json!({})),
        Some(Vec::new())
    );
}

#[test]
fn shapes_that_hold_no_template_are_passed_over() {
    for object in [
        json!(null),
        json!({}),
        json!({"spec": {"template": null}}),
        json!({"spec": {"template": {"metadata": {}}}}),
        json!({"spec": {"template": {"spec": []}}}),
        json!({"data": "raw"}),
    ] {
        for known in KINDS {
            // A pod needs no more than a spec.
            if known.kind != "Pod" {
                assert_eq!(
                    pod_template(known.kind, &object),
                    None,
                    "{}: {object}",
                    known.kind
                );
            }
        }
    }
    assert_eq!(pod_template("Pod", &json!({})), None);
}

#[test]
fn only_the_controller_among_the_owners_counts() {
    let owner = |kind: &str, controller: bool| json!({"kind": kind, "name": "n", "uid": "u", "controller": controller});
    let owned = |owners: Value| json!({"metadata": {"ownerReferences": owners}});
    let both = owned(json!([
        owner("ConfigMap", false),
        owner("ReplicaSet", true)
    ]));
    assert_eq!(controller_of(&both), Some(("ReplicaSet", "n", "u")));
    for nobody in [
        json!({}),
        owned(json!([])),
        owned(json!([owner("ConfigMap", false)])),
        owned(json!([{"controller": true, "kind": "X"}])),
        owned(json!("x")),
    ] {
        assert_eq!(controller_of(&nobody), None, "{nobody}");
    }
}

// SPEC 41
#[test]
fn pods_may_be_made_of_what_sleeps_and_not_of_what_has_ended() {
    let status = |type_: &str, status: &str| json!({"status": {"conditions": [{"type": type_, "status": status}]}});
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    for (kind, object, expect) in [
        ("Deployment", json!({"spec": {"replicas": 0}}), true),
        ("ReplicaSet", json!({"spec": {"replicas": 0}}), true),
        ("StatefulSet", json!({"spec": {"replicas": 0}}), true),
        ("CronJob", json!({"spec": {"suspend": true}}), true),
        ("Job", json!({"spec": {"suspend": true}}), true),
        ("Job", status("Suspended", "True"), true),
        ("Job", status("Complete", "False"), true),
        ("Job", status("FailureTarget", "True"), true),
        ("Job", status("Complete", "True"), false),
        ("Job", status("Failed", "True"), false),
        ("Pod", json!({}), true),
        ("Pod", json!({"status": {"phase": "Pending"}}), true),
        ("Pod", json!({"status": {"phase": "Running"}}), true),
        ("Pod", json!({"status": {"phase": "Succeeded"}}), false),
        ("Pod", json!({"status": {"phase": "Failed"}}), false),
        (
            "DaemonSet",
            json!({"metadata": {"deletionTimestamp": null}}),
            true,
        ),
        ("DaemonSet", deleted.clone(), false),
        ("CronJob", deleted.clone(), false),
        ("Pod", deleted.clone(), false),
    ] {
        assert_eq!(may_start(kind, &object), expect, "{kind} {object}");
    }
}

#[test]
fn a_template_becomes_a_pod_of_its_namespace() {
    let pod = pod_of(&template("a:1"), "apps");
    assert_eq!(pod.pointer("/metadata/namespace"), Some(&json!("apps")));
    assert_eq!(pod.pointer("/metadata/labels/app"), Some(&json!("a")));
    assert_eq!(
        pod.pointer("/spec/serviceAccountName"),
        Some(&json!("default"))
    );
    let named = json!({"metadata": null, "spec": {"serviceAccount": "robot"}});
    let pod = pod_of(&named, "apps");
    assert_eq!(
        pod.pointer("/spec/serviceAccountName"),
        Some(&json!("robot"))
    );
}

#[test]
fn api_versions_are_written_as_objects_write_them() {
    let of = |kind: &str| by_name(kind).map(WorkloadKind::api_version);
    assert_eq!(of("Pod").as_deref(), Some("v1"));
    assert_eq!(of("CronJob").as_deref(), Some("batch/v1"));
}
