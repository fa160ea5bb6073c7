//! Metrics of the node agent.

use holdfast_runtime::metrics::Group;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::cri::{self, Fault};

/// The label of pulls.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    outcome: &'static str,
}

/// The metrics.
#[derive(Debug)]
pub struct Metrics {
    pulls: Family<Outcome, Counter>,
    /// Files that another program changed and that were written again.
    pub repairs: Counter,
    /// Files that differ from what is wanted and are not touched.
    pub left: Gauge,
    /// 1 while the host cannot be prepared.
    pub failing: Gauge,
    /// Pinned images.
    pub pinned: Gauge,
    /// 1 while images that should be pinned are not.
    pub pins_failing: Gauge,
    /// Replacements of the runtime.
    pub runtimes: Counter,
}

impl Metrics {
    /// Registers all metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let mut group = Group::own(registry, "");
        Self {
            pulls: group.add(
                "probe_pulls",
                "Real pulls through the container runtime, by outcome",
                Family::default(),
            ),
            repairs: group.add(
                "repairs",
                "Host files written again after another program changed them",
                Counter::default(),
            ),
            left: group.add(
                "host_files_left",
                "Host files that differ from what is wanted and are no longer repaired",
                Gauge::default(),
            ),
            failing: group.add(
                "host_failing",
                "1 while this node's runtime cannot be prepared; the log and an event on the node say why",
                Gauge::default(),
            ),
            pinned: group.add(
                "pinned_images",
                "Images of Holdfast and the sandbox that are pinned against image garbage \
                 collection",
                Gauge::default(),
            ),
            pins_failing: group.add(
                "pins_failing",
                "1 while these images are not pinned; an event on the node says why",
                Gauge::default(),
            ),
            runtimes: group.add(
                "runtime_changes",
                "Replacements of the container runtime: another version or other data",
                Counter::default(),
            ),
        }
    }

    /// Counts a pull of the probe image.
    pub fn pulled(&self, error: Option<&cri::grpc::Error>) {
        let outcome = match error.map(cri::fault) {
            None => "ok",
            Some(Fault::Node) => "node",
            Some(Fault::Registry) => "registry",
            Some(Fault::Runtime) => "runtime",
        };
        self.pulls.get_or_create(&Outcome { outcome }).inc();
    }
}
