//! Debian packages that the cluster needs where no container engine runs.

use std::process::Command;

use anyhow::{Context, Result, bail};

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
            Self::File(path) => std::path::Path::new(path).exists(),
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
