//! `holdfast/probe:1`: a tiny image that node agents pull through the container runtime to see that
//! a node is prepared.
//!
//! Deterministic, and an index, so that it fits a node of any platform.

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    oci::ManifestType,
    reference::{RepositoryName, Tag},
};
use holdfast_store::{Hasher, Result, Store};
use serde_json::json;

const OCI_INDEX: &str = ManifestType::OciIndex.as_str();
const OCI_MANIFEST: &str = ManifestType::OciManifest.as_str();
const REPOSITORY: &str = "holdfast/probe";
const TAG: &str = "1";
const FILE: &str = "holdfast-probe";
const TEXT: &[u8] = b"This image shows that a node can pull from the cluster's registry.\n";
const PLATFORMS: [(&str, Option<&str>); 7] = [
    ("amd64", None),
    ("arm64", Some("v8")),
    ("arm", Some("v7")),
    ("ppc64le", None),
    ("riscv64", None),
    ("s390x", None),
    ("386", None),
];

/// Puts the image into the store if it is missing.
pub async fn ensure(store: &Store) -> Result<Digest> {
    let (repo, tag) = name();
    let image = build();
    let tagged = store.tagged_manifest(&repo, &tag).await.ok().flatten();
    if tagged.is_some_and(|(digest, _)| digest == image.index.0)
        && complete(store, &repo, &image).await?
    {
        return Ok(image.index.0);
    }
    for (digest, bytes) in image.blobs {
        store.put_blob(&digest, bytes).await?;
        store.link_blob(&repo, &digest).await?;
    }
    for (digest, bytes) in image.manifests {
        store.put_manifest(&repo, &digest, bytes).await?;
    }
    let (digest, bytes) = image.index;
    store.put_manifest(&repo, &digest, bytes).await?;
    store.set_tag(&repo, &tag, &digest).await?;
    Ok(digest)
}

fn name() -> (RepositoryName, Tag) {
    let repo = RepositoryName::parse(REPOSITORY).expect("the literal is a repository's name");
    (repo, Tag::parse(TAG).expect("the literal is a tag"))
}

async fn complete(store: &Store, repo: &RepositoryName, image: &Image) -> Result<bool> {
    let digests =
        |list: &[(Digest, Bytes)]| list.iter().map(|(digest, _)| digest.clone()).collect();
    Ok(store
        .first_missing(repo, digests(&image.blobs), digests(&image.manifests))
        .await?
        .is_none())
}

struct Image {
    blobs: Vec<(Digest, Bytes)>,
    manifests: Vec<(Digest, Bytes)>,
    index: (Digest, Bytes),
}

fn build() -> Image {
    let layer = named(tar(FILE, TEXT));
    let mut blobs = vec![layer.clone()];
    let mut manifests = Vec::new();
    let mut children = Vec::new();
    for (architecture, variant) in PLATFORMS {
        let mut platform = json!({ "architecture": architecture, "os": "linux" });
        if let Some(variant) = variant {
            platform["variant"] = variant.into();
        }
        let mut config = platform.clone();
        config["config"] = json!({});
        config["rootfs"] = json!({ "type": "layers", "diff_ids": [layer.0] });
        let config = named(config.to_string());
        let manifest = named(
            json!({
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": config.1.len() },
                "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.0, "size": layer.1.len() }],
            })
            .to_string(),
        );
        children.push(json!({ "mediaType": OCI_MANIFEST, "digest": manifest.0, "size": manifest.1.len(), "platform": platform }));
        blobs.push(config);
        manifests.push(manifest);
    }
    let index = named(
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children }).to_string(),
    );
    Image {
        blobs,
        manifests,
        index,
    }
}

fn named(bytes: impl Into<Bytes>) -> (Digest, Bytes) {
    let bytes = bytes.into();
    (Hasher::digest(Algorithm::Sha256, &bytes), bytes)
}

/// An archive of one file in the ustar format, without anything that differs between runs.
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000444\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_store::Options;

    #[tokio::test]
    async fn missing_parts_of_the_probe_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::unlimited()).await.unwrap();
        let digest = ensure(&store).await.unwrap();
        assert_eq!(ensure(&store).await.unwrap(), digest);
        let layer = build().blobs[0].0.clone();
        std::fs::remove_file(store.layout().blob(&layer)).unwrap();
        assert_eq!(ensure(&store).await.unwrap(), digest);
        assert!(store.stat_blob(&layer).await.unwrap().is_some());
    }
}
