//! The webhook away for ten minutes while pods come and go and no upstream answers: in the end
//! every pod runs.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::images;
use crate::kube;
use crate::objects::Pod;
use crate::site::{Namespace, Pushed, SECRET, START, Site};
use crate::tests::healing::without_webhook;
use crate::wait::eventually;
use crate::world::World;

/// How long pods are created and deleted without the webhook.
const CHURN_TIME: Duration = Duration::from_secs(600);
/// Time between two changes.
const CHANGE_INTERVAL: Duration = Duration::from_secs(3);
/// Bare pods that live at a time.
const BARE_PODS: usize = 6;
/// Pods of the Deployment, of the `StatefulSet`.
const REPLICAS: (u32, u32) = (4, 2);

/// Images of the churn, all local.
struct Images {
    web: Pushed,
    first: Pushed,
    set: Pushed,
    daemon: Pushed,
    bare: Pushed,
    job: Pushed,
}

impl Images {
    fn push(site: &Site) -> Result<Self> {
        let push = |name: &str| site.push(&site.private, &format!("away/{name}"), 1, 10_000);
        Ok(Self {
            web: push("web")?,
            first: push("first")?,
            set: push("set")?,
            daemon: push("daemon")?,
            bare: push("bare")?,
            job: push("job")?,
        })
    }

    fn all(&self) -> [&Pushed; 6] {
        let Self {
            web,
            first,
            set,
            daemon,
            bare,
            job,
        } = self;
        [web, first, set, daemon, bare, job]
    }

    fn pod(name: &str, image: &Pushed) -> Pod {
        Pod::new(name, &image.reference).pull_secrets(&[SECRET])
    }

    fn bare(&self, number: usize) -> Pod {
        Self::pod(&format!("bare-{number}"), &self.bare).init(&self.first.reference)
    }

    fn job(&self, namespace: &str, number: usize) -> Value {
        let name = format!("job-{number}");
        let pod = Self::pod(&name, &self.job).always();
        pod.arguments(&["-once"]).job(namespace, false)
    }

    /// Everything once while the webhook is there, so that it is copied.
    fn owners(&self, namespace: &str) -> Vec<Value> {
        let web = Self::pod("web", &self.web).init(&self.first.reference);
        vec![
            web.always().deployment(namespace, REPLICAS.0),
            Self::pod("set", &self.set).stateful_set(namespace, REPLICAS.1),
            Self::pod("daemon", &self.daemon).daemon_set(namespace),
            self.bare(0).build(namespace),
            self.job(namespace, 0),
        ]
    }
}

/// What was done while the webhook was away.
#[derive(Default)]
struct Done {
    deleted: usize,
    bare: usize,
    jobs: usize,
    restarts: usize,
}

/// One change: a pod of an owner deleted, a bare pod or a Job made, or a rollout.
fn change(site: &Site, test: &Namespace<'_>, images: &Images, done: &mut Done) -> Result<()> {
    let turn = done.deleted + done.bare + done.jobs + done.restarts;
    match turn % 10 {
        0 | 4 | 7 => {
            done.bare += 1;
            test.create(&images.bare(done.bare))?;
            if let Some(old) = done.bare.checked_sub(BARE_PODS) {
                let name = format!("bare-{old}");
                site.kube
                    .delete(&["pod", "-n", &test.name, &name, "--grace-period=1"])?;
            }
        }
        2 => {
            done.jobs += 1;
            site.kube.apply(&[images.job(&test.name, done.jobs)])?;
        }
        9 if turn % 40 == 9 => {
            done.restarts += 1;
            let web = ["rollout", "restart", "deployment/web", "-n", &test.name];
            site.kube.run(&web)?;
        }
        _ => {
            done.deleted += 1;
            let owned =
                site.kube
                    .list(&["pods", "-n", &test.name, "-l", "app in (web,set,daemon)"])?;
            let chosen = usize::from(images::random(1)?[0]) % owned.len().max(1);
            if let Some(pod) = owned.get(chosen) {
                let name = kube::name(pod);
                site.kube
                    .delete(&["pod", "-n", &test.name, name, "--grace-period=1"])?;
            }
        }
    }
    Ok(())
}

/// Every pod runs, or has run to its end.
fn all_run(site: &Site, test: &Namespace<'_>, nodes: usize, limit: Duration) -> Result<()> {
    for (label, pods) in [
        ("app=web", REPLICAS.0 as usize),
        ("app=set", REPLICAS.1 as usize),
        ("app=daemon", nodes),
    ] {
        site.kube.wait_ready(&test.name, label, pods, limit)?;
    }
    eventually(limit, || {
        let pods = site.kube.list(&["pods", "-n", &test.name])?;
        let waiting: Vec<_> = pods
            .iter()
            .filter(|pod| !kube::is_ready(pod) && pod["status"]["phase"] != "Succeeded")
            .map(|pod| format!("{}: {}", kube::name(pod), kube::explain(pod)))
            .collect();
        ensure!(waiting.is_empty(), "{}", waiting.join("; "));
        Ok(())
    })
}

// SPEC 12
pub(super) fn pods_churn_for_ten_minutes_without_webhook_and_uplink(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let images = Images::push(site)?;
    let test = site.namespace()?;
    let nodes = site.workers()?.len();
    site.kube.apply(&images.owners(&test.name))?;
    for image in images.all() {
        site.kube.copied(&test.name, &image.reference, START)?;
    }
    all_run(site, &test, nodes, START).context("before")?;
    let mut done = Done::default();
    let churned = without_webhook(site, || {
        site.cut_uplink()?;
        let end = Instant::now() + CHURN_TIME;
        while Instant::now() < end {
            change(site, &test, &images, &mut done)?;
            thread::sleep(CHANGE_INTERVAL);
        }
        let pod = site.kube.dry_run(&images.bare(9999).build(&test.name))?;
        ensure!(
            kube::images(&pod, "containers") == [images.bare.reference.clone()],
            "the webhook was not away"
        );
        // Healing alone: the webhook comes back only after that.
        all_run(site, &test, nodes, START * 2)
    });
    let settled = churned.and_then(|()| all_run(site, &test, nodes, START));
    site.mend_uplink()?;
    settled?;
    let Done {
        deleted,
        bare,
        jobs,
        restarts,
    } = done;
    println!(
        "  {deleted} pods deleted, {bare} bare pods and {jobs} Jobs made, {restarts} rollouts"
    );
    ensure!(
        deleted >= 40 && bare >= 20 && jobs >= 5,
        "too little happened to mean anything"
    );
    Ok(())
}
