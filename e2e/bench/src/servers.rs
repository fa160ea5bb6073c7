//! The three that are compared, started on loopback with what an operator would give them:
//! Holdfast, CNCF distribution, nginx.

use std::fmt::Write as _;
use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use holdfast_cluster::{Program, programs};
use holdfast_testkit::server::free_address;
use serde::Serialize;
use tokio_rustls::rustls::ClientConfig;

use crate::{
    certificates::{Authority, REPLICA},
    http::{self, Target},
    process::{Process, Usage},
};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// This repository's.
    Holdfast,
    /// The reference implementation.
    Distribution,
    /// Files as they are: the limit in practice.
    Nginx,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Holdfast => "Holdfast",
            Self::Distribution => "distribution",
            Self::Nginx => "nginx",
        })
    }
}

/// What all servers of a run share.
pub(crate) struct TestBed {
    /// The run's own folder; it is removed at the end.
    pub(crate) scratch: PathBuf,
    holdfast: PathBuf,
    distribution: PathBuf,
    nginx: PathBuf,
    client: Arc<ClientConfig>,
}

/// A server that runs.
pub(crate) struct Server {
    /// Which.
    pub(crate) kind: Kind,
    /// How to reach it.
    pub(crate) target: Target,
    process: Process,
}

impl Server {
    /// What it has used so far.
    pub(crate) fn usage(&self) -> Result<Usage> {
        self.process.usage()
    }

    /// Forgets the highest memory so far.
    pub(crate) fn reset_peak(&self) -> Result<()> {
        self.process.reset_peak()
    }
}

/// A replica's neighbours and its upstream, in Holdfast's own configuration.
pub(crate) struct Pull {
    /// Host and port of an upstream that speaks plain HTTP.
    pub(crate) upstream: SocketAddr,
    /// Whether further processes serve the same folder.
    pub(crate) replicas: bool,
}

impl TestBed {
    /// Finds or makes the programs.
    pub(crate) fn prepare(scratch: PathBuf) -> Result<Self> {
        let built = programs::ensure(&[Program::Registry])?;
        let distribution = built.path(Program::Registry)?.to_path_buf();
        let authority = Authority::new()?;
        authority.write(&scratch.join("tls"))?;
        fs::write(scratch.join("secret"), "a secret of this run")?;
        Ok(Self {
            holdfast: crate::holdfast()?,
            distribution,
            nginx: nginx()?,
            client: authority.client()?,
            scratch,
        })
    }

    /// Starts one of them over a folder in distribution's layout and waits until it answers.
    pub(crate) async fn start(&self, kind: Kind, data: &Path, tls: bool) -> Result<Server> {
        let address = free_address()?;
        let command = match kind {
            Kind::Holdfast => self.holdfast(data, address, tls, None)?,
            Kind::Distribution => self.distribution(data, address, tls)?,
            Kind::Nginx => self.nginx(data, address, tls)?,
        };
        self.run(kind, command, address, tls).await
    }

    /// Starts a Holdfast that copies from an upstream.
    pub(crate) async fn start_pulling(&self, data: &Path, pull: &Pull) -> Result<Server> {
        let address = free_address()?;
        let command = self.holdfast(data, address, false, Some(pull))?;
        self.run(Kind::Holdfast, command, address, false).await
    }

    async fn run(
        &self,
        kind: Kind,
        mut command: Command,
        address: SocketAddr,
        tls: bool,
    ) -> Result<Server> {
        let log = self
            .scratch
            .join(format!("{kind}-{}.log", address.port()).to_lowercase());
        let mut server = Server {
            kind,
            target: Target {
                address,
                tls: tls.then(|| Arc::clone(&self.client)),
            },
            process: Process::start(&mut command, &log)?,
        };
        let path = if kind == Kind::Nginx {
            "/alive"
        } else {
            "/v2/"
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match http::get(&server.target, path).await {
                Ok((head, _)) if head.status == 200 => return Ok(server),
                _ if server.process.has_ended() || Instant::now() > deadline => {
                    let said = fs::read_to_string(&log).unwrap_or_default();
                    bail!("{kind} does not serve: {}", said.trim());
                }
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    fn config(&self, name: &str, address: SocketAddr, text: &str) -> Result<PathBuf> {
        let path = self.scratch.join(format!("{name}-{}", address.port()));
        fs::write(&path, text)?;
        Ok(path)
    }

    fn holdfast(
        &self,
        data: &Path,
        address: SocketAddr,
        tls: bool,
        pull: Option<&Pull>,
    ) -> Result<Command> {
        let folder = self.scratch.join("tls");
        let folder = folder.display();
        // Whether the disk of the machine that measures is nearly full is no figure of a server.
        let mut text =
            "logging: {format: text, level: warn}\nlimits: {reservePercent: 0}\n".to_owned();
        if tls {
            writeln!(
                text,
                "tls: {{certificate: {folder}/tls.crt, key: {folder}/tls.key}}"
            )?;
        }
        match pull {
            None => writeln!(text, "upstreams: []")?,
            Some(pull) => writeln!(
                text,
                "upstreams: [{{host: '{}', plainHttp: true}}]",
                pull.upstream
            )?,
        }
        if pull.is_some_and(|pull| pull.replicas) {
            writeln!(
                text,
                "replicas: {{listen: '{}', name: {REPLICA}, tlsFolder: {folder}, uploadSecretFile: {}}}",
                free_address()?,
                self.scratch.join("secret").display()
            )?;
        }
        let mut command = Command::new(&self.holdfast);
        command
            .arg("registry")
            .arg("--config")
            .arg(self.config("holdfast.yaml", address, &text)?)
            .arg("--data")
            .arg(data)
            .arg("--listen")
            .arg(address.to_string());
        Ok(command)
    }

    fn distribution(&self, data: &Path, address: SocketAddr, tls: bool) -> Result<Command> {
        let folder = self.scratch.join("tls");
        let folder = folder.display();
        let tls = if tls {
            format!(
                "  tls: {{certificate: {folder}/tls.crt, key: {folder}/tls.key, minimumtls: tls1.3}}\n"
            )
        } else {
            String::new()
        };
        // As its example configuration has it; no access log and no traces, which none of the
        // others writes.
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  cache: {{blobdescriptor: inmemory}}\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n  maintenance: {{uploadpurging: {{enabled: false}}}}\ncatalog: {{maxentries: 1000}}\nhttp:\n  addr: {address}\n  secret: a-secret-of-this-run\n{tls}",
            data.display()
        );
        let mut command = Command::new(&self.distribution);
        command
            .arg("serve")
            .arg(self.config("distribution.yaml", address, &text)?)
            .env("OTEL_TRACES_EXPORTER", "none");
        Ok(command)
    }

    fn nginx(&self, data: &Path, address: SocketAddr, tls: bool) -> Result<Command> {
        let folder = self.scratch.join("tls");
        let folder = folder.display();
        let (listen, certificates) = if tls {
            (
                "ssl",
                format!(
                    "ssl_certificate {folder}/tls.crt; ssl_certificate_key {folder}/tls.key; ssl_protocols TLSv1.3;"
                ),
            )
        } else {
            ("", String::new())
        };
        let scratch = self.scratch.display();
        let text = format!(
            "user root; daemon off; worker_processes auto; error_log stderr error; pid {scratch}/nginx-{port}.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 100000000; default_type application/octet-stream;
  client_body_temp_path {scratch}/nginx-tmp; proxy_temp_path {scratch}/nginx-tmp; fastcgi_temp_path {scratch}/nginx-tmp;
  uwsgi_temp_path {scratch}/nginx-tmp; scgi_temp_path {scratch}/nginx-tmp;
  server {{ listen {address} {listen} reuseport; {certificates} root {root}; location = /alive {{ return 200 ok; }} }}
}}
",
            port = address.port(),
            root = data.join("docker/registry/v2").display(),
        );
        let mut command = Command::new(&self.nginx);
        command
            .arg("-c")
            .arg(self.config("nginx.conf", address, &text)?)
            .args(["-e", "stderr"]);
        Ok(command)
    }

    /// What the programs say of themselves.
    pub(crate) fn versions(&self) -> Vec<String> {
        let said = |command: &mut Command| {
            command.output().ok().map_or_else(
                || "unknown".to_owned(),
                |output| {
                    let text = [output.stdout, output.stderr].concat();
                    String::from_utf8_lossy(&text)
                        .lines()
                        .next()
                        .unwrap_or_default()
                        .to_owned()
                },
            )
        };
        vec![
            said(Command::new(&self.holdfast).arg("--version")),
            "CNCF distribution 3.1.2 (e2e/programs/distribution)".to_owned(),
            said(Command::new(&self.nginx).arg("-v")),
        ]
    }
}

/// The program of Debian's nginx; installed when it is missing, without a service that runs.
fn nginx() -> Result<PathBuf> {
    let found = || {
        ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"]
            .into_iter()
            .map(PathBuf::from)
            .find(|path| path.is_file())
    };
    if let Some(path) = found() {
        return Ok(path);
    }
    eprintln!("installing nginx-light, without starting its service");
    // invoke-rc.d starts nothing while its policy says 101; a policy that is there already is left
    // alone.
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let own_policy = !policy.exists();
    if own_policy {
        fs::write(policy, "#!/bin/sh\nexit 101\n").ok();
        fs::set_permissions(policy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).ok();
    }
    let install = || {
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args([
                "install",
                "--yes",
                "--quiet=2",
                "--no-install-recommends",
                "nginx-light",
            ])
            .stdout(std::process::Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let installed = install()
        || (Command::new("apt-get")
            .args(["update", "--quiet=2"])
            .status()
            .is_ok_and(|status| status.success())
            && install());
    if own_policy {
        fs::remove_file(policy).ok();
    }
    match found() {
        Some(path) if installed => Ok(path),
        _ => bail!(
            "nginx is missing; as root, run: apt-get update && apt-get install --yes nginx-light"
        ),
    }
}
