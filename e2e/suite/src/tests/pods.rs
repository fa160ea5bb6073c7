//! The life of a pod with Holdfast: rewritten, announced, copied, started.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::kube::images;
use crate::objects::Pod;
use crate::site::{PRIVATE, SECRET, START, Site};
use crate::wait::eventually;
use crate::world::World;

/// The documented command, as it is printed in the documentation.
const DOCUMENTED: &str =
    r#"kubectl get artifacts -A -o jsonpath='{range .items[*]}{.spec.sourceArtifact}{"\n"}{end}'"#;

// SPEC 4, SPEC 5, SPEC 6, SPEC 8, SPEC 13
pub(super) fn private_images_start_from_the_local_registry(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let app = site.push(&site.private, "team/app", 3, 1 << 20)?;
    let init = site.push(&site.private, "team/init", 1, 1000)?;
    let files = site.push_image(
        &site.private,
        "team/files",
        &crate::images::files("from the upstream\n")?,
    )?;
    let test = site.namespace()?;
    let workers = site.workers()?;
    let nodes: Vec<_> = workers.iter().take(2).collect();
    for (number, node) in nodes.iter().enumerate() {
        let pod = Pod::new(&format!("app-{number}"), &app.reference)
            .init(&init.reference)
            .image_volume(&files.reference);
        let stored = test.create(&pod.pull_secrets(&[SECRET]).on(node))?;
        check_rewritten(
            site,
            &stored,
            [&app.reference, &init.reference, &files.reference],
        )?;
    }
    for number in 0..nodes.len() {
        site.kube
            .running(&test.name, &format!("app-{number}"), START)?;
    }
    for pushed in [&app, &init, &files] {
        site.kube.copied(&test.name, &pushed.reference, START)?;
        site.private
            .fetched_once(&pushed.repository, pushed.blobs)?;
    }
    let artifacts = site.kube.list(&["artifacts", "-n", &test.name])?;
    for pushed in [&app, &init, &files] {
        let artifact = artifacts
            .iter()
            .find(|artifact| artifact["spec"]["sourceArtifact"] == pushed.reference);
        let digest = artifact
            .map(|artifact| artifact["status"]["digest"].clone())
            .unwrap_or_default();
        ensure!(
            digest == pushed.digest,
            "{}: the status says {digest}, pushed was {}",
            pushed.reference,
            pushed.digest
        );
    }
    let mut sources = site.kube.artifacts(&test.name, false)?;
    sources.sort();
    let mut expected = [app.reference, init.reference, files.reference];
    expected.sort();
    ensure!(
        sources == expected,
        "Artifacts name {sources:?}, expected one for each of {expected:?}"
    );
    Ok(())
}

fn check_rewritten(site: &Site, pod: &Value, [app, init, volume]: [&String; 3]) -> Result<()> {
    let volumes: Vec<_> = pod["spec"]["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|volume| volume["image"]["reference"].as_str())
        .collect();
    for (what, found, original) in [
        ("container", images(pod, "containers"), app),
        ("init container", images(pod, "initContainers"), init),
        (
            "image volume",
            volumes.into_iter().map(str::to_owned).collect(),
            volume,
        ),
    ] {
        let expected = site.local(original)?;
        ensure!(
            found == [expected.clone()],
            "{what}: {found:?}, expected {expected}"
        );
    }
    let originals = pod["metadata"]["annotations"]["holdfast.dev/original-images"]
        .as_str()
        .context("no annotation with the originals")?;
    let originals: Value = serde_json::from_str(originals).context("the annotation's JSON")?;
    let expected =
        json!({"containers/app": app, "initContainers/prepare": init, "volumes/data": volume});
    ensure!(
        originals == expected,
        "originals {originals}, expected {expected}"
    );
    Ok(())
}

// SPEC 7
pub(super) fn the_documented_command_lists_the_artifacts(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let image = site.push(&site.private, "team/listed", 1, 1000)?;
    let test = site.namespace()?;
    test.create(&Pod::new("app", &image.reference).pull_secrets(&[SECRET]))?;
    site.kube.copied(&test.name, &image.reference, START)?;
    let printed = site.shell(DOCUMENTED)?;
    ensure!(
        printed.lines().any(|line| line == image.reference),
        "{DOCUMENTED} printed {printed:?}"
    );
    ensure!(
        printed
            .lines()
            .all(|line| line.contains('/') && line.contains([':', '@'])),
        "not host/repository:tag, one a line: {printed:?}"
    );
    Ok(())
}

pub(super) fn ephemeral_containers_are_rewritten(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let image = site.push(&site.private, "team/app", 1, 1000)?;
    let tool = site.push(&site.private, "team/debug", 1, 1000)?;
    let test = site.namespace()?;
    test.create(&Pod::new("app", &image.reference).pull_secrets(&[SECRET]))?;
    site.kube.running(&test.name, "app", START)?;
    let patch = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": tool.reference, "args": ["-sleep"]}]}});
    site.kube.run(&[
        "patch",
        "pod",
        "-n",
        &test.name,
        "app",
        "--subresource=ephemeralcontainers",
        "--patch",
        &patch.to_string(),
    ])?;
    let local = site.local(&tool.reference)?;
    eventually(START, || {
        let pod = site.kube.get(&["pod", "-n", &test.name, "app"])?;
        ensure!(
            images(&pod, "ephemeralContainers") == [local.clone()],
            "{:?}, expected {local}",
            images(&pod, "ephemeralContainers")
        );
        let state = &pod["status"]["ephemeralContainerStatuses"][0]["state"];
        ensure!(
            state["running"].is_object(),
            "the ephemeral container does not run: {state}"
        );
        Ok(())
    })?;
    site.kube.copied(&test.name, &tool.reference, START)
}

// SPEC 45
pub(super) fn malformed_references_are_repaired(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let image = site.push(&site.private, "team/app", 1, 1000)?;
    let test = site.namespace()?;
    let local = site.local(&image.reference)?;
    for (number, malformed) in [
        format!("https://{}", image.reference),
        image.reference.replacen('/', "//", 1),
        image.reference.replace("/team/", "/Team/"),
    ]
    .iter()
    .enumerate()
    {
        let name = format!("app-{number}");
        let pod = test.create(&Pod::new(&name, malformed).pull_secrets(&[SECRET]))?;
        ensure!(
            images(&pod, "containers") == [local.clone()],
            "{malformed} became {:?}, expected {local}",
            images(&pod, "containers")
        );
        site.kube
            .running(&test.name, &name, START)
            .with_context(|| malformed.clone())?;
    }
    Ok(())
}

/// Applies the manifest of a bare pod again and again, and sets its original with a patch: no
/// container restarts, and the stored pod does not change.
pub(super) fn a_manifest_applied_twenty_times_restarts_nothing(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let image = site.push(&site.private, "team/again", 1, 1000)?;
    let test = site.namespace()?;
    let manifest = Pod::new("app", &image.reference)
        .pull_secrets(&[SECRET])
        .build(&test.name);
    site.kube.apply(std::slice::from_ref(&manifest))?;
    let started = site.kube.running(&test.name, "app", START)?;
    let local = site.local(&image.reference)?;
    ensure!(images(&started, "containers") == std::slice::from_ref(&local));
    let patch = json!({"spec": {"containers": [{"name": "app", "image": image.reference}]}});
    for _ in 0..20 {
        site.kube.apply(std::slice::from_ref(&manifest))?;
        site.kube.run(&[
            "patch",
            "pod",
            "-n",
            &test.name,
            "app",
            "--patch",
            &patch.to_string(),
        ])?;
    }
    // A kubelet restarts a container whose image changed within seconds.
    std::thread::sleep(Duration::from_secs(5));
    let pod = site.kube.get(&["pod", "-n", &test.name, "app"])?;
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    ensure!(
        images(&pod, "containers") == [local.clone()] && id(&pod) == id(&started),
        "{:?} in {}, before {local} in {}",
        images(&pod, "containers"),
        id(&pod),
        id(&started)
    );
    Ok(())
}

/// A pod with the references and the annotation of another cluster, as a backup restores it.
pub(super) fn a_pod_of_another_cluster_starts_from_this_registry(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let image = site.push(&site.private, "team/moved", 1, 1000)?;
    let test = site.namespace()?;
    let local = site.local(&image.reference)?;
    let elsewhere = local.replacen(&site.address()?, "192.0.2.50", 1);
    ensure!(
        elsewhere != local,
        "{local} does not begin with the address"
    );
    let mut pod = Pod::new("app", &elsewhere)
        .pull_secrets(&[SECRET])
        .build(&test.name);
    let originals = json!({"containers/app": image.reference}).to_string();
    pod["metadata"]["annotations"] = json!({"holdfast.dev/original-images": originals});
    let stored = site.kube.create(&pod)?;
    ensure!(
        images(&stored, "containers") == [local.clone()],
        "{elsewhere} became {:?}, expected {local}",
        images(&stored, "containers")
    );
    site.kube.running(&test.name, "app", START)?;
    site.kube.copied(&test.name, &image.reference, START)
}

pub(super) fn opted_out_pods_keep_their_images(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let image = format!("{PRIVATE}/team/anything:1");
    let test = site.namespace()?;
    let kept = |pod: &Value, why: &str| {
        ensure!(
            images(pod, "containers") == [image.clone()],
            "{why}: {:?}",
            images(pod, "containers")
        );
        Ok(())
    };
    let pod =
        test.create(&Pod::new("labelled", &image).label("holdfast.dev/rewrite", "disabled"))?;
    kept(&pod, "a pod with the label")?;
    let mut never = Pod::new("never", &image).build(&test.name);
    never["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    kept(&site.kube.create(&never)?, "a pod that never pulls")?;
    let out = site.labelled_namespace(&json!({"holdfast.dev/rewrite": "disabled"}))?;
    kept(
        &out.create(&Pod::new("app", &image))?,
        "a namespace with the label",
    )?;
    let dry = site.kube.run(&[
        "run",
        "dry",
        "-n",
        &test.name,
        "--image",
        &image,
        "--dry-run=server",
        "-o",
        "jsonpath={.spec.containers[0].image}",
    ])?;
    ensure!(dry == site.local(&image)?, "a dry run shows {dry}");
    Ok(())
}

pub(super) fn image_volumes_hold_what_the_upstream_has(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let app = site.push(&site.private, "team/server", 1, 1000)?;
    let proof = crate::images::unique()?;
    let files = site.push_image(&site.private, "team/files", &crate::images::files(&proof)?)?;
    let test = site.namespace()?;
    test.create(
        &Pod::new("app", &app.reference)
            .image_volume(&files.reference)
            .arguments(&[])
            .pull_secrets(&[SECRET]),
    )?;
    let pod = site.kube.running(&test.name, "app", START)?;
    let address = pod["status"]["podIP"]
        .as_str()
        .context("no pod IP")?
        .to_owned();
    let node = site.workers()?.into_iter().next().context("no worker")?;
    let found = eventually(Duration::from_secs(20), || {
        site.cluster.node_exec(
            &node,
            &[
                "curl",
                "--silent",
                "--fail",
                &format!("http://{address}:8080/data/proof"),
            ],
        )
    })?;
    ensure!(
        found.trim() == proof,
        "the volume holds {found:?}, expected {proof:?}"
    );
    Ok(())
}
