//! A volume to read from, for tools beside a running registry: nothing is repaired, moved aside,
//! locked or created.

use std::{collections::BTreeMap, io, ops::ControlFlow, path::Path, sync::Arc};

use holdfast_core::{
    digest::Digest,
    reference::{RepositoryName, Tag},
};

use crate::{
    Error, Layout, Result, deletes, files,
    layout::names,
    links, repositories, tags,
    volume::{Disk, Metadata, Volume},
};

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
    /// [`Error::Io`] with "not found", when there is no registry's content.
    pub fn open(root: &Path) -> Result<Self> {
        let volume: Arc<dyn Volume> = Arc::new(Disk::at(root));
        let layout = Layout::new(root);
        let folder = layout.repositories();
        match files::metadata(&*volume, &folder)? {
            Some(found) if found.is_dir() => Ok(Self { volume, layout }),
            _ => Err(Error::io("find", folder)(io::ErrorKind::NotFound.into())),
        }
    }

    /// All repositories that hold manifests, by name.
    ///
    /// # Errors
    /// The volume fails.
    pub fn repositories(&self) -> Result<Vec<RepositoryName>> {
        let mut found = Vec::new();
        repositories::walk(&*self.volume, &self.layout, None, |name, children| {
            if children.iter().any(|child| child == names::MANIFESTS) {
                found.push(name);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// The tags of a repository by name, each with the digest that it names, or `None` when its
    /// link is damaged. Tags of deleted manifests are left out, also those still on the volume.
    ///
    /// # Errors
    /// The volume fails.
    pub fn tags(&self, repo: &RepositoryName) -> Result<BTreeMap<Tag, Option<Digest>>> {
        // Before the names: a tombstone is removed only after the tags of its manifest.
        let removed = deletes::deleted_manifests(&*self.volume, &self.layout, repo)?;
        let mut found = BTreeMap::new();
        for name in links::names(&*self.volume, &self.layout.tags(repo))? {
            let Ok(tag) = Tag::parse(&name) else { continue };
            if files::metadata(&*self.volume, &self.layout.tag_link(repo, &tag))?.is_some() {
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

    /// The digest that a tag names; of a tag with a damaged link, the one that a repair would
    /// write.
    ///
    /// # Errors
    /// The volume fails.
    pub fn tag(&self, repo: &RepositoryName, tag: &Tag) -> Result<Option<Digest>> {
        let found = tags::read(&*self.volume, &self.layout, repo, tag)?;
        Ok(found.map(tags::Target::into_digest))
    }

    /// The blob with the bytes of a manifest of the repository: the manifest's own, or, of an
    /// alias, the same bytes under the name of another algorithm.
    ///
    /// # Errors
    /// The volume fails.
    pub fn manifest(&self, repo: &RepositoryName, digest: &Digest) -> Result<Option<Digest>> {
        links::read(&*self.volume, &self.layout.revision_link(repo, digest))
    }

    /// The blob with the bytes of a blob of the repository; see [`View::manifest`].
    ///
    /// # Errors
    /// The volume fails.
    pub fn layer(&self, repo: &RepositoryName, digest: &Digest) -> Result<Option<Digest>> {
        links::read(&*self.volume, &self.layout.layer_link(repo, digest))
    }

    /// The size of a blob in bytes.
    ///
    /// # Errors
    /// The volume fails.
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        let found = files::metadata(&*self.volume, &self.layout.blob(digest))?;
        Ok(found.filter(Metadata::is_file).map(|found| found.len))
    }

    /// The bytes of a small blob, at most `limit`. They are not verified.
    ///
    /// # Errors
    /// The volume fails.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>> {
        files::read(&*self.volume, &self.layout.blob(digest), limit)
    }

    /// Reads a blob piece by piece, and returns its size. The bytes are not verified.
    ///
    /// # Errors
    /// The volume or `piece` fails.
    pub fn stream_blob(
        &self,
        digest: &Digest,
        piece: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Option<u64>> {
        files::stream(&*self.volume, &self.layout.blob(digest), piece)
    }
}
