//! Metrics of the registry. Labels are bounded: never a repository or an image.
//!
//! What distribution (the CNCF registry) counts has distribution's names and labels, so that its
//! dashboards and alerts still work; other metrics are named `holdfast_registry_…`. Label sets are
//! built once: a request costs a few atomic additions.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicI64, AtomicU64},
};
use std::time::Duration;

use holdfast_runtime::metrics::{Group, Histogram};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// Labels of a request that was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    code: u16,
    handler: &'static str,
    method: &'static str,
}

/// Labels of a kind of endpoint and a method.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandlerMethodLabel {
    handler: &'static str,
    method: &'static str,
}

/// Labels of a kind of endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandlerLabel {
    handler: &'static str,
}

/// Labels of one kind of work on the volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeActionLabel {
    action: &'static str,
    driver: &'static str,
}

/// Kinds of endpoints, as [`crate::route::Endpoint::handler`] names them, and `none`.
const HANDLERS: [&str; 9] = [
    "none",
    "base",
    "catalog",
    "blob",
    "manifest",
    "blob_upload",
    "blob_upload_chunk",
    "tags",
    "referrers",
];

const METHODS: [&str; 7] = ["other", "get", "head", "post", "put", "patch", "delete"];

/// Statuses with a prepared counter; others are looked up.
const CODES: [u16; 16] = [
    200, 201, 202, 204, 206, 304, 400, 401, 403, 404, 405, 416, 500, 502, 503, 507,
];

/// Upper bounds in seconds: distribution's, with finer ones below.
const SECONDS: [f64; 15] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 25.0, 60.0,
];

/// Upper bounds in bytes: powers of four from 1 KiB to 4 GiB.
const BYTES: [f64; 12] = [
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
    4_294_967_296.0,
];

/// What is known of one kind of endpoint and one method, once it was asked for.
#[derive(Debug, Default)]
struct MethodMetrics {
    codes: [OnceLock<Counter>; CODES.len()],
    seconds: OnceLock<Histogram>,
}

/// What is known of one kind of endpoint.
#[derive(Debug)]
struct HandlerMetrics {
    in_flight: Gauge<i64, AtomicI64>,
    request_bytes: Histogram,
    response_bytes: Histogram,
    cells: [MethodMetrics; METHODS.len()],
}

#[derive(Debug)]
struct Http {
    requests: Family<Request, Counter>,
    seconds: Family<HandlerMethodLabel, Histogram, fn() -> Histogram>,
    rows: [HandlerMetrics; HANDLERS.len()],
}

impl Http {
    fn register(registry: &mut Registry) -> Self {
        let mut group = Group::of(registry, "registry");
        let requests = group.add("http_requests", "Requests answered", Family::default());
        let seconds = group.measure(
            "http_request_duration",
            "Time until an answer begins",
            Unit::Seconds,
            Family::<HandlerMethodLabel, Histogram, fn() -> Histogram>::new_with_constructor(
                || Histogram::seconds(&SECONDS),
            ),
        );
        let in_flight: Family<HandlerLabel, Gauge<i64, AtomicI64>> = group.add(
            "http_in_flight_requests",
            "Requests whose answer is not begun",
            Family::default(),
        );
        let sizes: fn() -> Histogram = || Histogram::whole(&BYTES);
        let request_bytes = group.measure(
            "http_request_size",
            "Announced sizes of bodies that clients send",
            Unit::Bytes,
            Family::<HandlerLabel, Histogram, fn() -> Histogram>::new_with_constructor(sizes),
        );
        let response_bytes = group.measure(
            "http_response_size",
            "Announced sizes of bodies of answers",
            Unit::Bytes,
            Family::<HandlerLabel, Histogram, fn() -> Histogram>::new_with_constructor(sizes),
        );
        let rows = HANDLERS.map(|handler| {
            let label = HandlerLabel { handler };
            HandlerMetrics {
                in_flight: in_flight.get_or_create_owned(&label),
                request_bytes: request_bytes.get_or_create_owned(&label),
                response_bytes: response_bytes.get_or_create_owned(&label),
                cells: Default::default(),
            }
        });
        Self {
            requests,
            seconds,
            rows,
        }
    }

    fn row(&self, handler: &str) -> &HandlerMetrics {
        let at = HANDLERS.iter().position(|known| *known == handler);
        let [none, ..] = &self.rows;
        at.and_then(|at| self.rows.get(at)).unwrap_or(none)
    }
}

/// What one request was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestOutcome {
    /// Kind of endpoint.
    pub(crate) handler: &'static str,
    /// Place of its method in the table, see [`method`].
    pub(crate) method: Method,
    /// Status of the answer.
    pub(crate) code: u16,
    /// Time until the answer's headers were ready.
    pub(crate) took: Duration,
    /// Announced size of the request's body.
    pub(crate) received: Option<u64>,
    /// Announced size of the answer's body, if it has one.
    pub(crate) sent: Option<u64>,
}

/// A method as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Method(usize);

impl Method {
    /// The label.
    pub(crate) fn label(self) -> &'static str {
        METHODS.get(self.0).copied().unwrap_or("other")
    }
}

/// The method's place among those that exist here.
pub(crate) fn method(method: &http::Method) -> Method {
    Method(match *method {
        http::Method::GET => 1,
        http::Method::HEAD => 2,
        http::Method::POST => 3,
        http::Method::PUT => 4,
        http::Method::PATCH => 5,
        http::Method::DELETE => 6,
        _ => 0,
    })
}

/// The state of the volume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Bytes that may still be written.
    pub available: Gauge<u64, AtomicU64>,
    /// Size in bytes.
    pub size: Gauge<u64, AtomicU64>,
    /// 0: room enough; 1: filling, writers are warned; 2: full, writes are refused.
    pub level: Gauge,
    /// 1 while the volume answers in time.
    pub up: Gauge,
    /// How often the registry's folder had another volume than before.
    pub swaps: Counter,
}

impl Volume {
    fn register(registry: &mut Registry) -> Self {
        let mut group = Group::own(registry, "registry");
        Self {
            available: group.measure(
                "volume_available",
                "What may still be written to the volume",
                Unit::Bytes,
                Gauge::default(),
            ),
            size: group.measure(
                "volume_size",
                "Size of the volume",
                Unit::Bytes,
                Gauge::default(),
            ),
            level: group.add(
                "volume_level",
                "0: room enough, 1: filling and writers are warned, 2: writes are refused",
                Gauge::default(),
            ),
            up: group.add(
                "volume_up",
                "1 while the volume answers in time",
                Gauge::default(),
            ),
            swaps: group.add(
                "volume_swaps",
                "How often another volume lay under the registry's folder than before",
                Counter::default(),
            ),
        }
    }
}

/// The numbers. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    http: Arc<Http>,
    /// Bytes of bodies received.
    pub received: Counter<u64, AtomicU64>,
    /// Bytes of bodies announced in answers.
    pub sent: Counter<u64, AtomicU64>,
    /// The state of the volume.
    pub volume: Volume,
    /// Connections of clients.
    pub(crate) connections: holdfast_runtime::server::Counts,
    actions: Family<VolumeActionLabel, Histogram, fn() -> Histogram>,
}

impl Metrics {
    /// Makes the numbers and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let http = Arc::new(Http::register(registry));
        let volume = Volume::register(registry);
        let connections = holdfast_runtime::server::Counts::register(registry);
        let actions = Group::of(registry, "registry_storage").measure(
            "action",
            "Time of work on the volume",
            Unit::Seconds,
            Family::<VolumeActionLabel, Histogram, fn() -> Histogram>::new_with_constructor(|| {
                Histogram::seconds(&SECONDS)
            }),
        );
        let mut group = Group::own(registry, "registry");
        Self {
            http,
            connections,
            received: group.measure(
                "http_received",
                "Bodies received from clients",
                Unit::Bytes,
                Counter::default(),
            ),
            sent: group.measure(
                "http_sent",
                "Bodies announced to clients",
                Unit::Bytes,
                Counter::default(),
            ),
            volume,
            actions,
        }
    }

    /// The times of one kind of work on the volume, by distribution's names: `Stat`, `GetContent`,
    /// `PutContent`, `Reader`, `Writer`, `List`, `Move`, `Delete`.
    pub fn action(&self, action: &'static str) -> Histogram {
        self.actions.get_or_create_owned(&VolumeActionLabel {
            action,
            driver: "filesystem",
        })
    }

    /// Requests whose answer is not begun.
    pub fn under_way(&self) -> i64 {
        self.http.rows.iter().map(|row| row.in_flight.get()).sum()
    }

    /// Counts a request as under way until the guard is dropped.
    pub(crate) fn begin(&self, handler: &'static str) -> InFlight {
        let gauge = self.http.row(handler).in_flight.clone();
        gauge.inc();
        InFlight(gauge)
    }

    /// Counts an answer.
    pub(crate) fn answered(&self, answered: RequestOutcome) {
        let row = self.http.row(answered.handler);
        if let Some(bytes) = answered.received {
            row.request_bytes.observe(bytes as f64);
        }
        if let Some(bytes) = answered.sent {
            row.response_bytes.observe(bytes as f64);
            self.sent.inc_by(bytes);
        }
        let labels = HandlerMethodLabel {
            handler: answered.handler,
            method: answered.method.label(),
        };
        let Some(cell) = row.cells.get(answered.method.0) else {
            return;
        };
        cell.seconds
            .get_or_init(|| self.http.seconds.get_or_create_owned(&labels))
            .observe(answered.took.as_secs_f64());
        let counter = || {
            self.http.requests.get_or_create_owned(&Request {
                code: answered.code,
                handler: labels.handler,
                method: labels.method,
            })
        };
        let prepared = CODES
            .iter()
            .position(|code| *code == answered.code)
            .and_then(|at| cell.codes.get(at));
        match prepared {
            Some(prepared) => prepared.get_or_init(counter).inc(),
            None => counter().inc(),
        };
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct InFlight(Gauge<i64, AtomicI64>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::route;
    use holdfast_runtime::metrics::encode;

    #[test]
    fn every_endpoint_has_its_row() {
        const DIGEST: &str =
            "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        for (path, expect) in [
            ("/v2/".to_owned(), "base"),
            ("/v2/_catalog".to_owned(), "catalog"),
            (format!("/v2/a/blobs/{DIGEST}"), "blob"),
            ("/v2/a/manifests/t".to_owned(), "manifest"),
            (
                "/v2/a/blobs/uploads/018f4d0c-0000-7000-8000-000000000001".to_owned(),
                "blob_upload_chunk",
            ),
            ("/v2/a/tags/list".to_owned(), "tags"),
            (format!("/v2/a/referrers/{DIGEST}"), "referrers"),
        ] {
            let endpoint = route(&http::Method::GET, &path, None).unwrap();
            assert_eq!(endpoint.handler(), expect, "{path}");
            assert!(HANDLERS.contains(&expect));
        }
        let upload = route(&http::Method::POST, "/v2/a/blobs/uploads/", None).unwrap();
        assert_eq!(upload.handler(), "blob_upload");
    }

    #[test]
    fn names_and_labels_are_distributions() {
        let mut registry = holdfast_runtime::metrics::registry("registry");
        let metrics = Metrics::register(&mut registry);
        let answered = RequestOutcome {
            handler: "blob",
            method: method(&http::Method::GET),
            code: 200,
            took: Duration::from_millis(3),
            received: None,
            sent: Some(2000),
        };
        metrics.answered(answered);
        metrics.answered(answered);
        // A status without a prepared counter, and an unknown handler.
        metrics.answered(RequestOutcome {
            code: 418,
            ..answered
        });
        metrics.action("Stat").observe(0.001);
        let guard = metrics.begin("manifest");
        let text = encode(&registry);
        drop(guard);
        for line in [
            r#"registry_http_requests_total{code="200",handler="blob",method="get"} 2"#,
            r#"registry_http_requests_total{code="418",handler="blob",method="get"} 1"#,
            r#"registry_http_request_duration_seconds_bucket{le="0.005",handler="blob",method="get"} 3"#,
            r#"registry_http_in_flight_requests{handler="manifest"} 1"#,
            r#"registry_http_in_flight_requests{handler="blob"} 0"#,
            r#"registry_http_response_size_bytes_bucket{le="4096.0",handler="blob"} 3"#,
            r#"registry_storage_action_seconds_count{action="Stat",driver="filesystem"} 1"#,
            "holdfast_registry_http_sent_bytes_total 6000",
            "holdfast_registry_volume_level 0",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no {line} in\n{text}"
            );
        }
        let after = encode(&registry);
        assert!(after.contains(r#"registry_http_in_flight_requests{handler="manifest"} 0"#));
    }
}
