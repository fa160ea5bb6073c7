//! The metrics of the watches.

use holdfast_runtime::metrics::Group;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// A kind of workload, by its resource's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// Gauges. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    hidden: Family<KindLabel, Gauge>,
}

impl Metrics {
    /// Registers them in the controller's group.
    pub fn register(group: &mut Group<'_>) -> Self {
        Self {
            hidden: group.add(
                "unreadable_kinds",
                "1 for a workload kind that the controller may not read; its images are copied \
                 only for existing pods",
                Family::default(),
            ),
        }
    }

    pub(crate) fn hidden(&self, kind: &'static str, hidden: bool) {
        self.hidden
            .get_or_create(&KindLabel { kind })
            .set(i64::from(hidden));
    }
}
