//! Offline, in detail: every shape of a pod starts on a node that never had its images, while no
//! upstream answers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::kube;
use crate::objects::{self, Pod};
use crate::site::{Namespace, Pushed, SECRET, START, Site};
use crate::wait::eventually;
use crate::world::World;

/// A service account that alone brings the private upstream's credential.
const ACCOUNT: &str = "puller";

/// A pod in each shape, and the repositories that it needs.
fn shapes(site: &Site, proof: &str) -> Result<Vec<(&'static str, Pod, Vec<String>)>> {
    let push = |name: &str| site.push(&site.private, &format!("offline/{name}"), 1, 10_000);
    let pod = |name: &str, image: &Pushed| Pod::new(name, &image.reference);
    let always = push("always")?;
    let twice = push("twice")?;
    let account = push("account")?;
    let server = push("server")?;
    let (main, first) = (push("main")?, push("first")?);
    let files = crate::images::files(proof)?;
    let files = site.push_image(&site.private, "offline/files", &files)?;
    let asked = push("asked")?;
    let names = |images: &[&Pushed]| images.iter().map(|it| it.repository.clone()).collect();
    Ok(vec![
        (
            "always",
            pod("always", &always).always().pull_secrets(&[SECRET]),
            names(&[&always]),
        ),
        (
            "twice",
            pod("twice", &twice)
                .and(&twice.by_digest())
                .pull_secrets(&[SECRET]),
            names(&[&twice]),
        ),
        (
            "account",
            pod("account", &account).account(ACCOUNT),
            names(&[&account]),
        ),
        (
            "account-always",
            pod("account-always", &asked).account(ACCOUNT).always(),
            names(&[&asked]),
        ),
        (
            "init",
            pod("init", &main)
                .init(&first.reference)
                .pull_secrets(&[SECRET]),
            names(&[&main, &first]),
        ),
        (
            "volume",
            pod("volume", &server)
                .image_volume(&files.reference)
                .volume_always()
                .arguments(&[])
                .pull_secrets(&[SECRET]),
            names(&[&server, &files]),
        ),
    ])
}

/// Runs every shape once on the first node, so that everything is copied.
fn copied(site: &Site, test: &Namespace<'_>, pods: &[Pod], node: &str) -> Result<()> {
    let all: Vec<_> = pods
        .iter()
        .map(|pod| pod.clone().on(node).build(&test.name))
        .collect();
    site.kube.apply(&all)?;
    for pod in &all {
        site.kube.running(&test.name, kube::name(pod), START)?;
    }
    eventually(START, || {
        let (all, ready) = (
            site.kube.artifacts(&test.name, false)?,
            site.kube.artifacts(&test.name, true)?,
        );
        ensure!(all.len() == ready.len(), "{} of {}", ready.len(), all.len());
        Ok(())
    })
    .context("everything is copied")?;
    for pod in &all {
        let name = kube::name(pod);
        site.kube
            .delete(&["pod", "-n", &test.name, name, "--grace-period=1"])?;
    }
    eventually(START, || {
        let left = site.kube.list(&["pods", "-n", &test.name])?;
        ensure!(left.is_empty(), "{} pods are left", left.len());
        Ok(())
    })
}

/// What a volume's file holds, asked of the pod that serves it.
fn served(site: &Site, pod: &serde_json::Value, node: &str) -> Result<String> {
    let address = pod["status"]["podIP"].as_str().context("no pod IP")?;
    let url = format!("http://{address}:8080/data/proof");
    eventually(Duration::from_secs(20), || {
        site.cluster
            .node_exec(node, &["curl", "--silent", "--fail", &url])
    })
}

// SPEC 12
pub(super) fn every_shape_of_a_pod_starts_on_a_node_that_never_had_it(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let proof = crate::images::unique()?;
    let shapes = shapes(site, &proof)?;
    let test = site.namespace()?;
    site.kube
        .apply(&[objects::service_account(&test.name, ACCOUNT, &[SECRET])])?;
    let workers = site.workers()?;
    let (first, second) = (
        workers.first().context("no worker")?,
        workers.last().context("no worker")?,
    );
    ensure!(first != second, "two workers are needed");
    let pods: Vec<_> = shapes.iter().map(|(_, pod, _)| pod.clone()).collect();
    copied(site, &test, &pods, first)?;
    site.cut_uplink()?;
    let started = (|| {
        for (name, _, repositories) in &shapes {
            for repository in repositories {
                site.ensure_image_absent(second, repository)
                    .context(*name)?;
            }
        }
        let again: Vec<_> = pods
            .iter()
            .map(|pod| pod.clone().on(second).build(&test.name))
            .collect();
        site.kube.apply(&again)?;
        for (name, _, _) in &shapes {
            site.kube
                .running(&test.name, name, START)
                .with_context(|| format!("{name}, without upstream"))?;
        }
        let volume = site.kube.get(&["pod", "-n", &test.name, "volume"])?;
        let found = served(site, &volume, second)?;
        ensure!(found.trim() == proof, "the volume holds {found:?}");
        Ok(())
    })();
    site.mend_uplink()?;
    started
}

// SPEC 5, SPEC 12
pub(super) fn kubectl_debug_works_without_upstream(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let app = site.push(&site.private, "offline/app", 1, 1000)?;
    let tool = site.push(&site.private, "offline/tool", 1, 1000)?;
    let test = site.namespace()?;
    let workers = site.workers()?;
    let (first, second) = (
        workers.first().context("no worker")?,
        workers.last().context("no worker")?,
    );
    let pod = |name: &str, image: &Pushed, node: &str| {
        Pod::new(name, &image.reference)
            .pull_secrets(&[SECRET])
            .on(node)
    };
    test.create(&pod("tool", &tool, first))?;
    test.create(&pod("app", &app, second))?;
    for (name, image) in [("tool", &tool), ("app", &app)] {
        site.kube.running(&test.name, name, START)?;
        site.kube.copied(&test.name, &image.reference, START)?;
    }
    site.cut_uplink()?;
    let debugged = (|| {
        site.ensure_image_absent(second, &tool.repository)?;
        let image = format!("--image={}", tool.reference);
        let debug = ["debug", "app", "-n", &test.name, &image];
        let rest = ["--container=debugger", "--", "/workload", "-sleep"];
        site.kube.run(&[&debug[..], &rest].concat())?;
        eventually(START, || {
            let pod = site.kube.get(&["pod", "-n", &test.name, "app"])?;
            let state = &pod["status"]["ephemeralContainerStatuses"][0]["state"];
            ensure!(state["running"].is_object(), "it does not run: {state}");
            let image = kube::images(&pod, "ephemeralContainers");
            let local = site.local(&tool.reference)?;
            ensure!(image == [local.clone()], "{image:?}, expected {local}");
            Ok(())
        })
    })();
    site.mend_uplink()?;
    debugged
}
