//! Clients that are not ours, against `holdfast registry` running alone.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use holdfast_cluster::Program;
use serde_json::json;

use crate::command;
use crate::images;
use crate::site::PRIVATE;
use crate::tools::{self, Tools};
use crate::upstream::{Launcher, Plan, Upstream, spawn};
use crate::wait::eventually;
use crate::world::World;

/// The registry alone, an upstream behind it, and an image that only the upstream has.
struct StandaloneRegistry {
    /// Address and port of the registry.
    address: String,
    /// Repository and tag behind the upstream's host.
    image: String,
    /// Digest of that image's manifest.
    digest: String,
    crane: PathBuf,
    inside: Launcher,
    _upstream: Upstream,
    registry: Child,
}

impl Drop for StandaloneRegistry {
    fn drop(&mut self) {
        drop(self.registry.kill());
        drop(self.registry.wait());
    }
}

impl StandaloneRegistry {
    /// Starts both where `inside` starts programs; the registry listens on `listen`, clients use
    /// `address`.
    fn start(
        tools: &Tools,
        inside: &Launcher,
        listen: &str,
        address: &str,
        port: u16,
    ) -> Result<Self> {
        let folder = tools.folder.join(format!("alone-{port}"));
        let programs = tools.upstream()?;
        let plan = Plan {
            host: PRIVATE,
            address: "127.0.0.1",
            port,
            login: None,
            tls: false,
        };
        let upstream = Upstream::start(&plan, &programs, inside, &folder, false)?;
        let built = images::workload(&tools::program(Program::Workload)?, 2, 1 << 16)?;
        let layout = images::layout(&built, &folder.join("image"))?;
        let image = format!("team/app-{}:1", images::unique()?);
        upstream.push(&layout, &image)?;
        let configuration = folder.join("holdfast.yaml");
        let settings = json!({"upstreams": [{"host": PRIVATE, "endpoint": upstream.endpoint}]});
        std::fs::write(&configuration, settings.to_string()).context("write the configuration")?;
        let mut serve = inside(&tools.holdfast);
        serve.args([
            "registry",
            "--listen",
            &format!("{listen}:{}", port + 3),
            "--data",
        ]);
        serve
            .arg(folder.join("store"))
            .arg("--config")
            .arg(&configuration);
        let registry = spawn(serve, &folder.join("holdfast.log"))?;
        let crane = programs.crane;
        let alone = Self {
            address: format!("{address}:{}", port + 3),
            image,
            digest: built.digest,
            crane,
            inside: inside.clone(),
            _upstream: upstream,
            registry,
        };
        eventually(Duration::from_secs(20), || {
            let mut crane = (alone.inside)(&alone.crane);
            crane.args(["catalog", "--insecure", &alone.address]);
            command::run(crane)
        })
        .with_context(|| {
            format!(
                "the registry alone: {}",
                std::fs::read_to_string(folder.join("holdfast.log")).unwrap_or_default()
            )
        })?;
        Ok(alone)
    }

    fn here(world: &World) -> Result<Self> {
        Self::start(
            &world.tools,
            &tools::on_this_machine(),
            "127.0.0.1",
            "127.0.0.1",
            free_ports(4)?,
        )
    }

    /// The reference by which clients pull the upstream's image.
    fn source(&self) -> String {
        format!("{}/{PRIVATE}/{}", self.address, self.image)
    }

    /// A reference to push to.
    fn own(&self, name: &str) -> String {
        format!("{}/mine/{name}:1", self.address)
    }

    /// Checks with crane that a reference holds the image, every blob of it.
    fn holds(&self, reference: &str) -> Result<()> {
        let mut digest = (self.inside)(&self.crane);
        digest.args(["digest", "--insecure", reference]);
        let found = command::run(digest)?;
        ensure!(
            found.trim() == self.digest,
            "{reference} is {}, pushed was {}",
            found.trim(),
            self.digest
        );
        let mut validate = (self.inside)(&self.crane);
        validate.args(["validate", "--insecure", "--remote", reference]);
        command::run(validate).map(drop)
    }
}

/// The first of `count` free ports in a row.
pub(super) fn free_ports(count: u16) -> Result<u16> {
    let start = 20000 + u16::try_from(std::process::id() % 20000).unwrap_or_default();
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (start..start + 2000)
        .step_by(usize::from(count))
        .find(|first| (*first..first + count).all(free))
        .context("no free ports")
}

/// A program of a Debian package, installed when it is missing.
fn packaged(name: &str) -> Result<PathBuf> {
    let installed = || {
        ["/usr/bin", "/usr/local/bin"]
            .iter()
            .map(|folder| Path::new(folder).join(name))
            .find(|path| path.is_file())
    };
    if let Some(path) = installed() {
        return Ok(path);
    }
    println!("  installing the Debian package {name}");
    let install = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args([
            "install",
            "--yes",
            "--no-install-recommends",
            name,
        ]);
        apt
    };
    if command::run(install()).is_err() {
        let mut update = Command::new("apt-get");
        update.arg("update");
        command::run(update)
            .and_then(|_| command::run(install()))
            .with_context(|| format!("{name} is missing; as root: apt-get install {name}"))?;
    }
    match installed() {
        Some(path) => Ok(path),
        None => bail!("the package {name} brought no program {name}"),
    }
}

// SPEC 16
pub(super) fn crane_pushes_and_pulls(world: &mut World) -> Result<()> {
    let alone = StandaloneRegistry::here(world)?;
    let crane = |arguments: &[&str]| {
        let mut crane = (alone.inside)(&alone.crane);
        crane.args(arguments).arg("--insecure");
        command::run(crane)
    };
    alone.holds(&alone.source())?;
    let folder = world.tools.folder.join("crane");
    let folder = folder.to_str().context("path")?;
    crane(&["pull", "--format=oci", &alone.source(), folder])?;
    let own = alone.own("crane");
    crane(&["push", folder, &own])?;
    alone.holds(&own)?;
    crane(&["tag", &own, "2"])?;
    ensure!(
        crane(&["ls", &own.replace(":1", "")])?
            .lines()
            .collect::<Vec<_>>()
            == ["1", "2"],
        "tags are not listed"
    );
    ensure!(
        crane(&["catalog", &alone.address])?
            .lines()
            .any(|line| line == "mine/crane"),
        "the catalog does not list the repository"
    );
    crane(&[
        "delete",
        &format!("{}@{}", own.replace(":1", ""), alone.digest),
    ])?;
    ensure!(
        crane(&["digest", &own]).is_err(),
        "a deleted image is still there"
    );
    Ok(())
}

// SPEC 16
pub(super) fn skopeo_pushes_and_pulls(world: &mut World) -> Result<()> {
    let skopeo = packaged("skopeo")?;
    let alone = StandaloneRegistry::here(world)?;
    let layout = format!("oci:{}:1", world.tools.folder.join("skopeo").display());
    let copy = |from: &str, to: &str| {
        let mut copy = Command::new(&skopeo);
        copy.args([
            "copy",
            "--insecure-policy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            "--preserve-digests",
            from,
            to,
        ]);
        command::run(copy)
    };
    copy(&format!("docker://{}", alone.source()), &layout)?;
    let own = alone.own("skopeo");
    copy(&layout, &format!("docker://{own}"))?;
    alone.holds(&own)
}

// SPEC 16
pub(super) fn podman_pushes_and_pulls(world: &mut World) -> Result<()> {
    let podman = packaged("podman")?;
    let alone = StandaloneRegistry::here(world)?;
    let folder = world.tools.folder.join("podman");
    std::fs::create_dir_all(&folder).context("make a folder")?;
    let policy = folder.join("policy.json");
    std::fs::write(
        &policy,
        json!({"default": [{"type": "insecureAcceptAnything"}]}).to_string(),
    )
    .context("write a policy")?;
    let run = |arguments: &[&str]| {
        let mut run = Command::new(&podman);
        run.arg("--root")
            .arg(folder.join("root"))
            .arg("--runroot")
            .arg(folder.join("run"));
        run.args([
            "--storage-driver",
            "vfs",
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "file",
        ])
        .args(arguments);
        command::run(run)
    };
    let policy = policy.to_str().context("path")?;
    run(&[
        "pull",
        "--tls-verify=false",
        "--signature-policy",
        policy,
        &alone.source(),
    ])?;
    let own = alone.own("podman");
    run(&[
        "push",
        "--tls-verify=false",
        "--signature-policy",
        policy,
        &alone.source(),
        &own,
    ])?;
    // podman compresses layers again, so only completeness can be checked.
    let mut validate = (alone.inside)(&alone.crane);
    validate.args(["validate", "--insecure", "--remote", &own]);
    command::run(validate).map(drop)
}

// SPEC 16
pub(super) fn ctr_pushes_and_pulls(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    let cluster = site.cluster.clone();
    let alone = StandaloneRegistry::start(
        &world.tools,
        &tools::inside(&cluster, false),
        "0.0.0.0",
        &cluster.gateway()?,
        15020,
    )?;
    let node = cluster.workers()?.into_iter().next().context("no worker")?;
    let ctr = |arguments: &[&str]| {
        let mut command = vec!["ctr", "--namespace", "e2e", "images"];
        command.extend(arguments);
        cluster.node_exec(&node, &command)
    };
    ctr(&["pull", "--plain-http", &alone.source()])?;
    let own = alone.own("ctr");
    ctr(&["push", "--plain-http", &own, &alone.source()])?;
    alone.holds(&own)
}
