//! Upstream registries of a test: the CNCF distribution registry with our fault proxy in front,
//! inside the cluster's network.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::command;
use crate::wait::eventually;

/// Starts programs inside the cluster's network.
pub(crate) type Launcher = Arc<dyn Fn(&Path) -> Command + Send + Sync>;

/// What an upstream is made of.
pub(crate) struct Plan<'a> {
    /// The host as it stands in references.
    pub(crate) host: &'a str,
    /// The address that nodes and pods reach.
    pub(crate) address: &'a str,
    /// The first of three ports: proxy, control, registry behind.
    pub(crate) port: u16,
    /// User and password that the proxy asks for.
    pub(crate) login: Option<(&'a str, &'a str)>,
    /// Whether the proxy serves TLS with a certificate of its own.
    pub(crate) tls: bool,
}

/// A running upstream.
pub(crate) struct Upstream {
    pub(crate) host: String,
    /// Where pods reach the proxy: scheme, address and port.
    pub(crate) endpoint: String,
    /// The CA's certificate, PEM, where the proxy serves TLS.
    pub(crate) ca: Option<String>,
    control: String,
    registry: String,
    inside: Launcher,
    crane: PathBuf,
    children: Vec<Child>,
    keep: bool,
}

/// Programs that upstreams are made of.
pub(crate) struct Programs {
    pub(crate) registry: PathBuf,
    pub(crate) proxy: PathBuf,
    pub(crate) crane: PathBuf,
}

impl Upstream {
    /// Starts registry and proxy; `folder` takes the registry's data.
    pub(crate) fn start(
        plan: &Plan,
        programs: &Programs,
        inside: &Launcher,
        folder: &Path,
        keep: bool,
    ) -> Result<Self> {
        let folder = folder.join(plan.host.replace(':', "_"));
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let registry = format!("127.0.0.1:{}", plan.port + 2);
        let control = format!("127.0.0.1:{}", plan.port + 1);
        let configuration = folder.join("config.yml");
        let settings = json!({
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": folder.join("data")}, "delete": {"enabled": true}},
            "http": {"addr": registry},
        });
        std::fs::write(&configuration, settings.to_string())
            .context("write the registry's configuration")?;
        let mut serve = inside(&programs.registry);
        serve.arg("serve").arg(&configuration);
        let mut proxy = inside(&programs.proxy);
        proxy.args([
            "proxy",
            "--listen",
            &format!("0.0.0.0:{}", plan.port),
            "--target",
            &format!("http://{registry}"),
            "--control",
            &control,
        ]);
        if let Some((user, password)) = plan.login {
            proxy.args(["--basic", &format!("{user}:{password}")]);
        }
        let ca = folder.join("ca.crt");
        if plan.tls {
            proxy.args(["--tls", "self-signed"]).arg(&ca).args([
                "--name",
                plan.address,
                "--name",
                plan.host,
            ]);
        }
        let children = vec![
            spawn(serve, &folder.join("registry.log"))?,
            spawn(proxy, &folder.join("proxy.log"))?,
        ];
        let scheme = if plan.tls { "https" } else { "http" };
        let mut upstream = Self {
            host: plan.host.to_owned(),
            endpoint: format!("{scheme}://{}:{}", plan.address, plan.port),
            ca: None,
            control,
            registry,
            inside: inside.clone(),
            crane: programs.crane.clone(),
            children,
            keep,
        };
        eventually(Duration::from_secs(20), || {
            upstream.control("GET", "requests", "")?;
            upstream
                .http("GET", &format!("http://{}/v2/", upstream.registry), "")
                .map(drop)
        })
        .with_context(|| format!("upstream {}: see {}", plan.host, folder.display()))?;
        if plan.tls {
            upstream.ca = Some(std::fs::read_to_string(&ca).context("read the upstream's CA")?);
        }
        Ok(upstream)
    }

    fn http(&self, method: &str, url: &str, body: &str) -> Result<String> {
        let own = std::env::current_exe().context("own path")?;
        let mut command = (self.inside)(&own);
        command.args(["http", method, url, body]);
        command::run_within(command, Duration::from_secs(30))
    }

    fn control(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let text = self.http(method, &format!("http://{}/{path}", self.control), body)?;
        serde_json::from_str(&text).with_context(|| format!("answer of the fault proxy: {text}"))
    }

    /// Pushes an OCI layout past the proxy. Returns the full reference.
    pub(crate) fn push(&self, layout: &Path, name: &str) -> Result<String> {
        let mut crane = (self.inside)(&self.crane);
        crane
            .arg("push")
            .arg("--insecure")
            .arg(layout)
            .arg(format!("{}/{name}", self.registry));
        command::run(crane)?;
        Ok(format!("{}/{name}", self.host))
    }

    /// Makes something go wrong from now on, until [`Self::heal`].
    pub(crate) fn fault(&self, fault: &Value) -> Result<()> {
        self.control("POST", "fault", &fault.to_string()).map(drop)
    }

    /// Takes the upstream away: every connection is cut.
    pub(crate) fn down(&self) -> Result<()> {
        self.fault(&json!({"kind": "down"}))
    }

    /// Ends all faults.
    pub(crate) fn heal(&self) -> Result<()> {
        self.control("DELETE", "fault", "").map(drop)
    }

    /// Requests so far, by `METHOD path`.
    pub(crate) fn requests(&self) -> Result<BTreeMap<String, u64>> {
        serde_json::from_value(self.control("GET", "requests", "")?)
            .context("counts of the fault proxy")
    }

    /// Forgets the requests so far.
    pub(crate) fn forget(&self) -> Result<()> {
        self.control("DELETE", "requests", "").map(drop)
    }

    /// How often each blob of a repository was fetched, by digest.
    pub(crate) fn blob_fetches(&self, repository: &str) -> Result<BTreeMap<String, u64>> {
        Ok(fetches(&self.requests()?, repository))
    }

    /// Checks that each blob of a repository was fetched exactly once.
    pub(crate) fn fetched_once(&self, repository: &str, blobs: usize) -> Result<()> {
        let fetches = self.blob_fetches(repository)?;
        ensure!(
            fetches.len() == blobs,
            "{} of {blobs} blobs of {repository} were fetched: {fetches:?}",
            fetches.len()
        );
        ensure!(
            fetches.values().all(|count| *count == 1),
            "a blob of {repository} was fetched more than once: {fetches:?}"
        );
        Ok(())
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Starts a server whose output goes to a file.
pub(crate) fn spawn(mut command: Command, log: &Path) -> Result<Child> {
    let log = std::fs::File::create(log).with_context(|| format!("make {}", log.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("log")?)
        .stderr(log);
    command
        .spawn()
        .with_context(|| format!("start {}", command.get_program().to_string_lossy()))
}

/// Picks `GET /v2/REPOSITORY/blobs/DIGEST` out of the counts.
fn fetches(requests: &BTreeMap<String, u64>, repository: &str) -> BTreeMap<String, u64> {
    let start = format!("GET /v2/{repository}/blobs/");
    requests
        .iter()
        .filter_map(|(request, count)| Some((request.strip_prefix(&start)?.to_owned(), *count)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fetches_of_blobs_count() {
        let requests = [
            ("GET /v2/a/b/blobs/sha256:1", 2),
            ("HEAD /v2/a/b/blobs/sha256:2", 1),
            ("GET /v2/a/b/manifests/1", 1),
            ("GET /v2/a/c/blobs/sha256:3", 1),
        ];
        let requests = requests
            .into_iter()
            .map(|(request, count)| (request.to_owned(), count))
            .collect();
        assert_eq!(
            fetches(&requests, "a/b"),
            BTreeMap::from([("sha256:1".to_owned(), 2)])
        );
    }
}
