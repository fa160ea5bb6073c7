//! Uninstalling while a node is dead and pods still hold rewritten references, with the values that
//! ask for their originals.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::images::unique;
use crate::kube::{self, images};
use crate::objects::{self, Pod};
use crate::site::{Pushed, START, Site};
use crate::wait::eventually;
use crate::world::World;

/// Time until Kubernetes marks a dead node as not ready.
const NODE_LOSS_TIMEOUT: Duration = Duration::from_secs(120);

/// Pods of a Deployment, and one without an owner, kept off the node that will die; another one on
/// it.
fn pods(site: &Site, namespace: &str, image: &Pushed, dead: &str, alive: &str) -> Result<()> {
    let pod = |name: &str| Pod::new(name, &image.reference);
    let elsewhere = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [dead]}]}]}}});
    site.kube.apply(&[
        objects::namespace(namespace, &json!({})),
        pod("web")
            .set("affinity", elsewhere)
            .deployment(namespace, 3),
        pod("bare").on(alive).build(namespace),
        pod("lost").on(dead).build(namespace),
    ])?;
    site.kube.wait_ready(namespace, "app=web", 3, START)?;
    for name in ["bare", "lost"] {
        let pod = site.kube.running(namespace, name, START)?;
        ensure!(
            images(&pod, "containers") == [site.local(&image.reference)?],
            "{name} was not rewritten"
        );
    }
    Ok(())
}

/// What runs on living nodes has its original image, and the owner was not edited.
fn restored(site: &Site, namespace: &str, image: &Pushed, generation: &str) -> Result<()> {
    let web = site
        .kube
        .wait_ready(namespace, "app=web", 3, START)
        .context("the Deployment after uninstalling")?;
    let bare = site.kube.running(namespace, "bare", START)?;
    for pod in web.iter().chain([&bare]) {
        let found = images(pod, "containers");
        ensure!(
            found == [image.reference.clone()],
            "{} still has {found:?}",
            kube::name(pod)
        );
    }
    ensure!(
        self::generation(site, namespace)? == generation,
        "the Deployment was edited"
    );
    Ok(())
}

fn generation(site: &Site, namespace: &str) -> Result<String> {
    let owner = site.kube.get(&["deployment", "-n", namespace, "web"])?;
    Ok(owner["metadata"]["generation"].to_string())
}

fn leave(site: &mut Site, namespace: &str) -> Result<()> {
    let image = site.push(&site.plain, "leave/back", 1, 1000)?;
    let workers = site.workers()?;
    let [dead, alive, ..] = workers.as_slice() else {
        bail!("two workers are needed");
    };
    pods(site, namespace, &image, dead, alive)?;
    let bare = site.kube.get(&["pod", "-n", namespace, "bare"])?;
    let before = generation(site, namespace)?;
    site.cluster.kill_node(dead)?;
    eventually(NODE_LOSS_TIMEOUT, || {
        let ready = site.cluster.status()?.nodes.get(dead).copied();
        ensure!(ready == Some(false), "{dead} is still called Ready");
        Ok(())
    })?;
    site.uninstall()?;
    restored(site, namespace, &image, &before)?;
    let same = site.kube.get(&["pod", "-n", namespace, "bare"])?;
    ensure!(
        same["metadata"]["uid"] == bare["metadata"]["uid"],
        "the pod without an owner was deleted"
    );
    let hooks = site.kube.list(&[
        "mutatingwebhookconfigurations",
        "-l",
        "app.kubernetes.io/instance=holdfast",
    ])?;
    ensure!(hooks.is_empty(), "the webhook's configuration is left");
    // The node comes back with its pod, whose image it holds.
    site.cluster.start_node(dead)?;
    site.recover()?;
    site.kube
        .running(namespace, "lost", START * 2)
        .context("the pod on the node that was dead")
        .map(drop)
}

// SPEC 42, SPEC 80
pub(super) fn uninstalling_past_a_dead_node_gives_pods_their_originals(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.uninstall()?;
    site.install(&json!({"uninstall": {"restore": true}}))?;
    // Not a `Namespace`: it has to outlive the installation, which borrows the site.
    let namespace = format!("e2e-leave-{}", unique()?);
    let left = leave(site, &namespace);
    site.recover()?;
    site.kube
        .delete(&["namespace", &namespace, "--grace-period=1"])?;
    left
}
