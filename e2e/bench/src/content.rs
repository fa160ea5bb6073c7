//! What is served: blobs and manifests, pushed over the API where that is the point, laid out on
//! disk where only their number counts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::{
    http::{self, Connection, Sink},
    load::Item,
};

/// Media type of a manifest.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Bytes that look random, the same for the same seed.
pub(crate) fn bytes(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Hexadecimal SHA-256.
pub(crate) fn hex_digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// An image manifest over these blobs; the first is the configuration.
pub(crate) fn manifest(blobs: &[Item]) -> Vec<u8> {
    let descriptor = |item: &Item, kind: &str| serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{}", item.digest), "size": item.size});
    let (config, layers) = blobs
        .split_first()
        .map_or((None, &[][..]), |(first, rest)| {
            (Some(descriptor(first, "config.v1+json")), rest)
        });
    let layers: Vec<_> = layers
        .iter()
        .map(|item| descriptor(item, "layer.v1.tar"))
        .collect();
    serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
        .to_string()
        .into_bytes()
}

/// Bytes with their SHA-256 in hexadecimal before them.
pub(crate) type Named = (String, Vec<u8>);

/// An image with blobs of these sizes, the first its configuration: its manifest, and its blobs.
/// The same for the same seed, others for seeds that differ by more than the number of sizes.
pub(crate) fn image(seed: u64, sizes: &[usize]) -> (Named, Vec<Named>) {
    let named = |bytes: Vec<u8>| (hex_digest(&bytes), bytes);
    let blobs: Vec<Named> = sizes
        .iter()
        .zip(seed..)
        .map(|(&size, seed)| named(bytes(seed, size)))
        .collect();
    let items: Vec<Item> = blobs
        .iter()
        .map(|(digest, bytes)| Item {
            path: String::new(),
            digest: digest.clone(),
            size: bytes.len() as u64,
        })
        .collect();
    (named(manifest(&items)), blobs)
}

/// Pushes a blob the way containerd does: a session, then everything in one PUT.
pub(crate) async fn push_blob(
    connection: &mut Connection,
    repository: &str,
    digest: &str,
    bytes: &[u8],
) -> Result<()> {
    let session = start_session(connection, repository).await?;
    let put = http::head("PUT", &with_digest(&session, digest), Some(bytes.len()));
    let answer = connection.request(&put, bytes, Sink::Count, |_| {}).await?;
    ensure!(answer.status == 201, "a blob: status {}", answer.status);
    Ok(())
}

/// Pushes a blob the way Docker does: a session, everything in one PATCH without an announced
/// length, then a PUT without a body. `body` is in chunks already ([`http::chunked`]).
pub(crate) async fn push_stream(
    connection: &mut Connection,
    repository: &str,
    digest: &str,
    body: &[u8],
) -> Result<()> {
    let session = start_session(connection, repository).await?;
    let patch = http::chunked_head("PATCH", &session);
    let answer = connection
        .request(&patch, body, Sink::Count, |_| {})
        .await?;
    ensure!(answer.status == 202, "a stream: status {}", answer.status);
    let put = http::head("PUT", &with_digest(&location(&answer), digest), Some(0));
    let answer = connection.request(&put, &[], Sink::Count, |_| {}).await?;
    ensure!(answer.status == 201, "a blob: status {}", answer.status);
    Ok(())
}

async fn start_session(connection: &mut Connection, repository: &str) -> Result<String> {
    let start = http::head("POST", &format!("/v2/{repository}/blobs/uploads/"), Some(0));
    let answer = connection.request(&start, &[], Sink::Count, |_| {}).await?;
    ensure!(answer.status == 202, "a session: status {}", answer.status);
    Ok(location(&answer))
}

/// The path where a session continues.
fn location(answer: &http::Head) -> String {
    let location = answer.header("location").unwrap_or_default();
    // Some servers say where they are, too.
    location
        .strip_prefix("http://")
        .and_then(|rest| rest.get(rest.find('/')?..))
        .unwrap_or(location)
        .to_owned()
}

fn with_digest(session: &str, digest: &str) -> String {
    let separator = if session.contains('?') { '&' } else { '?' };
    format!("{session}{separator}digest=sha256:{digest}")
}

/// A tree in distribution's layout that is written directly.
pub(crate) struct Tree {
    base: PathBuf,
}

impl Tree {
    /// The tree below a root directory.
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            base: root.join("docker/registry/v2"),
        }
    }

    /// The file of a blob.
    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        let prefix = digest.get(..2).unwrap_or_default();
        self.base
            .join(format!("blobs/sha256/{prefix}/{digest}/data"))
    }

    /// A blob, in no repository.
    pub(crate) fn blob(&self, bytes: &[u8]) -> Result<String> {
        let digest = hex_digest(bytes);
        write(&self.blob_path(&digest), bytes)?;
        Ok(digest)
    }

    /// Grants a repository a blob.
    pub(crate) fn layer(&self, repository: &str, digest: &str) -> Result<()> {
        let path = format!("repositories/{repository}/_layers/sha256/{digest}/link");
        write(&self.base.join(path), format!("sha256:{digest}").as_bytes())
    }

    /// A repository's manifest.
    pub(crate) fn revision(&self, repository: &str, bytes: &[u8]) -> Result<String> {
        let digest = self.blob(bytes)?;
        let path = format!("repositories/{repository}/_manifests/revisions/sha256/{digest}/link");
        write(&self.base.join(path), format!("sha256:{digest}").as_bytes())?;
        Ok(digest)
    }

    /// A tag and its history. Its files are hard links to the revision's, to spare the disk.
    pub(crate) fn tag(&self, repository: &str, tag: &str, digest: &str) -> Result<()> {
        let manifests = self
            .base
            .join(format!("repositories/{repository}/_manifests"));
        let link = manifests.join(format!("revisions/sha256/{digest}/link"));
        for place in ["current".to_owned(), format!("index/sha256/{digest}")] {
            let folder = manifests.join("tags").join(tag).join(place);
            fs::create_dir_all(&folder)?;
            // A file has at most 65,000 names on ext4.
            fs::hard_link(&link, folder.join("link"))?;
        }
        Ok(())
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    Ok(fs::write(path, bytes)?)
}
