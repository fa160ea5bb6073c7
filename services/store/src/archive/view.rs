//! A volume to read from, for tools beside a running registry: nothing is repaired, moved aside,
//! locked or made.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_core::{
    digest::Digest,
    oci::MANIFEST_BYTES,
    reference::{RepositoryName, Tag},
};

use super::{Error, Fetch, Name, Result, names};
use crate::{
    Hasher, Layout,
    check::tree,
    deletes, durable, links,
    volume::{Disk, Kind, Volume},
};

/// Longest name of a repository: deeper folders belong to none.
const MAX_NAME_BYTES: usize = 255;

/// A volume that is only read.
#[derive(Clone, Debug)]
pub struct View {
    volume: Arc<dyn Volume>,
    layout: Layout,
}

impl View {
    /// The volume below `root` (distribution's `rootdirectory`).
    ///
    /// # Errors
    /// Not found, when there is no registry's content.
    pub fn open(root: &Path) -> Result<Self> {
        let volume: Arc<dyn Volume> = Arc::new(Disk::at(root));
        let layout = Layout::new(root);
        let folder = layout.repositories();
        match durable::metadata(&*volume, &folder)? {
            Some(found) if found.is_dir() => Ok(Self { volume, layout }),
            _ => Err(crate::Error::io("find", folder)(io::ErrorKind::NotFound.into()).into()),
        }
    }

    /// All repositories that hold manifests, by name.
    pub fn repositories(&self) -> Result<Vec<RepositoryName>> {
        let mut found = Vec::new();
        let mut pending = vec![(self.layout.repositories(), String::new())];
        while let Some((folder, name)) = pending.pop() {
            for child in links::names(&*self.volume, &folder)? {
                if child == "_manifests" {
                    found.extend(RepositoryName::parse(&name).ok());
                } else if !child.starts_with('_') && name.len() <= MAX_NAME_BYTES {
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
        found.sort();
        Ok(found)
    }

    /// The tags of a repository by name, each with the digest that it names, or `None` when its
    /// link is damaged. Tags of deleted manifests are left out, also those still on the volume.
    pub fn tags(&self, repo: &RepositoryName) -> Result<BTreeMap<Tag, Option<Digest>>> {
        // Before the names: a tombstone is removed only after the tags of its manifest.
        let removed = deletes::deleted_manifests(&*self.volume, &self.layout, repo)?;
        let mut found = BTreeMap::new();
        for name in links::names(&*self.volume, &self.layout.tags(repo))? {
            let Ok(tag) = Tag::parse(&name) else { continue };
            if durable::metadata(&*self.volume, &self.layout.tag_link(repo, &tag))?.is_some() {
                let digest = self.tag(repo, &tag)?;
                if digest
                    .as_ref()
                    .is_none_or(|digest| !removed.contains(digest))
                {
                    found.insert(tag, digest);
                }
            }
        }
        Ok(found)
    }

    /// The digest that a tag names; for a tag without content, that which a repair would write.
    pub fn tag(&self, repo: &RepositoryName, tag: &Tag) -> Result<Option<Digest>> {
        let path = self.layout.tag_link(repo, tag);
        if let Some(digest) = links::read(&*self.volume, &path)? {
            return Ok(Some(digest));
        }
        if durable::metadata(&*self.volume, &path)?.is_none() {
            return Ok(None);
        }
        let mut known = Vec::new();
        for digest in links::list(&*self.volume, &self.layout.tag_index(repo, tag))? {
            let link = self.layout.revision_link(repo, &digest);
            if links::read(&*self.volume, &link)?.is_some() && self.bytes_of(&digest)?.is_some() {
                known.push(digest);
            }
        }
        Ok(match known.as_slice() {
            [only] => Some(only.clone()),
            _ => None,
        })
    }

    /// The image that a text means, and its digest: the first of [`names::local`] that is there.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn resolve(&self, text: &str) -> Result<(Name, Digest)> {
        for name in names::local(text) {
            let digest = match (&name.digest, &name.tag) {
                (Some(digest), _) => Some(digest.clone()),
                (None, Some(tag)) => self.tag(&name.repository, tag)?,
                (None, None) => None,
            };
            if let Some(digest) = digest
                && self.revision(&name.repository, &digest)?.is_some()
            {
                return Ok((name, digest));
            }
        }
        Err(Error::Unknown(text.to_owned()))
    }

    /// What a repository holds, to collect images from.
    pub fn of<'a>(&'a self, repo: &'a RepositoryName) -> impl Fetch + 'a {
        Within { view: self, repo }
    }

    /// Bytes of a small content.
    pub fn small(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>> {
        Ok(tree::read(&*self.volume, &self.layout.blob(digest), limit)?)
    }

    /// Gives the bytes of a content piece by piece, and checks them.
    ///
    /// # Errors
    /// [`Error::Damaged`] at the end, when the bytes had another digest; [`Error::Incomplete`] when
    /// they are not there.
    pub(crate) fn stream(
        &self,
        digest: &Digest,
        mut piece: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<u64> {
        let mut hasher = Hasher::new(digest.algorithm());
        let mut failed = None;
        let read = tree::stream(&*self.volume, &self.layout.blob(digest), |bytes| {
            hasher.update(bytes);
            piece(bytes).map_err(|error| {
                let kind = error.kind();
                failed = Some(error);
                kind.into()
            })
        });
        if let Some(error) = failed {
            return Err(Error::Write(error));
        }
        let Some(size) = read? else {
            return Err(Error::Incomplete {
                digest: digest.clone(),
            });
        };
        if hasher.finish() == *digest {
            Ok(size)
        } else {
            Err(Error::Damaged {
                digest: digest.clone(),
            })
        }
    }

    fn bytes_of(&self, digest: &Digest) -> Result<Option<u64>> {
        let found = durable::metadata(&*self.volume, &self.layout.blob(digest))?;
        Ok(found
            .filter(|found| found.kind == Kind::File)
            .map(|found| found.len))
    }

    /// The content behind a manifest of the repository.
    fn revision(&self, repo: &RepositoryName, digest: &Digest) -> Result<Option<PathBuf>> {
        let link = links::read(&*self.volume, &self.layout.revision_link(repo, digest))?;
        Ok(link.map(|target| self.layout.blob(&target)))
    }
}

struct Within<'a> {
    view: &'a View,
    repo: &'a RepositoryName,
}

impl Fetch for Within<'_> {
    fn manifest(&mut self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.view.revision(self.repo, digest)? else {
            return Ok(None);
        };
        let Some(bytes) = tree::read(&*self.view.volume, &path, MANIFEST_BYTES)? else {
            return Ok(None);
        };
        if Hasher::digest(digest.algorithm(), &bytes) == *digest {
            Ok(Some(bytes))
        } else {
            Err(Error::Damaged {
                digest: digest.clone(),
            })
        }
    }

    fn size(&mut self, digest: &Digest) -> Result<Option<u64>> {
        let link = self.view.layout.layer_link(self.repo, digest);
        match links::read(&*self.view.volume, &link)? {
            // An alias: the same bytes under the name of another algorithm.
            Some(target) => self.view.bytes_of(&target),
            None => Ok(None),
        }
    }
}
