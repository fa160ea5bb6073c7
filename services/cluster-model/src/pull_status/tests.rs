//! Tables of pods and how far their images are.

use super::*;
use serde_json::json;

fn addresses() -> Vec<String> {
    vec!["10.96.0.50".to_owned()]
}

/// A pod with an init container, two containers and an image volume that `app` mounts.
fn pod(status: Value) -> Value {
    json!({
        "metadata": {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "initContainers": [{"name": "init", "image": "r.io/init:1"}],
            "containers": [
                {"name": "app", "image": "r.io/app:1", "volumeMounts": [{"name": "data", "mountPath": "/d"}]},
                {"name": "side", "image": "10.96.0.50/r.io/side:1"},
            ],
            "volumes": [{"name": "data", "image": {"reference": "r.io/data:1"}}],
        },
        "status": status,
    })
}

fn waiting(name: &str, reason: &str, message: &str) -> Value {
    json!({"name": name, "state": {"waiting": {"reason": reason, "message": message}}})
}

fn read(pod: &Value) -> Option<StuckPod> {
    let all = meaning::of_pod(pod, &addresses());
    let sources = all
        .iter()
        .filter_map(|image| Some(image.meaning.source()?.to_string()))
        .collect();
    stuck_pod(pod, &addresses(), &sources, || true)
}

/// The images by key that are not settled.
fn progress(status: Value) -> Vec<(String, Progress)> {
    let stuck_pod = read(&pod(status));
    stuck_pod
        .into_iter()
        .flat_map(|stuck_pod| stuck_pod.images)
        .filter(|image| image.progress != Progress::Settled)
        .map(|image| (image.key(), image.progress))
        .collect()
}

#[test]
fn a_container_is_stuck_waiting_or_settled_by_its_status() {
    let running = |name: &str| json!({"name": name, "state": {"running": {}}, "restartCount": 0});
    let init_done = json!([{"name": "init", "state": {"terminated": {"exitCode": 0}}}]);
    for (what, app, expect) in [
        (
            "in error",
            waiting("app", "ErrImagePull", ""),
            Some(Progress::Stuck),
        ),
        (
            "in back-off",
            waiting("app", "ImagePullBackOff", ""),
            Some(Progress::Stuck),
        ),
        (
            "being created",
            waiting("app", "ContainerCreating", ""),
            Some(Progress::NotStarted),
        ),
        (
            "after init",
            waiting("app", "PodInitializing", ""),
            Some(Progress::NotStarted),
        ),
        (
            "crashing",
            waiting("app", "CrashLoopBackOff", ""),
            Some(Progress::Crashing),
        ),
        (
            "without its ConfigMap",
            waiting("app", "CreateContainerConfigError", ""),
            None,
        ),
        (
            "with an image that its node lacks and that it never pulls",
            waiting("app", "ErrImageNeverPull", ""),
            Some(Progress::Stuck),
        ),
        ("running", running("app"), None),
        (
            "restarting",
            json!({"name": "app", "restartCount": 2, "state": {"waiting": {"reason": "ContainerCreating"}}}),
            None,
        ),
        (
            "restarting without its image",
            json!({"name": "app", "restartCount": 2, "state": {"waiting": {"reason": "ImagePullBackOff"}}}),
            Some(Progress::Stuck),
        ),
    ] {
        let found = progress(json!({
            "phase": "Pending",
            "initContainerStatuses": init_done,
            "containerStatuses": [app, running("side")],
        }));
        let found = found.iter().find(|(key, _)| key == "containers/app");
        assert_eq!(found.map(|(_, progress)| *progress), expect, "{what}");
    }
}

#[test]
fn a_pod_that_no_kubelet_has_seen_has_not_started() {
    let keys: Vec<_> = progress(json!({}));
    let all = [
        "volumes/data",
        "initContainers/init",
        "containers/app",
        "containers/side",
    ];
    assert_eq!(keys, all.map(|key| (key.to_owned(), Progress::NotStarted)));
}

#[test]
fn an_image_volume_is_at_fault_when_the_kubelet_names_it() {
    for (message, expect) in [
        (
            r#"Back-off pulling image "r.io/data:1": ErrImagePull"#,
            Progress::Stuck,
        ),
        (
            r#"Back-off pulling image "r.io/app:1": not found"#,
            Progress::Settled,
        ),
        (
            r#"Back-off pulling image "r.io/data:12""#,
            Progress::NotStarted,
        ),
        ("rpc error: r.io/data:1: not found", Progress::Stuck),
        ("", Progress::NotStarted),
    ] {
        let status = json!({"phase": "Pending", "containerStatuses": [waiting("app", "ImagePullBackOff", message)]});
        let stuck_pod = read(&pod(status)).unwrap();
        let volume = stuck_pod
            .images
            .iter()
            .find(|image| image.kind == Kind::Volume);
        assert_eq!(volume.unwrap().progress, expect, "{message}");
    }
}

#[test]
fn healthy_pods_and_pods_that_nobody_may_touch_are_no_patients() {
    let stuck =
        json!({"phase": "Pending", "containerStatuses": [waiting("app", "ImagePullBackOff", "")]});
    let change = |pointer: &str, value: Value| {
        let mut pod = pod(stuck.clone());
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[key] = value;
        pod
    };
    let owner = |kind: &str| json!([{"kind": kind, "name": "o", "uid": "x", "controller": true}]);
    for (what, pod, expect) in [
        ("stuck", pod(stuck.clone()), true),
        (
            "owned",
            change("/metadata/ownerReferences", owner("ReplicaSet")),
            true,
        ),
        (
            "of a node",
            change("/metadata/ownerReferences", owner("Node")),
            false,
        ),
        (
            "a mirror",
            change(
                "/metadata/annotations",
                json!({"kubernetes.io/config.mirror": "x"}),
            ),
            false,
        ),
        (
            "opted out",
            change(
                "/metadata/labels",
                json!({"holdfast.dev/rewrite": "disabled"}),
            ),
            false,
        ),
        (
            "our own",
            change(
                "/metadata/labels",
                json!({"app.kubernetes.io/part-of": "holdfast"}),
            ),
            false,
        ),
        (
            "ending",
            change("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")),
            false,
        ),
        ("finished", change("/status/phase", json!("Failed")), false),
        (
            "running",
            change(
                "/status",
                json!({
                    "phase": "Running",
                    "initContainerStatuses": [{"name": "init", "state": {"terminated": {}}}],
                    "containerStatuses": [{"name": "app", "state": {"running": {}}}, {"name": "side", "state": {"running": {}}}],
                }),
            ),
            false,
        ),
    ] {
        assert_eq!(read(&pod).is_some(), expect, "{what}");
    }
}

#[test]
fn a_patient_knows_its_owner_its_originals_and_its_history() {
    let mut pod = pod(json!({"containerStatuses": [waiting("side", "ErrImagePull", "")]}));
    pod["metadata"]["ownerReferences"] = json!([
        {"kind": "Other", "name": "o", "uid": "y"},
        {"kind": "ReplicaSet", "name": "rs", "uid": "x", "controller": true},
    ]);
    pod["metadata"]["annotations"] = json!({
        labels::ORIGINAL_IMAGES: r#"{"containers/side":"r.io/side:1"}"#,
        labels::IMAGE_HISTORY: r#"{"uid":"u","switches":{"containers/side":{"count":3,"last":7}}}"#,
    });
    pod["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    let stuck_pod = read(&pod).unwrap();
    assert_eq!(
        stuck_pod
            .owner
            .as_ref()
            .map(|owner| owner.reference.name.as_str()),
        Some("rs")
    );
    assert_eq!(stuck_pod.history.switches["containers/side"].count, 3);
    assert_eq!(stuck_pod.created, 1_767_225_600);
    let found: Vec<_> = stuck_pod
        .images
        .iter()
        .map(|image| {
            (
                image.name.as_str(),
                image.rewritten,
                image.policy == PullPolicy::Never,
                image.original.as_deref(),
            )
        })
        .collect();
    let expect = [
        ("data", false, false, None),
        ("init", false, false, None),
        ("app", false, true, None),
        ("side", true, false, Some("r.io/side:1")),
    ];
    assert_eq!(found, expect);
}

#[test]
fn a_forged_annotation_makes_no_running_container_a_patient() {
    let running = |name: &str| json!({"name": name, "state": {"running": {}}, "restartCount": 0});
    let mut forged = pod(json!({
        "phase": "Running",
        "initContainerStatuses": [{"name": "init", "state": {"terminated": {"exitCode": 0}}}],
        "containerStatuses": [running("app"), running("side")],
    }));
    forged["spec"]["containers"][0]["image"] = json!("10.1.2.3/r.io/other:1");
    let originals = json!({"containers/app": "r.io/other:1", "containers/side": "r.io/other:1"});
    forged["metadata"]["annotations"] = json!({labels::ORIGINAL_IMAGES: originals.to_string()});
    assert_eq!(read(&forged), None);
    // One that waits is a patient, and it means what its text and the annotation agree on.
    forged["status"] =
        json!({"phase": "Pending", "containerStatuses": [waiting("app", "ErrImagePull", "")]});
    let found = read(&forged).unwrap();
    let app = found.images.iter().find(|image| image.name == "app");
    let app = app.unwrap();
    assert_eq!(
        (app.source.as_str(), app.rewritten, app.local),
        ("r.io/other:1", true, false)
    );
    let side = found.images.iter().find(|image| image.name == "side");
    assert_eq!(side.unwrap().source, "r.io/side:1");
}

#[test]
fn images_of_other_sources_are_nobodys_business() {
    let pod = pod(json!({"containerStatuses": [waiting("app", "ErrImagePull", "")]}));
    let sources = ["r.io/side:1".to_owned()].into();
    let rewritten_only = stuck_pod(&pod, &addresses(), &sources, || true);
    assert_eq!(rewritten_only, None, "side waits to be started, rewritten");
    assert_eq!(
        stuck_pod(&pod, &addresses(), &BTreeSet::new(), || true),
        None
    );
}

/// After a power cut the phase is `Running` while no container runs.
#[test]
fn a_pod_runs_if_it_was_started_and_a_container_runs() {
    let waits = waiting("app", "ErrImagePull", "");
    let side = |state: Value| json!({"name": "side", "state": state});
    for (phase, state, expect) in [
        ("Running", json!({"running": {}}), true),
        (
            "Running",
            json!({"waiting": {"reason": "ErrImagePull"}}),
            false,
        ),
        ("Running", json!({"terminated": {"exitCode": 137}}), false),
        // A container beside the one that waits may run in a pod that never was.
        ("Pending", json!({"running": {}}), false),
    ] {
        let statuses = json!([waits, side(state.clone())]);
        let found = read(&pod(json!({"phase": phase, "containerStatuses": statuses})));
        assert_eq!(
            found.map(|pod| pod.running),
            Some(expect),
            "{phase} {state}"
        );
    }
}

/// The kubelet reports the image of a volume at the container that mounts it. The container's own
/// image then only waits: to change its name helps nothing.
#[test]
fn a_container_is_not_stuck_for_the_image_of_its_volume() {
    for (message, expect) in [
        (
            r#"failed to pull image "r.io/data:1": gone"#,
            Progress::NotStarted,
        ),
        (
            r#"failed to pull image "r.io/app:1": gone"#,
            Progress::Stuck,
        ),
        ("pull QPS exceeded", Progress::Stuck),
    ] {
        let app = waiting("app", "ErrImagePull", message);
        let found = progress(json!({"phase": "Running", "containerStatuses": [app]}));
        let found = found.iter().find(|(key, _)| key == "containers/app");
        assert_eq!(
            found.map(|(_, progress)| *progress),
            Some(expect),
            "{message}"
        );
    }
}
