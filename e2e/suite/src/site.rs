//! A cluster with upstream registries and a Holdfast release.

mod namespace;
mod nodes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_cluster::oci::Image;
use holdfast_cluster::{Cluster, Program};
use serde_json::{Value, json};

use crate::command;
use crate::kube::Kube;
use crate::release::Release;
use crate::tools::{self, Slot, Tools};
use crate::upstream::{Plan, Upstream};
use crate::wait::{Skipped, eventually};
use crate::{images, kube};

pub(crate) use namespace::{Namespace, SECRET};

/// The private upstream's host. No name service knows it: only Holdfast's values say where it is.
pub(crate) const PRIVATE: &str = "registry.example.test";
/// User and password of the private upstream.
pub(crate) const LOGIN: (&str, &str) = ("reader", "correct-horse");

/// Long enough for a pod to be scheduled, pulled and started on a busy machine.
pub(crate) const START: Duration = Duration::from_secs(90);

/// A cluster under test.
pub(crate) struct Site {
    pub(crate) kube: Kube,
    pub(crate) cluster: Cluster,
    /// Whether the cluster was made for these tests, with volumes that all nodes share and
    /// addresses that stay.
    pub(crate) own: bool,
    /// Whether nodes can be looked into: they are containers of an engine that answers.
    nodes: bool,
    pub(crate) release: Release,
    /// Needs a pull secret; pods can reach it only through Holdfast.
    pub(crate) private: Upstream,
    /// Named by address and port; nodes can pull from it without Holdfast.
    pub(crate) plain: Upstream,
    pub(crate) workload: PathBuf,
    folder: PathBuf,
    /// Files of the container runtime's configuration before anything was installed, by node.
    pub(crate) before: BTreeMap<String, String>,
    keep: bool,
    slot: Option<Slot>,
}

/// An image that lies in an upstream.
pub(crate) struct Pushed {
    /// The full reference with host and tag.
    pub(crate) reference: String,
    pub(crate) repository: String,
    pub(crate) digest: String,
    /// Configuration and layers.
    pub(crate) blobs: usize,
    /// The digest of the last layer.
    pub(crate) last_layer: String,
}

impl Pushed {
    /// The full reference by digest, without a tag.
    pub(crate) fn by_digest(&self) -> String {
        let bare = self.reference.rsplit_once(':');
        format!("{}@{}", bare.map_or("", |(bare, _)| bare), self.digest)
    }
}

impl Site {
    /// A fresh cluster of our own.
    pub(crate) fn create(tools: &Tools, name: &str, keep: bool) -> Result<Self> {
        let slot = Slot::take(name)?;
        let cluster = slot.cluster()?;
        Self::prepare(tools, cluster, true, keep, Some(slot))
    }

    /// A cluster that somebody else made. Its nodes are never killed, and looked into only where
    /// they are kind's.
    pub(crate) fn attach(tools: &Tools, context: &str) -> Result<Self> {
        Self::prepare(tools, Cluster::attach(context)?, false, false, None)
    }

    fn prepare(
        tools: &Tools,
        cluster: Cluster,
        own: bool,
        keep: bool,
        slot: Option<Slot>,
    ) -> Result<Self> {
        let inside = tools::inside(&cluster, keep);
        let address = cluster.gateway()?;
        let programs = tools.upstream()?;
        let private = Plan {
            host: PRIVATE,
            address: &address,
            port: 15000,
            login: Some(LOGIN),
            tls: true,
        };
        let private = Upstream::start(&private, &programs, &inside, &tools.folder, keep)?;
        let host = format!("{address}:15010");
        let plain = Plan {
            host: &host,
            address: &address,
            port: 15010,
            login: None,
            tls: false,
        };
        let plain = Upstream::start(&plain, &programs, &inside, &tools.folder, keep)?;
        cluster
            .load_archive(&tools.archive)
            .context("load Holdfast's image onto the nodes")?;
        let kubectl = tools::program(Program::Kubectl)?;
        let by = cluster.clone();
        let kube = Kube::new(move || by.command(&kubectl));
        let release = Release::new(tools, &cluster, &[&private, &plain], own)?;
        let nodes = own || !cluster.nodes().unwrap_or_default().is_empty();
        let mut site = Self {
            kube,
            cluster,
            own,
            nodes,
            release,
            private,
            plain,
            workload: tools::program(Program::Workload)?,
            folder: tools.folder.clone(),
            before: BTreeMap::new(),
            keep,
            slot,
        };
        if site.nodes {
            let nodes = site.cluster.nodes()?;
            let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
            let hosts = format!(
                "server = \"http://{host}\"\n[host.\"http://{host}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
            );
            site.cluster.write_registry_hosts(&nodes, &host, &hosts)?;
            for node in nodes {
                let files = site.runtime_files(node)?;
                site.before.insert(node.to_owned(), files);
            }
        }
        Ok(site)
    }

    /// For tests that look into nodes, or have them pull without Holdfast.
    pub(crate) fn needs_nodes(&self) -> Result<()> {
        if self.nodes {
            return Ok(());
        }
        Err(Skipped("the nodes of this cluster cannot be looked into").into())
    }

    /// For tests that cut power or stop the control plane.
    pub(crate) fn needs_own_cluster(&self) -> Result<()> {
        if self.own {
            return Ok(());
        }
        Err(Skipped("it takes nodes down, and this cluster is somebody else's").into())
    }

    /// Pushes an image that runs the workload program to an upstream.
    pub(crate) fn push(
        &self,
        upstream: &Upstream,
        repository: &str,
        layers: usize,
        layer_bytes: usize,
    ) -> Result<Pushed> {
        self.push_image(
            upstream,
            repository,
            &images::workload(&self.workload, layers, layer_bytes)?,
        )
    }

    /// Pushes an image as `REPOSITORY-RANDOM:1`, a repository that no other test uses.
    pub(crate) fn push_image(
        &self,
        upstream: &Upstream,
        repository: &str,
        image: &Image,
    ) -> Result<Pushed> {
        let repository = format!("{repository}-{}", images::unique()?);
        self.push_as(upstream, &repository, "1", image)
    }

    /// Pushes an image as `REPOSITORY:TAG`; the image that had the tag loses it.
    pub(crate) fn push_as(
        &self,
        upstream: &Upstream,
        repository: &str,
        tag: &str,
        image: &Image,
    ) -> Result<Pushed> {
        let layout = images::layout(
            image,
            &self
                .folder
                .join("images")
                .join(format!("{}_{tag}", repository.replace('/', "_"))),
        )?;
        let reference = upstream.push(&layout, &format!("{repository}:{tag}"))?;
        std::fs::remove_dir_all(&layout).context("remove a pushed layout")?;
        let last = image
            .blobs
            .len()
            .checked_sub(3)
            .and_then(|at| image.blobs.get(at))
            .context("an image has a layer")?;
        Ok(Pushed {
            reference,
            repository: repository.to_owned(),
            digest: image.digest.clone(),
            blobs: images::blob_count(image),
            last_layer: last.digest.clone(),
        })
    }

    /// Installs Holdfast with these values over the tests' own, unless exactly that runs already.
    pub(crate) fn install(&mut self, extra: &Value) -> Result<()> {
        self.release.install(&self.kube, extra)
    }

    /// Installs Holdfast as most tests want it.
    pub(crate) fn installed(&mut self) -> Result<()> {
        self.install(&json!({}))
    }

    /// Uninstalls Holdfast.
    pub(crate) fn uninstall(&mut self) -> Result<()> {
        self.release.uninstall()
    }

    /// The registry's address in rewritten references.
    pub(crate) fn address(&self) -> Result<String> {
        let state = self.release.state(&self.kube)?;
        state["registryAddress"]
            .as_str()
            .map(str::to_owned)
            .context("the shared state has no address")
    }

    /// The rewritten form of a reference with a full host.
    pub(crate) fn local(&self, reference: &str) -> Result<String> {
        let (host, rest) = reference.split_once('/').context("a reference with host")?;
        Ok(format!(
            "{}/{}/{rest}",
            self.address()?,
            host.replace(':', "_")
        ))
    }

    /// The pod that holds the controller's lease.
    pub(crate) fn leader(&self) -> Result<Value> {
        let namespace = self.release.namespace();
        let lease =
            self.kube
                .get(&["lease", "-n", namespace, &self.release.object("controller")])?;
        let holder = lease["spec"]["holderIdentity"]
            .as_str()
            .context("the controller's lease has no holder")?
            .to_owned();
        let pods = self
            .kube
            .ready_pods(namespace, &self.release.part("controller"))?;
        pods.into_iter()
            .find(|pod| holder.contains(kube::name(pod)))
            .with_context(|| format!("no ready pod holds the lease ({holder})"))
    }

    /// Runs a documented command line word for word, with kubectl on the path.
    pub(crate) fn shell(&self, line: &str) -> Result<String> {
        let kubectl = tools::program(Program::Kubectl)?;
        let own = kubectl
            .parent()
            .context("kubectl lies in a folder")?
            .to_path_buf();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&path)))
            .context("make a PATH")?;
        let mut shell = self.cluster.command("sh");
        shell.env("PATH", path).args(["-c", line]);
        command::run(shell)
    }

    /// Deletes a pod of Holdfast at once, without a chance to clean up.
    pub(crate) fn kill_pod(&self, name: &str) -> Result<()> {
        self.kube
            .run(&[
                "delete",
                "pod",
                "-n",
                self.release.namespace(),
                name,
                "--grace-period=0",
                "--force",
            ])
            .map(drop)
    }

    /// Kills the process of a pod's container at once; nothing on the node or in the API server
    /// knows of it before.
    pub(crate) fn kill_process(&self, node: &str, pod: &str) -> Result<()> {
        let script = format!(
            "id=$(crictl ps --quiet --label io.kubernetes.pod.name={pod}) && kill -KILL $(crictl inspect --output go-template --template '{{{{.info.pid}}}}' $id)"
        );
        self.cluster
            .node_exec(node, &["sh", "-c", &script])
            .map(drop)
    }

    /// Moves the pods of a node elsewhere, as an operator does before maintenance.
    pub(crate) fn drain(&self, node: &str) -> Result<()> {
        self.kube
            .run(&[
                "drain",
                node,
                "--ignore-daemonsets",
                "--delete-emptydir-data",
                "--force",
                "--timeout=180s",
            ])
            .map(drop)
    }

    /// Cuts the uplink: no upstream can be reached from anywhere.
    pub(crate) fn cut_uplink(&self) -> Result<()> {
        self.private.down()?;
        self.plain.down()
    }

    /// Brings the uplink back.
    pub(crate) fn mend_uplink(&self) -> Result<()> {
        self.private.heal()?;
        self.plain.heal()
    }

    /// Ends all faults and waits until the API server and Holdfast's pods are back.
    pub(crate) fn recover(&self) -> Result<()> {
        self.private.heal()?;
        self.plain.heal()?;
        if self.own {
            if !self.cluster.api_server_answers() {
                drop(self.cluster.start_api_server());
            }
            for node in self.cluster.nodes()? {
                drop(self.cluster.unpause(&node));
                self.cluster.start_node(&node)?;
                drop(self.kube.run(&["uncordon", &node]));
            }
        }
        eventually(Duration::from_secs(180), || {
            let status = self.cluster.status()?;
            ensure!(
                status.api_server && status.nodes.values().all(|ready| *ready),
                "nodes: {:?}",
                status.nodes
            );
            Ok(())
        })
    }

    /// Takes the site down, unless it is to be kept.
    pub(crate) fn end(mut self) -> Result<()> {
        if self.keep {
            println!(
                "kept: KUBECONFIG={} {} kubectl get pods --all-namespaces",
                self.cluster.kubeconfig().display(),
                self.cluster.prefix().join(" ")
            );
            println!(
                "remove it with: cargo xtask cluster down --name {}",
                self.cluster.name()
            );
            return Ok(());
        }
        if self.slot.is_some() {
            return self.cluster.down();
        }
        self.release.uninstall()
    }
}
