//! Link files: a digest in ASCII. Older registries wrote them in place, so an empty or unparsable one counts as absent.

use std::{io, path::Path};

use holdfast_core::digest::Digest;

use crate::{
    Error, Result, atomic,
    error::absent,
    volume::{Kind, Volume},
};

/// Longest digest of any known algorithm, with room for white space.
const MAX_BYTES: usize = 256;

pub(crate) fn read(volume: &dyn Volume, path: &Path) -> Result<Option<Digest>> {
    let Some(file) = atomic::open_read(volume, path)? else {
        return Ok(None);
    };
    let mut bytes = Vec::with_capacity(MAX_BYTES);
    while bytes.len() < MAX_BYTES {
        let offset = bytes.len() as u64;
        match atomic::read_some(&*file, &mut bytes, offset) {
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

fn parse(bytes: &[u8]) -> Option<Digest> {
    std::str::from_utf8(bytes).ok()?.trim().parse().ok()
}

pub(crate) fn write(volume: &dyn Volume, path: &Path, digest: &Digest) -> Result<()> {
    atomic::write_file(volume, path, digest.to_string().as_bytes())
}

/// The digests of `folder/<alg>/<hex>/link`, by the link's content, in order.
pub(crate) fn list(volume: &dyn Volume, folder: &Path) -> Result<Vec<Digest>> {
    let mut digests = Vec::new();
    for algorithm in names(volume, folder)? {
        let folder = folder.join(algorithm);
        for hex in names(volume, &folder)? {
            digests.extend(read(volume, &folder.join(hex).join("link"))?);
        }
    }
    digests.sort_by_key(ToString::to_string);
    digests.dedup();
    Ok(digests)
}

/// Names in a folder without leftovers and without symbolic links, sorted; none if it is absent.
pub(crate) fn names(volume: &dyn Volume, folder: &Path) -> Result<Vec<String>> {
    let Some(entries) = absent(volume.list(folder)).map_err(Error::io("list", folder))? else {
        return Ok(Vec::new());
    };
    let mut names: Vec<_> = entries
        .into_iter()
        .filter(|entry| entry.kind != Kind::Other)
        .filter_map(|entry| entry.name.into_string().ok())
        .filter(|name| !crate::layout::is_leftover(name))
        .collect();
    names.sort_unstable();
    Ok(names)
}
