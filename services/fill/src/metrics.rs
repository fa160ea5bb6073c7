//! Metrics of fills.
//!
//! Labels are bounded: the hosts of configured upstreams and `other`, never a repository, an image
//! or a credential.

use holdfast_runtime::metrics::Group;
use holdfast_upstream::{self as upstream, metrics::TypeLabel};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Labels of a fill that ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FillLabel {
    /// `image` or `blob`.
    pub kind: &'static str,
    /// `ok`, or the kind of error.
    pub outcome: &'static str,
}

/// The label of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// What came out.
    pub outcome: &'static str,
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
    fn register(&self, pulled: &Family<TypeLabel, Counter>, registry: &mut Registry) {
        let mut group = Group::of(registry, "registry_proxy");
        let numbers = [
            ("requests", "Pulls of upstream content", &self.requests),
            ("hits", "Those served from the volume", &self.hits),
            (
                "misses",
                "Those fetched, or on their way, when they were asked for",
                &self.misses,
            ),
            ("pulled_bytes", "Bytes taken from upstreams", pulled),
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
pub struct Metrics {
    /// Those of upstreams.
    pub upstream: upstream::Metrics,
    /// Fills that ended.
    pub(crate) fills: Family<FillLabel, Counter>,
    /// Comparisons of tags with upstreams.
    pub(crate) checks: Family<OutcomeLabel, Counter>,
    /// Fills that went on where another attempt had stopped.
    pub(crate) resumed: Counter,
    /// What distribution counts.
    pub proxy: Proxy,
}

impl Metrics {
    /// With the numbers of these upstreams, and nothing counted of its own.
    pub fn of(upstreams: &upstream::Upstreams) -> Self {
        Self {
            upstream: upstreams.metrics().clone(),
            ..Self::default()
        }
    }

    /// Registers them as `holdfast_registry_…`, and what distribution counts, too, as
    /// `registry_proxy_…`.
    pub fn register(&self, registry: &mut Registry) {
        self.proxy.register(&self.upstream.pulled, registry);
        self.upstream.register(registry);
        let mut group = Group::own(registry, "registry");
        group.add("fills", "Fills that ended", self.fills.clone());
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

    /// A fill ended.
    pub(crate) fn ended(&self, kind: &'static str, outcome: &'static str) {
        self.fills.get_or_create(&FillLabel { kind, outcome }).inc();
    }

    /// A tag was compared with its upstream.
    pub(crate) fn compared(&self, outcome: &'static str) {
        self.checks.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

#[cfg(test)]
mod tests {
    use holdfast_api::fill::Priority;

    use super::*;

    #[test]
    fn distributions_names_and_ours_are_told() {
        let metrics = Metrics::default();
        metrics.proxy.served("blob", false, 7);
        metrics.upstream.took("other", "blob", 7);
        metrics.upstream.asked("docker.io", "ok");
        metrics.upstream.waits(Priority::Prefetch, 3);
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
