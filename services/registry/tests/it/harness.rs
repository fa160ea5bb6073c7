//! A registry on 127.0.0.1 and a small client for it.

use std::{path::Path, sync::Arc, time::Duration};

use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};
use holdfast_fill::pull_through::PullThrough;
use holdfast_registry::{
    Api, Parts, access_control::AccessControl, limits::Limits, session::Secret,
};
use holdfast_runtime::{CancellationToken, metrics, server};
use holdfast_store::{Hasher, LockHolder, Options, Store, volume::Volume};
use reqwest::{Method, Response, header::HeaderMap};

/// A running registry; it ends with the test.
pub(crate) struct Registry {
    pub(crate) store: Store,
    pub(crate) url: String,
    pub(crate) stop: CancellationToken,
    client: reqwest::Client,
    _dir: Arc<tempfile::TempDir>,
}

/// What differs between tests.
pub(crate) struct Setup {
    pub(crate) source: Option<Arc<dyn PullThrough>>,
    pub(crate) access_control: AccessControl,
    pub(crate) limits: Limits,
    pub(crate) connections: server::Limits,
    pub(crate) options: Options,
    pub(crate) dir: Arc<tempfile::TempDir>,
    /// What the store lies on; else the disk.
    pub(crate) volume: Option<Arc<dyn Volume>>,
}

impl Default for Setup {
    fn default() -> Self {
        let options = Options::unlimited();
        Self {
            source: None,
            access_control: AccessControl::open(),
            limits: Limits {
                hold: Duration::from_millis(500),
                ..Limits::default()
            },
            connections: server::Limits::default(),
            options,
            dir: Arc::new(tempfile::tempdir().unwrap()),
            volume: None,
        }
    }
}

impl Setup {
    pub(crate) async fn start(self) -> Registry {
        holdfast_runtime::tls::install_crypto_provider();
        let Self {
            source,
            access_control,
            limits,
            connections,
            options,
            dir,
            volume,
        } = self;
        let store = match volume {
            Some(volume) => Store::open_on(volume, dir.path(), options).await,
            None => Store::open(dir.path(), options).await,
        };
        let store = store.unwrap();
        let stop = CancellationToken::new();
        let parts = Parts {
            store: store.clone(),
            source,
            access_control,
            secret: Secret::new("upload-secret"),
            limits,
            owner: LockHolder {
                address: String::new(),
                id: uuid::Uuid::new_v4().to_string(),
            },
            draining: stop.clone(),
        };
        let api = Api::new(parts, &mut metrics::registry("registry"));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(api.serve(listener, None, connections, CancellationToken::new()));
        Registry {
            store,
            url,
            stop,
            client: reqwest::Client::new(),
            _dir: dir,
        }
    }
}

impl Registry {
    pub(crate) async fn start() -> Self {
        Setup::default().start().await
    }

    pub(crate) fn root(&self) -> &Path {
        self.store.root()
    }

    /// Sends a request; `target` is a path, or what `Location` said.
    pub(crate) async fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Response {
        let mut request = self
            .client
            .request(
                Method::from_bytes(method.as_bytes()).unwrap(),
                format!("{}{target}", self.url),
            )
            .body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    pub(crate) async fn get(&self, target: &str) -> Response {
        self.send("GET", target, &[], "").await
    }

    /// Deletes, and returns the status.
    pub(crate) async fn delete(&self, target: &str) -> u16 {
        self.send("DELETE", target, &[], "").await.status().as_u16()
    }

    /// Ends an upload with the rest of its content.
    pub(crate) async fn finish(
        &self,
        location: &str,
        digest: &Digest,
        rest: impl Into<reqwest::Body>,
    ) -> Response {
        let target = format!("{location}&digest={digest}");
        self.send("PUT", &target, &[], rest).await
    }

    /// Pushes a blob whole and returns its digest.
    pub(crate) async fn push_blob(&self, repo: &str, bytes: impl Into<Vec<u8>>) -> Digest {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        let answer = self
            .send(
                "POST",
                &format!("/v2/{repo}/blobs/uploads/?digest={digest}"),
                &[],
                bytes,
            )
            .await;
        assert_eq!(answer.status(), 201);
        digest
    }

    /// Pushes an image of one layer and returns the manifest's digest and bytes.
    pub(crate) async fn push_image(&self, repo: &str, tag: &str, layer: &[u8]) -> (Digest, String) {
        let config = self.push_blob(repo, "{}").await;
        let layer_digest = self.push_blob(repo, layer).await;
        let manifest = image(&config, 2, &[(&layer_digest, layer.len())], "");
        let answer = self.put_manifest(repo, tag, &manifest).await;
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
        (sha256(manifest.as_bytes()), manifest)
    }

    pub(crate) async fn put_manifest(
        &self,
        repo: &str,
        reference: &str,
        manifest: &str,
    ) -> Response {
        self.send(
            "PUT",
            &format!("/v2/{repo}/manifests/{reference}"),
            &[("content-type", OCI_MANIFEST)],
            manifest.to_owned(),
        )
        .await
    }
}

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Hasher::digest(Algorithm::Sha256, bytes)
}

pub(crate) fn repo(name: &str) -> RepositoryName {
    RepositoryName::parse(name).unwrap()
}

/// An image manifest; `extra` is JSON that begins with a comma.
pub(crate) fn image(
    config: &Digest,
    config_size: usize,
    layers: &[(&Digest, usize)],
    extra: &str,
) -> String {
    let layers: Vec<_> = layers
        .iter()
        .map(|(digest, size)| format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{size}}}"#))
        .collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{config_size}}},"layers":[{}]{extra}}}"#,
        layers.join(",")
    )
}

pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

pub(crate) async fn code(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let body: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    (
        status,
        body["errors"][0]["code"].as_str().unwrap().to_owned(),
    )
}

/// Bytes that differ everywhere.
pub(crate) fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state & 0xff) as u8
        })
        .collect()
}
