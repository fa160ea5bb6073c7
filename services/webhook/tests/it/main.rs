//! The webhook in process: a real TLS listener, real reviews, and an API server of which only the
//! two calls exist that the webhook makes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by them")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use holdfast_config::{Config, Release, Values};
use holdfast_runtime::{CancellationToken, tls};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What the API server holds and was sent.
#[derive(Clone, Default)]
struct Api {
    created: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Api {
    /// Serves the list and watch of ConfigMap `holdfast-state` and takes Artifacts.
    async fn client(&self, state: Option<Value>) -> kube::Client {
        use warp::Filter as _;
        let items: Vec<Value> = state
            .map(|state| json!({
                "metadata": { "name": "holdfast-state", "namespace": "sys", "resourceVersion": "1" },
                "data": { "state.json": state.to_string() },
            }))
            .into_iter()
            .collect();
        let list = json!({ "apiVersion": "v1", "kind": "ConfigMapList", "metadata": { "resourceVersion": "1" }, "items": items });
        let config_maps = warp::path!("api" / "v1" / "namespaces" / "sys" / "configmaps")
            .and(warp::query::<std::collections::HashMap<String, String>>())
            .then(move |query: std::collections::HashMap<String, String>| {
                let list = list.clone();
                async move {
                    assert_eq!(
                        query.get("fieldSelector").map(String::as_str),
                        Some("metadata.name=holdfast-state")
                    );
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

/// A webhook that serves, and what is needed to talk to it.
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

/// Starts one with these values; its certificate lies in the folder `tls`.
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
        let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request });
        let (status, body) = self.post(review.to_string()).await;
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

fn rewriting() -> Value {
    json!({ "registryAddress": "10.96.0.50", "aliases": [], "rewrite": true, "reason": "every node is prepared" })
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

fn patch(answer: &Value) -> Value {
    let encoded = answer["response"]["patch"].as_str().unwrap();
    serde_json::from_slice(
        &base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .unwrap(),
    )
    .unwrap()
}

// SPEC 5, SPEC 6
#[tokio::test]
async fn a_pod_is_patched_over_tls_and_its_image_is_announced() {
    let webhook = start(Some(rewriting()), true).await;
    eventually("ready", || webhook.ready()).await;
    let answer = webhook.review(create(false)).await;
    assert_eq!(answer["response"]["uid"], "42");
    assert_eq!(answer["response"]["allowed"], true);
    assert_eq!(answer["response"]["patchType"], "JSONPatch");
    assert_eq!(
        patch(&answer)[0],
        json!({ "op": "replace", "path": "/spec/containers/0/image", "value": "10.96.0.50/registry.example_5000/team/app:1" })
    );
    let expected = [(
        "team".to_owned(),
        "registry.example:5000/team/app:1".to_owned(),
    )];
    eventually("the Artifact", || async {
        webhook.api.sources() == expected
    })
    .await;
    let artifact = webhook.api.created.lock().unwrap()[0].1.clone();
    assert_eq!(
        artifact["metadata"]["name"],
        holdfast_api::artifact_name("registry.example:5000/team/app:1")
    );
    assert_eq!(artifact["spec"]["pullSecrets"], json!(["pull"]));
    assert_eq!(artifact["spec"]["serviceAccountName"], "builder");
    let metrics = webhook.metrics().await;
    for line in [
        "holdfast_webhook_images_rewritten_total 1",
        "holdfast_webhook_reviews_total{result=\"patched\"} 1",
        "holdfast_webhook_announcements_total{result=\"created\"} 1",
        "holdfast_webhook_admission_duration_seconds_count 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn a_dry_run_is_patched_and_announces_nothing() {
    let webhook = start(Some(rewriting()), true).await;
    eventually("ready", || webhook.ready()).await;
    assert!(patch(&webhook.review(create(true)).await).is_array());
    // A real one behind it shows that the queue was worked off.
    let mut real = create(false);
    real["object"]["spec"]["containers"][0]["image"] = json!("other");
    webhook.review(real).await;
    let expected = [(
        "team".to_owned(),
        "docker.io/library/other:latest".to_owned(),
    )];
    eventually("the other Artifact", || async {
        webhook.api.sources() == expected
    })
    .await;
}

// SPEC 11
#[tokio::test]
async fn the_values_tell_whose_images_are_rewritten() {
    let (one, listed) = ("registry.example/team/app:1", "quay.io/team/app:1");
    for (values, rewritten) in [
        (json!({}), &[one, listed][..]),
        (json!({ "sources": ["registry.example"] }), &[one]),
        (json!({ "onlyListedUpstreams": true }), &[listed]),
        (
            json!({ "sources": ["registry.example"], "onlyListedUpstreams": true }),
            &[],
        ),
    ] {
        let mut values = values;
        values["upstreams"] = json!([{ "host": "quay.io" }]);
        let told: Values = serde_json::from_value(values.clone()).unwrap();
        let webhook = start_with(Some(rewriting()), true, told).await;
        eventually("ready", || webhook.ready()).await;
        for image in [one, listed] {
            let mut request = create(true);
            request["object"]["spec"]["containers"][0]["image"] = json!(image);
            let answer = webhook.review(request).await;
            let is_rewritten = !answer["response"]["patch"].is_null();
            let expect = rewritten.contains(&image);
            assert_eq!(is_rewritten, expect, "{image} by {values}");
        }
    }
}

// SPEC 1
#[tokio::test]
async fn without_a_state_pods_are_allowed_unchanged() {
    for state in [
        None,
        Some(json!({ "registryAddress": "10.96.0.50", "rewrite": false })),
    ] {
        let webhook = start(state, true).await;
        eventually("ready", || webhook.ready()).await;
        let answer = webhook.review(create(false)).await;
        assert_eq!(answer["response"], json!({ "uid": "42", "allowed": true }));
        assert!(webhook.api.sources().is_empty());
    }
}

#[tokio::test]
async fn what_is_no_review_is_answered_clearly_and_what_is_of_no_use_is_allowed() {
    let webhook = start(Some(rewriting()), true).await;
    eventually("ready", || webhook.ready()).await;
    let (status, text) = webhook.post("{").await;
    assert_eq!(status, 400);
    assert!(text.contains("not JSON"), "{text}");
    let (status, text) = webhook
        .post(vec![b' '; holdfast_webhook::routes::MAX_BODY_BYTES + 1])
        .await;
    assert_eq!(status, 413, "{text}");
    let answer = webhook
        .review(json!({ "uid": "7", "operation": "DELETE" }))
        .await;
    assert_eq!(answer["response"], json!({ "uid": "7", "allowed": true }));
    let url = format!("https://localhost:{}/other", webhook.address.port());
    assert_eq!(webhook.client.post(url).send().await.unwrap().status(), 404);
}

// SPEC 27, SPEC 32
#[tokio::test]
async fn it_is_unready_until_the_certificate_is_there() {
    let webhook = start(Some(rewriting()), false).await;
    let url = format!("http://{}/readyz", webhook.admin);
    eventually("the admin port", || async {
        reqwest::get(&url).await.is_ok()
    })
    .await;
    assert!(!webhook.ready().await);
    let pem = write_certificate(&webhook.folder.path().join("tls"));
    eventually("ready", || webhook.ready()).await;
    let client = trusting(&pem, webhook.address);
    let answer = client
        .post(format!(
            "https://localhost:{}/mutate",
            webhook.address.port()
        ))
        .body("{")
        .send()
        .await;
    assert_eq!(answer.unwrap().status(), 400);
}

/// A CA and a client certificate of it, with its key.
fn client_authority() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, key);
    let client_key = rcgen::KeyPair::generate().unwrap();
    let client = rcgen::CertificateParams::new(vec!["kube-apiserver".to_owned()]).unwrap();
    let client = client.signed_by(&client_key, &issuer).unwrap().pem();
    (pem, format!("{client}{}", client_key.serialize_pem()))
}

#[tokio::test]
async fn with_a_client_ca_only_its_certificates_may_ask() {
    let mut values = Values::default();
    values.webhook.client_ca_secret = "api-servers".to_owned();
    let webhook = start_with(Some(rewriting()), false, values).await;
    let (ca, identity) = client_authority();
    let (_, stranger) = client_authority();
    let certificate = write_certificate(&webhook.folder.path().join("tls"));
    let url = format!("http://{}/readyz", webhook.admin);
    eventually("the admin port", || async {
        reqwest::get(&url).await.is_ok()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!webhook.ready().await, "not without the CA of the clients");
    let folder = webhook.folder.path().join("client-ca");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("ca.crt"), ca).unwrap();
    eventually("ready", || webhook.ready()).await;
    let ask = async |identity: Option<&str>| {
        let client = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(certificate.as_bytes()).unwrap()])
            .resolve("localhost", webhook.address);
        let client = match identity {
            Some(pem) => client.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap()),
            None => client,
        };
        let url = format!("https://localhost:{}/mutate", webhook.address.port());
        let request = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": create(false) });
        let request = client.build().unwrap().post(url).body(request.to_string());
        request.send().await.map(|answer| answer.status().as_u16())
    };
    assert!(ask(None).await.is_err());
    assert!(ask(Some(&stranger)).await.is_err());
    assert_eq!(ask(Some(&identity)).await.unwrap(), 200);
    eventually("both are counted", || async {
        let line = r#"holdfast_connections_cut_total{reason="handshake_failed"} 2"#;
        webhook.metrics().await.contains(line)
    })
    .await;
    eventually("the Artifact", || async {
        webhook.api.sources().len() == 1
    })
    .await;
}

#[tokio::test]
async fn one_address_has_so_many_connections_to_the_webhook() {
    const MOST: usize = 512;
    let webhook = start(Some(rewriting()), true).await;
    eventually("ready", || webhook.ready()).await;
    let mut held = Vec::new();
    for _ in 0..MOST + 8 {
        held.push(
            tokio::net::TcpStream::connect(webhook.address)
                .await
                .unwrap(),
        );
    }
    eventually("those beyond the limit are closed", || {
        let closed = held.iter().filter(|stream| is_closed(stream)).count();
        async move { closed == 8 }
    })
    .await;
}

/// Whether the other side has ended a connection.
fn is_closed(stream: &tokio::net::TcpStream) -> bool {
    match stream.try_read(&mut [0; 1]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[tokio::test]
async fn all_addresses_have_so_many_connections_to_the_webhook() {
    const MOST: usize = 1024;
    const BEYOND: usize = 8;
    let webhook = start(Some(rewriting()), true).await;
    eventually("ready", || webhook.ready()).await;
    let mut held = Vec::new();
    // No address has more than its share.
    for number in 0..MOST + BEYOND {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        let last = u8::try_from(2 + number % 3).unwrap();
        socket
            .bind(SocketAddr::from(([127, 0, 0, last], 0)))
            .unwrap();
        held.push(socket.connect(webhook.address).await.unwrap());
    }
    let closed = || held.iter().filter(|stream| is_closed(stream)).count();
    eventually("idle ones make room for further ones", || {
        let closed = closed();
        async move { closed == BEYOND }
    })
    .await;
    // An honest client makes one more of them end.
    let answer = webhook.review(create(true)).await;
    assert_eq!(answer["response"]["allowed"], true);
    assert!(
        (BEYOND + 1..=BEYOND + 2).contains(&closed()),
        "{}",
        closed()
    );
}

#[tokio::test]
async fn a_review_has_so_many_levels_and_no_more() {
    let webhook = start(Some(rewriting()), true).await;
    eventually("ready", || webhook.ready()).await;
    // The review, its request and the object are the first three.
    for (levels, expect) in [(127, 200), (128, 400)] {
        let mut request = create(true).to_string();
        let inner = levels - 3;
        let (open, close) = ("[".repeat(inner), "]".repeat(inner));
        let deep = format!(r#""object":{{"unknown":{open}{close},"#);
        request = request.replacen(r#""object":{"#, &deep, 1);
        let review = format!(
            r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{request}}}"#
        );
        let (status, answer) = webhook.post(review).await;
        assert_eq!(status, expect, "{levels} levels: {answer}");
    }
}
