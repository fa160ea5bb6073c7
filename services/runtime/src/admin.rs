//! The admin endpoints of every part, plain HTTP on port 9090, for kubelet, Prometheus and
//! operators:
//!
//! - `GET /livez`, `GET /readyz`: 200 or 503, one line per check
//! - `GET /debug/health`: the failing readiness checks as a JSON object, `{}` if there are none, as
//!   distribution answers
//! - `GET /metrics`: metrics as text
//! - `GET /log-level`, `PUT /log-level`: the filter as text, at most 1 KiB; 204, or 400 with the
//!   reason
//!
//! The endpoints expose no secrets. Only the log level can be changed, and only from within the pod
//! (`kubectl port-forward`), because libraries write much at `trace`.
//!
//! The whole cluster can reach the port, and the kubelet does not authenticate. So all connections
//! are short, a new one may evict the oldest, and requests are refused before their body is read.

use crate::health::{Health, Report};
use crate::{logs, metrics, server};
use http::StatusCode;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use warp::Filter as _;

/// The port of the admin endpoints.
pub const PORT: u16 = 9090;

/// Connections at a time.
pub const CONNECTIONS: usize = 128;

/// Longest log level, in bytes.
pub const LEVEL_BYTES: u64 = 1024;

/// What the endpoints answer from.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The checks.
    pub health: Health,
    /// The metrics.
    pub registry: Arc<Registry>,
    /// The handle of the log level. Without it, `/log-level` is not found.
    pub level: Option<logs::Level>,
}

/// A JSON document of a part: its path and the function that creates it.
pub type Document = (&'static str, Arc<dyn Fn() -> String + Send + Sync>);

impl Admin {
    /// Serves until `shutdown`. The caller binds the listener and chooses the address.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        self.serve_with(Vec::new(), listener, shutdown).await;
    }

    /// [`Admin::serve`], with `documents` of the part.
    pub async fn serve_with(
        self,
        documents: Vec<Document>,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) {
        let routes = documents
            .into_iter()
            .fold(routes(self), |routes, (path, document)| {
                let route = warp::path(path)
                    .and(warp::path::end())
                    .and(warp::get())
                    .map(move || reply(StatusCode::OK, "application/json", document()));
                routes.or(route).unify().boxed()
            });
        let service = server::tower(warp::service(routes));
        server::serve(listener, None, service, limits(), shutdown).await;
    }
}

/// The limits of connections. An answer takes milliseconds, so the oldest connection is that of a
/// slow client.
pub fn limits() -> server::Limits {
    const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);
    server::Limits {
        connections: CONNECTIONS,
        // The kubelet may share its address with other clients.
        connections_per_address: usize::MAX,
        part_of_files: 6,
        recycles: true,
        header_bytes: 16 << 10,
        header_timeout: ADMIN_TIMEOUT,
        keep_alive: Duration::from_secs(10),
        idle: ADMIN_TIMEOUT,
        window: ADMIN_TIMEOUT,
        body_timeout: Some(ADMIN_TIMEOUT),
        body_bytes: LEVEL_BYTES,
        streams: 8,
        drain: Duration::from_secs(1),
        ..server::Limits::default()
    }
}

fn routes(admin: Admin) -> warp::filters::BoxedFilter<(http::Response<String>,)> {
    let health = admin.health.clone();
    let livez = warp::path!("livez")
        .and(warp::get())
        .map(move || health_reply(health.livez()));
    let health = admin.health.clone();
    let debug = warp::path!("debug" / "health")
        .and(warp::get())
        .map(move || failing_reply(health.failing()));
    let health = admin.health;
    let readyz = warp::path!("readyz")
        .and(warp::get())
        .map(move || health_reply(health.readyz()));
    let registry = admin.registry;
    let metrics = warp::path!("metrics").and(warp::get()).map(move || {
        reply(
            StatusCode::OK,
            metrics::CONTENT_TYPE,
            metrics::encode(&registry),
        )
    });
    let level = admin.level.clone();
    let get_level = warp::path!("log-level").and(warp::get()).map(move || {
        level.as_ref().map_or_else(
            || text(StatusCode::NOT_FOUND, ""),
            |level| text(StatusCode::OK, level.get()),
        )
    });
    // Refused before the body is read.
    let refuse_level = warp::path!("log-level")
        .and(warp::put())
        .and(warp::ext::optional::<server::PeerAddr>())
        .and_then(async |peer: Option<server::PeerAddr>| {
            if is_from_here(peer) {
                return Err(warp::reject());
            }
            Ok(text(
                StatusCode::FORBIDDEN,
                "the log level can be changed from within the pod only; use kubectl port-forward\n",
            ))
        });
    let level = admin.level;
    let put_level = warp::path!("log-level")
        .and(warp::put())
        .and(warp::body::content_length_limit(LEVEL_BYTES))
        .and(bounded_text())
        .map(move |filter: String| set_level(level.as_ref(), &filter));
    livez
        .or(readyz)
        .unify()
        .or(debug)
        .unify()
        .or(metrics)
        .unify()
        .or(get_level)
        .unify()
        .or(refuse_level)
        .unify()
        .or(put_level)
        .unify()
        .boxed()
}

fn is_from_here(peer: Option<server::PeerAddr>) -> bool {
    peer.is_some_and(|peer| peer.0.ip().to_canonical().is_loopback())
}

/// The body as text. `content_length_limit` is applied before, so this otherwise disallowed read is
/// bounded.
#[allow(
    clippy::disallowed_methods,
    reason = "bounded by content_length_limit in front of it"
)]
fn bounded_text() -> impl warp::Filter<Extract = (String,), Error = warp::Rejection> + Clone {
    warp::body::bytes().map(|bytes: bytes::Bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn set_level(level: Option<&logs::Level>, filter: &str) -> http::Response<String> {
    let Some(level) = level else {
        return text(StatusCode::NOT_FOUND, "");
    };
    match level.set(filter) {
        Ok(()) => {
            tracing::info!(filter = filter.trim(), "log level changed");
            text(StatusCode::NO_CONTENT, "")
        }
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn health_reply(report: Report) -> http::Response<String> {
    let status = if report.ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    text(status, report.text)
}

fn failing_reply(failing: Vec<(String, String)>) -> http::Response<String> {
    let status = if failing.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let object: serde_json::Map<_, _> = failing
        .into_iter()
        .map(|(name, word)| (name, word.into()))
        .collect();
    reply(
        status,
        "application/json",
        serde_json::Value::Object(object).to_string(),
    )
}

fn text(status: StatusCode, body: impl Into<String>) -> http::Response<String> {
    reply(status, "text/plain; charset=utf-8", body.into())
}

fn reply(status: StatusCode, content_type: &'static str, body: String) -> http::Response<String> {
    let mut response = http::Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(content_type),
    );
    response
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn only_the_pod_itself_changes_the_log_level() {
        for (peer, expect) in [
            ("127.0.0.1:4000", true),
            ("[::1]:4000", true),
            ("[::ffff:127.0.0.1]:4000", true),
            ("10.244.1.7:4000", false),
            ("[::ffff:10.244.1.7]:4000", false),
        ] {
            let address = server::PeerAddr(peer.parse().unwrap());
            assert_eq!(is_from_here(Some(address)), expect, "{peer}");
        }
        assert!(!is_from_here(None));
    }

    /// Asks for another log level with a body that never comes; the status, if there is an answer.
    async fn level_from(peer: &str) -> Option<StatusCode> {
        let admin = Admin {
            health: Health::default(),
            registry: Arc::new(Registry::default()),
            level: None,
        };
        let never =
            futures::stream::pending::<Result<hyper::body::Frame<bytes::Bytes>, Infallible>>();
        let request = http::Request::put("/log-level")
            .header(http::header::CONTENT_LENGTH, "100")
            .extension(server::PeerAddr(peer.parse().unwrap()))
            .body(http_body_util::StreamBody::new(never))
            .unwrap();
        let service = server::tower(warp::service(routes(admin)));
        let answer = hyper::service::Service::call(&service, request);
        let answer = tokio::time::timeout(Duration::from_millis(200), answer).await;
        answer.ok().map(|answer| answer.unwrap().status())
    }

    #[tokio::test]
    async fn a_remote_client_is_refused_before_its_body_is_read() {
        let refused = Some(StatusCode::FORBIDDEN);
        assert_eq!(level_from("10.244.1.7:4000").await, refused);
        assert_eq!(level_from("[fd00::7]:4000").await, refused);
        // A client that may set it is waited for.
        assert_eq!(level_from("127.0.0.1:4000").await, None);
    }
}
