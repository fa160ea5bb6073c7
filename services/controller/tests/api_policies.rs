//! Policies that refuse the registry's references, against a real API server without nodes: what an
//! owner's controller would tell by an event is written by hand.
#![allow(clippy::unwrap_used, reason = "tests")]

mod bare;

use bare::{Bare, NAMESPACE, Registry, Running, eventually, run};
use holdfast_api::state::{ClusterState, KEY};
use holdfast_healing::{Healing, Policy};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const IMAGE: &str = "registry.example/team/app:1";

struct Site {
    bare: Bare,
    _registry: Registry,
    _running: Running,
}

fn typed<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

impl Site {
    async fn start() -> Self {
        let (bare, registry) = (Bare::start().await, Registry::start().await);
        bare.namespace("apps").await;
        bare.registry_service().await;
        let accounts: Api<ServiceAccount> = Api::namespaced(bare.client.clone(), "apps");
        let account = typed(json!({"metadata": {"name": "default"}}));
        accounts
            .create(&PostParams::default(), &account)
            .await
            .unwrap();
        let mut context = bare.context_with(&json!({"webhook": {"waitForNodes": false}}));
        context.healing = Arc::new(Healing::new(Policy {
            probe_pauses: (1, 2),
            ..context.healing.policy
        }));
        let running = run(&context, &registry);
        Self {
            bare,
            _registry: registry,
            _running: running,
        }
    }

    /// A `ReplicaSet` with this image; its UID.
    async fn replica_set(&self, name: &str, image: &str) -> String {
        let set = json!({
            "metadata": {"name": name},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "app", "image": image}]}},
            },
        });
        let api: Api<ReplicaSet> = Api::namespaced(self.bare.client.clone(), "apps");
        let set = api
            .create(&PostParams::default(), &typed(set))
            .await
            .unwrap();
        set.metadata.uid.unwrap()
    }

    /// Has the owner's controller say, `later` seconds from now, that a pod was refused.
    async fn refused(&self, owner: &str, uid: &str, message: &str, later: i64) {
        let at = jiff::Timestamp::now().as_second() + later;
        let at = jiff::Timestamp::from_second(at).unwrap().to_string();
        let event = json!({
            "metadata": {"generateName": "refused-"},
            "involvedObject": {"apiVersion": "apps/v1", "kind": "ReplicaSet", "namespace": "apps", "name": owner, "uid": uid},
            "reason": "FailedCreate", "type": "Warning", "message": message, "lastTimestamp": at,
        });
        let api: Api<Event> = Api::namespaced(self.bare.client.clone(), "apps");
        api.create(&PostParams::default(), &typed(event))
            .await
            .unwrap();
    }

    /// What is left alone, as `namespace source`.
    async fn excluded(&self) -> Vec<String> {
        let maps: Api<ConfigMap> = Api::namespaced(self.bare.client.clone(), NAMESPACE);
        let Some(map) = maps.get_opt("holdfast-state").await.unwrap() else {
            return Vec::new();
        };
        let state: ClusterState = serde_json::from_str(&map.data.unwrap()[KEY]).unwrap();
        let entries = state.excluded.into_iter();
        entries
            .map(|entry| format!("{} {} {}", entry.namespace, entry.source, entry.reason))
            .collect()
    }

    async fn becomes(&self, what: &str, expect: &[&str]) {
        eventually(what, async || self.excluded().await == expect).await;
    }

    async fn told(&self, reason: &str) {
        let api: Api<Event> = Api::namespaced(self.bare.client.clone(), "apps");
        eventually(reason, async || {
            let events = api.list(&kube::api::ListParams::default()).await.unwrap();
            events.items.iter().any(|event| {
                event.reason.as_deref() == Some(reason)
                    && event.involved_object.kind.as_deref() == Some("ReplicaSet")
            })
        })
        .await;
    }
}

const DENIED: &str = "Error creating: pods \"web-1\" is forbidden: ValidatingAdmissionPolicy 'ours' with binding 'b' denied request: no";

#[tokio::test]
async fn a_namespace_is_excluded_while_its_policy_denies_the_registry() {
    let site = Site::start().await;
    let client = &site.bare.client;
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let policy = json!({
        "metadata": {"name": "ours"},
        "spec": {
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["pods"]}]},
            "validations": [{"expression": "object.spec.containers.all(c, c.image.startsWith('registry.example/'))"}],
        },
    });
    policies
        .create(&PostParams::default(), &typed(policy))
        .await
        .unwrap();
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "ours", "validationActions": ["Deny"]}});
    bindings
        .create(&PostParams::default(), &typed(binding))
        .await
        .unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "apps");
    let pod = |image: &str| {
        typed(
            json!({"metadata": {"generateName": "p-"}, "spec": {"containers": [{"name": "app", "image": image}]}}),
        )
    };
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    eventually("the policy holds", async || {
        pods.create(&dry, &pod("other.example/a:1")).await.is_err()
    })
    .await;
    let uid = site.replica_set("web", IMAGE).await;
    // A quota is no policy.
    site.refused(
        "web",
        &uid,
        "Error creating: pods \"web-1\" is forbidden: exceeded quota: q",
        0,
    )
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(site.excluded().await.is_empty());

    site.refused("web", &uid, DENIED, 0).await;
    let expect = ["apps * ValidatingAdmissionPolicy ours"];
    site.becomes("the namespace is left alone", &expect).await;
    site.told("NamespaceExcluded").await;
    pods.create(&PostParams::default(), &pod(IMAGE))
        .await
        .unwrap();
    // Asked about again and again, the policy says the same.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(site.excluded().await, expect);
    bindings
        .delete("b", &DeleteParams::default())
        .await
        .unwrap();
    site.becomes("the namespace is rewritten again", &[]).await;
}

#[tokio::test]
async fn an_owner_that_is_refused_anyway_brings_the_namespace_back() {
    let site = Site::start().await;
    let uid = site.replica_set("web", IMAGE).await;
    site.refused("web", &uid, DENIED, 0).await;
    site.becomes("it is tried", &["apps * ValidatingAdmissionPolicy ours"])
        .await;
    site.refused("web", &uid, DENIED, 40).await;
    site.becomes("it was in vain", &[]).await;
    site.told("NamespaceRewritten").await;
    site.refused("web", &uid, DENIED, 41).await;
    site.refused("gone", "no-such-uid", DENIED, 41).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(
        site.excluded().await.is_empty(),
        "once tried, and for nobody that is not known"
    );
}
