//! Writes that survive a loss of power, and look-ups that a network file system's memory does not
//! deceive.
//!
//! The order, always: a file's bytes, then its name, then the names of the folders above it that
//! are not known to be durable; only then success is reported. A name that somebody else made is
//! made durable too before anything relies on it. What this process has synced itself is
//! remembered, so that each folder is synced once and not once a push.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use uuid::Uuid;

use crate::{
    Error, Result,
    error::absent,
    layout,
    volume::{Entry, Metadata, Volume, VolumeFile},
};

/// Names that are remembered as durable; above, the memory starts over.
const REMEMBERED: usize = 100_000;

/// How often a write begins again whose folder somebody removes at the same moment.
const ATTEMPTS: usize = 8;

/// The volume, and what this process knows to be durable on it. Clones know the same.
#[derive(Clone, Debug)]
pub(crate) struct Files {
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

/// A small file without its name; it goes with the value unless it is published.
#[derive(Debug)]
pub(crate) struct Draft {
    volume: Arc<dyn Volume>,
    file: Arc<dyn VolumeFile>,
    temporary: Option<PathBuf>,
    path: PathBuf,
}

impl Draft {
    /// Makes the bytes durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync().map_err(Error::io("sync", &self.path))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            drop(self.volume.remove_file(temporary));
        }
    }
}

/// Opens a regular file for reading, never through a symbolic link; `None` if absent.
pub(crate) fn open_read(volume: &dyn Volume, path: &Path) -> Result<Option<Arc<dyn VolumeFile>>> {
    match found(volume, path, || absent(volume.open_read(path))) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            Ok(None)
        }
        other => other.map_err(Error::io("open", path)),
    }
}

/// Opens a file and reads; `None` if absent.
pub(crate) fn reading<T>(
    volume: &dyn Volume,
    path: &Path,
    work: impl Fn(&dyn VolumeFile) -> Result<T>,
) -> Result<Option<T>> {
    until_fresh(path, || match open_read(volume, path)? {
        Some(file) => work(&*file).map(Some),
        None => Ok(None),
    })
}

/// Opens and reads, again if need be: on a network file system a file can be replaced between the
/// two.
pub(crate) fn until_fresh<T>(path: &Path, work: impl Fn() -> Result<T>) -> Result<T> {
    for _ in 0..ATTEMPTS {
        match work() {
            Err(error) if error.is_stale() => {}
            other => return other,
        }
    }
    Err(Error::io("read", path)(
        io::ErrorKind::StaleNetworkFileHandle.into(),
    ))
}

/// Opens a regular file for writing at explicit offsets, creating it if asked.
pub(crate) fn open_write(
    volume: &dyn Volume,
    path: &Path,
    create: bool,
) -> Result<Option<Arc<dyn VolumeFile>>> {
    found(volume, path, || absent(volume.open_write(path, create))).map_err(Error::io("open", path))
}

/// What is known of a name; `None` if absent. On a network file system it may be some seconds old:
/// what must be exact is opened.
pub(crate) fn metadata(volume: &dyn Volume, path: &Path) -> Result<Option<Metadata>> {
    found(volume, path, || absent(volume.metadata(path))).map_err(Error::io("stat", path))
}

/// The names in a directory; `None` if absent.
pub(crate) fn list(volume: &dyn Volume, folder: &Path) -> Result<Option<Vec<Entry>>> {
    found(volume, folder, || absent(volume.list(folder))).map_err(Error::io("list", folder))
}

/// Looks again before it believes that something is absent.
pub(crate) fn found<T>(
    volume: &dyn Volume,
    path: &Path,
    look: impl Fn() -> io::Result<Option<T>>,
) -> io::Result<Option<T>> {
    match look()? {
        None if volume.refresh(path)? => look(),
        other => Ok(other),
    }
}

/// Adds what is at `offset` to `buffer`, as much as one read gives.
pub(crate) fn read_some(
    file: &dyn VolumeFile,
    buffer: &mut Vec<u8>,
    offset: u64,
) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// The first `limit` bytes of an open file, or all.
pub(crate) fn read_up_to(file: &dyn VolumeFile, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(limit);
    while bytes.len() < limit {
        let offset = bytes.len() as u64;
        if read_some(file, &mut bytes, offset)? == 0 {
            break;
        }
    }
    Ok(bytes)
}

/// Creates a directory and its ancestors without a sync: for what need not survive.
pub(crate) fn create_dir_plain(volume: &dyn Volume, path: &Path) -> Result<()> {
    for _ in 0..ATTEMPTS {
        match volume.create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_dir_plain(volume, parent(path)?)?;
            }
            other => return other.map_err(Error::io("create", path)),
        }
    }
    Err(Error::io("create", path)(io::ErrorKind::NotFound.into()))
}

/// Writes a small file in place, unsynced: for what need not survive.
pub(crate) fn write_plain(volume: &dyn Volume, path: &Path, bytes: &[u8]) -> Result<()> {
    let written = (|| {
        let file = volume.open_write(path, true)?;
        file.set_len(0)?;
        file.write_all_at(bytes, 0)
    })();
    written.map_err(Error::io("write", path))
}

/// Removes a tree; what is already gone, or held by NFS for a reader, is not an error.
pub(crate) fn remove_tree(volume: &dyn Volume, path: &Path) -> Result<()> {
    match volume.remove_dir_all(path) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::DirectoryNotEmpty
                    | io::ErrorKind::ResourceBusy
            ) =>
        {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// The temporary name beside `path` that every reader ignores.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(layout::temporary(&name, &Uuid::new_v4().to_string()))
}

pub(crate) fn parent(path: &Path) -> Result<&Path> {
    path.parent()
        .ok_or_else(|| Error::io("resolve", path)(io::ErrorKind::InvalidInput.into()))
}

/// Folders of tags come and go, so one that is known has to be looked at; all others stay.
fn is_volatile(path: &Path) -> bool {
    path.parent()
        .into_iter()
        .flat_map(Path::ancestors)
        .any(|folder| folder.ends_with("_manifests/tags"))
}

impl Files {
    pub(crate) fn new(volume: Arc<dyn Volume>, root: PathBuf) -> Self {
        Self {
            volume,
            root,
            durable: Arc::default(),
        }
    }

    /// The same knowledge over another view of the volume.
    pub(crate) fn on(&self, volume: Arc<dyn Volume>) -> Self {
        Self {
            volume,
            ..self.clone()
        }
    }

    pub(crate) fn volume(&self) -> &dyn Volume {
        &*self.volume
    }

    /// Makes sure that a directory is there and stays there.
    pub(crate) fn create_dir(&self, path: &Path) -> Result<()> {
        if self.is_durable_dir(path) {
            return Ok(());
        }
        if path == self.root || !path.starts_with(&self.root) {
            // The root is the operator's, made if it is missing. The folder above it may be one
            // that cannot be synced.
            create_dir_plain(self.volume(), path)?;
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
        // Also when it was there: whoever made it may not have come so far.
        self.volume
            .sync_dir(above)
            .map_err(Error::io("sync", above))?;
        self.changed(above);
        if let Ok(metadata) = self.volume.metadata(path) {
            self.remember(path, Identity::of(&metadata));
        }
        Ok(())
    }

    /// Writes a small file: temporary file beside it, sync, rename, sync of the directory.
    pub(crate) fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut result = Ok(());
        for _ in 0..ATTEMPTS {
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
        let draft = self.draft(path, bytes)?;
        draft.sync()?;
        self.publish(draft)
    }

    /// Writes a small file beside its place, where nobody sees it. The folder must be there.
    pub(crate) fn draft(&self, path: &Path, bytes: &[u8]) -> Result<Draft> {
        let temporary = temporary(path);
        let file = self
            .volume
            .create_new(&temporary)
            .map_err(Error::io("write", path))?;
        let draft = Draft {
            volume: Arc::clone(&self.volume),
            file,
            temporary: Some(temporary),
            path: path.to_owned(),
        };
        draft
            .file
            .write_all_at(bytes, 0)
            .map_err(Error::io("write", path))?;
        Ok(draft)
    }

    /// Gives a synced draft its name, for good, in a folder that is durable.
    pub(crate) fn publish(&self, mut draft: Draft) -> Result<()> {
        let path = draft.path.clone();
        let dir = parent(&path)?;
        let named = (|| {
            let metadata = draft.file.metadata()?;
            if let Some(temporary) = &draft.temporary {
                self.rename_open(&metadata, temporary, &path)?;
            }
            Ok(metadata)
        })();
        let metadata = named.map_err(Error::io("write", &path))?;
        draft.temporary = None;
        self.volume.sync_dir(dir).map_err(Error::io("sync", dir))?;
        self.changed(dir);
        self.remember(&path, Identity::of(&metadata));
        Ok(())
    }

    /// Moves a synced file to its place and makes the name durable. That the old name is gone is
    /// not: it is looked for, or it does no harm.
    pub(crate) fn place(&self, file: &Metadata, from: &Path, to: &Path) -> Result<()> {
        let dir = parent(to)?;
        self.create_dir(dir)?;
        self.rename_open(file, from, to)
            .map_err(Error::io("rename", from))?;
        self.volume.sync_dir(dir).map_err(Error::io("sync", dir))?;
        self.remember(to, Identity::of(file));
        Ok(())
    }

    /// Renames a known file. A failure that the repetition of a request made up, after the first
    /// had its effect, shows as the file being where it should be.
    pub(crate) fn rename_open(&self, file: &Metadata, from: &Path, to: &Path) -> io::Result<()> {
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
                drop(self.give_back(to, from));
                return Err(error);
            }
        };
        let is_other = moved.is_some_and(|moved| moved.inode != file.inode);
        if is_other {
            self.give_back(to, from)?;
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
        self.give_back(path, name)?;
        self.volume.sync_dir(dir).map_err(Error::io("sync", dir))?;
        self.sync_removal(path)
    }

    /// Gives a file the name back that it lost, unless yet another one has it.
    fn give_back(&self, path: &Path, name: &Path) -> Result<()> {
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
        let removed = found(self.volume(), path, || {
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

    /// Makes a file's name durable that is there, whoever made it.
    pub(crate) fn settle(&self, path: &Path, metadata: &Metadata) -> Result<()> {
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

    /// A file that is known to be durable has another modification time now.
    pub(crate) fn touched(&self, path: &Path, before: &Metadata, after: &Metadata) {
        let mut durable = self.durable();
        if let Some(known) = durable.get_mut(path)
            && *known == Identity::of(before)
            && after.inode == before.inode
        {
            *known = Identity::of(after);
        }
    }

    /// This process changed a directory that it knows to be durable, and so its modification time.
    fn changed(&self, path: &Path) {
        if is_volatile(path)
            && let Ok(metadata) = self.volume.metadata(path)
            && let Some(known) = self.durable().get_mut(path)
            && known.inode == metadata.inode
        {
            *known = Identity::of(&metadata);
        }
    }

    /// Whether this directory, not one that took its place, was made durable by this process.
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
        if durable.len() >= REMEMBERED {
            durable.clear();
        }
        durable.insert(path.to_owned(), identity);
    }

    pub(crate) fn forget(&self, path: &Path) {
        self.durable().remove(path);
    }

    fn durable(&self) -> MutexGuard<'_, HashMap<PathBuf, Identity>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
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
        let files = Files::new(Arc::new(Disk::at(folder.path())), folder.path().to_owned());
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
        files.touched(&path, &before, &look(&path));
        assert!(is_known(&path));
        // Another file takes its name between the touch and the look.
        let before = look(&path);
        fs::write(at("b"), b"a").unwrap();
        fs::rename(at("b"), &path).unwrap();
        files.touched(&path, &before, &look(&path));
        assert!(!is_known(&path));
        // What was touched is not what was known: it took the name before.
        let before = look(&path);
        renew(&path);
        files.touched(&path, &before, &look(&path));
        assert!(!is_known(&path));
        // Nobody made that one durable.
        let other = at("c");
        fs::write(&other, b"c").unwrap();
        files.touched(&other, &look(&other), &look(&other));
        assert!(!is_known(&other));
    }
}
