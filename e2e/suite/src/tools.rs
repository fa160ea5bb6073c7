//! Programs and files that `cargo xtask` hands over, and programs that are built when a test asks
//! for them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use holdfast_cluster::{Cluster, Options, Program, cache, programs};

use crate::upstream::{self, Launcher};

/// Where everything is.
pub(crate) struct Tools {
    /// The program that is in the image.
    pub(crate) holdfast: PathBuf,
    /// The fault proxy.
    proxy: PathBuf,
    pub(crate) chart: PathBuf,
    /// Reference and archive of Holdfast's image.
    pub(crate) image: String,
    pub(crate) archive: PathBuf,
    /// A folder for this run, removed at its end.
    pub(crate) folder: PathBuf,
}

impl Tools {
    /// Reads what `cargo xtask` put into the environment.
    pub(crate) fn from_environment() -> Result<Self> {
        let variable = |name: &str| {
            std::env::var(name).with_context(|| {
                format!("{name} is not set: run `cargo xtask e2e` or `cargo xtask demo`")
            })
        };
        let folder = cache::directory()?
            .join("runs")
            .join(std::process::id().to_string());
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(Self {
            holdfast: variable("HOLDFAST_BINARY")?.into(),
            proxy: variable("HOLDFAST_UPSTREAM")?.into(),
            chart: variable("HOLDFAST_CHART")?.into(),
            image: variable("HOLDFAST_IMAGE")?,
            archive: variable("HOLDFAST_IMAGE_ARCHIVE")?.into(),
            folder,
        })
    }

    /// The programs that upstreams are made of.
    pub(crate) fn upstream(&self) -> Result<upstream::Programs> {
        Ok(upstream::Programs {
            registry: program(Program::Registry)?,
            proxy: self.proxy.clone(),
            crane: program(Program::Crane)?,
        })
    }

    /// Where diagnostics of failures go; it outlives the run.
    pub(crate) fn failures() -> Result<PathBuf> {
        Ok(cache::directory()?.join("failures"))
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// A program of the cluster, built when it is not there yet.
pub(crate) fn program(program: Program) -> Result<PathBuf> {
    Ok(programs::ensure(&[program])?.path(program)?.to_path_buf())
}

/// Starts programs on this machine itself.
pub(crate) fn on_this_machine() -> Launcher {
    Arc::new(|program: &Path| with_parent(Command::new("setpriv"), program))
}

/// Starts programs in the network of a cluster. A killed run must not leave servers behind: they
/// end with the thread that started them, unless the cluster is kept for inspection.
pub(crate) fn inside(cluster: &Cluster, keep: bool) -> Launcher {
    let cluster = cluster.clone();
    Arc::new(move |program: &Path| {
        if keep {
            return cluster.command(program);
        }
        with_parent(cluster.command("setpriv"), program)
    })
}

fn with_parent(mut setpriv: Command, program: &Path) -> Command {
    setpriv.args(["--pdeathsig", "KILL", "--"]).arg(program);
    setpriv
}

/// A name that no other run on this machine uses while the lock is held.
pub(crate) struct Slot {
    pub(crate) name: String,
    _lock: File,
}

impl Slot {
    /// Takes the first free one of `PREFIX`, `PREFIX-2`, … `PREFIX-8`.
    pub(crate) fn take(prefix: &str) -> Result<Self> {
        let folder = cache::directory()?.join("locks");
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        for number in 1..=8 {
            let name = if number == 1 {
                prefix.to_owned()
            } else {
                format!("{prefix}-{number}")
            };
            let lock = File::create(folder.join(format!("run-{name}"))).context("make a lock")?;
            if lock.try_lock().is_ok() {
                return Ok(Self { name, _lock: lock });
            }
        }
        bail!("eight runs of {prefix} at once")
    }

    /// A fresh cluster of this name; what an earlier run left of it is removed first.
    pub(crate) fn cluster(&self) -> Result<Cluster> {
        if let Ok(left) = Cluster::open(&self.name) {
            left.down().context("remove what an earlier run left")?;
        }
        Cluster::up(&self.name, &Options::default())
    }
}
