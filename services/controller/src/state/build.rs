//! The shared state as a pure function of what was seen.

use holdfast_api::access::AccessList;
use holdfast_api::secret::SecretString;
use holdfast_api::state::{ClusterState, Desired, Exclusion, Host, NodeState, OwnerExclusion};
use holdfast_config::WaitForNodes;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// The inputs of the state.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The registry's address now, as it stands in a reference.
    pub address: String,
    /// What was written last.
    pub previous: Option<ClusterState>,
    /// The addresses of the last node state.
    pub earlier: Vec<String>,
    /// Whether Holdfast stays on the nodes.
    pub desired: Desired,
    /// Addresses that images of living pods name; `None` while the pods are not known.
    pub used: Option<BTreeSet<String>>,
    /// The nodes in scope; `None` while they are not known.
    pub nodes: Option<Vec<NodeInput>>,
    /// Sources that the registry cannot copy.
    pub excluded: Vec<Exclusion>,
    /// Owners whose pods are not rewritten.
    pub excluded_owners: Vec<OwnerExclusion>,
    /// The images that pods of each namespace may pull, if that depends on the namespace.
    pub access: Option<AccessList>,
    /// Whether rewriting waits for the nodes.
    pub wait: WaitForNodes,
    /// How long the state has existed.
    pub waited: Duration,
}

/// A node in scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInput {
    /// Its name.
    pub name: String,
    /// Its Ready condition.
    pub ready: bool,
    /// Whether its agent completed a test pull.
    pub prepared: bool,
}

/// An IP address as it stands in a reference: IPv6 in brackets.
pub fn as_host(address: &str) -> String {
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => address.to_owned(),
    }
}

impl Inputs {
    /// Continues after an uninstallation that was interrupted, when the release is installed again:
    /// a controller starts and finds `removed`, which the uninstaller writes after it stopped the
    /// controller. The nodes are no longer prepared then, so rewriting starts over.
    #[must_use]
    pub fn resumed(mut self, just_started: bool) -> Self {
        if just_started && self.desired == Desired::Removed {
            self.desired = Desired::Present;
            if let Some(previous) = &mut self.previous {
                previous.rewrite = false;
            }
        }
        self
    }
}

/// The state for the webhook.
pub fn cluster_state(inputs: &Inputs) -> ClusterState {
    let (rewrite, reason) = rewrite(inputs);
    ClusterState {
        registry_address: inputs.address.clone(),
        aliases: aliases(inputs),
        rewrite,
        reason,
        excluded: inputs.excluded.clone(),
        excluded_owners: inputs.excluded_owners.clone(),
        access: inputs.access.clone(),
    }
}

/// Earlier addresses stay while a pod names them. All stay while pods are not known.
fn aliases(inputs: &Inputs) -> Vec<String> {
    let previous = inputs.previous.iter();
    let known = previous
        .flat_map(|state| std::iter::once(&state.registry_address).chain(&state.aliases))
        .chain(&inputs.earlier);
    let mut aliases: Vec<String> = Vec::new();
    for address in known {
        let in_use = inputs
            .used
            .as_ref()
            .is_none_or(|used| used.contains(address));
        if !address.is_empty() && *address != inputs.address && in_use && !aliases.contains(address)
        {
            aliases.push(address.clone());
        }
    }
    aliases
}

/// Whether pods are rewritten. Once on, it stays on: a node that loses its agent for a moment keeps
/// its host configuration, and without rewriting, pods would need the upstream just when it is
/// gone.
fn rewrite(inputs: &Inputs) -> (bool, String) {
    if inputs.desired == Desired::Removed {
        return (false, "Holdfast is being uninstalled".to_owned());
    }
    if inputs.wait == WaitForNodes::Always(false) {
        return (true, "webhook.waitForNodes is false".to_owned());
    }
    if let Some(previous) = inputs.previous.as_ref().filter(|previous| previous.rewrite) {
        // A different reason would cause a needless write.
        return (true, previous.reason.clone());
    }
    let Some(nodes) = &inputs.nodes else {
        return (false, "the nodes are not known yet".to_owned());
    };
    let ready = nodes.iter().filter(|node| node.ready).count();
    let mut waiting: Vec<&str> = nodes
        .iter()
        .filter(|node| node.ready && !node.prepared)
        .map(|node| node.name.as_str())
        .collect();
    if ready == 0 {
        return (false, "no node is Ready yet".to_owned());
    }
    if waiting.is_empty() {
        return (true, format!("all {ready} Ready nodes are prepared"));
    }
    waiting.sort_unstable();
    let (count, first) = (
        waiting.len(),
        waiting
            .iter()
            .take(3)
            .copied()
            .collect::<Vec<_>>()
            .join(", "),
    );
    let more = if count > 3 { ", …" } else { "" };
    let lacking = format!("{count} of {ready} Ready nodes not prepared: {first}{more}");
    match inputs.wait {
        WaitForNodes::Seconds(seconds)
            if inputs.waited >= Duration::from_secs(u64::from(seconds)) =>
        {
            (
                true,
                format!("waited {seconds} s for nodes, as configured; {lacking}"),
            )
        }
        _ => (false, lacking),
    }
}

/// The state for the node agents.
pub fn node_state(
    state: &ClusterState,
    desired: Desired,
    ca: String,
    username: String,
    password: SecretString,
) -> NodeState {
    let address = &state.registry_address;
    let endpoints = vec![
        format!("https://{address}"),
        format!("https://{address}:5000"),
    ];
    let hosts = std::iter::once(address)
        .chain(&state.aliases)
        // Nodes connect to the current address, because the earlier ones do not answer.
        .map(|host| Host {
            address: host.clone(),
            endpoints: endpoints.clone(),
        })
        .collect();
    NodeState {
        desired,
        hosts,
        ca,
        username,
        password,
        probe: format!("{address}/holdfast/probe:1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ready: bool, prepared: bool) -> NodeInput {
        NodeInput {
            name: name.to_owned(),
            ready,
            prepared,
        }
    }

    fn inputs(nodes: &[NodeInput]) -> Inputs {
        Inputs {
            address: "10.96.0.50".to_owned(),
            previous: None,
            earlier: Vec::new(),
            desired: Desired::Present,
            used: Some(BTreeSet::new()),
            nodes: Some(nodes.to_vec()),
            excluded: Vec::new(),
            excluded_owners: Vec::new(),
            access: None,
            wait: WaitForNodes::Always(true),
            waited: Duration::ZERO,
        }
    }

    // SPEC 34
    #[test]
    fn rewriting_begins_when_every_ready_node_is_prepared() {
        for (nodes, expect, reason) in [
            (vec![], false, "no node is Ready yet"),
            (
                vec![node("a", true, false)],
                false,
                "1 of 1 Ready nodes not prepared: a",
            ),
            (
                vec![node("a", true, true), node("b", true, false)],
                false,
                "1 of 2 Ready nodes not prepared: b",
            ),
            (
                vec![node("a", true, true), node("b", false, false)],
                true,
                "all 1 Ready nodes are prepared",
            ),
            (vec![node("a", false, false)], false, "no node is Ready yet"),
            (
                vec![node("a", true, true), node("b", true, true)],
                true,
                "all 2 Ready nodes are prepared",
            ),
        ] {
            let state = cluster_state(&inputs(&nodes));
            assert_eq!(
                (state.rewrite, state.reason.as_str()),
                (expect, reason),
                "{nodes:?}"
            );
        }
    }

    #[test]
    fn once_on_it_stays_on() {
        let mut inputs = inputs(&[node("a", true, false)]);
        let on = ClusterState {
            registry_address: "10.96.0.50".to_owned(),
            rewrite: true,
            reason: "because".to_owned(),
            ..ClusterState::default()
        };
        inputs.previous = Some(on.clone());
        assert_eq!(
            cluster_state(&inputs),
            on,
            "the same document, so nothing is written"
        );
        inputs.nodes = None;
        assert_eq!(cluster_state(&inputs), on);
        inputs.desired = Desired::Removed;
        assert!(!cluster_state(&inputs).rewrite, "uninstalling ends it");
    }

    #[test]
    fn a_release_that_is_installed_again_is_not_removed_for_ever() {
        let mut inputs = inputs(&[node("a", true, false)]);
        inputs.previous = Some(ClusterState {
            registry_address: "10.96.0.50".to_owned(),
            rewrite: true,
            ..ClusterState::default()
        });
        let present = inputs.clone().resumed(true);
        assert!(cluster_state(&present).rewrite, "an ordinary start");
        inputs.desired = Desired::Removed;
        let resumed = inputs.clone().resumed(true);
        assert_eq!(resumed.desired, Desired::Present);
        assert!(!cluster_state(&resumed).rewrite, "its node was put back");
        assert_eq!(
            inputs.resumed(false).desired,
            Desired::Removed,
            "the uninstaller wrote it while this controller runs"
        );
    }

    #[test]
    fn the_wait_can_be_bounded_or_left_out() {
        let mut inputs = inputs(&[node("a", true, false)]);
        inputs.wait = WaitForNodes::Seconds(60);
        inputs.waited = Duration::from_secs(59);
        assert!(!cluster_state(&inputs).rewrite);
        inputs.waited = Duration::from_secs(60);
        let state = cluster_state(&inputs);
        assert!(state.rewrite);
        assert_eq!(
            state.reason,
            "waited 60 s for nodes, as configured; 1 of 1 Ready nodes not prepared: a"
        );
        inputs.wait = WaitForNodes::Always(false);
        inputs.waited = Duration::ZERO;
        inputs.nodes = None;
        assert!(cluster_state(&inputs).rewrite);
    }

    #[test]
    fn earlier_addresses_stay_while_pods_name_them() {
        let previous = ClusterState {
            registry_address: "10.96.0.9".to_owned(),
            aliases: vec!["10.96.0.8".to_owned(), "10.96.0.7".to_owned()],
            ..ClusterState::default()
        };
        for (used, expect) in [
            (Some(vec![]), vec![]),
            (
                Some(vec!["10.96.0.9", "10.96.0.7", "10.1.1.1"]),
                vec!["10.96.0.9", "10.96.0.7"],
            ),
            (None, vec!["10.96.0.9", "10.96.0.8", "10.96.0.7"]),
        ] {
            let mut inputs = inputs(&[]);
            inputs.previous = Some(previous.clone());
            inputs.used = used.map(|used: Vec<&str>| used.into_iter().map(str::to_owned).collect());
            assert_eq!(cluster_state(&inputs).aliases, expect);
        }
    }

    #[test]
    fn what_only_the_nodes_were_told_is_an_earlier_address_too() {
        let mut inputs = inputs(&[]);
        inputs.earlier = vec!["10.96.0.50".to_owned(), "10.96.0.9".to_owned()];
        inputs.used = Some(BTreeSet::from(["10.96.0.9".to_owned()]));
        assert_eq!(cluster_state(&inputs).aliases, ["10.96.0.9"]);
    }

    #[test]
    fn nodes_reach_earlier_addresses_at_the_present_one() {
        let state = ClusterState {
            registry_address: as_host("fd00::5"),
            aliases: vec!["10.96.0.9".to_owned()],
            ..ClusterState::default()
        };
        let node = node_state(
            &state,
            Desired::Present,
            "PEM".to_owned(),
            "u".to_owned(),
            "p".into(),
        );
        assert_eq!(node.probe, "[fd00::5]/holdfast/probe:1");
        let addresses: Vec<_> = node
            .hosts
            .iter()
            .map(|host| host.address.as_str())
            .collect();
        assert_eq!(addresses, ["[fd00::5]", "10.96.0.9"]);
        assert_eq!(
            node.hosts[1].endpoints,
            ["https://[fd00::5]", "https://[fd00::5]:5000"]
        );
    }
}
