//! Finds out whether containerd reads registry hosts from the folder that the agent may write to:
//! the setting `config_path`, in all three versions of containerd's configuration.
//!
//! The configuration is only read. A change would need a restart of containerd, which is up to the
//! operator.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::runtimes::HostsDir;

/// Configuration files that are read at most. Bounds circular imports and huge folders.
const MAX_FILES: usize = 64;

/// Why containerd does not read the folder that the agent may write to. The text tells the operator
/// what was found and what to add.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no `config_path`, and this version has no default.
    #[error(
        "containerd {version} has no registry config_path ({looked}); add to {folder}/config.toml and restart containerd:\n{snippet}{extra}"
    )]
    Missing {
        /// The version of containerd, if known.
        version: String,
        /// The files that were read.
        looked: String,
        /// The configuration folder of containerd on the host.
        folder: String,
        /// The lines to add.
        snippet: String,
        /// Another obstacle.
        extra: String,
    },
    /// `config_path` is not the folder that the agent may write to.
    #[error(
        "containerd reads registry hosts from {value:?} (set by {origin}), but the node agent may \
         write to {folder} only; \
         set the value nodeAgent.containerdConfigPath to containerd's folder if it is inside \
         nodeAgent.hostFolders.config, \
         otherwise set config_path = \"{folder}\" and restart containerd"
    )]
    Elsewhere {
        /// The setting.
        value: String,
        /// The file that sets it.
        origin: String,
        /// The folder that the agent may write to.
        folder: String,
    },
    /// A file is unreadable or not TOML.
    #[error("{0} cannot be read: {1}")]
    Unreadable(String, String),
}

/// Read access to the configuration folder on the host.
pub trait Files {
    /// The text of a file, by its absolute path on the host; `None` if there is no such file.
    fn read(&self, path: &Path) -> Result<Option<String>, String>;
    /// The names of the files in a folder of the host; empty if there is no such folder.
    fn list(&self, folder: &Path) -> Vec<String>;
}

/// Finds `hosts`, the folder that the agent may write to, among the folders that containerd reads.
/// `folder` is containerd's configuration folder on the host (`/etc/containerd`), `runtime` the
/// version that containerd reports, such as `v2.1.4` or `1.7.24`, if known.
pub fn find(
    files: &dyn Files,
    folder: &Path,
    hosts: &Path,
    runtime: Option<&str>,
) -> Result<HostsDir, Error> {
    let version = runtime.and_then(numbers);
    let mut pending = vec![folder.join("config.toml")];
    let mut read = Vec::new();
    let mut seen = BTreeSet::new();
    let (mut setting, mut format, mut inline) = (None, None, false);
    while let Some(path) = pending.pop() {
        if seen.len() >= MAX_FILES || !seen.insert(path.clone()) {
            continue;
        }
        let name = path.display().to_string();
        let Some(text) = files
            .read(&path)
            .map_err(|e| Error::Unreadable(name.clone(), e))?
        else {
            continue;
        };
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
            Error::Unreadable(name.clone(), e.message().to_owned())
        })?;
        read.push(name.clone());
        let own = table.get("version").and_then(toml::Value::as_integer);
        format = format.or(own);
        for registry in registries(&table, own.unwrap_or(1)) {
            if let Some(value) = registry.get("config_path").and_then(toml::Value::as_str) {
                setting = Some((value.to_owned(), name.clone()));
            }
            inline |= ["mirrors", "configs"].into_iter().any(|key| {
                registry
                    .get(key)
                    .is_some_and(|v| v.as_table().is_some_and(|t| !t.is_empty()))
            });
        }
        // Imports override the importing file, in order: the file read last wins.
        let imports = imports(files, &path, &table);
        pending.extend(imports.into_iter().rev());
    }
    let looked = if read.is_empty() {
        format!("no {}/config.toml", folder.display())
    } else {
        format!("read {}", read.join(", "))
    };
    // containerd 2.2 and newer has a default, which an empty setting disables.
    let (value, source) = setting.unwrap_or_else(|| match version {
        Some(v) if v >= (2, 2) => (
            "/etc/containerd/certs.d:/etc/docker/certs.d".to_owned(),
            "the default of this version".to_owned(),
        ),
        _ => (String::new(), String::new()),
    });
    if value.is_empty() {
        let found = Found {
            looked,
            format,
            inline,
        };
        return Err(missing((folder, hosts), runtime, version, found));
    }
    choose(hosts, &value, &source)
}

/// Accepts `hosts` if it is one of the folders in `value`.
fn choose(hosts: &Path, value: &str, source: &str) -> Result<HostsDir, Error> {
    // Compared as paths, so that a trailing slash does not matter.
    if !value.split(':').any(|folder| Path::new(folder) == hosts) {
        return Err(Error::Elsewhere {
            value: value.to_owned(),
            origin: source.to_owned(),
            folder: hosts.display().to_string(),
        });
    }
    let mut note = format!("config_path {value:?} from {source}");
    if value.contains(':') {
        note.push_str(
            "; some releases of containerd 2.2 read a list of folders as one name: \
             if the pull keeps failing, set config_path to one folder",
        );
    }
    Ok(HostsDir {
        path: hosts.to_owned(),
        note,
    })
}

/// What a search without a result has seen.
struct Found {
    looked: String,
    format: Option<i64>,
    inline: bool,
}

fn missing(
    (folder, hosts): (&Path, &Path),
    runtime: Option<&str>,
    version: Option<(u32, u32)>,
    found: Found,
) -> Error {
    let Found {
        looked,
        format,
        inline,
    } = found;
    let second = match version {
        Some((major, _)) => major >= 2,
        None => format.is_some_and(|format| format >= 3),
    };
    let (plugin, number) = if second && format.is_none_or(|f| f >= 3) {
        ("io.containerd.cri.v1.images", 3)
    } else {
        ("io.containerd.grpc.v1.cri", 2)
    };
    let head = if format.is_none_or(|f| f < 2) {
        format!("version = {number}\n")
    } else {
        String::new()
    };
    let extra = if inline {
        "\nregistry.mirrors and registry.configs exclude config_path: move them to hosts.toml files first".to_owned()
    } else {
        String::new()
    };
    Error::Missing {
        version: runtime.unwrap_or("of an unknown version").to_owned(),
        looked,
        folder: folder.display().to_string(),
        snippet: format!(
            "{head}[plugins.\"{plugin}\".registry]\n  config_path = \"{}\"",
            hosts.display()
        ),
        extra,
    }
}

/// The registry tables that are effective in a file of this version, the decisive one last.
fn registries(table: &toml::Table, format: i64) -> Vec<&toml::Table> {
    let names: &[&str] = match format {
        ..=1 => &["cri"],
        2 => &["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"],
        _ => &["io.containerd.cri.v1.images"],
    };
    let plugins = table.get("plugins").and_then(toml::Value::as_table);
    let registry = |name: &&str| plugins?.get(*name)?.as_table()?.get("registry")?.as_table();
    names.iter().filter_map(registry).collect()
}

/// The files that a configuration imports. Relative names and patterns such as `conf.d/*.toml` are
/// resolved.
fn imports(files: &dyn Files, importer: &Path, table: &toml::Table) -> Vec<PathBuf> {
    let base = importer.parent().unwrap_or(importer);
    let mut found = Vec::new();
    for pattern in table
        .get("imports")
        .and_then(toml::Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(toml::Value::as_str)
    {
        let path = base.join(pattern);
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let folder = path.parent().unwrap_or(base);
        match name.split_once('*') {
            None => found.push(path),
            Some((before, after)) => {
                let mut names = files.list(folder);
                names.retain(|n| {
                    n.len() >= before.len() + after.len()
                        && n.starts_with(before)
                        && n.ends_with(after)
                });
                names.sort();
                found.extend(names.iter().map(|name| folder.join(name)));
            }
        }
    }
    found
}

/// Major and minor of `v2.1.4`, `1.7.24~ds1` or `2.2.0-rc.1`.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.').map(|part| {
        let digits = part
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(part.len());
        part.get(..digits).and_then(|digits| digits.parse().ok())
    });
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests;
