//! Looking at a cluster: how it does, and everything worth keeping when a test fails.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::{Cluster, Status};
use crate::engine::Engine;

impl Cluster {
    /// How the cluster does; a cluster that is down is no error.
    pub fn status(&self) -> Result<Status> {
        let engine = self.engine.answers();
        let nodes = if engine || self.state.pool.is_none() {
            self.get(&["nodes"]).ok()
        } else {
            None
        };
        let pods = nodes
            .as_ref()
            .and_then(|_| self.get(&["pods", "--all-namespaces"]).ok());
        Ok(Status {
            name: self.name.clone(),
            engine,
            api_server: pods.is_some(),
            nodes: nodes
                .unwrap_or_default()
                .iter()
                .map(|node| (name(node), is_ready(node)))
                .collect::<BTreeMap<_, _>>(),
            unready_pods: pods
                .unwrap_or_default()
                .iter()
                .filter(|pod| !is_settled(pod))
                .map(path)
                .collect(),
            kubeconfig: self.kubeconfig(),
            prefix: self.prefix(),
        })
    }

    /// Whether the API server says that it is ready.
    pub fn api_server_answers(&self) -> bool {
        self.kubectl(&["get", "--raw=/readyz", "--request-timeout=3s"])
            .is_ok()
    }

    /// Writes what helps to find out why a test failed into a folder; what cannot be had is left
    /// out.
    pub fn dump_diagnostics(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let keep = |file: &str, text: Result<String>| {
            fs::write(
                folder.join(file),
                text.unwrap_or_else(|error| format!("{error:#}")),
            )
        };
        for (file, what) in [
            (
                "objects.txt",
                &[
                    "get",
                    "all,pvc,pv,secrets,leases",
                    "--all-namespaces",
                    "--output=wide",
                ][..],
            ),
            (
                "events.txt",
                &[
                    "get",
                    "events",
                    "--all-namespaces",
                    "--sort-by=.lastTimestamp",
                ][..],
            ),
            ("nodes.txt", &["describe", "nodes"][..]),
            ("pods.txt", &["describe", "pods", "--all-namespaces"][..]),
            (
                "pods.yaml",
                &["get", "pods", "--all-namespaces", "--output=yaml"][..],
            ),
        ] {
            keep(file, self.kubectl(what))?;
        }
        let output = format!("--output-directory={}", folder.join("dump").display());
        self.kubectl(&["cluster-info", "dump", "--all-namespaces", &output])
            .ok();
        for node in self.nodes().unwrap_or_default() {
            for unit in ["kubelet", "containerd"] {
                let log = self.node_exec(
                    &node,
                    &["journalctl", "--no-pager", "-n", "2000", "-u", unit],
                );
                keep(&format!("{node}-{unit}.log"), log)?;
            }
        }
        if let Engine::Own(engine) = &self.engine {
            keep(
                "engine.log",
                fs::read_to_string(engine.log()).map_err(Into::into),
            )?;
        }
        Ok(())
    }
}

fn name(object: &Value) -> String {
    object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn path(object: &Value) -> String {
    format!(
        "{}/{}",
        object["metadata"]["namespace"].as_str().unwrap_or_default(),
        name(object)
    )
}

fn is_ready(object: &Value) -> bool {
    object["status"]["conditions"]
        .as_array()
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        })
}

/// Ready, or run to its end.
fn is_settled(pod: &Value) -> bool {
    pod["status"]["phase"] == "Succeeded" || is_ready(pod)
}
