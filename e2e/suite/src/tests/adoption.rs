//! Adoption: workloads that were there before Holdfast, whatever makes their pods, start without
//! the uplink.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::kube::{self, images};
use crate::objects::{self, Pod};
use crate::site::{Pushed, START, Site};
use crate::wait::eventually;
use crate::world::World;

/// Until a CronJob that runs every minute has run.
const NEXT_MINUTE: Duration = Duration::from_secs(150);

/// An image of its own for everything that makes pods, in the upstream that nodes know without
/// Holdfast.
struct Images {
    web: Pushed,
    web_before: Pushed,
    asleep: Pushed,
    set: Pushed,
    daemon: Pushed,
    controller: Pushed,
    nightly: Pushed,
    waiting_job: Pushed,
}

impl Images {
    fn push(site: &Site) -> Result<Self> {
        let push = |name: &str| site.push(&site.plain, &format!("adopt/{name}"), 1, 10_000);
        Ok(Self {
            web: push("web")?,
            web_before: push("web-before")?,
            asleep: push("asleep")?,
            set: push("set")?,
            daemon: push("daemon")?,
            controller: push("controller")?,
            nightly: push("nightly")?,
            waiting_job: push("waiting-job")?,
        })
    }

    fn all(&self) -> [&Pushed; 8] {
        [
            &self.web,
            &self.web_before,
            &self.asleep,
            &self.set,
            &self.daemon,
            &self.controller,
            &self.nightly,
            &self.waiting_job,
        ]
    }
}

/// One of each kind; what can sleep sleeps.
fn workloads(namespace: &str, images: &Images) -> Vec<Value> {
    let pod = |name: &str, image: &Pushed| Pod::new(name, &image.reference);
    let once = |name: &str, image: &Pushed| pod(name, image).arguments(&["-once"]);
    vec![
        pod("web", &images.web_before).deployment(namespace, 1),
        pod("asleep", &images.asleep).deployment(namespace, 0),
        pod("set", &images.set).stateful_set(namespace, 0),
        pod("daemon", &images.daemon).daemon_set(namespace),
        pod("controller", &images.controller).replication_controller(namespace, 0),
        once("nightly", &images.nightly).cron_job(namespace, "* * * * *", true),
        once("waiting-job", &images.waiting_job).job(namespace, true),
    ]
}

/// Waits for a ready pod of a label whose image is exactly this reference.
fn runs(site: &Site, namespace: &str, label: &str, reference: &str) -> Result<()> {
    eventually(START, || {
        let pods = site.kube.ready_pods(namespace, label)?;
        let found = pods
            .iter()
            .any(|pod| images(pod, "containers") == [reference]);
        let all = site.kube.list(&["pods", "-n", namespace, "-l", label])?;
        let why: Vec<_> = all
            .iter()
            .map(|pod| format!("{:?} {}", images(pod, "containers"), kube::explain(pod)))
            .collect();
        ensure!(
            found,
            "no ready pod of {label} runs {reference}: {}",
            why.join("; ")
        );
        Ok(())
    })
}

/// Waits until a Job whose name begins so has succeeded.
fn succeeded(site: &Site, namespace: &str, prefix: &str, limit: Duration) -> Result<()> {
    eventually(limit, || {
        let jobs = site.kube.list(&["jobs", "-n", namespace])?;
        let done = jobs.iter().any(|job| {
            kube::name(job).starts_with(prefix) && job["status"]["succeeded"].as_i64() >= Some(1)
        });
        let pods = site.kube.list(&["pods", "-n", namespace])?;
        let why: Vec<_> = pods
            .iter()
            .map(|pod| format!("{}: {}", kube::name(pod), kube::explain(pod)))
            .collect();
        ensure!(done, "no Job {prefix} has succeeded; {}", why.join("; "));
        Ok(())
    })
}

/// Starts everything that slept, and rolls back, while no upstream answers.
fn wake_everything(site: &Site, namespace: &str, images: &Images) -> Result<()> {
    let scale = |what: &str| {
        site.kube
            .run(&["scale", "-n", namespace, what, "--replicas=1"])
            .map(drop)
    };
    let resume = |what: &str| {
        let patch = json!({"spec": {"suspend": false}}).to_string();
        site.kube
            .run(&[
                "patch",
                "-n",
                namespace,
                what,
                "--type=merge",
                "--patch",
                &patch,
            ])
            .map(drop)
    };
    for what in [
        "deployment/asleep",
        "statefulset/set",
        "replicationcontroller/controller",
    ] {
        scale(what)?;
    }
    resume("cronjob/nightly")?;
    resume("job/waiting-job")?;
    site.kube
        .run(&["rollout", "undo", "-n", namespace, "deployment/web"])?;
    site.kube
        .run(&["rollout", "restart", "-n", namespace, "daemonset/daemon"])?;
    for (label, image, what) in [
        ("app=asleep", &images.asleep, "a Deployment from zero"),
        ("app=set", &images.set, "a StatefulSet from zero"),
        (
            "app=controller",
            &images.controller,
            "a ReplicationController from zero",
        ),
        ("app=web", &images.web_before, "a rollback"),
        ("app=daemon", &images.daemon, "a DaemonSet, restarted"),
    ] {
        runs(site, namespace, label, &site.local(&image.reference)?).context(what)?;
    }
    succeeded(site, namespace, "waiting-job", START).context("a Job that was suspended")?;
    succeeded(site, namespace, "nightly", NEXT_MINUTE).context("a CronJob's next run")
}

// SPEC 6, SPEC 12, SPEC 41
pub(super) fn owners_of_every_kind_from_before_start_without_the_uplink(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.uninstall()?;
    let pushed = Images::push(site)?;
    // Not a `Namespace`: it has to outlive the installation, which borrows the site.
    let name = format!("e2e-{}", pushed.web.repository.replace('/', "-"));
    site.kube.apply(&[objects::namespace(&name, &json!({}))])?;
    site.kube.apply(&workloads(&name, &pushed))?;
    runs(site, &name, "app=web", &pushed.web_before.reference).context("without Holdfast")?;
    runs(site, &name, "app=daemon", &pushed.daemon.reference).context("without Holdfast")?;
    let image = format!("app={}", pushed.web.reference);
    site.kube
        .run(&["set", "image", "-n", &name, "deployment/web", &image])?;
    runs(site, &name, "app=web", &pushed.web.reference)
        .context("a new revision, without Holdfast")?;

    site.installed()?;
    for image in pushed.all() {
        site.kube.copied(&name, &image.reference, START)?;
    }
    site.plain.down()?;
    let woken = wake_everything(site, &name, &pushed).context("the uplink is cut");
    site.plain.heal()?;
    site.kube.delete(&["namespace", &name])?;
    woken
}
