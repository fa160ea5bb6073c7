//! Looking at the volume without changing anything. Never follows a symbolic link; what vanishes
//! meanwhile is absent.

use std::{io, path::Path};

use holdfast_core::digest::{Algorithm, Digest};

use crate::{
    Error, Hasher, READ_CHUNK_BYTES, Result, durable,
    error::absent,
    volume::{Kind, Volume},
};

/// A name in a folder.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The name; what is no UTF-8 is replaced, and `is_text` is false.
    pub(crate) name: String,
    /// Whether the name is text.
    pub(crate) is_text: bool,
    /// What it stands for.
    pub(crate) kind: Kind,
}

/// The names in a folder, sorted; none if it is absent.
pub(crate) fn list(volume: &dyn Volume, folder: &Path) -> Result<Vec<Entry>> {
    let entries = absent(volume.list(folder)).map_err(Error::io("list", folder))?;
    let mut found: Vec<_> = entries
        .into_iter()
        .flatten()
        .map(|entry| Entry {
            is_text: entry.name.to_str().is_some(),
            name: entry.name.to_string_lossy().into_owned(),
            kind: entry.kind,
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The bytes of a small file, cut at `limit`; `None` if there is no such file.
pub(crate) fn read(volume: &dyn Volume, path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let Some(file) = durable::open_read(volume, path)? else {
        return Ok(None);
    };
    let size = file.metadata().map_err(Error::io("stat", path))?;
    if !size.is_file() {
        return Ok(None);
    }
    let limit = usize::try_from(size.len.min(limit)).unwrap_or(usize::MAX);
    durable::read_up_to(&*file, limit)
        .map(Some)
        .map_err(Error::io("read", path))
}

/// Reads a file from its begin to its end, piece by piece; the size that was read, `None` if it is
/// absent.
pub(crate) fn stream(
    volume: &dyn Volume,
    path: &Path,
    mut piece: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<Option<u64>> {
    let Some(file) = durable::open_read(volume, path)? else {
        return Ok(None);
    };
    let mut buffer = Vec::with_capacity(READ_CHUNK_BYTES);
    let mut offset = 0;
    loop {
        buffer.clear();
        let read =
            durable::read_some(&*file, &mut buffer, offset).map_err(Error::io("read", path))?;
        if read == 0 {
            return Ok(Some(offset));
        }
        piece(&buffer).map_err(Error::io("write", path))?;
        offset += read as u64;
    }
}

/// Size and digest of a file, told piece by piece how far it is; `None` if it is absent.
pub(crate) fn hash(
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
