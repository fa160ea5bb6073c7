//! Every dependency that is declared is used, and the libraries that the product is built on are
//! among them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Finding;

/// Libraries that the product is to be built on.
const REQUIRED: [&str; 10] = [
    "kube",
    "k8s-openapi",
    "schemars",
    "serde_yaml",
    "jsonschema",
    "warp",
    "tokio",
    "prometheus-client",
    "tracing",
    "oci-client",
];
/// Declared in the workspace before their users are there.
const AWAITED: [&str; 1] = ["croner"];

/// Checks the output of `cargo metadata --no-deps` and the workspace's manifest against the code:
/// every Rust file by its path.
pub(super) fn check(
    metadata: &Value,
    manifest: &str,
    sources: &BTreeMap<PathBuf, String>,
) -> Vec<Finding> {
    let packages = || metadata["packages"].as_array().into_iter().flatten();
    let folder = |package: &Value| {
        Path::new(package["manifest_path"].as_str().unwrap_or_default()).with_file_name("")
    };
    // The folder of a crate may lie in the folder of another one.
    let mut code: BTreeMap<PathBuf, String> = BTreeMap::new();
    for (path, text) in sources {
        let nearest = packages()
            .map(folder)
            .filter(|folder| path.starts_with(folder))
            .max_by_key(|folder| folder.components().count());
        *code.entry(nearest.unwrap_or_default()).or_default() += text;
    }
    let mut findings = Vec::new();
    let mut used = BTreeSet::new();
    for package in packages() {
        let name = package["name"].as_str().unwrap_or_default();
        let code = code.get(&folder(package)).map_or("", String::as_str);
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().unwrap_or_default();
            let called = dependency["rename"].as_str().unwrap_or(on);
            if names(code, &called.replace('-', "_")) {
                used.insert(on);
            } else {
                findings.push(Finding::new(
                    name,
                    format!("declares {on} and never names it"),
                ));
            }
        }
    }
    for name in declared(manifest) {
        if !used.contains(name) && !AWAITED.contains(&name) {
            findings.push(Finding::new(
                "Cargo.toml",
                format!("declares {name}, which no crate uses"),
            ));
        }
    }
    for name in REQUIRED {
        if !used.contains(name) {
            findings.push(Finding::new("Cargo.toml", format!("{name} is not used")));
        }
    }
    findings
}

/// The keys of `[workspace.dependencies]`.
fn declared(manifest: &str) -> impl Iterator<Item = &str> {
    manifest
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| Some(line.split_once('=')?.0.trim()))
        .filter(|name| !name.starts_with('#'))
}

/// Whether code names a crate: in a path, or as the whole of an import.
fn names(code: &str, crate_name: &str) -> bool {
    code.match_indices(crate_name).any(|(at, _)| {
        let before = code.get(..at).and_then(|head| head.chars().next_back());
        let starts = before.is_none_or(|c| !c.is_alphanumeric() && c != '_');
        let after = code.get(at + crate_name.len()..).unwrap_or_default();
        starts && ["::", ";", " as "].iter().any(|end| after.starts_with(end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_crates_are_whole_words_of_paths() {
        for (code, expect) in [
            ("use http_body::Frame;", true),
            ("#[derive(http_body::Frame)]", true),
            ("use http_body as body;", true),
            ("use http_body_util::Full;", false),
            ("// http_body is not here", false),
            ("use my_http_body::Frame;", false),
        ] {
            assert_eq!(names(code, "http_body"), expect, "{code}");
        }
    }

    #[test]
    fn what_is_declared_is_used() {
        let dependency = |name: &str| json!({ "name": name, "rename": null });
        let dependencies: Vec<Value> = REQUIRED.into_iter().map(dependency).collect();
        let metadata = |dependencies: &[Value]| json!({ "packages": [{ "name": "a", "manifest_path": "a/Cargo.toml", "dependencies": dependencies }] });
        let imports = REQUIRED.map(|name| format!("use {}::A;\n", name.replace('-', "_")));
        let code = imports.concat();
        let manifest = "[workspace]\nmembers = 1\n[workspace.dependencies]\nkube = \
            \"5\"\n\n[profile]\nunused = 1\n";
        let check = |dependencies: &[Value], manifest: &str| {
            let sources = BTreeMap::from([("a/src/lib.rs".into(), code.clone())]);
            let findings = check(&metadata(dependencies), manifest, &sources);
            findings
                .into_iter()
                .map(|one| one.message)
                .collect::<Vec<_>>()
        };
        assert_eq!(check(&dependencies, manifest), [""; 0]);
        let spare = manifest.replace("kube", "spare");
        assert_eq!(
            check(&dependencies, &spare),
            ["declares spare, which no crate uses"]
        );
        let more = [&dependencies[..], &[dependency("spare")]].concat();
        assert_eq!(
            check(&more, manifest),
            ["declares spare and never names it"]
        );
        assert_eq!(check(&dependencies[1..], ""), ["kube is not used"]);
    }
}
