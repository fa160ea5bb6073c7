//! The files of a volume.

use std::{collections::BTreeMap, fs, path::Path};

/// Every file below `docker/registry/v2` with its content, without our own folder: distribution has
/// none.
pub(crate) fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let base = root.join("docker/registry/v2");
    let mut found = all(&base);
    found.retain(|path, _| !path.starts_with("_holdfast/"));
    found
}

/// Every file below a folder with its content.
pub(crate) fn all(base: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![base.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let name = path
                    .strip_prefix(base)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}
