//! The HTTP server of every part: one accept loop for plain HTTP and TLS, HTTP/1.1 and HTTP/2.
//!
//! Owns `TCP_NODELAY`, the bounds on connections, headers, handshakes, streams and slow clients, and the graceful end. Request
//! extensions carry [`PeerAddr`] and, with a client certificate, [`PeerIdentity`].

mod address;
mod count;
mod peer;
mod socket;
mod watch;

use self::{address::Addresses, peer::Peer, socket::Socket, watch::Watch};
use crate::tls::{PeerIdentity, ServerTls};
use http::Request;
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use count::Counts;

/// Makes a service of a function, for parts that route by themselves.
pub use hyper::service::service_fn;

/// The client's address, in a request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// What one connection may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; further ones wait in the kernel's queue.
    pub connections: usize,
    /// Connections of one address (IPv6: of one /64) at a time; further ones are closed at once.
    pub connections_per_address: usize,
    /// Bytes of a request's headers; 431 above.
    pub header_bytes: usize,
    /// Headers of a request; 431 above.
    pub headers: usize,
    /// Time for a TLS handshake, and for the headers of a request; then the connection is cut.
    pub header_timeout: Duration,
    /// Time without a request, after which a connection is closed.
    pub keep_alive: Duration,
    /// Time in which a client takes nothing of an answer, after which its connection is cut.
    pub idle: Duration,
    /// Least bytes a second that a client takes of an answer, over `window`; else its connection is cut. 0: any.
    pub min_bytes_per_second: u64,
    /// Over this time a client has to be fast enough.
    pub window: Duration,
    /// Time that requests under way get at shutdown.
    pub drain: Duration,
    /// Concurrent streams of an HTTP/2 connection; further ones are refused.
    pub streams: u32,
    /// Bytes that an HTTP/2 client may send before the part reads them, on one connection and on one stream of it; at least 65535.
    /// What waits there is outside of the part's own budgets.
    pub http2_window: u32,
    /// Streams of an HTTP/2 connection that the client reset before they were looked at; with more the connection ends.
    pub resets: usize,
}

impl Limits {
    /// How often each connection is looked at.
    fn tick(&self) -> Duration {
        let shortest = [self.header_timeout, self.keep_alive, self.idle, self.window];
        let shortest = shortest.into_iter().min().unwrap_or(self.idle);
        (shortest / 4).clamp(Duration::from_millis(20), Duration::from_secs(5))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_address: 4096,
            header_bytes: 64 * 1024,
            headers: 100,
            header_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(120),
            idle: Duration::from_secs(60),
            min_bytes_per_second: 1024,
            window: Duration::from_secs(60),
            drain: Duration::from_secs(25),
            streams: 256,
            http2_window: 1024 * 1024,
            resets: 20,
        }
    }
}

/// Listens on `address`; where that is every IPv6 address and the kernel has no IPv6, on every IPv4 address.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if no_such_family(&error) && address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        outcome => outcome,
    }
}

/// `EAFNOSUPPORT` (no IPv6 in the kernel) or `EADDRNOTAVAIL` (switched off by sysctl). A port that is taken is another matter.
fn no_such_family(error: &std::io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == std::io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// Makes a hyper service of a tower service, such as `warp::service(routes)`.
pub fn tower<S>(service: S) -> hyper_util::service::TowerToHyperService<S> {
    hyper_util::service::TowerToHyperService::new(service)
}

/// Serves `service` until `shutdown`, then lets requests under way finish within `limits.drain`.
///
/// A connection that fails or panics ends alone. The listener is closed first at shutdown, so that new clients go elsewhere.
pub async fn serve<S, B>(
    listener: TcpListener,
    tls: Option<ServerTls>,
    service: S,
    limits: Limits,
    shutdown: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    serve_counted(listener, tls, service, limits, Counts::default(), shutdown).await;
}

/// [`serve`], with numbers.
pub async fn serve_counted<S, B>(
    listener: TcpListener,
    tls: Option<ServerTls>,
    service: S,
    limits: Limits,
    counts: Counts,
    shutdown: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let addresses = Addresses::default();
    let slots = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let builder = Arc::new(builder(&limits));
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let (stream, address, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or the like: looping at full speed would not help.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = addresses.enter(address.ip(), limits.connections_per_address) else {
            counts.refused("address");
            tracing::debug!(peer = %address, "a connection was refused, its address has too many");
            continue;
        };
        let open = counts.open();
        let counts = counts.clone();
        let config = tls.as_ref().map(ServerTls::current);
        let service = service.clone();
        let watcher = graceful.watcher();
        let builder = Arc::clone(&builder);
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let _held = (slot, place, open);
            let watch = Watch::new();
            let stream = Socket::new(stream, Arc::clone(&watch));
            let mut service = Peer {
                inner: service,
                address,
                identity: None,
                watch,
            };
            let Some(config) = config else {
                drive(&builder, stream, service, watcher, &limits, &counts).await;
                return;
            };
            let acceptor = tokio_rustls::TlsAcceptor::from(config);
            let handshake = tokio::time::timeout(limits.header_timeout, acceptor.accept(stream));
            let stream = tokio::select! {
                () = shutdown.cancelled() => return,
                outcome = handshake => match outcome {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => {
                        tracing::debug!(peer = %address, %error, "TLS handshake failed");
                        return;
                    }
                    Err(_) => {
                        tracing::debug!(peer = %address, "TLS handshake took too long");
                        return;
                    }
                },
            };
            service.identity = stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(|chain| chain.first())
                .and_then(|leaf| PeerIdentity::from_der(leaf));
            drive(&builder, stream, service, watcher, &limits, &counts).await;
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::info!("requests under way did not end in time, their connections are cut");
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots)
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    // Without it small answers wait for the delayed acknowledgement of the one before.
    stream.set_nodelay(true)?;
    Ok((stream, address, slot))
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // It counts idle time too; both are cut by the watch, each at its own time.
        .header_read_timeout(limits.header_timeout + limits.keep_alive)
        .max_buf_size(limits.header_bytes.max(8192))
        .max_headers(limits.headers);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(limits.streams)
        .initial_connection_window_size(limits.http2_window)
        .initial_stream_window_size(limits.http2_window)
        .max_pending_accept_reset_streams(limits.resets)
        .max_local_error_reset_streams(limits.resets.saturating_mul(10))
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

async fn drive<I, S, B>(
    builder: &auto::Builder<TokioExecutor>,
    stream: I,
    service: Peer<S>,
    watcher: hyper_util::server::graceful::Watcher,
    limits: &Limits,
    counts: &Counts,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = http::Response<B>> + Send,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (watch, peer) = (Arc::clone(&service.watch), service.address);
    let connection = builder
        .serve_connection(TokioIo::new(stream), service)
        .into_owned();
    let mut connection = std::pin::pin!(watcher.watch(connection));
    let mut ticks = tokio::time::interval(limits.tick());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            outcome = &mut connection => {
                if let Err(error) = outcome {
                    tracing::debug!(%peer, error, "a connection ended with an error");
                }
                return;
            }
            _ = ticks.tick() => {
                if let Some(reason) = watch.judge(limits) {
                    counts.cut(reason.as_str());
                    tracing::debug!(%peer, reason = reason.as_str(), "a connection was cut");
                    return;
                }
            }
        }
    }
}
