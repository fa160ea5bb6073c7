//! Link files: a digest in ASCII. Older registries wrote them in place, so an empty or unparsable
//! one counts as absent.

use std::{io, path::Path};

use holdfast_core::digest::Digest;

use crate::{
    Error, Result,
    durable::{DurableFs, PendingFile},
    files,
    layout::names,
    volume::{Entry, Kind, Metadata, Volume, VolumeFile},
};

/// Longest digest of any known algorithm, with room for white space.
const MAX_BYTES: usize = 256;

pub(crate) fn read(volume: &dyn Volume, path: &Path) -> Result<Option<Digest>> {
    Ok(files::with_file(volume, path, |file| content(file, path))?.flatten())
}

/// The digest, and what is known of the file that it was read from.
pub(crate) fn read_known(volume: &dyn Volume, path: &Path) -> Result<Option<(Digest, Metadata)>> {
    let found = files::with_file(volume, path, |file| {
        let metadata = file.metadata().map_err(Error::io("stat", path))?;
        Ok(content(file, path)?.map(|digest| (digest, metadata)))
    })?;
    Ok(found.flatten())
}

/// Whether there is a link that says nothing.
pub(crate) fn is_damaged(volume: &dyn Volume, path: &Path) -> Result<bool> {
    Ok(files::with_file(volume, path, |file| content(file, path))? == Some(None))
}

/// The digest, made sure to stay: for what relies on a link that others may have written a moment
/// ago.
pub(crate) fn read_durable(files: &DurableFs, path: &Path) -> Result<Option<Digest>> {
    loop {
        let Some((digest, metadata)) = read_known(files.volume(), path)? else {
            return Ok(None);
        };
        match files.ensure_durable(path, &metadata) {
            // It went, with its folder, after it was read.
            Err(error) if error.is_absent() => {}
            settled => return settled.map(|()| Some(digest)),
        }
    }
}

fn content(file: &dyn VolumeFile, path: &Path) -> Result<Option<Digest>> {
    let mut bytes = Vec::with_capacity(MAX_BYTES);
    while bytes.len() < MAX_BYTES {
        let offset = bytes.len() as u64;
        match files::read_some(file, &mut bytes, offset) {
            Ok(0) => break,
            // A whole digest parses, a part of one does not: mostly one read is enough.
            Ok(_) => {
                if let Some(digest) = parse(&bytes) {
                    return Ok(Some(digest));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => return Ok(None),
            Err(error) => return Err(Error::io("read", path)(error)),
        }
    }
    Ok(None)
}

/// The digest that a link's bytes name.
pub(crate) fn parse(bytes: &[u8]) -> Option<Digest> {
    std::str::from_utf8(bytes).ok()?.trim().parse().ok()
}

pub(crate) fn write(files: &DurableFs, path: &Path, digest: &Digest) -> Result<()> {
    files.write_file(path, digest.to_string().as_bytes())
}

/// A link that is yet to be synced and named; `None` when one is there and stays, whatever it says.
pub(crate) fn create_pending(
    files: &DurableFs,
    path: &Path,
    digest: &Digest,
) -> Result<Option<PendingFile>> {
    if read_durable(files, path)?.is_some() {
        return Ok(None);
    }
    files::create_dir_unsynced(files.volume(), files::parent(path)?)?;
    files
        .create_pending(path, digest.to_string().as_bytes())
        .map(Some)
}

/// Gives a link its name, for good.
pub(crate) fn publish(files: &DurableFs, path: &Path, link: PendingFile) -> Result<()> {
    files.create_dir(files::parent(path)?)?;
    files.publish(link)
}

/// Makes sure that the link says `digest`, and stays.
pub(crate) fn ensure(files: &DurableFs, path: &Path, digest: &Digest) -> Result<()> {
    if read_durable(files, path)?.as_ref() == Some(digest) {
        Ok(())
    } else {
        write(files, path, digest)
    }
}

/// The digests of `folder/<alg>/<hex>/link`, by the link's content, in order.
pub(crate) fn list(volume: &dyn Volume, folder: &Path) -> Result<Vec<Digest>> {
    let mut digests = Vec::new();
    for algorithm in names(volume, folder)? {
        let folder = folder.join(algorithm);
        for hex in names(volume, &folder)? {
            digests.extend(read(volume, &folder.join(hex).join(names::LINK))?);
        }
    }
    digests.sort_by_key(ToString::to_string);
    digests.dedup();
    Ok(digests)
}

/// Names in a folder without temporary files and symbolic links, sorted; none if it is absent. A
/// name that ends in `.tmp` is a tag or a part of a repository's name like any other.
pub(crate) fn names(volume: &dyn Volume, folder: &Path) -> Result<Vec<String>> {
    Ok(files::list(volume, folder)?.map_or_else(Vec::new, plain))
}

/// [`names`] of several folders of one, in their order.
pub(crate) fn names_below(
    volume: &dyn Volume,
    folder: &Path,
    below: &[String],
) -> Result<Vec<Vec<String>>> {
    let listed = volume
        .list_below(folder, below)
        .map_err(Error::io("list", folder))?;
    let listed = below.iter().zip(listed);
    listed
        .map(|(name, entries)| match entries {
            Some(entries) => Ok(plain(entries)),
            // Absent, or remembered so: that takes a second look.
            None => names(volume, &folder.join(name)),
        })
        .collect()
}

fn plain(entries: Vec<Entry>) -> Vec<String> {
    let mut names: Vec<_> = entries
        .into_iter()
        .filter(|entry| entry.kind != Kind::Other)
        .filter_map(|entry| entry.name.into_string().ok())
        .filter(|name| !crate::layout::is_hidden(name))
        .collect();
    names.sort_unstable();
    names
}
