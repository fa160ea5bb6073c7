//! The registry processes: configuration, start, signals, and what they cost.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use holdfast_testkit::{server::free_address, tls::Authority};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tokio::process::{Child, Command};

/// The name in the certificates of the internal API.
const NAME: &str = "replica.soak";

/// Memory and open files of a process.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cost {
    /// Seconds since the start of the run.
    pub(crate) at: f64,
    /// Resident bytes.
    pub(crate) rss_bytes: u64,
    /// Open files.
    pub(crate) open_files: u64,
}

/// One process, or the place where it will be.
pub(crate) struct Replica {
    number: usize,
    /// Where clients reach it.
    pub(crate) url: String,
    admin: SocketAddr,
    config: PathBuf,
    log: PathBuf,
    binary: PathBuf,
    data: PathBuf,
    child: Mutex<Option<Child>>,
    /// Starts so far.
    pub(crate) starts: Mutex<u32>,
}

/// What all replicas share.
pub(crate) struct Site<'a> {
    /// The program.
    pub(crate) binary: &'a Path,
    /// Folder of configurations, logs and certificates.
    pub(crate) folder: &'a Path,
    /// The content.
    pub(crate) data: &'a Path,
    /// Host of the upstream, plain HTTP.
    pub(crate) upstream: &'a str,
}

/// Prepares `count` replicas; none runs yet.
///
/// # Errors
/// When a file cannot be written or no port is free.
pub(crate) fn prepare(site: &Site<'_>, count: usize) -> anyhow::Result<Vec<Replica>> {
    let authority = Authority::new()?;
    let secret = site.folder.join("upload-secret");
    fs::write(&secret, "one secret for all replicas of the soak\n")?;
    (0..count)
        .map(|number| {
            let tls = site.folder.join(format!("tls-{number}"));
            authority.write(&tls, "holdfast-registry", &[NAME])?;
            let [listen, internal, admin] = [free_address()?, free_address()?, free_address()?];
            let config = site.folder.join(format!("replica-{number}.yaml"));
            let upstream = site.upstream;
            fs::write(
                &config,
                format!(
                    "adminListen: '{admin}'\n\
                     replicas: {{listen: '{internal}', name: {NAME}, tlsFolder: '{}', uploadSecretFile: '{}'}}\n\
                     upstreams: [{{host: '{upstream}', plainHttp: true}}]\n\
                     limits: {{holdSeconds: 2}}\n\
                     logging: {{format: text, level: info}}\n",
                    tls.display(),
                    secret.display()
                ),
            )?;
            Ok(Replica {
                number,
                url: format!("http://{listen}"),
                admin,
                config,
                log: site.folder.join(format!("replica-{number}.log")),
                binary: site.binary.to_owned(),
                data: site.data.to_owned(),
                child: Mutex::default(),
                starts: Mutex::default(),
            })
        })
        .collect()
}

impl Replica {
    /// Starts the process.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let listen = self.url.trim_start_matches("http://");
        let child = Command::new(&self.binary)
            .arg("registry")
            .arg("--config")
            .arg(&self.config)
            .arg("--data")
            .arg(&self.data)
            .args(["--listen", listen])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", self.binary.display()))?;
        *self.child() = Some(child);
        *self.starts.lock() += 1;
        Ok(())
    }

    /// Waits until the process says that it is ready.
    ///
    /// # Errors
    /// When it is not within 30 s, or has ended.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        let url = format!("http://{}/readyz", self.admin);
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(2))
            .build()?;
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            if client
                .get(&url)
                .send()
                .await
                .is_ok_and(|answer| answer.status().is_success())
            {
                return Ok(());
            }
            let ended = self.child().as_mut().map(Child::try_wait);
            if let Some(Ok(Some(status))) = ended {
                bail!("replica {} ended by itself: {status}", self.number);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("replica {} was not ready within 30 s", self.number)
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It may have ended in between.
            kill_process(pid, signal).ok();
        }
    }

    /// Waits for the end of the process, at most `limit`; its status.
    ///
    /// # Errors
    /// When it does not end in time; it is then killed.
    pub(crate) async fn ended(&self, limit: Duration) -> anyhow::Result<std::process::ExitStatus> {
        let Some(mut child) = self.child().take() else {
            bail!("replica {} does not run", self.number);
        };
        if let Ok(status) = tokio::time::timeout(limit, child.wait()).await {
            return Ok(status?);
        }
        child.kill().await?;
        bail!("replica {} did not end within {limit:?}", self.number)
    }

    /// What the process costs now; `None` while there is none.
    pub(crate) fn cost(&self, since: Instant) -> Option<Cost> {
        let folder = PathBuf::from(format!("/proc/{}", self.pid()?.as_raw_nonzero()));
        let status = fs::read_to_string(folder.join("status")).ok()?;
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()?;
        Some(Cost {
            at: since.elapsed().as_secs_f64(),
            rss_bytes: rss << 10,
            open_files: fs::read_dir(folder.join("fd")).ok()?.count() as u64,
        })
    }

    /// Lines of the log that tell of a panic, and how many tell of an error.
    pub(crate) fn complaints(&self) -> (Vec<String>, usize) {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let panics = log.lines().filter(|line| line.contains("panicked at"));
        let errors = log.lines().filter(|line| line.contains("ERROR"));
        (panics.take(5).map(str::to_owned).collect(), errors.count())
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child().as_ref()?.id()?).ok()?)
    }

    fn child(&self) -> parking_lot::MutexGuard<'_, Option<Child>> {
        self.child.lock()
    }
}
