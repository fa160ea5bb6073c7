//! Certificates and the shared state against a real API server.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bare;

use bare::{Bare, Registry};
use holdfast_api::artifact::Reason;
use holdfast_api::fill::{FillRequest, Need};
use holdfast_api::state::{ClusterState, KEY, NodeState};
use holdfast_controller::artifacts::fill::Client;
use holdfast_controller::{certificates, state};
use holdfast_runtime::tls::{ClientAuth, ServerTls, TlsFiles};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use std::collections::BTreeMap;

const OURS: [&str; 5] = [
    "holdfast-ca",
    "holdfast-registry-tls",
    "holdfast-webhook-tls",
    "holdfast-controller-tls",
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
        .delete("holdfast-webhook-tls", &kube::api::DeleteParams::default())
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
        &kube::api::PostParams::default(),
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
async fn a_controller_outside_of_its_cluster_finds_the_registry_by_address_and_knows_it_by_name() {
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
            need: Need::default(),
        };
        let answer = Client::for_release(&context).unwrap().fill(&request).await;
        let outcome = answer.map(|_| ()).map_err(|failure| failure.reason);
        assert_eq!(outcome, expect, "{secret}");
        assert_eq!(registry.sources().len(), usize::from(expect.is_ok()));
    }
}
