//! A whole site: more than thirty workloads of every kind from before the installation, then no
//! uplink and no power.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_cluster::oci::Image;
use serde_json::{Value, json};

use crate::images::{self, random, unique};
use crate::kube;
use crate::objects::{self, Pod};
use crate::site::{LOGIN, PRIVATE, Pushed, SECRET, START, Site};
use crate::tests::operator::{Ended, holdfast, table};
use crate::tests::power_cut::{Answers, compare, ensure_variety, excluded_pods};
use crate::upstream::Upstream;
use crate::wait::eventually;
use crate::world::World;

/// A service account that alone brings the private upstream's credential.
const ACCOUNT: &str = "puller";
/// Until everything of the site has started, all at once, on a busy machine.
const ALL_START: Duration = Duration::from_secs(420);
/// Until a CronJob that runs every minute has run.
const NEXT_MINUTE: Duration = Duration::from_secs(180);
/// Images that are prepared.
const IMAGES: usize = 60;

/// One workload: its object, and how many pods of the label `app: NAME` run.
struct Workload {
    name: &'static str,
    pods: usize,
    object: Value,
}

/// The workloads of a site, each with images of its own.
struct SiteWorkloads<'a> {
    site: &'a Site,
    namespace: &'a str,
    images: Vec<Image>,
    workloads: Vec<Workload>,
}

impl<'a> SiteWorkloads<'a> {
    fn new(site: &'a Site, namespace: &'a str) -> Result<Self> {
        Ok(Self {
            site,
            namespace,
            images: images::siblings(&site.workload, IMAGES, 10_000)?,
            workloads: Vec::new(),
        })
    }

    fn push(&mut self, upstream: &Upstream, name: &str) -> Result<Pushed> {
        let image = self.images.pop().context("more images are needed")?;
        self.site
            .push_image(upstream, &format!("site/{name}"), &image)
    }

    /// A pod of an image that anybody may pull.
    fn open(&mut self, name: &str) -> Result<Pod> {
        let image = self.push(&self.site.plain, name)?;
        Ok(Pod::new(name, &image.reference))
    }

    /// A pod of an image for which it names a pull secret.
    fn secret(&mut self, name: &str) -> Result<Pod> {
        let image = self.push(&self.site.private, name)?;
        Ok(Pod::new(name, &image.reference).pull_secrets(&[SECRET]))
    }

    /// A pod of an image for which only its service account has a pull secret.
    fn account(&mut self, name: &str) -> Result<Pod> {
        let image = self.push(&self.site.private, name)?;
        Ok(Pod::new(name, &image.reference).account(ACCOUNT))
    }

    /// A pod with an init container.
    fn init(&mut self, name: &str) -> Result<Pod> {
        let init = self.push(&self.site.plain, &format!("{name}-first"))?;
        Ok(self.open(name)?.init(&init.reference))
    }

    /// A pod with an image volume.
    fn volume(&mut self, name: &str) -> Result<Pod> {
        let files = images::files("from the upstream\n")?;
        let files = self
            .site
            .push_image(&self.site.plain, "site/files", &files)?;
        Ok(self.open(name)?.image_volume(&files.reference))
    }

    /// A pod with one image twice, by tag and by digest.
    fn twice(&mut self, name: &str) -> Result<Pod> {
        let image = self.push(&self.site.plain, name)?;
        Ok(Pod::new(name, &image.reference).and(&image.by_digest()))
    }

    /// A pod with an image without a tag.
    fn untagged(&mut self, name: &str) -> Result<Pod> {
        let image = self.images.pop().context("more images are needed")?;
        let repository = format!("site/{name}-{}", unique()?);
        let pushed = self
            .site
            .push_as(&self.site.plain, &repository, "latest", &image)?;
        Ok(Pod::new(name, pushed.reference.trim_end_matches(":latest")))
    }

    fn add(&mut self, name: &'static str, pods: usize, object: Value) {
        self.workloads.push(Workload { name, pods, object });
    }

    fn deployments(&mut self) -> Result<()> {
        let namespace = self.namespace;
        let digest = self.push(&self.site.plain, "web-digest")?.by_digest();
        let sidecar = self.push(&self.site.plain, "web-sidecar-side")?;
        let pods = [
            ("web", self.open("web")?),
            ("web-init", self.init("web-init")?),
            (
                "web-sidecar",
                self.open("web-sidecar")?.sidecar(&sidecar.reference),
            ),
            ("web-volume", self.volume("web-volume")?),
            (
                "web-volume-always",
                self.volume("web-volume-always")?.volume_always(),
            ),
            ("web-twice", self.twice("web-twice")?),
            ("web-secret", self.secret("web-secret")?),
            ("web-account", self.account("web-account")?),
            (
                "web-account-always",
                self.account("web-account-always")?.always(),
            ),
            ("web-always", self.open("web-always")?.always()),
            ("web-untagged", self.untagged("web-untagged")?.always()),
            ("web-digest", Pod::new("web-digest", &digest)),
        ];
        for (name, pod) in pods {
            self.add(name, 1, pod.deployment(namespace, 1));
        }
        let zero = self.account("web-zero")?.deployment(namespace, 0);
        self.add("web-zero", 0, zero);
        Ok(())
    }

    fn sets(&mut self) -> Result<()> {
        let (namespace, nodes) = (self.namespace, self.site.workers()?.len());
        for (name, pod) in [
            ("set", self.open("set")?),
            ("set-init", self.init("set-init")?.always()),
            ("set-account", self.account("set-account")?),
            ("set-volume", self.volume("set-volume")?),
        ] {
            self.add(name, 1, pod.stateful_set(namespace, 1));
        }
        for (name, pod) in [
            ("daemon", self.init("daemon")?),
            ("daemon-account", self.account("daemon-account")?.always()),
        ] {
            self.add(name, nodes, pod.daemon_set(namespace));
        }
        for (name, pod) in [
            ("rs", self.open("rs")?.always()),
            ("rs-twice", self.twice("rs-twice")?),
            ("rs-secret", self.secret("rs-secret")?),
        ] {
            self.add(name, 1, pod.replica_set(namespace, 1));
        }
        for (name, pod) in [
            ("rc", self.open("rc")?),
            ("rc-init", self.init("rc-init")?),
            ("rc-account", self.account("rc-account")?.always()),
        ] {
            self.add(name, 1, pod.replication_controller(namespace, 1));
        }
        let set = self.open("set-zero")?.stateful_set(namespace, 0);
        self.add("set-zero", 0, set);
        let rs = self.secret("rs-zero")?.replica_set(namespace, 0);
        self.add("rs-zero", 0, rs);
        let rc = self.twice("rc-zero")?.replication_controller(namespace, 0);
        self.add("rc-zero", 0, rc);
        Ok(())
    }

    fn jobs_and_pods(&mut self) -> Result<()> {
        let namespace = self.namespace;
        for (name, pod) in [
            ("job", self.open("job")?),
            ("job-init", self.init("job-init")?),
            ("job-account", self.account("job-account")?.always()),
        ] {
            self.add(name, 1, pod.job(namespace, false));
        }
        for (name, pod) in [
            ("pod", self.open("pod")?),
            ("pod-volume", self.volume("pod-volume")?),
            ("pod-account", self.account("pod-account")?.always()),
            ("pod-twice", self.twice("pod-twice")?),
        ] {
            self.add(name, 1, pod.build(namespace));
        }
        let ended = ["-once"];
        let job = self.open("job-suspended")?.arguments(&ended);
        self.add("job-suspended", 0, job.job(namespace, true));
        let minutely = self.open("minutely")?.arguments(&ended).always();
        self.add(
            "minutely",
            0,
            minutely.cron_job(namespace, "* * * * *", false),
        );
        let asleep = self.account("asleep")?.arguments(&ended);
        self.add("asleep", 0, asleep.cron_job(namespace, "* * * * *", true));
        let yearly = self.init("yearly")?.arguments(&ended);
        self.add("yearly", 0, yearly.cron_job(namespace, "0 0 1 1 *", false));
        Ok(())
    }

    /// Makes everything and waits until it runs.
    fn settle(mut self) -> Result<Vec<Workload>> {
        self.deployments()?;
        self.sets()?;
        self.jobs_and_pods()?;
        let objects: Vec<_> = self.workloads.iter().map(|it| it.object.clone()).collect();
        self.site.kube.apply(&objects)?;
        Ok(self.workloads)
    }
}

/// Waits until the pods of every workload run.
fn all_run(site: &Site, namespace: &str, workloads: &[Workload]) -> Result<()> {
    for workload in workloads.iter().filter(|workload| workload.pods > 0) {
        let label = format!("app={}", workload.name);
        site.kube
            .wait_ready(namespace, &label, workload.pods, ALL_START)?;
    }
    Ok(())
}

/// Names of the owners of which the answer says so of an image.
fn owners(answer: &Ended, verdicts: &[&str]) -> BTreeSet<String> {
    let of = |owner: &Value| {
        let images = owner["images"].as_array();
        images.is_some_and(|images| {
            images
                .iter()
                .any(|image| verdicts.iter().any(|verdict| image["verdict"] == *verdict))
        })
    };
    let owners = answer.json["owners"].as_array();
    let named = owners.into_iter().flatten().filter(|owner| of(owner));
    named
        .filter_map(|owner| owner["name"].as_str().map(str::to_owned))
        .collect()
}

/// Whether an owner has pods with an image volume.
fn has_volume(owner: &str) -> bool {
    owner.ends_with("-volume") || owner.ends_with("-volume-always")
}

/// Waits until everything is said to be local but `nowhere`, then takes that away: nothing would be
/// missing. Image volumes of pods from before the installation cannot change: they start from their
/// nodes, or are not judged.
fn adopted(site: &Site, program: &PathBuf, namespace: &str) -> Result<()> {
    let diff = ["diff", "offline", "-n", namespace];
    let nowhere: BTreeSet<_> = ["nowhere".to_owned()].into();
    let early = holdfast(site, program, &diff)?.expect(1)?;
    println!(
        "  right after the installation {} owners would not start",
        owners(&early, &["missing"]).len()
    );
    eventually(ALL_START, || {
        let answer = holdfast(site, program, &diff)?.expect(1)?;
        let mut absent = owners(&answer, &["onNodes"]);
        absent.retain(|name| !has_volume(name));
        absent.extend(owners(&answer, &["missing"]));
        ensure!(absent == nowhere, "not local: {absent:?}");
        Ok(())
    })
    .context("adoption")?;
    let text = table(site, program, &diff)?;
    ensure!(
        text.contains("nowhere") && text.contains("1 would not start offline"),
        "it does not say so: {text}"
    );
    site.kube
        .delete(&["deployment", "-n", namespace, "nowhere"])?;
    eventually(START, || {
        let answer = holdfast(site, program, &diff)?;
        let missing = owners(&answer, &["missing"]);
        ensure!(missing.is_empty(), "not local: {missing:?}");
        let mut unknown = owners(&answer, &["notJudged"]);
        let answer = answer.expect(if unknown.is_empty() { 0 } else { 2 })?;
        unknown.retain(|name| !has_volume(name));
        ensure!(
            unknown.is_empty(),
            "not judged: {unknown:?}: {}",
            answer.text
        );
        let text = table(site, program, &diff)?;
        let said = !text.contains("would not start");
        ensure!(said, "it does not say so: {text}");
        Ok(())
    })
}

/// Cuts the power of every node, one after the other in any order, and brings it back in another.
pub(super) fn power_cut(site: &Site) -> Result<()> {
    let mut nodes = site.cluster.nodes()?;
    shuffle(&mut nodes)?;
    println!("  off: {}", nodes.join(", "));
    for node in &nodes {
        site.cluster.kill_node(node)?;
    }
    shuffle(&mut nodes)?;
    println!("  on: {}", nodes.join(", "));
    for node in &nodes {
        site.cluster.start_node(node)?;
        thread::sleep(Duration::from_secs(5));
    }
    Ok(())
}

fn shuffle(nodes: &mut [String]) -> Result<()> {
    for (at, byte) in random(nodes.len())?.into_iter().enumerate() {
        let other = usize::from(byte) % nodes.len();
        nodes.swap(at, other);
    }
    Ok(())
}

/// Jobs that have succeeded, by name.
fn succeeded(site: &Site, namespace: &str) -> Result<BTreeSet<String>> {
    let jobs = site.kube.list(&["jobs", "-n", namespace])?;
    let done = jobs.iter().filter(|job| kube::condition(job, "Complete"));
    Ok(done.map(|job| kube::name(job).to_owned()).collect())
}

/// Scaled-down and suspended workloads start, and running ones scale up.
fn resumes(site: &Site, namespace: &str, before: &BTreeSet<String>) -> Result<()> {
    for (what, replicas) in [
        ("deployment/web-zero", "2"),
        ("deployment/web-secret", "3"),
        ("deployment/web-volume", "2"),
        ("statefulset/set-zero", "1"),
        ("statefulset/set-account", "2"),
        ("replicaset/rs-zero", "1"),
        ("replicationcontroller/rc-zero", "1"),
    ] {
        site.kube
            .run(&["scale", "-n", namespace, what, "--replicas", replicas])?;
    }
    let resume = json!({"spec": {"suspend": false}}).to_string();
    for what in ["cronjob/asleep", "job/job-suspended"] {
        site.kube.run(&[
            "patch",
            "-n",
            namespace,
            what,
            "--type=merge",
            "-p",
            &resume,
        ])?;
    }
    let by_hand = ["create", "job", "by-hand", "-n", namespace];
    site.kube
        .run(&[&by_hand[..], &["--from=cronjob/yearly"]].concat())?;
    for (name, pods) in [
        ("web-zero", 2),
        ("web-secret", 3),
        ("web-volume", 2),
        ("set-zero", 1),
        ("set-account", 2),
        ("rs-zero", 1),
        ("rc-zero", 1),
    ] {
        let label = format!("app={name}");
        site.kube
            .wait_ready(namespace, &label, pods, START * 2)
            .context("a scale-up")?;
    }
    eventually(NEXT_MINUTE, || {
        let done = succeeded(site, namespace)?;
        for job in ["minutely", "asleep", "job-suspended", "by-hand"] {
            let new = done.difference(before).any(|name| name.starts_with(job));
            ensure!(new, "no Job {job} has run since: {done:?}");
        }
        Ok(())
    })
    .context("Jobs without uplink")
}

fn whole(site: &mut Site, program: &PathBuf, namespace: &str) -> Result<()> {
    site.kube.apply(&[
        objects::namespace(namespace, &json!({})),
        objects::pull_secret(namespace, SECRET, PRIVATE, LOGIN.0, LOGIN.1),
        objects::service_account(namespace, ACCOUNT, &[SECRET]),
    ])?;
    let workloads = SiteWorkloads::new(site, namespace)?.settle()?;
    let nowhere = format!("{}/site/nowhere:1", site.plain.host);
    site.kube
        .apply(&[Pod::new("nowhere", &nowhere).deployment(namespace, 0)])?;
    all_run(site, namespace, &workloads).context("without Holdfast")?;
    let running = workloads.iter().filter(|it| it.pods > 0).count();
    ensure!(running >= 30, "only {running} workloads run");
    println!(
        "  {running} workloads run, {} sleep",
        workloads.len() - running
    );

    site.installed()?;
    adopted(site, program, namespace)?;
    let left = format!("{namespace}-left");
    excluded_pods(site, &left)?;
    for (name, pods) in [("kept", 2), ("kept-here", 1), ("asks", 1)] {
        let label = format!("app={name}");
        site.kube
            .wait_ready(&left, &label, pods, START)
            .context("a pod that Holdfast leaves")?;
    }
    let answers = [namespace, &left].map(|it| Answers::ask(site, program, it));
    let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
    ensure_variety(&answers)?;
    site.cut_uplink()?;
    power_cut(site)?;
    let power = Instant::now();
    // Some pods were said not to start, so not all pods can be waited for.
    eventually(ALL_START, || {
        let status = site.cluster.status()?;
        let nodes = status.nodes.values().all(|ready| *ready);
        ensure!(status.api_server && nodes, "nodes: {:?}", status.nodes);
        Ok(())
    })
    .context("the site boots without its uplink")?;
    all_run(site, namespace, &workloads).context("after the power cut")?;
    compare(site, &answers, power).context("diff offline")?;
    site.kube
        .delete(&["namespace", &left, "--grace-period=1"])?;
    let before = succeeded(site, namespace)?;
    resumes(site, namespace, &before)
}

// SPEC 6, SPEC 12, SPEC 41
pub(super) fn thirty_workloads_of_every_kind_boot_without_the_uplink(
    world: &mut World,
) -> Result<()> {
    let program = world.tools.holdfast.clone();
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.uninstall()?;
    site.let_nodes_pull_private_images()?;
    // Not a `Namespace`: it has to outlive the installation, which borrows the site.
    let namespace = format!("e2e-site-{}", unique()?);
    let result = whole(site, &program, &namespace);
    if result.is_err() {
        crate::diagnostics::write(site, &failure()?)?;
    }
    site.recover()?;
    site.kube
        .delete(&["namespace", &namespace, "--grace-period=1"])?;
    site.forget_private_images()?;
    result
}

/// What failed is to be seen before everything is put back.
fn failure() -> Result<PathBuf> {
    let folder = crate::tools::Tools::failures()?;
    Ok(Path::new(&folder).join("workloads-before-recovery"))
}
