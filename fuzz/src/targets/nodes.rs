//! What the node agent writes for the container runtime, and what it reads of the runtime's
//! configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use holdfast_api::state::{Host, NodeState};
use holdfast_node_agent::runtimes::containerd::{
    certs_d,
    config::{self, Files},
};

use super::text;
use crate::{Shape, Target, ensure, shape};

/// Host files.
pub(super) const HOSTS: Target = Target {
    name: "hosts",
    promise: "what is written is TOML that says exactly what the state says, in files below the runtime's folder",
    check: hosts_files,
    dictionary: &[
        "10.96.0.50",
        "[fd00::50]",
        "https://10.96.0.50",
        "http://",
        "\"",
        "]\n[host",
        "\u{7f}",
        "\u{85}",
        "../",
        ":5000",
        "\n",
    ],
    max_bytes: 400,
};

/// An input is lines: an address, a user, a password, then endpoints.
fn hosts_files(input: &[u8]) -> Result<Shape, String> {
    let text = text(input);
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default().to_owned();
    let (address, username, password) = (line(), line(), line());
    let endpoints: Vec<String> = lines.map(str::to_owned).collect();
    let state = NodeState {
        hosts: vec![Host {
            address: address.clone(),
            endpoints: endpoints.clone(),
        }],
        username,
        password: serde_json::from_value(serde_json::json!(password))
            .map_err(|error| error.to_string())?,
        ..NodeState::default()
    };
    let files = match certs_d::files(&state, Path::new("/etc/containerd/certs.d")) {
        Ok(files) => files,
        Err(error) => return Ok(shape(std::mem::discriminant(&error))),
    };
    for (path, file) in &files {
        super::routes::stays_below(Path::new("/root"), &Path::new("/root").join(path))?;
        ensure(path.split('/').count() == 2, || {
            format!("{path} is not one folder deep")
        })?;
        if !path.ends_with("/hosts.toml") {
            continue;
        }
        let content = String::from_utf8_lossy(&file.bytes).into_owned();
        let table: toml::Table = content
            .parse()
            .map_err(|error: toml::de::Error| format!("no TOML: {}", error.message()))?;
        ensure(
            table.get("server").and_then(toml::Value::as_str)
                == endpoints.first().map(String::as_str),
            || format!("another server: {:?}", table.get("server")),
        )?;
        let hosts = table.get("host").and_then(toml::Value::as_table);
        let found: BTreeSet<&str> = hosts
            .into_iter()
            .flat_map(toml::Table::keys)
            .map(String::as_str)
            .collect();
        let expected: BTreeSet<&str> = endpoints.iter().map(String::as_str).collect();
        ensure(found == expected, || format!("hosts are {found:?}"))?;
        let known = [
            "server",
            "capabilities",
            "ca",
            "dial_timeout",
            "header",
            "host",
        ];
        ensure(
            table.keys().all(|key| known.contains(&key.as_str())),
            || {
                format!(
                    "more keys than wanted: {:?}",
                    table.keys().collect::<Vec<_>>()
                )
            },
        )?;
    }
    Ok(shape((
        files.len(),
        endpoints.len().min(4),
        address.starts_with('['),
    )))
}

/// The runtime's configuration.
pub(super) const RUNTIME: Target = Target {
    name: "containerd",
    promise: "no configuration panics or loops, and the folder found is the one that may be written to",
    check: runtime,
    dictionary: &[
        "version = 2\n",
        "version = 3\n",
        "imports = [\"",
        "conf.d/*.toml",
        "config.toml",
        "[plugins.\"io.containerd.grpc.v1.cri\".registry]\n",
        "[plugins.\"io.containerd.cri.v1.images\".registry]\n",
        "config_path = \"",
        "/etc/containerd/certs.d",
        ":/etc/docker/certs.d",
        "..",
        "\"]\n",
        "\n====\n",
        "[plugins.cri.registry]\n",
        "*",
        "/",
    ],
    max_bytes: 2_000,
};

/// Files out of an input that `====` divides: `config.toml`, then `conf.d/N.toml`.
struct Parts(BTreeMap<String, String>);

impl Files for Parts {
    fn read(&self, path: &Path) -> Result<Option<String>, String> {
        Ok(self.0.get(&path.to_string_lossy().into_owned()).cloned())
    }

    fn list(&self, folder: &Path) -> Vec<String> {
        let prefix = format!("{}/", folder.display());
        let names = self.0.keys().filter_map(|path| path.strip_prefix(&prefix));
        names
            .filter(|name| !name.contains('/'))
            .map(str::to_owned)
            .collect()
    }
}

fn runtime(input: &[u8]) -> Result<Shape, String> {
    let text = text(input);
    let files = text.split("\n====\n").enumerate().map(|(number, part)| {
        let name = if number == 0 {
            "/etc/containerd/config.toml".to_owned()
        } else {
            format!("/etc/containerd/conf.d/{number}.toml")
        };
        (name, part.to_owned())
    });
    let files = Parts(files.collect());
    let mut shapes = Vec::new();
    for version in [None, Some("1.7.24"), Some("v2.2.0")] {
        let etc = Path::new("/etc/containerd");
        let hosts = etc.join("certs.d");
        match config::find(&files, etc, &hosts, version) {
            Ok(found) => {
                ensure(found.path == hosts, || {
                    format!("{} may not be written to", found.path.display())
                })?;
                shapes.push(shape(found.note.contains("list of folders")));
            }
            Err(error) => shapes.push(shape(std::mem::discriminant(&error))),
        }
    }
    Ok(shape((shapes, files.0.len())))
}
