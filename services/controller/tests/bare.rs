//! What the tests against a bare API server share: the server, the CRD, a release, and a registry
//! that answers fills.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test target uses its part of it"
)]

use holdfast_api::Artifact;
use holdfast_api::access::{Access, AccessRequest};
use holdfast_api::fill::{FillRequest, FillResult};
use holdfast_api::questions;
use holdfast_cluster::apiserver::ApiServer;
use holdfast_config::Config;
use holdfast_controller::artifacts::fill::Client;
use holdfast_controller::{Context, Metrics};
use holdfast_runtime::CancellationToken;
use holdfast_runtime::health::Health;
use holdfast_runtime::supervise::Supervisor;
use holdfast_runtime::tls::ServerTls;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::{CustomResourceExt as _, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub const NAMESPACE: &str = "holdfast-system";

/// A running API server with a release's namespace and the CRD.
pub struct Bare {
    pub client: kube::Client,
    server: ApiServer,
}

impl Bare {
    pub async fn start() -> Self {
        holdfast_runtime::tls::install_crypto_provider();
        let server = tokio::task::spawn_blocking(ApiServer::start)
            .await
            .unwrap()
            .unwrap();
        let client = kube::Client::try_from(config(&server).await).unwrap();
        let bare = Self { client, server };
        bare.namespace(NAMESPACE).await;
        let crd = serde_json::to_value(Artifact::crd()).unwrap();
        bare.create_global::<CustomResourceDefinition>(crd).await;
        let client = bare.client.clone();
        eventually("the CRD is served", async || {
            Api::<Artifact>::all(client.clone())
                .list(&kube::api::ListParams::default())
                .await
                .is_ok()
        })
        .await;
        bare
    }

    /// A client that may do what `user` may.
    pub async fn client_as(&self, user: &str) -> kube::Client {
        let mut config = config(&self.server).await;
        config.headers.push((
            http::HeaderName::from_static("impersonate-user"),
            http::HeaderValue::from_str(user).unwrap(),
        ));
        kube::Client::try_from(config).unwrap()
    }

    /// Labels a namespace.
    pub async fn label_namespace(&self, name: &str, key: &str, value: &str) {
        let labels = json!({"metadata": {"labels": {key: value}}});
        Api::<Namespace>::all(self.client.clone())
            .patch(name, &PatchParams::default(), &Patch::Merge(labels))
            .await
            .unwrap();
    }

    pub async fn namespace(&self, name: &str) {
        self.create_global::<Namespace>(json!({"metadata": {"name": name}}))
            .await;
    }

    /// Creates an object in a namespace; what the API server made of it.
    pub async fn create<K>(&self, namespace: &str, object: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug,
        K: Serialize + DeserializeOwned,
    {
        create(Api::namespaced(self.client.clone(), namespace), object).await
    }

    /// As [`Self::create`], for objects of no namespace.
    pub async fn create_global<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        create(Api::all(self.client.clone()), object).await
    }

    /// Makes the registry's Service; its address.
    pub async fn registry_service(&self) -> String {
        let service = json!({
            "metadata": {"name": "holdfast-registry"},
            "spec": {"ports": [{"name": "https", "port": 443}]},
        });
        let service: Service = self.create(NAMESPACE, service).await;
        service.spec.unwrap().cluster_ip.unwrap()
    }

    /// What a freshly started controller begins with.
    pub fn context(&self) -> Context {
        Self::context_of(self.client.clone())
    }

    /// As [`Self::context`], with a client of its own.
    pub fn context_of(client: kube::Client) -> Context {
        Self::context_from(client, &json!({}))
    }

    /// As [`Self::context`], with values.
    pub fn context_with(&self, values: &Value) -> Context {
        Self::context_from(self.client.clone(), values)
    }

    fn context_from(client: kube::Client, values: &Value) -> Context {
        let document = json!({
            "release": {"name": "holdfast", "namespace": NAMESPACE, "fullname": "holdfast", "version": "0.1.0"},
            "values": values,
        });
        let mut registry = holdfast_runtime::metrics::registry("controller");
        let metrics = Metrics::register(&mut registry);
        Context::new(
            client,
            Config::parse(&document.to_string()).unwrap(),
            metrics,
        )
        .unwrap()
    }
}

async fn create<K>(api: Api<K>, object: Value) -> K
where
    K: Clone + Debug + Serialize + DeserializeOwned,
{
    let object: K = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap()
}

async fn config(server: &ApiServer) -> kube::Config {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap()
}

/// A controller's loops, until dropped.
pub struct Running(CancellationToken);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Starts a controller's loops, which ask this registry for copies.
pub fn run(context: &Context, registry: &Registry) -> Running {
    let stop = CancellationToken::new();
    let mut metrics = holdfast_runtime::metrics::registry("controller");
    let supervisor = Supervisor::new(Health::default(), &mut metrics, stop.clone());
    let fills = Client::new(reqwest::Client::new(), &registry.url);
    context.start(&supervisor, Some(fills));
    Running(stop)
}

/// Waits until `check` holds; fails by name after a minute.
pub async fn eventually(what: &str, check: impl AsyncFn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !check().await {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A registry's internal API on a port of this machine: remembers requests, answers by a function.
pub struct Registry {
    pub url: String,
    pub address: SocketAddr,
    pub requests: std::sync::Arc<std::sync::Mutex<Vec<FillRequest>>>,
    pub answer: Answer,
    pub access: AccessAnswer,
}

/// The answer to a question who may have an image.
pub type AccessAnswer =
    std::sync::Arc<std::sync::Mutex<Box<dyn Fn(&AccessRequest) -> Access + Send>>>;

/// The answer to a request: status and body.
pub type Answer =
    std::sync::Arc<std::sync::Mutex<Box<dyn Fn(&FillRequest) -> (u16, String) + Send>>>;

pub fn copied() -> (u16, String) {
    let result = FillResult {
        digest: format!("sha256:{}", "ab".repeat(32)),
        media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
        size_bytes: 1234,
        blobs: 2,
        already_local: false,
        missing: Vec::new(),
    };
    (200, serde_json::to_string(&result).unwrap())
}

impl Registry {
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// A server that requires a client certificate.
    pub async fn start_with(tls: Option<ServerTls>) -> Self {
        use http_body_util::BodyExt as _;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = std::sync::Arc::<std::sync::Mutex<Vec<FillRequest>>>::default();
        let answer: Answer = std::sync::Arc::new(std::sync::Mutex::new(Box::new(|_| copied())));
        let access: AccessAnswer =
            std::sync::Arc::new(std::sync::Mutex::new(Box::new(|_| Access::Unknown)));
        let (seen, answers, accesses) = (requests.clone(), answer.clone(), access.clone());
        let service = holdfast_runtime::server::service_fn(move |request: http::Request<_>| {
            let (seen, answers) = (seen.clone(), answers.clone());
            let accesses = accesses.clone();
            async move {
                let is_access = request.uri().path() == holdfast_api::access::PATH;
                let is_held = request.uri().path() == questions::held::INTERNAL_PATH;
                let body: holdfast_runtime::server::RequestBody = request.into_body();
                let body = body.collect().await?.to_bytes();
                let (status, body) = if is_held {
                    let asked: questions::held::Images =
                        serde_json::from_slice(&body).expect("images");
                    let answers = vec![questions::Answer::Yes; asked.images.len()];
                    (200, json!({"answers": answers}).to_string())
                } else if is_access {
                    let request = serde_json::from_slice(&body).expect("a question of access");
                    let access = accesses.lock().unwrap()(&request);
                    (200, json!({"access": access}).to_string())
                } else {
                    let request: FillRequest =
                        serde_json::from_slice(&body).expect("a fill request");
                    let told = answers.lock().unwrap()(&request);
                    seen.lock().unwrap().push(request);
                    told
                };
                let response = http::Response::builder()
                    .status(status)
                    .body(http_body_util::Full::new(bytes::Bytes::from(body)));
                Ok::<_, holdfast_runtime::server::BodyError>(response.expect("a response"))
            }
        });
        let limits = holdfast_runtime::server::Limits::default();
        tokio::spawn(holdfast_runtime::server::serve(
            listener,
            tls,
            service,
            limits,
            CancellationToken::new(),
        ));
        Self {
            url: format!("http://{address}"),
            address,
            requests,
            answer,
            access,
        }
    }

    pub fn sources(&self) -> Vec<String> {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .map(|request| request.source.clone())
            .collect()
    }
}
