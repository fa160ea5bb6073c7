//! What is kept when a test fails: the cluster's state and Holdfast's logs, in the cache folder.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::site::Site;
use crate::tools::Tools;
use crate::world::World;

/// Writes diagnostics of a failed case and says where they are.
pub(crate) fn dump(world: &World, case: &str) {
    let Some(site) = world.existing_site() else {
        return;
    };
    let folder = Tools::failures().map(|folder| folder.join(case.replace("::", "-")));
    match folder.and_then(|folder| write(site, &folder).map(|()| folder)) {
        Ok(folder) => println!("  diagnostics: {}", folder.display()),
        Err(error) => println!("  no diagnostics: {error:#}"),
    }
}

/// Writes diagnostics of a site into a folder.
pub(crate) fn write(site: &Site, folder: &Path) -> Result<()> {
    drop(fs::remove_dir_all(folder));
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let keep = |name: &str, text: Result<String>| {
        let text = text.unwrap_or_else(|error| format!("{error:#}"));
        fs::write(folder.join(name), text).with_context(|| format!("write {name}"))
    };
    for part in ["registry", "webhook", "controller", "node-agent"] {
        let selector = site.release.part(part);
        let logs = site.kube.run(&[
            "logs",
            "-n",
            site.release.namespace(),
            "-l",
            &selector,
            "--tail=2000",
            "--prefix",
            "--all-containers",
        ]);
        keep(&format!("{part}.log"), logs)?;
    }
    keep(
        "artifacts.yaml",
        site.kube.run(&["get", "artifacts", "-A", "-o", "yaml"]),
    )?;
    keep(
        "state.json",
        site.release
            .state(&site.kube)
            .map(|state| state.to_string()),
    )?;
    keep(
        "requests.json",
        site.private
            .requests()
            .map(|requests| format!("{requests:#?}")),
    )?;
    site.cluster.dump_diagnostics(folder)
}
