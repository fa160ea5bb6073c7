//! A file that grows over several requests: the `data` of an upload session, or an incoming blob.
//!
//! Committed content was written by exactly one writer. Names ensure that, not locks:
//!
//! - While a file is written it has a private name that only its writer knows. No other process
//!   opens it for writing.
//! - A writer that is done *releases* the file: it renames it to the shared name. The next writer
//!   *takes* it by another rename. Of several writers one wins.
//! - A file whose writer was killed, or stalls for longer than its lock lives, keeps its private
//!   name: it is *abandoned*. The next writer copies it and hashes the copy, so a stalled writer
//!   that continues changes a file that is no longer used. The same holds after a failed sync:
//!   Linux drops the pages that it could not write, so such a file is only copied, never used
//!   again.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Error, Hasher, READ_CHUNK_BYTES, Result, durable::DurableFs, error::absent, files, layout,
    volume::VolumeFile,
};

/// A file under its private name.
#[derive(Clone, Debug)]
pub(crate) struct PartialFile {
    pub(crate) file: Arc<dyn VolumeFile>,
    /// The private name.
    pub(crate) path: PathBuf,
    shared: PathBuf,
}

/// Why a file cannot be taken.
#[derive(Debug)]
pub(crate) enum Found {
    /// Its folder does not exist.
    NoFolder,
    /// Another writer released it a moment ago.
    Released,
    /// The files of other writers, stalled or not, with their sizes; the largest first. May be
    /// empty.
    Abandoned(Vec<(PathBuf, u64)>),
}

impl PartialFile {
    /// Takes the released file `shared`; `None` when there is none.
    pub(crate) fn take(files: &DurableFs, shared: &Path) -> Result<Option<Self>> {
        let path = files::temporary(shared);
        let renamed = files::retry_after_refresh(files.volume(), shared, || {
            absent(files.volume().rename(shared, &path))
        });
        // A reply that was lost shows as the file being where it should be.
        if !matches!(renamed, Ok(Some(()))) && files::metadata(files.volume(), &path)?.is_none() {
            return renamed.map(|_| None).map_err(Error::io("rename", shared));
        }
        match files::open_write(files.volume(), &path, false) {
            Ok(Some(file)) => Ok(Some(Self {
                file,
                path,
                shared: shared.to_owned(),
            })),
            // Its folder was removed.
            Ok(None) => Ok(None),
            Err(error) => {
                drop(files.volume().rename(&path, shared));
                Err(error)
            }
        }
    }

    /// Makes an empty file; `None` when its folder is gone.
    pub(crate) fn create(files: &DurableFs, shared: &Path) -> Result<Option<Self>> {
        let path = files::temporary(shared);
        let file = absent(files.volume().create_new(&path)).map_err(Error::io("create", &path))?;
        Ok(file.map(|file| Self {
            file,
            path,
            shared: shared.to_owned(),
        }))
    }

    /// Makes a copy of the first `size` bytes of another writer's file, or of what there is of
    /// them; returns the hash and the size of what was copied. `None` when the folder is gone.
    pub(crate) fn copy(
        files: &DurableFs,
        shared: &Path,
        from: &Path,
        size: u64,
        mut hasher: Hasher,
    ) -> Result<Option<(Self, Hasher, u64)>> {
        let Some(partial) = Self::create(files, shared)? else {
            return Ok(None);
        };
        let copied = (|| {
            let Some(source) = files::open_read(files.volume(), from)? else {
                return Ok(0);
            };
            let mut copied = 0;
            let all = pieces(&*source, from, size, |bytes, offset| {
                partial
                    .file
                    .write_all_at(bytes, offset)
                    .map_err(|error| match error.kind() {
                        // Another writer went on with a copy of this copy.
                        io::ErrorKind::StaleNetworkFileHandle => Error::LockLost,
                        _ => Error::io("write", &partial.path)(error),
                    })?;
                hasher.update(bytes);
                copied = offset + bytes.len() as u64;
                Ok(())
            });
            match all {
                // Removed by another machine: what was read so far is all there is.
                Err(error) if error.is_stale() => Ok(copied),
                all => all,
            }
        })();
        match copied {
            Ok(copied) => Ok(Some((partial, hasher, copied))),
            Err(error) => {
                partial.remove(files);
                Err(error)
            }
        }
    }

    /// Gives the file its shared name, so that another writer can continue it. `false` when its
    /// private name is gone, because the session ended or another writer continued a copy.
    pub(crate) fn release(&self, files: &DurableFs) -> Result<bool> {
        let metadata = match self.file.metadata() {
            // Another machine removed the name.
            Err(error) if error.kind() == io::ErrorKind::StaleNetworkFileHandle => {
                return Ok(false);
            }
            other => other.map_err(Error::io("stat", &self.path))?,
        };
        let renamed = files.rename_known(&metadata, &self.path, &self.shared);
        absent(renamed)
            .map(|renamed| renamed.is_some())
            .map_err(Error::io("rename", &self.path))
    }

    /// [`PartialFile::release`] for a writer that broke off. It may have been silent for long, so a
    /// file that another writer released meanwhile stays.
    pub(crate) fn release_if_free(&self, files: &DurableFs) {
        // What a network file system has not sent yet would reach the file after another writer
        // went on with it.
        let is_sent = match files.volume().refresh(&self.path) {
            Ok(true) => self.file.sync().is_ok(),
            Ok(false) => true,
            Err(_) => false,
        };
        if !is_sent {
            return;
        }
        match files::metadata(files.volume(), &self.shared) {
            Ok(None) => drop(self.release(files)),
            Ok(Some(_)) => self.remove(files),
            Err(_) => {}
        }
    }

    /// Whether the private name is gone: another writer ended what the file belongs to, or went on
    /// with a copy.
    pub(crate) fn is_gone(&self, files: &DurableFs) -> Result<bool> {
        Ok(files::metadata(files.volume(), &self.path)?.is_none())
    }

    /// Removes the file.
    pub(crate) fn remove(&self, files: &DurableFs) {
        drop(files.volume().remove_file(&self.path));
    }
}

/// What a write to a file under its private name ended with. A stale handle says that another
/// machine removed the name, to go on with a copy of the file.
pub(crate) fn or_lock_lost<T>(result: Result<T>) -> Result<T> {
    match result {
        Err(error) if error.is_stale() => Err(Error::LockLost),
        other => other,
    }
}

/// Looks for what can be copied after [`PartialFile::take`] found nothing.
pub(crate) fn find_abandoned(files: &DurableFs, shared: &Path) -> Result<Found> {
    let folder = files::parent(shared)?;
    let name = shared.file_name().unwrap_or_default();
    let Some(entries) = files::list(files.volume(), folder)? else {
        return Ok(Found::NoFolder);
    };
    let mut found = Vec::new();
    for entry in entries {
        if entry.name == name {
            return Ok(Found::Released);
        }
        if !layout::is_temporary_of(&entry.name, name) {
            continue;
        }
        let path = folder.join(&entry.name);
        // Opened, not only looked up: an open asks the server of a network file system for the
        // present size.
        let size = files::with_file(files.volume(), &path, |file| {
            file.metadata().map_err(Error::io("stat", &path))
        })?;
        found.extend(size.map(|metadata| (path, metadata.len)));
    }
    found.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    Ok(Found::Abandoned(found))
}

/// Removes the files that were copied from, or are of no use.
pub(crate) fn remove_abandoned(files: &DurableFs, abandoned: &[(PathBuf, u64)]) {
    for (path, _) in abandoned {
        drop(files.volume().remove_file(path));
    }
}

/// Hashes the first `size` bytes of a file.
pub(crate) fn hash_prefix(
    file: &dyn VolumeFile,
    path: &Path,
    mut hasher: Hasher,
    size: u64,
) -> Result<Hasher> {
    let read = pieces(file, path, size, |bytes, _| {
        hasher.update(bytes);
        Ok(())
    })?;
    if read < size {
        return Err(Error::io("read", path)(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(hasher)
}

/// Hands on the first `size` bytes of a file piece by piece, each with its offset; returns how many
/// there were.
fn pieces(
    file: &dyn VolumeFile,
    path: &Path,
    size: u64,
    mut each: impl FnMut(&[u8], u64) -> Result<()>,
) -> Result<u64> {
    let mut buffer = Vec::new();
    let mut offset = 0;
    while offset < size {
        let want = usize::try_from(size - offset)
            .unwrap_or(usize::MAX)
            .min(READ_CHUNK_BYTES);
        buffer.clear();
        buffer.reserve_exact(want);
        match files::read_some(file, &mut buffer, offset) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return Err(Error::io("read", path)(error)),
        }
        // The spare room may be larger than asked for.
        buffer.truncate(want);
        each(&buffer, offset)?;
        offset += buffer.len() as u64;
    }
    Ok(offset)
}
