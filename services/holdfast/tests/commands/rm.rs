//! `holdfast rm` against a real registry, with pods and owners in a real API server.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_core::digest::Algorithm;
use holdfast_store::Hasher;
use holdfast_testkit::server::free_address;
use serde_json::json;

use super::{ADDRESS, Site};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry to which every client may push.
struct Registry {
    child: Child,
    api: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Registry {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (api, admin) = (free_address().unwrap(), free_address().unwrap());
        let config = folder.path().join("config.yml");
        let text = format!(
            "listen: '{api}'\nadminListen: '{admin}'\ndata: {}\nupstreams: []\n\
             limits: {{reservePercent: 0}}\n",
            folder.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.args(["registry", "--config"]).arg(&config);
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(api).is_err() {
            assert!(Instant::now() < end, "the registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self {
            child,
            api,
            _folder: folder,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.api)
    }

    /// Pushes an image of this content under each of the tags.
    async fn push(&self, repository: &str, content: &str, tags: &[&str]) {
        let http = reqwest::Client::new();
        let config = json!({"architecture": "amd64", "os": "linux", "author": content}).to_string();
        let digest = Hasher::digest(Algorithm::Sha256, config.as_bytes());
        let path = self.url(&format!("/v2/{repository}/blobs/uploads/?digest={digest}"));
        let size = config.len();
        let pushed = http.post(path).body(config).send().await.unwrap();
        assert_eq!(pushed.status(), 201);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest.to_string(), "size": size,
            },
        })
        .to_string();
        for tag in tags {
            let path = self.url(&format!("/v2/{repository}/manifests/{tag}"));
            let request = http.put(path).header("content-type", MANIFEST);
            let pushed = request.body(manifest.clone()).send().await.unwrap();
            assert_eq!(pushed.status(), 201);
        }
    }

    async fn has(&self, repository: &str, tag: &str) -> bool {
        let path = self.url(&format!("/v2/{repository}/manifests/{tag}"));
        reqwest::get(path).await.unwrap().status() == 200
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rm_deletes_what_nothing_names_and_says_what_names_the_rest() {
    let site = Site::start().await;
    let registry = Registry::start();
    registry.push("team/app", "one", &["1"]).await;
    registry.push("team/app", "two", &["2", "2.0"]).await;
    registry.push("team/tool", "three", &["1"]).await;
    let template = json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": format!("{ADDRESS}/team/app:1")}]},
    });
    let web = json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "template": template},
    });
    site.post("/apis/apps/v1/namespaces/shop/deployments", &web)
        .await;
    let url = registry.url("");
    let rm = async |arguments: &[&str]| {
        let all = [&["rm", "--registry", &url], arguments].concat();
        site.run(&all).await
    };

    let refused = rm(&["team/app:1", "--yes"]).await;
    refused.check(1, &["refused", "named by Deployment shop/web"]);
    let upstreams = rm(&["docker.io/library/nginx:1", "--yes"]).await;
    upstreams.check(1, &["refused", "copy of an upstream's image"]);
    rm(&["team/app", "--yes"])
        .await
        .check(64, &["name a tag or a digest"]);
    rm(&["team/app:2"]).await.check(64, &["confirm with --yes"]);

    let dry = rm(&["--unused", "--dry-run"]).await;
    dry.check(
        0,
        &["team/tool:1", "would be deleted", "nothing was changed"],
    );
    assert!(!dry.text.contains("team/app:1 "), "{}", dry.text);
    assert!(registry.has("team/app", "2").await);

    let tag = rm(&[&format!("{ADDRESS}/team/app:2"), "--yes"]).await;
    tag.check(0, &["tag deleted", "2.0 needs the manifest"]);
    assert!(!registry.has("team/app", "2").await);
    assert!(registry.has("team/app", "2.0").await);

    let unused = rm(&["--unused", "--yes", "-o", "name"]).await;
    unused.check(0, &["team/app:2.0\nteam/tool:1\n"]);
    for (repository, tag, expect) in [
        ("team/app", "1", true),
        ("team/app", "2.0", false),
        ("team/tool", "1", false),
    ] {
        assert_eq!(
            registry.has(repository, tag).await,
            expect,
            "{repository}:{tag}"
        );
    }
    rm(&["team/tool:1", "--yes"]).await.check(1, &["absent"]);
}
