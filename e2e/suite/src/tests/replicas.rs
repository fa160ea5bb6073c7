//! Several registry replicas on one volume: pods that pull while replicas and nodes end, in order
//! and not; one copy for many nodes.
//!
//! The upstream is down while pods pull, so everything comes from the replicas.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::kube::{self, node};
use crate::objects::Pod;
use crate::site::{Namespace, Pushed, SECRET, START, Site};
use crate::wait::eventually;
use crate::world::World;

/// What a pull may take when a replica or a node was lost: the kubelet waits 10, 20 and 40 s
/// between its own attempts.
const RETRIES: Duration = Duration::from_secs(180);

/// Pods that each pull an image that their node does not have, made one after another.
struct Load<'a> {
    site: &'a Site,
    test: Namespace<'a>,
    /// All of them in the registry, none on a node.
    images: Vec<Pushed>,
    nodes: Vec<String>,
    made: usize,
}

impl<'a> Load<'a> {
    /// Brings `count` images into the registry, and takes the upstream away.
    fn prepare(site: &'a Site, nodes: Vec<String>, count: usize) -> Result<Self> {
        let repository = format!("team/load-{}", crate::images::unique()?);
        let images = crate::images::siblings(&site.workload, count, 1 << 18)?;
        let images = images
            .iter()
            .enumerate()
            .map(|(number, image)| {
                site.push_as(&site.private, &repository, &format!("{number}"), image)
            })
            .collect::<Result<Vec<_>>>()?;
        let test = site.namespace()?;
        // Pods that no node takes: announced and copied, never pulled.
        let waiting: Vec<_> = images
            .iter()
            .enumerate()
            .map(|(number, image)| {
                Pod::new(&format!("stock-{number}"), &image.reference)
                    .pull_secrets(&[SECRET])
                    .on("nowhere")
                    .build(&test.name)
            })
            .collect();
        site.kube.apply(&waiting)?;
        for image in &images {
            site.kube.copied(&test.name, &image.reference, START)?;
        }
        site.private.down()?;
        Ok(Self {
            site,
            test,
            images,
            nodes,
            made: 0,
        })
    }

    /// Makes the pods of the next `rounds` images: one on each node at a time.
    fn rounds(&mut self, rounds: usize) -> Result<()> {
        for _ in 0..rounds {
            let image = self
                .images
                .get(self.made / self.nodes.len())
                .context("the load needs more images")?;
            let pods: Vec<_> = self
                .nodes
                .iter()
                .enumerate()
                .map(|(number, node)| {
                    Pod::new(&format!("pull-{}", self.made + number), &image.reference)
                        .pull_secrets(&[SECRET])
                        .on(node)
                        .label("load", "pull")
                        .once()
                        .build(&self.test.name)
                })
                .collect();
            self.site.kube.apply(&pods)?;
            self.made += pods.len();
        }
        Ok(())
    }

    /// Whether two more rounds are all that is left.
    fn is_nearly_used_up(&self) -> bool {
        self.made / self.nodes.len() + 2 >= self.images.len()
    }

    /// Waits until every pod has run; returns what the kubelets said of pulls that failed.
    fn finish(&self) -> Result<Vec<String>> {
        let pods = ["pods", "-n", &self.test.name, "-l", "load=pull"];
        eventually(RETRIES, || {
            let pods = self.site.kube.list(&pods)?;
            let waiting: Vec<_> = pods
                .iter()
                .filter(|pod| pod["status"]["phase"] != "Succeeded")
                .map(|pod| format!("{}: {}", kube::name(pod), kube::explain(pod)))
                .collect();
            ensure!(waiting.is_empty(), "{}", waiting.join("\n"));
            ensure!(pods.len() == self.made, "{} pods", pods.len());
            Ok(())
        })?;
        let events = self.site.kube.list(&["events", "-n", &self.test.name])?;
        Ok(events
            .iter()
            .filter(|event| event["reason"] == "Failed" || event["reason"] == "BackOff")
            .map(|event| {
                format!(
                    "{}: {}",
                    event["involvedObject"]["name"].as_str().unwrap_or_default(),
                    event["message"].as_str().unwrap_or_default()
                )
            })
            .collect())
    }
}

/// The registry's ready replicas, which must be three.
fn replicas(site: &Site) -> Result<Vec<serde_json::Value>> {
    site.kube.wait_ready(
        site.release.namespace(),
        &site.release.part("registry"),
        3,
        START,
    )
}

/// A worker that runs a replica, the other workers, and the replica's name.
fn replica_to_stop(site: &Site) -> Result<(String, Vec<String>, String)> {
    let replicas = replicas(site)?;
    let mut workers = site.workers()?;
    let replica = replicas
        .iter()
        .find(|pod| workers.iter().any(|worker| worker == node(pod)))
        .context("no replica runs on a worker")?;
    workers.retain(|worker| worker != node(replica));
    ensure!(!workers.is_empty(), "two workers are needed");
    Ok((
        node(replica).to_owned(),
        workers,
        kube::name(replica).to_owned(),
    ))
}

/// Runs a load; afterwards, also after a failure, the upstream is back and Holdfast is whole.
fn under_load(
    site: &Site,
    nodes: Vec<String>,
    images: usize,
    run: impl FnOnce(&mut Load) -> Result<()>,
) -> Result<Vec<String>> {
    let result = Load::prepare(site, nodes, images).and_then(|mut load| {
        run(&mut load)?;
        let failed = load.finish()?;
        println!(
            "  {} pulls, {} events of failed ones",
            load.made,
            failed.len()
        );
        Ok(failed)
    });
    site.private.heal()?;
    result
}

fn no_failures(failed: &[String]) -> Result<()> {
    ensure!(failed.is_empty(), "pulls failed: {}", failed.join("\n"));
    Ok(())
}

pub(super) fn a_rolling_restart_fails_no_pull(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.installed()?;
    replicas(site)?;
    let namespace = site.release.namespace();
    let deployment = format!("deployment/{}", site.release.object("registry"));
    let before = pod_names(site)?;
    let failed = under_load(site, site.workers()?, 30, |load| {
        load.rounds(1)?;
        site.kube
            .run(&["rollout", "restart", "-n", namespace, &deployment])?;
        // To the end of the restart and a little beyond.
        while !load.is_nearly_used_up() {
            let rolled = [
                "rollout",
                "status",
                "-n",
                namespace,
                &deployment,
                "--watch=false",
            ];
            if site.kube.run(&rolled)?.contains("successfully rolled out") {
                return load.rounds(2);
            }
            load.rounds(1)?;
        }
        bail!("the restart is not over after {} pulls", load.made)
    })?;
    let after = pod_names(site)?;
    ensure!(
        before.iter().all(|name| !after.contains(name)),
        "not every replica was replaced: {before:?}, {after:?}"
    );
    no_failures(&failed)
}

fn pod_names(site: &Site) -> Result<Vec<String>> {
    let pods = replicas(site)?;
    Ok(pods.iter().map(|pod| kube::name(pod).to_owned()).collect())
}

pub(super) fn a_drained_node_fails_no_pull_elsewhere(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.installed()?;
    let (leaving, others, _) = replica_to_stop(site)?;
    let result = under_load(site, others, 12, |load| {
        load.rounds(2)?;
        site.kube.run(&["cordon", &leaving])?;
        load.rounds(1)?;
        site.drain(&leaving)?;
        load.rounds(3)?;
        site.cluster.stop_node(&leaving)?;
        load.rounds(6)
    });
    site.cluster.start_node(&leaving)?;
    site.kube.run(&["uncordon", &leaving])?;
    site.recover()?;
    site.release
        .wait_ready(&site.kube, Duration::from_secs(120))?;
    no_failures(&result?)
}

// SPEC 28
pub(super) fn a_killed_replica_costs_no_more_than_retries(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.installed()?;
    let (on, _, replica) = replica_to_stop(site)?;
    under_load(site, site.workers()?, 8, |load| {
        load.rounds(2)?;
        site.kill_process(&on, &replica)?;
        load.rounds(6)
    })?;
    eventually(START, || {
        let pods = replicas(site)?;
        let killed = pods.iter().find(|pod| kube::name(pod) == replica);
        let restarts = killed.map(|pod| &pod["status"]["containerStatuses"][0]["restartCount"]);
        ensure!(
            restarts.is_some_and(|restarts| restarts.as_u64() >= Some(1)),
            "{replica} was not restarted: {restarts:?}"
        );
        Ok(())
    })
}

// Not SPEC 28: pulls go on, an admission in the moment of the death may be missed.
pub(super) fn a_dead_node_costs_no_more_than_retries(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.installed()?;
    let (dying, others, _) = replica_to_stop(site)?;
    let result = under_load(site, others, 12, |load| {
        load.rounds(2)?;
        site.cluster.kill_node(&dying)?;
        load.rounds(10)
    });
    site.cluster.start_node(&dying)?;
    site.recover()?;
    site.release
        .wait_ready(&site.kube, Duration::from_secs(120))?;
    result.map(drop)
}

// SPEC 28
pub(super) fn a_node_cut_off_costs_no_more_than_retries(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.installed()?;
    let (lost, others, _) = replica_to_stop(site)?;
    let result = under_load(site, others, 12, |load| {
        load.rounds(2)?;
        site.cluster.cut_off(&lost)?;
        load.rounds(10)
    });
    site.cluster.reconnect(&lost)?;
    site.recover()?;
    site.release
        .wait_ready(&site.kube, Duration::from_secs(120))?;
    result.map(drop)
}

// SPEC 13
pub(super) fn a_cold_herd_costs_one_request_a_blob(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let bytes = 4 << 20;
    let image = site.push(&site.private, "team/herd", 3, bytes)?;
    // Slow enough that every node is there before the first copy is whole.
    site.private
        .fault(&json!({"kind": "slow", "bytes_per_second": bytes / 6, "path": image.last_layer}))?;
    let test = site.namespace()?;
    let workers = site.workers()?;
    let pods: Vec<_> = (0..2 * workers.len())
        .map(|number| {
            Pod::new(&format!("app-{number}"), &image.reference)
                .pull_secrets(&[SECRET])
                .on(&workers[number % workers.len()])
                .build(&test.name)
        })
        .collect();
    let result = site.kube.apply(&pods).and_then(|()| {
        (0..pods.len()).try_for_each(|number| {
            site.kube
                .running(&test.name, &format!("app-{number}"), START)
                .map(drop)
        })
    });
    site.private.heal()?;
    result?;
    site.kube.copied(&test.name, &image.reference, START)?;
    site.private.fetched_once(&image.repository, image.blobs)
}
