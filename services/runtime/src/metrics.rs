//! The process's metrics: one registry, every name prefixed with `holdfast`, in the text format of Prometheus.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// The media type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry with what every part exposes: `holdfast_build_info{part, version}` and the start time.
pub fn registry(part: &'static str) -> Registry {
    let mut registry = Registry::with_prefix("holdfast");
    registry.register(
        "build",
        "The version that runs, and which part it is",
        Info::new(vec![("part", part), ("version", env!("CARGO_PKG_VERSION"))]),
    );
    let start: Gauge<f64, AtomicU64> = Gauge::default();
    start.set(unix_seconds());
    registry.register(
        "process_start_timestamp_seconds",
        "When the process started, in seconds since 1970",
        start,
    );
    registry
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

    #[test]
    fn every_metric_says_whose_it_is() {
        let text = encode(&registry("webhook"));
        assert!(
            text.contains("holdfast_build_info{part=\"webhook\""),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
