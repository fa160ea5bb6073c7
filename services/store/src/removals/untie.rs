//! Takes tags away from deleted manifests, one by one. Owns the holds; what may be untied is
//! decided above.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use holdfast_core::{
    digest::Digest,
    reference::{RepositoryName, Tag},
};
use uuid::Uuid;

use super::{
    MAX_ATTEMPTS, is_gone,
    names::{HOLD, key},
};
use crate::{Error, Result, durable, error::absent, links, store::Inner};

/// How often a folder is emptied before it is given up: a reader of this process may keep a file of
/// it on NFS, for a moment.
const MAX_CLEAR_ATTEMPTS: usize = 10_000;

impl Inner {
    /// Unties all tags that name one of the digests, for good. Each tag's link is read: other
    /// registries move tags without a note that could be trusted.
    pub(super) fn untie_all(&self, repo: &RepositoryName, gone: &BTreeSet<Digest>) -> Result<()> {
        let folder = self.layout.tags(repo);
        let mut hold = None;
        for name in links::names(self.volume(), &folder)? {
            let Ok(tag) = Tag::parse(&name) else { continue };
            let link = self.layout.tag_link(repo, &tag);
            match links::read(self.volume(), &link)? {
                Some(digest) if gone.contains(&digest) => {
                    self.untie(repo, &tag, &digest, &mut hold)?;
                }
                Some(_) => {}
                // Perhaps taken by somebody who ended before that was durable.
                None => self.files.sync_removal(&link)?,
            }
        }
        self.files.sync_removal(&folder.join("any"))?;
        match hold {
            Some(hold) => self.clear(&hold),
            None => Ok(()),
        }
    }

    /// Takes a tag away from a deleted manifest. One that somebody sets at the same moment stays
    /// where it was set.
    pub(super) fn untie(
        &self,
        repo: &RepositoryName,
        tag: &Tag,
        digest: &Digest,
        hold: &mut Option<PathBuf>,
    ) -> Result<()> {
        let link = self.layout.tag_link(repo, tag);
        for _ in 0..MAX_ATTEMPTS {
            let place = if let Some(place) = hold {
                place.clone()
            } else {
                let name = format!("{}.{HOLD}.{}", key(repo), Uuid::new_v4());
                let place = self.layout.removals().join(name);
                self.make(&place)?;
                hold.insert(place).clone()
            };
            if !self.is_removed(repo, digest)? {
                return Ok(());
            }
            match links::read(self.volume(), &link)? {
                Some(current) if current == *digest => {}
                Some(_) => return Ok(()),
                None => return self.files.sync_removal(&link),
            }
            let aside = place.join(tag.as_str());
            if self.take(&link, &aside)? {
                return self.taken(repo, tag, digest, &aside);
            }
            if durable::metadata(self.volume(), &place)?.is_none() {
                // Somebody set a tag.
                *hold = None;
            }
        }
        Err(Error::Busy)
    }

    /// Whether the manifest was deleted, and not pushed again since.
    pub(super) fn is_removed(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        for removal in self.pending(repo)?.removals {
            if removal.digest == *digest && self.has_happened(&removal)? {
                return Ok(!self.has_revision(repo, digest)?);
            }
        }
        Ok(false)
    }

    /// A tag's link was taken: the rest of the tag follows, unless the link was another one.
    pub(super) fn taken(
        &self,
        repo: &RepositoryName,
        tag: &Tag,
        digest: &Digest,
        aside: &Path,
    ) -> Result<()> {
        let link = self.layout.tag_link(repo, tag);
        let is_other = links::read(self.volume(), aside)?.is_some_and(|taken| taken != *digest);
        if is_other {
            match self.volume().link(aside, &link) {
                // Set once more: that one counts. Or whoever set it knows by now, and sets it
                // again.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists || is_gone(&error) => {}
                other => other.map_err(Error::io("link", &link))?,
            }
            self.files.sync_removal(&link)?;
        }
        absent(self.volume().remove_file(aside)).map_err(Error::io("remove", aside))?;
        if is_other {
            return Ok(());
        }
        // From here on only what is empty goes, but for the history, which whoever sets the tag now
        // writes again.
        durable::remove_tree(self.volume(), &self.layout.tag_index(repo, tag))?;
        if let Some(current) = links::read(self.volume(), &link)? {
            let history = self.layout.tag_index_link(repo, tag, &current);
            return links::ensure(&self.files, &history, &current);
        }
        let folder = self.layout.tag(repo, tag);
        drop(self.volume().remove_dir(durable::parent(&link)?));
        match self.volume().remove_dir(&folder) {
            // The name's end is made durable with those of the other tags.
            Ok(()) => Ok(()),
            // Somebody sets it, or a leftover keeps the folder.
            Err(_) => self.files.sync_removal(&link),
        }
    }

    /// Removes a folder and the files in it. When this returns nothing can be moved into it any
    /// more.
    pub(super) fn clear(&self, path: &Path) -> Result<()> {
        for _ in 0..MAX_CLEAR_ATTEMPTS {
            let Some(entries) = durable::list(self.volume(), path)? else {
                return Ok(());
            };
            for entry in entries {
                // What NFS keeps for a reader goes with the reader.
                if !entry.name.to_string_lossy().starts_with(".nfs") {
                    let path = path.join(&entry.name);
                    absent(self.volume().remove_file(&path)).map_err(Error::io("remove", &path))?;
                }
            }
            match self.volume().remove_dir(path) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy
                    ) =>
                {
                    std::thread::yield_now();
                }
                other => return absent(other).map(drop).map_err(Error::io("remove", path)),
            }
        }
        Err(Error::Busy)
    }
}
