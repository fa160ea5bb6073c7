//! Whose pods may have which images, against a real API server: from an upstream's answer to the
//! list that the webhook goes by, and to healing.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, a test ends by them"
)]

mod bare;

use bare::{Bare, NAMESPACE, Registry, Running, eventually, run};
use holdfast_api::access::{Access, AccessList};
use holdfast_api::state::{ClusterState, KEY};
use holdfast_api::{Artifact, artifact_name};
use holdfast_healing::{Healing, Policy};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const IMAGE: &str = "registry.example/team/app:1";
const REPOSITORY: &str = "registry.example/team/app";

struct Site {
    bare: Bare,
    registry: Registry,
    local: String,
}

impl Site {
    /// A cluster with a namespace `team`, which has a pull secret, and one `other`. The upstream
    /// takes any credential, and nobody without.
    async fn start() -> Self {
        let (bare, registry) = (Bare::start().await, Registry::start().await);
        bare.namespace("team").await;
        bare.namespace("other").await;
        let login = r#"{"auths":{"registry.example":{"username":"u","password":"p"}}}"#;
        let secret = json!({
            "metadata": {"name": "pull"},
            "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": ByteString(login.into())},
        });
        bare.create::<Secret>("team", secret).await;
        let site = Self {
            local: format!("{}/{IMAGE}", bare.registry_service().await),
            bare,
            registry,
        };
        site.upstream(|is_known| {
            if is_known {
                Access::Proved
            } else {
                Access::Denied
            }
        });
        site
    }

    /// What the upstream says to anyone who brings a credential or none.
    fn upstream(&self, says: impl Fn(bool) -> Access + Send + 'static) {
        *self.registry.access.lock().unwrap() =
            Box::new(move |request| says(!request.credentials.is_empty()));
    }

    /// A controller that starts, and heals without waiting.
    fn controller(&self, private_images: &str) -> Running {
        let mut context = self.bare.context_with(&json!({
            "webhook": {"waitForNodes": false},
            "access": {"privateImages": private_images},
        }));
        context.healing = Arc::new(Healing::new(Policy {
            grace: 0,
            confirmation_ttl: Duration::from_secs(4),
            ..context.healing.policy
        }));
        run(&context, &self.registry)
    }

    /// A pod that names the pull secret, as it was admitted by nobody.
    async fn pod(&self, namespace: &str) {
        let pod = json!({
            "metadata": {"name": "app"},
            "spec": {
                "imagePullSecrets": [{"name": "pull"}],
                "containers": [{"name": "app", "image": IMAGE}],
            },
        });
        self.bare.create::<Pod>(namespace, pod).await;
    }

    /// Has the kubelet say that the pod waits for its image.
    async fn stuck(&self, namespace: &str) {
        let status = json!({"status": {"phase": "Pending", "containerStatuses": [{
            "name": "app", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}},
        }]}});
        Api::<Pod>::namespaced(self.bare.client.clone(), namespace)
            .patch_status("app", &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
    }

    async fn image(&self, namespace: &str) -> String {
        let pods: Api<Pod> = Api::namespaced(self.bare.client.clone(), namespace);
        let pod = pods.get("app").await.unwrap();
        pod.spec.unwrap().containers[0].image.clone().unwrap()
    }

    /// The answer that stands in the Artifact's status.
    async fn answer(&self, namespace: &str) -> Option<Access> {
        let artifacts: Api<Artifact> = Api::namespaced(self.bare.client.clone(), namespace);
        let artifact = artifacts.get_opt(&artifact_name(IMAGE)).await.unwrap();
        Some(artifact?.status?.access?.answer)
    }

    /// What the webhook goes by.
    async fn list(&self) -> Option<AccessList> {
        let maps: Api<ConfigMap> = Api::namespaced(self.bare.client.clone(), NAMESPACE);
        let map = maps.get_opt("holdfast-state").await.unwrap()?;
        let state: ClusterState = serde_json::from_str(&map.data?[KEY]).unwrap();
        state.access
    }
}

/// The list of a cluster where `team` alone may have the image.
fn of_team() -> AccessList {
    AccessList {
        namespaces: [("team".to_owned(), [REPOSITORY.to_owned()].into())].into(),
        ..AccessList::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_opens_the_image_for_its_namespace_and_for_healing() {
    let site = Site::start().await;
    let running = site.controller("namespace");
    eventually("there is a list from the start", async || {
        site.list().await == Some(AccessList::default())
    })
    .await;
    for namespace in ["team", "other"] {
        site.pod(namespace).await;
    }
    eventually("both were answered", async || {
        site.answer("team").await == Some(Access::Proved)
            && site.answer("other").await == Some(Access::Denied)
    })
    .await;
    eventually("the list says it", async || {
        site.list().await == Some(of_team())
    })
    .await;
    // The registry holds the image for both; one of them may have it.
    for namespace in ["other", "team"] {
        site.stuck(namespace).await;
    }
    eventually("the team's pod is healed", async || {
        site.image("team").await == site.local
    })
    .await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(site.image("other").await, IMAGE, "it was looked at since");

    // Another controller, and an upstream that does not answer: what was proved holds.
    drop(running);
    site.upstream(|_| Access::Unknown);
    let running = site.controller("namespace");
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(site.list().await, Some(of_team()));
    assert_eq!(site.answer("team").await, Some(Access::Proved));

    // Without the setting, every namespace may pull it again.
    drop(running);
    let _running = site.controller("node");
    eventually("there is no list", async || site.list().await.is_none()).await;
    eventually("the other pod is healed", async || {
        site.image("other").await == site.local
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn public_repositories_are_listed_for_all_namespaces() {
    let site = Site::start().await;
    let _running = site.controller("namespace");
    site.upstream(|_| Access::Public);
    site.pod("other").await;
    let everybody = AccessList {
        everybody: [REPOSITORY.to_owned()].into(),
        ..AccessList::default()
    };
    eventually("it is everybody's", async || {
        site.list().await.as_ref() == Some(&everybody)
    })
    .await;
}
