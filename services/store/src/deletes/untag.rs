//! Removes the tags of deleted manifests, one by one, by means of untag intents. The parent module
//! decides which manifests are deleted.

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
    Deletes, MAX_ATTEMPTS, is_gone,
    names::{UNTAG, repository_key},
};
use crate::{Error, Result, error::absent, files, links};

/// How often a folder is emptied before the operation fails: on NFS a reader of this process may
/// keep a file in it for a moment.
const MAX_CLEAR_ATTEMPTS: usize = 10_000;

impl Deletes {
    /// Removes all tags that name one of the digests, durably. It reads the link of every tag:
    /// other registries move tags and leave no index that could be trusted.
    pub(super) fn untag_all(&self, repo: &RepositoryName, gone: &BTreeSet<Digest>) -> Result<()> {
        let folder = self.layout.tags(repo);
        let mut intent = None;
        for name in links::names(self.files.volume(), &folder)? {
            let Ok(tag) = Tag::parse(&name) else { continue };
            let link = self.layout.tag_link(repo, &tag);
            match links::read(self.files.volume(), &link)? {
                Some(digest) if gone.contains(&digest) => {
                    self.untag(repo, &tag, &digest, &mut intent)?;
                }
                Some(_) => {}
                // Another process may have removed it and crashed before that was durable.
                None => self.files.sync_removal(&link)?,
            }
        }
        self.files.sync_removal(&folder.join("any"))?;
        match intent {
            Some(intent) => self.clear_dir(&intent),
            None => Ok(()),
        }
    }

    /// Removes a tag of a deleted manifest. A tag that is set at the same time stays.
    pub(super) fn untag(
        &self,
        repo: &RepositoryName,
        tag: &Tag,
        digest: &Digest,
        intent: &mut Option<PathBuf>,
    ) -> Result<()> {
        let link = self.layout.tag_link(repo, tag);
        for _ in 0..MAX_ATTEMPTS {
            let place = if let Some(place) = intent {
                place.clone()
            } else {
                let name = format!("{}.{UNTAG}.{}", repository_key(repo), Uuid::new_v4());
                let place = self.layout.deletes().join(name);
                self.create_dir_or_reserve(&place)?;
                intent.insert(place).clone()
            };
            if !self.is_deleted(repo, digest)? {
                return Ok(());
            }
            match links::read(self.files.volume(), &link)? {
                Some(current) if current == *digest => {}
                Some(_) => return Ok(()),
                None => return self.files.sync_removal(&link),
            }
            let aside = place.join(tag.as_str());
            if self.try_rename(&link, &aside)? {
                return self.finish_untag(repo, tag, digest, &aside);
            }
            if files::metadata(self.files.volume(), &place)?.is_none() {
                // A writer of a tag removed the intent.
                *intent = None;
            }
        }
        Err(Error::Busy)
    }

    /// Whether the manifest was deleted and not pushed again since.
    pub(super) fn is_deleted(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        for tombstone in self.deletes_of(repo)?.tombstones {
            if tombstone.digest == *digest && self.is_committed(&tombstone)? {
                return Ok(!self.has_revision(repo, digest)?);
            }
        }
        Ok(false)
    }

    /// Removes the rest of a tag after its link was moved. A link that names another manifest is
    /// put back.
    pub(super) fn finish_untag(
        &self,
        repo: &RepositoryName,
        tag: &Tag,
        digest: &Digest,
        aside: &Path,
    ) -> Result<()> {
        let link = self.layout.tag_link(repo, tag);
        let is_other =
            links::read(self.files.volume(), aside)?.is_some_and(|taken| taken != *digest);
        if is_other {
            match self.files.volume().link(aside, &link) {
                // The tag was set again, and that link wins. Or its writer noticed the move and
                // sets it again.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists || is_gone(&error) => {}
                other => other.map_err(Error::io("link", &link))?,
            }
            self.files.sync_removal(&link)?;
        }
        absent(self.files.volume().remove_file(aside)).map_err(Error::io("remove", aside))?;
        if is_other {
            return Ok(());
        }
        // From here on only empty folders are removed, and the history. A writer that sets the
        // tag now writes its history again.
        files::remove_tree(self.files.volume(), &self.layout.tag_index(repo, tag))?;
        if let Some(current) = links::read(self.files.volume(), &link)? {
            let history = self.layout.tag_index_link(repo, tag, &current);
            return links::ensure(&self.files, &history, &current);
        }
        let folder = self.layout.tag(repo, tag);
        drop(self.files.volume().remove_dir(files::parent(&link)?));
        match self.files.volume().remove_dir(&folder) {
            // The caller makes this durable for all tags at once.
            Ok(()) => Ok(()),
            // The tag is set at this moment, or a leftover keeps the folder.
            Err(_) => self.files.sync_removal(&link),
        }
    }

    /// Removes a folder and its files. When it returns, nothing can be moved into the folder.
    pub(super) fn clear_dir(&self, path: &Path) -> Result<()> {
        for _ in 0..MAX_CLEAR_ATTEMPTS {
            let Some(entries) = files::list(self.files.volume(), path)? else {
                return Ok(());
            };
            for entry in entries {
                // NFS removes its own leftovers when their reader ends.
                if !entry.name.to_string_lossy().starts_with(".nfs") {
                    let path = path.join(&entry.name);
                    absent(self.files.volume().remove_file(&path))
                        .map_err(Error::io("remove", &path))?;
                }
            }
            match self.files.volume().remove_dir(path) {
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
