//! The accept loop that upstream, proxy and control share: plain or TLS, cut while the upstream is
//! "down".

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::faults::{Body, Faults};

/// A handler's word that the connection is to be cut without an answer.
#[derive(Debug)]
pub struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("connection cut by a fault")
    }
}

impl std::error::Error for Cut {}

/// An address of this machine for a program that binds it later. No other caller in this process
/// gets it, and the port is none that the kernel gives to a socket that binds 0 or connects.
///
/// # Errors
/// When no port is free.
pub fn free_address() -> io::Result<SocketAddr> {
    const PORTS: Range<u16> = 10_000..30_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run side by side begin at different ports.
    let first = std::process::id().wrapping_mul(97);
    let count = PORTS.end - PORTS.start;
    for _ in PORTS {
        let next = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).into());
        let offset = u16::try_from(next % u32::from(count)).unwrap_or_default();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORTS.start + offset));
        if std::net::TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Serves until the future is dropped, with every connection: dropping it is like killing the
/// process.
///
/// # Errors
/// Never returns one; accept errors are passed over.
pub async fn serve<H, F>(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    faults: Faults,
    handler: H,
) -> Infallible
where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Response<Body>, Cut>> + Send + 'static,
{
    let handler = Arc::new(handler);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        if faults.is_down() || stream.set_nodelay(true).is_err() {
            continue;
        }
        let (handler, faults, tls) = (handler.clone(), faults.clone(), tls.clone());
        connections.spawn(async move {
            let serve = async {
                match tls {
                    None => connection(stream, &handler).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            connection(stream, &handler).await;
                        }
                    }
                }
            };
            tokio::select! {
                () = serve => {}
                () = faults.down() => {}
            }
        });
    }
}

async fn connection<S, H, F>(stream: S, handler: &Arc<H>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Response<Body>, Cut>> + Send + 'static,
{
    let service = service_fn(|request| handler(request));
    // An error here is a client that left or a fault at work.
    drop(
        auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}

/// Binds an address, `127.0.0.1:0` for instance.
///
/// # Errors
/// When the address is taken or not of this machine.
pub async fn bind(address: &str) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}
