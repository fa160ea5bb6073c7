//! The API server through kubectl, JSON in and out.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::command;
use crate::wait::eventually;

/// A way to call kubectl against one cluster.
pub(crate) struct Kube {
    kubectl: Box<dyn Fn() -> Command + Send>,
}

impl Kube {
    pub(crate) fn new(kubectl: impl Fn() -> Command + Send + 'static) -> Self {
        Self {
            kubectl: Box::new(kubectl),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = (self.kubectl)();
        command.arg("--request-timeout=20s").args(arguments);
        command
    }

    /// Runs kubectl with these arguments.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        command::run(self.command(arguments))
    }

    /// `kubectl get … -o json`.
    pub(crate) fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl's JSON")
    }

    /// The `items` of a list.
    pub(crate) fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        Ok(self.get(arguments)?["items"]
            .as_array()
            .cloned()
            .unwrap_or_default())
    }

    /// Applies one object or a list of objects.
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        command::feed(self.command(&["apply", "-f", "-"]), &list.to_string()).map(drop)
    }

    /// Creates one object and returns it as the API server stored it.
    pub(crate) fn create(&self, object: &Value) -> Result<Value> {
        let text = command::feed(
            self.command(&["create", "-o", "json", "-f", "-"]),
            &object.to_string(),
        )?;
        serde_json::from_str(&text).context("kubectl's JSON")
    }

    /// What the API server would store, admission included, without storing it.
    pub(crate) fn dry_run(&self, object: &Value) -> Result<Value> {
        let text = command::feed(
            self.command(&["create", "--dry-run=server", "-o", "json", "-f", "-"]),
            &object.to_string(),
        )?;
        serde_json::from_str(&text).context("kubectl's JSON")
    }

    /// Deletes without waiting; what is not there is fine.
    pub(crate) fn delete(&self, arguments: &[&str]) -> Result<()> {
        self.run(&[&["delete", "--ignore-not-found", "--wait=false"], arguments].concat())
            .map(drop)
    }

    /// Waits until a pod runs with every container ready, and returns it.
    pub(crate) fn running(&self, namespace: &str, name: &str, limit: Duration) -> Result<Value> {
        eventually(limit, || {
            let pod = self.get(&["pod", "-n", namespace, name])?;
            ensure!(is_ready(&pod), "pod {namespace}/{name}: {}", explain(&pod));
            Ok(pod)
        })
    }

    /// The ready pods of a selector.
    pub(crate) fn ready_pods(&self, namespace: &str, selector: &str) -> Result<Vec<Value>> {
        let mut pods = self.list(&["pods", "-n", namespace, "-l", selector])?;
        pods.retain(is_ready);
        Ok(pods)
    }

    /// Waits until a selector has at least `count` ready pods.
    pub(crate) fn wait_ready(
        &self,
        namespace: &str,
        selector: &str,
        count: usize,
        limit: Duration,
    ) -> Result<Vec<Value>> {
        eventually(limit, || {
            let all = self.list(&["pods", "-n", namespace, "-l", selector])?;
            let ready: Vec<_> = all.iter().filter(|pod| is_ready(pod)).cloned().collect();
            if ready.len() < count {
                let why: Vec<_> = all
                    .iter()
                    .filter(|pod| !is_ready(pod))
                    .map(|pod| format!("{}: {}", name(pod), explain(pod)))
                    .collect();
                bail!(
                    "{} of {count} pods of {selector} are ready; {}",
                    ready.len(),
                    why.join("; ")
                );
            }
            Ok(ready)
        })
    }

    /// The original references of all Artifacts of a namespace that are Ready, or of all.
    pub(crate) fn artifacts(&self, namespace: &str, ready_only: bool) -> Result<Vec<String>> {
        let list = self.list(&["artifacts", "-n", namespace])?;
        Ok(list
            .iter()
            .filter(|artifact| !ready_only || condition(artifact, "Ready"))
            .filter_map(|artifact| {
                artifact["spec"]["sourceArtifact"]
                    .as_str()
                    .map(str::to_owned)
            })
            .collect())
    }

    /// Waits until the namespace has a Ready Artifact for `source`.
    pub(crate) fn copied(&self, namespace: &str, source: &str, limit: Duration) -> Result<()> {
        eventually(limit, || {
            let list = self.list(&["artifacts", "-n", namespace])?;
            let artifact = list
                .iter()
                .find(|artifact| artifact["spec"]["sourceArtifact"] == source);
            let artifact =
                artifact.with_context(|| format!("no Artifact for {source} in {namespace}"))?;
            ensure!(
                condition(artifact, "Ready"),
                "Artifact for {source} is not Ready: {}",
                artifact["status"]["conditions"]
            );
            Ok(())
        })
    }
}

/// Whether an object's condition of this type is True.
pub(crate) fn condition(object: &Value, kind: &str) -> bool {
    object["status"]["conditions"]
        .as_array()
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|condition| condition["type"] == kind && condition["status"] == "True")
        })
}

/// Whether a pod is Running, Ready and not being deleted.
pub(crate) fn is_ready(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running"
        && condition(pod, "Ready")
        && pod["metadata"]["deletionTimestamp"].is_null()
}

/// `metadata.name`.
pub(crate) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The node a pod is bound to, or nothing.
pub(crate) fn node(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}

/// The image of each container of a kind (`containers`, `initContainers`, `ephemeralContainers`).
pub(crate) fn images(pod: &Value, kind: &str) -> Vec<String> {
    let containers = pod["spec"][kind].as_array();
    containers
        .into_iter()
        .flatten()
        .filter_map(|container| container["image"].as_str().map(str::to_owned))
        .collect()
}

/// Why a pod does not run, in one line.
pub(crate) fn explain(pod: &Value) -> String {
    let status = &pod["status"];
    let mut words = vec![status["phase"].as_str().unwrap_or("unknown").to_owned()];
    for kind in ["initContainerStatuses", "containerStatuses"] {
        for container in status[kind].as_array().into_iter().flatten() {
            let state = &container["state"];
            let why = state["waiting"]["reason"]
                .as_str()
                .or_else(|| state["terminated"]["reason"].as_str());
            let detail = state["waiting"]["message"].as_str().unwrap_or_default();
            if let Some(why) = why {
                words.push(format!(
                    "{}: {why} {detail}",
                    container["name"].as_str().unwrap_or_default()
                ));
            }
        }
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_waits_says_why() {
        let pod = json!({"status": {"phase": "Pending", "containerStatuses": [
            {"name": "app", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}]}});
        assert_eq!(explain(&pod), "Pending, app: ImagePullBackOff not found");
        assert!(!is_ready(&pod));
    }
}
