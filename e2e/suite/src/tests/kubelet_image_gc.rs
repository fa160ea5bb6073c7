//! The kubelet's own collection of images: what it takes, and what it must leave.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::kube;
use crate::objects::Pod;
use crate::site::{SECRET, START, Site};
use crate::wait::eventually;
use crate::world::World;

const CONFIG: &str = "/var/lib/kubelet/config.yaml";
/// The kubelet looks when it starts, and every five minutes.
const COLLECTION_TIMEOUT: Duration = Duration::from_secs(360);

/// Gives the pods of the node agents another affinity, and waits until they have it.
fn set_affinity(site: &Site, affinity: &Value) -> Result<()> {
    let patch = json!([{
        "op": "add", "path": "/spec/template/spec/affinity", "value": affinity,
    }]);
    let set = site.release.object("node-agent");
    let system = site.release.namespace();
    let patch = ["--type=json", "--patch", &patch.to_string()];
    let name = ["patch", "daemonset", "-n", system, &set];
    site.kube.run(&[&name[..], &patch].concat())?;
    let status = ["rollout", "status", "-n", system, "--timeout=180s"];
    let set = format!("daemonset/{set}");
    site.kube.run(&[&status[..], &[&set]].concat()).map(drop)
}

fn affinity(site: &Site) -> Result<Value> {
    let set = site.release.object("node-agent");
    let object = site
        .kube
        .get(&["daemonset", "-n", site.release.namespace(), &set])?;
    Ok(match &object["spec"]["template"]["spec"]["affinity"] {
        Value::Null => json!({}),
        found => found.clone(),
    })
}

fn not_on(node: &str) -> Value {
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchFields": [
            {"key": "metadata.name", "operator": "NotIn", "values": [node]},
        ]}],
    }}})
}

/// The images that nothing on a node uses, whose names contain `part`.
fn unused(site: &Site, node: &str, part: &str) -> Result<usize> {
    for pod in site.kube.list(&[
        "pods",
        "--all-namespaces",
        &format!("--field-selector=spec.nodeName={node}"),
    ])? {
        let images = [
            kube::images(&pod, "containers"),
            kube::images(&pod, "initContainers"),
        ]
        .concat();
        if images.iter().any(|image| image.contains(part)) {
            bail!("{} still uses {part}", kube::name(&pod));
        }
    }
    held(site, node, part)
}

fn held(site: &Site, node: &str, part: &str) -> Result<usize> {
    let images = site.node_images(node)?;
    Ok(images.iter().filter(|image| image.contains(part)).count())
}

pub(super) fn own_images_outlive_the_kubelets_collection(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.installed()?;
    let workers = site.workers()?;
    let node = workers.last().context("no worker")?.clone();
    let image = site.push(&site.private, "team/unused", 1, 1 << 16)?;
    {
        let test = site.namespace()?;
        test.create(
            &Pod::new("app", &image.reference)
                .pull_secrets(&[SECRET])
                .on(&node),
        )?;
        site.kube.running(&test.name, "app", START)?;
    }
    let own = affinity(site)?;
    site.kube.run(&["cordon", &node])?;
    let result = collect(site, &node, &image.repository);
    let restored = site.cluster.node_exec(
        &node,
        &[
            "sh",
            "-ec",
            &format!("[ ! -e {CONFIG}.before ] || {{ mv {CONFIG}.before {CONFIG}; systemctl restart kubelet; }}"),
        ],
    );
    set_affinity(site, &own)?;
    site.kube.run(&["uncordon", &node])?;
    restored?;
    site.release.wait_ready(&site.kube, START * 2)?;
    result
}

/// Lets the kubelet of a node collect all that it may, while nothing of Holdfast runs there.
fn collect(site: &Site, node: &str, repository: &str) -> Result<()> {
    site.drain(node)?;
    set_affinity(site, &not_on(node))?;
    let own = eventually(START, || {
        let own = unused(site, node, "holdfast:")?;
        ensure!(
            unused(site, node, repository)? > 0,
            "no image to be collected"
        );
        Ok(own)
    })?;
    ensure!(own > 0, "Holdfast's image is not on {node}");
    let pause = held(site, node, "/pause:")?;
    let script = format!(
        "cp -p {CONFIG} {CONFIG}.before; \
         sed -i -E '/^image(GC|MinimumGC|MaximumGC)/d' {CONFIG}; \
         printf 'imageGCHighThresholdPercent: 2\\nimageGCLowThresholdPercent: 1\\nimageMinimumGCAge: 1s\\n' >> {CONFIG}; \
         systemctl restart kubelet"
    );
    site.cluster.node_exec(node, &["sh", "-ec", &script])?;
    eventually(COLLECTION_TIMEOUT, || {
        ensure!(
            held(site, node, repository)? == 0,
            "the kubelet of {node} has not collected anything yet"
        );
        Ok(())
    })?;
    let left = [held(site, node, "holdfast:")?, held(site, node, "/pause:")?];
    ensure!(
        left == [own, pause],
        "of {own} names of Holdfast's image and {pause} of the pause image {left:?} were left"
    );
    Ok(())
}
