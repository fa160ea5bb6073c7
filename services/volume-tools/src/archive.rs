//! Images out of a volume and into one, as OCI image layouts: a folder, or a tar file of it.
//!
//! An export reads a [`View`](holdfast_store::View), which changes nothing on the volume, so it
//! works beside running registries. The content of an [`ArchiveReader`] is hostile until its digest
//! was checked. It enters the store in the order of a copy from an upstream: verified contents
//! first, the tag last.

mod bundle;
mod export;
mod import;
mod names;
mod reader;
mod repository;
mod tar;

use std::io;

use holdfast_core::digest::Digest;
use holdfast_store::Hasher;

pub use self::{
    bundle::{Bundle, Fetch},
    export::{ArchiveWriter, FolderWriter, TarWriter, export},
    import::{Counts, Plan, PlannedImage, import, plan, verify},
    names::{Name, local, original},
    reader::{ArchiveReader, FolderReader, TarReader},
    repository::{in_repository, resolve},
};

/// Result of an export or import.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why images do not go out or in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume or the store failed.
    #[error(transparent)]
    Store(#[from] holdfast_store::Error),
    /// The archive cannot be read.
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    /// The archive cannot be written.
    #[error("the archive cannot be written")]
    Write(#[source] io::Error),
    /// The archive is not what it should be; nothing of it was taken.
    #[error("the archive is refused: {0}")]
    Refused(String),
    /// The volume has no such image.
    #[error("{0} is not on the volume")]
    Unknown(String),
    /// Something that an image needs is not there.
    #[error("the image is incomplete: {digest} is missing")]
    Incomplete {
        /// What is missing.
        digest: Digest,
    },
    /// Bytes do not hash to their name.
    #[error("the bytes of {digest} are damaged")]
    Damaged {
        /// Their name.
        digest: Digest,
    },
    /// None of an index's images is for a platform that was asked for.
    #[error("there is no image for {wanted}; there are: {found}")]
    Platform {
        /// What was asked for.
        wanted: String,
        /// What is there.
        found: String,
    },
}

impl Error {
    fn refused(why: impl Into<String>) -> Self {
        Self::Refused(why.into())
    }
}

/// Where a content lies in a layout.
fn path_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// The bytes of a manifest, if they hash to its name.
fn verified(digest: &Digest, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if Hasher::digest(digest.algorithm(), &bytes) == *digest {
        Ok(bytes)
    } else {
        Err(Error::Damaged {
            digest: digest.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
