//! Images for tests: manifests, indexes and their blobs as exact bytes, random but the same for the
//! same seed.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Media type of an OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of a Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The digest of some bytes as `sha256:<hex>`.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Bytes that look random and are the same for the same seed.
pub fn random_bytes(seed: u64, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    Bytes::from(bytes)
}

/// An image or an index with all that it refers to.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the top manifest or index.
    pub digest: String,
    /// Media type of the top manifest or index.
    pub media_type: String,
    /// Every manifest by digest, with its media type; the top one too.
    pub manifests: BTreeMap<String, (String, Bytes)>,
    /// Every blob by digest.
    pub blobs: BTreeMap<String, Bytes>,
    /// Digests of the layers in order, of a single image; of an index, of all its images.
    pub layers: Vec<String>,
    /// Digests of the image manifests that an index names, in order; empty for a single image.
    pub children: Vec<String>,
}

impl Image {
    /// The exact bytes of the top manifest or index.
    ///
    /// # Panics
    /// Never: the builder always puts it in.
    pub fn bytes(&self) -> Bytes {
        self.manifests[&self.digest].1.clone()
    }
}

/// Builds an [`Image`].
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    seed: u64,
    layers: Vec<usize>,
    docker: bool,
    platform: String,
}

impl ImageBuilder {
    /// An OCI image for `linux/amd64` without layers; images of different seeds share no blob.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            layers: Vec::new(),
            docker: false,
            platform: "linux/amd64".to_owned(),
        }
    }

    /// Adds a layer of this many random bytes.
    #[must_use]
    pub fn layer(mut self, size_bytes: usize) -> Self {
        self.layers.push(size_bytes);
        self
    }

    /// Uses Docker media types instead of OCI's.
    #[must_use]
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// Sets the platform, `os/architecture`.
    #[must_use]
    pub fn platform(mut self, platform: &str) -> Self {
        platform.clone_into(&mut self.platform);
        self
    }

    /// A single image.
    pub fn build(self) -> Image {
        let (os, architecture) = self.platform.split_once('/').unwrap_or(("linux", "amd64"));
        let mut blobs = BTreeMap::new();
        let mut layers = Vec::new();
        let mut descriptors = Vec::new();
        let layer_type = if self.docker {
            "application/vnd.docker.image.rootfs.diff.tar.gzip"
        } else {
            "application/vnd.oci.image.layer.v1.tar"
        };
        for (number, size) in self.layers.iter().enumerate() {
            let bytes = random_bytes(
                self.seed.wrapping_mul(1000).wrapping_add(number as u64),
                *size,
            );
            let digest = digest_of(&bytes);
            descriptors.push(json!({"mediaType": layer_type, "digest": digest, "size": size}));
            layers.push(digest.clone());
            blobs.insert(digest, bytes);
        }
        let config = json!({
            "architecture": architecture, "os": os, "config": {"Labels": {"seed": self.seed.to_string()}},
            "rootfs": {"type": "layers", "diff_ids": layers},
        });
        let config = Bytes::from(config.to_string());
        let config_digest = digest_of(&config);
        let (media_type, config_type) = if self.docker {
            (
                DOCKER_MANIFEST,
                "application/vnd.docker.container.image.v1+json",
            )
        } else {
            (OCI_MANIFEST, "application/vnd.oci.image.config.v1+json")
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type,
            "config": {"mediaType": config_type, "digest": config_digest, "size": config.len()},
            "layers": descriptors,
        });
        blobs.insert(config_digest, config);
        // Odd spacing, so that a re-serialised manifest never passes for the original bytes.
        let bytes = Bytes::from(format!("{manifest:#}\n "));
        let digest = digest_of(&bytes);
        Image {
            manifests: BTreeMap::from([(digest.clone(), (media_type.to_owned(), bytes))]),
            digest,
            media_type: media_type.to_owned(),
            blobs,
            layers,
            children: Vec::new(),
        }
    }

    /// An index over one image for each of `platforms` (`os/architecture[/variant]`), each with the
    /// builder's layers but other bytes; with Docker types it is a manifest list.
    pub fn index(self, platforms: &[&str]) -> Image {
        let media_type = if self.docker { DOCKER_LIST } else { OCI_INDEX };
        let mut index = Image {
            digest: String::new(),
            media_type: media_type.to_owned(),
            manifests: BTreeMap::new(),
            blobs: BTreeMap::new(),
            layers: Vec::new(),
            children: Vec::new(),
        };
        let mut entries: Vec<Value> = Vec::new();
        for (number, platform) in platforms.iter().enumerate() {
            let mut child = self.clone().platform(platform);
            child.seed = self.seed.wrapping_mul(100).wrapping_add(number as u64 + 1);
            let child = child.build();
            let mut parts = platform.split('/');
            let mut wanted = json!({"os": parts.next(), "architecture": parts.next()});
            if let Some(variant) = parts.next() {
                wanted["variant"] = json!(variant);
            }
            let size = child.bytes().len();
            entries.push(json!({"mediaType": child.media_type, "digest": child.digest, "size": size, "platform": wanted}));
            index.children.push(child.digest);
            index.layers.extend(child.layers);
            index.manifests.extend(child.manifests);
            index.blobs.extend(child.blobs);
        }
        let value = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
        let bytes = Bytes::from(format!("{value:#}\n\n"));
        index.digest = digest_of(&bytes);
        index
            .manifests
            .insert(index.digest.clone(), (media_type.to_owned(), bytes));
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_its_children_by_digest_and_size() {
        let index = ImageBuilder::new(1)
            .layer(10)
            .index(&["linux/amd64", "linux/arm64/v8"]);
        let value: Value = serde_json::from_slice(&index.bytes()).unwrap();
        assert_eq!(digest_of(&index.bytes()), index.digest);
        for (entry, child) in value["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .zip(&index.children)
        {
            assert_eq!(entry["digest"], json!(child));
            assert_eq!(entry["size"], json!(index.manifests[child].1.len()));
        }
        assert_eq!(index.layers.len(), 2);
    }

    #[test]
    fn the_same_seed_gives_the_same_image() {
        assert_eq!(
            ImageBuilder::new(7).layer(99).build().digest,
            ImageBuilder::new(7).layer(99).build().digest
        );
        assert_ne!(
            ImageBuilder::new(7).layer(99).build().digest,
            ImageBuilder::new(8).layer(99).build().digest
        );
    }
}
