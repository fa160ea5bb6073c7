//! Link files: a digest in ASCII. Older registries wrote them in place, so an empty or unparsable one counts as absent.

use std::{io::Read, path::Path};

use holdfast_core::digest::Digest;

use crate::{Error, Result, atomic};

/// Longest digest of any known algorithm, with room for white space.
const MAX_BYTES: u64 = 256;

pub(crate) fn read(path: &Path) -> Result<Option<Digest>> {
    let Some(file) = atomic::open_read(path)? else {
        return Ok(None);
    };
    let mut text = String::new();
    match file.take(MAX_BYTES).read_to_string(&mut text) {
        Ok(_) => Ok(text.trim().parse().ok()),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

pub(crate) fn write(path: &Path, digest: &Digest) -> Result<()> {
    atomic::write_file(path, digest.to_string().as_bytes())
}

/// The digests of `folder/<alg>/<hex>/link`, by the link's content, in order.
pub(crate) fn list(folder: &Path) -> Result<Vec<Digest>> {
    let mut digests = Vec::new();
    for algorithm in names(folder)? {
        let folder = folder.join(algorithm);
        for hex in names(&folder)? {
            digests.extend(read(&folder.join(hex).join("link"))?);
        }
    }
    digests.sort_by_key(ToString::to_string);
    digests.dedup();
    Ok(digests)
}

/// Names in a folder without leftovers and without symbolic links, sorted; none if it is absent.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let Some(entries) =
        crate::error::absent(std::fs::read_dir(folder)).map_err(Error::io("list", folder))?
    else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", folder))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if !is_link && !crate::layout::is_leftover(name) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
