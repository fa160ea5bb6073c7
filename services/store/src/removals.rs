//! Deletes of manifests whose tags are not untied yet: the answer to a delete waits for two names
//! on the volume, not for a look at every tag.
//!
//! Owns the folder `_holdfast/removals`. Knows nothing of how tags and revisions are read. Nothing
//! here holds a lock, because its owner may stand still for longer than a lock lives; what somebody
//! may do is a folder that somebody else can remove.
//!
//! - A **removal** is a folder of one delete, named by repository, digest and chance. The delete
//!   moves the revision's link into it: in one step the manifest is gone, its tags with it (a tag
//!   without a revision answers "unknown"), and the volume says that tags are still to be untied.
//!   Empty, the folder says nothing: whoever meets it removes it, and a delete that is under way
//!   begins again.
//! - **Whoever writes a revision** puts its temporary file in place, then looks for removals of
//!   that digest and finishes them, then renames. A delete removes such files after it made its
//!   folder. So a revision that is visible has no removal, and no tag comes back with it.
//! - **Whoever unties a tag** moves its link into a folder made for that (a *hold*), and only if
//!   the tag was read, and the removal seen, after the hold was made. Whoever sets a tag removes
//!   the holds of its repository afterwards, and looks whether its tag is still there. So a tag
//!   that was set is never taken by somebody who looked before.
//! - On a **full** volume a delete must not fail for want of a folder, because it is what makes
//!   room: some folders are made ahead ([`spare`]).
//! - A removal beside a visible revision is one whose end was lost with the power, or another
//!   registry pushed the manifest again: it is dropped.

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
    Error, Layout, Result, Store, durable,
    error::absent,
    layout, links,
    store::Inner,
    volume::{Kind, Volume},
};

mod later;
mod names;
mod spare;
mod untie;

pub(crate) use later::Untying;
use names::{NOTE, Name, encoded, is_held, key, parse};
pub(crate) use names::{decoded, digest_of};

/// How often something begins again that others got in the way of.
const MAX_ATTEMPTS: usize = 64;

/// The delete of a manifest that may not be finished.
#[derive(Debug)]
struct Removal {
    digest: Digest,
    path: PathBuf,
}

/// What there is of one repository.
#[derive(Debug, Default)]
struct Pending {
    removals: Vec<Removal>,
    holds: Vec<PathBuf>,
}

impl Store {
    /// Removes a manifest; the tags that name it are unknown from then on, and untied after the
    /// answer. The bytes stay for the sweep. `false` if it was not there.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: nothing happened. All else that the volume says: the manifest may be
    /// gone or not.
    pub async fn delete_manifest(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        let inner = Arc::clone(&self.inner);
        let (repo, digest) = (repo.clone(), digest.clone());
        self.inner
            .pool
            .run(move || {
                let removed = inner.remove_revision(&repo, &digest);
                if !matches!(removed, Ok(false)) {
                    inner.untie_later(repo);
                }
                removed
            })
            .await
    }

    /// Unties the tags of deleted manifests that nobody untied yet, because a registry ended in
    /// between; how many repositories had some. When it returns, no thread of this process is
    /// at it either: another registry may take over the volume.
    ///
    /// # Errors
    /// What the volume says; what is left is found again the next time.
    pub async fn finish_removals(&self) -> Result<usize> {
        self.run(Inner::finish_all).await
    }
}

impl Inner {
    /// Takes the link of a revision to a folder of its own, for good. `false` if there is none.
    fn remove_revision(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        let link = self.layout.revision_link(repo, digest);
        for _ in 0..MAX_ATTEMPTS {
            if durable::metadata(self.volume(), &link)?.is_none() {
                return Ok(false);
            }
            let name = format!(
                "{}.{}-{}.{}",
                key(repo),
                digest.algorithm().as_str(),
                digest.hex(),
                Uuid::new_v4()
            );
            let removal = self.layout.removals().join(name);
            let aside = removal.join(encoded(repo));
            let taken = self.make(&removal).and_then(|()| {
                self.note(&removal.join(NOTE))?;
                self.end_writes_beside(&link)?;
                self.take(&link, &aside)
            });
            if let Ok(true) = taken {
                self.put_away(&link, &removal, &aside)
                    .map_err(|error| match error {
                        // That would say that nothing happened.
                        Error::NoSpace { .. } => Error::Busy,
                        other => other,
                    })?;
                return Ok(true);
            }
            drop(self.drop_empty(&removal));
            taken?;
        }
        Err(Error::Busy)
    }

    /// Puts the note into the place of a link that was taken, and makes all of it durable.
    fn put_away(&self, link: &Path, removal: &Path, aside: &Path) -> Result<()> {
        self.replace(&removal.join(NOTE), aside)?;
        for path in [aside, removal, link] {
            self.files.sync_removal(path)?;
        }
        Ok(())
    }

    /// Makes an empty file; one that is there is good.
    fn note(&self, path: &Path) -> Result<()> {
        match self.volume().create_new(path) {
            // Gone with its folder: whoever moves the link there finds out.
            Err(error) if !is_gone(&error) && durable::metadata(self.volume(), path)?.is_none() => {
                Err(Error::io("create", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Makes a folder, and those above it if somebody removed them. On a full volume it is a spare
    /// one.
    fn make(&self, path: &Path) -> Result<()> {
        let made = match self.volume().create_dir(path) {
            Err(error) if is_gone(&error) => {
                let folder = durable::parent(path)?;
                self.files.forget(folder);
                self.files.create_dir(folder)?;
                durable::create_dir_unsynced(self.volume(), path)
            }
            // The name is chance's: it is the reply that was lost.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(Error::io("create", path)),
        };
        match made {
            Err(full @ Error::NoSpace { .. }) => self.use_spare(path)?.then_some(()).ok_or(full),
            other => other,
        }
    }

    /// Takes away what others are about to make the link: they began before the removal was there
    /// to be seen.
    fn end_writes_beside(&self, link: &Path) -> Result<()> {
        let folder = durable::parent(link)?;
        for entry in durable::list(self.volume(), folder)?.into_iter().flatten() {
            let is_write = layout::is_temporary_of(&entry.name, OsStr::new("link"));
            // As a Holdfast named them before temporary files began with a dot; one may still run
            // beside this one.
            let is_old_write = entry
                .name
                .to_str()
                .is_some_and(|name| name.starts_with("link.") && layout::is_leftover(name));
            if is_write || is_old_write {
                let path = folder.join(&entry.name);
                absent(self.volume().remove_file(&path)).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Moves a file; `false` if there is nothing to move, or nowhere to move it to.
    fn take(&self, from: &Path, to: &Path) -> Result<bool> {
        let Err(error) = self.volume().rename(from, to) else {
            return Ok(true);
        };
        if durable::metadata(self.volume(), to)?.is_some() {
            // It is the reply that was lost.
            return Ok(true);
        }
        if is_gone(&error) {
            Ok(false)
        } else {
            Err(Error::io("rename", from)(error))
        }
    }

    /// Puts an empty file in a file's place. A network file system finds a file by a name that it
    /// no longer has, as long as the file is there.
    fn replace(&self, note: &Path, path: &Path) -> Result<()> {
        for _ in 0..MAX_ATTEMPTS {
            match self.volume().rename(note, path) {
                // A reply that was lost, or somebody tidied up: perhaps the note only.
                Err(error) if is_gone(&error) => {
                    if durable::metadata(self.volume(), path)?.is_none_or(|found| found.len == 0) {
                        return Ok(());
                    }
                    self.note(note)?;
                }
                other => return other.map_err(Error::io("rename", note)),
            }
        }
        Err(Error::Busy)
    }

    /// Gives a repository a revision, and takes no tag of a deleted one back with it.
    pub(crate) fn put_revision(&self, repo: &RepositoryName, digest: &Digest) -> Result<()> {
        let link = self.layout.revision_link(repo, digest);
        for _ in 0..MAX_ATTEMPTS {
            if links::read_durable(&self.files, &link)?.as_ref() == Some(digest) {
                // While a delete takes it away, a network file system shows it to those who know
                // it.
                let pending = self.pending(repo)?;
                if !pending.removals.iter().any(|found| found.digest == *digest) {
                    return Ok(());
                }
                self.finish(repo)?;
                continue;
            }
            match self.write_revision(repo, &link, digest) {
                // A delete took the file away, or somebody the folder.
                Err(error) if error.is_absent() || error.is_stale() => {
                    for folder in link.ancestors().take_while(|at| *at != self.root) {
                        self.files.forget(folder);
                    }
                }
                other => return other,
            }
        }
        Err(Error::Busy)
    }

    fn write_revision(&self, repo: &RepositoryName, link: &Path, digest: &Digest) -> Result<()> {
        self.files.create_dir(durable::parent(link)?)?;
        let pending = self
            .files
            .create_pending(link, digest.to_string().as_bytes())?;
        pending.sync()?;
        self.without_removal(repo, digest)?;
        self.files.publish(pending)
    }

    /// Returns when no removal of the digest is left.
    fn without_removal(&self, repo: &RepositoryName, digest: &Digest) -> Result<()> {
        for _ in 0..MAX_ATTEMPTS {
            let pending = self.pending(repo)?;
            if !pending.removals.iter().any(|found| found.digest == *digest) {
                return Ok(());
            }
            self.finish(repo)?;
        }
        Err(Error::Busy)
    }

    /// To be called by whoever set a tag: from here on nobody takes it who looked before. `true` if
    /// it may have been taken.
    pub(crate) fn end_untying(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        let pending = self.pending(repo)?;
        for hold in &pending.holds {
            self.clear(hold)?;
        }
        for removal in &pending.removals {
            if removal.digest != *digest {
                continue;
            }
            if self.has_happened(removal)? {
                self.finish(repo)?;
                return Ok(true);
            }
            // Emptied a moment ago: it must not come back after a loss of power, and take the tag
            // then.
            self.sync(&removal.path)?;
        }
        Ok(!pending.holds.is_empty())
    }

    /// The deleted manifests of a repository that tags may still name.
    pub(crate) fn removed(&self, repo: &RepositoryName) -> Result<BTreeSet<Digest>> {
        removed(self.volume(), &self.layout, repo)
    }

    /// As it is now, not as remembered.
    fn has_revision(&self, repo: &RepositoryName, digest: &Digest) -> Result<bool> {
        has_revision(self.volume(), &self.layout.revision_link(repo, digest))
    }

    fn pending(&self, repo: &RepositoryName) -> Result<Pending> {
        let mut pending = Pending::default();
        let mut own = None;
        for (key, name, path) in self.names()? {
            if *own.get_or_insert_with(|| names::key(repo)) != key {
                continue;
            }
            match name {
                Name::Removal(digest) => pending.removals.push(Removal { digest, path }),
                Name::Hold => pending.holds.push(path),
            }
        }
        Ok(pending)
    }

    /// All removals and holds of the volume with their repositories' keys.
    fn names(&self) -> Result<Vec<(String, Name, PathBuf)>> {
        let folder = self.layout.removals();
        let entries = durable::list(self.volume(), &folder)?.unwrap_or_default();
        Ok(entries
            .into_iter()
            .filter(|entry| entry.kind == Kind::Dir)
            .filter_map(|entry| {
                let (key, name) = parse(entry.name.to_str()?)?;
                Some((key.to_owned(), name, folder.join(&entry.name)))
            })
            .collect())
    }

    /// What a removal holds; empty when the delete did not come to pass.
    fn held(&self, removal: &Path) -> Result<Vec<String>> {
        held(self.volume(), removal)
    }

    fn has_happened(&self, removal: &Removal) -> Result<bool> {
        Ok(!self.held(&removal.path)?.is_empty())
    }

    fn finish_all(&self) -> Result<usize> {
        let mut repositories = BTreeSet::new();
        let mut holds = Vec::new();
        for (key, name, path) in self.names()? {
            if name == Name::Hold {
                holds.push((key, path));
                continue;
            }
            let held = self.held(&path)?;
            if held.is_empty() {
                self.drop_empty(&path)?;
            }
            repositories.extend(held.iter().filter_map(|name| decoded(name)));
        }
        for repo in &repositories {
            self.finish(repo)?;
        }
        for (key, hold) in holds {
            if !repositories.iter().any(|repo| names::key(repo) == key) {
                self.clear(&hold)?;
            }
        }
        self.keep_spares()?;
        // It may have taken a link that was not seen here any more, and be about to remove what is
        // left of the tag.
        self.untying.wait();
        Ok(repositories.len())
    }

    /// Unties the tags of a repository's deleted manifests. Several may do that at once.
    fn finish(&self, repo: &RepositoryName) -> Result<()> {
        let pending = self.pending(repo)?;
        let mut gone = BTreeSet::new();
        let mut done = Vec::new();
        for removal in pending.removals {
            if !self.has_happened(&removal)? {
                self.drop_empty(&removal.path)?;
                continue;
            }
            if !self.has_revision(repo, &removal.digest)? {
                let revision = self.layout.revision_link(repo, &removal.digest);
                // What is not durable yet must not take tags with it that are.
                for path in [&removal.path.join("held"), &removal.path, &revision] {
                    self.files.sync_removal(path)?;
                }
                gone.insert(removal.digest);
            }
            done.push(removal.path);
        }
        if !gone.is_empty() {
            self.untie_all(repo, &gone)?;
        }
        // By name: whoever came so late that there are new removals leaves them alone.
        for removal in &done {
            for name in self.held(removal)? {
                let path = removal.join(name);
                absent(self.volume().remove_file(&path)).map_err(Error::io("remove", &path))?;
            }
            self.drop_empty(removal)?;
        }
        pending.holds.iter().try_for_each(|hold| self.clear(hold))
    }

    /// Removes a removal without a link: of a delete that is finished, that ended before it began,
    /// or that is under way, notices and begins again. That it is empty is made durable first,
    /// because whoever sets a tag of the digest looks for names only.
    fn drop_empty(&self, removal: &Path) -> Result<()> {
        for entry in durable::list(self.volume(), removal)?.into_iter().flatten() {
            // What NFS keeps for a reader goes with the reader.
            if entry.name == NOTE {
                let path = removal.join(&entry.name);
                absent(self.volume().remove_file(&path)).map_err(Error::io("remove", &path))?;
            }
        }
        self.sync(removal)?;
        match self.volume().remove_dir(removal) {
            // Not empty: the delete came to pass at this moment.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => absent(other)
                .map(drop)
                .map_err(Error::io("remove", removal)),
        }
    }

    fn sync(&self, folder: &Path) -> Result<()> {
        absent(self.volume().sync_dir(folder))
            .map(drop)
            .map_err(Error::io("sync", folder))
    }
}

/// The files of a removal that are no notes.
fn held(volume: &dyn Volume, removal: &Path) -> Result<Vec<String>> {
    let mut names = links::names(volume, removal)?;
    names.retain(|name| is_held(name));
    Ok(names)
}

/// Whether something on the way was not there.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle
    )
}

/// Whether a manifest of this digest is being deleted, from any repository.
pub(crate) fn is_deleted_now(
    volume: &dyn Volume,
    layout: &Layout,
    digest: &Digest,
) -> Result<bool> {
    let names = links::names(volume, &layout.removals())?;
    Ok(names
        .iter()
        .any(|name| digest_of(name).as_ref() == Some(digest)))
}

fn has_revision(volume: &dyn Volume, link: &Path) -> Result<bool> {
    volume.refresh(link).map_err(Error::io("stat", link))?;
    Ok(links::read(volume, link)?.is_some())
}

/// [`Inner::removed`], also for those who only read.
pub(crate) fn removed(
    volume: &dyn Volume,
    layout: &Layout,
    repo: &RepositoryName,
) -> Result<BTreeSet<Digest>> {
    let folder = layout.removals();
    let mut removed = BTreeSet::new();
    for name in links::names(volume, &folder)? {
        if let Some(digest) = digest_of(&name)
            && name.starts_with(&key(repo))
            && !held(volume, &folder.join(name))?.is_empty()
            && !has_revision(volume, &layout.revision_link(repo, &digest))?
        {
            removed.insert(digest);
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests;
