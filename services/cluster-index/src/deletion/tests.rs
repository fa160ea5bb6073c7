//! Which deletions count.

use super::*;
use serde_json::{Value, json};

const ADDRESS: &str = "10.96.0.50";
const LOCAL: &str = "10.96.0.50/r.io/db:1";

/// A pod of an operator, 5 s after its creation at second 100, and deleted with a grace of 30 s.
fn pod() -> Value {
    json!({
        "metadata": {
            "name": "db-1", "namespace": "apps", "uid": "p",
            "creationTimestamp": "1970-01-01T00:01:40Z",
            "deletionTimestamp": "1970-01-01T00:02:15Z",
            "deletionGracePeriodSeconds": 30,
            "annotations": {"holdfast.dev/original-images": r#"{"containers/db":"r.io/db:1"}"#},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"},
                {"apiVersion": "db.io/v1", "kind": "Cluster", "name": "db", "uid": "o", "controller": true},
            ],
        },
        "spec": {"containers": [{"name": "db", "image": LOCAL}]},
        "status": {
            "phase": "Pending",
            "containerStatuses": [{
                "name": "db", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ContainerCreating"}},
            }],
        },
    })
}

fn of(pod: Value) -> Option<Deletion> {
    let pod: Pod = serde_json::from_value(pod).unwrap();
    Deletion::of(&pod, &[ADDRESS.to_owned()], 500)
}

#[test]
fn a_deletion_names_the_owner_the_sources_and_the_times() {
    let found = of(pod()).unwrap();
    assert_eq!(found.owner.reference.name, "db");
    assert_eq!((found.created, found.requested), (100, 105));
    assert_eq!(found.sources, ["r.io/db:1".to_owned()].into());
    let mut forced = pod();
    forced["metadata"]["deletionTimestamp"] = Value::Null;
    assert_eq!(of(forced).unwrap().requested, 500, "no request is recorded");
}

/// A change of the pod, and whether its deletion counts then.
fn check(what: &str, counts: bool, change: impl FnOnce(&mut Value)) {
    let mut pod = pod();
    change(&mut pod);
    assert_eq!(of(pod).is_some(), counts, "{what}");
}

#[test]
fn only_owners_that_may_compare_images_count() {
    for (api_version, kind, counts) in [
        ("db.io/v1", "Cluster", true),
        ("operators.coreos.com/v1alpha1", "CatalogSource", true),
        ("apps.kruise.io/v1beta1", "StatefulSet", true),
        ("v1", "ConfigMap", true),
        ("apps/v1", "ReplicaSet", false),
        ("apps/v1", "StatefulSet", false),
        ("apps/v1", "DaemonSet", false),
        ("batch/v1", "Job", false),
        ("v1", "ReplicationController", false),
        ("v1", "Node", false),
    ] {
        check(kind, counts, |pod| {
            pod["metadata"]["ownerReferences"][1]["apiVersion"] = json!(api_version);
            pod["metadata"]["ownerReferences"][1]["kind"] = json!(kind);
        });
    }
    check("no controller", false, |pod| {
        pod["metadata"]["ownerReferences"][1]["controller"] = json!(false);
    });
    check("a long kind", false, |pod| {
        pod["metadata"]["ownerReferences"][1]["kind"] = json!("k".repeat(MAX_KIND_BYTES + 1));
    });
    check("a long name", false, |pod| {
        pod["metadata"]["ownerReferences"][1]["name"] = json!("n".repeat(MAX_NAME_BYTES + 1));
    });
}

#[test]
fn only_rewritten_images_count() {
    check("the original", false, |pod| {
        pod["spec"]["containers"][0]["image"] = json!("r.io/db:1");
    });
    check("the owner names the registry itself", false, |pod| {
        pod["metadata"]["annotations"] = json!({});
    });
    check("an image that a client pushed", false, |pod| {
        pod["spec"]["containers"][0]["image"] = json!("10.96.0.50/own/db:1");
    });
}

#[test]
fn deletions_with_another_cause_do_not_count() {
    fn container(pod: &mut Value) -> &mut Value {
        &mut pod["status"]["containerStatuses"][0]
    }
    check("evicted", false, |pod| {
        pod["status"]["conditions"] = json!([
            {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"},
        ]);
    });
    check("unschedulable", false, |pod| {
        pod["status"]["conditions"] =
            json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]);
    });
    for phase in ["Succeeded", "Failed"] {
        check(phase, false, |pod| pod["status"]["phase"] = json!(phase));
    }
    for reason in [
        "CrashLoopBackOff",
        "ErrImagePull",
        "CreateContainerConfigError",
    ] {
        check(reason, false, |pod| {
            container(pod)["state"]["waiting"]["reason"] = json!(reason);
        });
    }
    check("restarted", false, |pod| {
        container(pod)["restartCount"] = json!(1);
    });
    check("ended", false, |pod| {
        container(pod)["state"] = json!({"terminated": {"exitCode": 0}});
    });
    check("an init container that failed", false, |pod| {
        let mut init = container(pod).clone();
        init["state"] = json!({"terminated": {"exitCode": 1}});
        pod["status"]["initContainerStatuses"] = json!([init]);
    });
    check("an init container that ended", true, |pod| {
        let mut init = container(pod).clone();
        init["state"] = json!({"terminated": {"exitCode": 0}});
        pod["status"]["initContainerStatuses"] = json!([init]);
    });
    check("no status", true, |pod| pod["status"] = json!({}));
}

#[test]
fn a_pod_that_has_run_does_not_count() {
    // Deleted at second 105.
    for (started, counts) in [
        ("1970-01-01T00:00:46Z", true),
        ("1970-01-01T00:00:45Z", false),
    ] {
        check(started, counts, |pod| {
            pod["status"]["containerStatuses"][0]["state"] =
                json!({"running": {"startedAt": started}});
        });
    }
}
