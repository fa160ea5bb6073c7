//! Looking into nodes: what images they hold, how their runtime is configured.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{PRIVATE, Site};
use crate::kube;

impl Site {
    /// Names of the nodes that run workloads.
    pub(crate) fn workers(&self) -> Result<Vec<String>> {
        if self.own {
            return self.cluster.workers();
        }
        let nodes = self.kube.list(&["nodes"])?;
        Ok(nodes
            .iter()
            .filter(|node| takes_any_pod(node))
            .map(|node| kube::name(node).to_owned())
            .collect())
    }

    /// The images that a node's runtime holds, as the CRI tells.
    pub(crate) fn runtime_images(&self, node: &str) -> Result<Vec<Value>> {
        let text = self
            .cluster
            .node_exec(node, &["crictl", "images", "--output", "json"])?;
        let list: Value = serde_json::from_str(&text).context("crictl's JSON")?;
        Ok(list["images"].as_array().cloned().unwrap_or_default())
    }

    /// Every reference that a node's runtime holds, tags and digests.
    pub(crate) fn node_images(&self, node: &str) -> Result<Vec<String>> {
        let images = self.runtime_images(node)?;
        Ok(images
            .iter()
            .flat_map(|image| ["repoTags", "repoDigests"].map(|field| image[field].clone()))
            .filter_map(|names| names.as_array().cloned())
            .flatten()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect())
    }

    /// Checks that a node's runtime holds nothing of a repository.
    pub(crate) fn ensure_image_absent(&self, node: &str, repository: &str) -> Result<()> {
        let held: Vec<_> = self
            .node_images(node)?
            .into_iter()
            .filter(|image| image.contains(repository))
            .collect();
        ensure!(held.is_empty(), "node {node} holds {held:?} already");
        Ok(())
    }

    /// Tells every node where the private upstream is, so that kubelets can pull from it with a
    /// pull secret and without Holdfast.
    pub(crate) fn let_nodes_pull_private_images(&self) -> Result<()> {
        let endpoint = &self.private.endpoint;
        let hosts = format!(
            "server = \"{endpoint}\"\n[host.\"{endpoint}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  skip_verify = true\n"
        );
        let nodes = self.cluster.nodes()?;
        let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
        self.cluster.write_registry_hosts(&nodes, PRIVATE, &hosts)
    }

    /// Undoes [`Self::let_nodes_pull_private_images`].
    pub(crate) fn forget_private_images(&self) -> Result<()> {
        let folder = format!("/etc/containerd/certs.d/{PRIVATE}");
        for node in self.cluster.nodes()? {
            self.cluster.node_exec(&node, &["rm", "-rf", &folder])?;
        }
        Ok(())
    }

    /// Names and checksums of everything that Holdfast could have written on a node.
    pub(crate) fn runtime_files(&self, node: &str) -> Result<String> {
        let script = "for d in /etc/containerd /etc/crictl.yaml /var/lib/holdfast /etc/holdfast /opt/holdfast; do [ -e $d ] && find $d -type f -exec sha256sum {} + && find $d -type d; done | sort; true";
        self.cluster.node_exec(node, &["sh", "-c", script])
    }

    /// User and password, `USER:PASSWORD`, by which runtimes of nodes pull from the registry.
    pub(crate) fn node_login(&self) -> Result<String> {
        let secret = self.kube.get(&[
            "secret",
            "-n",
            self.release.namespace(),
            &self.release.object("registry-auth"),
        ])?;
        let read = |key: &str| -> Result<String> {
            let text = secret["data"][key]
                .as_str()
                .with_context(|| format!("the Secret has no {key}"))?;
            String::from_utf8(STANDARD.decode(text).context("base64")?).context("UTF-8")
        };
        Ok(format!(
            "{}:{}",
            read("node-username")?,
            read("node-password")?
        ))
    }

    /// Runs curl on a node against the registry's API with these arguments; returns status and
    /// body.
    pub(crate) fn curl(&self, node: &str, arguments: &[&str]) -> Result<(u16, String)> {
        let mut command = vec![
            "curl",
            "--silent",
            "--show-error",
            "--insecure",
            "--max-time",
            "30",
            "--write-out",
            "\n%{http_code}",
        ];
        command.extend(arguments);
        let text = self.cluster.node_exec(node, &command)?;
        let (body, status) = text
            .trim_end()
            .rsplit_once('\n')
            .unwrap_or_else(|| ("", text.trim_end()));
        Ok((
            status
                .trim()
                .parse()
                .with_context(|| format!("status of curl: {text}"))?,
            body.to_owned(),
        ))
    }
}

fn takes_any_pod(node: &Value) -> bool {
    let taints = node["spec"]["taints"].as_array();
    node["spec"]["unschedulable"] != true
        && taints.is_none_or(|taints| {
            taints
                .iter()
                .all(|taint| taint["effect"] == "PreferNoSchedule")
        })
}
