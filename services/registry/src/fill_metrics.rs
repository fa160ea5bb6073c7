//! Numbers of fills and of the upstreams they come from.
//!
//! Labels are bounded: the configured upstreams' hosts and `other`, never a repository, an image or
//! a credential.

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

/// Labels of a fill that ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FillLabel {
    /// `image` or `blob`.
    pub kind: &'static str,
    /// `ok`, or the kind of error.
    pub outcome: &'static str,
}

/// The label of how urgent a copy is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PriorityLabel {
    /// `blocking`, `running` or `prefetch`.
    pub priority: &'static str,
}

/// The label of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// What came out.
    pub outcome: &'static str,
}

/// The label of distribution's proxy numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TypeLabel {
    /// `blob` or `manifest`.
    pub r#type: &'static str,
}

/// What distribution counts of a pull-through registry, by its own names.
#[derive(Clone, Debug, Default)]
pub struct Proxy {
    /// Pulls of upstream content.
    pub requests: Family<TypeLabel, Counter>,
    /// Those served from the volume.
    pub hits: Family<TypeLabel, Counter>,
    /// Those that had to be fetched, or were on their way.
    pub misses: Family<TypeLabel, Counter>,
    /// Bytes taken from upstreams.
    pub pulled: Family<TypeLabel, Counter>,
    /// Bytes announced to clients.
    pub pushed: Family<TypeLabel, Counter>,
}

impl Proxy {
    /// Counts a pull of upstream content that is answered with `bytes`.
    pub fn served(&self, kind: &'static str, is_hit: bool, bytes: u64) {
        let label = TypeLabel { r#type: kind };
        self.requests.get_or_create(&label).inc();
        let outcome = if is_hit { &self.hits } else { &self.misses };
        outcome.get_or_create(&label).inc();
        self.pushed.get_or_create(&label).inc_by(bytes);
    }

    /// Registers them as `registry_proxy_…`.
    pub fn register(&self, registry: &mut Registry) {
        let mut group = Group::of(registry, "registry_proxy");
        let numbers = [
            ("requests", "Pulls of upstream content", &self.requests),
            ("hits", "Those served from the volume", &self.hits),
            (
                "misses",
                "Those fetched, or on their way, when they were asked for",
                &self.misses,
            ),
            ("pulled_bytes", "Bytes taken from upstreams", &self.pulled),
            (
                "pushed_bytes",
                "Bytes of upstream content announced to clients",
                &self.pushed,
            ),
        ];
        for (name, help, family) in numbers {
            group.add(name, help, family.clone());
            // What never happened is 0 and not absent: rates and alerts begin with it.
            for kind in ["blob", "manifest"] {
                family.get_or_create(&TypeLabel { r#type: kind }).inc_by(0);
            }
        }
    }
}

/// The numbers. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct FillMetrics {
    /// Requests to upstreams that ended.
    pub(crate) requests: Family<RequestLabel, Counter>,
    /// Bytes of bodies received from upstreams.
    pub(crate) received: Family<UpstreamLabel, Counter<u64, AtomicU64>>,
    /// Times that an endpoint was left alone for a digest because its bytes were wrong.
    pub(crate) quarantines: Family<UpstreamLabel, Counter>,
    /// Endpoints that are not asked now.
    pub(crate) open: Family<UpstreamLabel, Gauge<i64, AtomicI64>>,
    /// Pauses that upstreams asked for.
    pub(crate) pauses: Family<UpstreamLabel, Counter>,
    /// Answers out of the memory of what upstreams said no to.
    pub(crate) remembered: Family<UpstreamLabel, Counter>,
    /// Fills that ended.
    pub(crate) fills: Family<FillLabel, Counter>,
    /// Copies that wait for a slot.
    pub(crate) queued: Family<PriorityLabel, Gauge<i64, AtomicI64>>,
    /// Comparisons of tags with upstreams.
    pub(crate) checks: Family<OutcomeLabel, Counter>,
    /// Fills that went on where another attempt had stopped.
    pub(crate) resumed: Counter,
    /// What distribution counts.
    pub proxy: Proxy,
}

impl FillMetrics {
    /// Registers them as `holdfast_registry_…`, and what distribution counts, too, as
    /// `registry_proxy_…`.
    pub fn register(&self, registry: &mut Registry) {
        self.proxy.register(registry);
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
            "Times that an endpoint was left alone for a digest because its bytes were wrong",
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
        group.add("fills", "Fills that ended", self.fills.clone());
        group.add(
            "fill_queue",
            "Blobs that wait for their turn to be copied",
            self.queued.clone(),
        );
        group.add(
            "fill_resumed",
            "Fills that went on where another attempt had stopped",
            self.resumed.clone(),
        );
        group.add(
            "tag_checks",
            "Comparisons of local tags with their upstream",
            self.checks.clone(),
        );
    }

    /// A request to an upstream ended.
    pub(crate) fn asked(&self, upstream: &str, outcome: &'static str) {
        let label = RequestLabel {
            upstream: upstream.to_owned(),
            outcome,
        };
        self.requests.get_or_create(&label).inc();
    }

    /// Bytes came from an upstream.
    pub(crate) fn took(&self, upstream: &str, kind: &'static str, bytes: usize) {
        let label = UpstreamLabel {
            upstream: upstream.to_owned(),
        };
        self.received.get_or_create(&label).inc_by(bytes as u64);
        let label = TypeLabel { r#type: kind };
        self.proxy.pulled.get_or_create(&label).inc_by(bytes as u64);
    }

    /// A fill ended.
    pub(crate) fn ended(&self, kind: &'static str, outcome: &'static str) {
        self.fills.get_or_create(&FillLabel { kind, outcome }).inc();
    }

    /// A tag was compared with its upstream.
    pub(crate) fn compared(&self, outcome: &'static str) {
        self.checks.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// How many copies wait for a slot.
    pub(crate) fn waits(&self, level: Priority, count: usize) {
        let label = PriorityLabel {
            priority: level.as_str(),
        };
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.queued.get_or_create(&label).set(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_names_and_ours_are_told() {
        let metrics = FillMetrics::default();
        metrics.proxy.served("blob", false, 7);
        metrics.took("other", "blob", 7);
        metrics.asked("docker.io", "ok");
        metrics.waits(Priority::Prefetch, 3);
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let text = holdfast_runtime::metrics::encode(&registry);
        for line in [
            r#"registry_proxy_requests_total{type="blob"} 1"#,
            r#"registry_proxy_misses_total{type="blob"} 1"#,
            r#"registry_proxy_pulled_bytes_total{type="blob"} 7"#,
            r#"registry_proxy_pushed_bytes_total{type="blob"} 7"#,
            r#"registry_upstream_received_bytes_total{upstream="other"} 7"#,
            r#"registry_upstream_requests_total{upstream="docker.io",outcome="ok"} 1"#,
            r#"registry_fill_queue{priority="prefetch"} 3"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
