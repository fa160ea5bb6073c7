//! No pod is worse off: the same pods with and without Holdfast ("twins"), images that only nodes
//! hold or can get, and sites that are installed after their uplink failed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_cluster::oci::{ImageBuilder, Layer, write_archive};
use serde_json::{Value, json};

use super::healing::without_webhook;
use super::workloads::power_cut;
use crate::kube::{self, images};
use crate::objects::{self, Pod};
use crate::site::{Namespace, Pushed, START, Site};
use crate::wait::eventually;
use crate::world::World;

/// A pod has started at most this long after its twin without Holdfast.
const TWIN_DELAY: Duration = Duration::from_secs(60);
/// How long twins may take.
const TWIN_START: Duration = Duration::from_secs(120);
/// From the kubelet's first failure to the start under the other name.
const HEALING_TIME: Duration = Duration::from_secs(15);
/// Until the webhook knows what was put on a node: an agent reads its node every minute.
const REPORT_TIME: Duration = Duration::from_secs(90);
/// Until a site with its workloads has booted.
const BOOT: Duration = Duration::from_secs(300);
/// A host that no name service knows. Only the configuration of nodes says where it is.
const NODES_ONLY: &str = "nodes-only.example.test";

/// Labels of a namespace whose pods Holdfast leaves.
fn opted_out() -> Value {
    json!({"holdfast.dev/rewrite": "disabled"})
}

/// Puts an image on nodes as an operator does ahead: without a pull record.
fn preload(site: &Site, nodes: &[&str], image: &Pushed) -> Result<()> {
    for node in nodes {
        let pull = ["crictl", "pull", &image.reference];
        site.cluster.node_exec(node, &pull)?;
    }
    Ok(())
}

/// Whether each container of a pod has started, or the pod has ended well.
fn has_started(pod: &Value) -> bool {
    let statuses = pod["status"]["containerStatuses"].as_array();
    let started = statuses.is_some_and(|statuses| {
        !statuses.is_empty()
            && statuses.iter().all(|status| {
                let ended = &status["state"]["terminated"];
                status["state"]["running"].is_object() || ended["exitCode"] == 0
            })
    });
    started || pod["status"]["phase"] == "Succeeded"
}

/// The names of workloads of which a pod has started: the label `app`.
fn started(site: &Site, namespace: &str) -> Result<Vec<String>> {
    let pods = site.kube.list(&["pods", "-n", namespace])?;
    let started = pods.iter().filter(|pod| has_started(pod));
    let names = started.filter_map(|pod| pod["metadata"]["labels"]["app"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Twins: the same objects in a namespace with rewriting and in one without.
struct Twins<'a> {
    site: &'a Site,
    with: Namespace<'a>,
    without: Namespace<'a>,
    names: Vec<String>,
}

impl<'a> Twins<'a> {
    fn new(site: &'a Site) -> Result<Self> {
        Ok(Self {
            site,
            with: site.namespace()?,
            without: site.labelled_namespace(&opted_out())?,
            names: Vec::new(),
        })
    }

    /// Makes an object, which has this name, and its twin. The twin comes first.
    fn add(&mut self, name: &str, object: impl Fn(&str) -> Value) -> Result<()> {
        self.names.push(name.to_owned());
        let both = [object(&self.without.name), object(&self.with.name)];
        self.site.kube.apply(&both)
    }

    /// Waits until all twins but `never` have started, and checks that each pod has started at
    /// most [`TWIN_DELAY`] after its twin.
    fn compare(&self, never: &[&str]) -> Result<()> {
        let mut seen = [BTreeMap::new(), BTreeMap::new()];
        let begin = Instant::now();
        loop {
            for (seen, namespace) in seen.iter_mut().zip([&self.without, &self.with]) {
                for name in started(self.site, &namespace.name)? {
                    seen.entry(name).or_insert_with(|| begin.elapsed());
                }
            }
            let [without, with] = &seen;
            let late = |name: &&String| match (without.get(*name), with.get(*name)) {
                (Some(twin), None) => begin.elapsed() > *twin + TWIN_DELAY,
                (Some(twin), Some(own)) => *own > *twin + TWIN_DELAY,
                _ => false,
            };
            let late: Vec<_> = self.names.iter().filter(late).collect();
            ensure!(late.is_empty(), "later than their twins: {late:?}");
            let open = |name: &&String| {
                let both = without.contains_key(*name) && with.contains_key(*name);
                !(both || never.contains(&name.as_str()))
            };
            let open: Vec<_> = self.names.iter().filter(open).collect();
            if open.is_empty() {
                break;
            }
            ensure!(begin.elapsed() < TWIN_START, "not started: {open:?}");
            std::thread::sleep(Duration::from_secs(1));
        }
        let [without, with] = &seen;
        for name in never {
            ensure!(!without.contains_key(*name), "the twin of {name} started");
        }
        let delays = with.iter().filter_map(|(name, own)| {
            let delay = own.saturating_sub(*without.get(name)?);
            Some((delay.as_secs(), name))
        });
        let worst = delays.max();
        println!("  {} twins, the latest: {worst:?} s", self.names.len());
        Ok(())
    }
}

/// What pods of preloaded images look like.
fn preloaded(site: &Site, twins: &mut Twins<'_>) -> Result<()> {
    let workers = site.workers()?;
    let all: Vec<&str> = workers.iter().map(String::as_str).collect();
    let [first, ..] = all.as_slice() else {
        anyhow::bail!("no worker");
    };
    let push = |name: &str, nodes: &[&str]| -> Result<Pushed> {
        let image = site.push(&site.plain, &format!("twins/{name}"), 1, 1000)?;
        preload(site, nodes, &image)?;
        Ok(image)
    };
    let everywhere =
        |name: &str| -> Result<Pod> { Ok(Pod::new(name, &push(name, &all)?.reference)) };
    let here = |name: &str| -> Result<Pod> { Ok(Pod::new(name, &push(name, &[first])?.reference)) };
    let never = json!("Never");
    let mut pods = vec![
        ("bare", everywhere("bare")?),
        ("one-node", here("one-node")?.on(first)),
        ("bound", here("bound")?.set("nodeName", json!(first))),
        (
            "init",
            everywhere("init")?.init(&push("init-first", &all)?.reference),
        ),
        (
            "sidecar",
            everywhere("sidecar")?.sidecar(&push("side", &all)?.reference),
        ),
        (
            "two",
            everywhere("two")?.and(&push("two-other", &all)?.reference),
        ),
        ("ends", everywhere("ends")?.once()),
    ];
    let files = site.push_image(&site.plain, "twins/files", &crate::images::files("here\n")?)?;
    preload(site, &all, &files)?;
    pods.push((
        "volume",
        everywhere("volume")?.image_volume(&files.reference),
    ));
    let policies = [
        ("never", everywhere("never")?),
        ("never-here", here("never-here")?.on(first)),
    ];
    let owned = [
        ("deployment", everywhere("deployment")?),
        ("set", everywhere("set")?),
        ("daemon", everywhere("daemon")?),
        ("job", everywhere("job")?),
        ("cron", everywhere("cron")?),
    ];
    site.cut_uplink()?;
    for (name, pod) in pods {
        twins.add(name, |namespace| pod.build(namespace))?;
    }
    for (name, pod) in policies {
        twins.add(name, |namespace| {
            let mut pod = pod.build(namespace);
            pod["spec"]["containers"][0]["imagePullPolicy"] = never.clone();
            pod
        })?;
    }
    let [deployment, set, daemon, job, cron] = owned;
    twins.add(deployment.0, |namespace| {
        deployment.1.deployment(namespace, 2)
    })?;
    twins.add(set.0, |namespace| set.1.stateful_set(namespace, 1))?;
    twins.add(daemon.0, |namespace| daemon.1.daemon_set(namespace))?;
    twins.add(job.0, |namespace| job.1.job(namespace, false))?;
    let once = cron.1.arguments(&["-once"]);
    twins.add(cron.0, |namespace| {
        once.cron_job(namespace, "* * * * *", false)
    })
}

pub(super) fn what_starts_without_holdfast_starts_with_it(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let mut twins = Twins::new(site)?;
    let compared = preloaded(site, &mut twins).and_then(|()| twins.compare(&[]));
    site.mend_uplink()?;
    compared.context("images on nodes, the uplink is cut")
}

/// Images on all nodes, and upstreams that fail in every way that a registry can fail.
pub(super) fn images_on_nodes_start_however_their_upstream_fails(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let workers = site.workers()?;
    let nodes: Vec<&str> = workers.iter().map(String::as_str).collect();
    let error = |status: u16| json!({"kind": "error", "status": status});
    for (name, fault) in [
        ("down", json!({"kind": "down"})),
        ("hangs", json!({"kind": "hang"})),
        ("refuses", error(401)),
        ("forbids", error(403)),
        ("lost", error(404)),
        ("broken", error(500)),
        ("limits", json!({"kind": "too_many", "retry_after": 60})),
    ] {
        let held = site.push(&site.plain, &format!("fails/{name}"), 1, 1000)?;
        let absent = site.push(&site.plain, &format!("fails/{name}-absent"), 1, 1000)?;
        preload(site, &nodes, &held)?;
        let mut twins = Twins::new(site)?;
        site.plain.fault(&fault)?;
        let compared = (|| {
            twins.add("held", |it| Pod::new("held", &held.reference).build(it))?;
            let many = Pod::new("many", &held.reference);
            twins.add("many", |it| many.deployment(it, 2))?;
            twins.add("absent", |it| {
                Pod::new("absent", &absent.reference).build(it)
            })?;
            twins.compare(&["absent"])
        })();
        site.plain.heal()?;
        compared.with_context(|| format!("the upstream: {name}"))?;
    }
    Ok(())
}

/// The webhook knows from the node agents which names start on nodes, and prefers the registry's as
/// soon as there is a copy.
pub(super) fn a_pod_keeps_a_name_that_its_nodes_start(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let image = site.push(&site.plain, "known/app", 1, 1000)?;
    let local = site.local(&image.reference)?;
    let test = site.namespace()?;
    let admitted = || -> Result<String> {
        let pod = Pod::new("app", &image.reference).build(&test.name);
        Ok(images(&site.kube.dry_run(&pod)?, "containers").join(" "))
    };
    let found = admitted()?;
    ensure!(found == local, "on no node, and {found}");
    let workers = site.workers()?;
    let nodes: Vec<&str> = workers.iter().map(String::as_str).collect();
    preload(site, &nodes, &image)?;
    eventually(REPORT_TIME, || {
        let found = admitted()?;
        ensure!(found == image.reference, "on all workers, and {found}");
        Ok(())
    })?;
    let first = test.create(&Pod::new("first", &image.reference))?;
    ensure!(images(&first, "containers") == [image.reference.as_str()]);
    site.kube.running(&test.name, "first", START)?;
    site.kube.copied(&test.name, &image.reference, START)?;
    eventually(START, || {
        let found = admitted()?;
        ensure!(found == local, "copied, and {found}");
        Ok(())
    })
}

/// Nodes whose own configuration leads a host to a mirror of the site.
pub(super) fn a_host_that_only_nodes_know_is_left_to_them(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let nodes = site.cluster.nodes()?;
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let endpoint = &site.plain.endpoint;
    let hosts = format!(
        "server = \"{endpoint}\"\n[host.\"{endpoint}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    );
    site.cluster
        .write_registry_hosts(&nodes, NODES_ONLY, &hosts)?;
    let compared = (|| {
        let mut twins = Twins::new(site)?;
        for name in ["first", "second", "always"] {
            let image = site.push(&site.plain, &format!("mirrored/{name}"), 1, 1000)?;
            let (_, path) = image.reference.split_once('/').context("a host")?;
            let pod = Pod::new(name, &format!("{NODES_ONLY}/{path}"));
            let pod = if name == "always" { pod.always() } else { pod };
            twins.add(name, |namespace| pod.build(namespace))?;
        }
        twins.compare(&[])
    })();
    for node in &nodes {
        let folder = format!("/etc/containerd/certs.d/{NODES_ONLY}");
        site.cluster.node_exec(node, &["rm", "-rf", &folder])?;
    }
    compared
}

/// The image of a network plug-in, which is loaded onto all nodes. No name service knows its host.
const PLUG_IN: &str = "plug-ins.example.test/net/plug-in:1";
/// Namespace and name of the storage provisioner.
const PROVISIONER: [&str; 2] = ["local-path-storage", "local-path-provisioner"];

/// A claim, and a pod that uses it.
fn claimant(namespace: &str, image: &str) -> [Value; 2] {
    let claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "standard",
            "resources": {"requests": {"storage": "1Mi"}},
        },
    });
    let volume = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    let pod = Pod::new("claimant", image).set("volumes", volume);
    [claim, pod.build(namespace)]
}

/// Loads the image of a plug-in onto all nodes, as an installer does without a registry.
fn load_plug_in(site: &Site) -> Result<()> {
    let program = std::fs::read(&site.workload).context("read the workload program")?;
    let image = ImageBuilder::new()
        .layer(Layer::new().file("workload", 0o755, program))
        .entrypoint(&["/workload"])
        .tag(PLUG_IN)
        .build()?;
    let folder = std::env::temp_dir();
    let archive = folder.join(format!("plug-in-{}.tar", crate::images::unique()?));
    write_archive(&archive, &[image])?;
    let loaded = site.cluster.load_archive(&archive);
    std::fs::remove_file(&archive).context("remove an archive")?;
    loaded
}

/// A pod as a network plug-in has it: no node is ready without it.
fn plug_in(namespace: &str) -> Value {
    Pod::new("plug-in", PLUG_IN)
        .set("hostNetwork", json!(true))
        .set("priorityClassName", json!("system-node-critical"))
        .set("tolerations", json!([{"operator": "Exists"}]))
        .daemon_set(namespace)
}

pub(super) fn a_storage_provisioner_and_a_plug_in_start_from_their_nodes(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.installed()?;
    let image = site.push(&site.plain, "claims/app", 1, 1000)?;
    let test = site.namespace()?;
    test.create(&Pod::new("before", &image.reference))?;
    site.kube.copied(&test.name, &image.reference, START)?;
    let [namespace, name] = PROVISIONER;
    load_plug_in(site)?;
    site.cut_uplink()?;
    let started = (|| {
        // The provisioner itself comes again, with a name that only nodes know.
        let label = format!("app={name}");
        site.kube
            .run(&["delete", "pod", "-n", namespace, "-l", &label])?;
        site.kube
            .wait_ready(namespace, &label, 1, START)
            .context("the storage provisioner")?;
        site.kube.apply(&claimant(&test.name, &image.reference))?;
        site.kube
            .running(&test.name, "claimant", START)
            .context("a pod with a claim")?;
        site.kube.apply(&[plug_in(&test.name)])?;
        let nodes = site.cluster.nodes()?.len();
        site.kube
            .wait_ready(&test.name, "app=plug-in", nodes, START)
            .context("a network plug-in")
    })();
    site.mend_uplink()?;
    started.map(drop)
}

/// What the first container waits for, and how often it was started.
fn waiting(pod: &Value) -> (&str, u64) {
    let status = &pod["status"]["containerStatuses"][0];
    let reason = status["state"]["waiting"]["reason"].as_str();
    (
        reason.unwrap_or_default(),
        status["restartCount"].as_u64().unwrap_or_default(),
    )
}

/// Waits until a pod whose container was killed runs again, and returns the time from the first
/// failure of the kubelet. `None`: the kubelet started it without one.
fn healed(site: &Site, namespace: &str, name: &str) -> Result<Option<Duration>> {
    let mut failed = None;
    let begin = Instant::now();
    loop {
        let pod = site.kube.get(&["pod", "-n", namespace, name])?;
        let (reason, restarts) = waiting(&pod);
        if ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"].contains(&reason) {
            failed.get_or_insert_with(Instant::now);
        }
        if restarts > 0 && kube::is_ready(&pod) {
            return Ok(failed.map(|since| since.elapsed()));
        }
        ensure!(begin.elapsed() < START, "{}", kube::explain(&pod));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// KEP-2535: a pull under the local name leaves a record without the original, so a pod that runs
/// with the original does not come back by itself.
pub(super) fn running_pods_come_back_after_their_pull_record_changed(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let workers = site.workers()?;
    let node = workers.first().context("no worker")?.as_str();
    let image = site.push(&site.plain, "records/app", 1, 1000)?;
    preload(site, &[node], &image)?;
    let test = site.namespace()?;
    let pod = |name: &str| Pod::new(name, &image.reference).on(node);
    without_webhook(site, || {
        test.create(&pod("runs"))?;
        let mut never = pod("never").build(&test.name);
        never["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
        site.kube.create(&never)?;
        for name in ["runs", "never"] {
            site.kube.running(&test.name, name, START)?;
        }
        Ok(())
    })?;
    site.kube.copied(&test.name, &image.reference, START)?;
    let local = site.local(&image.reference)?;
    // The pull that takes the image away from them.
    let taker = eventually(START, || {
        let wish = site.kube.dry_run(&pod("taker").build(&test.name))?;
        let found = images(&wish, "containers").join(" ");
        ensure!(found == local, "not rewritten: {found}");
        test.create(&pod("taker"))
    })?;
    ensure!(images(&taker, "containers") == [local]);
    site.kube.running(&test.name, "taker", START)?;
    site.cut_uplink()?;
    let times: Result<Vec<Option<Duration>>> = (|| {
        let mut times = Vec::new();
        for name in ["runs", "never"] {
            site.kill_process(node, name)?;
            let time = healed(site, &test.name, name).with_context(|| name.to_owned())?;
            println!("  {name}: started {time:?} after the kubelet's first failure");
            times.push(time);
        }
        Ok(times)
    })();
    site.mend_uplink()?;
    let times = times?;
    ensure!(times.iter().any(Option::is_some), "no pull record mattered");
    let late = times.iter().flatten().any(|time| *time > HEALING_TIME);
    ensure!(!late, "healing took {times:?}");
    Ok(())
}

/// Pods that Holdfast leaves run an image that lies on all nodes. A pull under the local name would
/// take it away from them, so other pods of the image keep its original, held or not.
pub(super) fn an_image_that_excluded_pods_need_stays_theirs(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let (all, workers) = (site.cluster.nodes()?, site.workers()?);
    let nodes: Vec<&str> = all.iter().map(String::as_str).collect();
    let node = workers.first().context("no worker")?;
    let image = site.push(&site.plain, "protected/app", 1, 1000)?;
    preload(site, &nodes, &image)?;
    let (test, left) = (site.namespace()?, site.labelled_namespace(&opted_out())?);
    let pod = |name: &str| Pod::new(name, &image.reference).on(node);
    left.create(&pod("runs"))?;
    site.kube.running(&left.name, "runs", START)?;
    // The webhook has to know first what the nodes have: a pod that came before would take it.
    let keeps = || -> Result<()> {
        let next = site.kube.dry_run(&pod("next").build(&test.name))?;
        let found = images(&next, "containers").join(" ");
        ensure!(found == image.reference, "it takes the image away: {found}");
        Ok(())
    };
    eventually(REPORT_TIME, keeps)?;
    test.create(&pod("first"))?;
    site.kube.running(&test.name, "first", START)?;
    site.kube.copied(&test.name, &image.reference, START)?;
    // Longer than the webhook takes to learn of the copy.
    std::thread::sleep(Duration::from_secs(10));
    keeps().context("held")?;
    test.create(&pod("next"))?;
    site.kube.running(&test.name, "next", START)?;
    site.cut_uplink()?;
    let back = site
        .kill_process(node, "runs")
        .and_then(|()| healed(site, &left.name, "runs"));
    site.mend_uplink()?;
    ensure!(back?.is_none(), "the kubelet refused the image");
    Ok(())
}

/// Workloads of every kind whose images lie on all nodes, made before Holdfast.
fn early_workloads(site: &Site, namespace: &str) -> Result<Vec<(&'static str, usize, Value)>> {
    let workers = site.workers()?;
    let nodes: Vec<&str> = workers.iter().map(String::as_str).collect();
    let pod = |name: &str| -> Result<Pod> {
        let image = site.push(&site.plain, &format!("early/{name}"), 1, 1000)?;
        preload(site, &nodes, &image)?;
        Ok(Pod::new(name, &image.reference))
    };
    let init = site.push(&site.plain, "early/first", 1, 1000)?;
    preload(site, &nodes, &init)?;
    Ok(vec![
        ("web", 2, pod("web")?.deployment(namespace, 2)),
        (
            "init",
            1,
            pod("init")?.init(&init.reference).deployment(namespace, 1),
        ),
        ("set", 1, pod("set")?.stateful_set(namespace, 1)),
        ("daemon", nodes.len(), pod("daemon")?.daemon_set(namespace)),
        ("rs", 1, pod("rs")?.replica_set(namespace, 1)),
        ("rc", 1, pod("rc")?.replication_controller(namespace, 1)),
        ("job", 1, pod("job")?.job(namespace, false)),
        ("bare", 1, pod("bare")?.build(namespace)),
    ])
}

fn all_ready(site: &Site, namespace: &str, pods: &[(&str, usize, Value)]) -> Result<()> {
    for (name, count, _) in pods {
        let label = format!("app={name}");
        site.kube.wait_ready(namespace, &label, *count, BOOT)?;
    }
    Ok(())
}

fn early(site: &mut Site, namespace: &str) -> Result<()> {
    site.kube
        .apply(&[objects::namespace(namespace, &json!({}))])?;
    let workloads = early_workloads(site, namespace)?;
    let objects: Vec<_> = workloads.iter().map(|it| it.2.clone()).collect();
    site.kube.apply(&objects)?;
    all_ready(site, namespace, &workloads).context("before the installation")?;
    site.cut_uplink()?;
    site.installed().context("an installation without uplink")?;
    // New pods, which the webhook sees.
    let pods = ["delete", "pod", "-n", namespace, "-l"];
    let new = ["app in (web, set, rs, init)"];
    site.kube.run(&[&pods[..], &new].concat())?;
    all_ready(site, namespace, &workloads).context("new pods without uplink")?;
    power_cut(site)?;
    site.cluster.wait_ready(BOOT).context("the nodes")?;
    all_ready(site, namespace, &workloads).context("after the power cut")
}

pub(super) fn a_site_installed_without_its_uplink_survives_a_power_cut(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.uninstall()?;
    // Not a `Namespace`: it has to outlive the installation, which borrows the site.
    let namespace = format!("e2e-early-{}", crate::images::unique()?);
    let result = early(site, &namespace);
    site.recover()?;
    site.kube
        .delete(&["namespace", &namespace, "--grace-period=1"])?;
    result
}
