//! Images of a volume: which one a text means, and what belongs to it.

use std::io;

use holdfast_core::{digest::Digest, oci::MANIFEST_BYTES, reference::RepositoryName};
use holdfast_store::{Hasher, View};

use super::{Error, Fetch, Name, Result, names, verified};

/// The image that a text means, and its digest: the first of [`names::local`] that is there.
///
/// # Errors
/// [`Error::Unknown`].
pub fn resolve(view: &View, text: &str) -> Result<(Name, Digest)> {
    for name in names::local(text) {
        let digest = match (&name.digest, &name.tag) {
            (Some(digest), _) => Some(digest.clone()),
            (None, Some(tag)) => view.tag(&name.repository, tag)?,
            (None, None) => None,
        };
        if let Some(digest) = digest
            && view.manifest(&name.repository, &digest)?.is_some()
        {
            return Ok((name, digest));
        }
    }
    Err(Error::Unknown(text.to_owned()))
}

/// What a repository holds, to collect images from.
pub fn in_repository<'a>(view: &'a View, repo: &'a RepositoryName) -> impl Fetch + 'a {
    InRepository { view, repo }
}

struct InRepository<'a> {
    view: &'a View,
    repo: &'a RepositoryName,
}

impl Fetch for InRepository<'_> {
    fn manifest(&mut self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let Some(blob) = self.view.manifest(self.repo, digest)? else {
            return Ok(None);
        };
        let bytes = self.view.read_blob(&blob, MANIFEST_BYTES)?;
        bytes.map(|bytes| verified(digest, bytes)).transpose()
    }

    fn size(&mut self, digest: &Digest) -> Result<Option<u64>> {
        match self.view.layer(self.repo, digest)? {
            Some(blob) => Ok(self.view.blob_size(&blob)?),
            None => Ok(None),
        }
    }
}

/// Reads a blob piece by piece and verifies it.
///
/// # Errors
/// [`Error::Damaged`] at the end, when the bytes have another digest; [`Error::Incomplete`] when
/// they are not there.
pub(super) fn stream(
    view: &View,
    digest: &Digest,
    mut piece: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<()> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut failed = None;
    let read = view.stream_blob(digest, |bytes| {
        hasher.update(bytes);
        piece(bytes).map_err(|error| {
            let kind = error.kind();
            failed = Some(error);
            kind.into()
        })
    });
    if let Some(error) = failed {
        return Err(Error::Write(error));
    }
    if read?.is_none() {
        return Err(Error::Incomplete {
            digest: digest.clone(),
        });
    }
    if hasher.finish() == *digest {
        Ok(())
    } else {
        Err(Error::Damaged {
            digest: digest.clone(),
        })
    }
}
