//! Faults: nodes that die, freeze or lose their network, a control plane that goes away.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Cluster;
use crate::command::run_with_input;
use crate::engine::Engine;

const MANIFEST: &str = "/etc/kubernetes/manifests/kube-apiserver.yaml";
const PARKED: &str = "/etc/kubernetes/kube-apiserver.yaml";

impl Cluster {
    /// Runs a program inside a node and returns what it printed.
    pub fn node_exec(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["exec", node];
        all.extend(arguments);
        self.engine.docker(all)
    }

    /// Kills a node at once, as if its power were cut.
    pub fn kill_node(&self, node: &str) -> Result<()> {
        self.engine.docker(["kill", node])?;
        Ok(())
    }

    /// Starts a node that was killed; it has the address it had before.
    pub fn start_node(&self, node: &str) -> Result<()> {
        if !self.is_running(node)? {
            self.keep_address(node)?;
        }
        self.engine.docker(["start", node])?;
        Ok(())
    }

    /// Shuts a node down in order.
    pub fn stop_node(&self, node: &str) -> Result<()> {
        self.engine.docker(["stop", node])?;
        Ok(())
    }

    /// Shuts a node down and starts it again.
    pub fn restart_node(&self, node: &str) -> Result<()> {
        self.stop_node(node)?;
        self.start_node(node)
    }

    /// Freezes everything on a node; its connections stay open and go silent.
    pub fn pause(&self, node: &str) -> Result<()> {
        self.engine.docker(["pause", node])?;
        Ok(())
    }

    /// Lets a frozen node go on.
    pub fn unpause(&self, node: &str) -> Result<()> {
        self.engine.docker(["unpause", node])?;
        Ok(())
    }

    /// Takes a node off the network; its processes continue.
    pub fn cut_off(&self, node: &str) -> Result<()> {
        self.engine
            .docker(["network", "disconnect", "kind", node])?;
        Ok(())
    }

    /// Puts a node back on the network with the address it had.
    pub fn reconnect(&self, node: &str) -> Result<()> {
        match (&self.engine, self.state.addresses.get(node)) {
            (Engine::Own(_), Some(address)) => {
                self.engine
                    .docker(["network", "connect", "--ip", address, "kind", node])?;
            }
            _ => {
                self.engine.docker(["network", "connect", "kind", node])?;
            }
        }
        Ok(())
    }

    /// Cuts the power of the whole site.
    pub fn power_off_all(&self) -> Result<()> {
        let mut arguments = vec!["kill".to_owned()];
        for node in self.nodes()? {
            if self.is_running(&node)? {
                arguments.push(node);
            }
        }
        if arguments.len() > 1 {
            self.engine.docker(arguments)?;
        }
        Ok(())
    }

    /// Brings the power of the whole site back; does not wait for anything.
    pub fn power_on_all(&self) -> Result<()> {
        let nodes = self.nodes()?;
        let mut off = Vec::new();
        for node in nodes {
            if !self.is_running(&node)? {
                off.push(node);
            }
        }
        // All let go first: one may hold an address that another has to get back.
        for node in &off {
            self.let_go_of_address(node);
        }
        for node in &off {
            self.keep_address(node)?;
        }
        for node in &off {
            self.engine.docker(["start", node.as_str()])?;
        }
        Ok(())
    }

    /// Kills the API server and keeps the kubelet from starting it again.
    pub fn kill_api_server(&self) -> Result<()> {
        let node = self.control_plane()?;
        self.node_exec(&node, &["mv", MANIFEST, PARKED])?;
        // It may be gone already.
        self.node_exec(&node, &["pkill", "-KILL", "-x", "kube-apiserver"])
            .ok();
        Ok(())
    }

    /// Starts the API server again and waits until it is ready.
    pub fn start_api_server(&self) -> Result<()> {
        let node = self.control_plane()?;
        self.node_exec(&node, &["mv", PARKED, MANIFEST])?;
        let deadline = Instant::now() + Duration::from_secs(120);
        while !self.api_server_answers() {
            if Instant::now() > deadline {
                bail!("the API server does not come back");
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }

    /// Writes the container runtime's host configuration (`hosts.toml`) for a registry host on
    /// these nodes; the runtime reads it for every pull.
    pub fn write_registry_hosts(&self, nodes: &[&str], host: &str, toml: &str) -> Result<()> {
        for node in nodes {
            let folder = format!("/etc/containerd/certs.d/{host}");
            self.node_exec(node, &["mkdir", "-p", &folder])?;
            let mut command = self.engine.command("docker");
            command.args(["exec", "--interactive", node, "cp", "/dev/stdin"]);
            command.arg(format!("{folder}/hosts.toml"));
            run_with_input(&mut command, toml.as_bytes())?;
        }
        Ok(())
    }

    /// Undoes the faults that a killed test left: frozen nodes, nodes off the network, a parked
    /// API server.
    pub fn mend(&self) -> Result<()> {
        let addresses = self.current_addresses()?;
        for node in self.nodes()? {
            let state = self
                .engine
                .docker(["inspect", "--format", "{{.State.Paused}}", &node])?;
            if state.trim() == "true" {
                self.unpause(&node)?;
            }
            if addresses.get(&node).is_some_and(String::is_empty) {
                self.reconnect(&node)?;
            }
        }
        let node = self.control_plane()?;
        if self.node_exec(&node, &["test", "-e", PARKED]).is_ok() {
            self.start_api_server()?;
        }
        Ok(())
    }

    pub(super) fn control_plane(&self) -> Result<String> {
        match self.nodes()?.into_iter().next() {
            Some(node) => Ok(node),
            None => bail!(
                "cluster {} has no nodes on this machine's engine",
                self.name
            ),
        }
    }

    fn is_running(&self, node: &str) -> Result<bool> {
        let state = self
            .engine
            .docker(["inspect", "--format", "{{.State.Running}}", node])?;
        Ok(state.trim() == "true")
    }

    fn let_go_of_address(&self, node: &str) {
        if matches!(self.engine, Engine::Own(_)) && self.state.addresses.contains_key(node) {
            // It may have been cut off before.
            self.engine
                .docker(["network", "disconnect", "--force", "kind", node])
                .ok();
        }
    }

    /// Ties a stopped node to its address: the engine would give it any that is free, and
    /// certificates and other nodes' routes name the old one.
    fn keep_address(&self, node: &str) -> Result<()> {
        if self.state.addresses.contains_key(node) && matches!(self.engine, Engine::Own(_)) {
            self.let_go_of_address(node);
            self.reconnect(node)?;
        }
        Ok(())
    }
}
