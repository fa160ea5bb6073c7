//! Deletes of manifests. `docs/design/deletes.md` describes the protocol.
//!
//! A delete is acknowledged before the tags of the manifest are removed. Owns the folders
//! `_holdfast/deletes` and `_holdfast/reserve`. Does not know how tags and revisions are read.
//! Takes no lock, because a process may stall for longer than a lock lives: a permission is a
//! folder that another process can remove.
//!
//! - A **tombstone** is a folder for one delete, named by repository, digest and a random ID. The
//!   delete moves the link of the revision into it. This one rename deletes the manifest, makes its
//!   tags unknown (a tag without a revision is not found), and records that tags must be removed. A
//!   tombstone without an entry is *pending*, one with an entry is *committed*. Any process may
//!   remove a pending tombstone; the delete that created it then starts over.
//! - **A writer of a revision** creates its temporary file, then finishes all deletes of that
//!   digest, then renames. A delete removes such temporary files after it created its tombstone. So
//!   a visible revision has no tombstone, and no old tag comes back with it.
//! - **Untagging** moves the link of a tag into an **untag intent**, a folder made for that, and
//!   only if both the tag and the tombstone were read after the folder was made. A writer of a tag
//!   removes the intents of its repository afterwards, and checks that its tag still exists. So no
//!   process removes a tag on the base of an old read.
//! - On a **full volume** a delete must not fail for want of a folder, because deletes free space.
//!   [`reserve`] keeps some folders for that.
//! - A committed tombstone beside a visible revision belongs to a delete whose end was lost with
//!   the power, or another registry pushed the manifest again. It is removed without effect.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_core::{digest::Digest, reference::RepositoryName};
use uuid::Uuid;

use crate::{
    Error, Layout, Pool, Result,
    durable::DurableFs,
    error::absent,
    files, layout, links,
    volume::{Kind, Volume},
};

mod names;
mod reserve;
mod untag;
mod untag_queue;

use names::{Name, PLACEHOLDER, encode_repository, is_entry, parse, repository_key};
pub(crate) use names::{decode_repository, tombstone_digest};
pub(crate) use untag_queue::UntagQueue;

/// How often an operation starts over because another process interfered.
const MAX_ATTEMPTS: usize = 64;

/// The record of the delete of one manifest, until its tags are removed.
#[derive(Debug)]
struct Tombstone {
    digest: Digest,
    path: PathBuf,
}

/// The deletes of one repository that are not finished.
#[derive(Debug, Default)]
struct RepositoryDeletes {
    tombstones: Vec<Tombstone>,
    intents: Vec<PathBuf>,
}

/// The deletes of the volume, and the thread that finishes them.
#[derive(Clone, Debug)]
pub(crate) struct Deletes {
    files: DurableFs,
    layout: Layout,
    pool: Pool,
    queue: Arc<UntagQueue>,
}

impl Deletes {
    pub(crate) fn new(
        files: DurableFs,
        layout: Layout,
        pool: Pool,
        queue: Arc<UntagQueue>,
    ) -> Self {
        Self {
            files,
            layout,
            pool,
            queue,
        }
    }

    /// Deletes a manifest. Its tags are removed in the background. `false` if it does not exist.
    pub(crate) fn delete_manifest(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        let removed = self.delete_revision(repo, digest);
        if !matches!(removed, Ok(false)) && self.pool.has_threads() {
            self.queue.push(self, repo.clone());
        }
        removed
    }

    /// Moves the link of a revision into a tombstone, durably. `false` if there is no link.
    fn delete_revision(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        let link = self.layout.revision_link(repo, digest);
        for _ in 0..MAX_ATTEMPTS {
            if files::metadata(self.files.volume(), &link)?.is_none() {
                return Ok(false);
            }
            let name = format!(
                "{}.{}-{}.{}",
                repository_key(repo),
                digest.algorithm().as_str(),
                digest.hex(),
                Uuid::new_v4()
            );
            let tombstone = self.layout.deletes().join(name);
            let aside = tombstone.join(encode_repository(repo));
            let taken = self.create_dir_or_reserve(&tombstone).and_then(|()| {
                self.create_placeholder(&tombstone.join(PLACEHOLDER))?;
                self.abort_pending_links(&link)?;
                self.try_rename(&link, &aside)
            });
            if let Ok(true) = taken {
                self.finalize(&link, &tombstone, &aside)
                    .map_err(|error| match error {
                        // The delete has happened; `NoSpace` promises that it has not.
                        Error::NoSpace { .. } => Error::Busy,
                        other => other,
                    })?;
                return Ok(true);
            }
            drop(self.remove_if_pending(&tombstone));
            taken?;
        }
        Err(Error::Busy)
    }

    /// Replaces the link in the tombstone by the placeholder, and makes the delete durable.
    fn finalize(&self, link: &Path, tombstone: &Path, aside: &Path) -> Result<()> {
        self.replace_with_placeholder(&tombstone.join(PLACEHOLDER), aside)?;
        for path in [aside, tombstone, link] {
            self.files.sync_removal(path)?;
        }
        Ok(())
    }

    /// Creates an empty file; an existing one is kept.
    fn create_placeholder(&self, path: &Path) -> Result<()> {
        match self.files.volume().create_new(path) {
            // Its folder was removed. The rename into it will fail and notice.
            Err(error)
                if !is_gone(&error) && files::metadata(self.files.volume(), path)?.is_none() =>
            {
                Err(Error::io("create", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Creates a folder, and its ancestors if they are missing. On a full volume it moves a reserve
    /// folder there instead.
    fn create_dir_or_reserve(&self, path: &Path) -> Result<()> {
        let made = match self.files.volume().create_dir(path) {
            Err(error) if is_gone(&error) => {
                let folder = files::parent(path)?;
                self.files.forget(folder);
                self.files.create_dir(folder)?;
                files::create_dir_unsynced(self.files.volume(), path)
            }
            // The name is random, so only a lost reply explains this.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(Error::io("create", path)),
        };
        match made {
            Err(full @ Error::NoSpace { .. }) => {
                self.use_reserve_dir(path)?.then_some(()).ok_or(full)
            }
            other => other,
        }
    }

    /// Removes the temporary files of other writers of the link, who may have looked for tombstones
    /// before this one existed.
    fn abort_pending_links(&self, link: &Path) -> Result<()> {
        let folder = files::parent(link)?;
        for entry in files::list(self.files.volume(), folder)?
            .into_iter()
            .flatten()
        {
            let is_write = layout::is_temporary_of(&entry.name, OsStr::new(layout::names::LINK));
            // Names of older versions, before temporary files began with a dot.
            let is_old_write = entry
                .name
                .to_str()
                .is_some_and(|name| name.starts_with("link.") && layout::is_leftover(name));
            if is_write || is_old_write {
                let path = folder.join(&entry.name);
                absent(self.files.volume().remove_file(&path))
                    .map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Moves a file; `false` if the file or the target folder does not exist.
    fn try_rename(&self, from: &Path, to: &Path) -> Result<bool> {
        let Err(error) = self.files.volume().rename(from, to) else {
            return Ok(true);
        };
        if files::metadata(self.files.volume(), to)?.is_some() {
            // The rename happened and its reply was lost.
            return Ok(true);
        }
        if is_gone(&error) {
            Ok(false)
        } else {
            Err(Error::io("rename", from)(error))
        }
    }

    /// Replaces a file by an empty one. A network file system may find a file by its old name for
    /// as long as the file exists, so the link itself must go.
    fn replace_with_placeholder(&self, placeholder: &Path, path: &Path) -> Result<()> {
        for _ in 0..MAX_ATTEMPTS {
            match self.files.volume().rename(placeholder, path) {
                // The reply was lost, or another process finished the delete, or removed only the
                // placeholder.
                Err(error) if is_gone(&error) => {
                    if files::metadata(self.files.volume(), path)?
                        .is_none_or(|found| found.len == 0)
                    {
                        return Ok(());
                    }
                    self.create_placeholder(placeholder)?;
                }
                other => return other.map_err(Error::io("rename", placeholder)),
            }
        }
        Err(Error::Busy)
    }

    /// Links a revision to a repository. First it finishes earlier deletes of the digest, so that
    /// old tags do not come back.
    pub(crate) fn put_revision(&self, repo: &RepositoryName, digest: &Digest) -> Result<()> {
        let link = self.layout.revision_link(repo, digest);
        for _ in 0..MAX_ATTEMPTS {
            if links::read_durable(&self.files, &link)?.as_ref() == Some(digest) {
                // A network file system may still show a link that a delete has moved.
                let found = self.deletes_of(repo)?;
                if !found.tombstones.iter().any(|found| found.digest == *digest) {
                    return Ok(());
                }
                self.finish_repository(repo)?;
                continue;
            }
            match self.write_revision(repo, &link, digest) {
                // A delete removed the temporary file, or another process the folder.
                Err(error) if error.is_absent() || error.is_stale() => {
                    for folder in link.ancestors().take_while(|at| *at != self.files.root()) {
                        self.files.forget(folder);
                    }
                }
                other => return other,
            }
        }
        Err(Error::Busy)
    }

    fn write_revision(&self, repo: &RepositoryName, link: &Path, digest: &Digest) -> Result<()> {
        self.files.create_dir(files::parent(link)?)?;
        let pending = self
            .files
            .create_pending(link, digest.to_string().as_bytes())?;
        pending.sync()?;
        self.finish_deletes_of(repo, digest)?;
        self.files.publish(pending)
    }

    /// Finishes deletes until no tombstone of the digest is left.
    fn finish_deletes_of(&self, repo: &RepositoryName, digest: &Digest) -> Result<()> {
        for _ in 0..MAX_ATTEMPTS {
            let found = self.deletes_of(repo)?;
            if !found.tombstones.iter().any(|found| found.digest == *digest) {
                return Ok(());
            }
            self.finish_repository(repo)?;
        }
        Err(Error::Busy)
    }

    /// Aborts the untagging of a repository. Every writer of a tag calls it after the write, so
    /// that no process removes the tag on the base of an earlier read. `true` if the tag may have
    /// been removed already.
    pub(crate) fn abort_untags(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        let found = self.deletes_of(repo)?;
        for intent in &found.intents {
            self.clear_dir(intent)?;
        }
        for tombstone in &found.tombstones {
            if tombstone.digest != *digest {
                continue;
            }
            if self.is_committed(tombstone)? {
                self.finish_repository(repo)?;
                return Ok(true);
            }
            // It may have been emptied a moment ago. After a loss of power its entry must not come
            // back and remove the tag.
            self.sync(&tombstone.path)?;
        }
        Ok(!found.intents.is_empty())
    }

    /// The deleted manifests of a repository that tags may still name.
    pub(crate) fn deleted_manifests(&self, repo: &RepositoryName) -> Result<BTreeSet<Digest>> {
        deleted_manifests(self.files.volume(), &self.layout, repo)
    }

    /// Reads with fresh caches.
    fn has_revision(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        has_revision(
            self.files.volume(),
            &self.layout.revision_link(repo, digest),
        )
    }

    /// The tombstones and untag intents of one repository.
    fn deletes_of(&self, repo: &RepositoryName) -> Result<RepositoryDeletes> {
        let mut found = RepositoryDeletes::default();
        let mut own = None;
        for (key, name, path) in self.names()? {
            if *own.get_or_insert_with(|| repository_key(repo)) != key {
                continue;
            }
            match name {
                Name::Tombstone(digest) => found.tombstones.push(Tombstone { digest, path }),
                Name::UntagIntent => found.intents.push(path),
            }
        }
        Ok(found)
    }

    /// All tombstones and untag intents of the volume, each with the key of its repository.
    fn names(&self) -> Result<Vec<(String, Name, PathBuf)>> {
        let folder = self.layout.deletes();
        let entries = files::list(self.files.volume(), &folder)?.unwrap_or_default();
        Ok(entries
            .into_iter()
            .filter(|entry| entry.kind == Kind::Dir)
            .filter_map(|entry| {
                let (key, name) = parse(entry.name.to_str()?)?;
                Some((key.to_owned(), name, folder.join(&entry.name)))
            })
            .collect())
    }

    /// The entries of a tombstone; none while it is pending.
    fn entries(&self, tombstone: &Path) -> Result<Vec<String>> {
        entries(self.files.volume(), tombstone)
    }

    /// Whether the delete has happened: the link was moved into the tombstone.
    fn is_committed(&self, tombstone: &Tombstone) -> Result<bool> {
        Ok(!self.entries(&tombstone.path)?.is_empty())
    }

    /// Finishes all deletes of the volume; returns the number of repositories that had some. When
    /// it returns, no thread of this process removes tags.
    pub(crate) fn finish_all(&self) -> Result<usize> {
        let mut repositories = BTreeSet::new();
        let mut intents = Vec::new();
        for (key, name, path) in self.names()? {
            if name == Name::UntagIntent {
                intents.push((key, path));
                continue;
            }
            let entries = self.entries(&path)?;
            if entries.is_empty() {
                self.remove_if_pending(&path)?;
            }
            repositories.extend(entries.iter().filter_map(|name| decode_repository(name)));
        }
        for repo in &repositories {
            self.finish_repository(repo)?;
        }
        for (key, intent) in intents {
            if !repositories.iter().any(|repo| repository_key(repo) == key) {
                self.clear_dir(&intent)?;
            }
        }
        self.refill_reserve()?;
        // The background thread may have moved a link before this thread looked, and may still
        // have to remove the rest of that tag.
        self.queue.wait();
        Ok(repositories.len())
    }

    /// Removes the tags of the deleted manifests of a repository, then the tombstones. Several
    /// processes may do that at once.
    fn finish_repository(&self, repo: &RepositoryName) -> Result<()> {
        let found = self.deletes_of(repo)?;
        let mut gone = BTreeSet::new();
        let mut finished = Vec::new();
        for tombstone in found.tombstones {
            if !self.is_committed(&tombstone)? {
                self.remove_if_pending(&tombstone.path)?;
                continue;
            }
            if !self.has_revision(repo, &tombstone.digest)? {
                let revision = self.layout.revision_link(repo, &tombstone.digest);
                // A delete that is not durable must not remove tags that are.
                for path in [&tombstone.path.join("entry"), &tombstone.path, &revision] {
                    self.files.sync_removal(path)?;
                }
                gone.insert(tombstone.digest);
            }
            finished.push(tombstone.path);
        }
        if !gone.is_empty() {
            self.untag_all(repo, &gone)?;
        }
        // Only the tombstones that were read above. Newer ones stay.
        for tombstone in &finished {
            for name in self.entries(tombstone)? {
                let path = tombstone.join(name);
                absent(self.files.volume().remove_file(&path))
                    .map_err(Error::io("remove", &path))?;
            }
            self.remove_if_pending(tombstone)?;
        }
        found
            .intents
            .iter()
            .try_for_each(|intent| self.clear_dir(intent))
    }

    /// Removes a tombstone without an entry: its delete is finished, was cut off, or is in progress
    /// and will start over. The emptiness is made durable first, because a writer of a tag of the
    /// digest only looks for names.
    fn remove_if_pending(&self, tombstone: &Path) -> Result<()> {
        for entry in files::list(self.files.volume(), tombstone)?
            .into_iter()
            .flatten()
        {
            // NFS removes its own leftovers when their reader ends.
            if entry.name == PLACEHOLDER {
                let path = tombstone.join(&entry.name);
                absent(self.files.volume().remove_file(&path))
                    .map_err(Error::io("remove", &path))?;
            }
        }
        self.sync(tombstone)?;
        match self.files.volume().remove_dir(tombstone) {
            // Not empty: the delete was committed at this moment.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => absent(other)
                .map(drop)
                .map_err(Error::io("remove", tombstone)),
        }
    }

    fn sync(&self, folder: &Path) -> Result<()> {
        absent(self.files.volume().sync_dir(folder))
            .map(drop)
            .map_err(Error::io("sync", folder))
    }
}

/// The entries of a tombstone: all of its files but placeholders.
fn entries(volume: &dyn Volume, tombstone: &Path) -> Result<Vec<String>> {
    let mut names = links::names(volume, tombstone)?;
    names.retain(|name| is_entry(name));
    Ok(names)
}

/// Whether the error says that a file or folder is gone.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle
    )
}

/// Whether a manifest of this digest is being deleted, from any repository.
pub(crate) fn is_being_deleted(
    volume: &dyn Volume,
    layout: &Layout,
    digest: &Digest,
) -> Result<bool> {
    let names = links::names(volume, &layout.deletes())?;
    Ok(names
        .iter()
        .any(|name| tombstone_digest(name).as_ref() == Some(digest)))
}

fn has_revision(volume: &dyn Volume, link: &Path) -> Result<bool> {
    volume.refresh(link).map_err(Error::io("stat", link))?;
    Ok(links::read(volume, link)?.is_some())
}

/// [`Deletes::deleted_manifests`], also for those who only read.
pub(crate) fn deleted_manifests(
    volume: &dyn Volume,
    layout: &Layout,
    repo: &RepositoryName,
) -> Result<BTreeSet<Digest>> {
    let folder = layout.deletes();
    let mut removed = BTreeSet::new();
    for name in links::names(volume, &folder)? {
        if let Some(digest) = tombstone_digest(&name)
            && name.starts_with(&repository_key(repo))
            && !entries(volume, &folder.join(name))?.is_empty()
            && !has_revision(volume, &layout.revision_link(repo, &digest))?
        {
            removed.insert(digest);
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests;
