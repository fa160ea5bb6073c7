//! Writing container images without a container engine: OCI layouts in one tar archive.
//!
//! The same input gives the same bytes: entries keep the order they were added in, and no clock
//! is read.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Files of one layer. Paths are inside the image, without a leading slash.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    entries: Vec<(String, Entry)>,
}

#[derive(Clone, Debug)]
enum Entry {
    File { mode: u32, bytes: Vec<u8> },
    Directory { mode: u32 },
    Link { target: String },
}

impl Layer {
    /// A layer without files.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        self.entries.push((
            relative(path),
            Entry::File {
                mode,
                bytes: bytes.into(),
            },
        ));
        self
    }

    /// Adds a folder; parents of files need none.
    #[must_use]
    pub fn directory(mut self, path: &str, mode: u32) -> Self {
        self.entries
            .push((relative(path), Entry::Directory { mode }));
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.entries.push((
            relative(path),
            Entry::Link {
                target: target.to_owned(),
            },
        ));
        self
    }

    fn tar(&self) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            match entry {
                Entry::File { mode, bytes } => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_mode(*mode);
                    header.set_size(bytes.len() as u64);
                    archive.append_data(&mut header, path, bytes.as_slice())
                }
                Entry::Directory { mode } => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    header.set_size(0);
                    archive.append_data(&mut header, format!("{path}/"), std::io::empty())
                }
                Entry::Link { target } => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    archive.append_link(&mut header, path, target)
                }
            }
            .with_context(|| format!("cannot add {path} to a layer"))?;
        }
        Ok(archive.into_inner()?)
    }
}

/// An image in the making, for linux/amd64 unless told otherwise.
#[derive(Clone, Debug, Default)]
pub struct ImageBuilder {
    architecture: Option<&'static str>,
    layers: Vec<Layer>,
    config: Map<String, Value>,
    labels: Map<String, Value>,
    environment: Vec<String>,
    tags: Vec<String>,
    compress: bool,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Digest of the manifest, `sha256:…`.
    pub digest: String,
    /// Every blob of the image: media type, digest, bytes. The manifest is the last.
    pub blobs: Vec<Blob>,
    tags: Vec<String>,
}

/// One content-addressed part of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Its media type in descriptors.
    pub media_type: &'static str,
    /// Its digest, `sha256:…`.
    pub digest: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self {
            media_type,
            digest: digest(&bytes),
            bytes,
        }
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

impl Image {
    /// One image of several, each for linux on the architecture it goes with. The index is the last
    /// blob.
    ///
    /// # Errors
    /// When an image has no manifest.
    pub fn index(images: Vec<(&str, Self)>) -> Result<Self> {
        let mut blobs = Vec::new();
        let mut manifests = Vec::new();
        for (architecture, image) in images {
            let manifest = image.blobs.last().context("an image has a manifest")?;
            let mut descriptor = manifest.descriptor();
            descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
            manifests.push(descriptor);
            blobs.extend(image.blobs);
        }
        let index = Blob::new(
            "application/vnd.oci.image.index.v1+json",
            serde_json::to_vec_pretty(&json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": manifests,
            }))?,
        );
        let digest = index.digest.clone();
        blobs.push(index);
        Ok(Self {
            digest,
            blobs,
            tags: Vec::new(),
        })
    }
}

impl ImageBuilder {
    /// An image without layers.
    pub fn new() -> Self {
        Self::default()
    }

    /// An image of one static program, started as it is.
    pub fn of_program(path: &str, program: impl Into<Vec<u8>>) -> Self {
        let absolute = format!("/{}", relative(path));
        Self::new()
            .layer(Layer::new().file(path, 0o755, program))
            .entrypoint(&[&absolute])
    }

    /// Says for which processors the image is.
    #[must_use]
    pub const fn architecture(mut self, name: &'static str) -> Self {
        self.architecture = Some(name);
        self
    }

    /// Adds a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Sets what is run.
    #[must_use]
    pub fn entrypoint(mut self, arguments: &[&str]) -> Self {
        self.config
            .insert("Entrypoint".to_owned(), json!(arguments));
        self
    }

    /// Sets the arguments that a container can replace.
    #[must_use]
    pub fn command(mut self, arguments: &[&str]) -> Self {
        self.config.insert("Cmd".to_owned(), json!(arguments));
        self
    }

    /// Sets the user, as `uid` or `uid:gid`.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.config.insert("User".to_owned(), json!(user));
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), json!(value));
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push(format!("{name}={value}"));
        self
    }

    /// Adds a name, host and tag included: `localhost/thing:1`.
    #[must_use]
    pub fn tag(mut self, reference: &str) -> Self {
        self.tags.push(reference.to_owned());
        self
    }

    /// Writes layers as tar.gz (they are plain tar otherwise).
    #[must_use]
    pub const fn compressed(mut self) -> Self {
        self.compress = true;
        self
    }

    /// Makes the image's blobs.
    pub fn build(mut self) -> Result<Image> {
        let mut blobs = Vec::new();
        let mut unpacked = Vec::new();
        for layer in &self.layers {
            let tar = layer.tar()?;
            unpacked.push(digest(&tar));
            blobs.push(if self.compress {
                let mut gzip = GzBuilder::new()
                    .mtime(0)
                    .write(Vec::new(), Compression::new(4));
                gzip.write_all(&tar)?;
                Blob::new(
                    "application/vnd.oci.image.layer.v1.tar+gzip",
                    gzip.finish()?,
                )
            } else {
                Blob::new("application/vnd.oci.image.layer.v1.tar", tar)
            });
        }
        if !self
            .environment
            .iter()
            .any(|variable| variable.starts_with("PATH="))
        {
            let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
            self.environment.push(path.to_owned());
        }
        self.config
            .insert("Env".to_owned(), json!(self.environment));
        if !self.labels.is_empty() {
            self.config
                .insert("Labels".to_owned(), Value::Object(self.labels));
        }
        let config = json!({
            "architecture": self.architecture.unwrap_or("amd64"),
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": unpacked},
        });
        let config = Blob::new(
            "application/vnd.oci.image.config.v1+json",
            serde_json::to_vec(&config)?,
        );
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(),
            "layers": blobs.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let manifest = Blob::new(
            "application/vnd.oci.image.manifest.v1+json",
            serde_json::to_vec(&manifest)?,
        );
        let digest = manifest.digest.clone();
        blobs.extend([config, manifest]);
        Ok(Image {
            digest,
            blobs,
            tags: self.tags,
        })
    }

    /// Builds the image and writes it as an archive that `ctr images import`, `kind load
    /// image-archive` and `docker load` take. Returns the manifest's digest.
    pub fn write(self, path: &Path) -> Result<String> {
        let image = self.build()?;
        write_archive(path, std::slice::from_ref(&image))?;
        Ok(image.digest)
    }
}

/// Writes several images into one archive.
pub fn write_archive(path: &Path, images: &[Image]) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut archive = tar::Builder::new(BufWriter::new(file));
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, bytes)
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut manifests = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for image in images {
        for blob in &image.blobs {
            if seen.insert(&blob.digest) {
                add(
                    &format!("blobs/{}", blob.digest.replace(':', "/")),
                    &blob.bytes,
                )?;
            }
        }
        let Some(manifest) = image.blobs.last() else {
            continue;
        };
        for tag in &image.tags {
            let mut descriptor = manifest.descriptor();
            let short = tag.rsplit_once(':').map_or("latest", |(_, short)| short);
            descriptor["platform"] = json!({"architecture": "amd64", "os": "linux"});
            descriptor["annotations"] = json!({
                "io.containerd.image.name": tag,
                "org.opencontainers.image.ref.name": short,
            });
            manifests.push(descriptor);
        }
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    add("index.json", &serde_json::to_vec(&index)?)?;
    archive.into_inner()?.flush()?;
    Ok(())
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn relative(path: &str) -> String {
    path.trim_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageBuilder {
        ImageBuilder::of_program("/bin/thing", b"program".to_vec()).tag("localhost/thing:1")
    }

    #[test]
    fn the_same_input_gives_the_same_image() {
        assert_eq!(image().build().unwrap(), image().build().unwrap());
        assert_eq!(
            image().compressed().build().unwrap().digest,
            image().compressed().build().unwrap().digest,
        );
    }

    #[test]
    fn every_blob_is_named_by_its_content() {
        for blob in image().build().unwrap().blobs {
            assert_eq!(blob.digest, digest(&blob.bytes));
        }
    }
}
