//! Which repositories there are.

use std::{fs, path::Path};

use holdfast_core::reference::RepositoryName;

use crate::{Error, Result, Store, error::absent, links, store::Inner};

impl Store {
    /// Whether the repository holds, or held, a manifest.
    pub async fn repository_exists(&self, repo: &RepositoryName) -> Result<bool> {
        let repo = repo.clone();
        self.run(move |inner| inner.repository_exists(&repo)).await
    }

    /// All repositories in ASCII order of their names.
    pub async fn repositories(&self) -> Result<Vec<RepositoryName>> {
        self.run(|inner| {
            let mut found = Vec::new();
            walk(&inner.layout.repositories(), "", &mut found)?;
            found.sort_by(|a, b| a.as_str().cmp(b.as_str()));
            Ok(found)
        })
        .await
    }
}

impl Inner {
    pub(crate) fn repository_exists(&self, repo: &RepositoryName) -> Result<bool> {
        let path = self.layout.manifests(repo);
        Ok(absent(fs::symlink_metadata(&path))
            .map_err(Error::io("stat", &path))?
            .is_some_and(|metadata| metadata.is_dir()))
    }
}

fn walk(folder: &Path, name: &str, found: &mut Vec<RepositoryName>) -> Result<()> {
    // A name has at most 255 characters, so the depth is bounded by the grammar, not by the volume's content.
    if name.len() > 255 {
        return Ok(());
    }
    for child in links::names(folder)? {
        if child == "_manifests" {
            found.extend(RepositoryName::parse(name).ok());
        }
        if child.starts_with('_') {
            continue;
        }
        let path = folder.join(&child);
        let child = if name.is_empty() {
            child
        } else {
            format!("{name}/{child}")
        };
        walk(&path, &child, found)?;
    }
    Ok(())
}
