//! Metrics of upstreams.
//!
//! Labels are bounded: the hosts of configured upstreams and `other`, never a repository, an image
//! or a credential.

use std::sync::atomic::{AtomicI64, AtomicU64};

use holdfast_api::fill::Priority;
use holdfast_runtime::metrics::Group;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// Labels of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamLabel {
    /// A configured upstream's host, or `other`.
    pub upstream: String,
}

/// Labels of a request to an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabel {
    /// A configured upstream's host, or `other`.
    pub upstream: String,
    /// `ok`, `not_found`, `unauthorized`, `unavailable` or `invalid`.
    pub outcome: &'static str,
}

/// The label of how urgent a copy is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PriorityLabel {
    /// `blocking`, `running` or `prefetch`.
    pub priority: &'static str,
}

/// The label of distribution's proxy numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TypeLabel {
    /// `blob` or `manifest`.
    pub r#type: &'static str,
}

/// The numbers. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Requests to upstreams that ended.
    pub requests: Family<RequestLabel, Counter>,
    /// Bytes of bodies received from upstreams.
    pub received: Family<UpstreamLabel, Counter<u64, AtomicU64>>,
    /// The same by kind, as distribution counts them.
    pub pulled: Family<TypeLabel, Counter>,
    /// Times that an endpoint was excluded for a digest because it sent wrong bytes.
    pub quarantines: Family<UpstreamLabel, Counter>,
    /// Endpoints that are not asked now.
    pub open: Family<UpstreamLabel, Gauge<i64, AtomicI64>>,
    /// Pauses that upstreams asked for.
    pub pauses: Family<UpstreamLabel, Counter>,
    /// Answers out of the memory of what upstreams said no to.
    pub remembered: Family<UpstreamLabel, Counter>,
    /// Copies that wait for a slot.
    pub queued: Family<PriorityLabel, Gauge<i64, AtomicI64>>,
}

impl Metrics {
    /// Registers them as `holdfast_registry_upstream_…`, and the queue of copies.
    pub fn register(&self, registry: &mut Registry) {
        let mut group = Group::own(registry, "registry");
        group.add(
            "upstream_requests",
            "Requests to upstreams, by how they ended",
            self.requests.clone(),
        );
        group.measure(
            "upstream_received",
            "Bodies received from upstreams",
            Unit::Bytes,
            self.received.clone(),
        );
        group.add(
            "upstream_quarantines",
            "Times that an endpoint was excluded for a digest because it sent wrong bytes",
            self.quarantines.clone(),
        );
        group.add(
            "upstream_endpoints_open",
            "Endpoints that fail and are not asked until a probe answers",
            self.open.clone(),
        );
        group.add(
            "upstream_pauses",
            "Answers 429 of upstreams",
            self.pauses.clone(),
        );
        group.add(
            "upstream_remembered_refusals",
            "Questions answered by what an upstream said no to a moment ago",
            self.remembered.clone(),
        );
        group.add(
            "fill_queue",
            "Blobs that wait for their turn to be copied",
            self.queued.clone(),
        );
    }

    /// A request to an upstream ended.
    pub fn asked(&self, upstream: &str, outcome: &'static str) {
        let label = RequestLabel {
            upstream: upstream.to_owned(),
            outcome,
        };
        self.requests.get_or_create(&label).inc();
    }

    /// Bytes came from an upstream.
    pub fn took(&self, upstream: &str, kind: &'static str, bytes: usize) {
        let label = UpstreamLabel {
            upstream: upstream.to_owned(),
        };
        self.received.get_or_create(&label).inc_by(bytes as u64);
        let label = TypeLabel { r#type: kind };
        self.pulled.get_or_create(&label).inc_by(bytes as u64);
    }

    /// How many copies wait for a slot.
    pub fn waits(&self, level: Priority, count: usize) {
        let label = PriorityLabel {
            priority: level.as_str(),
        };
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.queued.get_or_create(&label).set(count);
    }
}
