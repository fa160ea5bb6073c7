//! Writes that survive a loss of power: data and every directory that changed are synced before success is reported.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use uuid::Uuid;

use crate::{Error, Result, error::absent};

/// Opens a regular file for reading, never through a symbolic link; `None` if absent.
pub(crate) fn open_read(path: &Path) -> Result<Option<File>> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits()).unwrap_or(0);
    match absent(OpenOptions::new().read(true).custom_flags(flags).open(path)) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            Ok(None)
        }
        other => other.map_err(Error::io("open", path)),
    }
}

/// Opens a regular file for writing at explicit offsets, creating it if asked.
pub(crate) fn open_write(path: &Path, create: bool) -> Result<Option<File>> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits()).unwrap_or(0);
    absent(
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .custom_flags(flags)
            .open(path),
    )
    .map_err(Error::io("open", path))
}

/// Syncs a directory, so that the names in it survive.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("sync", path))
}

/// Creates a directory and its ancestors; each new name is synced in its parent.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = parent(path)?;
            create_dir(parent)?;
            match fs::create_dir(path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
                Err(error) => return Err(Error::io("create", path)(error)),
            }
        }
        Err(error) => return Err(Error::io("create", path)(error)),
    }
    sync_dir(parent(path)?)
}

/// Writes a small file: temporary file beside it, sync, rename, sync of the directory.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = parent(path)?;
    create_dir(dir)?;
    let temporary = temporary(path);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if let Err(error) = written {
        drop(fs::remove_file(&temporary));
        return Err(Error::io("write", path)(error));
    }
    sync_dir(dir)
}

/// Renames within the volume and syncs both directories.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    let dir = parent(to)?;
    create_dir(dir)?;
    fs::rename(from, to).map_err(Error::io("rename", from))?;
    sync_dir(dir)?;
    let origin = parent(from)?;
    if origin == dir {
        Ok(())
    } else {
        sync_dir(origin)
    }
}

/// Removes a file and syncs its directory; `false` if it was absent.
pub(crate) fn remove_file(path: &Path) -> Result<bool> {
    match absent(fs::remove_file(path)).map_err(Error::io("remove", path))? {
        Some(()) => sync_dir(parent(path)?).map(|()| true),
        None => Ok(false),
    }
}

/// Removes a tree; what is already gone, or held by NFS for a reader, is not an error.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
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
    path.with_file_name(format!("{name}.{}.tmp", Uuid::new_v4()))
}

pub(crate) fn parent(path: &Path) -> Result<&Path> {
    path.parent()
        .ok_or_else(|| Error::io("resolve", path)(io::ErrorKind::InvalidInput.into()))
}
