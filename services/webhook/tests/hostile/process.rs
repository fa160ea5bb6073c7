//! The webhook in a process of its own: this test binary once more, configured by the environment.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use holdfast_config::{Config, Release, Values};
use holdfast_runtime::{CancellationToken, tls};
use serde_json::json;
use tokio::net::TcpListener;
use warp::Filter as _;

/// The environment variable of the process that is the webhook.
const ROLE: &str = "HOLDFAST_HOSTILE_WEBHOOK";

/// A running webhook; it ends with this value.
pub(crate) struct Webhook {
    child: Child,
    address: SocketAddr,
    pem: String,
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The largest memory seen since it began.
pub(crate) struct Peak {
    largest: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Peak {
    /// The largest value, in bytes.
    pub(crate) fn end(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.largest.load(Ordering::Relaxed)
    }
}

impl Webhook {
    /// Starts it and waits until it is ready.
    pub(crate) async fn start() -> Self {
        tls::install_crypto_provider();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "process::serves_where_the_environment_asks",
                "--nocapture",
            ])
            .env(ROLE, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let announced = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("SERVES ")?.1.to_owned()))
            .unwrap();
        // The test harness of that process goes on to write.
        std::thread::spawn(move || lines.for_each(drop));
        let announced: serde_json::Value = serde_json::from_str(&announced).unwrap();
        let address = |key: &str| {
            announced[key]
                .as_str()
                .unwrap()
                .parse::<SocketAddr>()
                .unwrap()
        };
        let webhook = Self {
            child,
            address: address("address"),
            pem: announced["pem"].as_str().unwrap().to_owned(),
        };
        let url = format!("http://{}/readyz", address("admin"));
        for _ in 0..400 {
            if reqwest::get(&url)
                .await
                .is_ok_and(|answer| answer.status() == 200)
            {
                return webhook;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the webhook is not ready");
    }

    /// A client with connections of its own, as the API server is one: HTTP/1.1.
    pub(crate) fn client(&self) -> reqwest::Client {
        self.builder().http1_only().build().unwrap()
    }

    /// A client that speaks HTTP/2, where bodies are sent ahead of being read.
    pub(crate) fn http2_client(&self) -> reqwest::Client {
        self.builder().build().unwrap()
    }

    fn builder(&self) -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(self.pem.as_bytes()).unwrap()])
            .resolve("localhost", self.address)
            .no_proxy()
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/mutate", self.address.port())
    }

    /// Sends a review; status and body of the answer.
    pub(crate) async fn post(
        &self,
        client: &reqwest::Client,
        body: bytes::Bytes,
    ) -> reqwest::Result<(u16, String)> {
        let answer = client.post(self.url()).body(body).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Sends a body of this announced length; the status of the answer.
    pub(crate) async fn trickle(
        &self,
        client: &reqwest::Client,
        length: usize,
        body: reqwest::Body,
    ) -> reqwest::Result<u16> {
        let request = client.post(self.url()).header("content-length", length);
        Ok(request.body(body).send().await?.status().as_u16())
    }

    /// Bytes of its memory that are resident.
    pub(crate) fn resident(&self) -> u64 {
        resident(self.child.id()).unwrap()
    }

    /// Follows its memory from now on.
    pub(crate) fn sample(&self) -> Peak {
        let (largest, over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (pid, seen, end) = (self.child.id(), Arc::clone(&largest), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                seen.fetch_max(resident(pid).unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Peak {
            largest,
            over,
            thread,
        }
    }
}

fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Serves until it is killed, if the environment asks for it. In an ordinary run of the tests it
/// does nothing.
#[test]
fn serves_where_the_environment_asks() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(serve());
}

async fn serve() {
    tls::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(
        folder.path().join("tls.key"),
        made.signing_key.serialize_pem(),
    )
    .unwrap();
    std::fs::write(folder.path().join("tls.crt"), made.cert.pem()).unwrap();
    let config = Config {
        release: Release {
            name: "holdfast".to_owned(),
            namespace: "sys".to_owned(),
            fullname: "holdfast".to_owned(),
            version: "0".to_owned(),
        },
        values: Values::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let announced = json!({
        "address": listener.local_addr().unwrap().to_string(),
        "admin": admin.local_addr().unwrap().to_string(),
        "pem": made.cert.pem(),
    });
    println!("\nSERVES {announced}");
    let client = api_server().await;
    let stop = CancellationToken::new();
    holdfast_webhook::serve(config, None, client, folder.path(), listener, admin, stop).await;
}

/// An API server with a state that rewrites; Artifacts are accepted and dropped.
async fn api_server() -> kube::Client {
    let state =
        json!({ "registryAddress": "10.96.0.50", "aliases": [], "rewrite": true, "reason": "" });
    let item = json!({
        "metadata": { "name": "holdfast-state", "namespace": "sys", "resourceVersion": "1" },
        "data": { "state.json": state.to_string() },
    });
    let list = json!({ "apiVersion": "v1", "kind": "ConfigMapList", "metadata": { "resourceVersion": "1" }, "items": [item] });
    let config_maps = warp::path!("api" / "v1" / "namespaces" / "sys" / "configmaps")
        .and(warp::query::<std::collections::HashMap<String, String>>())
        .then(move |query: std::collections::HashMap<String, String>| {
            let list = list.clone();
            async move {
                if query.contains_key("watch") {
                    std::future::pending::<()>().await;
                }
                warp::reply::json(&list)
            }
        });
    let artifacts =
        warp::path!("apis" / "holdfast.dev" / "v1alpha1" / "namespaces" / String / "artifacts")
            .and(warp::post())
            .and(warp::body::json())
            .map(|_: String, artifact: serde_json::Value| warp::reply::json(&artifact));
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
