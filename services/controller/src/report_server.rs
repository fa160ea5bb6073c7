//! Receives the reports of node agents: `POST /internal/v1/nodes/NODE`.
//!
//! All agents of a release have the same client certificate. Which node an agent speaks for follows
//! from its address, which the watch of pods knows.

use crate::Context;
use bytes::Bytes;
use holdfast_api::report::{self, NodeReport};
use holdfast_cluster_index::ClusterIndex;
use holdfast_runtime::CancellationToken;
use holdfast_runtime::server::{self, PeerAddr, RequestBody};
use holdfast_runtime::supervise::Heartbeat;
use holdfast_runtime::tls::PeerIdentity;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Interval of checks whether the controller has a certificate, and of heartbeats.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Time for the body of a report.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once, and of one address.
const CONNECTIONS: usize = 1024;
const CONNECTIONS_PER_ADDRESS: usize = 4;

/// Serves the node agents at the context's address, if it has one. Runs for ever.
pub async fn run(context: Context, heart: Heartbeat) -> Result<(), std::io::Error> {
    let mut tick = tokio::time::interval(POLL_INTERVAL);
    let (address, tls) = loop {
        tick.tick().await;
        heart.success();
        if let (Some(address), Some(tls)) = (context.agents, context.issued.server()) {
            break (address, tls);
        }
    };
    let listener = server::bind(address)?;
    let service = {
        let context = context.clone();
        server::service_fn(move |request| {
            let context = context.clone();
            async move { Ok::<_, Infallible>(answer(&context, request).await) }
        })
    };
    // Ends with the loop.
    let shutdown = CancellationToken::new();
    let _end = shutdown.clone().drop_guard();
    let mut serving = std::pin::pin!(server::serve(
        listener,
        Some(tls),
        service,
        limits(),
        shutdown
    ));
    loop {
        tokio::select! {
            () = &mut serving => return Ok(()),
            _ = tick.tick() => heart.success(),
        }
    }
}

fn limits() -> server::Limits {
    server::Limits {
        connections: CONNECTIONS,
        connections_per_address: CONNECTIONS_PER_ADDRESS,
        recycles: true,
        body_timeout: Some(BODY_TIMEOUT),
        body_bytes: report::MAX_BYTES as u64,
        streams: 4,
        drain: Duration::from_secs(1),
        ..server::Limits::default()
    }
}

/// What a request tells of its client.
struct Caller {
    is_agent: bool,
    address: Option<IpAddr>,
}

async fn answer(context: &Context, request: Request<RequestBody>) -> Response<Full<Bytes>> {
    let (status, text) = match receive(context, request).await {
        Ok(()) => (StatusCode::NO_CONTENT, String::new()),
        Err(refused) => refused,
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

async fn receive(
    context: &Context,
    request: Request<RequestBody>,
) -> Result<(), (StatusCode, String)> {
    let refuse = |status, text: &str| Err((status, format!("{text}\n")));
    let identity = request.extensions().get::<PeerIdentity>();
    let caller = Caller {
        is_agent: identity.is_some_and(|identity| {
            identity.common_name == report::COMMON_NAME
                && identity.uris == [context.names.node_agent_identity()]
        }),
        address: request
            .extensions()
            .get::<PeerAddr>()
            .map(|peer| peer.0.ip().to_canonical()),
    };
    let path = request.uri().path().to_owned();
    let Some(node) = path.strip_prefix(report::PATH) else {
        return refuse(StatusCode::NOT_FOUND, "no such path");
    };
    if request.method() != Method::POST {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "reports are posted");
    }
    if !speaks_for(&context.index, &caller, node) {
        return refuse(
            StatusCode::FORBIDDEN,
            "only the node agent of this node may report it",
        );
    }
    let body = Limited::new(request.into_body(), report::MAX_BYTES);
    let Ok(body) = body.collect().await else {
        return refuse(
            StatusCode::BAD_REQUEST,
            "the body is too long or incomplete",
        );
    };
    let report: NodeReport = match serde_json::from_slice(&body.to_bytes()) {
        Ok(report) => report,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    if report.node != node || report.image_ids.len() > report::MAX_IMAGES {
        return refuse(StatusCode::BAD_REQUEST, "another node, or too many images");
    }
    tracing::debug!(
        node.name = node,
        images = report.image_ids.len(),
        "a node agent reported"
    );
    match context.reports.keep(report, Instant::now()) {
        Ok(()) => Ok(()),
        Err(full) => {
            tracing::warn!(node.name = node, error = %full, "a report is refused");
            refuse(StatusCode::INSUFFICIENT_STORAGE, &full.to_string())
        }
    }
}

/// Whether the client is the agent of this node.
fn speaks_for(index: &ClusterIndex, caller: &Caller, node: &str) -> bool {
    let Some(address) = caller
        .address
        .filter(|_| caller.is_agent && !node.is_empty())
    else {
        return false;
    };
    ClusterIndex::read(&index.pods, |pods| {
        let mut agents = pods.iter().filter_map(|(_, pod)| pod.agent.as_ref());
        agents.any(|agent| agent.node == node && agent.addresses.contains(&address))
    })
}

/// The address that a replica in the cluster listens on.
pub fn listen_address() -> SocketAddr {
    SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, report::PORT))
}
