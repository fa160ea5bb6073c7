//! Files and folders of a volume: look-ups that stale caches of a network file system cannot
//! falsify, and changes that need not survive a loss of power.
//!
//! What is absent is `None`, not an error. Symbolic links are never followed. Changes that must
//! survive go through `durable.rs`.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_core::digest::{Algorithm, Digest};
use uuid::Uuid;

use crate::{
    Error, Hasher, READ_CHUNK_BYTES, Result,
    error::absent,
    layout,
    volume::{Entry, Metadata, Volume, VolumeFile},
};

/// How often an operation is repeated that another process interferes with.
const MAX_ATTEMPTS: usize = 8;

/// Opens a regular file for reading, never through a symbolic link; `None` if absent.
pub fn open_read(volume: &dyn Volume, path: &Path) -> Result<Option<Arc<dyn VolumeFile>>> {
    match retry_after_refresh(volume, path, || absent(volume.open_read(path))) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            Ok(None)
        }
        other => other.map_err(Error::io("open", path)),
    }
}

/// Opens a file and reads; `None` if absent.
pub(crate) fn with_file<T>(
    volume: &dyn Volume,
    path: &Path,
    work: impl Fn(&dyn VolumeFile) -> Result<T>,
) -> Result<Option<T>> {
    retry_stale(path, || match open_read(volume, path)? {
        Some(file) => work(&*file).map(Some),
        None => Ok(None),
    })
}

/// Opens and reads, and repeats both when the handle is stale: on a network file system a file can
/// be replaced between the two calls.
pub(crate) fn retry_stale<T>(path: &Path, work: impl Fn() -> Result<T>) -> Result<T> {
    for _ in 0..MAX_ATTEMPTS {
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
    retry_after_refresh(volume, path, || absent(volume.open_write(path, create)))
        .map_err(Error::io("open", path))
}

/// What is known of a name; `None` if absent. On a network file system it may be some seconds old:
/// what must be exact is opened.
pub fn metadata(volume: &dyn Volume, path: &Path) -> Result<Option<Metadata>> {
    retry_after_refresh(volume, path, || absent(volume.metadata(path)))
        .map_err(Error::io("stat", path))
}

/// The names in a directory; `None` if absent.
pub(crate) fn list(volume: &dyn Volume, folder: &Path) -> Result<Option<Vec<Entry>>> {
    retry_after_refresh(volume, folder, || absent(volume.list(folder)))
        .map_err(Error::io("list", folder))
}

/// Looks a second time, with fresh caches, before it reports that something is absent.
pub(crate) fn retry_after_refresh<T>(
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
pub fn read_some(file: &dyn VolumeFile, buffer: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
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
pub fn create_dir_unsynced(volume: &dyn Volume, path: &Path) -> Result<()> {
    for _ in 0..MAX_ATTEMPTS {
        match volume.create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_dir_unsynced(volume, parent(path)?)?;
            }
            other => return other.map_err(Error::io("create", path)),
        }
    }
    Err(Error::io("create", path)(io::ErrorKind::NotFound.into()))
}

/// Writes a small file in place, unsynced: for what need not survive.
pub(crate) fn write_unsynced(volume: &dyn Volume, path: &Path, bytes: &[u8]) -> Result<()> {
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
pub fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(layout::temporary(&name, &Uuid::new_v4().to_string()))
}

pub(crate) fn parent(path: &Path) -> Result<&Path> {
    path.parent()
        .ok_or_else(|| Error::io("resolve", path)(io::ErrorKind::InvalidInput.into()))
}

/// The bytes of a small file, cut at `limit`; `None` if there is no such file.
pub fn read(volume: &dyn Volume, path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let Some(file) = open_read(volume, path)? else {
        return Ok(None);
    };
    let size = file.metadata().map_err(Error::io("stat", path))?;
    if !size.is_file() {
        return Ok(None);
    }
    let limit = usize::try_from(size.len.min(limit)).unwrap_or(usize::MAX);
    read_up_to(&*file, limit)
        .map(Some)
        .map_err(Error::io("read", path))
}

/// Reads a file from its begin to its end, piece by piece; the size that was read, `None` if it is
/// absent.
pub fn stream(
    volume: &dyn Volume,
    path: &Path,
    mut piece: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<Option<u64>> {
    let Some(file) = open_read(volume, path)? else {
        return Ok(None);
    };
    let mut buffer = Vec::with_capacity(READ_CHUNK_BYTES);
    let mut offset = 0;
    loop {
        buffer.clear();
        let read = read_some(&*file, &mut buffer, offset).map_err(Error::io("read", path))?;
        if read == 0 {
            return Ok(Some(offset));
        }
        piece(&buffer).map_err(Error::io("write", path))?;
        offset += read as u64;
    }
}

/// Size and digest of a file, told piece by piece how far it is; `None` if it is absent.
pub fn hash(
    volume: &dyn Volume,
    path: &Path,
    algorithm: Algorithm,
    mut read_bytes: impl FnMut(u64),
) -> Result<Option<(u64, Digest)>> {
    let mut hasher = Hasher::new(algorithm);
    let size = stream(volume, path, |piece| {
        hasher.update(piece);
        read_bytes(piece.len() as u64);
        Ok(())
    })?;
    Ok(size.map(|size| (size, hasher.finish())))
}
