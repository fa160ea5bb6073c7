//! Writes that survive a loss of power. `docs/design/durability.md` describes the protocol.
//!
//! The order is always the same: the bytes of a file, its name, then the names of all folders above
//! it that are not known to be durable. Only then the store reports success. A name that another
//! process made is synced as well before anything relies on it. [`DurableFs`] remembers what this
//! process has synced, so that it syncs a folder once instead of once for each push.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    Error, Result,
    error::absent,
    files::{create_dir_unsynced, metadata, open_read, parent, retry_after_refresh, temporary},
    layout::names,
    volume::{Metadata, Volume, VolumeFile},
};

/// Most names that are remembered as durable. When it is reached, all are forgotten.
const MAX_DURABLE_NAMES: usize = 100_000;

/// How often a write is repeated whose folder another process removes at the same time.
const MAX_ATTEMPTS: usize = 8;

/// The volume, and the names on it that this process knows to be durable. Clones share both.
#[derive(Clone, Debug)]
pub(crate) struct DurableFs {
    volume: Arc<dyn Volume>,
    root: PathBuf,
    durable: Arc<Mutex<HashMap<PathBuf, Identity>>>,
}

/// Which file or folder had the name when it was made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    inode: (u64, u64),
    modified: Option<SystemTime>,
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.inode,
            modified: metadata.modified,
        }
    }
}

/// A small file under a temporary name. Dropping it removes the file unless it was published.
#[derive(Debug)]
pub(crate) struct PendingFile {
    volume: Arc<dyn Volume>,
    file: Arc<dyn VolumeFile>,
    temporary: Option<PathBuf>,
    path: PathBuf,
}

impl PendingFile {
    /// Makes the bytes durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync().map_err(Error::io("sync", &self.path))
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            drop(self.volume.remove_file(temporary));
        }
    }
}

/// Folders of tags are removed and made again, so a known one must be checked. All others stay.
fn is_volatile(path: &Path) -> bool {
    path.parent()
        .into_iter()
        .flat_map(Path::ancestors)
        .any(|folder| folder.ends_with(names::TAG_FOLDERS))
}

impl DurableFs {
    pub(crate) fn new(volume: Arc<dyn Volume>, root: PathBuf) -> Self {
        Self {
            volume,
            root,
            durable: Arc::default(),
        }
    }

    /// The same durable names over another view of the volume.
    pub(crate) fn with_volume(&self, volume: Arc<dyn Volume>) -> Self {
        Self {
            volume,
            ..self.clone()
        }
    }

    pub(crate) fn volume(&self) -> &dyn Volume {
        &*self.volume
    }

    /// The root of the store, below which folders are made durable.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes a directory and its ancestors durable, and creates those that are missing.
    pub(crate) fn create_dir(&self, path: &Path) -> Result<()> {
        if self.is_durable_dir(path) {
            return Ok(());
        }
        if path == self.root || !path.starts_with(&self.root) {
            // The root is the operator's, made if it is missing. The folder above it may be one
            // that cannot be synced.
            create_dir_unsynced(self.volume(), path)?;
            for folder in path.ancestors().skip(1) {
                drop(self.volume.sync_dir(folder));
            }
            return Ok(());
        }
        let above = parent(path)?;
        self.create_dir(above)?;
        match self.volume.create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                self.forget(above);
                return Err(Error::io("create", path)(error));
            }
            _ => {}
        }
        // Also when it existed: the process that made it may not have synced it yet.
        self.volume
            .sync_dir(above)
            .map_err(Error::io("sync", above))?;
        self.refresh_identity(above);
        if let Ok(metadata) = self.volume.metadata(path) {
            self.remember(path, Identity::of(&metadata));
        }
        Ok(())
    }

    /// Writes a small file: temporary file beside it, sync, rename, sync of the directory.
    pub(crate) fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut result = Ok(());
        for _ in 0..MAX_ATTEMPTS {
            result = self.try_write_file(path, bytes);
            match &result {
                // The folder was removed in between, or the memory of it was wrong.
                Err(error) if error.is_stale() || error.is_absent() => {
                    path.ancestors()
                        .take_while(|folder| *folder != self.root)
                        .for_each(|folder| self.forget(folder));
                }
                _ => break,
            }
        }
        result
    }

    fn try_write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.create_dir(parent(path)?)?;
        let pending = self.create_pending(path, bytes)?;
        pending.sync()?;
        self.publish(pending)
    }

    /// Writes a small file under a temporary name beside `path`. The folder must exist.
    pub(crate) fn create_pending(&self, path: &Path, bytes: &[u8]) -> Result<PendingFile> {
        let temporary = temporary(path);
        let file = self
            .volume
            .create_new(&temporary)
            .map_err(Error::io("write", path))?;
        let pending = PendingFile {
            volume: Arc::clone(&self.volume),
            file,
            temporary: Some(temporary),
            path: path.to_owned(),
        };
        pending
            .file
            .write_all_at(bytes, 0)
            .map_err(Error::io("write", path))?;
        Ok(pending)
    }

    /// Renames a synced file to its final name and syncs its folder, which must be durable.
    pub(crate) fn publish(&self, mut pending: PendingFile) -> Result<()> {
        let path = pending.path.clone();
        let dir = parent(&path)?;
        let named = (|| {
            let metadata = pending.file.metadata()?;
            if let Some(temporary) = &pending.temporary {
                self.rename_known(&metadata, temporary, &path)?;
            }
            Ok(metadata)
        })();
        let metadata = named.map_err(Error::io("write", &path))?;
        pending.temporary = None;
        self.volume.sync_dir(dir).map_err(Error::io("sync", dir))?;
        self.refresh_identity(dir);
        self.remember(&path, Identity::of(&metadata));
        Ok(())
    }

    /// Moves a synced file to `to` and makes that name durable. The removal of the old name is not
    /// durable: readers either look for it or ignore it.
    pub(crate) fn install(&self, file: &Metadata, from: &Path, to: &Path) -> Result<()> {
        let dir = parent(to)?;
        self.create_dir(dir)?;
        self.rename_known(file, from, to)
            .map_err(Error::io("rename", from))?;
        self.volume.sync_dir(dir).map_err(Error::io("sync", dir))?;
        self.remember(to, Identity::of(file));
        Ok(())
    }

    /// Renames a known file. A failure that the repetition of a request made up, after the first
    /// had its effect, shows as the file being where it should be.
    pub(crate) fn rename_known(&self, file: &Metadata, from: &Path, to: &Path) -> io::Result<()> {
        let Err(error) = self.volume.rename(from, to) else {
            return Ok(());
        };
        drop(self.volume.refresh(to));
        match self.volume.metadata(to) {
            Ok(there) if there.inode == file.inode => Ok(()),
            _ => Err(error),
        }
    }

    /// Moves a known file out of the way and syncs both directories. `false` when its name is gone,
    /// or is that of another file by now, which keeps it.
    pub(crate) fn move_known(&self, file: &Metadata, from: &Path, to: &Path) -> Result<bool> {
        self.create_dir(parent(to)?)?;
        // As it is: a network file system may remember the file that had the name before.
        self.volume.refresh(from).map_err(Error::io("stat", from))?;
        let there = metadata(self.volume(), from)?;
        if there.is_none_or(|there| there.inode != file.inode) {
            return Ok(false);
        }
        if let Err(error) = self.volume.rename(from, to) {
            // A repeated request reports the name as gone, after the first one had its effect; the
            // other name is known here only.
            drop(self.volume.refresh(to));
            if error.kind() != io::ErrorKind::NotFound {
                return Err(Error::io("rename", from)(error));
            }
            if metadata(self.volume(), to)?.is_none() {
                return Ok(false);
            }
        }
        // Another file may have taken the name between the look and the rename. It is opened,
        // because what a network file system remembers of a name may be of the file before.
        let moved = open_read(self.volume(), to).and_then(|moved| {
            moved
                .map(|moved| moved.metadata())
                .transpose()
                .map_err(Error::io("stat", to))
        });
        let moved = match moved {
            Ok(moved) => moved,
            Err(error) => {
                drop(self.restore_name(to, from));
                return Err(error);
            }
        };
        let is_other = moved.is_some_and(|moved| moved.inode != file.inode);
        if is_other {
            self.restore_name(to, from)?;
        } else {
            let dir = parent(to)?;
            self.volume.sync_dir(dir).map_err(Error::io("sync", dir))?;
        }
        self.sync_removal(from)?;
        Ok(!is_other)
    }

    /// Gives a file its name back for good, unless another one has it.
    pub(crate) fn restore(&self, path: &Path, name: &Path) -> Result<()> {
        let dir = parent(name)?;
        self.create_dir(dir)?;
        self.restore_name(path, name)?;
        self.volume.sync_dir(dir).map_err(Error::io("sync", dir))?;
        self.sync_removal(path)
    }

    /// Gives a file the name back that it lost, unless yet another one has it.
    fn restore_name(&self, path: &Path, name: &Path) -> Result<()> {
        match self.volume.link(path, name) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // There are volumes without hard links. A rename would replace what has the name.
            Err(_) => {
                self.volume.refresh(name).map_err(Error::io("stat", name))?;
                if metadata(self.volume(), name)?.is_none() {
                    let renamed = self.volume.rename(path, name);
                    renamed.map_err(Error::io("rename", path))?;
                }
                return Ok(());
            }
        }
        drop(self.volume.remove_file(path));
        Ok(())
    }

    /// Removes a file and syncs its directory; `false` if it was absent.
    pub(crate) fn remove_file(&self, path: &Path) -> Result<bool> {
        self.forget(path);
        let removed = retry_after_refresh(self.volume(), path, || {
            absent(self.volume.remove_file(path))
        })
        .map_err(Error::io("remove", path))?;
        match removed {
            Some(()) => self.sync_removal(path).map(|()| true),
            None => Ok(false),
        }
    }

    /// Makes it durable that a name is gone, also when its folder went with it.
    pub(crate) fn sync_removal(&self, path: &Path) -> Result<()> {
        for folder in path.ancestors().skip(1) {
            match self.volume.sync_dir(folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && folder != self.root => {}
                other => return other.map_err(Error::io("sync", folder)),
            }
        }
        Ok(())
    }

    /// Makes the name of an existing file durable, whichever process made it.
    pub(crate) fn ensure_durable(&self, path: &Path, metadata: &Metadata) -> Result<()> {
        let identity = Identity::of(metadata);
        if self.durable().get(path) == Some(&identity) {
            return Ok(());
        }
        let dir = parent(path)?;
        self.create_dir(dir)?;
        self.volume.sync_dir(dir).map_err(Error::io("sync", dir))?;
        self.remember(path, identity);
        Ok(())
    }

    /// Records the new modification time of a file that is known to be durable.
    pub(crate) fn update_identity(&self, path: &Path, before: &Metadata, after: &Metadata) {
        let mut durable = self.durable();
        if let Some(known) = durable.get_mut(path)
            && *known == Identity::of(before)
            && after.inode == before.inode
        {
            *known = Identity::of(after);
        }
    }

    /// Records the new modification time of a durable directory that this process has changed.
    fn refresh_identity(&self, path: &Path) {
        if is_volatile(path)
            && let Ok(metadata) = self.volume.metadata(path)
            && let Some(known) = self.durable().get_mut(path)
            && known.inode == metadata.inode
        {
            *known = Identity::of(&metadata);
        }
    }

    /// Whether this process made this very directory durable, and not one that it replaced.
    fn is_durable_dir(&self, path: &Path) -> bool {
        let Some(known) = self.durable().get(path).copied() else {
            return false;
        };
        !is_volatile(path)
            || self
                .volume
                .metadata(path)
                .is_ok_and(|metadata| known == Identity::of(&metadata))
    }

    fn remember(&self, path: &Path, identity: Identity) {
        let mut durable = self.durable();
        if durable.len() >= MAX_DURABLE_NAMES {
            durable.clear();
        }
        durable.insert(path.to_owned(), identity);
    }

    pub(crate) fn forget(&self, path: &Path) {
        self.durable().remove(path);
    }

    fn durable(&self) -> MutexGuard<'_, HashMap<PathBuf, Identity>> {
        self.durable.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::volume::Disk;

    /// What is durable of a name is known of the very file, as it was.
    #[test]
    fn a_file_that_is_touched_stays_known_and_no_other_becomes_it() {
        let folder = tempfile::tempdir().unwrap();
        let files = DurableFs::new(Arc::new(Disk::at(folder.path())), folder.path().to_owned());
        let at = |name: &str| folder.path().join(name);
        let look = |path: &Path| metadata(files.volume(), path).unwrap().unwrap();
        let renew = |path: &Path| {
            let later = look(path).modified.unwrap() + Duration::from_secs(1);
            fs::File::open(path).unwrap().set_modified(later).unwrap();
        };
        let is_known = |path: &Path| files.durable().get(path) == Some(&Identity::of(&look(path)));
        let path = at("a");
        files.write_file(&path, b"a").unwrap();
        let before = look(&path);
        renew(&path);
        assert!(!is_known(&path), "its time is another one");
        files.update_identity(&path, &before, &look(&path));
        assert!(is_known(&path));
        // Another file takes its name between the touch and the look.
        let before = look(&path);
        fs::write(at("b"), b"a").unwrap();
        fs::rename(at("b"), &path).unwrap();
        files.update_identity(&path, &before, &look(&path));
        assert!(!is_known(&path));
        // What was touched is not what was known: it took the name before.
        let before = look(&path);
        renew(&path);
        files.update_identity(&path, &before, &look(&path));
        assert!(!is_known(&path));
        // Nobody made that one durable.
        let other = at("c");
        fs::write(&other, b"c").unwrap();
        files.update_identity(&other, &look(&other), &look(&other));
        assert!(!is_known(&other));
    }
}
