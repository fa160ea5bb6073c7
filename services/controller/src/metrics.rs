//! The controller's metrics. Labels have fixed values, never names of images or namespaces.

use holdfast_api::artifact::Reason;
use holdfast_api::fill::Priority;
use holdfast_runtime::metrics::Group;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

/// The outcome of a fill, or an Artifact's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    reason: &'static str,
}

/// How urgently images are needed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PriorityLabel {
    priority: &'static str,
}

/// Results of upstreams' access checks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct AccessLabel {
    access: &'static str,
}

/// A certificate, by the name of its Secret's role.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CertificateLabel {
    certificate: &'static str,
}

/// States of nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StateLabel {
    state: &'static str,
}

/// Counters and gauges. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// 1 while this process is the leader.
    pub leading: Gauge,
    fills: Family<ReasonLabel, Counter>,
    fill_seconds: Histogram,
    artifacts: Family<ReasonLabel, Gauge>,
    artifacts_refused: Gauge,
    artifacts_removed: Counter,
    access: Family<AccessLabel, Gauge>,
    access_refused: Gauge,
    wanted: Family<PriorityLabel, Gauge>,
    local: Family<PriorityLabel, Gauge>,
    expiry: Family<CertificateLabel, Gauge<f64, AtomicU64>>,
    nodes: Family<StateLabel, Gauge>,
    report_age: Gauge,
    /// Those of the watches.
    pub(crate) index: holdfast_cluster_index::Metrics,
    /// Those of healing.
    pub(crate) healing: holdfast_healing::Metrics,
}

impl Metrics {
    /// Registers everything under `controller_`.
    pub fn register(registry: &mut Registry) -> Self {
        let mut group = Group::own(registry, "controller");
        Self {
            leading: group.add(
                "leading",
                "1 while this process is the leader",
                Gauge::default(),
            ),
            fills: group.add(
                "fills",
                "Fills requested from the registry, by outcome",
                Family::default(),
            ),
            fill_seconds: group.measure(
                "fill_duration",
                "Time until the registry answered a fill request",
                Unit::Seconds,
                Histogram::new(exponential_buckets(0.01, 4.0, 9)),
            ),
            artifacts: group.add(
                "artifacts",
                "Artifacts by the reason of their Ready condition",
                Family::default(),
            ),
            artifacts_refused: group.add(
                "artifacts_refused",
                "Images that are not copied because a limit on Artifacts is reached",
                Gauge::default(),
            ),
            artifacts_removed: group.add(
                "artifacts_removed",
                "Announced Artifacts that were removed because nothing used them before the copy",
                Counter::default(),
            ),
            access: group.add(
                "artifacts_access",
                "Artifacts by the result of their upstream's access check; only with \
                 access.privateImages=namespace",
                Family::default(),
            ),
            access_refused: group.add(
                "access_list_refused",
                "Repositories that stay off the access list because it is full; their pods pull \
                 from the upstream",
                Gauge::default(),
            ),
            wanted: group.add(
                "images_wanted",
                "Images that the cluster needs, by priority; each counts once per namespace",
                Family::default(),
            ),
            local: group.add(
                "images_local",
                "Needed images that the registry holds, by priority",
                Family::default(),
            ),
            expiry: group.add(
                "certificate_expiry_timestamp_seconds",
                "Expiry of a certificate, in seconds since 1970",
                Family::default(),
            ),
            nodes: group.add(
                "nodes",
                "Nodes in scope: prepared, unprepared, not Ready, or held by the startup taint",
                Family::default(),
            ),
            index: holdfast_cluster_index::Metrics::register(&mut group),
            healing: holdfast_healing::Metrics::register(&mut group),
            report_age: report_age(registry),
        }
    }

    pub(crate) fn filled(&self, reason: Reason, took: std::time::Duration) {
        self.fills
            .get_or_create(&ReasonLabel {
                reason: reason.as_str(),
            })
            .inc();
        self.fill_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn artifacts(&self, reason: &'static str, count: usize) {
        set(
            &self.artifacts.get_or_create(&ReasonLabel { reason }),
            count,
        );
    }

    pub(crate) fn access(&self, access: &'static str, count: usize) {
        set(&self.access.get_or_create(&AccessLabel { access }), count);
    }

    pub(crate) fn access_refused(&self, count: usize) {
        set(&self.access_refused, count);
    }

    pub(crate) fn artifacts_refused(&self, count: usize) {
        set(&self.artifacts_refused, count);
    }

    pub(crate) fn artifact_removed(&self) {
        self.artifacts_removed.inc();
    }

    pub(crate) fn wanted(&self, priority: Priority, wanted: usize, local: usize) {
        let label = PriorityLabel {
            priority: priority.as_str(),
        };
        for (family, count) in [(&self.wanted, wanted), (&self.local, local)] {
            set(&family.get_or_create(&label), count);
        }
    }

    pub(crate) fn nodes(&self, state: &'static str, count: usize) {
        set(&self.nodes.get_or_create(&StateLabel { state }), count);
    }

    pub(crate) fn report_age(&self, seconds: Option<u64>) {
        let seconds = seconds.unwrap_or(0);
        self.report_age
            .set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    pub(crate) fn expires(&self, certificate: &'static str, at: i64) {
        self.expiry
            .get_or_create(&CertificateLabel { certificate })
            .set(at as f64);
    }
}

/// The agents' metric, so without the prefix of the others.
fn report_age(registry: &mut Registry) -> Gauge {
    Group::own(registry, "").measure(
        "node_report_age",
        "Time since the report of the node agent that has not reported for longest; 0 without any",
        Unit::Seconds,
        Gauge::default(),
    )
}

fn set(gauge: &Gauge, count: usize) {
    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
}
