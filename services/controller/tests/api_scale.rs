//! Adoption at the size of a large site, measured: 5,000 pods of 500 images, their ReplicaSets and Deployments, against a
//! real API server and a registry that answers at once. Takes minutes, so it runs only when asked for:
//! `cargo test --workspace --features holdfast-controller/apiserver --test api_scale -- --ignored --nocapture`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement prints what it found"
)]

mod bare;

use bare::{Bare, Registry, run};
use futures::{StreamExt as _, stream};
use holdfast_api::Artifact;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const IMAGES: usize = 500;
const PODS: usize = 5000;
const NAMESPACES: usize = 10;
/// Requests of the test itself at a time.
const AT_ONCE: usize = 24;
/// The most memory that the whole process may have, bytes: the controller, and this test beside it.
const MEMORY: u64 = 200 << 20;

fn namespace(image: usize) -> String {
    format!("apps-{}", image % NAMESPACES)
}

fn spec(image: usize) -> Value {
    json!({"containers": [{
        "name": "c",
        "image": format!("registry.example/team/app-{image}:1"),
        // As much as a real pod carries along.
        "env": (0..20).map(|n| json!({"name": format!("SETTING_{n}"), "value": "x".repeat(60)})).collect::<Vec<_>>(),
    }]})
}

fn template(image: usize) -> Value {
    json!({"metadata": {"labels": {"app": format!("app-{image}")}}, "spec": spec(image)})
}

async fn post<K>(bare: &Bare, namespace: &str, object: Value) -> String
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object).unwrap();
    let api: Api<K> = Api::namespaced(bare.client.clone(), namespace);
    let made = api.create(&PostParams::default(), &object).await.unwrap();
    made.meta().uid.clone().unwrap()
}

/// A Deployment and its ReplicaSet; the ReplicaSet's UID.
async fn owners(bare: &Bare, image: usize) -> String {
    let (name, namespace) = (format!("app-{image}"), namespace(image));
    let selector = json!({"matchLabels": {"app": name}});
    let deployment = json!({"metadata": {"name": name}, "spec": {"selector": selector, "template": template(image)}});
    let uid = post::<Deployment>(bare, &namespace, deployment).await;
    let above = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": name, "uid": uid, "controller": true});
    let set = json!({
        "metadata": {"name": format!("{name}-1"), "ownerReferences": [above]},
        "spec": {"selector": selector, "template": template(image)},
    });
    post::<ReplicaSet>(bare, &namespace, set).await
}

async fn pod(bare: &Bare, number: usize, sets: &[String]) {
    let image = number % IMAGES;
    let above = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("app-{image}-1"), "uid": sets[image], "controller": true,
    });
    let object = json!({
        "metadata": {"name": format!("pod-{number}"), "labels": {"app": format!("app-{image}")}, "ownerReferences": [above]},
        "spec": spec(image),
    });
    post::<Pod>(bare, &namespace(image), object).await;
}

/// A number of `/proc/self/status`, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let words = line.unwrap().split_whitespace().nth(1).unwrap();
    words.parse::<u64>().unwrap() << 10
}

/// Requests that the API server has answered, by verb and resource.
async fn requests(bare: &Bare) -> BTreeMap<String, f64> {
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let text = bare.client.request_text(request).await.unwrap();
    let label = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("{name}=\"")).unwrap_or_default();
        rest.split('"').next().unwrap_or_default().to_owned()
    };
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let Some(line) = line.strip_prefix("apiserver_request_total{") else {
            continue;
        };
        let count = line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        let resource = [label(line, "resource"), label(line, "subresource")].join("/");
        let key = format!("{} {}", label(line, "verb"), resource.trim_end_matches('/'));
        *found.entry(key).or_default() += count;
    }
    found
}

fn since(before: &BTreeMap<String, f64>, now: &BTreeMap<String, f64>) -> Vec<(String, f64)> {
    let more = now.iter().map(|(key, count)| {
        let earlier = before.get(key).copied().unwrap_or_default();
        (key.clone(), count - earlier)
    });
    let mut more: Vec<_> = more.filter(|(_, count)| *count > 0.0).collect();
    more.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    more
}

async fn copied(bare: &Bare) -> usize {
    let api: Api<Artifact> = Api::all(bare.client.clone());
    let list = api.list(&ListParams::default()).await.unwrap().items;
    let ready = |artifact: &&Artifact| {
        let status = artifact.status.as_ref();
        status.is_some_and(|it| it.conditions.iter().any(|one| one.reason == "Copied"))
    };
    list.iter().filter(ready).count()
}

// SPEC 41
#[tokio::test]
#[ignore = "takes minutes; it measures"]
async fn five_thousand_pods_of_five_hundred_images_are_adopted_in_bounded_memory() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    for number in 0..NAMESPACES {
        bare.namespace(&namespace(number)).await;
    }
    let sets: Vec<String> = stream::iter(0..IMAGES)
        .map(|image| owners(&bare, image))
        .buffered(AT_ONCE)
        .collect()
        .await;
    stream::iter(0..PODS)
        .for_each_concurrent(AT_ONCE, |number| pod(&bare, number, &sets))
        .await;

    let (before, begun, at_rest) = (requests(&bare).await, Instant::now(), resident());
    let _running = run(&bare.context(), &registry);
    let mut most = at_rest;
    // Looking is a list of all Artifacts, and costs this process memory, too: rarely.
    let mut next_look = Instant::now() + Duration::from_secs(1);
    loop {
        most = most.max(resident());
        if Instant::now() >= next_look {
            if copied(&bare).await == IMAGES {
                break;
            }
            next_look = Instant::now() + Duration::from_secs(1);
        }
        assert!(begun.elapsed().as_secs() < 300, "not adopted in 300 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = begun.elapsed();
    let asked = registry.sources().len();
    println!("{PODS} pods of {IMAGES} images adopted in {took:.1?}");
    println!("fill requests: {asked}");
    println!(
        "memory: {} MiB before, {} MiB at most",
        at_rest >> 20,
        most >> 20
    );
    for (key, count) in since(&before, &requests(&bare).await) {
        println!("  {count:6.0} {key}");
    }
    assert_eq!(asked, IMAGES, "each image is asked for once");
    assert!(most < MEMORY, "{} MiB", most >> 20);

    // A thousand pods go and come in a minute; a third of a minute is measured.
    let (before, begun) = (requests(&bare).await, Instant::now());
    let mut number = 0;
    let mut tick = tokio::time::interval(Duration::from_millis(60));
    while begun.elapsed() < Duration::from_secs(20) {
        tick.tick().await;
        let api: Api<Pod> = Api::namespaced(bare.client.clone(), &namespace(number % IMAGES));
        let now = DeleteParams::default().grace_period(0);
        api.delete(&format!("pod-{number}"), &now).await.unwrap();
        pod(&bare, number, &sets).await;
        number += 1;
        most = most.max(resident());
    }
    println!(
        "{number} pods replaced in {:.1?}, {} MiB at most",
        begun.elapsed(),
        most >> 20
    );
    for (key, count) in since(&before, &requests(&bare).await) {
        println!("  {count:6.0} {key}");
    }
    assert_eq!(registry.sources().len(), IMAGES, "churn asks for nothing");
    assert!(most < MEMORY, "{} MiB", most >> 20);
}
