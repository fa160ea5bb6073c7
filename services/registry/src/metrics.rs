//! Numbers of the distribution API. Labels are bounded: never a repository or an image.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Labels of a request that was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Request {
    /// Kind of endpoint.
    pub(crate) handler: &'static str,
    /// HTTP method.
    pub(crate) method: &'static str,
    /// Status.
    pub(crate) code: u16,
}

/// Labels of a kind of endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Handler {
    /// Kind of endpoint.
    pub(crate) handler: &'static str,
}

/// The numbers. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Requests answered.
    pub(crate) requests: Family<Request, Counter>,
    /// Requests under way, bodies not included.
    pub in_flight: Gauge<i64, AtomicI64>,
    /// Seconds until the answer's headers were ready.
    pub(crate) seconds: Family<Handler, Histogram, fn() -> Histogram>,
    /// Bytes of bodies received.
    pub received: Counter<u64, AtomicU64>,
    /// Bytes of bodies announced in answers.
    pub sent: Counter<u64, AtomicU64>,
    /// Bytes that may still be written to the volume.
    pub volume_available: Gauge<u64, AtomicU64>,
    /// Size of the volume.
    pub volume_size: Gauge<u64, AtomicU64>,
}

impl Metrics {
    /// Makes the numbers and registers them as `registry_…`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            in_flight: Gauge::default(),
            seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.0005, 4.0, 9))
            }),
            received: Counter::default(),
            sent: Counter::default(),
            volume_available: Gauge::default(),
            volume_size: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("registry");
        registry.register(
            "http_requests",
            "Requests answered",
            metrics.requests.clone(),
        );
        registry.register(
            "http_in_flight_requests",
            "Requests whose answer is not begun",
            metrics.in_flight.clone(),
        );
        registry.register_with_unit(
            "http_request_duration",
            "Time until an answer begins",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register_with_unit(
            "http_received",
            "Bodies received from clients",
            Unit::Bytes,
            metrics.received.clone(),
        );
        registry.register_with_unit(
            "http_sent",
            "Bodies announced to clients",
            Unit::Bytes,
            metrics.sent.clone(),
        );
        registry.register_with_unit(
            "volume_available",
            "What may still be written to the volume",
            Unit::Bytes,
            metrics.volume_available.clone(),
        );
        registry.register_with_unit(
            "volume_size",
            "Size of the volume",
            Unit::Bytes,
            metrics.volume_size.clone(),
        );
        metrics
    }
}

/// The method as a label.
pub(crate) fn method(method: &http::Method) -> &'static str {
    match *method {
        http::Method::GET => "GET",
        http::Method::HEAD => "HEAD",
        http::Method::POST => "POST",
        http::Method::PUT => "PUT",
        http::Method::PATCH => "PATCH",
        http::Method::DELETE => "DELETE",
        _ => "other",
    }
}
