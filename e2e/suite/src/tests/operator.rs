//! The operator's commands on the real cluster: preload, diff offline, restore, status.

use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::kube::{self, images};
use crate::objects::Pod;
use crate::site::{SECRET, START, Site};
use crate::wait::eventually;
use crate::world::World;

/// How a command ended, and the document that it printed.
pub(super) struct Ended {
    code: Option<i32>,
    pub(super) text: String,
    pub(super) json: Value,
}

impl Ended {
    pub(super) fn expect(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == Some(code),
            "it ended with {:?} instead of {code}: {}",
            self.code,
            self.text
        );
        Ok(self)
    }
}

/// Runs holdfast as an operator does, beside the cluster, and reads the document that it prints.
pub(super) fn holdfast(site: &Site, program: &PathBuf, arguments: &[&str]) -> Result<Ended> {
    let arguments = [arguments, &["-o", "json"]].concat();
    let (output, text) = run(site, program, &arguments)?;
    Ok(Ended {
        code: output.status.code(),
        text,
        json: serde_json::from_slice(&output.stdout).unwrap_or_default(),
    })
}

/// The text that people get.
pub(super) fn table(site: &Site, program: &PathBuf, arguments: &[&str]) -> Result<String> {
    run(site, program, arguments).map(|(_, text)| text)
}

fn run(site: &Site, program: &PathBuf, arguments: &[&str]) -> Result<(Output, String)> {
    let mut command: Command = site.cluster.command(program);
    let output = command.args(arguments).output().context("start holdfast")?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((output, text))
}

pub(super) fn preloaded_images_start_on_a_node_without_their_upstream(
    world: &mut World,
) -> Result<()> {
    let program = world.tools.holdfast.clone();
    let site = world.site()?;
    site.installed()?;
    let image = site.push(&site.plain, "ahead/app", 2, 1 << 20)?;
    let test = site.namespace()?;
    let manifest = std::env::temp_dir().join(format!("{}.yaml", test.name));
    std::fs::write(
        &manifest,
        Pod::new("app", &image.reference)
            .build(&test.name)
            .to_string(),
    )
    .context("write a manifest")?;
    let from = manifest.to_string_lossy().into_owned();
    let arguments = [
        "preload",
        "--from-manifests",
        &from,
        "--wait",
        "--timeout",
        "2m",
    ];
    let first = holdfast(site, &program, &arguments)?.expect(0)?;
    ensure!(
        first.json["images"][0]["local"] == true,
        "not local: {}",
        first.json
    );
    site.kube.copied(&test.name, &image.reference, START)?;
    site.plain.forget()?;
    holdfast(site, &program, &arguments)?.expect(0)?;
    let fetches = site.plain.blob_fetches(&image.repository)?;
    ensure!(
        fetches.is_empty(),
        "preloading again fetched again: {fetches:?}"
    );
    drop(std::fs::remove_file(&manifest));
    site.plain.down()?;
    test.create(&Pod::new("app", &image.reference))?;
    let running = site
        .kube
        .running(&test.name, "app", START)
        .context("a pod of a preloaded image, without its upstream");
    site.plain.heal()?;
    running?;
    // What the upstream does not have is said with the reason.
    let missing = format!("{}-no", image.reference);
    let refused = holdfast(
        site,
        &program,
        &[
            "preload",
            &missing,
            "-n",
            &test.name,
            "--wait",
            "--timeout",
            "90",
        ],
    )?
    .expect(1)?;
    ensure!(
        refused.text.contains("NotFound"),
        "no reason: {}",
        refused.text
    );
    Ok(())
}

// SPEC 12
pub(super) fn diff_offline_says_what_would_not_start(world: &mut World) -> Result<()> {
    let program = world.tools.holdfast.clone();
    let site = world.site()?;
    site.installed()?;
    let image = site.push(&site.private, "diff/app", 1, 1 << 16)?;
    let test = site.namespace()?;
    let pod = Pod::new("app", &image.reference)
        .pull_secrets(&[SECRET])
        .always();
    // The upstream has no such image, and nothing runs that would show it.
    let bad = Pod::new("bad", &format!("{}-no", image.reference))
        .pull_secrets(&[SECRET])
        .deployment(&test.name, 0);
    site.kube.apply(&[pod.deployment(&test.name, 1), bad])?;
    site.kube.wait_ready(&test.name, "app=app", 1, START)?;
    site.kube.copied(&test.name, &image.reference, START)?;
    let diff = ["diff", "offline", "-n", &test.name];
    let answer = holdfast(site, &program, &diff)?.expect(1)?;
    let missing: Vec<_> = answer.json["owners"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|owner| owner["images"][0]["verdict"] == "missing")
        .map(|owner| owner["name"].clone())
        .collect();
    ensure!(missing == ["bad"], "missing: {missing:?}: {}", answer.text);
    site.kube.delete(&["deployment", "-n", &test.name, "bad"])?;
    eventually(START, || {
        holdfast(site, &program, &diff)?.expect(0).map(drop)
    })?;
    // As it said: pods that are recreated without the upstream start.
    site.private.down()?;
    let started = site
        .kube
        .run(&["delete", "pod", "-n", &test.name, "-l", "app=app"])
        .and_then(|_| site.kube.wait_ready(&test.name, "app=app", 1, START));
    site.private.heal()?;
    started?;
    nodes_hold_it_under_the_other_name(site, &program)
}

/// Every node holds an image under the upstream's name, and the registry does not: new pods start
/// under that name, after healing if they were rewritten.
fn nodes_hold_it_under_the_other_name(site: &Site, program: &PathBuf) -> Result<()> {
    let image = site.push(&site.plain, "diff/nodes", 1, 1 << 16)?;
    let out = site.labelled_namespace(&json!({"holdfast.dev/rewrite": "disabled"}))?;
    let pod = Pod::new("nodes", &image.reference);
    site.kube.apply(&[pod.daemon_set(&out.name)])?;
    let nodes = site.workers()?.len();
    site.kube.wait_ready(&out.name, "app=nodes", nodes, START)?;
    site.plain.down()?;
    let test = site.namespace()?;
    let judged = site
        .kube
        .apply(&[pod.deployment(&test.name, 1)])
        .and_then(|()| {
            eventually(START, || {
                let answer = holdfast(site, program, &["diff", "offline", "-n", &test.name])?;
                let answer = answer.expect(0)?;
                let image = &answer.json["owners"][0]["images"][0];
                ensure!(image["verdict"] == "onNodes", "{}", answer.text);
                Ok(())
            })
        })
        .and_then(|()| site.kube.wait_ready(&test.name, "app=nodes", 1, START))
        .map(drop);
    site.plain.heal()?;
    judged
}

pub(super) fn restore_gives_pods_their_originals_and_leaves_owners_as_they_are(
    world: &mut World,
) -> Result<()> {
    let program = world.tools.holdfast.clone();
    let site = world.site()?;
    // Its originals are pulled from the nodes without Holdfast.
    site.needs_nodes()?;
    site.installed()?;
    let image = site.push(&site.plain, "back/app", 1, 1 << 16)?;
    let test = site.namespace()?;
    let pod = Pod::new("app", &image.reference);
    site.kube.apply(&[pod.deployment(&test.name, 2)])?;
    test.create(&Pod::new("bare", &image.reference))?;
    site.kube.wait_ready(&test.name, "app=app", 2, START)?;
    let bare = site.kube.running(&test.name, "bare", START)?;
    ensure!(
        images(&bare, "containers") != [image.reference.clone()],
        "nothing was rewritten"
    );
    let generation = |site: &Site| -> Result<Value> {
        let owner = site.kube.get(&["deployment", "-n", &test.name, "app"])?;
        Ok(owner["metadata"]["generation"].clone())
    };
    let before = generation(site)?;
    let restore = ["restore", "-n", &test.name, "--rate", "120", "--yes"];
    let refused = holdfast(site, &program, &restore)?.expect(2)?;
    ensure!(
        refused.text.contains("--opt-out"),
        "no fix: {}",
        refused.text
    );
    let rest = ["--opt-out", "--wait", "--timeout", "3m"];
    holdfast(site, &program, &[&restore[..], &rest].concat())?.expect(0)?;
    let pods = eventually(START, || {
        let pods = site.kube.list(&["pods", "-n", &test.name])?;
        let gone = pods
            .iter()
            .all(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        ensure!(gone && pods.len() == 3, "{} pods", pods.len());
        Ok(pods)
    })?;
    for pod in &pods {
        ensure!(
            images(pod, "containers") == [image.reference.clone()],
            "{} still has {:?}",
            kube::name(pod),
            images(pod, "containers")
        );
    }
    let same = pods
        .iter()
        .any(|pod| pod["metadata"]["uid"] == bare["metadata"]["uid"]);
    ensure!(same, "the pod without an owner was deleted");
    site.kube.running(&test.name, "bare", START)?;
    ensure!(generation(site)? == before, "the Deployment was edited");
    Ok(())
}

pub(super) fn status_tells_the_registry_the_volume_and_the_images(world: &mut World) -> Result<()> {
    let program = world.tools.holdfast.clone();
    let site = world.site()?;
    site.installed()?;
    let image = site.push(&site.private, "status/app", 1, 1 << 16)?;
    let test = site.namespace()?;
    test.create(&Pod::new("app", &image.reference).pull_secrets(&[SECRET]))?;
    site.kube.copied(&test.name, &image.reference, START)?;
    // Other tests may leave pods of Holdfast on their way.
    let status = eventually(START, || {
        holdfast(site, &program, &["status", "-n", &test.name])?.expect(0)
    })?;
    let json = &status.json;
    ensure!(
        json["registryAddress"] == site.address()?.as_str()
            && json["rewriting"] == true
            && json["images"]["local"] == 1,
        "{json}"
    );
    ensure!(
        json["volume"]["totalBytes"].as_u64().unwrap_or_default() > 0,
        "the volume is not known: {}",
        json["volumeProblem"]
    );
    Ok(())
}
