//! Machines that join a running cluster, and nodes that leave it for good.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Cluster;
use crate::command::run_with_input;
use crate::kind::SHARED_FOLDER;

const CONTAINERD: &str = "/etc/containerd/config.toml";
const KUBEADM: &str = "/kind/kubeadm.conf";

/// Starts a machine like the workers that is no node yet, and waits until its container runtime
/// answers.
pub fn start_machine(cluster: &mut Cluster, name: &str) -> Result<()> {
    let model = model(cluster, name)?;
    let image = cluster
        .engine
        .docker(["inspect", "--format", "{{.Config.Image}}", &model])?;
    let shared = format!("{}:{SHARED_FOLDER}", cluster.shared_folder().display());
    let label = format!("io.x-k8s.kind.cluster={}", cluster.name);
    // As kind starts its nodes.
    cluster.engine.docker([
        "run",
        "--detach",
        "--tty",
        "--name",
        name,
        "--hostname",
        name,
        "--label",
        &label,
        "--label",
        "io.x-k8s.kind.role=worker",
        "--net",
        "kind",
        "--restart=on-failure:1",
        "--init=false",
        "--cgroupns=private",
        "--privileged",
        "--security-opt",
        "seccomp=unconfined",
        "--security-opt",
        "apparmor=unconfined",
        "--tmpfs",
        "/tmp",
        "--tmpfs",
        "/run",
        "--volume",
        "/var",
        "--volume",
        "/lib/modules:/lib/modules:ro",
        "--volume",
        &shared,
        image.trim(),
    ])?;
    if let Some(address) = cluster.current_addresses()?.remove(name) {
        cluster.state.addresses.insert(name.to_owned(), address);
        cluster.state.write(&cluster.folder)?;
    }
    wait_for_runtime(cluster, name)?;
    let configuration = cluster.node_exec(&model, &["cat", CONTAINERD])?;
    write_file(cluster, name, CONTAINERD, &configuration)?;
    cluster.node_exec(name, &["systemctl", "restart", "containerd"])?;
    wait_for_runtime(cluster, name)
}

/// Makes a machine a node of the cluster; does not wait until it is Ready.
pub fn join(cluster: &Cluster, name: &str) -> Result<()> {
    let model = model(cluster, name)?;
    let address = |node: &str| {
        let known = cluster.state.addresses.get(node).cloned();
        known.with_context(|| format!("the address of {node} is not known"))
    };
    let token = cluster.node_exec(&cluster.control_plane()?, &["kubeadm", "token", "create"])?;
    let token = token.lines().next_back().unwrap_or_default().trim();
    let configuration = cluster.node_exec(&model, &["cat", KUBEADM])?;
    let configuration = for_machine(
        &configuration,
        (&model, &address(&model)?),
        (name, &address(name)?),
        token,
    );
    write_file(cluster, name, KUBEADM, &configuration)?;
    cluster.node_exec(
        name,
        &[
            "kubeadm",
            "join",
            "--config",
            KUBEADM,
            "--skip-phases=preflight",
        ],
    )?;
    Ok(())
}

/// Takes a node out of the cluster, and its machine away with its disk. What is not there is
/// fine.
pub fn remove_node(cluster: &mut Cluster, name: &str) -> Result<()> {
    cluster.kubectl(&["delete", "node", name, "--ignore-not-found"])?;
    if cluster.nodes()?.iter().any(|node| node == name) {
        cluster
            .engine
            .docker(["rm", "--force", "--volumes", name])?;
    }
    cluster.state.addresses.remove(name);
    cluster.state.write(&cluster.folder)
}

/// The worker that others are made like.
fn model(cluster: &Cluster, new: &str) -> Result<String> {
    cluster
        .workers()?
        .into_iter()
        .find(|worker| worker != new)
        .context("the cluster has no worker on this machine's engine")
}

fn write_file(cluster: &Cluster, node: &str, path: &str, content: &str) -> Result<()> {
    let mut command = cluster.engine.command("docker");
    command.args(["exec", "--interactive", node, "cp", "/dev/stdin", path]);
    run_with_input(&mut command, content.as_bytes())?;
    Ok(())
}

fn wait_for_runtime(cluster: &Cluster, node: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(90);
    while cluster.node_exec(node, &["crictl", "version"]).is_err() {
        if Instant::now() > deadline {
            bail!("the container runtime of {node} does not answer");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// The configuration of one node's `kubeadm join` for another one: name and address. kind writes it
/// with or without quotes.
fn for_machine(text: &str, from: (&str, &str), to: (&str, &str), token: &str) -> String {
    let line = |line: &str| {
        let (key, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.trim().trim_matches('"');
        let provider = value.strip_suffix(from.0);
        if key.trim() == "token" {
            format!("{key}: {token:?}")
        } else if value == from.1 {
            format!("{key}: {:?}", to.1)
        } else if let Some(provider) = provider.filter(|rest| rest.ends_with('/')) {
            format!("{key}: \"{provider}{}\"", to.0)
        } else {
            line.to_owned()
        }
    };
    let lines: Vec<String> = text.lines().map(line).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::for_machine;

    #[test]
    fn a_joining_machine_has_its_own_name_address_and_token() {
        let text = "nodeRegistration:\n  kubeletExtraArgs:\n    - name: \"node-ip\"\n      value: \"198.18.1.3\"\n    - name: \"provider-id\"\n      value: \"kind://docker/e2e/e2e-worker\"\ndiscovery:\n  bootstrapToken:\n    apiServerEndpoint: e2e-control-plane:6443\n    token: \"abcdef.0123456789abcdef\"\n";
        let expect = text
            .replace("198.18.1.3", "198.18.1.30")
            .replace("e2e-worker", "e2e-joiner")
            .replace("abcdef.0123456789abcdef", "x.y");
        let bare = ["198.18.1.3", "kind://docker/e2e/e2e-worker"]
            .iter()
            .fold(text.to_owned(), |text, word| {
                text.replace(&format!("\"{word}\""), word)
            });
        for text in [text.to_owned(), bare] {
            let made = for_machine(
                &text,
                ("e2e-worker", "198.18.1.3"),
                ("e2e-joiner", "198.18.1.30"),
                "x.y",
            );
            assert_eq!(made, expect);
        }
    }
}
