//! Images for several platforms: what is copied ahead, what a new node makes wanted, and what is
//! copied only on request.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_cluster::oci::{Blob, Image};
use serde_json::{Value, json};

use crate::images;
use crate::objects::Pod;
use crate::site::{PRIVATE, Pushed, SECRET, START, Site};
use crate::wait::{eventually, throughout};
use crate::world::World;

/// A manifest of an index, and the digests of what it names.
struct Part<'a> {
    manifest: &'a Blob,
    blobs: BTreeSet<String>,
}

fn blob<'a>(image: &'a Image, digest: &Value) -> Result<&'a Blob> {
    let found = image.blobs.iter().find(|blob| *digest == blob.digest);
    found.with_context(|| format!("the image has no {digest}"))
}

fn part<'a>(image: &'a Image, architecture: &str) -> Result<Part<'a>> {
    let index: Value = serde_json::from_slice(&blob(image, &json!(image.digest))?.bytes)?;
    let manifests = index["manifests"].as_array().context("an index")?;
    let descriptor = manifests
        .iter()
        .find(|found| found["platform"]["architecture"] == architecture)
        .with_context(|| format!("the index has no {architecture}"))?;
    let manifest = blob(image, &descriptor["digest"])?;
    let document: Value = serde_json::from_slice(&manifest.bytes)?;
    let layers = document["layers"].as_array().context("layers")?;
    let blobs = layers
        .iter()
        .chain([&document["config"]])
        .filter_map(|descriptor| descriptor["digest"].as_str().map(str::to_owned))
        .collect();
    Ok(Part { manifest, blobs })
}

/// Checks that the upstream sent these blobs, each once, and no others.
fn ensure_fetched(site: &Site, repository: &str, parts: &[&Part<'_>]) -> Result<()> {
    let blobs = parts.iter().map(|part| part.blobs.len()).sum();
    site.private.fetched_once(repository, blobs)?;
    let fetches = site.private.blob_fetches(repository)?;
    for part in parts {
        ensure!(
            part.blobs.iter().all(|digest| fetches.contains_key(digest)),
            "fetched were {fetches:?}, not {:?}",
            part.blobs
        );
    }
    Ok(())
}

/// What a node gets that asks the registry for a manifest by its digest: status and body.
fn ask(site: &Site, pushed: &Pushed, kind: &str, digest: &str) -> Result<(u16, String)> {
    let node = site.workers()?.into_iter().next().context("no worker")?;
    let url = format!(
        "https://{}/v2/{PRIVATE}/{}/{kind}/{digest}",
        site.address()?,
        pushed.repository
    );
    let login = site.node_login()?;
    let accept = "Accept: application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";
    let arguments = ["--user", &login, "--header", accept, &url];
    if kind == "blobs" {
        return site.curl(
            &node,
            &[&arguments[..], &["--output", "/dev/null"]].concat(),
        );
    }
    site.curl(&node, &arguments)
}

fn ensure_served(site: &Site, pushed: &Pushed, manifest: &Blob) -> Result<()> {
    let (status, body) = ask(site, pushed, "manifests", &manifest.digest)?;
    ensure!(
        status == 200 && body.as_bytes() == manifest.bytes,
        "{} was answered with {status}: {body}",
        manifest.digest
    );
    Ok(())
}

pub(super) fn a_node_of_another_platform_makes_its_platform_wanted(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let image = images::platforms(&site.workload, &["arm64", "s390x"], 1 << 16)?;
    let [amd, arm, other] = ["amd64", "arm64", "s390x"].map(|name| part(&image, name));
    let (amd, arm, other) = (amd?, arm?, other?);
    let pushed = site.push_image(&site.private, "team/platforms", &image)?;
    site.private.forget()?;
    let test = site.namespace()?;
    test.create(&Pod::new("app", &pushed.reference).pull_secrets(&[SECRET]))?;
    site.kube.running(&test.name, "app", START)?;
    site.kube.copied(&test.name, &pushed.reference, START)?;
    throughout(Duration::from_secs(5), || {
        ensure_fetched(site, &pushed.repository, &[&amd])
    })
    .context("only the platforms of the nodes are copied ahead")?;

    let node = format!("arm64-{}", images::unique()?);
    site.kube.create(&json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": node,
            "labels": {"kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux"},
        },
    }))?;
    let wanted = eventually(START, || {
        ensure_fetched(site, &pushed.repository, &[&amd, &arm])
    });
    site.kube.delete(&["node", &node])?;
    wanted.context("a node of another platform joined")?;

    site.private.down()?;
    let index = image.blobs.last().context("an index")?;
    for manifest in [index, amd.manifest, arm.manifest] {
        ensure_served(site, &pushed, manifest).context("without the upstream")?;
    }
    for digest in &arm.blobs {
        let (status, _) = ask(site, &pushed, "blobs", digest)?;
        ensure!(status == 200, "{digest} was answered with {status}");
    }
    let (status, body) = ask(site, &pushed, "manifests", &other.manifest.digest)?;
    ensure!(
        status >= 400 && body.contains("errors"),
        "what no node needs was answered with {status}: {body}"
    );

    site.private.heal()?;
    // The upstream is believed to be down for a while.
    eventually(START, || ensure_served(site, &pushed, other.manifest))
        .context("what no node needs is copied when somebody asks")?;
    for digest in &other.blobs {
        let (status, _) = ask(site, &pushed, "blobs", digest)?;
        ensure!(status == 200, "{digest} was answered with {status}");
    }
    ensure_fetched(site, &pushed.repository, &[&amd, &arm, &other])
}
