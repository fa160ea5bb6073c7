//! What the node agents' reports say about names of images, for the webhook.

use crate::nodes::decide::Node;
use holdfast_cluster_index::reports::{NodeId, OnNodes, Reports};
use holdfast_config::Values;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Time after which the reports are read again without a change: some may be too old.
const READ_INTERVAL: Duration = Duration::from_secs(30);
/// The folder of the runtime's configuration for every host without one of its own.
const EVERY_HOST: &str = "_default";

/// The names that start on nodes. They are computed again only after a change of a report or of the
/// nodes.
#[derive(Debug, Default)]
pub(super) struct Reported {
    computed: Option<Computed>,
    on_nodes: OnNodes,
}

/// What the names were computed from, and when.
#[derive(Debug)]
struct Computed {
    version: u64,
    /// Name and UID of each node, in order.
    nodes: Vec<(String, String)>,
    at: Instant,
}

impl Reported {
    /// The names that start on the nodes where the scheduler places pods.
    pub(super) fn observe(&mut self, reports: &Reports, nodes: &[Node]) -> &OnNodes {
        let (now, version) = (Instant::now(), *reports.version().borrow());
        let schedulable = nodes
            .iter()
            .filter(|node| node.ready && node.in_scope && !node.cordoned);
        let mut schedulable: Vec<(String, String)> = schedulable
            .map(|node| (node.name.clone(), node.uid.clone()))
            .collect();
        schedulable.sort_unstable();
        let is_computed = self.computed.as_ref().is_some_and(|it| {
            it.version == version && it.nodes == schedulable && now - it.at < READ_INTERVAL
        });
        if !is_computed {
            let ids = schedulable.iter();
            let ids: Vec<NodeId<'_>> = ids.map(|(name, uid)| NodeId { name, uid }).collect();
            self.on_nodes = reports.on_nodes(&ids, now);
            self.computed = Some(Computed {
                version,
                nodes: schedulable,
                at: now,
            });
        }
        &self.on_nodes
    }
}

/// The hosts that only nodes may know. Not those whose upstream the values configure, because then
/// the registry knows them, too. The configuration for every host names none.
pub(super) fn foreign(mut hosts: BTreeSet<String>, values: &Values) -> Vec<String> {
    hosts.remove(EVERY_HOST);
    // A node may report any text.
    let is_of_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    hosts.retain(|host| host.bytes().all(is_of_host));
    for upstream in &values.upstreams {
        hosts.remove(&upstream.host);
    }
    hosts.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::report::{NodeReport, ReportedImage};

    fn node(name: &str) -> Node {
        Node {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            ready: true,
            in_scope: true,
            ..Node::default()
        }
    }

    fn keep(reports: &Reports, node: &str, names: &[&str]) {
        let image = ReportedImage {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..ReportedImage::default()
        };
        let report = NodeReport {
            node: node.to_owned(),
            gate: true,
            image_ids: vec![image],
            ..NodeReport::default()
        };
        let digest = names.concat();
        let uid = format!("uid-{node}");
        reports.keep(report, &digest, &uid, Instant::now()).unwrap();
    }

    #[test]
    fn the_nodes_where_pods_are_scheduled_count() {
        let reports = Reports::default();
        keep(&reports, "a", &["r.io/x:1", "r.io/y:1"]);
        keep(&reports, "b", &["r.io/x:1"]);
        let mut reported = Reported::default();
        let mut nodes = vec![node("a"), node("b")];
        let on_nodes = reported.observe(&reports, &nodes).clone();
        assert_eq!(on_nodes.all, ["r.io/x:1"]);
        assert_eq!(on_nodes.some, ["r.io/y:1"]);
        assert!(on_nodes.complete);

        for change in [
            |node: &mut Node| node.ready = false,
            |node: &mut Node| node.in_scope = false,
            |node: &mut Node| node.cordoned = true,
        ] {
            let mut nodes = nodes.clone();
            change(&mut nodes[1]);
            assert_eq!(reported.observe(&reports, &nodes).all.len(), 2);
        }
        nodes[1].uid = "another".to_owned();
        let on_nodes = reported.observe(&reports, &nodes);
        assert!(on_nodes.all.is_empty() && !on_nodes.complete);
        nodes.pop();
        assert_eq!(reported.observe(&reports, &nodes).all.len(), 2);
        keep(&reports, "a", &["r.io/y:1"]);
        assert_eq!(reported.observe(&reports, &nodes).all, ["r.io/y:1"]);
        assert!(!reported.observe(&reports, &[]).complete, "no node");
    }

    #[test]
    fn hosts_of_configured_upstreams_are_not_foreign() {
        let mut values = Values::default();
        values.upstreams.push(holdfast_config::Upstream {
            host: "a.example".to_owned(),
            ..Default::default()
        });
        let hosts = [
            "_default",
            "a.example",
            "b.example:5000",
            "\u{1}\"",
            "é.example",
        ];
        let hosts = hosts.map(str::to_owned);
        assert_eq!(foreign(hosts.into(), &values), ["b.example:5000"]);
    }
}
