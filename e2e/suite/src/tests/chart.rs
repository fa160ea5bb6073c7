//! The chart by itself: lint, renders, documented values.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use holdfast_cluster::Program;
use serde_json::{Value, json};

use crate::command;
use crate::tools;
use crate::world::World;

/// Both versions of helm that are to work.
fn helms() -> Result<[PathBuf; 2]> {
    Ok([
        tools::program(Program::Helm)?,
        tools::program(Program::Helm3)?,
    ])
}

fn scenarios(chart: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(chart.join("ci")).context("read chart/ci")?;
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "yaml")
    });
    files.sort();
    ensure!(!files.is_empty(), "chart/ci holds no scenario");
    Ok(files)
}

pub(super) fn lints_and_renders_every_scenario(world: &mut World) -> Result<()> {
    let chart = &world.tools.chart;
    for helm in helms()? {
        command::run({
            let mut lint = Command::new(&helm);
            lint.arg("lint").arg("--strict").arg(chart);
            lint
        })?;
        for scenario in scenarios(chart)? {
            let mut template = Command::new(&helm);
            template
                .args(["template", "holdfast", "--kube-version", "1.33.0"])
                .arg(chart)
                .arg("--values")
                .arg(&scenario);
            command::run(template).with_context(|| format!("scenario {}", scenario.display()))?;
        }
    }
    Ok(())
}

/// The documented keys below `global.networkfunctionextension` and their defaults.
fn documented() -> Vec<(&'static str, Value)> {
    vec![
        ("enableClusterRegistry", json!(false)),
        ("enableEarlyLoading", json!(false)),
        ("enableLocalRegistry", json!(false)),
        ("clusterRegistry/highAvailability/enabled", json!(true)),
        ("clusterRegistry/autoScaling/enabled", json!(true)),
        ("clusterRegistry/storageClassName", json!("nexus-shared")),
        ("clusterRegistry/storageSize", json!("100Gi")),
        (
            "clusterRegistry/clusterRegistryGCCadence",
            json!("0 0 * * *"),
        ),
        ("clusterRegistry/clusterRegistryGCThreshold", json!(0)),
        ("clusterRegistry/registryService/scale", json!("medium")),
        ("webhook/highAvailability/enabled", json!(true)),
        ("webhook/autoScaling/enabled", json!(true)),
    ]
}

/// The configuration that a rendered chart gives its services: the values after defaults.
fn rendered(helm: &Path, chart: &Path, settings: &[String]) -> Result<String> {
    let mut template = Command::new(helm);
    template
        .args(["template", "holdfast", "--kube-version", "1.33.0"])
        .arg(chart)
        .args([
            "--set",
            "global.networkfunctionextension.enableClusterRegistry=true",
        ]);
    for setting in settings {
        template.args(["--set-json", setting]);
    }
    command::run(template)
}

// SPEC 2, SPEC 15
pub(super) fn documented_values_have_their_defaults(world: &mut World) -> Result<()> {
    let chart = &world.tools.chart;
    let [helm, _] = helms()?;
    let schema = std::fs::read_to_string(chart.join("values.schema.json"))
        .context("read the chart's schema")?;
    let schema: Value = serde_json::from_str(&schema).context("the chart's schema")?;
    for (key, default) in documented() {
        let path = format!("global/networkfunctionextension/{key}");
        let found = default_of(&schema, &path)
            .with_context(|| format!("the schema has no default for {path}"))?;
        ensure!(
            found == default,
            "{path} defaults to {found}, documented is {default}"
        );
        if key != "enableClusterRegistry" && key != "enableEarlyLoading" {
            let setting = format!("{}={default}", path.replace('/', "."));
            rendered(&helm, chart, &[setting])
                .with_context(|| format!("{path} is not accepted"))?;
        }
    }
    Ok(())
}

/// The default that a schema gives the key at a path: its own, or a part of a parent's.
fn default_of(schema: &Value, path: &str) -> Option<Value> {
    let mut at = schema;
    let mut inherited: Option<Value> = schema.get("default").cloned();
    for part in path.split('/') {
        at = resolve(schema, at)?.get("properties")?.get(part)?;
        inherited = inherited.and_then(|value| value.get(part).cloned());
        let own = at
            .get("default")
            .or_else(|| resolve(schema, at)?.get("default"))
            .cloned();
        inherited = inherited.or(own);
    }
    inherited
}

/// Follows `$ref`, also through `allOf` of one.
fn resolve<'a>(root: &'a Value, at: &'a Value) -> Option<&'a Value> {
    let reference = at.get("$ref").or_else(|| at.pointer("/allOf/0/$ref"));
    match reference.and_then(Value::as_str) {
        Some(reference) => resolve(root, root.pointer(reference.strip_prefix('#')?)?),
        None => Some(at),
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn defaults_are_found_through_references_and_parents() {
        let schema = json!({
            "properties": {"a": {"allOf": [{"$ref": "#/definitions/A"}], "default": {"b": 1}}},
            "definitions": {"A": {"properties": {"b": {"type": "integer"}, "c": {"default": "x"}}}},
        });
        assert_eq!(default_of(&schema, "a/b"), Some(json!(1)));
        assert_eq!(default_of(&schema, "a/c"), Some(json!("x")));
        assert_eq!(default_of(&schema, "a/d"), None);
    }
}
