//! Receives the reports of node agents: `POST /internal/v1/nodes/NODE`, and confirmations of them:
//! `POST /internal/v1/nodes/NODE/confirm`.
//!
//! All agents of a release have the same client certificate. Which node an agent speaks for follows
//! from its address, which the watch of pods knows. After a change of the leader all agents send at
//! once, so the bodies in memory are bounded.

use crate::Context;
use bytes::Bytes;
use holdfast_api::report::{self, NodeReport};
use holdfast_cluster_index::ClusterIndex;
use holdfast_cluster_index::reports::NodeId;
use holdfast_runtime::CancellationToken;
use holdfast_runtime::server::{self, BodyError, PeerAddr, RequestBody};
use holdfast_runtime::supervise::Heartbeat;
use holdfast_runtime::tls::PeerIdentity;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Interval of checks whether the controller has a certificate, and of heartbeats.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Time for the body of a report, without the wait for a turn.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Reports that are read at a time. Others wait for [`TURN_TIMEOUT`]; then the answer is 503, and
/// the agent tries again.
const MAX_BODIES: usize = 8;
/// Time for which a report waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(15);
/// Connections at once, and of one address. An agent uses one.
const CONNECTIONS: usize = 1024;
const CONNECTIONS_PER_ADDRESS: usize = 2;
/// Bytes of a confirmation.
const MAX_CONFIRMATION_BYTES: usize = 128;
/// A pod that is older than the Node object of its node speaks for it only after this time: it may
/// be a former node's.
const STALE_SECONDS: i64 = 60;

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
    let bodies = Arc::new(Semaphore::new(MAX_BODIES));
    let service = {
        let context = context.clone();
        server::service_fn(move |request| {
            let (context, bodies) = (context.clone(), Arc::clone(&bodies));
            async move { Ok::<_, Infallible>(answer(&context, &bodies, request).await) }
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
        ipv6_prefix: 128,
        recycles: true,
        header_bytes: 16 * 1024,
        body_timeout: Some(BODY_TIMEOUT),
        body_bytes: report::MAX_BYTES as u64,
        streams: 1,
        http2_large_windows: 0,
        drain: Duration::from_secs(1),
        ..server::Limits::default()
    }
}

/// What a request tells of its client.
struct Caller {
    is_agent: bool,
    address: Option<IpAddr>,
}

/// Status and text of an answer that is no success.
type Refused = (StatusCode, String);

async fn answer(
    context: &Context,
    bodies: &Semaphore,
    request: Request<RequestBody>,
) -> Response<Full<Bytes>> {
    let (status, text) = match receive(context, bodies, request).await {
        Ok(()) => (StatusCode::NO_CONTENT, String::new()),
        Err(refused) => refused,
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

fn refuse<T>(status: StatusCode, text: &str) -> Result<T, Refused> {
    Err((status, format!("{text}\n")))
}

async fn receive(
    context: &Context,
    bodies: &Semaphore,
    request: Request<RequestBody>,
) -> Result<(), Refused> {
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
    let (node, is_confirmation) = match node.strip_suffix(report::CONFIRM) {
        Some(node) => (node, true),
        None => (node, false),
    };
    let Some(uid) = speaks_for(context, &caller, node, jiff::Timestamp::now()) else {
        return refuse(
            StatusCode::FORBIDDEN,
            "only the node agent of this node may report it",
        );
    };
    let node = NodeId {
        name: node,
        uid: &uid,
    };
    if is_confirmation {
        let digest = read(request.into_body(), MAX_CONFIRMATION_BYTES).await?;
        let digest = String::from_utf8_lossy(&digest);
        return if context.reports.confirm(node, &digest, Instant::now()) {
            Ok(())
        } else {
            refuse(StatusCode::NOT_FOUND, "send the report")
        };
    }
    let _turn = turn(bodies).await?;
    let body = read(request.into_body(), report::MAX_BYTES).await?;
    keep(context, node, &body)
}

/// Waits until a report may be read.
async fn turn(bodies: &Semaphore) -> Result<SemaphorePermit<'_>, Refused> {
    match tokio::time::timeout(TURN_TIMEOUT, bodies.acquire()).await {
        Ok(Ok(turn)) => Ok(turn),
        _ => refuse(StatusCode::SERVICE_UNAVAILABLE, "too many reports at once"),
    }
}

async fn read(body: RequestBody, most: usize) -> Result<Bytes, Refused> {
    match Limited::new(body, most).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => {
            let early = BodyError::find(error.as_ref()).map(BodyError::status);
            let status = early.unwrap_or(StatusCode::PAYLOAD_TOO_LARGE);
            refuse(status, &format!("the body is not read: {error}"))
        }
    }
}

fn keep(context: &Context, node: NodeId<'_>, body: &[u8]) -> Result<(), Refused> {
    let report: NodeReport = match serde_json::from_slice(body) {
        Ok(report) => report,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    if report.node != node.name {
        return refuse(StatusCode::BAD_REQUEST, "the report is about another node");
    }
    if let Err(too_many) = report.check() {
        return refuse(StatusCode::BAD_REQUEST, &too_many.to_string());
    }
    tracing::debug!(
        node.name,
        images = report.image_ids.len(),
        "a node agent reported"
    );
    let digest = report::digest(body);
    let kept = context
        .reports
        .keep(report, &digest, node.uid, Instant::now());
    kept.or_else(|full| {
        tracing::warn!(node.name, error = %full, "a report is refused");
        refuse(StatusCode::INSUFFICIENT_STORAGE, &full.to_string())
    })
}

/// The UID of the node, if the client is its agent: a pod of the release's `DaemonSet` on this
/// node, with this address.
fn speaks_for(
    context: &Context,
    caller: &Caller,
    node: &str,
    now: jiff::Timestamp,
) -> Option<String> {
    let index = &context.index;
    let address = caller.address.filter(|_| caller.is_agent)?;
    let names = &context.names;
    let daemon_set = index.owners.read(|owners| {
        let daemon_sets = owners.get("DaemonSet")?;
        let key = (names.namespace.clone(), names.node_agent());
        Some(daemon_sets.get(&key)?.uid.clone())
    })?;
    let facts = ClusterIndex::read(&index.nodes, |nodes| {
        nodes.get(&(String::new(), node.to_owned())).cloned()
    })?;
    let is_settled = now.as_second().saturating_sub(facts.created) >= STALE_SECONDS;
    ClusterIndex::read(&index.pods, |pods| {
        let mut pods = pods
            .iter()
            .filter_map(|(_, pod)| Some((pod, pod.agent.as_ref()?)));
        pods.any(|(pod, agent)| {
            pod.owner.uid == daemon_set
                && agent.node == node
                && agent.addresses.contains(&address)
                && (is_settled || agent.created >= facts.created)
        })
    })
    .then_some(facts.uid)
}

/// The address that a replica in the cluster listens on.
pub fn listen_address() -> SocketAddr {
    SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, report::PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_report_waits_until_one_of_a_few_is_read() {
        let bodies = Semaphore::new(MAX_BODIES);
        let mut turns = Vec::new();
        for _ in 0..MAX_BODIES {
            turns.push(turn(&bodies).await.unwrap());
        }
        let (status, _) = turn(&bodies).await.unwrap_err();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        let next = async {
            tokio::time::sleep(TURN_TIMEOUT / 2).await;
            turns.pop();
        };
        let (waited, ()) = tokio::join!(turn(&bodies), next);
        drop(waited.unwrap());
    }
}
