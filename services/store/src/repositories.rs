//! Which repositories there are.
//!
//! The tree is walked in the order of full names, and only as far as a page needs: a folder is
//! opened when its name is the smallest one left. The order of folders alone is not that order,
//! because `-` and `.` sort before `/`.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    ops::ControlFlow,
    path::PathBuf,
};

use holdfast_core::{digest::Digest, reference::RepositoryName};

use crate::{
    Layout, Result, blobs::Blobs, durable::DurableFs, files, layout::names, links, volume::Volume,
};

/// Longest name of a repository. So the depth is bounded by the grammar, not by the
/// volume's content.
pub(crate) const MAX_NAME_BYTES: usize = 255;

/// The repositories of the volume.
#[derive(Clone, Debug)]
pub(crate) struct Repositories {
    files: DurableFs,
    layout: Layout,
    blobs: Blobs,
}

/// Whether the repository holds, or held, a manifest.
pub(crate) fn exists(volume: &dyn Volume, layout: &Layout, repo: &RepositoryName) -> Result<bool> {
    let found = files::metadata(volume, &layout.manifests(repo))?;
    Ok(found.is_some_and(|metadata| metadata.is_dir()))
}

/// The name of the folder `child` in the folder `name`, which is empty for the top.
pub(crate) fn join(name: &str, child: &str) -> String {
    if name.is_empty() {
        child.to_owned()
    } else {
        format!("{name}/{child}")
    }
}

impl Repositories {
    pub(crate) fn new(files: DurableFs, layout: Layout, blobs: Blobs) -> Self {
        Self {
            files,
            layout,
            blobs,
        }
    }

    /// Whether the repository holds, or held, a manifest.
    pub(crate) fn exists(&self, repo: &RepositoryName) -> Result<bool> {
        exists(self.files.volume(), &self.layout, repo)
    }

    /// At most `limit` repositories behind `after`, and whether there are more.
    pub(crate) fn page(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<RepositoryName>, bool)> {
        let mut page = Vec::new();
        let mut more = false;
        if limit == 0 {
            return Ok((page, more));
        }
        walk(
            self.files.volume(),
            &self.layout,
            after,
            |name, children| {
                if !children.iter().any(|child| child == names::MANIFESTS) {
                    return Ok(ControlFlow::Continue(()));
                }
                if page.len() == limit {
                    more = true;
                    return Ok(ControlFlow::Break(()));
                }
                page.push(name);
                Ok(ControlFlow::Continue(()))
            },
        )?;
        Ok((page, more))
    }

    /// At most `limit` repositories that link the blob, found within `folders` folders.
    pub(crate) fn with_blob(
        &self,
        digest: &Digest,
        folders: usize,
        limit: usize,
    ) -> Result<Vec<RepositoryName>> {
        let mut found = Vec::new();
        let mut visited = 0;
        walk(self.files.volume(), &self.layout, None, |name, children| {
            visited += 1;
            if children.iter().any(|child| child == names::LAYERS)
                && self.blobs.is_linked(&name, digest)?
            {
                found.push(name);
            }
            Ok(if visited >= folders || found.len() >= limit {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        Ok(found)
    }

    /// Of `repositories`, those that link the digest, and whether as a manifest.
    pub(crate) fn referring(
        &self,
        repositories: Vec<RepositoryName>,
        digest: &Digest,
    ) -> Result<Vec<(RepositoryName, bool)>> {
        let mut found = Vec::new();
        for repo in repositories {
            let links = [
                (self.layout.revision_link(&repo, digest), true),
                (self.layout.layer_link(&repo, digest), false),
            ];
            for (link, manifest) in links {
                if files::metadata(self.files.volume(), &link)?.is_some() {
                    found.push((repo, manifest));
                    break;
                }
            }
        }
        Ok(found)
    }
}

/// Visits folders that can be repositories in ASCII order of their names, those behind `after`
/// only, with the names in each.
pub(crate) fn walk(
    volume: &dyn Volume,
    layout: &Layout,
    after: Option<&str>,
    mut visit: impl FnMut(RepositoryName, &[String]) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let mut walk = Walk {
        root: layout.repositories(),
        after,
        levels: Vec::new(),
        next: BinaryHeap::new(),
    };
    walk.descend("", &links::names(volume, &walk.root)?);
    // Whatever is opened later sorts behind its own folder, so the smallest name left is the
    // next one of all.
    while let Some(Reverse((name, level))) = walk.next.pop() {
        let Some(level) = walk.levels.get_mut(level) else {
            continue;
        };
        let children = level.children(volume)?;
        if after.is_none_or(|after| name.as_str() > after)
            && let Ok(name) = RepositoryName::parse(&name)
            && visit(name, &children)?.is_break()
        {
            return Ok(());
        }
        walk.descend(&name, &children);
    }
    Ok(())
}

/// The folders that are known and not opened yet.
struct Walk<'a> {
    root: PathBuf,
    after: Option<&'a str>,
    levels: Vec<Level>,
    /// Names from the root on, each with the level that it belongs to.
    next: BinaryHeap<Reverse<(String, usize)>>,
}

impl Walk<'_> {
    /// Adds the folders among the names in a folder.
    fn descend(&mut self, folder: &str, children: &[String]) {
        let mut names = VecDeque::new();
        for child in children.iter().filter(|child| !child.starts_with('_')) {
            let name = join(folder, child);
            if name.len() <= MAX_NAME_BYTES && reaches_behind(&name, self.after) {
                names.push_back(child.clone());
                self.next.push(Reverse((name, self.levels.len())));
            }
        }
        if !names.is_empty() {
            self.levels.push(Level {
                folder: self.root.join(folder),
                names,
                opened: VecDeque::new(),
                ahead: 1,
            });
        }
    }
}

/// The folders in one folder. They are opened in their order, some ahead: together they cost less,
/// and mostly all of them are wanted.
struct Level {
    folder: PathBuf,
    names: VecDeque<String>,
    opened: VecDeque<Vec<String>>,
    ahead: usize,
}

impl Level {
    /// Most folders that are opened ahead.
    const MOST_AHEAD: usize = 64;

    /// The names in the next folder.
    fn children(&mut self, volume: &dyn Volume) -> Result<Vec<String>> {
        if self.opened.is_empty() {
            let names: Vec<_> = self
                .names
                .drain(..self.ahead.min(self.names.len()))
                .collect();
            self.opened = links::names_below(volume, &self.folder, &names)?.into();
            self.ahead = (self.ahead * 2).min(Self::MOST_AHEAD);
        }
        Ok(self.opened.pop_front().unwrap_or_default())
    }
}

/// Whether the folder, or anything below it, can sort behind `after`.
fn reaches_behind(folder: &str, after: Option<&str>) -> bool {
    after.is_none_or(|after| {
        folder > after || {
            let below = format!("{folder}/");
            below.as_str() > after || after.starts_with(&below)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{Options, Store};

    const NAMES: [&str; 8] = ["a", "a-b", "a.c/d", "a/b", "a/b/c", "a0", "b/x", "b/y"];

    async fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::unlimited()).await.unwrap();
        for name in NAMES {
            let repo = RepositoryName::parse(name).unwrap();
            fs::create_dir_all(store.layout().manifests(&repo)).unwrap();
        }
        // None of these is a repository.
        let root = store.layout().repositories();
        fs::create_dir_all(root.join("only/_layers")).unwrap();
        fs::create_dir_all(root.join("a/_uploads/x/_manifests")).unwrap();
        fs::create_dir_all(root.join("UPPER/_manifests")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        (dir, store)
    }

    #[tokio::test]
    async fn pages_join_to_the_sorted_list_whatever_their_size() {
        let (_dir, store) = store().await;
        for limit in 1..=NAMES.len() + 1 {
            let (mut all, mut after) = (Vec::new(), None);
            loop {
                let (page, more) = store.repositories_page(after, limit).await.unwrap();
                assert!(page.len() == limit || !more, "{limit}");
                all.extend(page.iter().map(ToString::to_string));
                if !more {
                    break;
                }
                after = all.last().cloned();
            }
            assert_eq!(all, NAMES, "{limit}");
        }
    }

    #[tokio::test]
    async fn a_page_begins_behind_any_text() {
        let (_dir, store) = store().await;
        for (after, expect) in [
            ("", Some("a")),
            ("a", Some("a-b")),
            ("a.", Some("a.c/d")),
            ("a/a", Some("a/b")),
            ("a/b/zz", Some("a0")),
            ("a/zz/zz", Some("a0")),
            ("b/x", Some("b/y")),
            ("b/y", None),
            ("zz", None),
        ] {
            let (page, _) = store
                .repositories_page(Some(after.into()), 1)
                .await
                .unwrap();
            assert_eq!(page.first().map(AsRef::as_ref), expect, "{after}");
        }
        assert_eq!(
            store.repositories_page(None, 0).await.unwrap(),
            (vec![], false)
        );
    }
}
