//! On which nodes names start without a pull, from all reports at once.
//!
//! Images that nodes report alike are one, so the work is one bit a node and image, and then one
//! look at each name. Secrets do not count: a name is on a node if all its pods may use it.
//!
//! Of too many names, those that most nodes have are kept, so that one node cannot displace others.

use super::{Image, NodeId, Reports, facts};
use holdfast_api::delivery::MAX_SOURCES;
use holdfast_core::kubelet::{self, Credentials};
use holdfast_core::reference::Reference;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// The names that start on nodes without a pull, canonical as runtimes list them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnNodes {
    /// Those that start on each of the nodes.
    pub all: Vec<String>,
    /// Those that start on some of them.
    pub some: Vec<String>,
    /// Whether each node reported all its images: a name in neither list then starts on none.
    pub complete: bool,
}

/// A set of nodes.
type Bits = Vec<u64>;

impl Reports {
    /// The names of images that start on `nodes` without a pull, as reported by `now`.
    pub fn on_nodes(&self, nodes: &[NodeId<'_>], now: Instant) -> OnNodes {
        let kept = self.kept.read();
        let words = nodes.len().div_ceil(64);
        let mut found: HashMap<*const Image, (&Image, Bits)> = HashMap::new();
        let mut with_records: Bits = vec![0; words];
        let mut complete = !nodes.is_empty();
        for (at, node) in nodes.iter().enumerate() {
            let report = kept.nodes.get(node.name);
            let report = report.filter(|it| it.uid == node.uid && it.is_current(now));
            let Some(report) = report else {
                complete = false;
                continue;
            };
            complete &= !report.truncated;
            if report.gate {
                set(&mut with_records, at);
            }
            for image in &report.images {
                let new = || (image.as_ref(), vec![0; words]);
                let (_, bits) = found.entry(Arc::as_ptr(image)).or_insert_with(new);
                set(bits, at);
            }
        }
        let mut by_name: HashMap<&str, Vec<&(&Image, Bits)>> = HashMap::new();
        for entry in found.values() {
            for name in &entry.0.names {
                by_name.entry(name).or_default().push(entry);
            }
        }
        let mut names: Vec<_> = by_name.into_iter().collect();
        if names.len() > MAX_SOURCES {
            complete = false;
            names.sort_by_cached_key(|(name, images)| {
                let nodes = images.iter().map(|(_, nodes)| count(nodes)).max();
                (Reverse(nodes), *name)
            });
            names.truncate(MAX_SOURCES);
        }
        let mut on_nodes = OnNodes {
            complete,
            ..OnNodes::default()
        };
        for (name, images) in names {
            let Ok(reference) = Reference::parse(name) else {
                continue;
            };
            match count(&start(&reference, &images, &with_records)) {
                0 => {}
                count if count == nodes.len() => on_nodes.all.push(name.to_owned()),
                _ => on_nodes.some.push(name.to_owned()),
            }
        }
        on_nodes
    }
}

fn count(nodes: &Bits) -> usize {
    nodes.iter().map(|word| word.count_ones() as usize).sum()
}

/// The nodes on which one of the images opens its name to all pods.
fn start(reference: &Reference, images: &[&(&Image, Bits)], with_records: &Bits) -> Bits {
    let name = kubelet::listed_name(reference);
    let nobody = Credentials::default();
    let mut starts = vec![0; with_records.len()];
    for (image, nodes) in images {
        let image = image.by_name(&name);
        let opens = |keeps_records| {
            let facts = facts(keeps_records);
            kubelet::starts(reference, &image, &facts, &nobody)
        };
        let (by_record, without) = (opens(true), opens(false));
        for ((start, node), record) in starts.iter_mut().zip(nodes).zip(with_records) {
            let open = if by_record { *record } else { 0 } | if without { !*record } else { 0 };
            *start |= *node & open;
        }
    }
    starts
}

fn set(bits: &mut Bits, at: usize) {
    if let Some(word) = bits.get_mut(at / 64) {
        *word |= 1 << (at % 64);
    }
}
