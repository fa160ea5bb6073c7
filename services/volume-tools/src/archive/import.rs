//! Images into a store. First the import reads what the archive lists, and refuses the archive if
//! that does not fit together. Then it writes blobs, each visible only when its digest was checked;
//! then manifests, children first; the tag last. What is there already is not written again.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use holdfast_core::{
    digest::Digest,
    oci::{MANIFEST_BYTES, Platform},
};
use holdfast_store::{Hasher, Lock, LockAttempt, LockHolder, READ_CHUNK_BYTES, Store};
use serde::Deserialize;

use super::{ArchiveReader, Bundle, Error, Fetch, Name, Result, names, path_of, verified};

/// How long the import waits for another copy of the same content.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// An image that an archive brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedImage {
    /// The name it gets.
    pub name: Name,
    /// What belongs to it.
    pub bundle: Bundle,
}

/// What an archive brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its images, in its order.
    pub images: Vec<PlannedImage>,
}

impl Plan {
    /// Every content once, with its size.
    pub fn blobs(&self) -> std::collections::BTreeMap<Digest, u64> {
        self.images
            .iter()
            .flat_map(|image| image.bundle.blobs.clone())
            .collect()
    }
}

/// What an import did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Contents that went in.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Contents that were there.
    pub present: u64,
    /// Their bytes.
    pub present_bytes: u64,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

/// Reads what an archive holds. `rename` gives the one image of an archive another name;
/// `platforms` leaves out the rest of an index.
///
/// # Errors
/// [`Error::Refused`] and what [`Bundle::collect`] says: manifests that do not hash to their names,
/// sizes that are not the contents', something missing.
pub fn plan(
    source: &mut dyn ArchiveReader,
    rename: Option<&str>,
    platforms: &[Platform],
) -> Result<Plan> {
    refuse_other_formats(source)?;
    let bytes = source
        .read("index.json", MANIFEST_BYTES)?
        .ok_or_else(|| Error::refused("it has no index.json, or is truncated"))?;
    let index: Index = serde_json::from_slice(&bytes)
        .map_err(|error| Error::refused(format!("index.json does not parse: {error}")))?;
    if index.manifests.is_empty() {
        return Err(Error::refused("its index.json lists no image"));
    }
    if rename.is_some() && index.manifests.len() > 1 {
        return Err(Error::refused(
            "it holds several images, one new name is for one",
        ));
    }
    let mut images = Vec::new();
    for entry in index.manifests {
        let name = name_of(&entry, rename)?;
        let mut fetch = InArchive { source };
        if let Some(size) = fetch.size(&entry.digest)?
            && size != entry.size
        {
            return Err(Error::refused(format!(
                "{} has {size} bytes, its index.json says {}",
                entry.digest, entry.size
            )));
        }
        let bundle = Bundle::collect(&mut fetch, &entry.digest, platforms)?;
        images.push(PlannedImage { name, bundle });
    }
    Ok(Plan { images })
}

fn refuse_other_formats(source: &mut dyn ArchiveReader) -> Result<()> {
    let Some(bytes) = source.read("oci-layout", 4096)? else {
        let docker =
            source.size("manifest.json")?.is_some() || source.size("repositories")?.is_some();
        return Err(Error::refused(if docker {
            "it is an archive of `docker save` in the old format; make an image layout of it \
             with `skopeo copy docker-archive:FILE oci-archive:NEW`"
        } else {
            "it has no file oci-layout, so it is no OCI image layout (or is truncated)"
        }));
    };
    match serde_json::from_slice::<LayoutFile>(&bytes) {
        Ok(layout) if layout.image_layout_version.starts_with("1.") => Ok(()),
        Ok(layout) => Err(Error::refused(format!(
            "it is an image layout of version {}, only 1 is known",
            layout.image_layout_version
        ))),
        Err(error) => Err(Error::refused(format!(
            "oci-layout does not parse: {error}"
        ))),
    }
}

fn name_of(entry: &Entry, rename: Option<&str>) -> Result<Name> {
    if let Some(text) = rename {
        return names::incoming(text)
            .ok_or_else(|| Error::refused(format!("{text} is no name of an image")));
    }
    let annotation = |key: &str| entry.annotations.as_ref().and_then(|all| all.get(key));
    if let Some(text) = annotation("io.containerd.image.name") {
        return names::incoming(text)
            .ok_or_else(|| Error::refused(format!("{text} in index.json is no name of an image")));
    }
    let text = annotation("org.opencontainers.image.ref.name");
    match text {
        // A tag alone names nothing: the repository would be guessed.
        Some(text) if text.contains(['/', ':', '@']) => names::incoming(text)
            .ok_or_else(|| Error::refused(format!("{text} in index.json is no name of an image"))),
        Some(text) => Err(Error::refused(format!(
            "its index.json gives the image {} only the tag {text:?}; say where it goes with \
             --name REPOSITORY:TAG",
            entry.digest
        ))),
        None => Err(Error::refused(format!(
            "its index.json gives the image {} no name; say where it goes with --name \
             REPOSITORY:TAG",
            entry.digest
        ))),
    }
}

struct InArchive<'a> {
    source: &'a mut dyn ArchiveReader,
}

impl Fetch for InArchive<'_> {
    fn manifest(&mut self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let bytes = self.source.read(&path_of(digest), MANIFEST_BYTES)?;
        bytes.map(|bytes| verified(digest, bytes)).transpose()
    }

    fn size(&mut self, digest: &Digest) -> Result<Option<u64>> {
        self.source.size(&path_of(digest))
    }
}

/// Hashes every content of an archive, without a store.
///
/// # Errors
/// [`Error::Damaged`].
pub fn verify(
    source: &mut dyn ArchiveReader,
    plan: &Plan,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    for digest in plan.blobs().keys() {
        let mut hasher = Hasher::new(digest.algorithm());
        let mut offset = 0;
        loop {
            let piece = source.read_at(&path_of(digest), offset, READ_CHUNK_BYTES)?;
            if piece.is_empty() {
                break;
            }
            hasher.update(&piece);
            offset += piece.len() as u64;
            progress(piece.len() as u64);
        }
        if hasher.finish() != *digest {
            return Err(Error::Damaged {
                digest: digest.clone(),
            });
        }
    }
    Ok(())
}

/// Puts what was planned into the store, telling how many bytes are done.
///
/// # Errors
/// What the archive, the store or the volume says; contents that went in before stay, and a second
/// run goes on from there. No manifest and no tag of an image is written before all of its contents
/// are there.
pub async fn import(
    source: &mut dyn ArchiveReader,
    plan: &Plan,
    store: &Store,
    owner: &LockHolder,
    progress: &mut dyn FnMut(u64),
) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut done = BTreeSet::new();
    for image in &plan.images {
        let repo = &image.name.repository;
        for (digest, size) in &image.bundle.blobs {
            if done.insert(digest) {
                if blob(source, store, owner, digest, *size, progress).await? {
                    counts.blobs += 1;
                    counts.bytes += size;
                } else {
                    counts.present += 1;
                    counts.present_bytes += size;
                }
            }
            store.link_blob(repo, digest).await?;
        }
        for (digest, bytes) in &image.bundle.manifests {
            store
                .put_manifest(repo, digest, Bytes::from(bytes.clone()))
                .await?;
            progress(bytes.len() as u64);
        }
        for (referrer, subject) in &image.bundle.subjects {
            store.add_referrer(repo, subject, referrer).await?;
        }
        if let Some(tag) = &image.name.tag {
            store.set_tag(repo, tag, &image.bundle.digest).await?;
        }
    }
    Ok(counts)
}

/// Puts one content in; `false` if it was there, sound. Damaged content on the volume is moved
/// aside and replaced.
async fn blob(
    source: &mut dyn ArchiveReader,
    store: &Store,
    owner: &LockHolder,
    digest: &Digest,
    size: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<bool> {
    loop {
        let Some(lock) = claim(store, owner, digest, size).await? else {
            progress(size);
            return Ok(false);
        };
        store.check_write(size).await?;
        let mut incoming = store.ingest_blob(digest).await?;
        incoming.attach_lock(lock);
        let kept = incoming.offset();
        progress(kept.min(size));
        while incoming.offset() < size {
            let piece = source.read_at(&path_of(digest), incoming.offset(), READ_CHUNK_BYTES)?;
            if piece.is_empty() {
                return Err(Error::refused(format!("{digest} in it ends too early")));
            }
            progress(piece.len() as u64);
            incoming.append(Bytes::from(piece)).await?;
        }
        match incoming.commit().await {
            Ok(_) => return Ok(true),
            // The bytes that an earlier attempt left may be wrong: try those of the archive alone.
            Err(holdfast_store::Error::DigestMismatch { .. }) if kept > 0 => {}
            Err(holdfast_store::Error::DigestMismatch { expected, .. }) => {
                return Err(Error::Damaged { digest: expected });
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes the lock of a content's one writer, as fills do; `None` if the content is there, sound.
async fn claim(
    store: &Store,
    owner: &LockHolder,
    digest: &Digest,
    size: u64,
) -> Result<Option<Lock>> {
    let lock = format!("blob-{}-{}", digest.algorithm(), digest.hex());
    let mut waited = Duration::ZERO;
    loop {
        match store.verify_blob(digest).await {
            Ok(Some(found)) if found == size => {
                store.touch_blob(digest).await?;
                return Ok(None);
            }
            // What is stored was hashed just now, so the content in the archive is wrong.
            Ok(Some(_)) => {
                return Err(Error::Damaged {
                    digest: digest.clone(),
                });
            }
            Ok(None) | Err(holdfast_store::Error::Corrupt { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        match store.try_lock(&lock, owner).await? {
            LockAttempt::Acquired(lock) => return Ok(Some(lock)),
            LockAttempt::Contended(_) if waited < LOCK_TIMEOUT => {
                tokio::time::sleep(LOCK_POLL_INTERVAL).await;
                waited += LOCK_POLL_INTERVAL;
            }
            LockAttempt::Contended(_) => return Err(holdfast_store::Error::Busy.into()),
        }
    }
}
