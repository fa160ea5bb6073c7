//! Private images, where it depends on a pod's namespace whether it is sent to the registry.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::kube::{explain, images};
use crate::objects::Pod;
use crate::site::{Pushed, SECRET, START, Site};
use crate::tests::operator::holdfast;
use crate::wait::eventually;
use crate::world::World;

/// Time until the webhooks know an upstream's answer: status, list, watch.
const ACCESS_TIMEOUT: Duration = Duration::from_secs(60);

/// What the API server would store for a pod, without creating it.
fn admitted(site: &Site, namespace: &str, pod: &Pod) -> Result<String> {
    let pod = site.kube.dry_run(&pod.build(namespace))?;
    Ok(images(&pod, "containers").join(" "))
}

/// What the upstream answered who may have an image of a namespace.
fn access(site: &Site, namespace: &str, source: &str) -> Result<Value> {
    let artifacts = site.kube.list(&["artifacts", "-n", namespace])?;
    let mut all = artifacts.into_iter();
    let found = all.find(|artifact| artifact["spec"]["sourceArtifact"] == source);
    let found = found.with_context(|| format!("no Artifact of {source} in {namespace}"))?;
    Ok(found["status"]["access"]["answer"].clone())
}

pub(super) fn private_images_are_local_for_namespaces_that_proved_them(
    world: &mut World,
) -> Result<()> {
    let program = world.tools.holdfast.clone();
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    site.let_nodes_pull_private_images()?;
    let outcome = site
        .install(&json!({"access": {"privateImages": "namespace"}}))
        .and_then(|()| by_namespace(site, &program));
    site.forget_private_images()?;
    site.installed()?;
    outcome
}

fn by_namespace(site: &Site, program: &PathBuf) -> Result<()> {
    let image = site.push(&site.private, "access/app", 1, 1000)?;
    let public = site.push(&site.plain, "access/public", 1, 1000)?;
    let (team, other) = (site.namespace()?, site.namespace()?);
    site.kube.delete(&["secret", "-n", &other.name, SECRET])?;
    let local = site.local(&image.reference)?;
    let pod = |name: &str, image: &Pushed| Pod::new(name, &image.reference).pull_secrets(&[SECRET]);

    // Nothing is known of the image yet: the node pulls it with the pod's own secret.
    let first = team.create(&pod("first", &image))?;
    let found = images(&first, "containers");
    ensure!(
        found == [image.reference.clone()],
        "the first pod has {found:?}"
    );
    site.kube.running(&team.name, "first", START)?;
    site.kube.copied(&team.name, &image.reference, START)?;
    eventually(ACCESS_TIMEOUT, || {
        let found = admitted(site, &team.name, &pod("second", &image))?;
        ensure!(found == local, "a second pod would have {found}");
        Ok(())
    })?;
    let answer = access(site, &team.name, &image.reference)?;
    ensure!(answer == "proved", "the team's Artifact says {answer}");

    // Without the secret a pod fails as it does without Holdfast, though the image is local.
    let refused = other.create(&Pod::new("app", &image.reference).always())?;
    let found = images(&refused, "containers");
    ensure!(
        found == [image.reference.clone()],
        "the other namespace has {found:?}"
    );
    eventually(START, || {
        let answer = access(site, &other.name, &image.reference)?;
        ensure!(
            answer == "denied",
            "the Artifact of the other namespace says {answer}"
        );
        let pod = site.kube.get(&["pod", "-n", &other.name, "app"])?;
        let why = explain(&pod);
        ensure!(
            why.contains("ImagePull"),
            "the pod of the other namespace: {why}"
        );
        Ok(())
    })?;
    for pod in [pod("app-2", &image), Pod::new("by-hand", &local)] {
        let found = admitted(site, &other.name, &pod)?;
        ensure!(
            found == image.reference,
            "the other namespace would have {found}"
        );
    }
    let kept = admitted(site, &team.name, &Pod::new("by-hand", &local))?;
    ensure!(
        kept == local,
        "the team's own name at the registry became {kept}"
    );
    let report = holdfast(site, program, &["doctor", "-n", &other.name])?;
    let notes = report.json["notes"].to_string();
    ensure!(
        notes.contains(&image.reference),
        "the doctor's notes: {notes}"
    );

    // What the upstream gives everybody is everybody's as soon as one namespace has it.
    team.create(&Pod::new("public", &public.reference))?;
    eventually(ACCESS_TIMEOUT + START, || {
        let found = admitted(site, &other.name, &Pod::new("x", &public.reference))?;
        ensure!(
            found == site.local(&public.reference)?,
            "a public image: {found}"
        );
        Ok(())
    })?;

    // From here on nodes cannot reach the upstream: the second pod's image is the registry's.
    site.forget_private_images()?;
    team.create(&pod("second", &image))?;
    let second = site.kube.running(&team.name, "second", START)?;
    let found = images(&second, "containers");
    ensure!(found == [local.clone()], "the second pod has {found:?}");
    // Healing had a minute and more, and the image is local: it gave the other namespace nothing.
    let refused = site.kube.get(&["pod", "-n", &other.name, "app"])?;
    let found = images(&refused, "containers");
    ensure!(
        found == [image.reference.clone()],
        "the other namespace was given {found:?}"
    );
    Ok(())
}
