//! Inspection of a cluster: its state, and the diagnostics that are kept when a test fails.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use super::{Cluster, Status};
use crate::engine::Engine;
use crate::kind::AUDIT_LOG_FOLDER;
use crate::progress::Step;

impl Cluster {
    /// The state of the cluster; it is not an error that it is down.
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

    /// Waits until every node and every pod is ready, and for nodes that were started just now,
    /// until what the API server says of them is newer than their start.
    pub fn wait_ready(&self, patience: Duration) -> Result<()> {
        let _step = Step::start("waiting for nodes and pods");
        let deadline = Instant::now() + patience;
        loop {
            let status = self.status()?;
            let is_ready = status.api_server
                && status.nodes.len() >= self.nodes()?.len()
                && status.nodes.values().all(|ready| *ready)
                && status.unready_pods.is_empty()
                && self.have_nodes_reported()?;
            if is_ready {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not ready in time: {}", serde_json::to_string(&status)?);
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Whether every running node's lease is younger than its start by long enough for its pods'
    /// states to have been reported too: until then the API server repeats what was before.
    fn have_nodes_reported(&self) -> Result<bool> {
        let Ok(leases) = self.get(&["leases", "--namespace=kube-node-lease"]) else {
            return Ok(false);
        };
        for node in self.nodes()? {
            let started =
                self.engine
                    .docker(["inspect", "--format={{.State.StartedAt}}", &node])?;
            let lease = leases.iter().find(|lease| name(lease) == node);
            let renewed = lease.and_then(|lease| lease["spec"]["renewTime"].as_str());
            let times = (seconds(&started), renewed.and_then(seconds));
            if !matches!(times, (Some(started), Some(renewed)) if renewed >= started + 10) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the API server says that it is ready.
    pub fn api_server_answers(&self) -> bool {
        self.kubectl(&["get", "--raw=/readyz", "--request-timeout=3s"])
            .is_ok()
    }

    /// What the API server's audit log tells of service accounts, one JSON event a line; empty
    /// where somebody else made the cluster.
    pub fn audit_log(&self) -> Result<String> {
        let script = format!("cat {AUDIT_LOG_FOLDER}/audit*.log 2>/dev/null || true");
        self.node_exec(&self.control_plane()?, &["sh", "-c", &script])
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
            keep(
                &format!("{node}-network.txt"),
                self.node_exec(&node, &["bash", "-c", NETWORK]),
            )?;
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

/// What tells why packets of pods do not arrive.
const NETWORK: &str = "ip -br addr; ip route; ip neigh; sysctl -a --pattern 'net.ipv4.*(ip_forward|\\.forwarding)'; iptables -V; iptables-save; conntrack -L -d 10.96.0.1 2>&1 | tail -20";

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

/// Seconds of an RFC 3339 time in UTC on a scale that is good for differences; months count 31
/// days.
fn seconds(time: &str) -> Option<u64> {
    let mut scale = 0;
    let mut fields = time.get(..19)?.split(['-', 'T', ':']);
    for unit in [12, 31, 24, 60, 60, 1] {
        scale = (scale + fields.next()?.parse::<u64>().ok()?) * unit;
    }
    Some(scale)
}

/// Ready, or run to its end.
fn is_settled(pod: &Value) -> bool {
    pod["status"]["phase"] == "Succeeded" || is_ready(pod)
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_of_both_sources_compare() {
        let started = seconds("2026-11-21T10:59:55.123456789Z\n").unwrap();
        assert_eq!(
            seconds("2026-11-21T11:00:05.000000Z").unwrap() - started,
            10
        );
        assert_eq!(seconds("soon"), None);
    }
}
