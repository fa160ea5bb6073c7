//! The metrics of a process, in the text format of Prometheus. Holdfast's names begin with
//! `holdfast_`. A part that replaces another program also exposes that program's names, so that its
//! dashboards keep working.

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry, Unit};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The media type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry with what every part exposes: `holdfast_build_info{part, version}` and the start
/// time.
pub fn registry(part: &'static str) -> Registry {
    let mut registry = Registry::default();
    let mut group = Group::own(&mut registry, "");
    group.0.register(
        "build",
        "The version that runs, and which part it is",
        Info::new(vec![("part", part), ("version", env!("CARGO_PKG_VERSION"))]),
    );
    let start: Gauge<f64, AtomicU64> = group.add(
        "process_start_timestamp_seconds",
        "When the process started, in seconds since 1970",
        Gauge::default(),
    );
    start.set(unix_seconds());
    registry
}

/// Metrics with a common prefix. Each method registers a metric and returns it, so that a metric is
/// named in one place only.
#[derive(Debug)]
pub struct Group<'a>(&'a mut Registry);

impl<'a> Group<'a> {
    /// Metrics of Holdfast: `holdfast_<name>_…`, or `holdfast_…` if `name` is empty.
    pub fn own(registry: &'a mut Registry, name: &str) -> Self {
        let registry = registry.sub_registry_with_prefix("holdfast");
        if name.is_empty() {
            Self(registry)
        } else {
            Self(registry.sub_registry_with_prefix(name))
        }
    }

    /// Metrics with the names of another program: `<prefix>_…`.
    pub fn of(registry: &'a mut Registry, prefix: &str) -> Self {
        Self(registry.sub_registry_with_prefix(prefix))
    }

    /// Registers a metric. The text format appends `_total` to counters.
    pub fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    /// Registers a metric whose name ends with its unit.
    pub fn measure<M: Metric + Clone>(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        metric: M,
    ) -> M {
        self.0.register_with_unit(name, help, unit, metric.clone());
        metric
    }
}

/// A histogram without a lock, for many threads that observe at the same time. Clones share it.
#[derive(Clone, Debug)]
pub struct Histogram {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Upper bounds, ascending; the last is infinite.
    bounds: &'static [f64],
    counts: Box<[AtomicU64]>,
    /// In units of `1 / scale`, because there is no atomic `f64`.
    sum: AtomicU64,
    scale: f64,
}

impl Histogram {
    /// Seconds, summed to the microsecond. `bounds` ascend and are finite.
    pub fn seconds(bounds: &'static [f64]) -> Self {
        Self::new(bounds, 1e6)
    }

    /// Whole numbers, such as bytes. `bounds` ascend and are finite.
    pub fn whole(bounds: &'static [f64]) -> Self {
        Self::new(bounds, 1.0)
    }

    fn new(bounds: &'static [f64], scale: f64) -> Self {
        Self {
            inner: Arc::new(Inner {
                bounds,
                counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
                sum: AtomicU64::new(0),
                scale,
            }),
        }
    }

    /// Counts `value`; negative ones count as 0.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates, and negative values are cut before"
    )]
    pub fn observe(&self, value: f64) {
        let inner = &*self.inner;
        let bucket = inner.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = inner.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let scaled = (value.max(0.0) * inner.scale) as u64;
        inner.sum.fetch_add(scaled, Ordering::Relaxed);
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let inner = &*self.inner;
        let bounds = inner.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds
            .zip(&inner.counts)
            .map(|(bound, count)| (bound, count.load(Ordering::Relaxed)))
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = inner.sum.load(Ordering::Relaxed) as f64 / inner.scale;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// The registry's content as text; empty only if formatting into memory fails, which it cannot.
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, registry).is_err() {
        text.clear();
    }
    text
}

/// Seconds since 1970, for gauges that tell a time.
pub fn unix_seconds() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn every_metric_says_whose_it_is() {
        let mut registry = registry("webhook");
        let own: Counter =
            Group::own(&mut registry, "webhook").add("seen", "x", Counter::default());
        let other: Counter =
            Group::of(&mut registry, "registry").add("old", "x", Counter::default());
        own.inc();
        other.inc_by(2);
        let text = encode(&registry);
        for line in [
            "holdfast_build_info{part=\"webhook\"",
            "holdfast_process_start_timestamp_seconds ",
            "\nholdfast_webhook_seen_total 1\n",
            "\nregistry_old_total 2\n",
        ] {
            assert!(text.contains(line), "no {line} in {text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn observations_fall_into_the_bucket_that_holds_them() {
        let mut registry = Registry::default();
        let histogram = Group::of(&mut registry, "x").measure(
            "took",
            "x",
            Unit::Seconds,
            Histogram::seconds(&[0.1, 1.0]),
        );
        for value in [0.05, 0.1, 0.5, 7.0] {
            histogram.observe(value);
        }
        let text = encode(&registry);
        for line in [
            "x_took_seconds_bucket{le=\"0.1\"} 2",
            "x_took_seconds_bucket{le=\"1.0\"} 3",
            "x_took_seconds_bucket{le=\"+Inf\"} 4",
            "x_took_seconds_count 4",
            "x_took_seconds_sum 7.65",
        ] {
            assert!(text.contains(line), "no {line} in {text}");
        }
    }
}
