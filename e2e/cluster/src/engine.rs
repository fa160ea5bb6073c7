//! The container engine that the nodes run in.
//!
//! A Docker engine that answers is used as it is when it can have kind's node image. Otherwise one
//! is started: in a network namespace of its own, with its own data, sockets and cgroups, so that
//! it touches nothing of the machine and two clusters never meet.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::command::{run, succeeds};
use crate::node_image::NodeImage;
use crate::process::Process;
use crate::programs::{self, Program, Programs};
use crate::progress::Step;

mod leftovers;

/// What runs the containers of a cluster.
#[derive(Clone, Debug)]
pub(crate) enum Engine {
    /// The machine's own, as `docker` finds it.
    Existing,
    /// One that belongs to a cluster.
    Own(OwnEngine),
}

/// Places of an engine that belongs to a cluster.
#[derive(Clone, Debug)]
pub(crate) struct OwnEngine {
    name: String,
    /// Sockets and records; short, for socket paths are limited to 108 bytes.
    run: PathBuf,
    /// Images and containers.
    data: PathBuf,
    pool: Pool,
}

/// Addresses of one cluster's networks: a /20 of 198.18.0.0/15, the range kept for test networks.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Pool(pub(crate) u8);

impl Pool {
    /// How many there are.
    pub(crate) const COUNT: u8 = 32;

    fn third(self, offset: u8) -> String {
        let block = u16::from(self.0) * 16 + u16::from(offset);
        format!("198.{}.{}", 18 + block / 256, block % 256)
    }

    fn range(self) -> String {
        format!("{}.0/20", self.third(0))
    }

    /// Network of the nodes.
    pub(crate) fn nodes(self) -> String {
        format!("{}.0/24", self.third(1))
    }

    /// Address of the engine's namespace on the network of the nodes.
    pub(crate) fn gateway(self) -> String {
        format!("{}.1", self.third(1))
    }
}

impl Engine {
    /// The machine's engine if it answers and has, or can pull, this image.
    pub(crate) fn existing(image: &str) -> Option<Self> {
        let docker = || Command::new("docker");
        let answers = succeeds(docker().args(["version", "--format", "{{.Server.Version}}"]));
        let usable = answers
            && (succeeds(docker().args(["image", "inspect", image]))
                || succeeds(docker().args(["pull", "--quiet", image])));
        usable.then_some(Self::Existing)
    }

    /// The engine that belongs to a cluster, running or not.
    pub(crate) fn own(name: &str, pool: Pool) -> Result<Self> {
        Ok(Self::Own(OwnEngine {
            name: name.to_owned(),
            run: Path::new("/run/holdfast").join(name),
            data: cache::directory()?.join("engines").join(name),
            pool,
        }))
    }

    /// A command that runs where this engine's networks can be reached.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match self {
            Self::Existing => Command::new(program),
            Self::Own(engine) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", engine.namespace().display()));
                command.arg("--").arg(program);
                command.env(
                    "DOCKER_HOST",
                    format!("unix://{}", engine.socket().display()),
                );
                command
            }
        }
    }

    /// Runs the engine's client.
    pub(crate) fn docker<Argument: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = Argument>,
    ) -> Result<String> {
        run(self.command("docker").args(arguments))
    }

    /// Whether the engine answers.
    pub(crate) fn answers(&self) -> bool {
        if let Self::Own(engine) = self
            && !engine.socket().exists()
        {
            return false;
        }
        succeeds(
            self.command("docker")
                .args(["version", "--format", "{{.Server.Version}}"]),
        )
    }
}

impl OwnEngine {
    fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(self.namespace_name())
    }

    fn namespace_name(&self) -> String {
        format!("holdfast-{}", self.name)
    }

    fn socket(&self) -> PathBuf {
        self.run.join("docker.sock")
    }

    fn record(&self) -> PathBuf {
        self.run.join("dockerd.json")
    }

    fn cgroup(&self) -> String {
        format!("holdfast-{}", self.name)
    }

    /// Starts the engine unless it runs; what a killed run left is removed first.
    pub(crate) fn start(&self) -> Result<()> {
        let engine = Engine::Own(self.clone());
        if Process::recorded(&self.record()).is_some_and(Process::is_alive) && engine.answers() {
            return Ok(());
        }
        self.stop()?;
        let _step = Step::start("starting the container engine");
        let programs = programs::ensure(&[
            Program::Dockerd,
            Program::DockerProxy,
            Program::Containerd,
            Program::ContainerdShim,
            Program::Runc,
        ])?;
        fs::create_dir_all(&self.run)?;
        fs::create_dir_all(&self.data)?;
        raise_limits()?;
        run(Command::new("ip").args(["netns", "add", &self.namespace_name()]))?;
        run(engine.command("ip").args(["link", "set", "lo", "up"]))?;
        let process = Process::spawn(&mut self.daemon(&programs)?, &self.log())?;
        process.record(&self.record())?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while !engine.answers() {
            if !process.is_alive() || Instant::now() > deadline {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                let mut last: Vec<&str> = log.lines().collect();
                last.drain(..last.len().saturating_sub(20));
                bail!("the container engine does not start:\n{}", last.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        self.make_network(&engine)
    }

    /// Where the engine writes its log.
    pub(crate) fn log(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    fn daemon(&self, programs: &Programs) -> Result<Command> {
        let mut command = Engine::Own(self.clone()).command(programs.path(Program::Dockerd)?);
        let mut path = programs.folders();
        path.extend(std::env::split_paths(
            &std::env::var_os("PATH").unwrap_or_default(),
        ));
        path.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
        command
            .env("PATH", std::env::join_paths(path)?)
            .env_remove("DOCKER_HOST");
        let configuration = self.run.join("daemon.json");
        fs::write(&configuration, "{}")?;
        command
            .arg("--config-file")
            .arg(configuration)
            .arg("--data-root")
            .arg(&self.data)
            .arg("--exec-root")
            .arg(self.run.join("exec"))
            .arg("--pidfile")
            .arg(self.run.join("dockerd.pid"))
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()))
            .arg("--userland-proxy-path")
            .arg(programs.path(Program::DockerProxy)?)
            .args(["--storage-driver", "overlay2", "--log-level", "warn"])
            .args(["--cgroup-parent", &format!("/{}", self.cgroup())])
            .args([
                "--default-address-pool",
                &format!("base={},size=24", self.pool.range()),
            ]);
        Ok(command)
    }

    /// The network that kind uses, with addresses that nodes keep over a restart.
    fn make_network(&self, engine: &Engine) -> Result<()> {
        if engine.docker(["network", "inspect", "kind"]).is_ok() {
            return Ok(());
        }
        engine.docker([
            "network",
            "create",
            "--driver=bridge",
            "--opt=com.docker.network.bridge.enable_ip_masquerade=true",
            &format!("--subnet={}", self.pool.nodes()),
            &format!("--gateway={}", self.pool.gateway()),
            "kind",
        ])?;
        Ok(())
    }

    /// Gives the engine the image unless it has it.
    pub(crate) fn import(&self, image: &NodeImage) -> Result<()> {
        let engine = Engine::Own(self.clone());
        if engine.docker(["image", "inspect", &image.tag]).is_ok() {
            return Ok(());
        }
        let _step = Step::start("importing the node image");
        // Former node images are of no use to anybody, and large.
        engine.docker(["image", "prune", "--all", "--force"])?;
        let mut tar = Command::new("tar")
            .arg("-C")
            .arg(&image.root)
            .args(["--numeric-owner", "-c", "."])
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run tar")?;
        let stream = tar.stdout.take().context("tar without output")?;
        let imported = engine
            .command("docker")
            .args(["import", "--change", "ENV container=docker"])
            .args(["--change", "STOPSIGNAL SIGRTMIN+3"])
            .args([
                "--change",
                r#"ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]"#,
            ])
            .args(["-", &image.tag])
            .stdin(stream)
            .output()?;
        let packed = tar.wait()?;
        if !imported.status.success() || !packed.success() {
            bail!(
                "cannot import the node image: {}",
                String::from_utf8_lossy(&imported.stderr)
            );
        }
        Ok(())
    }

    /// Ends the engine and removes what it leaves outside its data.
    pub(crate) fn stop(&self) -> Result<()> {
        if let Some(process) = Process::recorded(&self.record()) {
            process.stop(Duration::from_secs(20))?;
        }
        leftovers::end_processes(&self.cgroup(), &self.run)?;
        leftovers::unmount(&[&self.run, &self.data])?;
        leftovers::remove_cgroups(&self.cgroup());
        if self.namespace().exists() {
            run(Command::new("ip").args(["netns", "delete", &self.namespace_name()]))?;
        }
        if self.run.exists() {
            fs::remove_dir_all(&self.run)
                .with_context(|| format!("cannot remove {}", self.run.display()))?;
        }
        Ok(())
    }

    /// Removes the engine's data, the imported node image included.
    pub(crate) fn purge(&self) -> Result<()> {
        self.stop()?;
        if self.data.exists() {
            fs::remove_dir_all(&self.data)?;
        }
        Ok(())
    }
}

/// Gives the machine room for the file watches of two clusters' kubelets and runtimes: with the
/// kernel's 128 the second cluster's kubelets end with "too many open files".
fn raise_limits() -> Result<()> {
    for (name, wanted) in [
        ("max_user_instances", 2048),
        ("max_user_watches", 1_048_576),
    ] {
        let path = Path::new("/proc/sys/fs/inotify").join(name);
        let present: u64 = fs::read_to_string(&path)?.trim().parse()?;
        if present < wanted {
            fs::write(&path, wanted.to_string()).with_context(|| {
                format!("cannot raise fs.inotify.{name} from {present} to {wanted}")
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_apart_and_inside_the_test_range() {
        let ranges: std::collections::BTreeSet<String> = (0..Pool::COUNT)
            .map(|number| Pool(number).range())
            .collect();
        assert_eq!(ranges.len(), usize::from(Pool::COUNT));
        assert_eq!(Pool(0).range(), "198.18.0.0/20");
        assert_eq!(Pool(31).range(), "198.19.240.0/20");
        assert_eq!(Pool(16).gateway(), "198.19.1.1");
    }
}
