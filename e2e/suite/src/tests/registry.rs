//! The registry's volume and its upstream when they are not as they should be: damaged, full,
//! without tags, read-only.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::kube;
use crate::objects::Pod;
use crate::site::{SECRET, START, Site};
use crate::tests::pushes;
use crate::wait::{eventually, throughout};
use crate::world::World;

/// Where a blob lies below the root of the volume.
fn blob_path(digest: &str) -> Result<String> {
    let hex = digest.strip_prefix("sha256:").context("not a sha256")?;
    let two = hex.get(..2).context("a short digest")?;
    Ok(format!("docker/registry/v2/blobs/sha256/{two}/{hex}/data"))
}

/// Paths on the volume, seen from a worker.
fn on_volume(site: &Site, path: &str) -> Result<String> {
    Ok(format!("{}/{path}", site.release.volume()?))
}

// SPEC 37
pub(super) fn a_damaged_blob_is_fetched_again(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.installed()?;
    let image = site.push(&site.private, "team/damaged", 2, 1 << 20)?;
    let test = site.namespace()?;
    let workers = site.workers()?;
    let [first, second, ..] = workers.as_slice() else {
        bail!("two workers are needed");
    };
    let pod = |name: &str, node: &str| {
        Pod::new(name, &image.reference)
            .pull_secrets(&[SECRET])
            .on(node)
    };
    test.create(&pod("first", first))?;
    site.kube.running(&test.name, "first", START)?;
    site.kube.copied(&test.name, &image.reference, START)?;
    let file = on_volume(site, &blob_path(&image.last_layer)?)?;
    let sum = |what: &str| -> Result<String> {
        let text = site
            .cluster
            .node_exec(first, &["sha256sum", &file])
            .with_context(|| format!("the layer's file, {what}"))?;
        Ok(text
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned())
    };
    ensure!(
        image.last_layer.ends_with(&sum("whole")?),
        "{file} is not the layer"
    );
    let spoil = format!("printf spoilt | dd of={file} bs=1 seek=500000 conv=notrunc status=none");
    site.cluster.node_exec(first, &["sh", "-c", &spoil])?;
    ensure!(
        !image.last_layer.ends_with(&sum("spoilt")?),
        "{file} is still whole"
    );
    site.private.forget()?;
    test.create(&pod("second", second))?;
    site.kube
        .running(&test.name, "second", START * 2)
        .context("a pod whose layer is damaged on the volume")?;
    let fetches = site.private.blob_fetches(&image.repository)?;
    ensure!(
        fetches.len() == 1 && fetches.contains_key(&image.last_layer),
        "fetched again: {fetches:?}, expected only {}",
        image.last_layer
    );
    eventually(START, || {
        ensure!(
            image.last_layer.ends_with(&sum("healed")?),
            "{file} is still damaged"
        );
        Ok(())
    })
}

// SPEC 38
pub(super) fn untagged_manifests_harm_nothing(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let old = site.push(&site.private, "team/untagged", 1, 1 << 16)?;
    // The tag goes to another image: upstream, the old one has a digest only.
    let new = crate::images::workload(&site.workload, 1, 1 << 16)?;
    let new = site.push_as(&site.private, &old.repository, "1", &new)?;
    let by_digest = format!("{}@{}", old.reference.trim_end_matches(":1"), old.digest);
    let test = site.namespace()?;
    let workers = site.workers()?;
    let [first, second, ..] = workers.as_slice() else {
        bail!("two workers are needed");
    };
    let pod = |name: &str, image: &str, node: &str| {
        Pod::new(name, image).pull_secrets(&[SECRET]).on(node)
    };
    test.create(&pod("old", &by_digest, first))?;
    site.kube.running(&test.name, "old", START)?;
    site.kube.copied(&test.name, &by_digest, START)?;
    test.create(&pod("new", &new.reference, first))?;
    site.kube.running(&test.name, "new", START)?;
    site.kube.copied(&test.name, &new.reference, START)?;
    // A new leader reconciles every Artifact again.
    site.private.forget()?;
    site.kill_pod(kube::name(&site.leader()?))?;
    eventually(START, || site.leader())?;
    site.private.down()?;
    let result = throughout(std::time::Duration::from_secs(5), || {
        let ready = site.kube.artifacts(&test.name, true)?;
        ensure!(ready.len() == 2, "only {ready:?} are Ready");
        Ok(())
    })
    .and_then(|()| {
        test.create(&pod("again", &by_digest, second))?;
        site.kube
            .running(&test.name, "again", START)
            .context("an image without a tag, on another node, without upstream")
    });
    site.private.heal()?;
    result?;
    let fetches = site.private.blob_fetches(&old.repository)?;
    ensure!(fetches.is_empty(), "blobs were fetched again: {fetches:?}");
    Ok(())
}

// SPEC 44
pub(super) fn an_upstream_that_only_reads_is_enough(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let image = site.push(&site.private, "team/standby", 2, 1 << 18)?;
    let digest = site.push(&site.private, "team/standby", 1, 1 << 16)?;
    let by_digest = format!(
        "{}@{}",
        digest.reference.trim_end_matches(":1"),
        digest.digest
    );
    site.private.forget()?;
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        site.private
            .fault(&json!({"kind": "error", "status": 405, "path": format!("{method} ")}))?;
    }
    let test = site.namespace()?;
    let result = [("tag", &image.reference), ("digest", &by_digest)]
        .into_iter()
        .try_for_each(|(name, reference)| {
            test.create(&Pod::new(name, reference).pull_secrets(&[SECRET]))?;
            site.kube.running(&test.name, name, START)?;
            site.kube.copied(&test.name, reference, START)
        });
    let requests = site.private.requests();
    site.private.heal()?;
    result?;
    let writes: Vec<_> = requests?
        .into_keys()
        .filter(|request| !request.starts_with("GET ") && !request.starts_with("HEAD "))
        .collect();
    ensure!(writes.is_empty(), "the upstream was asked to {writes:?}");
    Ok(())
}

/// Room of the small volume. The registry keeps 64 MiB of it free for metadata.
const VOLUME_MIB: usize = 320;

/// On a volume of its own, for it must be full.
pub(super) fn a_full_volume_refuses_writes_and_serves_reads(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.uninstall()?;
    site.release.use_small_volume(VOLUME_MIB);
    let installed = pushes::with_pusher(site);
    site.release.use_any_volume();
    let result = installed.and_then(|()| full_volume(site));
    // The next test has the same volume.
    if let Some(node) = site.workers()?.first() {
        let script = format!("rm -f {}/filler-*", site.release.volume()?);
        site.cluster.node_exec(node, &["sh", "-c", &script])?;
    }
    result
}

fn full_volume(site: &Site) -> Result<()> {
    let stored = site.push(&site.private, "team/stored", 2, 1 << 20)?;
    let late = site.push(&site.private, "team/late", 2, 1 << 20)?;
    let test = site.namespace()?;
    let workers = site.workers()?;
    let [first, second, third, ..] = workers.as_slice() else {
        bail!("three workers are needed");
    };
    let start = |name: &str, reference: &str, node: &str| -> Result<Value> {
        test.create(&Pod::new(name, reference).pull_secrets(&[SECRET]).on(node))?;
        site.kube.running(&test.name, name, START)
    };
    start("first", &stored.reference, first)?;
    site.kube.copied(&test.name, &stored.reference, START)?;
    let volume = site.release.volume()?;
    let fill = |leave: usize| {
        let script = format!(
            "cd {volume} && free=$(df --output=avail --block-size=1M . | tail -1) && dd if=/dev/zero of=filler-{leave} bs=1M count=$((free - {leave})) status=none; df --output=avail --block-size=1K . | tail -1"
        );
        site.cluster.node_exec(first, &["sh", "-c", &script])
    };
    // Less than the reserve: new content is refused, although bytes are left.
    fill(40)?;
    test.create(
        &Pod::new("late", &late.reference)
            .pull_secrets(&[SECRET])
            .on(first),
    )?;
    let message = eventually(START, || {
        let artifacts = site.kube.list(&["artifacts", "-n", &test.name])?;
        let artifact = artifacts
            .iter()
            .find(|artifact| artifact["spec"]["sourceArtifact"] == late.reference)
            .context("no Artifact yet")?;
        ensure!(
            !kube::condition(artifact, "Ready"),
            "an image was stored on a full volume"
        );
        let text = artifact["status"]["conditions"].to_string();
        ensure!(
            text.contains("NoSpace") || text.contains("volume"),
            "the Artifact does not say why: {text}"
        );
        Ok(text)
    })?;
    println!("  the Artifact says: {message}");
    let (status, answer) = pushes::begin(site)?;
    ensure!(
        status == 507 && answer.contains("errors") && answer.contains("volume"),
        "a push was answered with {status}: {answer}"
    );
    start("second", &stored.reference, second).context("a read when writes are refused")?;
    // And the very last byte.
    let left = fill(0)?;
    start("third", &stored.reference, third)
        .with_context(|| format!("a read with {} KiB left", left.trim()))?;
    let ready = site
        .kube
        .ready_pods(site.release.namespace(), &site.release.part("registry"))?;
    ensure!(
        ready.len() == 3,
        "{} of 3 replicas are ready on a full volume",
        ready.len()
    );
    site.cluster
        .node_exec(first, &["sh", "-c", &format!("rm {volume}/filler-*")])?;
    site.kube
        .running(&test.name, "late", START * 2)
        .context("once there is room")?;
    site.kube.copied(&test.name, &late.reference, START * 2)
}
