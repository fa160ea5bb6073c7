//! Healing against a real API server without nodes: what a kubelet would say is written into the
//! pods' status by hand.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, a test ends by them"
)]

mod bare;

use bare::{Bare, Registry, Running, eventually, run};
use holdfast_api::history::ImageHistory;
use holdfast_api::labels;
use holdfast_api::state::{ClusterState, KEY};
use holdfast_api::{Artifact, artifact_name};
use holdfast_healing::unfillable::Proof;
use holdfast_healing::{Healing, Policy};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const IMAGE: &str = "registry.example/team/app:1";

/// A cluster with a registry that answers as told, and a controller that heals without waiting.
struct Snapshot {
    bare: Bare,
    registry: Registry,
    local: String,
    _running: Running,
}

impl Snapshot {
    async fn start() -> Self {
        let (bare, registry) = (Bare::start().await, Registry::start().await);
        bare.namespace("apps").await;
        let address = bare.registry_service().await;
        // No node ever gets ready here.
        let mut context = bare.context_with(&json!({"webhook": {"waitForNodes": false}}));
        context.healing = Arc::new(Healing::new(Policy {
            proof: Proof {
                seconds: 1,
                tries: 2,
            },
            grace: 5,
            confirmation_ttl: Duration::from_secs(4),
            ..context.healing.policy
        }));
        let running = run(&context, &registry);
        Self {
            bare,
            registry,
            local: format!("{address}/{IMAGE}"),
            _running: running,
        }
    }

    /// From now on the upstream wants credentials that nobody brings.
    fn refuse(&self) {
        *self.registry.answer.lock().unwrap() = Box::new(|_| {
            let body = r#"{"code":"UNAUTHORIZED","message":"no credential was accepted"}"#;
            (403, body.to_owned())
        });
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.bare.client.clone(), "apps")
    }

    /// Creates a pod with this image in its container `app`, changed by `extra`.
    async fn create(&self, name: &str, image: &str, extra: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "side", "image": "registry.example/side:1"}, {"name": "app", "image": image}]},
        });
        json_patch::merge(&mut pod, &extra);
        self.bare.create("apps", pod).await
    }

    /// Has the kubelet say that `app` waits for its image while `side` runs.
    async fn stuck(&self, name: &str, message: &str) {
        let container = |name: &str, state: Value| json!({"name": name, "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": state});
        let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": message}});
        let status = json!({"status": {"phase": "Pending", "containerStatuses": [
            container("side", json!({"running": {}})), container("app", waiting)]}});
        self.pods()
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
    }

    async fn images(&self, name: &str) -> Vec<String> {
        let pod = self.pods().get(name).await.unwrap();
        let containers = pod.spec.unwrap().containers;
        containers
            .into_iter()
            .filter_map(|container| container.image)
            .collect()
    }

    async fn becomes(&self, name: &str, image: &str) {
        eventually(&format!("{name} has {image}"), async || {
            self.images(name).await.get(1).is_some_and(|it| it == image)
        })
        .await;
    }

    async fn annotation(&self, name: &str, key: &str) -> Option<String> {
        let pod = self.pods().get(name).await.unwrap();
        pod.metadata.annotations?.remove(key)
    }

    /// The reasons of the events on a pod.
    async fn events(&self, name: &str) -> Vec<String> {
        let events: Api<Event> = Api::namespaced(self.bare.client.clone(), "apps");
        let events = events.list(&ListParams::default()).await.unwrap().items;
        events
            .into_iter()
            .filter(|event| {
                let regarding = event.regarding.as_ref();
                regarding.is_some_and(|it| {
                    it.name.as_deref() == Some(name) && it.kind.as_deref() == Some("Pod")
                })
            })
            .filter_map(|event| event.reason)
            .collect()
    }

    async fn told(&self, name: &str, reason: &str) {
        eventually(&format!("{reason} on {name}"), async || {
            self.events(name).await.iter().any(|it| it == reason)
        })
        .await;
    }

    async fn excluded(&self) -> Vec<String> {
        let maps: Api<ConfigMap> = Api::namespaced(self.bare.client.clone(), bare::NAMESPACE);
        let Some(map) = maps.get_opt("holdfast-state").await.unwrap() else {
            return Vec::new();
        };
        let state: ClusterState = serde_json::from_str(&map.data.unwrap()[KEY]).unwrap();
        let sources = state.excluded.into_iter();
        sources.map(|entry| entry.source).collect()
    }
}

#[tokio::test]
async fn a_pod_that_slipped_past_the_webhook_gets_the_local_image() {
    let site = Snapshot::start().await;
    site.create(
        "app",
        IMAGE,
        json!({"metadata": {"annotations": {"theirs": "kept"}}}),
    )
    .await;
    site.create(
        "opted-out",
        IMAGE,
        json!({"metadata": {"labels": {"holdfast.dev/rewrite": "disabled"}}}),
    )
    .await;
    site.stuck("app", "").await;
    site.stuck("opted-out", "").await;
    site.becomes("app", &site.local).await;
    assert_eq!(
        site.images("app").await[0],
        "registry.example/side:1",
        "what runs is not restarted"
    );
    assert_eq!(
        site.annotation("app", labels::ORIGINAL_IMAGES)
            .await
            .unwrap(),
        json!({"containers/app": IMAGE}).to_string()
    );
    assert_eq!(site.annotation("app", "theirs").await.unwrap(), "kept");
    site.told("app", "ImageHealed").await;
    // Nobody has looked at it yet, and it has had its time.
    site.create("unscheduled", IMAGE, json!({})).await;
    site.becomes("unscheduled", &site.local).await;
    assert_eq!(site.images("opted-out").await[1], IMAGE);
}

#[tokio::test]
async fn an_unfillable_image_is_restored_and_rewritten_once_it_is_local() {
    let site = Snapshot::start().await;
    site.refuse();
    let annotation = json!({"metadata": {"annotations": {
        labels::ORIGINAL_IMAGES: json!({"containers/app": IMAGE}).to_string()}}});
    site.create("app", &site.local, annotation).await;
    site.stuck("app", "").await;
    site.becomes("app", IMAGE).await;
    assert_eq!(site.annotation("app", labels::ORIGINAL_IMAGES).await, None);
    site.told("app", "ImageRestored").await;
    eventually("the webhook hears of it", async || {
        site.excluded().await == [IMAGE]
    })
    .await;
    // The kubelet cannot pull it either; then a credential turns up.
    site.stuck("app", "").await;
    *site.registry.answer.lock().unwrap() = Box::new(|_| bare::copied());
    eventually("it is rewritten again", async || {
        site.excluded().await.is_empty()
    })
    .await;
    site.becomes("app", &site.local).await;
}

#[tokio::test]
async fn who_sets_the_image_back_again_is_answered_at_growing_intervals() {
    let site = Snapshot::start().await;
    site.create("app", IMAGE, json!({})).await;
    for _ in 0..2 {
        site.stuck("app", "").await;
        site.becomes("app", &site.local).await;
        let back = json!({"spec": {"containers": [{"name": "app", "image": IMAGE}]}});
        site.pods()
            .patch("app", &PatchParams::default(), &Patch::Strategic(back))
            .await
            .unwrap();
    }
    site.stuck("app", "").await;
    // The next change comes 30 s after the last.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(site.images("app").await[1], IMAGE);
    let pod = site.pods().get("app").await.unwrap();
    let history = ImageHistory::of(&serde_json::to_value(&pod).unwrap());
    assert_eq!(history.switches["containers/app"].count, 2, "{history:?}");
}

#[tokio::test]
async fn pods_with_an_image_volume_are_evicted_only_with_an_owner() {
    let site = Snapshot::start().await;
    let volume = |owner: Value| {
        json!({
            "metadata": {"ownerReferences": owner},
            "spec": {
                "containers": [
                    {"name": "side", "image": "registry.example/side:1"},
                    {"name": "app", "image": site.local, "volumeMounts": [{"name": "data", "mountPath": "/data"}]},
                ],
                "volumes": [{"name": "data", "image": {"reference": IMAGE}}],
            },
        })
    };
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "b3c1", "controller": true}]);
    site.create("owned", IMAGE, volume(owner)).await;
    site.create("bare", IMAGE, volume(json!(null))).await;
    let message = format!("Back-off pulling image \"{IMAGE}\": ErrImagePull");
    site.stuck("owned", &message).await;
    site.stuck("bare", &message).await;
    eventually("the owned pod goes", async || {
        let pod = site.pods().get_opt("owned").await.unwrap();
        pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
    })
    .await;
    site.told("owned", "PodRecreated").await;
    site.told("bare", "CannotHeal").await;
    let bare = site.pods().get("bare").await.unwrap();
    assert_eq!(bare.metadata.deletion_timestamp, None);
}

#[tokio::test]
async fn a_pod_that_runs_ends_the_pause_of_its_artifact() {
    let site = Snapshot::start().await;
    *site.registry.answer.lock().unwrap() = Box::new(|request| {
        if request.source == IMAGE {
            let body =
                r#"{"code":"UPSTREAM_INVALID","message":"a layer does not match its digest"}"#;
            (502, body.to_owned())
        } else {
            bare::copied()
        }
    });
    site.create("app", &site.local, json!({})).await;
    let asked = || {
        let sources = site.registry.sources();
        sources.iter().filter(|source| *source == IMAGE).count()
    };
    // 2, 4, 8 seconds: the next one would come after 16.
    eventually("the pause has grown", async || asked() >= 4).await;
    let before = asked();
    let running = json!({"status": {"phase": "Running", "containerStatuses": [
        {"name": "app", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}}]}});
    site.pods()
        .patch_status("app", &PatchParams::default(), &Patch::Merge(running))
        .await
        .unwrap();
    let begun = std::time::Instant::now();
    eventually("it is asked for again", async || asked() > before).await;
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_pod_is_not_sent_to_a_registry_that_lost_the_image() {
    let site = Snapshot::start().await;
    let artifact = || async {
        let all: Api<Artifact> = Api::namespaced(site.bare.client.clone(), "apps");
        let found = all.get_opt(&artifact_name(IMAGE)).await.unwrap();
        let ready = found.as_ref().and_then(Artifact::ready);
        ready.map(|ready| (ready.status.clone(), ready.reason.clone()))
    };
    let is = async |status: &str, reason: &str| {
        let expect = Some((status.to_owned(), reason.to_owned()));
        eventually(&format!("the Artifact is {reason}"), async || {
            artifact().await == expect
        })
        .await;
    };
    site.create("first", &site.local, json!({})).await;
    is("True", "Copied").await;
    // The volume is lost, and the upstream is away.
    *site.registry.answer.lock().unwrap() = Box::new(|_| {
        let body = r#"{"code":"UPSTREAM_UNAVAILABLE","message":"no route to host"}"#;
        (502, body.to_owned())
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    site.create("app", IMAGE, json!({})).await;
    site.stuck("app", "").await;
    is("False", "UpstreamUnavailable").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(site.images("app").await[1], IMAGE, "it keeps its reference");
    *site.registry.answer.lock().unwrap() = Box::new(|_| bare::copied());
    site.becomes("app", &site.local).await;
    is("True", "Copied").await;
}
