//! What the node agents report of their nodes (`holdfast_api::report`): kept by node, and asked
//! which images start where without a pull.
//!
//! The controller's `report_server` receives them. Only the leader keeps them; agents send them to
//! every replica that listens.

mod on_nodes;
mod preloaded;

pub use on_nodes::OnNodes;

use holdfast_api::report::{MAX_FOREIGN_HOSTS, NodeReport, ReportedImage, Users};
use holdfast_core::kubelet::{self, Access, Credentials, Node, NodeImage, Policy, Record};
use holdfast_core::reference::Reference;
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Image IDs of all nodes together. Reports beyond it are refused, and their nodes stay unknown.
pub const MAX_TOTAL_IMAGES: usize = 1_000_000;

/// Bytes of all reports together, estimated from above. Images that nodes report alike count once.
/// Reports beyond it are refused, and their nodes stay unknown.
pub const MAX_TOTAL_BYTES: usize = 96 << 20;

/// How long a report is believed after an agent last confirmed it, which it does every minute.
pub const REPORT_TTL: Duration = Duration::from_secs(200);

/// Bytes of a string beside its text, of an entry of a list or map, and of a set.
const STRING_BYTES: usize = 48;
const ENTRY_BYTES: usize = 160;
const SET_BYTES: usize = 640;

/// The reports of all nodes. Images that several nodes report alike are kept once.
#[derive(Debug)]
pub struct Reports {
    kept: RwLock<Kept>,
    /// Counts changes of what reports say.
    version: watch::Sender<u64>,
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            kept: RwLock::default(),
            version: watch::Sender::new(0),
        }
    }
}

#[derive(Debug, Default)]
struct Kept {
    images: HashSet<Arc<Image>>,
    nodes: BTreeMap<String, Report>,
    /// Image IDs of all nodes.
    total: usize,
    /// Bytes of the images and of the reports' hosts.
    bytes: usize,
}

/// The last report of a node.
#[derive(Debug)]
struct Report {
    /// The UID of the Node object, which differs for a node that joins again under the same name.
    uid: String,
    digest: String,
    confirmed: Instant,
    gate: bool,
    truncated: bool,
    images: Vec<Arc<Image>>,
    foreign_hosts: Vec<String>,
}

/// An image as nodes report it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Image {
    /// Names with tag and names with digest.
    names: Vec<String>,
    record: Option<Record>,
    intent: bool,
}

/// A node, by which reports are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId<'a> {
    /// The node's name.
    pub name: &'a str,
    /// The UID of its Node object.
    pub uid: &'a str,
}

/// There is too much in the reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the nodes together report more than {MAX_TOTAL_IMAGES} images or {MAX_TOTAL_BYTES} bytes; \
     what this one has is not known"
)]
pub struct Full;

impl Reports {
    /// Keeps the report of a node in place of its former one. `digest` is that of the report as it
    /// was posted.
    pub fn keep(
        &self,
        report: NodeReport,
        digest: &str,
        uid: &str,
        now: Instant,
    ) -> Result<(), Full> {
        let node = report.node.clone();
        let id = NodeId { name: &node, uid };
        if self.confirm(id, digest, now) {
            return Ok(());
        }
        let mut next = Report {
            uid: uid.to_owned(),
            digest: digest.to_owned(),
            confirmed: now,
            gate: report.gate,
            truncated: report.truncated,
            images: Vec::new(),
            foreign_hosts: report.foreign_hosts,
        };
        let images: Vec<Image> = report.image_ids.into_iter().map(Image::of).collect();
        let outcome = {
            let mut kept = self.kept.write();
            // Outdated in each case.
            kept.remove(&node);
            if kept.take(&mut next, images) {
                kept.nodes.insert(node, next);
                Ok(())
            } else {
                kept.release(next);
                Err(Full)
            }
        };
        self.changed();
        outcome
    }

    /// Confirms the last report of a node. False if the node has none with this digest.
    pub fn confirm(&self, node: NodeId<'_>, digest: &str, now: Instant) -> bool {
        let mut kept = self.kept.write();
        let report = kept.nodes.get_mut(node.name);
        let report = report.filter(|report| report.uid == node.uid && report.digest == digest);
        let is_known = report.is_some();
        if let Some(report) = report {
            report.confirmed = now;
        }
        is_known
    }

    /// Drops the reports of nodes that are not there any more, by name and UID.
    pub fn retain(&self, nodes: &BTreeMap<&str, &str>) {
        let gone: Vec<String> = {
            let kept = self.kept.read();
            let reports = kept.nodes.iter();
            let is_gone = |(name, report): &(&String, &Report)| {
                nodes
                    .get(name.as_str())
                    .is_none_or(|uid| *uid != report.uid)
            };
            let gone = reports.filter(is_gone);
            gone.map(|(name, _)| name.clone()).collect()
        };
        for node in &gone {
            self.kept.write().remove(node);
        }
        if !gone.is_empty() {
            self.changed();
        }
    }

    /// Counts changes of what reports say; confirmations are none.
    pub fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn changed(&self) {
        self.version
            .send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Seconds since the node that was silent for longest confirmed its report; `None` without any.
    pub fn age(&self, now: Instant) -> Option<u64> {
        let kept = self.kept.read();
        let oldest = kept.nodes.values().map(|report| report.confirmed).min()?;
        Some(now.saturating_duration_since(oldest).as_secs())
    }

    /// Whether a container that names `text` starts on a node without a pull, if its policy is not
    /// `Always`. `None`: nothing is known at `now`, because there is no report, it is not complete,
    /// or it was not confirmed for [`REPORT_TTL`].
    pub fn starts(&self, text: &str, node: &str, pod: &Credentials, now: Instant) -> Option<bool> {
        let reference = Reference::parse(text).ok()?;
        let name = kubelet::listed_name(&reference);
        let kept = self.kept.read();
        let report = kept.nodes.get(node)?;
        if !report.is_current(now) {
            return None;
        }
        let facts = facts(report.gate);
        let images = report.images.iter();
        let mut named = images
            .filter(|image| image.names.contains(&name))
            .peekable();
        if named.peek().is_none() && report.truncated {
            return None;
        }
        Some(named.any(|image| kubelet::starts(&reference, &image.by_name(&name), &facts, pod)))
    }

    /// The hosts that the runtimes of nodes know by a configuration that Holdfast did not write, in
    /// order, at most [`MAX_FOREIGN_HOSTS`]: of more, those that most nodes know.
    pub fn foreign_hosts(&self, now: Instant) -> BTreeSet<String> {
        let kept = self.kept.read();
        let mut nodes: HashMap<&str, usize> = HashMap::new();
        for report in kept.nodes.values().filter(|it| it.is_current(now)) {
            let hosts: BTreeSet<&String> = report.foreign_hosts.iter().collect();
            for host in hosts {
                *nodes.entry(host).or_default() += 1;
            }
        }
        let mut hosts: Vec<(&str, usize)> = nodes.into_iter().collect();
        hosts.sort_unstable_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(other.0)));
        let hosts = hosts.into_iter().take(MAX_FOREIGN_HOSTS);
        hosts.map(|(host, _)| host.to_owned()).collect()
    }
}

/// What is known of a node beside its images.
fn facts(keeps_records: bool) -> Node {
    Node {
        keeps_records,
        // The kubelet's default, as long as nothing tells it.
        policy: Policy::default(),
    }
}

impl Kept {
    /// Adds images to a report that is not kept yet. False if there is no room; then some of them
    /// are added.
    fn take(&mut self, report: &mut Report, images: Vec<Image>) -> bool {
        self.bytes = self.bytes.saturating_add(report.bytes());
        if self.total.saturating_add(images.len()) > MAX_TOTAL_IMAGES {
            return false;
        }
        for image in images {
            let known = self.images.get(&image).map(Arc::clone);
            let image = known.unwrap_or_else(|| {
                let image = Arc::new(image);
                self.bytes = self.bytes.saturating_add(image.bytes());
                self.images.insert(Arc::clone(&image));
                image
            });
            report.images.push(image);
            self.total += 1;
            if self.bytes > MAX_TOTAL_BYTES {
                return false;
            }
        }
        self.bytes <= MAX_TOTAL_BYTES
    }

    fn remove(&mut self, node: &str) {
        if let Some(report) = self.nodes.remove(node) {
            self.release(report);
        }
    }

    /// Drops a report, and its images that no other one has.
    fn release(&mut self, report: Report) {
        self.bytes = self.bytes.saturating_sub(report.bytes());
        self.total = self.total.saturating_sub(report.images.len());
        for image in report.images {
            // One is here, and one is in `images`.
            if Arc::strong_count(&image) == 2 {
                self.images.remove(&image);
                self.bytes = self.bytes.saturating_sub(image.bytes());
            }
        }
    }
}

impl Report {
    fn is_current(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.confirmed) < REPORT_TTL
    }

    /// Its bytes without its images.
    fn bytes(&self) -> usize {
        let hosts = self.foreign_hosts.iter();
        let hosts = hosts.map(|host| host.len() + STRING_BYTES).sum::<usize>();
        ENTRY_BYTES + hosts
    }
}

impl Image {
    fn of(image: ReportedImage) -> Self {
        let names: BTreeSet<String> = image.names.into_iter().chain(image.manifests).collect();
        Self {
            names: names.into_iter().collect(),
            record: image.record.map(|record| {
                let record = record.into_iter();
                record
                    .map(|(repository, users)| (canonical(repository), access(users)))
                    .collect()
            }),
            intent: image.intent,
        }
    }

    /// The bytes that it takes, estimated from above.
    fn bytes(&self) -> usize {
        let names = self.names.iter();
        let names = names.map(|name| name.len() + STRING_BYTES).sum::<usize>();
        let of_set = |set: &BTreeSet<(String, String)>| {
            let pairs = set.iter();
            let pairs = pairs.map(|pair| pair.0.len() + pair.1.len() + 3 * STRING_BYTES);
            pairs.sum::<usize>() + usize::from(!set.is_empty()) * SET_BYTES
        };
        let record = self.record.iter().flatten().map(|(repository, access)| {
            let users = match access {
                Access::AllPods => 0,
                Access::Only {
                    secrets,
                    service_accounts,
                } => of_set(secrets) + of_set(service_accounts),
            };
            repository.len() + ENTRY_BYTES + users
        });
        let has_record = self
            .record
            .as_ref()
            .is_some_and(|record| !record.is_empty());
        ENTRY_BYTES + names + record.sum::<usize>() + usize::from(has_record) * SET_BYTES
    }

    /// The image as far as it concerns one name.
    fn by_name(&self, name: &str) -> NodeImage {
        NodeImage {
            names: BTreeSet::from([name.to_owned()]),
            record: self.record.clone(),
            intent: self.intent,
        }
    }
}

/// The repository in canonical form, which is how kubelets name it.
fn canonical(repository: String) -> String {
    match Reference::parse(&repository) {
        Ok(reference) => kubelet::repository(&reference),
        Err(_) => repository,
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

#[cfg(test)]
mod tests;
