//! What the node agents report of their nodes (`holdfast_api::report`): kept by node, and asked
//! which images start where without a pull.
//!
//! The controller's `report_server` receives the reports. Only the leader keeps them; agents send
//! them to every replica that listens.

use holdfast_api::report::{MAX_FOREIGN_HOSTS, NodeReport, ReportedImage, Users};
use holdfast_core::kubelet::{self, Access, Credentials, Node, NodeImage, Policy};
use holdfast_core::reference::Reference;
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Image IDs of all nodes together. Reports beyond it are refused, and their nodes stay unknown.
pub const MAX_TOTAL_IMAGES: usize = 1_000_000;

/// How long a report is believed. Agents send one every ten minutes.
pub const REPORT_TTL: Duration = Duration::from_secs(900);

/// The reports of all nodes. Names that several nodes report are kept once.
#[derive(Debug, Default)]
pub struct Reports(RwLock<Kept>);

#[derive(Debug, Default)]
struct Kept {
    names: HashSet<Arc<str>>,
    nodes: BTreeMap<String, Report>,
}

/// The last report of a node.
#[derive(Debug)]
struct Report {
    received: Instant,
    gate: bool,
    truncated: bool,
    images: Vec<Image>,
    foreign_hosts: Vec<Arc<str>>,
}

#[derive(Debug)]
struct Image {
    /// Names with tag and names with digest.
    names: Vec<Arc<str>>,
    record: Option<Vec<(Arc<str>, Access)>>,
    intent: bool,
}

/// There are too many images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the nodes report more than {MAX_TOTAL_IMAGES} images")]
pub struct Full;

impl Reports {
    /// Keeps the report of a node in place of its former one.
    pub fn keep(&self, report: NodeReport, now: Instant) -> Result<(), Full> {
        let mut kept = self.0.write();
        let others = kept.nodes.iter().filter(|(node, _)| **node != report.node);
        let total: usize = others.map(|(_, report)| report.images.len()).sum();
        if total.saturating_add(report.image_ids.len()) > MAX_TOTAL_IMAGES {
            return Err(Full);
        }
        let Kept { names, nodes } = &mut *kept;
        let mut intern = |name: String| {
            if let Some(known) = names.get(name.as_str()) {
                return Arc::clone(known);
            }
            let name: Arc<str> = name.into();
            names.insert(Arc::clone(&name));
            name
        };
        let images = report.image_ids.into_iter();
        let entry = Report {
            received: now,
            gate: report.gate,
            truncated: report.truncated,
            images: images.map(|image| Image::of(image, &mut intern)).collect(),
            foreign_hosts: report.foreign_hosts.into_iter().map(&mut intern).collect(),
        };
        nodes.insert(report.node, entry);
        kept.forget_names();
        Ok(())
    }

    /// Drops the reports of nodes that are not there any more.
    pub fn retain(&self, nodes: &BTreeSet<&str>) {
        let gone = |kept: &Kept| kept.nodes.keys().any(|node| !nodes.contains(node.as_str()));
        if !gone(&self.0.read()) {
            return;
        }
        let mut kept = self.0.write();
        kept.nodes.retain(|node, _| nodes.contains(node.as_str()));
        kept.forget_names();
    }

    /// Seconds since the report of the node that has not reported for longest; `None` without any.
    pub fn age(&self, now: Instant) -> Option<u64> {
        let kept = self.0.read();
        let oldest = kept.nodes.values().map(|report| report.received).min()?;
        Some(now.saturating_duration_since(oldest).as_secs())
    }

    /// Whether a container that names `text` starts on a node without a pull, if its policy is not
    /// `Always`. `None`: nothing is known at `now`, because there is no report, it is not complete,
    /// or it is older than [`REPORT_TTL`].
    pub fn starts(&self, text: &str, node: &str, pod: &Credentials, now: Instant) -> Option<bool> {
        let reference = Reference::parse(text).ok()?;
        let name = kubelet::listed_name(&reference);
        // The policy is the kubelet's default, as long as nothing tells it.
        let policy = Policy::default();
        let kept = self.0.read();
        let report = kept.nodes.get(node)?;
        if now.saturating_duration_since(report.received) >= REPORT_TTL {
            return None;
        }
        let facts = Node {
            keeps_records: report.gate,
            policy,
        };
        let repository = kubelet::repository(&reference);
        let mut named = report
            .images
            .iter()
            .filter(|image| image.names.iter().any(|known| **known == name))
            .peekable();
        if named.peek().is_none() && report.truncated {
            return None;
        }
        Some(named.any(|image| {
            let image = image.by_name(&name, written_repository(text), &repository);
            kubelet::starts(&reference, &image, &facts, pod)
        }))
    }

    /// The hosts that the runtimes of nodes know by a configuration that Holdfast did not write, in
    /// order, at most [`MAX_FOREIGN_HOSTS`].
    pub fn foreign_hosts(&self) -> Vec<String> {
        let kept = self.0.read();
        let hosts = kept.nodes.values().flat_map(|report| &report.foreign_hosts);
        let hosts: BTreeSet<&Arc<str>> = hosts.collect();
        let hosts = hosts.into_iter().take(MAX_FOREIGN_HOSTS);
        hosts.map(ToString::to_string).collect()
    }
}

impl Kept {
    /// Drops names that no report has any more.
    fn forget_names(&mut self) {
        self.names.retain(|name| Arc::strong_count(name) > 1);
    }
}

impl Image {
    fn of(image: ReportedImage, intern: &mut impl FnMut(String) -> Arc<str>) -> Self {
        let names = image.names.into_iter().chain(image.manifests);
        Self {
            names: names.map(&mut *intern).collect(),
            record: image.record.map(|record| {
                let record = record.into_iter();
                record
                    .map(|(repository, users)| (intern(repository), access(users)))
                    .collect()
            }),
            intent: image.intent,
        }
    }

    /// The image as far as it concerns one name. Kubelets know repositories as pods write them:
    /// `nginx` and `docker.io/library/nginx` are two.
    fn by_name(&self, name: &str, written: &str, repository: &str) -> NodeImage {
        NodeImage {
            names: BTreeSet::from([name.to_owned()]),
            record: self.record.as_ref().map(|record| {
                let access = record.iter().find(|(known, _)| **known == *written);
                let access = access.map(|(_, access)| (repository.to_owned(), access.clone()));
                access.into_iter().collect()
            }),
            intent: self.intent,
        }
    }
}

fn access(users: Users) -> Access {
    let pairs = |names: Vec<String>| {
        let pair = |name: &String| {
            let (namespace, name) = name.split_once('/')?;
            Some((namespace.to_owned(), name.to_owned()))
        };
        names.iter().filter_map(pair).collect()
    };
    match users {
        Users::Any => Access::AllPods,
        Users::Only {
            secrets,
            service_accounts,
        } => Access::Only {
            secrets: pairs(secrets),
            service_accounts: pairs(service_accounts),
        },
    }
}

/// The repository in a reference as it is written, without tag and digest.
fn written_repository(text: &str) -> &str {
    let text = text.split_once('@').map_or(text, |(name, _)| name);
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => text,
    }
}

#[cfg(test)]
mod tests;
