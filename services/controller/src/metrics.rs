//! The controller's metrics. Labels are words of our own; names of images and namespaces never
//! become labels.

use holdfast_api::artifact::Reason;
use holdfast_api::fill::Need;
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
pub(crate) struct NeedLabel {
    need: &'static str,
}

/// What upstreams answered who may have an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct AccessLabel {
    access: &'static str,
}

/// A kind of workload, by its resource's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KindLabel {
    kind: &'static str,
}

/// A certificate, by the name of its Secret's role.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CertificateLabel {
    certificate: &'static str,
}

/// How nodes stand.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StateLabel {
    state: &'static str,
}

/// What healing did or tried, and how that ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ActLabel {
    act: &'static str,
    outcome: &'static str,
}

/// Counters and gauges. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// 1 while this process leads.
    pub leading: Gauge,
    fills: Family<ReasonLabel, Counter>,
    fill_seconds: Histogram,
    artifacts: Family<ReasonLabel, Gauge>,
    artifacts_refused: Gauge,
    artifacts_removed: Counter,
    access: Family<AccessLabel, Gauge>,
    access_refused: Gauge,
    wanted: Family<NeedLabel, Gauge>,
    local: Family<NeedLabel, Gauge>,
    hidden: Family<KindLabel, Gauge>,
    expiry: Family<CertificateLabel, Gauge<f64, AtomicU64>>,
    healing: Family<ActLabel, Counter>,
    pods_stuck: Gauge,
    sources_left_alone: Gauge,
    nodes: Family<StateLabel, Gauge>,
    namespaces_left_alone: Gauge,
}

impl Metrics {
    /// Registers everything under `controller_`.
    pub fn register(registry: &mut Registry) -> Self {
        let mut group = Group::own(registry, "controller");
        Self {
            leading: group.add("leading", "1 while this process leads", Gauge::default()),
            fills: group.add(
                "fills",
                "Copies asked of the registry, by outcome",
                Family::default(),
            ),
            fill_seconds: group.measure(
                "fill_duration",
                "How long the registry took to answer",
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
                "Images that pods or workloads need and that are not copied because there are too many Artifacts",
                Gauge::default(),
            ),
            artifacts_removed: group.add(
                "artifacts_removed",
                "Artifacts removed that were announced, never copied, and that nothing needed",
                Counter::default(),
            ),
            access: group.add(
                "artifacts_access",
                "Artifacts by what their upstream answered who may have the image; only with access.privateImages=namespace",
                Family::default(),
            ),
            access_refused: group.add(
                "access_list_refused",
                "Repositories that pods keep pulling from their upstream because the list of access is full",
                Gauge::default(),
            ),
            wanted: group.add(
                "images_wanted",
                "Images that pods wait for, that run, or that workloads would need, by need and counted once in each namespace",
                Family::default(),
            ),
            local: group.add(
                "images_local",
                "Images of these that the registry holds",
                Family::default(),
            ),
            hidden: group.add(
                "hidden_kinds",
                "1 for a kind of workload that the API server does not show: its images are local only while pods need them",
                Family::default(),
            ),
            expiry: group.add(
                "certificate_expiry_timestamp_seconds",
                "When a certificate runs out, in seconds since 1970",
                Family::default(),
            ),
            healing: group.add(
                "healing_acts",
                "What was done, or tried, for pods that cannot pull, by outcome",
                Family::default(),
            ),
            pods_stuck: group.add(
                "pods_stuck",
                "Pods with a container whose image cannot be pulled",
                Gauge::default(),
            ),
            sources_left_alone: group.add(
                "sources_left_alone",
                "Sources that pods keep because the registry cannot get them",
                Gauge::default(),
            ),
            nodes: group.add(
                "nodes",
                "Nodes that rewriting concerns: Ready and prepared, Ready and unprepared, not Ready; and nodes held back by the startup taint",
                Family::default(),
            ),
            namespaces_left_alone: group.add(
                "namespaces_left_alone",
                "Namespaces whose pods keep their images because a policy refuses the registry's references",
                Gauge::default(),
            ),
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
        self.artifacts
            .get_or_create(&ReasonLabel { reason })
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn access(&self, access: &'static str, count: usize) {
        let gauge = self.access.get_or_create(&AccessLabel { access });
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn access_refused(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.access_refused.set(count);
    }

    pub(crate) fn artifacts_refused(&self, count: usize) {
        self.artifacts_refused
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn artifact_removed(&self) {
        self.artifacts_removed.inc();
    }

    pub(crate) fn wanted(&self, need: Need, wanted: usize, local: usize) {
        let label = NeedLabel {
            need: need.as_str(),
        };
        for (family, count) in [(&self.wanted, wanted), (&self.local, local)] {
            family
                .get_or_create(&label)
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn hidden(&self, kind: &'static str, hidden: bool) {
        self.hidden
            .get_or_create(&KindLabel { kind })
            .set(i64::from(hidden));
    }

    pub(crate) fn healed(&self, act: &'static str, outcome: &'static str) {
        self.healing.get_or_create(&ActLabel { act, outcome }).inc();
    }

    pub(crate) fn pods_stuck(&self, count: usize) {
        self.pods_stuck
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn sources_left_alone(&self, count: usize) {
        self.sources_left_alone
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn nodes(&self, state: &'static str, count: usize) {
        self.nodes
            .get_or_create(&StateLabel { state })
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn namespaces_left_alone(&self, count: usize) {
        self.namespaces_left_alone
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn expires(&self, certificate: &'static str, at: i64) {
        self.expiry
            .get_or_create(&CertificateLabel { certificate })
            .set(at as f64);
    }
}
