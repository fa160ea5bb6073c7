//! Reads containerd's configuration files and merges them as containerd does.
//!
//! How files of former versions count differs between three generations of containerd. The tests'
//! `tests/data/containerd-configurations.toml` has an example of each rule.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Component, Path, PathBuf};

use toml::{Table, Value};

use super::glob::glob;
use super::{Error, Files};

/// Configuration files that are read at most. Bounds circular imports and huge folders.
const MAX_FILES: usize = 64;

/// The plugin that had the settings of images in version 1.
const CRI_V1: &str = "cri";
/// The same in version 2.
pub(super) const CRI_V2: &str = "io.containerd.grpc.v1.cri";
/// The same since version 3.
pub(super) const IMAGES: &str = "io.containerd.cri.v1.images";

/// Releases of containerd that read former versions of its configuration in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Generation {
    /// Before 2.0: no file is migrated. The last version that a file has counts for all, and a
    /// file replaces the whole table of a plugin.
    One,
    /// 2.0 to 2.2: files are merged first, and the result is migrated if the last file's version
    /// is below 3.
    Two,
    /// 2.3 and newer: each file is migrated by its own version, then merged.
    Three,
}

impl Generation {
    /// The generation of a release; of an unknown one, the newest.
    pub(super) fn of(release: Option<(u32, u32)>) -> Self {
        match release {
            Some((..=1, _)) => Self::One,
            Some((2, ..=2)) => Self::Two,
            _ => Self::Three,
        }
    }
}

/// What containerd's configuration says about images.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// The settings of images, merged.
    pub(super) images: Table,
    /// The file that has the last word on `registry.config_path`.
    pub(super) origin: String,
    /// The files that were read, in order.
    pub(super) read: Vec<String>,
    /// The version of the main file.
    pub(super) format: Option<i64>,
    /// Whether the settings are those of a former version, migrated by containerd.
    pub(super) migrated: bool,
}

/// Reads `main` and what it imports, breadth first. A file that does not exist is skipped: one
/// that is outside of the mounted folder looks the same.
pub(super) fn load(
    files: &dyn Files,
    main: &Path,
    generation: Generation,
) -> Result<Loaded, Error> {
    let mut pending = VecDeque::from([main.to_owned()]);
    let mut seen = BTreeSet::new();
    let mut loaded = Loaded::default();
    let mut merged = Merged::new(generation);
    while let Some(path) = pending.pop_front() {
        if seen.len() >= MAX_FILES || !seen.insert(path.clone()) {
            continue;
        }
        let name = path.display().to_string();
        let text = files.read(&path);
        let Some(text) = text.map_err(|e| Error::Unreadable(name.clone(), e))? else {
            continue;
        };
        let table: Table = text.parse().map_err(|e: toml::de::Error| {
            Error::Unreadable(name.clone(), e.message().to_owned())
        })?;
        let version = table.get("version").and_then(Value::as_integer);
        if path == main {
            loaded.format = version;
        }
        pending.extend(imports(files, &path, &table));
        let plugins = table.get("plugins").and_then(Value::as_table);
        merged.add(plugins.cloned().unwrap_or_default(), version, &name);
        loaded.read.push(name);
    }
    let plugin = merged.finish();
    loaded.migrated = merged.migrated;
    loaded.origin = merged.origins.remove(plugin).unwrap_or_default();
    if let Some(Value::Table(images)) = merged.plugins.remove(plugin) {
        loaded.images = images;
    }
    Ok(loaded)
}

/// The tables of plugins, merged so far.
struct Merged {
    generation: Generation,
    /// The version of what is merged.
    version: i64,
    plugins: Table,
    /// The file that set `registry.config_path` last, by plugin.
    origins: BTreeMap<String, String>,
    migrated: bool,
}

impl Merged {
    fn new(generation: Generation) -> Self {
        Self {
            generation,
            version: match generation {
                Generation::One => 1,
                Generation::Two => 3,
                Generation::Three => 4,
            },
            plugins: Table::new(),
            origins: BTreeMap::new(),
            migrated: false,
        }
    }

    /// Adds the plugins of one file.
    fn add(&mut self, mut plugins: Table, version: Option<i64>, file: &str) {
        let own = version.unwrap_or(0);
        if self.generation != Generation::One && own <= 1 && self.version > 1 {
            rename_v1(&mut plugins);
        }
        if self.generation == Generation::Three && own < self.version {
            self.migrated |= migrate(&mut plugins);
        }
        for (plugin, settings) in &plugins {
            let registry = settings.get("registry").and_then(Value::as_table);
            if registry.is_some_and(|registry| registry.contains_key("config_path")) {
                self.origins.insert(plugin.clone(), file.to_owned());
            }
        }
        match self.generation {
            Generation::One => self.plugins.extend(plugins),
            Generation::Two | Generation::Three => merge(&mut self.plugins, plugins),
        }
        let counts = match self.generation {
            Generation::One => own > 0,
            // Older files are migrated to the version of those before.
            Generation::Two => own > 1,
            Generation::Three => false,
        };
        if counts {
            self.version = own;
        }
    }

    /// The plugin that has the settings of images.
    fn finish(&mut self) -> &'static str {
        match self.generation {
            Generation::One if self.version <= 1 => CRI_V1,
            Generation::One => CRI_V2,
            Generation::Two if self.version < 3 => {
                self.migrated = migrate(&mut self.plugins);
                if let Some(origin) = self.origins.remove(CRI_V2) {
                    self.origins.insert(IMAGES.to_owned(), origin);
                }
                IMAGES
            }
            Generation::Two | Generation::Three => IMAGES,
        }
    }
}

/// The migration of containerd from version 1 to 2.
fn rename_v1(plugins: &mut Table) {
    if let Some(settings) = plugins.remove(CRI_V1) {
        plugins.insert(CRI_V2.to_owned(), settings);
    }
}

/// The migration of containerd's plugin of images from version 2. Its settings replace those under
/// the new name. Returns whether there were any.
fn migrate(plugins: &mut Table) -> bool {
    let Some(Value::Table(former)) = plugins.get(CRI_V2).cloned() else {
        return false;
    };
    let images = plugins
        .entry(IMAGES)
        .or_insert_with(|| Value::Table(Table::new()));
    let Value::Table(images) = images else {
        return false;
    };
    let mut take = |from: &Table, keys: &[&str]| {
        for key in keys {
            if let Some(value) = from.get(*key) {
                images.insert((*key).to_owned(), value.clone());
            }
        }
    };
    take(
        &former,
        &[
            "registry",
            "max_concurrent_downloads",
            "image_pull_with_sync_fs",
        ],
    );
    let containerd = former.get("containerd").and_then(Value::as_table);
    // containerd takes these only where runtimes are configured.
    if let Some(containerd) = containerd.filter(|table| table.contains_key("runtimes")) {
        take(
            containerd,
            &["disable_snapshot_annotations", "discard_unpacked_layers"],
        );
    }
    true
}

/// Tables are merged key by key; any other value replaces the former one.
fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// The files that a configuration imports, in order.
fn imports(files: &dyn Files, importer: &Path, table: &Table) -> Vec<PathBuf> {
    let base = importer.parent().unwrap_or(importer);
    let entries = table.get("imports").and_then(Value::as_array);
    let names = entries.into_iter().flatten().filter_map(Value::as_str);
    let resolve = |name: &str| {
        let path = clean(&base.join(name));
        // containerd takes a name without an asterisk as it is.
        if path.as_os_str().as_encoded_bytes().contains(&b'*') {
            glob(files, &path)
        } else {
            vec![path]
        }
    };
    names.flat_map(resolve).collect()
}

/// Go's `filepath.Clean` of an absolute path.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}
