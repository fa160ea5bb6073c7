//! The metrics of healing.

use holdfast_runtime::metrics::Group;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// Actions of healing, and their outcomes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabel {
    action: &'static str,
    outcome: &'static str,
}

/// Counters and gauges. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    actions: Family<ActionLabel, Counter>,
    pods_stuck: Gauge,
    excluded_sources: Gauge,
    excluded_owners: Gauge,
    excluded_namespaces: Gauge,
}

impl Metrics {
    /// Registers them in the controller's group.
    pub fn register(group: &mut Group<'_>) -> Self {
        Self {
            actions: group.add(
                "healing_actions",
                "Actions of healing, by action and outcome",
                Family::default(),
            ),
            pods_stuck: group.add(
                "pods_stuck",
                "Pods with a container whose image pull fails",
                Gauge::default(),
            ),
            excluded_sources: group.add(
                "excluded_sources",
                "Sources that are not rewritten because the registry cannot copy them",
                Gauge::default(),
            ),
            excluded_owners: group.add(
                "excluded_owners",
                "Owners whose pods are not rewritten because they deleted rewritten pods",
                Gauge::default(),
            ),
            excluded_namespaces: group.add(
                "excluded_namespaces",
                "Namespaces that are not rewritten because a policy denies that",
                Gauge::default(),
            ),
        }
    }

    pub(crate) fn healed(&self, action: &'static str, outcome: &'static str) {
        self.actions
            .get_or_create(&ActionLabel { action, outcome })
            .inc();
    }

    pub(crate) fn pods_stuck(&self, count: usize) {
        set(&self.pods_stuck, count);
    }

    pub(crate) fn excluded_sources(&self, count: usize) {
        set(&self.excluded_sources, count);
    }

    pub(crate) fn excluded_owners(&self, count: usize) {
        set(&self.excluded_owners, count);
    }

    pub(crate) fn excluded_namespaces(&self, count: usize) {
        set(&self.excluded_namespaces, count);
    }
}

fn set(gauge: &Gauge, count: usize) {
    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
}
