//! Helm hooks of users' charts, delete hooks included.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::command;
use crate::objects::Pod;
use crate::site::{SECRET, START};
use crate::world::World;

/// A Job that runs one pod as a hook.
fn hook(when: &str, image: &str) -> Value {
    let template = Pod::new(when, image)
        .once()
        .pull_secrets(&[SECRET])
        .build("unused")["spec"]
        .clone();
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": when, "annotations": {"helm.sh/hook": when, "helm.sh/hook-delete-policy": "before-hook-creation"}},
        "spec": {"backoffLimit": 0, "template": {"spec": template}},
    })
}

/// Writes a user's chart with hooks; it knows nothing of Holdfast.
fn chart(folder: &Path, hooks: &[(&str, &str)]) -> Result<()> {
    let templates = folder.join("templates");
    fs::create_dir_all(&templates).context("make a chart")?;
    fs::write(
        folder.join("Chart.yaml"),
        json!({"apiVersion": "v2", "name": "app", "version": "1.0.0"}).to_string(),
    )
    .context("write a chart")?;
    for (when, image) in hooks {
        fs::write(
            templates.join(format!("{when}.yaml")),
            hook(when, image).to_string(),
        )
        .context("write a hook")?;
    }
    Ok(())
}

// SPEC 8, SPEC 39
pub(super) fn hooks_get_their_images(world: &mut World) -> Result<()> {
    let folder = world.tools.folder.join("hooks");
    let site = world.site()?;
    site.installed()?;
    let install = site.push(&site.private, "team/hook", 1, 1000)?;
    let delete = site.push(&site.private, "team/hook", 1, 1000)?;
    let test = site.namespace()?;
    let hooks = [
        ("pre-install", &install),
        ("pre-delete", &delete),
        ("post-delete", &delete),
    ];
    chart(
        &folder,
        &hooks.map(|(when, image)| (when, image.reference.as_str())),
    )?;
    let helm = |arguments: &[&str]| {
        let mut helm = site.release.helm();
        helm.args(arguments)
            .args(["--namespace", &test.name, "--timeout", "2m"]);
        helm
    };
    let mut command = helm(&["install", "app"]);
    command.arg(&folder);
    command::run(command).context("a pre-install hook")?;
    command::run(helm(&["uninstall", "app"])).context("delete hooks")?;
    site.kube.copied(&test.name, &delete.reference, START)
}
