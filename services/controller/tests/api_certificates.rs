//! Certificates and the shared state against a real API server.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bare;

use bare::{Bare, Registry};
use holdfast_api::artifact::Reason;
use holdfast_api::fill::{FillRequest, Priority};
use holdfast_api::state::{ClusterState, KEY, NodeState};
use holdfast_controller::artifacts::fill::Client;
use holdfast_controller::{certificates, state};
use holdfast_runtime::tls::{ClientAuth, ServerTls, TlsFiles};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use std::collections::BTreeMap;

const OURS: [&str; 6] = [
    "holdfast-ca",
    "holdfast-registry-tls",
    "holdfast-webhook-tls",
    "holdfast-controller-tls",
    "holdfast-node-agent-tls",
    "holdfast-registry-auth",
];

async fn versions(secrets: &Api<Secret>) -> BTreeMap<String, Option<String>> {
    let mut versions = BTreeMap::new();
    for name in OURS {
        versions.insert(
            name.to_owned(),
            secrets.get(name).await.unwrap().metadata.resource_version,
        );
    }
    versions
}

// SPEC 32, SPEC 33
#[tokio::test]
async fn certificates_are_made_once_and_stay() {
    let bare = Bare::start().await;
    bare.registry_service().await;
    let context = bare.context();
    certificates::round(&context).await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(bare.client.clone(), bare::NAMESPACE);
    let first = versions(&secrets).await;
    // Another process, as after a restart or an upgrade.
    let again = bare.context();
    certificates::round(&again).await.unwrap();
    assert_eq!(
        versions(&secrets).await,
        first,
        "a second process writes nothing"
    );
    assert!(again.issued.client().is_some());
    let all: Api<Secret> = Api::all(bare.client.clone());
    for secret in all.list(&kube::api::ListParams::default()).await.unwrap() {
        let name = secret.metadata.name.unwrap_or_default();
        assert!(OURS.contains(&name.as_str()), "{name} is not one of ours");
    }

    secrets
        .delete("holdfast-webhook-tls", &DeleteParams::default())
        .await
        .unwrap();
    certificates::round(&again).await.unwrap();
    let healed = versions(&secrets).await;
    let changed: Vec<_> = OURS
        .iter()
        .filter(|name| healed[**name] != first[**name])
        .collect();
    assert_eq!(
        changed,
        [&"holdfast-webhook-tls"],
        "only what was missing is made"
    );
}

#[tokio::test]
async fn a_secret_that_cannot_be_written_does_not_hold_up_the_others() {
    let bare = Bare::start().await;
    bare.registry_service().await;
    let context = bare.context();
    let secrets: Api<Secret> = Api::namespaced(bare.client.clone(), bare::NAMESPACE);
    let stuck = "holdfast-registry-tls";
    let immutable = Secret {
        metadata: ObjectMeta {
            name: Some(stuck.to_owned()),
            ..ObjectMeta::default()
        },
        immutable: Some(true),
        ..Secret::default()
    };
    let created = secrets.create(&PostParams::default(), &immutable).await;
    created.unwrap();
    certificates::round(&context).await.unwrap_err();
    for name in OURS {
        let secret = secrets.get(name).await.unwrap();
        assert_eq!(secret.data.is_none(), name == stuck, "{name}");
    }
    assert!(context.issued.client().is_some());

    secrets
        .delete(stuck, &DeleteParams::default())
        .await
        .unwrap();
    certificates::round(&context).await.unwrap();
    assert!(secrets.get(stuck).await.unwrap().data.is_some());
}

// SPEC 32
#[tokio::test]
async fn a_reset_ca_bundle_is_patched_again_and_nothing_else() {
    let bare = Bare::start().await;
    let api: Api<MutatingWebhookConfiguration> = Api::all(bare.client.clone());
    let webhooks = ["pods.holdfast.dev", "ephemeral.holdfast.dev"].map(|name| {
        json!({
            "name": name,
            "admissionReviewVersions": ["v1"],
            "sideEffects": "NoneOnDryRun",
            "failurePolicy": "Ignore",
            "timeoutSeconds": 5,
            "rules": [],
            "clientConfig": {"service": {"name": "holdfast-webhook", "namespace": bare::NAMESPACE, "path": "/mutate"}},
        })
    });
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "holdfast-webhook"},
        "webhooks": webhooks,
    });
    api.create(
        &PostParams::default(),
        &serde_json::from_value(configuration).unwrap(),
    )
    .await
    .unwrap();
    let context = bare.context();
    certificates::round(&context).await.unwrap();
    let bundle = context.issued.bundle.borrow().clone();
    let check = async || {
        for webhook in api.get("holdfast-webhook").await.unwrap().webhooks.unwrap() {
            assert_eq!(
                webhook.client_config.ca_bundle.unwrap().0,
                bundle.as_bytes()
            );
            assert_eq!(webhook.timeout_seconds, Some(5));
            assert_eq!(
                webhook.client_config.service.unwrap().path.as_deref(),
                Some("/mutate")
            );
        }
    };
    check().await;
    let reset =
        json!({"webhooks": [{"name": "pods.holdfast.dev", "clientConfig": {"caBundle": null}}]});
    api.patch(
        "holdfast-webhook",
        &PatchParams::default(),
        &Patch::Strategic(reset),
    )
    .await
    .unwrap();
    certificates::round(&context).await.unwrap();
    check().await;
}

#[tokio::test]
async fn the_shared_state_is_written_and_then_left_alone() {
    let bare = Bare::start().await;
    let address = bare.registry_service().await;
    let context = bare.context();
    certificates::round(&context).await.unwrap();
    state::round(&context).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(bare.client.clone(), bare::NAMESPACE);
    let secrets: Api<Secret> = Api::namespaced(bare.client.clone(), bare::NAMESPACE);
    let map = maps.get("holdfast-state").await.unwrap();
    let cluster: ClusterState = serde_json::from_str(&map.data.as_ref().unwrap()[KEY]).unwrap();
    assert_eq!(
        (cluster.registry_address.as_str(), cluster.rewrite),
        (address.as_str(), false)
    );
    let secret = secrets.get("holdfast-node").await.unwrap();
    let node: NodeState = serde_json::from_slice(&secret.data.as_ref().unwrap()[KEY].0).unwrap();
    assert_eq!(
        node.hosts[0].endpoints[1],
        format!("https://{address}:5000")
    );
    assert_eq!(node.ca, *context.issued.bundle.borrow());
    state::round(&context).await.unwrap();
    assert_eq!(
        maps.get("holdfast-state")
            .await
            .unwrap()
            .metadata
            .resource_version,
        map.metadata.resource_version
    );
    assert_eq!(
        secrets
            .get("holdfast-node")
            .await
            .unwrap()
            .metadata
            .resource_version,
        secret.metadata.resource_version
    );
}

// SPEC 32
#[tokio::test]
async fn a_controller_outside_its_cluster_reaches_the_registry_by_address() {
    let bare = Bare::start().await;
    bare.registry_service().await;
    let mut context = bare.context();
    certificates::round(&context).await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(bare.client.clone(), bare::NAMESPACE);
    for (secret, expect) in [
        ("holdfast-registry-tls", Ok(())),
        // Of the same authority, but no registry's.
        ("holdfast-webhook-tls", Err(Reason::RegistryUnavailable)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for (file, bytes) in secrets.get(secret).await.unwrap().data.unwrap() {
            std::fs::write(folder.path().join(file), bytes.0).unwrap();
        }
        let files = TlsFiles::in_folder(folder.path(), ClientAuth::Required);
        let registry = Registry::start_with(Some(ServerTls::from_files(files).unwrap())).await;
        context.registry = Some(registry.address);
        let request = FillRequest {
            source: "registry.example/team/app:1".to_owned(),
            platforms: Vec::new(),
            credentials: Vec::new(),
            revalidate: false,
            priority: Priority::default(),
        };
        let answer = Client::for_release(&context).unwrap().fill(&request).await;
        let outcome = answer.map(|_| ()).map_err(|failure| failure.reason);
        assert_eq!(outcome, expect, "{secret}");
        assert_eq!(registry.sources().len(), usize::from(expect.is_ok()));
    }
}

/// A pod of a part, as far as the controller looks at it.
async fn pod_of(bare: &Bare, component: &str) -> Api<Pod> {
    let pods: Api<Pod> = Api::namespaced(bare.client.clone(), bare::NAMESPACE);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": component, "labels": {
            "app.kubernetes.io/name": "holdfast",
            "app.kubernetes.io/instance": bare.context().names.release,
            "app.kubernetes.io/component": component,
        }},
        "spec": {"containers": [{"name": "c", "image": "r.example/a:1"}]},
    });
    let pod = serde_json::from_value(pod).unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    pods
}

fn told(pod: &Pod) -> Option<String> {
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.get("holdfast.dev/secrets-changed").cloned()
}

#[tokio::test]
async fn pods_hear_of_changed_secrets_at_once_and_only_then() {
    let bare = Bare::start().await;
    bare.registry_service().await;
    let pods = pod_of(&bare, "registry").await;
    pod_of(&bare, "webhook").await;
    pod_of(&bare, "controller").await;
    let context = bare.context();
    certificates::round(&context).await.unwrap();
    let first = pods.get("registry").await.unwrap();
    assert!(told(&first).is_some(), "the certificates are new");
    assert!(told(&pods.get("webhook").await.unwrap()).is_some());
    assert_eq!(told(&pods.get("controller").await.unwrap()), None);
    // Twice, for the kubelet may hear of the pod before it hears of the Secret.
    certificates::round(&context).await.unwrap();
    let second = pods.get("registry").await.unwrap();
    assert!(told(&second) > told(&first));
    certificates::round(&context).await.unwrap();
    let third = pods.get("registry").await.unwrap();
    assert_eq!(
        third.metadata.resource_version,
        second.metadata.resource_version
    );

    // The Service is made again with another address.
    let services: Api<Service> = Api::namespaced(bare.client.clone(), bare::NAMESPACE);
    let name = context.names.registry();
    let mut service = services.get(&name).await.unwrap();
    let former = service.spec.clone().unwrap().cluster_ip.unwrap();
    services
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
    let other = former.rsplit_once('.').map(|(net, host)| {
        let host: u8 = host.parse().unwrap();
        format!("{net}.{}", if host == 77 { 78 } else { 77 })
    });
    service.metadata = ObjectMeta {
        name: Some(name),
        ..ObjectMeta::default()
    };
    let spec = service.spec.as_mut().unwrap();
    (spec.cluster_ip, spec.cluster_ips) = (other.clone(), other.map(|one| vec![one]));
    services
        .create(&PostParams::default(), &service)
        .await
        .unwrap();
    let webhook = pods.get("webhook").await.unwrap();
    certificates::round(&context).await.unwrap();
    assert!(told(&pods.get("registry").await.unwrap()) > told(&third));
    assert_eq!(
        told(&pods.get("webhook").await.unwrap()),
        told(&webhook),
        "its Secret did not change"
    );
}

#[tokio::test]
async fn the_node_credential_is_rotated_when_asked() {
    let bare = Bare::start().await;
    bare.registry_service().await;
    let context = bare.context();
    certificates::round(&context).await.unwrap();
    state::round(&context).await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(bare.client.clone(), bare::NAMESPACE);
    let name = context.names.registry_auth();
    let lines = async |key: &str| -> Vec<String> {
        let data = secrets.get(&name).await.unwrap().data.unwrap();
        let text = String::from_utf8(data[key].0.clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    };
    let given = async || -> String {
        let data = secrets.get("holdfast-node").await.unwrap().data.unwrap();
        let state: NodeState = serde_json::from_slice(&data[KEY].0).unwrap();
        state.password.expose().to_owned()
    };
    let annotate = async |key: &str, value: &str| {
        let patch = json!({"metadata": {"annotations": {key: value}}});
        secrets
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    };
    let round = async || {
        certificates::round(&context).await.unwrap();
        state::round(&context).await.unwrap();
    };
    let old = lines("node-password").await;
    assert_eq!(old.len(), 1);
    annotate("holdfast.dev/rotate", "now").await;
    round().await;
    let both = lines("node-password").await;
    assert_eq!((both.len(), &both[0]), (2, &old[0]), "accepted, not used");
    assert_eq!(lines("upload-secret").await.len(), 2);
    assert_eq!(given().await, old[0]);
    let annotations = secrets
        .get(&name)
        .await
        .unwrap()
        .metadata
        .annotations
        .unwrap();
    assert!(!annotations.contains_key("holdfast.dev/rotate"));
    assert!(annotations["holdfast.dev/rotation"].starts_with("accepted@"));
    round().await;
    assert_eq!(lines("node-password").await, both, "it takes its time");

    annotate("holdfast.dev/rotation", "accepted@1000").await;
    round().await;
    assert_eq!(
        lines("node-password").await,
        [both[1].clone(), both[0].clone()]
    );
    assert_eq!(given().await, both[1], "nodes get the new one");
    annotate("holdfast.dev/rotation", "used@1000").await;
    round().await;
    assert_eq!(lines("node-password").await, [both[1].clone()]);
    assert_eq!(lines("upload-secret").await.len(), 1);
    assert_eq!(given().await, both[1]);
    let annotations = secrets.get(&name).await.unwrap().metadata.annotations;
    assert!(
        !annotations
            .unwrap_or_default()
            .contains_key("holdfast.dev/rotation")
    );
}
