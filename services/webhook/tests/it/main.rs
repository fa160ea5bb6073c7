//! The webhook in process: a real TLS listener, real reviews, and an API server that serves only
//! the two calls that the webhook makes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by them")]

mod certificates;
mod connections;
mod reviews;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_config::{Config, Release, Values};
use holdfast_runtime::{CancellationToken, tls};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// The API server, and the Artifacts that it received.
#[derive(Clone, Default)]
struct Api {
    created: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Api {
    /// Serves the lists and watches of ConfigMap `holdfast-state`, and of `holdfast-delivery`,
    /// which does not exist. Accepts Artifacts.
    async fn client(&self, state: Option<Value>) -> kube::Client {
        use warp::Filter as _;
        let items: Vec<Value> = state
            .map(|state| {
                json!({
                    "metadata": {
                        "name": "holdfast-state", "namespace": "sys", "resourceVersion": "1",
                    },
                    "data": { "state.json": state.to_string() },
                })
            })
            .into_iter()
            .collect();
        let list = |items: &[Value]| {
            json!({
                "apiVersion": "v1", "kind": "ConfigMapList",
                "metadata": { "resourceVersion": "1" }, "items": items,
            })
        };
        let (list, none) = (list(&items), list(&[]));
        let config_maps = warp::path!("api" / "v1" / "namespaces" / "sys" / "configmaps")
            .and(warp::query::<std::collections::HashMap<String, String>>())
            .then(move |query: std::collections::HashMap<String, String>| {
                let (list, none) = (list.clone(), none.clone());
                async move {
                    let list = match query.get("fieldSelector").map(String::as_str) {
                        Some("metadata.name=holdfast-state") => list,
                        Some("metadata.name=holdfast-delivery") => none,
                        other => panic!("the webhook may not list {other:?}"),
                    };
                    if query.contains_key("watch") {
                        tokio::time::sleep(Duration::from_secs(60)).await;
                    }
                    warp::reply::json(&list)
                }
            });
        let created = Arc::clone(&self.created);
        let artifacts =
            warp::path!("apis" / "holdfast.dev" / "v1alpha1" / "namespaces" / String / "artifacts")
                .and(warp::post())
                .and(warp::body::json())
                .map(move |namespace: String, artifact: Value| {
                    created.lock().unwrap().push((namespace, artifact.clone()));
                    warp::reply::json(&artifact)
                });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(
            warp::serve(config_maps.or(artifacts))
                .incoming(listener)
                .run(),
        );
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        kube::Client::try_from(config).unwrap()
    }

    fn sources(&self) -> Vec<(String, String)> {
        let created = self.created.lock().unwrap();
        let mut sources: Vec<_> = created
            .iter()
            .map(|(namespace, artifact)| {
                (
                    namespace.clone(),
                    artifact["spec"]["sourceArtifact"]
                        .as_str()
                        .unwrap()
                        .to_owned(),
                )
            })
            .collect();
        sources.sort();
        sources
    }
}

/// A running webhook, and a client of it.
struct Webhook {
    api: Api,
    address: SocketAddr,
    admin: SocketAddr,
    client: reqwest::Client,
    folder: tempfile::TempDir,
    stop: CancellationToken,
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn write_certificate(folder: &std::path::Path) -> String {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("ca.crt"), made.cert.pem()).unwrap();
    made.cert.pem()
}

fn trusting(pem: &str, address: SocketAddr) -> reqwest::Client {
    reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(pem.as_bytes()).unwrap()])
        .resolve("localhost", address)
        .build()
        .unwrap()
}

async fn start(state: Option<Value>, certificate_first: bool) -> Webhook {
    start_with(state, certificate_first, Values::default()).await
}

/// Starts a webhook with these values. Its certificate is in the folder `tls`.
async fn start_with(state: Option<Value>, certificate_first: bool, values: Values) -> Webhook {
    tls::install_crypto_provider();
    let api = Api::default();
    let client = api.client(state).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("tls")).unwrap();
    let config = Config {
        release: Release {
            name: "holdfast".to_owned(),
            namespace: "sys".to_owned(),
            fullname: "holdfast".to_owned(),
            version: "0".to_owned(),
        },
        values,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, admin) = (
        listener.local_addr().unwrap(),
        admin_listener.local_addr().unwrap(),
    );
    let stop = CancellationToken::new();
    let (path, ending) = (folder.path().join("tls"), stop.clone());
    let pem = certificate_first.then(|| write_certificate(&path));
    tokio::spawn(async move {
        holdfast_webhook::serve(
            config,
            None,
            client,
            &path,
            listener,
            admin_listener,
            ending,
        )
        .await;
    });
    let client = pem.map_or_else(reqwest::Client::new, |pem| trusting(&pem, address));
    Webhook {
        api,
        address,
        admin,
        client,
        folder,
        stop,
    }
}

impl Webhook {
    async fn ready(&self) -> bool {
        let url = format!("http://{}/readyz", self.admin);
        reqwest::get(url)
            .await
            .is_ok_and(|answer| answer.status() == 200)
    }

    async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.admin);
        reqwest::get(url).await.unwrap().text().await.unwrap()
    }

    async fn post(&self, body: impl Into<reqwest::Body>) -> (u16, String) {
        let url = format!("https://localhost:{}/mutate", self.address.port());
        let answer = self.client.post(url).body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn review(&self, request: Value) -> Value {
        let (status, body) = self.post(admission_review(&request).to_string()).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    for _ in 0..200 {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("never: {what}");
}

fn admission_review(request: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request,
    })
}

fn rewriting() -> Value {
    json!({
        "registryAddress": "10.96.0.50", "aliases": [], "rewrite": true,
        "reason": "every node is prepared",
    })
}

fn create(dry_run: bool) -> Value {
    json!({
        "uid": "42",
        "kind": { "group": "", "version": "v1", "kind": "Pod" },
        "namespace": "team",
        "operation": "CREATE",
        "dryRun": dry_run,
        "object": {
            "metadata": { "generateName": "app-" },
            "spec": {
                "imagePullSecrets": [{ "name": "pull" }],
                "serviceAccountName": "builder",
                "containers": [{ "name": "c", "image": "registry.example:5000/team/app:1" }],
            },
        },
    })
}
