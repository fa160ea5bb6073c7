//! Finds out whether containerd reads registry hosts from the folder that the agent may write to:
//! the setting `config_path`, in all versions of containerd's configuration.
//!
//! The configuration is only read. A change would need a restart of containerd, which is up to the
//! operator.

mod glob;
mod load;

use std::path::Path;

use toml::{Table, Value};

use crate::runtimes::HostsDir;
use load::{CRI_V2, Generation, IMAGES, load};

/// What containerd 2.2 and newer reads if nothing is set.
const DEFAULT_FOLDERS: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";

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
    /// The names of the files and folders in a folder of the host; empty if it does not exist.
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
    let release = runtime.and_then(numbers);
    let main = folder.join("config.toml");
    let loaded = load(files, &main, Generation::of(release))?;
    let registry = loaded.images.get("registry").and_then(Value::as_table);
    let setting = registry.and_then(|registry| registry.get("config_path")?.as_str());
    let inline = filled(registry, &["mirrors", "configs"]);
    let default = match release {
        Some((..=1, _) | (2, ..=1)) | None => false,
        // An empty setting disables the default, unless it is migrated from a former version.
        Some((2, 2)) => setting.is_none() || (setting == Some("") && loaded.migrated),
        Some(_) => setting.is_none_or(str::is_empty) && !filled(registry, &["mirrors"]),
    };
    let (value, source) = if default {
        (DEFAULT_FOLDERS, "the default of this version")
    } else {
        (setting.unwrap_or_default(), loaded.origin.as_str())
    };
    if value.is_empty() {
        let looked = if loaded.read.is_empty() {
            format!("no {}", main.display())
        } else {
            format!("read {}", loaded.read.join(", "))
        };
        let found = Found {
            looked,
            format: loaded.format,
            inline,
        };
        return Err(missing((folder, hosts), runtime, release, found));
    }
    let transfers = release.is_some_and(|release| release >= (2, 1));
    let transfers = transfers && !pulls_locally(&loaded.images);
    choose(hosts, value, source, transfers)
}

/// Accepts `hosts` if it is one of the folders in `value`. `transfers` says whether containerd
/// pulls with its transfer service, which takes the whole value as the name of one folder.
fn choose(hosts: &Path, value: &str, source: &str, transfers: bool) -> Result<HostsDir, Error> {
    // Compared as paths, so that a trailing slash does not matter.
    if !value.split(':').any(|folder| Path::new(folder) == hosts) {
        return Err(Error::Elsewhere {
            value: value.to_owned(),
            origin: source.to_owned(),
            folder: hosts.display().to_string(),
        });
    }
    let fault = (value.contains(':') && transfers).then(|| {
        format!(
            "containerd with the transfer service reads no registry hosts while config_path is a \
             list of folders: set config_path = \"{}\" alone, or use_local_image_pull = true, in \
             [plugins.\"{IMAGES}\"] and its table registry, and restart containerd",
            hosts.display()
        )
    });
    Ok(HostsDir {
        path: hosts.to_owned(),
        note: format!("config_path {value:?} from {source}"),
        fault,
    })
}

/// Whether one of these tables of the registry's settings has an entry.
fn filled(registry: Option<&Table>, keys: &[&str]) -> bool {
    let tables = keys
        .iter()
        .filter_map(|key| registry?.get(*key)?.as_table());
    tables.into_iter().any(|table| !table.is_empty())
}

/// Whether containerd 2.1 and newer pulls by itself and not with its transfer service: because it
/// is told to, or because a setting has no meaning for that service
/// (`CheckLocalImagePullConfigs`).
fn pulls_locally(images: &Table) -> bool {
    let is = |key: &str, value: bool| images.get(key).and_then(Value::as_bool) == Some(value);
    let downloads = images.get("max_concurrent_downloads");
    is("use_local_image_pull", true)
        || is("disable_snapshot_annotations", false)
        || is("discard_unpacked_layers", true)
        || is("image_pull_with_sync_fs", true)
        || downloads.is_some_and(|downloads| downloads.as_integer() != Some(3))
        || filled(
            images.get("registry").and_then(Value::as_table),
            &["mirrors", "configs", "auths"],
        )
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
        (IMAGES, 3)
    } else {
        (CRI_V2, 2)
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
