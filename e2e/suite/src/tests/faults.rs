//! Faults: an upstream that misbehaves, parts of Holdfast that die.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::kube::{self, images};
use crate::objects::Pod;
use crate::site::{Namespace, Pushed, SECRET, START, Site};
use crate::wait::{eventually, throughout};
use crate::world::World;

/// A cached image may start this much later when the upstream hangs.
const MAX_DELAY: Duration = Duration::from_secs(2);

/// Seconds from the creation of a pod that always asks the registry to its readiness.
fn start_time(
    site: &Site,
    test: &Namespace,
    name: &str,
    image: &Pushed,
    node: &str,
) -> Result<Duration> {
    let started = Instant::now();
    test.create(
        &Pod::new(name, &image.reference)
            .pull_secrets(&[SECRET])
            .on(node)
            .always(),
    )?;
    site.kube.running(&test.name, name, START)?;
    Ok(started.elapsed())
}

pub(super) fn a_hanging_upstream_does_not_slow_cached_images(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let image = site.push(&site.private, "team/hang", 2, 1 << 20)?;
    let test = site.namespace()?;
    let workers = site.workers()?;
    let node = workers.first().context("no worker")?;
    start_time(site, &test, "cold", &image, node)?;
    site.kube.copied(&test.name, &image.reference, START)?;
    let mut without = Duration::MAX;
    for number in 0..3 {
        without = without.min(start_time(
            site,
            &test,
            &format!("without-{number}"),
            &image,
            node,
        )?);
    }
    site.private.fault(&json!({"kind": "hang"}))?;
    let mut with = Ok(Duration::MAX);
    for number in 0..3 {
        let one = start_time(site, &test, &format!("with-{number}"), &image, node);
        with = with.and_then(|best| one.map(|one| best.min(one)));
    }
    site.private.heal()?;
    let with = with.context("a cached image while the upstream hangs")?;
    println!(
        "  best of three: {:.1} s, with a hanging upstream {:.1} s",
        without.as_secs_f64(),
        with.as_secs_f64()
    );
    ensure!(
        with < without + MAX_DELAY,
        "{:.1} s with a hanging upstream, {:.1} s without",
        with.as_secs_f64(),
        without.as_secs_f64()
    );
    Ok(())
}

pub(super) fn wrong_bytes_are_never_visible(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let image = site.push(&site.private, "team/wrong", 2, 1 << 18)?;
    site.private
        .fault(&json!({"kind": "wrong_bytes", "path": image.last_layer}))?;
    let test = site.namespace()?;
    test.create(&Pod::new("app", &image.reference).pull_secrets(&[SECRET]))?;
    let result = eventually(Duration::from_secs(30), || {
        let fetches = site.private.blob_fetches(&image.repository)?;
        ensure!(
            fetches
                .get(&image.last_layer)
                .is_some_and(|count| *count > 0),
            "the spoilt layer was not asked for yet"
        );
        Ok(())
    })
    .and_then(|()| {
        throughout(Duration::from_secs(10), || {
            let pod = site.kube.get(&["pod", "-n", &test.name, "app"])?;
            ensure!(!kube::is_ready(&pod), "the pod runs with wrong bytes");
            let ready = site.kube.artifacts(&test.name, true)?;
            ensure!(ready.is_empty(), "the Artifact is Ready with wrong bytes");
            Ok(())
        })
    });
    site.private.heal()?;
    result?;
    site.kube
        .running(&test.name, "app", START * 2)
        .context("once the upstream is honest")?;
    site.kube.copied(&test.name, &image.reference, START * 2)
}

pub(super) fn a_pod_missed_by_the_webhook_starts_and_is_copied(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let image = site.push(&site.plain, "team/missed", 1, 1000)?;
    let webhook = format!("deployment/{}", site.release.object("webhook"));
    let namespace = site.release.namespace();
    let scale = |replicas: &str| {
        site.kube
            .run(&["scale", "-n", namespace, &webhook, "--replicas", replicas])
    };
    scale("0")?;
    eventually(START, || {
        let pods =
            site.kube
                .list(&["pods", "-n", namespace, "-l", &site.release.part("webhook")])?;
        ensure!(pods.is_empty(), "the webhook still runs");
        Ok(())
    })?;
    let test = site.namespace()?;
    let missed = test
        .create(&Pod::new("app", &image.reference))
        .and_then(|pod| {
            ensure!(
                images(&pod, "containers") == [image.reference.clone()],
                "rewritten without a webhook"
            );
            site.kube.running(&test.name, "app", START)?;
            site.kube.copied(&test.name, &image.reference, START)
        });
    scale("3")?;
    let back = site
        .kube
        .wait_ready(namespace, &site.release.part("webhook"), 3, START);
    missed.context("a pod that the webhook missed")?;
    back.map(drop)
}

/// Slows layers down, so that a copy takes about `seconds`.
fn slow_layers(site: &Site, image: &Pushed, bytes: u64, seconds: u64) -> Result<()> {
    site.private.fault(
        &json!({"kind": "slow", "bytes_per_second": bytes / seconds, "path": image.last_layer}),
    )
}

/// Waits until a fill of the image's last layer is under way.
fn filling(site: &Site, image: &Pushed) -> Result<()> {
    eventually(START, || {
        let fetches = site.private.blob_fetches(&image.repository)?;
        ensure!(
            fetches.contains_key(&image.last_layer),
            "the last layer was not asked for yet: {fetches:?}"
        );
        Ok(())
    })
}

// SPEC 14
pub(super) fn a_killed_controller_copies_nothing_twice(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let bytes = 1 << 20;
    let image = site.push(&site.private, "team/killed", 1, bytes)?;
    slow_layers(site, &image, bytes as u64, 10)?;
    let test = site.namespace()?;
    let result = (|| {
        test.create(&Pod::new("app", &image.reference).pull_secrets(&[SECRET]))?;
        filling(site, &image)?;
        let leader = site.leader()?;
        site.kill_pod(kube::name(&leader))?;
        site.kube.running(&test.name, "app", START * 2)?;
        site.kube.copied(&test.name, &image.reference, START * 2)
    })();
    site.private.heal()?;
    result?;
    site.private.fetched_once(&image.repository, image.blobs)?;
    // And again with nothing under way: a new leader reconciles every Artifact again.
    let leader = site.leader()?;
    site.kill_pod(kube::name(&leader))?;
    eventually(START, || site.leader())?;
    thread::sleep(Duration::from_secs(5));
    site.private.fetched_once(&image.repository, image.blobs)
}

pub(super) fn a_killed_registry_finishes_its_fills(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let bytes = 1 << 20;
    let image = site.push(&site.private, "team/refill", 1, bytes)?;
    slow_layers(site, &image, bytes as u64, 15)?;
    let test = site.namespace()?;
    let namespace = site.release.namespace();
    let result = (|| {
        test.create(&Pod::new("app", &image.reference).pull_secrets(&[SECRET]))?;
        filling(site, &image)?;
        // Which replica fills is its own affair: all of them die.
        for pod in site
            .kube
            .ready_pods(namespace, &site.release.part("registry"))?
        {
            site.kill_pod(kube::name(&pod))?;
        }
        site.private.heal()?;
        site.kube.running(&test.name, "app", START * 2)?;
        site.kube.copied(&test.name, &image.reference, START * 2)
    })();
    site.private.heal()?;
    result?;
    site.release.wait_ready(&site.kube, START)
}
