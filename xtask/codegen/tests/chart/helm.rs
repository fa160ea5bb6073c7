//! Rendering the chart with a real helm.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::generated::root;

/// The release of all renders.
pub(crate) const RELEASE: &str = "edge";
/// Its namespace.
pub(crate) const NAMESPACE: &str = "holdfast-system";
/// The prefix of its names.
pub(crate) const FULLNAME: &str = "edge-holdfast";

fn programs() -> Vec<PathBuf> {
    let programs = std::env::var_os("HOLDFAST_HELM").expect(
        "HOLDFAST_HELM is not set: name one or more helm programs, joined by `:`, or run `cargo xtask test`, which sets it",
    );
    std::env::split_paths(&programs).collect()
}

/// Renders the chart with every helm, which must agree; the error is what helm says.
pub(crate) fn render(values: &str) -> Result<Vec<Value>, String> {
    render_chart(RELEASE, values, &root().join("chart"))
}

/// As [`render`], for a release of another name.
pub(crate) fn render_release(release: &str, values: &str) -> Result<Vec<Value>, String> {
    render_chart(release, values, &root().join("chart"))
}

/// Renders a parent chart whose one dependency is the chart; `values` are the parent's.
pub(crate) fn render_as_dependency(values: &str) -> Result<Vec<Value>, String> {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let (from, to) = {
                let entry = entry.unwrap();
                (entry.path(), to.join(entry.file_name()))
            };
            if from.is_dir() {
                copy(&from, &to);
            } else {
                std::fs::copy(&from, &to).unwrap();
            }
        }
    }
    let parent = tempfile::tempdir().unwrap();
    let about = "apiVersion: v2\nname: site\nversion: 0.1.0\n";
    std::fs::write(parent.path().join("Chart.yaml"), about).unwrap();
    copy(
        &root().join("chart"),
        &parent.path().join("charts/holdfast"),
    );
    render_chart(RELEASE, values, parent.path())
}

fn render_chart(release: &str, values: &str, chart: &Path) -> Result<Vec<Value>, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(values.as_bytes()).unwrap();
    let mut rendered: Option<Vec<Value>> = None;
    for program in programs() {
        let output = Command::new(&program)
            .args([
                "template",
                release,
                "--namespace",
                NAMESPACE,
                "--kube-version",
                "1.33.0",
                "--values",
            ])
            .args([file.path(), chart])
            .output()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()));
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let documents =
            holdfast_config::yaml::documents(&String::from_utf8_lossy(&output.stdout)).unwrap();
        let names = |documents: &[Value]| {
            documents
                .iter()
                .map(name)
                .collect::<std::collections::BTreeSet<_>>()
        };
        if let Some(before) = &rendered {
            assert_eq!(
                names(before),
                names(&documents),
                "{} renders something else",
                program.display()
            );
        }
        rendered = Some(documents);
    }
    Ok(rendered.expect("HOLDFAST_HELM names at least one program"))
}

#[test]
fn every_scenario_passes_the_linter() {
    for (scenario, values) in scenarios() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(values.as_bytes()).unwrap();
        for program in programs() {
            let output = Command::new(&program)
                .args(["lint", "--strict", "--kube-version", "1.33.0", "--values"])
                .args([file.path(), &root().join("chart")])
                .output()
                .unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()));
            assert!(
                output.status.success(),
                "{scenario}: {}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
    }
}

/// `Kind/name` of a document.
pub(crate) fn name(document: &Value) -> String {
    let word = |pointer: &str| {
        document
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    format!("{}/{}", word("/kind"), word("/metadata/name"))
}

/// The scenarios of `chart/ci`, by name.
pub(crate) fn scenarios() -> BTreeMap<String, String> {
    let folder = root().join("chart/ci");
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files
        .map(|path| {
            let name = path
                .file_name()
                .unwrap()
                .to_string_lossy()
                .trim_end_matches("-values.yaml")
                .to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect()
}

/// A scenario, rendered.
pub(crate) struct Render(pub(crate) Vec<Value>);

impl Render {
    /// Renders a scenario of `chart/ci`.
    pub(crate) fn scenario(name: &str) -> Self {
        let values = scenarios()
            .remove(name)
            .unwrap_or_else(|| panic!("no scenario {name}"));
        Self(render(&values).unwrap_or_else(|error| panic!("{name}: {error}")))
    }

    /// The object of that kind and name without the prefix, if there is one.
    pub(crate) fn find(&self, kind: &str, suffix: &str) -> Option<&Value> {
        let wanted = format!("{kind}/{FULLNAME}-{suffix}");
        self.0.iter().find(|document| name(document) == wanted)
    }

    /// The object of that kind and name without the prefix.
    pub(crate) fn get(&self, kind: &str, suffix: &str) -> &Value {
        self.find(kind, suffix)
            .unwrap_or_else(|| panic!("no {kind} {suffix}"))
    }

    /// Every pod template, with the name of its workload.
    pub(crate) fn pods(&self) -> impl Iterator<Item = (String, &Value)> {
        self.0
            .iter()
            .filter_map(|document| Some((name(document), document.pointer("/spec/template")?)))
    }
}
