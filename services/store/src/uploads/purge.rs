//! Removes abandoned upload sessions and partial copies.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use holdfast_core::{digest::Algorithm, reference::RepositoryName};

use crate::{
    Error, Layout, Result, durable::DurableFs, error::absent, files, layout::names, links,
    volume::Volume,
};

/// Removes sessions and partial copies without activity for `idle`; returns their number. Ages are
/// measured by the volume's clock.
pub(crate) fn purge_idle(files: &DurableFs, layout: &Layout, idle: Duration) -> Result<usize> {
    let volume = files.volume();
    let repositories = repositories_with_uploads(volume, layout)?;
    let now = volume_now(volume, layout)?;
    let mut purged = 0;
    for repo in repositories {
        let folder = layout.repository(&repo).join(names::UPLOADS);
        for id in links::names(volume, &folder)? {
            let session = folder.join(&id);
            let mut paths = vec![session.clone()];
            // The bytes may be with a writer, under a temporary name.
            for entry in files::list(volume, &session)?.into_iter().flatten() {
                paths.push(session.join(&entry.name));
            }
            if is_idle(volume, &paths, now, idle) {
                files::remove_tree(volume, &session)?;
                purged += 1;
            }
        }
    }
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let folder = layout.own().join(names::INCOMING).join(algorithm.as_str());
        // Copies in progress have temporary names.
        for entry in files::list(volume, &folder)?.into_iter().flatten() {
            let path = folder.join(&entry.name);
            if is_idle(volume, std::slice::from_ref(&path), now, idle) {
                absent(volume.remove_file(&path)).map_err(Error::io("remove", &path))?;
                purged += 1;
            }
        }
    }
    Ok(purged)
}

fn repositories_with_uploads(volume: &dyn Volume, layout: &Layout) -> Result<Vec<RepositoryName>> {
    let mut found = Vec::new();
    let mut pending = vec![(layout.repositories(), String::new())];
    while let Some((folder, name)) = pending.pop() {
        for child in links::names(volume, &folder)? {
            if child == names::UPLOADS {
                found.extend(RepositoryName::parse(&name).ok());
            } else if !child.starts_with('_') && name.len() <= 255 {
                let path = folder.join(&child);
                let name = if name.is_empty() {
                    child
                } else {
                    format!("{name}/{child}")
                };
                pending.push((path, name));
            }
        }
    }
    Ok(found)
}

/// The volume's own clock.
fn volume_now(volume: &dyn Volume, layout: &Layout) -> Result<SystemTime> {
    let path = layout.own().join(names::CLOCK);
    files::write_unsynced(volume, &path, b"")?;
    files::metadata(volume, &path)?
        .and_then(|metadata| metadata.modified)
        .ok_or_else(|| Error::io("stat", &path)(std::io::ErrorKind::Unsupported.into()))
}

fn is_idle(volume: &dyn Volume, paths: &[PathBuf], now: SystemTime, idle: Duration) -> bool {
    let newest = paths
        .iter()
        .filter_map(|path| volume.metadata(path).ok()?.modified)
        .max();
    newest.is_none_or(|at| now.duration_since(at).is_ok_and(|age| age > idle))
}
