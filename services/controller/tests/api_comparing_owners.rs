//! Owners that compare images, against a real API server: they are recognized and excluded, and a
//! new leader keeps the exclusion.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, a test ends by them"
)]

mod bare;

use bare::{Bare, Registry, eventually, run};
use holdfast_api::labels;
use holdfast_api::state::{ClusterState, KEY, OwnerExclusion};
use holdfast_controller::Context;
use holdfast_healing::{Healing, Policy};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const IMAGE: &str = "registry.example/team/db:1";

fn context(bare: &Bare) -> Context {
    let mut context = bare.context_with(&json!({"webhook": {"waitForNodes": false}}));
    context.healing = Arc::new(Healing::new(Policy {
        grace: 1,
        ..context.healing.policy
    }));
    context
}

async fn state(bare: &Bare) -> Option<ClusterState> {
    let maps: Api<ConfigMap> = Api::namespaced(bare.client.clone(), bare::NAMESPACE);
    let map = maps.get_opt("holdfast-state").await.unwrap()?;
    serde_json::from_str(&map.data?[KEY]).ok()
}

async fn excluded(bare: &Bare) -> Vec<OwnerExclusion> {
    let state = state(bare).await;
    state.map(|state| state.excluded_owners).unwrap_or_default()
}

/// A pod of an owner, or of nothing, with its image rewritten to `local` if that is given.
async fn create(bare: &Bare, name: &str, owner: Option<&ConfigMap>, local: Option<&str>) {
    let annotations = local.map(|_| {
        let originals = json!({"containers/db": IMAGE}).to_string();
        json!({labels::ORIGINAL_IMAGES: originals})
    });
    let owners: Vec<Value> = owner
        .map(|owner| {
            let (name, uid) = (&owner.metadata.name, &owner.metadata.uid);
            json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "controller": true})
        })
        .into_iter()
        .collect();
    let pod = json!({
        "metadata": {"name": name, "annotations": annotations, "ownerReferences": owners},
        "spec": {"containers": [{"name": "db", "image": local.unwrap_or(IMAGE)}]},
    });
    bare.create::<Pod>("apps", pod).await;
}

/// Has the kubelet say that it cannot pull.
async fn stuck(bare: &Bare, name: &str) {
    let status = json!({"status": {"phase": "Pending", "containerStatuses": [{
        "name": "db", "ready": false, "restartCount": 0, "image": "", "imageID": "",
        "state": {"waiting": {"reason": "ImagePullBackOff"}},
    }]}});
    pods(bare)
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
}

fn pods(bare: &Bare) -> Api<Pod> {
    Api::namespaced(bare.client.clone(), "apps")
}

async fn image(bare: &Bare, name: &str) -> String {
    let pod = pods(bare).get(name).await.unwrap();
    pod.spec.unwrap().containers[0].image.clone().unwrap()
}

async fn told(bare: &Bare, kind: &str, name: &str) {
    let events: Api<Event> = Api::namespaced(bare.client.clone(), "apps");
    eventually(&format!("OwnerExcluded on {kind} {name}"), async || {
        let events = events.list(&ListParams::default()).await.unwrap().items;
        events.iter().any(|event| {
            let regarding = event.regarding.clone().unwrap_or_default();
            event.reason.as_deref() == Some("OwnerExcluded")
                && regarding.kind.as_deref() == Some(kind)
                && regarding.name.as_deref() == Some(name)
        })
    })
    .await;
}

#[tokio::test]
async fn an_owner_that_deletes_rewritten_pods_is_excluded_and_stays_so() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    bare.namespace("apps").await;
    let local = format!("{}/{IMAGE}", bare.registry_service().await);
    let running = run(&context(&bare), &registry);
    eventually("rewriting begins", async || {
        state(&bare).await.is_some_and(|state| state.rewrite)
    })
    .await;
    // The watch of pods begins again when the address changes, and misses deletions until then.
    create(&bare, "seen", None, None).await;
    eventually("the watch of pods knows the address", async || {
        image(&bare, "seen").await == local
    })
    .await;
    let owner = |name: &str| json!({"metadata": {"name": name}});
    let comparing: ConfigMap = bare.create("apps", owner("comparing")).await;
    let other: ConfigMap = bare.create("apps", owner("other")).await;
    for number in 0..3 {
        assert!(excluded(&bare).await.is_empty(), "after {number}");
        let name = format!("db-{number}");
        create(&bare, &name, Some(&comparing), Some(&local)).await;
        create(&bare, &format!("original-{number}"), Some(&other), None).await;
        for name in [name, format!("original-{number}")] {
            let deleted = pods(&bare).delete(&name, &DeleteParams::default()).await;
            deleted.unwrap();
        }
    }
    eventually("the webhook learns of it", async || {
        !excluded(&bare).await.is_empty()
    })
    .await;
    told(&bare, "ConfigMap", "comparing").await;
    told(&bare, "Pod", "db-2").await;
    let entries = excluded(&bare).await;
    let owners: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(owners, ["comparing"]);

    drop(running);
    let _running = run(&context(&bare), &registry);
    create(&bare, "of-comparing", Some(&comparing), None).await;
    create(&bare, "of-other", Some(&other), None).await;
    stuck(&bare, "of-comparing").await;
    stuck(&bare, "of-other").await;
    eventually("pods of other owners are healed", async || {
        image(&bare, "of-other").await == local
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(image(&bare, "of-comparing").await, IMAGE);
    assert_eq!(excluded(&bare).await, entries, "a new leader keeps it");
}
