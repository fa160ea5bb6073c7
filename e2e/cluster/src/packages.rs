//! Debian packages: those that the cluster needs where no container engine runs, and programs that
//! tests compare with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Lock};
use crate::command::{on_path, run, succeeds};
use crate::progress::Step;

/// Package, and how to tell that what it brings is already there.
const NEEDED: &[(&str, Probe)] = &[
    ("mmdebstrap", Probe::Program("mmdebstrap")),
    ("gcc", Probe::Program("gcc")),
    ("libc6-dev", Probe::File("/usr/include/stdio.h")),
    ("pkg-config", Probe::Program("pkg-config")),
    ("libseccomp-dev", Probe::File("/usr/include/seccomp.h")),
    ("iptables", Probe::Program("iptables")),
    ("nftables", Probe::Program("nft")),
    ("iproute2", Probe::Program("ip")),
    ("util-linux", Probe::Program("nsenter")),
    ("tar", Probe::Program("tar")),
    ("docker.io", Probe::Program("docker")),
];

enum Probe {
    Program(&'static str),
    File(&'static str),
}

impl Probe {
    fn is_present(&self) -> bool {
        match self {
            Self::Program(name) => on_path(name),
            Self::File(path) => Path::new(path).exists(),
        }
    }
}

/// Installs what is missing, or says in one error what to install.
pub fn ensure() -> Result<()> {
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(_, probe)| !probe.is_present())
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let advice = format!(
        "apt-get update && apt-get install --yes {}",
        missing.join(" ")
    );
    if !rustix::process::geteuid().is_root() || !on_path("apt-get") {
        bail!(
            "these Debian packages are missing: {}; as root, run: {advice}",
            missing.join(" ")
        );
    }
    let _step = Step::start(format!("installing packages: {}", missing.join(" ")));
    let install = || {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&missing);
        command
    };
    if !succeeds(&mut install()) {
        run(Command::new("apt-get").arg("update")).context("cannot refresh the package lists")?;
        run(&mut install()).with_context(|| format!("install the packages by hand: {advice}"))?;
    }
    Ok(())
}

/// Unpacks packages into one folder of the cache, without installing them, and returns that folder:
/// programs of another distribution are run from there, no service of theirs is started, and the
/// machine stays as it was.
pub fn unpack(packages: &[&str]) -> Result<PathBuf> {
    let name = packages.join("+");
    let folder = cache::directory()?.join("packages").join(&name);
    if folder.is_dir() {
        return Ok(folder);
    }
    let _lock = Lock::take(&format!("packages-{name}"))?;
    if folder.is_dir() {
        return Ok(folder);
    }
    let draft = folder.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::create_dir_all(&draft)?;
    let result = download(packages, &draft).and_then(|()| Ok(fs::rename(&draft, &folder)?));
    if result.is_err() {
        drop(fs::remove_dir_all(&draft));
    }
    result.with_context(|| format!("cannot fetch the Debian packages {}", packages.join(", ")))?;
    Ok(folder)
}

fn download(packages: &[&str], folder: &Path) -> Result<()> {
    let _step = Step::start(format!("fetching packages: {}", packages.join(" ")));
    let fetch = || {
        let mut command = Command::new("apt-get");
        command.current_dir(folder).arg("download").args(packages);
        command
    };
    if !succeeds(&mut fetch()) {
        run(Command::new("apt-get").arg("update")).context("cannot refresh the package lists")?;
        run(&mut fetch())?;
    }
    for entry in fs::read_dir(folder)? {
        let package = entry?.path();
        if package
            .extension()
            .is_some_and(|extension| extension == "deb")
        {
            run(Command::new("dpkg").arg("-x").arg(&package).arg(folder))?;
            fs::remove_file(package)?;
        }
    }
    Ok(())
}
