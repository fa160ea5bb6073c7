//! Removes what nobody goes on with: sessions, and files of copies that did not end.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use holdfast_core::{digest::Algorithm, reference::RepositoryName};

use crate::{Error, Result, Store, durable, error::absent, links, store::Inner, volume::Volume};

impl Store {
    /// Removes sessions and partial fills without activity for `idle`; returns how many. Ages come
    /// from the volume's clock.
    pub async fn purge_idle(&self, idle: Duration) -> Result<usize> {
        let repositories = self.repositories_with_uploads().await?;
        self.run(move |inner| {
            let now = volume_now(inner)?;
            let mut purged = 0;
            for repo in repositories {
                let folder = inner.layout.repository(&repo).join("_uploads");
                for id in links::names(inner.volume(), &folder)? {
                    let session = folder.join(&id);
                    let mut paths = vec![session.clone()];
                    // The bytes may be with a writer, under a temporary name.
                    for entry in durable::list(inner.volume(), &session)?
                        .into_iter()
                        .flatten()
                    {
                        paths.push(session.join(&entry.name));
                    }
                    if is_idle(inner.volume(), &paths, now, idle) {
                        durable::remove_tree(inner.volume(), &session)?;
                        purged += 1;
                    }
                }
            }
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let folder = inner.layout.own().join("incoming").join(algorithm.as_str());
                // Copies under way have temporary names.
                for entry in durable::list(inner.volume(), &folder)?
                    .into_iter()
                    .flatten()
                {
                    let path = folder.join(&entry.name);
                    if is_idle(inner.volume(), std::slice::from_ref(&path), now, idle) {
                        absent(inner.volume().remove_file(&path))
                            .map_err(Error::io("remove", &path))?;
                        purged += 1;
                    }
                }
            }
            Ok(purged)
        })
        .await
    }

    async fn repositories_with_uploads(&self) -> Result<Vec<RepositoryName>> {
        self.run(|inner| {
            let mut found = Vec::new();
            let mut pending = vec![(inner.layout.repositories(), String::new())];
            while let Some((folder, name)) = pending.pop() {
                for child in links::names(inner.volume(), &folder)? {
                    if child == "_uploads" {
                        found.extend(RepositoryName::parse(&name).ok());
                    } else if !child.starts_with('_') && name.len() <= 255 {
                        let path = folder.join(&child);
                        pending.push((
                            path,
                            if name.is_empty() {
                                child
                            } else {
                                format!("{name}/{child}")
                            },
                        ));
                    }
                }
            }
            Ok(found)
        })
        .await
    }
}

/// The volume's own clock.
fn volume_now(inner: &Inner) -> Result<SystemTime> {
    let path = inner.layout.own().join("clock");
    durable::write_unsynced(inner.volume(), &path, b"")?;
    durable::metadata(inner.volume(), &path)?
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
