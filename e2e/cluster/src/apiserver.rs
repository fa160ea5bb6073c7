//! An API server and its etcd, without nodes: for reconcilers, admission, leases and CRDs.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::cache;
use crate::command::run;
use crate::programs::{self, Program, Programs};

/// Token of the test's user, who may do everything. It guards nothing: the server listens on
/// loopback for the length of a test.
const TOKEN: &str = "holdfast-test";

/// kubeadm refuses to advertise loopback; what it certifies beside it is what counts.
const APISERVER_PHASE: [&str; 3] = [
    "apiserver",
    "--apiserver-advertise-address=192.0.2.1",
    "--apiserver-cert-extra-sans=127.0.0.1,localhost",
];

/// A running API server; both processes end when it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    children: Vec<Child>,
    folder: PathBuf,
    port: u16,
}

impl ApiServer {
    /// Starts one on free ports and waits until it is ready.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// As [`Self::start`], with further arguments for kube-apiserver.
    pub fn start_with(arguments: &[String]) -> Result<Self> {
        let programs =
            programs::ensure(&[Program::Etcd, Program::KubeApiserver, Program::Kubeadm])?;
        let [etcd, peer, port] = free_ports()?;
        let base = cache::directory()?.join("apiservers");
        remove_orphans(&base);
        let folder = base.join(format!("{}-{port}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let mut server = Self {
            children: Vec::new(),
            folder,
            port,
        };
        server.certify(&programs)?;
        let (client, peer) = (
            format!("http://127.0.0.1:{etcd}"),
            format!("http://127.0.0.1:{peer}"),
        );
        server.spawn(
            Command::new(programs.path(Program::Etcd)?)
                .arg("--data-dir")
                .arg(server.folder.join("etcd"))
                .args(["--unsafe-no-fsync", "--log-level=error"])
                .args([format!("--listen-client-urls={client}")])
                .args([format!("--advertise-client-urls={client}")])
                .args([format!("--listen-peer-urls={peer}")])
                .args([format!("--initial-advertise-peer-urls={peer}")])
                .args([format!("--initial-cluster=default={peer}")]),
        )?;
        server.spawn(
            server
                .api_server(programs.path(Program::KubeApiserver)?, &client)
                .args(arguments),
        )?;
        server.write_kubeconfig()?;
        server.wait_ready()?;
        Ok(server)
    }

    /// A kubeconfig of a user who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The server's address.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The certificate authority of server and clients, in PEM.
    pub fn certificate_authority(&self) -> Result<String> {
        Ok(fs::read_to_string(self.certificates().join("ca.crt"))?)
    }

    /// The bearer token of that user.
    pub const fn token(&self) -> &'static str {
        TOKEN
    }

    /// Kills the API server and keeps etcd, as if the control plane were gone.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut server) = (self.children.len() > 1)
            .then(|| self.children.pop())
            .flatten()
        {
            server.kill()?;
            server.wait()?;
        }
        Ok(())
    }

    fn certificates(&self) -> PathBuf {
        self.folder.join("pki")
    }

    fn certify(&self, programs: &Programs) -> Result<()> {
        fs::write(
            self.folder.join("tokens.csv"),
            format!("{TOKEN},admin,admin,system:masters\n"),
        )?;
        for phase in [&["ca"][..], &["sa"], &APISERVER_PHASE] {
            let mut command = Command::new(programs.path(Program::Kubeadm)?);
            command.args(["init", "phase", "certs"]).args(phase);
            if phase.len() > 1 || phase == ["ca"] {
                // Otherwise it asks the internet for the newest version.
                command.args(["--kubernetes-version", programs::KUBERNETES_VERSION]);
            }
            run(command.arg("--cert-dir").arg(self.certificates()))?;
        }
        Ok(())
    }

    fn api_server(&self, program: &Path, etcd: &str) -> Command {
        let pki = self.certificates();
        let mut command = Command::new(program);
        for (flag, file) in [
            ("tls-cert-file", "apiserver.crt"),
            ("tls-private-key-file", "apiserver.key"),
            ("client-ca-file", "ca.crt"),
            ("service-account-key-file", "sa.pub"),
            ("service-account-signing-key-file", "sa.key"),
        ] {
            command.arg(format!("--{flag}={}", pki.join(file).display()));
        }
        command
            .arg(format!("--etcd-servers={etcd}"))
            .arg(format!("--secure-port={}", self.port))
            .arg(format!(
                "--token-auth-file={}",
                self.folder.join("tokens.csv").display()
            ))
            .arg(format!("--cert-dir={}", pki.display()))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .args(["--service-account-issuer=https://kubernetes.default.svc"])
            .args(["--service-cluster-ip-range=10.96.0.0/16"])
            .args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"])
            // No controller makes the default service accounts here, and pods need one.
            .args(["--disable-admission-plugins=ServiceAccount"]);
        command
    }

    fn spawn(&mut self, command: &mut Command) -> Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        self.children.push(child);
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn write_kubeconfig(&self) -> Result<()> {
        let configuration = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": self.url(),
                "certificate-authority": self.certificates().join("ca.crt").display().to_string(),
            }}],
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        });
        fs::write(
            self.kubeconfig(),
            serde_json::to_vec_pretty(&configuration)?,
        )?;
        Ok(())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let kubectl = programs::ensure(&[Program::Kubectl])?;
        let probe = || -> Result<()> {
            run(Command::new(kubectl.path(Program::Kubectl)?)
                .arg(format!("--kubeconfig={}", self.kubeconfig().display()))
                .args(["get", "namespace", "default", "--request-timeout=2s"]))?;
            Ok(())
        };
        while let Err(error) = probe() {
            if Instant::now() > deadline {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                let mut last: Vec<&str> = log.lines().collect();
                last.drain(..last.len().saturating_sub(20));
                bail!(
                    "the API server is not ready: {error:#}\n{}",
                    last.join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // The API server first: without etcd it would spend its last seconds on retries.
        while let Some(mut child) = self.children.pop() {
            child.kill().ok();
            child.wait().ok();
        }
        fs::remove_dir_all(&self.folder).ok();
    }
}

fn free_ports() -> Result<[u16; 3]> {
    // All are bound at once, so that they differ.
    let listeners = [bind()?, bind()?, bind()?];
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

fn bind() -> Result<TcpListener> {
    TcpListener::bind("127.0.0.1:0").context("no free port")
}

/// Removes folders whose test process is gone. Its children are left: their numbers may be
/// somebody else's by now.
fn remove_orphans(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(owner).exists() {
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}
