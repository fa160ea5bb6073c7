//! Outages: the uplink, the API server, the whole site's power.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::objects::Pod;
use crate::site::{SECRET, START};
use crate::world::World;

// SPEC 12
pub(super) fn a_node_that_never_had_the_image_starts_it_without_upstream(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let app = site.push(&site.private, "team/outage", 3, 1 << 20)?;
    let init = site.push(&site.private, "team/outage-init", 1, 1000)?;
    let test = site.namespace()?;
    let workers = site.workers()?;
    let (first, second) = (
        workers.first().context("no worker")?,
        workers.get(1).context("one worker")?,
    );
    let pod = |name: &str, node: &str| {
        Pod::new(name, &app.reference)
            .init(&init.reference)
            .pull_secrets(&[SECRET])
            .on(node)
    };
    test.create(&pod("first", first))?;
    site.kube.running(&test.name, "first", START)?;
    for image in [&app, &init] {
        site.kube.copied(&test.name, &image.reference, START)?;
    }
    site.private.down()?;
    if site.needs_nodes().is_ok() {
        site.ensure_image_absent(second, &app.repository)?;
    }
    test.create(&pod("second", second))?;
    let result = site
        .kube
        .running(&test.name, "second", START)
        .context("a pod on another node, without upstream");
    site.private.heal()?;
    result.map(drop)
}

// SPEC 13
pub(super) fn after_the_first_copy_no_node_asks_again(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let image = site.push(&site.private, "team/once", 2, 1 << 20)?;
    let test = site.namespace()?;
    test.create(&Pod::new("first", &image.reference).pull_secrets(&[SECRET]))?;
    site.kube.running(&test.name, "first", START)?;
    site.kube.copied(&test.name, &image.reference, START)?;
    site.private.fetched_once(&image.repository, image.blobs)?;
    site.private.forget()?;
    let workers = site.workers()?;
    for (number, node) in workers.iter().enumerate() {
        test.create(
            &Pod::new(&format!("again-{number}"), &image.reference)
                .pull_secrets(&[SECRET])
                .on(node),
        )?;
    }
    for number in 0..workers.len() {
        site.kube
            .running(&test.name, &format!("again-{number}"), START)?;
    }
    let fetches = site.private.blob_fetches(&image.repository)?;
    ensure!(fetches.is_empty(), "blobs were fetched again: {fetches:?}");
    Ok(())
}

pub(super) fn pulls_go_on_without_the_api_server(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.installed()?;
    let image = site.push(&site.private, "team/headless", 2, 1 << 20)?;
    let test = site.namespace()?;
    let workers = site.workers()?;
    let (first, second) = (
        workers.first().context("no worker")?,
        workers.get(1).context("one worker")?,
    );
    test.create(
        &Pod::new("first", &image.reference)
            .pull_secrets(&[SECRET])
            .on(first),
    )?;
    site.kube.running(&test.name, "first", START)?;
    site.kube.copied(&test.name, &image.reference, START)?;
    let local = site.local(&image.reference)?;
    site.private.down()?;
    site.cluster.kill_api_server()?;
    // As the kubelet does it, on a node that does not have the image.
    let pulled = site
        .ensure_image_absent(second, &image.repository)
        .and_then(|()| site.cluster.node_exec(second, &["crictl", "pull", &local]));
    site.cluster.start_api_server()?;
    site.private.heal()?;
    pulled.context("a pull while the API server is down")?;
    site.recover()?;
    site.release
        .wait_ready(&site.kube, Duration::from_secs(120))
}

pub(super) fn a_site_boots_without_its_uplink(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.installed()?;
    let image = site.push(&site.private, "team/boot", 2, 1 << 20)?;
    let test = site.namespace()?;
    let pod = Pod::new("app", &image.reference)
        .pull_secrets(&[SECRET])
        .always();
    site.kube.apply(&[pod.deployment(&test.name, 2)])?;
    site.kube.wait_ready(&test.name, "app=app", 2, START)?;
    site.private.down()?;
    site.plain.down()?;
    site.cluster.power_off_all()?;
    site.cluster.power_on_all()?;
    let booted = site
        .cluster
        .wait_ready(Duration::from_secs(240))
        .context("the site boots without its uplink");
    let running = booted.and_then(|()| {
        site.kube
            .wait_ready(&test.name, "app=app", 2, START)
            .map(drop)
    });
    site.private.heal()?;
    site.plain.heal()?;
    running
}
