//! Images of a test: the workload program and layers that no other image has, as OCI layout
//! folders.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use holdfast_cluster::oci::{Image, ImageBuilder, Layer};
use serde_json::json;

/// Bytes that no other run has seen.
pub(crate) fn random(bytes: usize) -> Result<Vec<u8>> {
    let mut random = vec![0; bytes];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .context("random bytes")?;
    Ok(random)
}

/// A short text that no other run has seen.
pub(crate) fn unique() -> Result<String> {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&random(4)?);
    Ok(format!("{:08x}", u32::from_be_bytes(bytes)))
}

/// An image that runs the workload program, with `layers` more layers of random bytes.
pub(crate) fn workload(program: &Path, layers: usize, layer_bytes: usize) -> Result<Image> {
    let program = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    // A byte of its own in the first layer keeps every image's blobs its own.
    let mut builder = ImageBuilder::new()
        .layer(
            Layer::new()
                .file("workload", 0o755, program)
                .file("salt", 0o644, random(16)?),
        )
        .compressed();
    for number in 0..layers {
        builder = builder.layer(Layer::new().file(
            &format!("filler/{number}"),
            0o644,
            random(layer_bytes)?,
        ));
    }
    builder
        .entrypoint(&["/workload"])
        .user("65532:65532")
        .build()
}

/// Images that run the workload program out of one shared layer and have one of `bytes` of their
/// own.
pub(crate) fn siblings(program: &Path, count: usize, bytes: usize) -> Result<Vec<Image>> {
    let program = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let salt = random(16)?;
    (0..count)
        .map(|_| {
            ImageBuilder::new()
                .layer(Layer::new().file("workload", 0o755, program.clone()).file(
                    "salt",
                    0o644,
                    salt.clone(),
                ))
                .layer(Layer::new().file("filler/own", 0o644, random(bytes)?))
                .entrypoint(&["/workload"])
                .user("65532:65532")
                .build()
        })
        .collect()
}

/// An image without a program, for image volumes: one file `/proof` with `text`.
pub(crate) fn files(text: &str) -> Result<Image> {
    ImageBuilder::new()
        .layer(
            Layer::new()
                .file("proof", 0o644, text)
                .file("salt", 0o644, random(1 << 16)?),
        )
        .compressed()
        .build()
}

/// One image of several platforms, `layer_bytes` each: the workload program for amd64, and what no
/// node of the tests can run for the others.
pub(crate) fn platforms(
    program: &Path,
    others: &[&'static str],
    layer_bytes: usize,
) -> Result<Image> {
    let mut images = vec![("amd64", workload(program, 1, layer_bytes)?)];
    for &architecture in others {
        let image = ImageBuilder::new()
            .architecture(architecture)
            .layer(Layer::new().file("workload", 0o755, random(layer_bytes)?))
            .entrypoint(&["/workload"])
            .build()?;
        images.push((architecture, image));
    }
    Image::index(images)
}

/// Writes `image` as an OCI layout folder.
pub(crate) fn layout(image: &Image, folder: &Path) -> Result<PathBuf> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("make {}", blobs.display()))?;
    for blob in &image.blobs {
        fs::write(
            blobs.join(blob.digest.trim_start_matches("sha256:")),
            &blob.bytes,
        )
        .context("write a blob")?;
    }
    let manifest = image.blobs.last().context("an image has a manifest")?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.bytes.len()}],
    });
    fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .context("write a layout")?;
    fs::write(folder.join("index.json"), index.to_string()).context("write a layout")?;
    Ok(folder.to_path_buf())
}

/// How many blobs (configuration and layers) a fill of the image fetches.
pub(crate) fn blob_count(image: &Image) -> usize {
    image.blobs.len() - 1
}
