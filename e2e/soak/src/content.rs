//! What is pushed: bytes that follow from a seed, and the manifests over them.

use std::collections::HashMap;

use bytes::Bytes;
use holdfast_testkit::image::{OCI_MANIFEST, digest_of, random_bytes};
use parking_lot::Mutex;
use serde_json::json;

/// A blob, by which its bytes can be made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    /// Its digest.
    pub(crate) digest: String,
    /// Its size in bytes.
    pub(crate) size: usize,
    seed: u64,
}

impl Blob {
    /// The blob of a seed and a size.
    pub(crate) fn new(seed: u64, size: usize) -> Self {
        Self {
            digest: digest_of(&random_bytes(seed, size)),
            size,
            seed,
        }
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> Bytes {
        random_bytes(self.seed, self.size)
    }
}

/// A manifest over blobs.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    /// Its digest.
    pub(crate) digest: String,
    /// Its exact bytes.
    pub(crate) bytes: Bytes,
    /// Configuration and layers.
    pub(crate) blobs: Vec<Blob>,
}

impl Manifest {
    /// The manifest of a configuration and layers; `mark` makes it unlike others.
    pub(crate) fn new(config: &Blob, layers: &[Blob], mark: u64) -> Self {
        let descriptor = |kind: &str, blob: &Blob| json!({"mediaType": kind, "digest": blob.digest, "size": blob.size});
        let layers_json: Vec<_> = layers
            .iter()
            .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": layers_json, "annotations": {"mark": mark.to_string()},
        });
        let bytes = Bytes::from(format!("{manifest:#}\n"));
        Self {
            digest: digest_of(&bytes),
            bytes,
            blobs: std::iter::once(config).chain(layers).cloned().collect(),
        }
    }
}

/// Manifests and blobs by digest, for readers.
#[derive(Debug, Default)]
pub(crate) struct Library {
    manifests: Mutex<HashMap<String, Manifest>>,
}

impl Library {
    /// Remembers a manifest.
    pub(crate) fn add(&self, manifest: &Manifest) {
        self.manifests
            .lock()
            .insert(manifest.digest.clone(), manifest.clone());
    }

    /// The manifest of a digest.
    pub(crate) fn get(&self, digest: &str) -> Option<Manifest> {
        self.manifests.lock().get(digest).cloned()
    }
}
