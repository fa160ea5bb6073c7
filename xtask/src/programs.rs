//! The programs of others that tests run against, by the variables that name them. One that cannot
//! be installed here is left out with a note: the tests that need it fail and say how to name it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use holdfast_cluster::{Program, cache, packages, programs};

use crate::run;

/// Version of cargo-deny that checks `deny.toml`.
const CARGO_DENY: &str = "0.20.2";

/// cargo-deny, which lies in the cache folder once it was built. That takes some minutes.
///
/// # Errors
/// When it cannot be built: its crates cannot be had, for instance.
pub(crate) fn cargo_deny() -> anyhow::Result<PathBuf> {
    let folder = cache::directory()?.join(format!("cargo-deny-{CARGO_DENY}"));
    let program = folder.join("bin/cargo-deny");
    let _lock = cache::Lock::take("cargo-deny")?;
    if program.exists() {
        return Ok(program);
    }
    let building = folder.join("target");
    let mut install = run::cargo(&["install", "--locked", "--quiet", "--version", CARGO_DENY]);
    install
        .arg("--root")
        .arg(&folder)
        .arg("cargo-deny")
        .env("CARGO_TARGET_DIR", &building);
    run::quiet("building cargo-deny", install)?;
    std::fs::remove_dir_all(&building).context("remove what cargo-deny was built from")?;
    Ok(program)
}

/// Other registries, and a client that reads image archives: a variable for each, set by hand or
/// found here.
pub(crate) fn others() -> anyhow::Result<Vec<(&'static str, PathBuf)>> {
    let mut found = Vec::new();
    if unset("HOLDFAST_DISTRIBUTION") {
        let distribution = programs::ensure(&[Program::Registry])?;
        found.push((
            "HOLDFAST_DISTRIBUTION",
            distribution.path(Program::Registry)?.to_path_buf(),
        ));
    }
    if unset("HOLDFAST_DOCKER_REGISTRY") {
        packaged(
            &["docker-registry"],
            &[("HOLDFAST_DOCKER_REGISTRY", "usr/bin/docker-registry")],
            &mut found,
        );
    }
    if unset("HOLDFAST_SKOPEO") {
        if runs("skopeo") {
            found.push(("HOLDFAST_SKOPEO", "skopeo".into()));
        } else {
            let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
            packaged(
                &["skopeo", "libgpgme11", "libassuan0"],
                &[
                    ("HOLDFAST_SKOPEO", "usr/bin/skopeo"),
                    ("HOLDFAST_SKOPEO_LIBRARIES", &libraries),
                ],
                &mut found,
            );
        }
    }
    Ok(found)
}

fn unset(variable: &str) -> bool {
    std::env::var_os(variable).is_none_or(|value| value.is_empty())
}

fn runs(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Files of Debian packages, unpacked into the cache.
fn packaged(
    names: &[&str],
    wanted: &[(&'static str, &str)],
    found: &mut Vec<(&'static str, PathBuf)>,
) {
    match packages::unpack(names) {
        Ok(folder) => {
            for (variable, path) in wanted {
                found.push((variable, folder.join(Path::new(path))));
            }
        }
        Err(error) => println!("note: {error:#}"),
    }
}
