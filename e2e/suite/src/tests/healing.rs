//! Healing: pods that slipped past the webhook, images that only nodes could fetch or hold,
//! controllers that insist.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::kube::images;
use crate::objects::Pod;
use crate::site::{Namespace, SECRET, START, Site};
use crate::wait::{eventually, throughout};
use crate::world::World;

/// A source counts as unfillable after two minutes; then the pod is patched within seconds.
const HEALING_TIMEOUT: Duration = Duration::from_secs(180);
/// Pause of an operator between the deletion of a pod and its next creation.
const OWNER_PAUSE: Duration = Duration::from_secs(5);

/// Takes the webhook away, does something, and brings it back, also after a failure.
pub(super) fn without_webhook<T>(site: &Site, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let namespace = site.release.namespace();
    let webhook = format!("deployment/{}", site.release.object("webhook"));
    let replicas = if site.own { "3" } else { "1" };
    let scale = |replicas: &str| {
        site.kube
            .run(&["scale", "-n", namespace, &webhook, "--replicas", replicas])
    };
    let part = site.release.part("webhook");
    scale("0")?;
    let done = eventually(START, || {
        let pods = site.kube.list(&["pods", "-n", namespace, "-l", &part])?;
        ensure!(pods.is_empty(), "the webhook still runs");
        Ok(())
    })
    .and_then(|()| act());
    scale(replicas)?;
    let back = site
        .kube
        .wait_ready(namespace, &part, replicas.parse()?, START);
    let done = done?;
    back.context("the webhook comes back")?;
    Ok(done)
}

/// The image of the container `app`.
fn image(site: &Site, test: &Namespace<'_>, pod: &str) -> Result<String> {
    let pod = site.kube.get(&["pod", "-n", &test.name, pod])?;
    Ok(images(&pod, "containers").join(" "))
}

fn has_image(site: &Site, test: &Namespace<'_>, pod: &str, expect: &str) -> Result<()> {
    let found = image(site, test, pod)?;
    ensure!(found == expect, "{pod} has {found}, expected {expect}");
    Ok(())
}

/// Waits for an event on a pod.
fn wait_for_event(site: &Site, test: &Namespace<'_>, pod: &str, reason: &str) -> Result<()> {
    let about = format!("involvedObject.name={pod},reason={reason}");
    eventually(START, || {
        let events = site
            .kube
            .list(&["events", "-n", &test.name, "--field-selector", &about])?;
        ensure!(!events.is_empty(), "no event {reason} on {pod}");
        Ok(())
    })
}

pub(super) fn pods_that_slipped_past_the_webhook_start_without_uplink(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let app = site.push(&site.private, "team/slipped", 2, 1 << 20)?;
    let init = site.push(&site.private, "team/slipped-init", 1, 1000)?;
    let test = site.namespace()?;
    let pod = |name: &str| {
        Pod::new(name, &app.reference)
            .init(&init.reference)
            .pull_secrets(&[SECRET])
            .always()
    };
    test.create(&pod("before"))?;
    site.kube.running(&test.name, "before", START)?;
    for image in [&app, &init] {
        site.kube.copied(&test.name, &image.reference, START)?;
    }
    let (local, missed) = (site.local(&app.reference)?, pod("missed"));
    let healed = without_webhook(site, || {
        site.private.down()?;
        test.create(&missed)?;
        has_image(site, &test, "missed", &app.reference)?;
        site.kube.apply(&[pod("many").deployment(&test.name, 4)])?;
        site.kube
            .running(&test.name, "missed", START)
            .context("without webhook and uplink")?;
        site.kube
            .wait_ready(&test.name, "app=many", 4, START)
            .map(drop)
            .context("a Deployment without webhook and uplink")
    });
    site.private.heal()?;
    healed?;
    has_image(site, &test, "missed", &local)?;
    wait_for_event(site, &test, "missed", "ImageHealed")
}

pub(super) fn owned_pods_with_a_missed_image_volume_are_recreated(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let app = site.push(&site.private, "team/volume-app", 1, 1000)?;
    let files = site.push_image(
        &site.private,
        "team/volume-files",
        &crate::images::files("from the upstream\n")?,
    )?;
    let test = site.namespace()?;
    let pod = |name: &str| {
        Pod::new(name, &app.reference)
            .image_volume(&files.reference)
            .pull_secrets(&[SECRET])
    };
    test.create(&pod("before"))?;
    site.kube.running(&test.name, "before", START)?;
    for image in [&app, &files] {
        site.kube.copied(&test.name, &image.reference, START)?;
    }
    let workers = site.workers()?;
    let other = workers.last().context("no worker")?;
    without_webhook(site, || {
        site.private.down()?;
        test.create(&pod("bare").on(other))?;
        site.kube
            .apply(&[pod("owned").on(other).deployment(&test.name, 1)])
    })?;
    let recreated = site
        .kube
        .wait_ready(&test.name, "app=owned", 1, START * 2)
        .context("a pod whose image volume was missed");
    let kept = wait_for_event(site, &test, "bare", "CannotHeal");
    site.private.heal()?;
    recreated?;
    kept
}

pub(super) fn an_image_that_only_nodes_could_fetch_gets_its_original_back(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let app = site.push(&site.private, "team/refused", 1, 1000)?;
    let test = site.namespace()?;
    let local = site.local(&app.reference)?;
    let bare = |name: &str| Pod::new(name, &app.reference);
    // Nobody brings a credential.
    test.create(&bare("app"))?;
    has_image(site, &test, "app", &local)?;
    eventually(HEALING_TIMEOUT, || {
        has_image(site, &test, "app", &app.reference)
    })
    .context("the original comes back")?;
    wait_for_event(site, &test, "app", "ImageRestored")?;
    // The webhook knows it, too.
    eventually(START, || {
        let pod = site.kube.dry_run(&bare("next").build(&test.name))?;
        let found = images(&pod, "containers").join(" ");
        ensure!(
            found == app.reference,
            "a further pod was rewritten: {found}"
        );
        Ok(())
    })?;
    // A credential turns up: everybody is served locally again.
    test.create(&bare("opener").pull_secrets(&[SECRET]))?;
    site.kube.copied(&test.name, &app.reference, START)?;
    for pod in ["opener", "app"] {
        site.kube
            .running(&test.name, pod, START)
            .context("once the image can be filled")?;
        has_image(site, &test, pod, &local)?;
    }
    eventually(START, || {
        let pod = site.kube.dry_run(&bare("later").build(&test.name))?;
        let found = images(&pod, "containers").join(" ");
        ensure!(found == local, "a later pod is not rewritten: {found}");
        Ok(())
    })
}

pub(super) fn a_controller_that_insists_changes_nothing(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let app = site.push(&site.plain, "team/insists", 1, 1000)?;
    let test = site.namespace()?;
    let local = site.local(&app.reference)?;
    test.create(&Pod::new("app", &app.reference))?;
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    let started = id(&site.kube.running(&test.name, "app", START)?);
    let patch =
        json!({"spec": {"containers": [{"name": "app", "image": app.reference}]}}).to_string();
    for _ in 0..4 {
        site.kube
            .run(&["patch", "pod", "-n", &test.name, "app", "-p", &patch])?;
        has_image(site, &test, "app", &local)?;
    }
    throughout(Duration::from_secs(10), || {
        has_image(site, &test, "app", &local)?;
        let now = id(&site.kube.get(&["pod", "-n", &test.name, "app"])?);
        ensure!(now == started, "the container restarted");
        Ok(())
    })
}

/// The same pods with and without Holdfast: what the nodes hold starts, whether the registry can
/// get it or not.
pub(super) fn an_image_that_only_nodes_hold_starts_while_its_upstream_is_away(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let app = site.push(&site.plain, "team/on-nodes", 1, 1000)?;
    for node in site.workers()? {
        site.cluster
            .node_exec(&node, &["crictl", "pull", &app.reference])?;
    }
    let test = site.namespace()?;
    let twins = site.labelled_namespace(&json!({"holdfast.dev/rewrite": "disabled"}))?;
    site.plain.down()?;
    let started = (|| {
        twins.create(&Pod::new("app", &app.reference))?;
        site.kube
            .running(&twins.name, "app", START)
            .context("without Holdfast")?;
        test.create(&Pod::new("app", &app.reference))?;
        site.kube
            .apply(&[Pod::new("many", &app.reference).deployment(&test.name, 3)])?;
        site.kube
            .running(&test.name, "app", START)
            .context("a bare pod")?;
        site.kube
            .wait_ready(&test.name, "app=many", 3, START)
            .context("a Deployment")
    })();
    site.plain.heal()?;
    started?;
    has_image(site, &test, "app", &app.reference)?;
    // Once the registry has a copy, new pods are rewritten.
    site.kube.copied(&test.name, &app.reference, START * 2)?;
    let local = site.local(&app.reference)?;
    eventually(START, || {
        let pod = site
            .kube
            .dry_run(&Pod::new("next", &app.reference).build(&test.name))?;
        let found = images(&pod, "containers").join(" ");
        ensure!(found == local, "a later pod is not rewritten: {found}");
        Ok(())
    })
}

pub(super) fn an_owner_that_compares_images_gets_its_originals(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let app = site.push(&site.plain, "team/compares", 1, 1000)?;
    let test = site.namespace()?;
    site.kube.apply(&[json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "operator", "namespace": test.name},
    })])?;
    let owner = site
        .kube
        .get(&["configmap", "-n", &test.name, "operator"])?;
    let uid = &owner["metadata"]["uid"];
    let mut pod = Pod::new("app", &app.reference).build(&test.name);
    pod["metadata"]["ownerReferences"] = json!([
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "operator", "uid": uid, "controller": true},
    ]);
    // As an operator does: what differs from its wish is deleted and created again.
    let mut deleted = 0;
    loop {
        site.kube.create(&pod)?;
        if image(site, &test, "app")? == app.reference {
            break;
        }
        deleted += 1;
        ensure!(deleted < 4, "the pod is rewritten for the {deleted}th time");
        site.kube
            .run(&["delete", "pod", "-n", &test.name, "app", "--wait"])?;
        // Recognition, the write of the state, and the watch of the webhook.
        std::thread::sleep(OWNER_PAUSE);
    }
    ensure!(deleted == 3, "excluded after {deleted} deletions");
    wait_for_event(site, &test, "operator", "OwnerExcluded")?;
    site.kube.running(&test.name, "app", START)?;
    // Its image is copied nevertheless, and other pods are rewritten.
    site.kube.copied(&test.name, &app.reference, START)?;
    let local = site.local(&app.reference)?;
    let other = site
        .kube
        .dry_run(&Pod::new("other", &app.reference).build(&test.name))?;
    let found = images(&other, "containers").join(" ");
    ensure!(found == local, "another pod is not rewritten: {found}");
    throughout(Duration::from_secs(10), || {
        has_image(site, &test, "app", &app.reference)
    })
}
