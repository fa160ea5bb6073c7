//! Holdfast in that cluster: the chart installed by helm, and two of its programs as processes of
//! this machine, told and permitted what they are in a cluster.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_cluster::{ApiServer, Program, programs};
use holdfast_testkit::server::free_address;
use serde_json::{Value, json};

use super::{api::Api, site};
use crate::process::Process;

/// The release's namespace.
pub(crate) const NAMESPACE: &str = "holdfast-system";
/// Who the controller is to the API server.
pub(super) const CONTROLLER: &str = "system:serviceaccount:holdfast-system:holdfast-controller";
/// How long a part may take to do what it does at its start.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The path of an object of the release's namespace.
pub(crate) fn namespaced(rest: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/{rest}")
}

/// Installs the chart. Its values are the defaults, with the registry switched on.
pub(crate) fn install(server: &ApiServer, scratch: &Path) -> Result<()> {
    let programs = programs::ensure(&[Program::Helm])?;
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../chart");
    let mut helm = Command::new(programs.path(Program::Helm)?);
    helm.args(["install", "holdfast"])
        .arg(chart)
        .args(["--namespace", NAMESPACE, "--create-namespace", "--no-hooks"])
        .args([
            "--set",
            "global.networkfunctionextension.enableClusterRegistry=true",
        ])
        .arg("--kubeconfig")
        .arg(server.kubeconfig());
    for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        helm.env(variable, scratch.join("helm"));
    }
    let output = helm.output().context("start helm")?;
    ensure!(
        output.status.success(),
        "helm install: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Has the webhook's configuration match nothing: nobody serves behind its Service here, and the
/// API server would wait for it.
pub(crate) async fn silence_webhook(api: &Api) -> Result<()> {
    let path =
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/holdfast-webhook";
    let configuration = api.get(path).await?.context("no webhook configuration")?;
    let webhooks = configuration["webhooks"].as_array().map_or(0, Vec::len);
    let operations: Vec<Value> = (0..webhooks)
        .map(|number| json!({"op": "replace", "path": format!("/webhooks/{number}/rules"), "value": []}))
        .collect();
    api.operate(path, &json!(operations)).await?;
    Ok(())
}

/// A prepared node agent on every node, as its DaemonSet would have it.
pub(super) async fn agents(api: &Api) -> Result<()> {
    let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/holdfast-node-agent");
    let set = api.get(&path).await?.context("no DaemonSet")?;
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "controller": true,
        "name": "holdfast-node-agent", "uid": set["metadata"]["uid"],
    });
    for number in 0..site::NODES {
        let name = format!("holdfast-node-agent-{number}");
        let pod = json!({
            "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
            "spec": {"nodeName": format!("node-{number}"), "containers": [{"name": "node-agent", "image": "holdfast.example/holdfast"}]},
        });
        api.post(&namespaced("pods"), &pod).await?;
        let status = site::running("node-agent", "holdfast.example/holdfast");
        let path = namespaced(&format!("pods/{name}/status"));
        api.merge(&path, &status).await?;
    }
    Ok(())
}

/// Programs, their files, and where they are to meet.
pub(super) struct Release {
    program: PathBuf,
    folder: PathBuf,
    /// The registry's internal API.
    internal: SocketAddr,
    /// The controller's probes and metrics.
    pub(super) admin: SocketAddr,
}

impl Release {
    /// Writes what a pod of the controller would have mounted: the configuration, and a token of
    /// its service account.
    pub(super) async fn prepare(api: &Api, server: &ApiServer, folder: &Path) -> Result<Self> {
        let config = api
            .get(&namespaced("configmaps/holdfast-config"))
            .await?
            .context("no configuration")?;
        let config = config["data"]["config.yaml"]
            .as_str()
            .context("an empty configuration")?;
        fs::write(folder.join("config.yaml"), config)?;
        let wish = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86_400}});
        let path = namespaced("serviceaccounts/holdfast-controller/token");
        let token = api.post(&path, &wish).await?["status"]["token"].clone();
        let authority = STANDARD.encode(server.certificate_authority()?);
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{"name": "bench", "cluster": {"server": server.url(), "certificate-authority-data": authority}}],
            "users": [{"name": "controller", "user": {"token": token}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "controller"}}],
        });
        fs::write(folder.join("kubeconfig"), kubeconfig.to_string())?;
        Ok(Self {
            program: crate::holdfast()?,
            folder: folder.to_path_buf(),
            internal: free_address()?,
            admin: free_address()?,
        })
    }

    /// Starts the controller.
    pub(super) fn controller(&self) -> Result<Process> {
        let mut command = Command::new(&self.program);
        command
            .arg("controller")
            .arg("--config")
            .arg(self.folder.join("config.yaml"))
            .args(["--registry", &self.internal.to_string()])
            .args(["--admin-listen", &self.admin.to_string()])
            .env("KUBECONFIG", self.folder.join("kubeconfig"))
            .env("POD_NAME", "holdfast-controller-bench");
        Process::start(&mut command, &self.folder.join("controller.log"))
    }

    /// What the controller printed last.
    pub(super) fn said(&self) -> String {
        let log = fs::read_to_string(self.folder.join("controller.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Starts the registry with the certificate that the controller has made for it, as soon as it
    /// has.
    pub(super) async fn registry(&self, api: &Api, upstream: SocketAddr) -> Result<Process> {
        let tls = self.folder.join("registry-tls");
        fs::create_dir_all(&tls)?;
        for (secret, files) in [
            (
                "holdfast-registry-tls",
                &["tls.crt", "tls.key", "ca.crt"][..],
            ),
            ("holdfast-registry-auth", &["upload-secret"][..]),
        ] {
            let secret = self.secret(api, secret).await?;
            for file in files {
                let text = secret["data"][file].as_str().unwrap_or_default();
                fs::write(tls.join(file), STANDARD.decode(text)?)?;
            }
        }
        let tls = tls.display();
        let text = format!(
            "logging: {{format: text, level: warn}}\nlimits: {{reservePercent: 0}}\nuplink: {{requestsPerSecondPerHost: 0}}\n\
             upstreams: [{{host: {host}, endpoint: 'http://{upstream}'}}]\n\
             replicas: {{listen: '{internal}', name: holdfast-registry-internal.{NAMESPACE}.svc, tlsFolder: {tls}, uploadSecretFile: {tls}/upload-secret}}\n",
            host = site::HOST,
            internal = self.internal,
        );
        let config = self.folder.join("registry.yaml");
        fs::write(&config, text)?;
        let mut command = Command::new(&self.program);
        command
            .arg("registry")
            .arg("--config")
            .arg(config)
            .arg("--data")
            .arg(self.folder.join("data"))
            .args(["--listen", &free_address()?.to_string()]);
        let log = self.folder.join("registry.log");
        let mut process = Process::start(&mut command, &log)?;
        let begun = Instant::now();
        while std::net::TcpStream::connect(self.internal).is_err() {
            if process.has_ended() || begun.elapsed() > START_TIMEOUT {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("the registry does not serve: {}", said.trim());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(process)
    }

    async fn secret(&self, api: &Api, name: &str) -> Result<Value> {
        let path = namespaced(&format!("secrets/{name}"));
        let begun = Instant::now();
        loop {
            if let Some(secret) = api.get(&path).await? {
                return Ok(secret);
            }
            ensure!(
                begun.elapsed() < START_TIMEOUT,
                "the controller does not make Secret {name}:\n{}",
                self.said()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The registry's address, once the controller has pods rewritten.
    pub(super) async fn address(&self, api: &Api) -> Result<String> {
        let begun = Instant::now();
        loop {
            let map = api.get(&namespaced("configmaps/holdfast-state")).await?;
            let text = map
                .as_ref()
                .and_then(|map| map["data"]["state.json"].as_str());
            let state: Value = serde_json::from_str(text.unwrap_or("{}"))?;
            if state["rewrite"] == true
                && let Some(address) = state["registryAddress"].as_str()
            {
                return Ok(address.to_owned());
            }
            ensure!(
                begun.elapsed() < START_TIMEOUT,
                "the controller does not let pods be rewritten: {state}"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
