//! Commands tell why an image is not local: the cause that the registry knows, and since when.

use std::time::{Duration, Instant};

use holdfast_api::artifact_name;
use holdfast_config::{Config, Proxy, Uplink, UpstreamSettings};
use holdfast_controller::artifacts::fill::Client as FillClient;
use holdfast_controller::{Context, Metrics};
use holdfast_fill::internal;
use holdfast_fill::{Fills, Peers, Settings};
use holdfast_runtime::health::Health;
use holdfast_runtime::supervise::Supervisor;
use holdfast_runtime::{CancellationToken, metrics, server};
use holdfast_store::{LockHolder, Options, Store};
use holdfast_testkit::{Auth, ImageBuilder, Upstream};
use holdfast_upstream::{Timeouts, Upstreams};
use serde_json::{Value, json};

use crate::{ARTIFACTS, Site, workload};

/// What the registry says of an upstream that it does not ask, and the controller of an image
/// there.
const NOT_ASKED: &str = "the upstream is unavailable: connection refused, failing since \
                         2026-01-01T00:00:00Z, next probe in 50 s";

#[tokio::test]
async fn diff_offline_tells_why_an_upstream_is_not_asked() {
    let site = Site::start().await;
    for name in ["web", "shop"] {
        let image = format!("registry.example/{name}:1");
        site.post(
            "/apis/apps/v1/namespaces/shop/deployments",
            &workload(name, &image),
        )
        .await;
        let message = if name == "web" { NOT_ASKED } else { "so it is" };
        site.stands_for("shop", &image, "UpstreamUnavailable", message)
            .await;
    }
    let json_file = site.folder.path().join("diff.json");
    let diff = ["diff", "offline", "--json", json_file.to_str().unwrap()];
    let line = format!("UpstreamUnavailable: {NOT_ASKED}");
    site.run(&diff).await.check(1, &["Deployment/web", &line]);
    let owners = site.json("diff.json")["owners"].clone();
    let owners = owners.as_array().unwrap();
    let web = owners.iter().find(|owner| owner["name"] == "web").unwrap();
    let why = web["images"][0]["why"].as_str().unwrap();
    assert!(why.contains(NOT_ASKED), "{why}");
}

#[tokio::test]
async fn status_tells_why_an_upstream_is_not_asked() {
    let site = Site::start().await;
    let source = "registry.example/web:1";
    site.stands_for("shop", source, "UpstreamUnavailable", NOT_ASKED)
        .await;
    let json_file = site.folder.path().join("status.json");
    let status = ["status", "--json", json_file.to_str().unwrap()];
    site.run(&status).await.check(
        1,
        &[
            "0 of 1 local (0 B), 1 UpstreamUnavailable",
            source,
            NOT_ASKED,
        ],
    );
    let found = site.json("status.json");
    assert_eq!(found["absent"][0]["message"], NOT_ASKED);
}

/// A registry whose upstream `registry.example` is this one: the URL of its internal API.
async fn registry(site: &Site, upstream: &Upstream, stop: &CancellationToken) -> String {
    let data = site.folder.path().join("data");
    let store = Store::open(&data, Options::unlimited()).await.unwrap();
    let listed = [UpstreamSettings::anonymous(
        "registry.example",
        &[upstream.url()],
    )];
    let (proxy, uplink) = (Proxy::default(), Uplink::default());
    let upstreams = Upstreams::new(&listed, &proxy, &uplink, Timeouts::default()).unwrap();
    let owner = LockHolder {
        address: String::new(),
        id: "alone".to_owned(),
    };
    let settings = Settings::default();
    let fills = Fills::new(store, upstreams, owner, Peers::none(), settings);
    let listener = server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(internal::serve(listener, None, fills, stop.clone()));
    url
}

/// Starts a controller that asks the registry at `url` for copies.
fn controller(site: &Site, url: &str, stop: &CancellationToken) {
    let document = json!({
        "release": {"name": "holdfast", "namespace": "holdfast-system", "fullname": "holdfast", "version": "0.1.0"},
        "values": {},
    });
    let mut numbers = metrics::registry("controller");
    let context = Context::new(
        site.client.clone(),
        Config::parse(&document.to_string()).unwrap(),
        Metrics::register(&mut numbers),
    );
    let supervisor = Supervisor::new(Health::default(), &mut numbers, stop.clone());
    let fills = FillClient::new(reqwest::Client::new(), url);
    context.unwrap().start(&supervisor, Some(fills));
}

/// What the condition of an Artifact of namespace shop says, once its reason is this one.
async fn message(site: &Site, source: &str, reason: &str) -> String {
    let path = format!(
        "{ARTIFACTS}/namespaces/shop/artifacts/{}",
        artifact_name(source)
    );
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let artifact = site.get(&path).await.unwrap_or_default();
        let condition = &artifact["status"]["conditions"][0];
        if condition["reason"] == reason {
            return condition["message"].as_str().unwrap().to_owned();
        }
        assert!(Instant::now() < end, "{source} is not {reason}: {artifact}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_is_told_in_the_registrys_words() {
    let site = Site::start().await;
    let stop = CancellationToken::new();
    let users = vec![("user".to_owned(), "right".to_owned())];
    let upstream = Upstream::start_with(Auth::Basic(users)).await;
    upstream.push("web", "1", &ImageBuilder::new(1).layer(100).build());
    let source = "registry.example/web:1";
    let auths = json!({"auths": {"registry.example": {"username": "user", "password": "wrong"}}});
    let secret = json!({
        "metadata": {"name": "theirs"}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": auths.to_string()},
    });
    site.post("/api/v1/namespaces/shop/secrets", &secret).await;
    let mut web = workload("web", source);
    web["spec"]["template"]["spec"]["imagePullSecrets"] = json!([{"name": "theirs"}]);
    site.post("/apis/apps/v1/namespaces/shop/deployments", &web)
        .await;

    let url = registry(&site, &upstream, &stop).await;
    controller(&site, &url, &stop);
    let told = message(&site, source, "Unauthorized").await;
    let words = holdfast_fill::Error::Unauthorized.to_string();
    assert!(words.contains("refused every credential"), "{words}");
    assert!(told.contains(&words), "{told}");
    let logins = upstream.requests().all().into_iter();
    let tried: Vec<bool> = logins.map(|it| it.authorization.is_some()).collect();
    assert!(tried.contains(&true) && tried.contains(&false), "{tried:?}");
    stop.cancel();

    let file = site.folder.path().join("told.json");
    let json_file = ["--json", file.to_str().unwrap()];
    let status = [&["status"][..], &json_file].concat();
    let line = format!("Unauthorized: {told}");
    site.run(&status).await.check(1, &[source, &told]);
    assert_eq!(site.json("told.json")["absent"][0]["message"], told);
    let diff = [&["diff", "offline"][..], &json_file].concat();
    site.run(&diff).await.check(1, &["Deployment/web", &line]);
    let owners: Value = site.json("told.json")["owners"].clone();
    let why = owners[0]["images"][0]["why"].as_str().unwrap();
    assert!(why.contains(&told), "{why}");
}
