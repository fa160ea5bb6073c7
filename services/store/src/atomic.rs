//! Writes that survive a loss of power: data and every directory that changed are synced before success is reported.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use uuid::Uuid;

use crate::{
    Error, Result,
    error::absent,
    volume::{Metadata, Volume, VolumeFile},
};

/// Opens a regular file for reading, never through a symbolic link; `None` if absent.
pub(crate) fn open_read(volume: &dyn Volume, path: &Path) -> Result<Option<Arc<dyn VolumeFile>>> {
    match absent(volume.open_read(path)) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            Ok(None)
        }
        other => other.map_err(Error::io("open", path)),
    }
}

/// Opens a regular file for writing at explicit offsets, creating it if asked.
pub(crate) fn open_write(
    volume: &dyn Volume,
    path: &Path,
    create: bool,
) -> Result<Option<Arc<dyn VolumeFile>>> {
    absent(volume.open_write(path, create)).map_err(Error::io("open", path))
}

/// What is known of a name; `None` if absent.
pub(crate) fn metadata(volume: &dyn Volume, path: &Path) -> Result<Option<Metadata>> {
    absent(volume.metadata(path)).map_err(Error::io("stat", path))
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

/// Syncs a directory, so that the names in it survive.
pub(crate) fn sync_dir(volume: &dyn Volume, path: &Path) -> Result<()> {
    volume.sync_dir(path).map_err(Error::io("sync", path))
}

/// Creates a directory and its ancestors; each new name is synced in its parent.
pub(crate) fn create_dir(volume: &dyn Volume, path: &Path) -> Result<()> {
    match volume.create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_dir(volume, parent(path)?)?;
            match volume.create_dir(path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
                Err(error) => return Err(Error::io("create", path)(error)),
            }
        }
        Err(error) => return Err(Error::io("create", path)(error)),
    }
    sync_dir(volume, parent(path)?)
}

/// Creates a directory and its ancestors without a sync: for what need not survive.
pub(crate) fn create_dir_plain(volume: &dyn Volume, path: &Path) -> Result<()> {
    match volume.create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_dir_plain(volume, parent(path)?)?;
            match volume.create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    Err(Error::io("create", path)(error))
                }
                _ => Ok(()),
            }
        }
        other => other.map_err(Error::io("create", path)),
    }
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

/// Writes a small file: temporary file beside it, sync, rename, sync of the directory.
pub(crate) fn write_file(volume: &dyn Volume, path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = parent(path)?;
    create_dir(volume, dir)?;
    let temporary = temporary(path);
    let written = (|| {
        let file = volume.create_new(&temporary)?;
        file.write_all_at(bytes, 0)?;
        file.sync()?;
        volume.rename(&temporary, path)
    })();
    if let Err(error) = written {
        drop(volume.remove_file(&temporary));
        return Err(Error::io("write", path)(error));
    }
    sync_dir(volume, dir)
}

/// Renames within the volume and syncs both directories.
pub(crate) fn rename(volume: &dyn Volume, from: &Path, to: &Path) -> Result<()> {
    let dir = parent(to)?;
    create_dir(volume, dir)?;
    volume.rename(from, to).map_err(Error::io("rename", from))?;
    sync_dir(volume, dir)?;
    let origin = parent(from)?;
    if origin == dir {
        Ok(())
    } else {
        sync_dir(volume, origin)
    }
}

/// Removes a file and syncs its directory; `false` if it was absent.
pub(crate) fn remove_file(volume: &dyn Volume, path: &Path) -> Result<bool> {
    match absent(volume.remove_file(path)).map_err(Error::io("remove", path))? {
        Some(()) => sync_dir(volume, parent(path)?).map(|()| true),
        None => Ok(false),
    }
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
    path.with_file_name(format!("{name}.{}.tmp", Uuid::new_v4()))
}

pub(crate) fn parent(path: &Path) -> Result<&Path> {
    path.parent()
        .ok_or_else(|| Error::io("resolve", path)(io::ErrorKind::InvalidInput.into()))
}
