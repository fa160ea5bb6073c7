//! The HTTP server of every part: one accept loop for plain HTTP and TLS, HTTP/1.1 and HTTP/2.
//!
//! It bounds connections, headers, bodies, handshakes, streams and slow clients, and shuts down
//! gracefully. The extensions of a request hold [`PeerAddr`] and, with a client certificate,
//! [`PeerIdentity`]. `docs/design/connections.md` describes the bounds.

mod accept_queue;
mod connection_slots;
mod count;
mod eviction;
mod handshakes;
mod listen;
mod outgoing;
mod peer;
mod request_body;
mod requests;
mod socket;
mod watch;
mod windows;

use self::{
    accept_queue::{AcceptQueue, Admitted},
    handshakes::Handshakes,
    peer::Peer,
    socket::Socket,
    watch::{Reason, Watch},
    windows::Windows,
};
use crate::tls::{PeerIdentity, ServerTls};
use http::Request;
use hyper::body::Body;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use accept_queue::MAX_WAITING;
pub use connection_slots::client_address;
pub use count::Counts;
pub use listen::{BACKLOG, bind};
pub use request_body::{BodyError, RequestBody};
pub use windows::{LARGE_WINDOW, LARGE_WINDOWS, LARGE_WINDOWS_OF_ADDRESS};

/// Makes a service of a function, for parts that do their own routing.
pub use hyper::service::service_fn;

/// Time for the requests in progress on a connection whose client certificate was verified with
/// files that have changed since. The connection accepts no new requests. A reader whose stream is
/// cut continues on another connection.
const OUTDATED_CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);

/// The address of the client, in the extensions of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// The connection of a request, in the extensions of the request.
#[derive(Clone, Debug)]
pub struct Client(Arc<Watch>);

impl Client {
    /// Marks the client as authenticated: if slots are short, its connection is evicted after those
    /// of other clients.
    pub fn set_authenticated(&self) {
        self.0.authenticated();
    }
}

/// The bounds of a listener and its connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time. A further one takes the slot of an idle one, or of one of an address
    /// that has more. If there is none of these, it waits for `header_timeout`; if [`MAX_WAITING`]
    /// wait already, it is closed at once.
    pub connections: usize,
    /// Connections per address (IPv6: per `ipv6_prefix`) at a time. Further ones are closed at
    /// once.
    pub connections_per_address: usize,
    /// Bits of the IPv6 network that counts as one address: 64, because a client chooses the
    /// others. 128 if clients are pods, whose addresses the cluster chooses.
    pub ipv6_prefix: u8,
    /// The divisor of the files that the process may have open, which gives this listener's share
    /// for all its connections. 3 for the main port of a process, 6 for each other one, so that a
    /// third of the files remains.
    pub part_of_files: u64,
    /// Whether any connection may be evicted for a further one, even with a request in progress:
    /// the oldest of the address that has most. For ports with short answers.
    pub recycles: bool,
    /// Bytes of the headers of a request; 431 beyond.
    pub header_bytes: usize,
    /// Headers of a request; 431 beyond.
    pub headers: usize,
    /// Time for a TLS handshake and for the headers of a request. Then the connection is cut.
    pub header_timeout: Duration,
    /// Time without a request after which a connection is closed.
    pub keep_alive: Duration,
    /// Time without progress: if a client reads nothing of an answer, its connection is cut; if it
    /// sends nothing of a request's body, the body ends with [`BodyError::Silent`].
    pub idle: Duration,
    /// Least bytes per second over `window`: if a client reads an answer more slowly, its
    /// connection is cut; if it sends a body more slowly, the body ends with [`BodyError::Slow`].
    /// 0: no minimum.
    pub min_bytes_per_second: u64,
    /// The time over which `min_bytes_per_second` is measured.
    pub window: Duration,
    /// Total time for a request's body, which then ends with [`BodyError::Late`]. For parts with
    /// small bodies. `None`: `min_bytes_per_second` is the only bound.
    pub body_timeout: Option<Duration>,
    /// Bytes of a request's body. A larger one ends with [`BodyError::TooLarge`], before its first
    /// byte if its length is announced. `u64::MAX` if the part has its own bound.
    pub body_bytes: u64,
    /// Time for requests in progress at shutdown.
    pub drain: Duration,
    /// Concurrent streams per HTTP/2 connection; further ones are refused.
    pub streams: u32,
    /// Bytes that an HTTP/2 client may send before the part reads them, per connection and per
    /// stream; at least 65535. They are not part of the part's own budgets.
    pub http2_window: u32,
    /// Connections at a time with [`LARGE_WINDOW`] instead, because a small window makes uploads
    /// with a long round-trip time slow; per address [`LARGE_WINDOWS_OF_ADDRESS`].
    pub http2_large_windows: usize,
    /// Streams of an HTTP/2 connection that the client may reset before they are processed. Beyond,
    /// the connection ends.
    pub resets: usize,
}

impl Limits {
    /// The interval at which each connection is checked.
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
            ipv6_prefix: connection_slots::CLIENT_PREFIX,
            part_of_files: 3,
            recycles: false,
            header_bytes: 64 * 1024,
            headers: 100,
            header_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(120),
            idle: Duration::from_secs(60),
            min_bytes_per_second: 1024,
            window: Duration::from_secs(60),
            body_timeout: None,
            body_bytes: u64::MAX,
            drain: Duration::from_secs(25),
            streams: 256,
            http2_window: 64 * 1024,
            http2_large_windows: LARGE_WINDOWS,
            resets: 20,
        }
    }
}

/// Makes a hyper service of a tower service, such as `warp::service(routes)`.
pub fn tower<S>(service: S) -> hyper_util::service::TowerToHyperService<S> {
    hyper_util::service::TowerToHyperService::new(service)
}

/// Serves `service` until `shutdown`, then lets requests in progress finish within `limits.drain`.
///
/// Request bodies are [`RequestBody`]s, which end with a [`BodyError`] if a client is silent, slow
/// or sends too much. A part with small bodies sets [`Limits::body_bytes`] and
/// [`Limits::body_timeout`]. The bytes of all bodies together are up to the part: it reserves
/// memory before it reads, and releases it with the last reader.
///
/// A connection that fails or panics affects no other one. At shutdown the listener is closed
/// first, so that new clients go to other replicas.
pub async fn serve<S, B>(
    listener: TcpListener,
    tls: Option<ServerTls>,
    service: S,
    limits: Limits,
    shutdown: CancellationToken,
) where
    S: Service<Request<RequestBody>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    serve_counted(listener, tls, service, limits, Counts::default(), shutdown).await;
}

/// [`serve`], with metrics.
pub async fn serve_counted<S, B>(
    listener: TcpListener,
    tls: Option<ServerTls>,
    service: S,
    limits: Limits,
    counts: Counts,
    shutdown: CancellationToken,
) where
    S: Service<Request<RequestBody>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let graceful = GracefulShutdown::new();
    let connections = Connections {
        tls,
        service,
        limits,
        counts,
        builder: Arc::new(builder(&limits, limits.http2_window)),
        large: Arc::new(builder(&limits, limits.http2_window.max(LARGE_WINDOW))),
        windows: Windows::new(limits.http2_large_windows),
        handshakes: Handshakes::new(),
        shutdown: shutdown.clone(),
    };
    let mut accept_queue = AcceptQueue::new(&limits);
    loop {
        let admitted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            admitted = accept_queue.next(&listener, &connections.counts) => admitted,
        };
        tokio::spawn(connections.clone().run(admitted, graceful.watcher()));
    }
    // Closes connections that were accepted but not served, so that they go to other replicas.
    drop((listener, accept_queue));
    if tokio::time::timeout(limits.drain, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::info!("requests in progress did not finish in time; their connections are cut");
    }
}

/// What all connections of a listener share.
#[derive(Clone)]
struct Connections<S> {
    tls: Option<ServerTls>,
    service: S,
    limits: Limits,
    counts: Counts,
    builder: Arc<auto::Builder<TokioExecutor>>,
    /// The builder for connections with a large window.
    large: Arc<auto::Builder<TokioExecutor>>,
    windows: Windows,
    handshakes: Handshakes,
    shutdown: CancellationToken,
}

impl<S, B> Connections<S>
where
    S: Service<Request<RequestBody>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Serves one connection until it ends.
    async fn run(self, admitted: Admitted, watcher: hyper_util::server::graceful::Watcher) {
        let Admitted {
            stream,
            address,
            watch,
            slot,
            open,
        } = admitted;
        let _held = (slot, open);
        let stream = Socket::new(stream, Arc::clone(&watch));
        let mut service = Peer {
            inner: self.service,
            address,
            identity: None,
            watch: Arc::clone(&watch),
            limits: self.limits,
        };
        let mut end = End {
            shutdown: self.shutdown.clone(),
            checked: None,
            _watcher: watcher,
        };
        let Some(tls) = &self.tls else {
            // The protocol of the client is not known yet.
            let window = self.windows.take(address.ip());
            drive(
                window.as_ref().map_or(&self.builder, |_| &self.large),
                stream,
                service,
                end,
                &self.limits,
                &self.counts,
            )
            .await;
            return;
        };
        let config = tls.current();
        let handshake = self.handshakes.run(stream, address.ip(), &config);
        let handshake = tokio::time::timeout(self.limits.header_timeout, handshake);
        let stream = tokio::select! {
            () = self.shutdown.cancelled() => return,
            () = watch.evicted() => {
                self.counts.cut(Reason::Evicted.as_str());
                return;
            }
            outcome = handshake => match outcome {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    self.counts.cut(Reason::HandshakeFailed.as_str());
                    self.handshakes.failed(address, &error, tls.required_ca());
                    return;
                }
                Err(_) => {
                    self.counts.cut(Reason::Handshake.as_str());
                    tracing::debug!(peer = %address, "the TLS handshake took too long");
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
        if service.identity.is_some() {
            watch.authenticated();
            end.checked = Some((tls.clone(), config));
        }
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let window = is_http2.then(|| self.windows.take(address.ip())).flatten();
        drive(
            window.as_ref().map_or(&self.builder, |_| &self.large),
            stream,
            service,
            end,
            &self.limits,
            &self.counts,
        )
        .await;
    }
}

fn builder(limits: &Limits, window: u32) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // hyper's timeout includes idle time. The watch enforces both bounds separately.
        .header_read_timeout(limits.header_timeout + limits.keep_alive)
        .max_buf_size(limits.header_bytes.max(8192))
        .max_headers(limits.headers);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(limits.streams)
        .initial_connection_window_size(window)
        .initial_stream_window_size(window)
        .max_pending_accept_reset_streams(limits.resets)
        .max_local_error_reset_streams(limits.resets.saturating_mul(10))
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// What ends a connection gracefully.
struct End {
    shutdown: CancellationToken,
    /// The configuration that verified the client certificate, if there is one.
    checked: Option<(ServerTls, Arc<rustls::ServerConfig>)>,
    /// Makes the shutdown of the server wait for the connection.
    _watcher: hyper_util::server::graceful::Watcher,
}

impl End {
    fn is_outdated(&self) -> bool {
        let checked = self.checked.as_ref();
        checked.is_some_and(|(tls, config)| !tls.is_current(config))
    }
}

async fn drive<I, S, B>(
    builder: &auto::Builder<TokioExecutor>,
    stream: I,
    service: Peer<S>,
    end: End,
    limits: &Limits,
    counts: &Counts,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<RequestBody>, Response = http::Response<B>> + Send,
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
    let mut connection = std::pin::pin!(connection);
    let mut outdated: Option<tokio::time::Instant> = None;
    let mut ending = false;
    let mut evicted = std::pin::pin!(watch.evicted());
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
            () = &mut evicted => {
                counts.cut(Reason::Evicted.as_str());
                tracing::debug!(%peer, "a connection was evicted for another client");
                return;
            }
            () = end.shutdown.cancelled(), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            _ = ticks.tick() => {
                if outdated.is_none() && end.is_outdated() {
                    tracing::debug!(
                        %peer,
                        "the TLS files have changed since the client certificate was verified; \
                         the connection ends"
                    );
                    outdated = Some(tokio::time::Instant::now());
                    if !ending {
                        ending = true;
                        connection.as_mut().graceful_shutdown();
                    }
                }
                if outdated.is_some_and(|since| since.elapsed() > OUTDATED_CONNECTION_TIMEOUT) {
                    counts.cut("outdated");
                    return;
                }
                if let Some(reason) = watch.check(limits) {
                    counts.cut(reason.as_str());
                    tracing::debug!(%peer, reason = reason.as_str(), "a connection was cut");
                    return;
                }
            }
        }
    }
}
