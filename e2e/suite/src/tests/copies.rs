//! Copies: credentials, concurrent writers, and who may write under an upstream's name.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::objects::{self, Pod};
use crate::site::{PRIVATE, SECRET, START};
use crate::wait::eventually;
use crate::world::World;

// SPEC 35
pub(super) fn each_pull_secret_is_tried(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let image = site.push(&site.private, "team/secrets", 1, 1000)?;
    let test = site.namespace()?;
    site.kube.apply(&[
        objects::pull_secret(&test.name, "wrong", PRIVATE, "reader", "wrong"),
        objects::pull_secret(&test.name, "elsewhere", "registry.elsewhere.test", "a", "b"),
    ])?;
    test.create(&Pod::new("app", &image.reference).pull_secrets(&[
        "missing",
        "wrong",
        "elsewhere",
        SECRET,
    ]))?;
    site.kube.running(&test.name, "app", START)?;
    site.kube.copied(&test.name, &image.reference, START)
}

// SPEC 36
pub(super) fn concurrent_updates_of_an_artifact_are_kept(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let image = site.push(&site.private, "team/busy", 3, 1 << 20)?;
    let test = site.namespace()?;
    let workers = site.workers()?;
    let pods: Vec<_> = (0..6)
        .map(|number| {
            Pod::new(&format!("app-{number}"), &image.reference)
                .pull_secrets(&[SECRET])
                .on(&workers[number % workers.len()])
        })
        .collect();
    site.kube.apply(
        &pods
            .iter()
            .map(|pod| pod.build(&test.name))
            .collect::<Vec<_>>(),
    )?;
    // Another writer of the same objects, at the same time as webhook and controller.
    let artifact = eventually(START, || {
        let list = site.kube.list(&["artifacts", "-n", &test.name])?;
        list.into_iter().next().context("no Artifact yet")
    })?;
    let name = crate::kube::name(&artifact).to_owned();
    for number in 0..10 {
        let patch =
            json!({"metadata": {"annotations": {format!("e2e.holdfast.dev/{number}"): "kept"}}});
        site.kube.run(&[
            "patch",
            "artifact",
            "-n",
            &test.name,
            &name,
            "--type=merge",
            "--patch",
            &patch.to_string(),
        ])?;
    }
    for number in 0..pods.len() {
        site.kube
            .running(&test.name, &format!("app-{number}"), START)?;
    }
    site.kube.copied(&test.name, &image.reference, START)?;
    eventually(START, || {
        let list = site.kube.list(&["artifacts", "-n", &test.name])?;
        ensure!(list.len() == 1, "{} Artifacts for one image", list.len());
        let kept = (0..10)
            .filter(|number| {
                list[0]["metadata"]["annotations"][format!("e2e.holdfast.dev/{number}")] == "kept"
            })
            .count();
        ensure!(kept == 10, "{kept} of 10 updates were kept");
        ensure!(
            list[0]["status"]["referenceCount"]
                .as_i64()
                .unwrap_or_default()
                >= 1,
            "the reference count is {}",
            list[0]["status"]["referenceCount"]
        );
        Ok(())
    })
}

pub(super) fn clients_cannot_push_under_an_upstreams_name(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let login = site.node_login()?;
    let node = site.workers()?.into_iter().next().context("no worker")?;
    let address = site.address()?;
    let url = |path: &str| format!("https://{address}/v2/{path}");
    let anonymous = site.curl(
        &node,
        &[
            "--request",
            "POST",
            &url(&format!("{PRIVATE}/team/app/blobs/uploads/")),
        ],
    )?;
    ensure!(
        anonymous.0 == 401 || anonymous.0 == 403,
        "an anonymous push was answered with {}: {}",
        anonymous.0,
        anonymous.1
    );
    for (method, path) in [
        ("POST", format!("{PRIVATE}/team/app/blobs/uploads/")),
        ("POST", "localhost/app/blobs/uploads/".to_owned()),
        (
            "POST",
            "registry.example_5000/app/blobs/uploads/".to_owned(),
        ),
        ("PUT", format!("{PRIVATE}/team/app/manifests/1")),
        ("DELETE", format!("{PRIVATE}/team/app/manifests/1")),
    ] {
        let (status, body) = site.curl(
            &node,
            &[
                "--user",
                &login,
                "--request",
                method,
                "--data",
                "",
                &url(&path),
            ],
        )?;
        ensure!(
            status == 403 || status == 405,
            "{method} {path} was answered with {status}: {body}"
        );
        ensure!(
            body.contains("errors"),
            "{method} {path}: the answer is not an error of the distribution API: {body}"
        );
    }
    Ok(())
}

/// Where the quota of a namespace refuses a pod, the webhook has announced its image already.
pub(super) fn the_image_of_a_refused_pod_is_not_copied_and_is_forgotten(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.install(&json!({"controller": {"artifacts": {"undemandedMinutes": 1}}}))?;
    let image = site.push(&site.private, "team/refused", 1, 1000)?;
    let test = site.namespace()?;
    site.kube.apply(&[json!({
        "apiVersion": "v1", "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": test.name},
        "spec": {"hard": {"pods": "0"}},
    })])?;
    let pod = Pod::new("refused", &image.reference).pull_secrets(&[SECRET]);
    eventually(START, || {
        let refused = site.kube.apply(&[pod.build(&test.name)]);
        let why = refused.err().context("the pod was taken")?;
        ensure!(format!("{why:#}").contains("exceeded quota"), "{why:#}");
        Ok(())
    })?;
    eventually(START, || {
        let announced = site.kube.artifacts(&test.name, false)?;
        ensure!(announced == [image.reference.as_str()], "{announced:?}");
        Ok(())
    })?;
    eventually(Duration::from_secs(180), || {
        let left = site.kube.artifacts(&test.name, false)?;
        ensure!(left.is_empty(), "Artifacts are left: {left:?}");
        Ok(())
    })?;
    let asked: Vec<_> = site
        .private
        .requests()?
        .into_keys()
        .filter(|request| request.starts_with("GET ") && request.contains("team/refused"))
        .collect();
    ensure!(asked.is_empty(), "the upstream was asked to {asked:?}");
    Ok(())
}
