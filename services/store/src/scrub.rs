//! What a scrubber needs of the store: everything that is stored, piece by piece, who refers to it,
//! and a place for a note.

use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};

use crate::{Error, Result, Store, durable, links};

impl Store {
    /// The blobs, manifests included, of one 256th of the names of an algorithm, in order. `part`
    /// is the first byte of the digest.
    pub async fn blobs_of(&self, algorithm: Algorithm, part: u8) -> Result<Vec<Digest>> {
        self.run(move |inner| {
            let folder = inner
                .layout
                .blobs()
                .join(algorithm.as_str())
                .join(format!("{part:02x}"));
            let names = links::names(inner.volume(), &folder)?;
            Ok(names
                .iter()
                .filter_map(|hex| Digest::parse(&format!("{algorithm}:{hex}")).ok())
                .collect())
        })
        .await
    }

    /// Repositories that link the digest, and whether as a manifest.
    pub async fn referring(&self, digest: &Digest) -> Result<Vec<(RepositoryName, bool)>> {
        let repositories = self.repositories().await?;
        let digest = digest.clone();
        self.run(move |inner| {
            let mut found = Vec::new();
            for repo in repositories {
                let links = [
                    (inner.layout.revision_link(&repo, &digest), true),
                    (inner.layout.layer_link(&repo, &digest), false),
                ];
                for (link, manifest) in links {
                    if durable::metadata(inner.volume(), &link)?.is_some() {
                        found.push((repo, manifest));
                        break;
                    }
                }
            }
            Ok(found)
        })
        .await
    }

    /// A note that a part keeps on the volume under a plain file name; `None` if there is none.
    pub async fn note(&self, name: &'static str) -> Result<Option<Vec<u8>>> {
        self.run(move |inner| {
            let path = inner.layout.own().join(name);
            match durable::open_read(inner.volume(), &path)? {
                Some(file) => durable::read_up_to(&*file, 64 << 10)
                    .map(Some)
                    .map_err(Error::io("read", path)),
                None => Ok(None),
            }
        })
        .await
    }

    /// Keeps a note, in place of the one before.
    pub async fn keep_note(&self, name: &'static str, bytes: Vec<u8>) -> Result<()> {
        self.run(move |inner| {
            inner
                .files
                .write_file(&inner.layout.own().join(name), &bytes)
        })
        .await
    }
}
