//! Nodes: what they keep, what happens when others change them, and how new ones join.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use holdfast_cluster::joining;
use serde_json::{Value, json};

use crate::kube;
use crate::objects::Pod;
use crate::site::{SECRET, START, Site};
use crate::wait::{eventually, throughout};
use crate::world::World;

/// The taint of nodes that wait for their agent.
const TAINT: &str = "holdfast.dev/not-ready";
/// The agents look at their host every 30 s, at their pins every 60 s.
const AGENT_ROUNDS_TIMEOUT: Duration = Duration::from_secs(100);

/// One set of values for all of these tests, so that one installation is enough.
fn values() -> Value {
    json!({"nodeAgent": {"startupTaint": {"enabled": true}}})
}

/// The images that a node's runtime holds, whose names contain `part`: names and whether the
/// kubelet may collect them.
fn pinned(site: &Site, node: &str, part: &str) -> Result<Vec<(String, bool)>> {
    let images = site.runtime_images(node)?;
    Ok(images
        .iter()
        .filter(|image| image["repoTags"].to_string().contains(part))
        .map(|image| (image["repoTags"].to_string(), image["pinned"] == true))
        .collect())
}

fn ensure_pinned(site: &Site, node: &str) -> Result<()> {
    for part in ["holdfast:", "/pause:"] {
        let images = pinned(site, node, part)?;
        ensure!(
            images.iter().any(|(_, pinned)| *pinned),
            "no image {part} is pinned on {node}: {images:?}"
        );
    }
    Ok(())
}

/// Waits for an event of this reason on a node, newer than the `former` ones.
fn wait_for_event(site: &Site, node: &str, reason: &str, former: usize) -> Result<Value> {
    eventually(AGENT_ROUNDS_TIMEOUT, || {
        let events = events(site, node, reason)?;
        ensure!(
            occurrences(&events) > former,
            "no event {reason} on node {node} yet"
        );
        events.last().cloned().context("counted above")
    })
}

fn events(site: &Site, node: &str, reason: &str) -> Result<Vec<Value>> {
    site.kube.list(&[
        "events.events.k8s.io",
        "-n",
        "default",
        &format!("--field-selector=regarding.name={node},reason={reason}"),
    ])
}

/// How often an event occurred: one object may stand for several.
fn occurrences(events: &[Value]) -> usize {
    let counts = events
        .iter()
        .map(|event| event["series"]["count"].as_u64().unwrap_or(1));
    usize::try_from(counts.sum::<u64>()).unwrap_or(usize::MAX)
}

fn count(site: &Site, node: &str, reason: &str) -> Result<usize> {
    Ok(occurrences(&events(site, node, reason)?))
}

fn script(site: &Site, node: &str, script: &str) -> Result<String> {
    site.cluster.node_exec(node, &["sh", "-ec", script])
}

/// Whether the agent of a node is Ready.
fn agent_is_ready(site: &Site, node: &str) -> Result<bool> {
    let agents = site
        .kube
        .ready_pods(site.release.namespace(), &site.release.part("node-agent"))?;
    Ok(agents.iter().any(|pod| kube::node(pod) == node))
}

fn wait_for_agent(site: &Site, node: &str) -> Result<()> {
    eventually(AGENT_ROUNDS_TIMEOUT, || {
        ensure!(
            agent_is_ready(site, node)?,
            "the agent of {node} is not Ready"
        );
        Ok(())
    })
}

pub(super) fn own_and_sandbox_images_are_pinned_on_every_node(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.install(&values())?;
    for node in site.cluster.nodes()? {
        eventually(AGENT_ROUNDS_TIMEOUT, || ensure_pinned(site, &node))?;
    }
    let workers = site.workers()?;
    let node = workers.first().context("no worker")?;
    // An image is pinned while any of its names is.
    let unpin = "for name in $(ctr -n k8s.io images ls -q); do \
                 ctr -n k8s.io images label $name io.cri-containerd.pinned= >/dev/null; done; sleep 1";
    // The agent may be quicker than the look.
    eventually(Duration::from_secs(10), || {
        script(site, node, unpin)?;
        // containerd pins the sandbox's image itself where its configuration names it.
        let images = pinned(site, node, "holdfast:")?;
        ensure!(
            images.iter().all(|(_, pinned)| !pinned),
            "still pinned: {images:?}"
        );
        Ok(())
    })?;
    eventually(AGENT_ROUNDS_TIMEOUT, || ensure_pinned(site, node))
        .context("pins that somebody took away come back")
}

pub(super) fn changed_files_and_a_replaced_runtime_are_repaired_or_reported(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.install(&values())?;
    let workers = site.workers()?;
    let node = workers.first().context("no worker")?;
    let address = site.address()?;
    let folder = format!("/etc/containerd/certs.d/{address}");
    let sums = format!(
        "cd {folder} && sha256sum hosts.toml ca.crt && stat -c '%a %u %n' hosts.toml ca.crt"
    );
    let before = script(site, node, &sums)?;

    let former = count(site, node, "HostFilesRepaired")?;
    script(
        site,
        node,
        &format!(
            "echo 'server = \"https://elsewhere.example\"' > {folder}/hosts.toml; rm {folder}/ca.crt"
        ),
    )?;
    eventually(AGENT_ROUNDS_TIMEOUT, || {
        let now = script(site, node, &sums)?;
        ensure!(now == before, "not repaired yet: {now}");
        Ok(())
    })
    .context("files that somebody changed")?;
    let event = wait_for_event(site, node, "HostFilesRepaired", former)?;
    ensure!(
        event["note"].to_string().contains("hosts.toml"),
        "the event names the file: {event}"
    );
    wait_for_agent(site, node)?;

    // The runtime looks elsewhere now: that is for people to mend, and they hear how.
    let former = count(site, node, "HostNotPrepared")?;
    let config = "/etc/containerd/config.toml";
    script(
        site,
        node,
        &format!(
            "cp -p {config} /root/config.toml; \
             printf '\\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\\n  config_path = \"/opt/certs.d\"\\n' >> {config}; grep -q /opt/certs.d {config}"
        ),
    )?;
    let sum = format!("sha256sum {config}");
    let changed = script(site, node, &sum)?;
    let reported = wait_for_event(site, node, "HostNotPrepared", former).and_then(|event| {
        let note = event["note"].to_string();
        ensure!(
            note.contains("/opt/certs.d"),
            "the event says what was found: {note}"
        );
        eventually(START, || {
            ensure!(!agent_is_ready(site, node)?, "the agent is still Ready");
            Ok(())
        })
    });
    let untouched = script(site, node, &sum)? == changed;
    script(
        site,
        node,
        &format!("cp -p /root/config.toml {config}; rm /root/config.toml"),
    )?;
    reported?;
    ensure!(
        untouched,
        "the runtime's configuration is the operator's alone"
    );
    wait_for_agent(site, node).context("the configuration is as it was")?;

    let former = count(site, node, "RuntimeReplaced")?;
    script(
        site,
        node,
        "systemctl stop containerd; rm -f /var/lib/containerd/*introspection*/uuid; systemctl start containerd",
    )?;
    wait_for_event(site, node, "RuntimeReplaced", former).context("another runtime")?;
    wait_for_agent(site, node)?;

    let former = count(site, node, "JournalDamaged")?;
    let release = format!("{}.{}", site.release.namespace(), site.release.object("x"));
    let release = release.trim_end_matches("-x");
    let journal = format!("/etc/containerd/certs.d/.holdfast/{release}/journal.json");
    script(site, node, &format!("echo nonsense > {journal}"))?;
    wait_for_event(site, node, "JournalDamaged", former)?;
    script(
        site,
        node,
        &format!("grep -q hosts.toml {journal}; rm {journal}.damaged"),
    )
    .context("the journal was written again")?;
    ensure!(script(site, node, &sums)? == before, "the files stayed");
    wait_for_agent(site, node)
}

pub(super) fn a_node_joins_without_uplink_and_takes_no_pod_before_its_agent_pulled(
    world: &mut World,
) -> Result<()> {
    let archive = world.tools.archive.clone();
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.install(&values())?;
    let app = site.push(&site.private, "team/joiner", 2, 1 << 20)?;
    let node = format!("{}-joiner", site.cluster.name());
    joining::start_machine(&mut site.cluster, &node)?;
    let joined = join(site, &node, &app.reference, &archive);
    let healed = site.private.heal().and_then(|()| site.plain.heal());
    let removed = joining::remove_node(&mut site.cluster, &node);
    joined?;
    healed.and(removed)
}

fn join(site: &mut Site, node: &str, image: &str, archive: &std::path::Path) -> Result<()> {
    let test = site.namespace()?;
    let pod = |name: &str| Pod::new(name, image).pull_secrets(&[SECRET]);
    let workers = site.workers()?;
    let first = workers
        .iter()
        .find(|worker| *worker != node)
        .context("no worker")?;
    test.create(&pod("elsewhere").on(first))?;
    site.kube.running(&test.name, "elsewhere", START)?;
    site.kube.copied(&test.name, image, START)?;
    site.private.down()?;
    site.plain.down()?;

    joining::join(&site.cluster, node)?;
    eventually(START, || {
        let object = site.kube.get(&["node", node])?;
        ensure!(kube::condition(&object, "Ready"), "{node} is not Ready");
        Ok(())
    })?;
    test.create(&pod("waits").on(node))?;
    throughout(Duration::from_secs(10), || {
        ensure!(
            taints(site, node)?.contains(&TAINT.to_owned()),
            "{node} is not held back"
        );
        let waits = site.kube.get(&["pod", "-n", &test.name, "waits"])?;
        ensure!(kube::node(&waits).is_empty(), "a pod was bound to {node}");
        Ok(())
    })
    .context("before Holdfast's image is on the node")?;
    ensure!(!agent_is_ready(site, node)?, "an agent without an image");

    site.cluster.load_archive_on(archive, &[node])?;
    eventually(START * 2, || {
        let taints = taints(site, node)?;
        ensure!(
            !taints.contains(&TAINT.to_owned()),
            "{node} is still held back: {taints:?}"
        );
        ensure!(
            agent_is_ready(site, node)?,
            "let go before its agent is Ready"
        );
        Ok(())
    })?;
    site.kube
        .running(&test.name, "waits", START)
        .context("a pod on a node that joined without uplink")?;
    wait_for_event(site, node, "StartupTaintRemoved", 0)?;
    eventually(AGENT_ROUNDS_TIMEOUT, || ensure_pinned(site, node))
}

fn taints(site: &Site, node: &str) -> Result<Vec<String>> {
    let object = site.kube.get(&["node", node])?;
    let taints = object["spec"]["taints"].as_array().cloned();
    Ok(taints
        .unwrap_or_default()
        .iter()
        .filter_map(|taint| taint["key"].as_str().map(str::to_owned))
        .collect())
}

pub(super) fn a_former_address_works_while_a_pod_names_it(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.install(&values())?;
    let image = site.push(&site.private, "team/former", 1, 1 << 16)?;
    let workers = site.workers()?;
    let node = workers.first().context("no worker")?.clone();
    let former = site.address()?;
    let name = {
        let test = site.namespace()?;
        let name = test.name.clone();
        // Not a `Namespace` any more: it outlives the upgrade, which borrows the site.
        std::mem::forget(test);
        name
    };
    let pod = Pod::new("old", &image.reference)
        .pull_secrets(&[SECRET])
        .on(&node)
        .always();
    site.kube.apply(&[pod.build(&name)])?;
    site.kube.running(&name, "old", START)?;
    site.kube.copied(&name, &image.reference, START)?;
    let result = move_address(site, &former, &name, &node, &image.repository);
    site.kube
        .delete(&["namespace", &name, "--grace-period=1"])?;
    result?;
    eventually(Duration::from_secs(240), || {
        let state = site.release.state(&site.kube)?;
        ensure!(
            state["aliases"] == json!([]),
            "aliases: {}",
            state["aliases"]
        );
        for node in site.cluster.nodes()? {
            let left = script(
                site,
                &node,
                &format!("[ -e /etc/containerd/certs.d/{former} ] && echo there || true"),
            )?;
            ensure!(left.is_empty(), "{node} still knows {former}");
        }
        Ok(())
    })
    .context("the former address goes with the last pod that names it")
}

fn move_address(
    site: &mut Site,
    former: &str,
    namespace: &str,
    node: &str,
    repository: &str,
) -> Result<()> {
    let system = site.release.namespace();
    let service = site.release.object("registry");
    site.kube
        .run(&["delete", "service", "-n", system, &service])?;
    // Somebody else gets the address.
    let taken = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "taken", "namespace": namespace},
        "spec": {"clusterIP": former, "ports": [{"port": 443}]},
    });
    site.kube.apply(&[taken])?;
    let mut values = values();
    values["logging"] = json!({"level": "info"});
    site.install(&values)
        .context("an upgrade recreates the Service")?;
    eventually(START, || {
        let state = site.release.state(&site.kube)?;
        ensure!(
            state["registryAddress"] != former && state["aliases"] == json!([former]),
            "the shared state: {state}"
        );
        Ok(())
    })?;
    let nodes = site.cluster.nodes()?.len();
    site.kube.wait_ready(
        system,
        &site.release.part("node-agent"),
        nodes,
        Duration::from_secs(180),
    )?;
    // The image goes from the node, so that its next start needs a pull by the former name.
    let remove = format!(
        "crictl images --output json | grep -o '\"[^\"]*{repository}[^\"]*\"' | xargs -n1 crictl rmi || true"
    );
    script(site, node, &remove)?;
    site.ensure_image_absent(node, repository)?;
    site.kill_process(node, "old")?;
    eventually(START * 2, || {
        let pod = site.kube.get(&["pod", "-n", namespace, "old"])?;
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(
            restarts.as_u64() > Some(0) && kube::is_ready(&pod),
            "{restarts} restarts: {}",
            kube::explain(&pod)
        );
        let image = kube::images(&pod, "containers");
        if !image.iter().all(|image| image.starts_with(former)) {
            bail!("the pod names another address: {image:?}");
        }
        Ok(())
    })
    .context("a pod that names the former address starts again")?;
    let held = site.node_images(node)?;
    ensure!(
        held.iter()
            .any(|image| image.starts_with(former) && image.contains(repository)),
        "the image was not pulled by the former name: {held:?}"
    );
    Ok(())
}

/// How soon a pod starts by the registry's new address: a kubelet renews mounts by itself only
/// after one to two minutes.
const MOVED: Duration = Duration::from_secs(60);

pub(super) fn pulls_work_soon_after_the_registrys_address_changed(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.install(&values())?;
    let image = site.push(&site.private, "team/moved", 1, 1 << 16)?;
    let workers = site.workers()?;
    let node = workers.first().context("no worker")?;
    let former = site.address()?;
    let system = site.release.namespace();
    let name = site.release.object("registry");
    // Only the address changes: an upgrade would restart the registry's pods, with new mounts.
    let mut service = site.kube.get(&["service", "-n", system, &name])?;
    for (part, fields) in [
        (
            "metadata",
            &["uid", "resourceVersion", "creationTimestamp"][..],
        ),
        ("spec", &["clusterIP", "clusterIPs"]),
    ] {
        let part = service[part].as_object_mut().context("a Service")?;
        part.retain(|field, _| !fields.contains(&field.as_str()));
    }
    site.kube.run(&["delete", "service", "-n", system, &name])?;
    site.kube.apply(&[service])?;
    eventually(START, || {
        let address = site.address()?;
        ensure!(
            address != former,
            "the registry's address is still {former}"
        );
        Ok(())
    })?;
    let test = site.namespace()?;
    let pod = Pod::new("moved", &image.reference)
        .pull_secrets(&[SECRET])
        .on(node);
    site.kube.apply(&[pod.build(&test.name)])?;
    let pod = site.kube.running(&test.name, "moved", MOVED);
    let pod = pod.context("a pod starts soon after the change")?;
    let address = site.address()?;
    let images = kube::images(&pod, "containers");
    ensure!(
        images.iter().all(|image| image.starts_with(&address)),
        "the pod names another address than {address}: {images:?}"
    );
    Ok(())
}
