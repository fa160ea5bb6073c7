//! Metrics of the node agent.

use holdfast_runtime::metrics::Group;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::cri::{self, Fault};

/// The label of pulls.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    outcome: &'static str,
}

/// The counters.
#[derive(Debug)]
pub struct Metrics {
    pulls: Family<Outcome, Counter>,
    /// Files that somebody else had changed and that were written again.
    pub repairs: Counter,
}

impl Metrics {
    /// Registers the counters.
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
                "Host files written again after somebody else changed them",
                Counter::default(),
            ),
        }
    }

    /// Counts a pull.
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
