//! The acts of the demo. Each shows what it claims, or fails.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::show::Show;
use crate::kube::{self, images};
use crate::objects::{self, Pod};
use crate::site::{LOGIN, PRIVATE, Pushed, SECRET, START, Site};
use crate::tools::Tools;
use crate::wait::eventually;

const NAMESPACE: &str = "demo";
const SELECTOR: &str = "app=shop";
/// A dead node is noticed within 50 s, its pods leave 5 s later and are deleted by force or not at
/// all; then a pod starts.
const REPLACED: Duration = Duration::from_secs(180);
/// Nodes, control plane, Holdfast and the workload together.
const BOOTED: Duration = Duration::from_secs(300);

/// The stage.
pub(super) struct Demo {
    site: Site,
    app: Pushed,
    init: Pushed,
    files: Pushed,
    /// The node that gets no pod before it is needed.
    third: String,
    /// The node that dies.
    victim: String,
}

impl Demo {
    pub(super) fn create(tools: &Tools, keep: bool) -> Result<Self> {
        let site = Site::create(tools, "demo", keep)?;
        let app = site.push(&site.private, "shop/server", 3, 4 << 20)?;
        let init = site.push(&site.private, "shop/migrate", 1, 1 << 20)?;
        let files = site.push_image(
            &site.private,
            "shop/catalogue",
            &crate::images::files("nine hundred articles\n")?,
        )?;
        site.private.forget()?;
        Ok(Self {
            site,
            app,
            init,
            files,
            third: String::new(),
            victim: String::new(),
        })
    }

    pub(super) fn site(&self) -> &Site {
        &self.site
    }

    pub(super) fn install(&mut self, show: &mut Show) -> Result<()> {
        // Holdfast tolerates the control plane's taint; cordoned, it leaves the three workers to
        // play with.
        for node in self
            .site
            .cluster
            .nodes()?
            .iter()
            .filter(|node| node.contains("control-plane"))
        {
            self.site.kube.run(&["cordon", node])?;
        }
        self.site.installed()?;
        self.site.release.wait_ready(&self.site.kube, START)?;
        let namespace = self.site.release.namespace();
        let pods = self.site.kube.run(&[
            "get",
            "pods",
            "-n",
            namespace,
            "-o",
            "custom-columns=POD:.metadata.name,NODE:.spec.nodeName,STATUS:.status.phase",
        ])?;
        show.say(&pods);
        let leader = self.site.leader()?;
        show.fact(
            "leader",
            &format!("leader: {} on {}", kube::name(&leader), kube::node(&leader)),
            json!(kube::name(&leader)),
        );
        Ok(())
    }

    /// Rolls out on the leader's node, which is to die, and on one more; the third stays empty.
    pub(super) fn roll_out(&mut self, show: &mut Show) -> Result<()> {
        let workers = self.site.cluster.workers()?;
        ensure!(
            workers.len() >= 3,
            "the demo needs three workers, there are {}",
            workers.len()
        );
        kube::node(&self.site.leader()?).clone_into(&mut self.victim);
        let others: Vec<_> = workers
            .into_iter()
            .filter(|node| *node != self.victim)
            .collect();
        self.third
            .clone_from(others.last().context("no third node")?);
        let kube = &self.site.kube;
        kube.run(&["cordon", &self.third])?;
        let secret = objects::pull_secret(NAMESPACE, SECRET, PRIVATE, LOGIN.0, LOGIN.1);
        kube.apply(&[objects::namespace(NAMESPACE, &json!({})), secret])?;
        let spread = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "shop"}}}]}});
        let pod = Pod::new("shop", &self.app.reference)
            .arguments(&[])
            .init(&self.init.reference)
            .image_volume(&self.files.reference)
            .pull_secrets(&[SECRET])
            .set("affinity", spread)
            .set("tolerations", objects::leave_after(5));
        kube.apply(&[pod.deployment(NAMESPACE, 2)])?;
        let pods = kube.wait_ready(NAMESPACE, SELECTOR, 2, START)?;
        for pod in &pods {
            let image = images(pod, "containers").join(" ");
            show.say(&format!(
                "{} on {}: {image}",
                kube::name(pod),
                kube::node(pod)
            ));
            ensure!(
                image == self.site.local(&self.app.reference)?,
                "the image was not rewritten: {image}"
            );
        }
        kube.run(&["uncordon", &self.third])?;
        ensure!(
            pods.iter().any(|pod| kube::node(pod) == self.victim),
            "no workload pod on {}",
            self.victim
        );
        show.fact(
            "nodes",
            &format!(
                "{} is to die, {} is the third node",
                self.victim, self.third
            ),
            json!({"victim": self.victim, "third": self.third}),
        );
        Ok(())
    }

    pub(super) fn list(&self, show: &mut Show) -> Result<()> {
        for image in [&self.app, &self.init, &self.files] {
            self.site.kube.copied(NAMESPACE, &image.reference, START)?;
        }
        show.say(&self.site.kube.run(&["get", "artifacts", "-A"])?);
        Ok(())
    }

    pub(super) fn count(&self, show: &mut Show) -> Result<()> {
        let mut all = serde_json::Map::new();
        for image in [&self.app, &self.init, &self.files] {
            self.site
                .private
                .fetched_once(&image.repository, image.blobs)?;
            for (digest, count) in self.site.private.blob_fetches(&image.repository)? {
                let short: String = digest.chars().take(19).collect();
                show.say(&format!("{count} × GET {}/blobs/{short}", image.repository));
                all.insert(digest, json!(count));
            }
        }
        show.fact(
            "upstreamRequestsPerDigest",
            &format!("{} blobs, each fetched exactly once", all.len()),
            Value::Object(all),
        );
        Ok(())
    }

    pub(super) fn cut_uplink(&self, show: &mut Show) -> Result<()> {
        self.site.private.forget()?;
        self.site.private.down()?;
        self.site.plain.down()?;
        show.say(&format!("{PRIVATE} now cuts every connection"));
        Ok(())
    }

    pub(super) fn kill_node(&mut self, show: &mut Show) -> Result<()> {
        for image in [&self.app, &self.init, &self.files] {
            self.site
                .ensure_image_absent(&self.third, &image.repository)?;
        }
        show.fact(
            "thirdNodeHadImage",
            &format!("crictl images on {}: none of the three images", self.third),
            json!(false),
        );
        let holds = self.held_by_victim()?;
        // The leader may have moved since the workload was placed: then it dies separately, and the
        // demo says so.
        let leader = self.site.leader()?;
        let elsewhere = kube::node(&leader) != self.victim;
        ensure!(
            holds.iter().any(|name| name.contains("registry")),
            "no registry replica on {}: {holds:?}",
            self.victim
        );
        self.site.cluster.kill_node(&self.victim)?;
        show.fact(
            "killed",
            &format!("{} is dead; it held {}", self.victim, holds.join(", ")),
            json!({"node": self.victim, "held": holds, "leaderKilledSeparately": elsewhere}),
        );
        if elsewhere {
            self.site.kill_pod(kube::name(&leader))?;
            show.say(&format!(
                "the leader had moved to {}; killed there: {}",
                kube::node(&leader),
                kube::name(&leader)
            ));
        }
        Ok(())
    }

    /// Names of the pods of workload and Holdfast on the node that is to die.
    fn held_by_victim(&self) -> Result<Vec<String>> {
        let field = format!("spec.nodeName={}", self.victim);
        let mut names = Vec::new();
        for namespace in [NAMESPACE, self.site.release.namespace()] {
            let pods =
                self.site
                    .kube
                    .list(&["pods", "-n", namespace, "--field-selector", &field])?;
            names.extend(pods.iter().map(|pod| kube::name(pod).to_owned()));
        }
        Ok(names)
    }

    pub(super) fn replaced(&self, show: &mut Show) -> Result<()> {
        let killed = Instant::now();
        let pod = eventually(REPLACED, || {
            let pods = self
                .site
                .kube
                .list(&["pods", "-n", NAMESPACE, "-l", SELECTOR])?;
            let Some(pod) = pods.iter().find(|pod| kube::node(pod) == self.third) else {
                bail!("no pod on {} yet", self.third)
            };
            ensure!(
                kube::is_ready(pod),
                "{} on {}: {}",
                kube::name(pod),
                self.third,
                kube::explain(pod)
            );
            Ok(pod.clone())
        })?;
        let seconds = killed.elapsed().as_secs_f64();
        let text = format!(
            "{} is Running on {} {seconds:.1} s after the node died, with the upstream gone",
            kube::name(&pod),
            self.third
        );
        show.fact("replacedSeconds", &text, json!(seconds));
        let asked: u64 = self
            .site
            .private
            .blob_fetches(&self.app.repository)?
            .values()
            .sum();
        show.fact(
            "blobRequestsAfterCut",
            &format!("blob requests to the upstream since it went: {asked}"),
            json!(asked),
        );
        ensure!(asked == 0, "blobs were asked of the upstream");
        Ok(())
    }

    pub(super) fn cold_boot(&self, show: &mut Show) -> Result<()> {
        self.site.cluster.power_off_all()?;
        show.say("all nodes are off");
        let started = Instant::now();
        self.site.cluster.power_on_all()?;
        self.site.cluster.wait_ready(BOOTED)?;
        self.site.kube.wait_ready(NAMESPACE, SELECTOR, 2, START)?;
        let seconds = started.elapsed().as_secs_f64();
        show.fact(
            "coldBootSeconds",
            &format!("every pod of the cluster is ready {seconds:.1} s after power came back"),
            json!(seconds),
        );
        show.say(&self.site.kube.run(&["get", "pods", "-A", "-o", "custom-columns=NAMESPACE:.metadata.namespace,POD:.metadata.name,NODE:.spec.nodeName,STATUS:.status.phase"])?);
        Ok(())
    }

    pub(super) fn end(self) -> Result<()> {
        self.site.end()
    }
}
