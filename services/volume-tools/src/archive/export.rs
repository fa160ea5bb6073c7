//! Images out of a volume. Every content is hashed on its way; what turns out damaged ends the
//! export.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_core::{digest::Digest, oci::ManifestType};
use holdfast_store::{
    View, files,
    volume::{Disk, Volume as _, VolumeFile},
};
use serde_json::json;

use super::{Bundle, Error, Name, Result, names, path_of, repository, tar};

const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// Where an image layout goes. Files come one after the other, each with its size first.
pub trait ArchiveWriter {
    /// Whether a content is there already, whole.
    fn has(&mut self, digest: &Digest, size: u64) -> Result<bool>;

    /// Begins a file.
    fn begin(&mut self, name: &str, size: u64) -> Result<()>;

    /// The next bytes of the file.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()>;

    /// Ends the file; only now may it be seen.
    fn end(&mut self) -> Result<()>;

    /// Ends the layout.
    fn finish(&mut self) -> Result<()>;
}

/// Writes images into a layout, telling how many bytes have gone. Contents that several images
/// share go once. Returns the bytes in it.
///
/// # Errors
/// Whatever is missing or damaged: the layout is then of no use, and a tar file must be thrown
/// away.
pub fn export(
    view: &View,
    images: &[(Name, Bundle)],
    target: &mut dyn ArchiveWriter,
    progress: &mut dyn FnMut(u64),
) -> Result<u64> {
    let mut total = 0;
    file(target, "oci-layout", LAYOUT.as_bytes())?;
    let blobs: BTreeMap<&Digest, u64> = images
        .iter()
        .flat_map(|(_, bundle)| bundle.blobs.iter().map(|(digest, size)| (digest, *size)))
        .collect();
    for (digest, size) in blobs {
        total += size;
        if target.has(digest, size)? {
            progress(size);
            continue;
        }
        target.begin(&path_of(digest), size)?;
        repository::stream(view, digest, |bytes| {
            target.write(bytes)?;
            progress(bytes.len() as u64);
            Ok(())
        })?;
        target.end()?;
    }
    let mut written = BTreeSet::new();
    for (digest, bytes) in images.iter().flat_map(|(_, bundle)| &bundle.manifests) {
        if written.insert(digest) {
            file(target, &path_of(digest), bytes)?;
            total += bytes.len() as u64;
            progress(bytes.len() as u64);
        }
    }
    // Last: a folder without it is no layout.
    file(target, "index.json", index(images).as_bytes())?;
    target.finish()?;
    Ok(total)
}

fn file(target: &mut dyn ArchiveWriter, name: &str, bytes: &[u8]) -> Result<()> {
    target.begin(name, bytes.len() as u64)?;
    target.write(bytes).map_err(Error::Write)?;
    target.end()
}

/// `index.json`: the images by their names outside, as containerd and as the tools of podman read
/// them.
fn index(images: &[(Name, Bundle)]) -> String {
    let manifests: Vec<_> = images
        .iter()
        .map(|(name, bundle)| {
            let size = bundle.manifests.last().map_or(0, |(_, bytes)| bytes.len());
            let name = names::original(name);
            json!({
                "mediaType": bundle.media_type,
                "digest": bundle.digest,
                "size": size,
                "annotations": {
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": name,
                },
            })
        })
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": ManifestType::OciIndex.as_str(),
        "manifests": manifests,
    })
    .to_string()
}

/// A layout as a tar file. The same images give the same bytes.
#[derive(Debug)]
pub struct TarWriter<W> {
    file: W,
    left: u64,
    size: u64,
}

impl<W: Write> TarWriter<W> {
    /// Writes to `file`.
    pub fn new(file: W) -> Self {
        Self {
            file,
            left: 0,
            size: 0,
        }
    }

    /// The file, with everything written.
    pub fn into_inner(self) -> W {
        self.file
    }
}

impl<W: Write> ArchiveWriter for TarWriter<W> {
    fn has(&mut self, _digest: &Digest, _size: u64) -> Result<bool> {
        Ok(false)
    }

    fn begin(&mut self, name: &str, size: u64) -> Result<()> {
        (self.left, self.size) = (size, size);
        self.file
            .write_all(&tar::file(name, size).map_err(Error::Write)?)
            .map_err(Error::Write)
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| std::io::Error::other("a file on the volume grew while it was read"))?;
        self.file.write_all(bytes)
    }

    fn end(&mut self) -> Result<()> {
        if self.left > 0 {
            return Err(Error::Write(std::io::Error::other(
                "a file on the volume shrank while it was read",
            )));
        }
        let zeros = vec![0; tar::padding(self.size)];
        self.file.write_all(&zeros).map_err(Error::Write)
    }

    fn finish(&mut self) -> Result<()> {
        self.file.write_all(&[0; 1024]).map_err(Error::Write)?;
        self.file.flush().map_err(Error::Write)
    }
}

/// A layout as a folder. What an earlier run left there is kept if it is whole.
#[derive(Debug)]
pub struct FolderWriter {
    volume: Disk,
    root: PathBuf,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: Arc<dyn VolumeFile>,
    temporary: PathBuf,
    path: PathBuf,
    offset: u64,
}

impl FolderWriter {
    /// Writes below `root`, which is made if it is missing.
    pub fn new(root: &Path) -> Result<Self> {
        let volume = Disk::at(root);
        files::create_dir_unsynced(&volume, root)?;
        Ok(Self {
            volume,
            root: root.to_owned(),
            open: None,
        })
    }
}

impl ArchiveWriter for FolderWriter {
    fn has(&mut self, digest: &Digest, size: u64) -> Result<bool> {
        let path = self.root.join(path_of(digest));
        let found = files::metadata(&self.volume, &path)?;
        if found.is_none_or(|found| found.len != size) {
            return Ok(false);
        }
        let hashed = files::hash(&self.volume, &path, digest.algorithm(), |_| ())?;
        Ok(hashed.is_some_and(|(_, actual)| actual == *digest))
    }

    fn begin(&mut self, name: &str, _size: u64) -> Result<()> {
        let path = self.root.join(name);
        files::create_dir_unsynced(&self.volume, path.parent().unwrap_or(&self.root))?;
        let temporary = files::temporary(&path);
        let file = self.volume.create_new(&temporary).map_err(Error::Write)?;
        self.open = Some(Open {
            file,
            temporary,
            path,
            offset: 0,
        });
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if let Some(open) = &mut self.open {
            open.file.write_all_at(bytes, open.offset)?;
            open.offset += bytes.len() as u64;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if let Some(open) = self.open.take() {
            open.file.sync().map_err(Error::Write)?;
            self.volume
                .rename(&open.temporary, &open.path)
                .map_err(Error::Write)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.volume.sync_dir(&self.root).map_err(Error::Write)
    }
}

impl Drop for FolderWriter {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            drop(self.volume.remove_file(&open.temporary));
        }
    }
}
