//! Scheduling of TLS handshakes.
//!
//! Any client can cause the processor time of a handshake by opening a connection. So only a few
//! are computed at a time, and waiting clients take turns. A client that opens a thousand
//! connections delays itself, and requests on other connections still get a processor.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use holdfast_core::FairSemaphore;
use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::Notify};
use tokio_rustls::{TlsAcceptor, rustls, server::TlsStream};

use super::{connection_slots::client_address, socket::Socket};

/// Least time between two warnings about clients without a certificate, because any client can
/// cause them.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The scheduler of a listener's handshakes. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Handshakes {
    semaphore: FairSemaphore<IpAddr>,
    warned: Arc<Mutex<Option<Instant>>>,
}

impl Handshakes {
    /// At most half of the processors compute handshakes.
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::through(FairSemaphore::new((processors / 2).max(1)))
    }

    fn through(semaphore: FairSemaphore<IpAddr>) -> Self {
        Self {
            semaphore,
            warned: Arc::default(),
        }
    }

    /// Performs the handshake with a client at `address`.
    ///
    /// # Errors
    /// The connection is broken, or the handshake failed.
    pub(super) async fn run(
        &self,
        stream: Socket<TcpStream>,
        address: IpAddr,
        config: &Arc<rustls::ServerConfig>,
    ) -> std::io::Result<TlsStream<Socket<TcpStream>>> {
        // A connection costs little until the client has sent something.
        stream.readable().await?;
        let handshake = TlsAcceptor::from(Arc::clone(config)).accept(stream);
        self.in_turns(address, handshake).await
    }

    /// Logs a failed handshake. A client without a required certificate is a configuration error,
    /// so it is a warning.
    pub(super) fn failed(
        &self,
        peer: SocketAddr,
        error: &std::io::Error,
        required_ca: Option<&Path>,
    ) {
        let ca = required_ca.filter(|_| is_about_the_client_certificate(error));
        if let Some(ca) = ca.filter(|_| self.may_warn(Instant::now())) {
            tracing::warn!(
                %peer,
                %error,
                ca = %ca.display(),
                "refused a client without a certificate of the CA; further ones within a minute \
                 are logged at level debug"
            );
        } else {
            tracing::debug!(%peer, %error, "TLS handshake failed");
        }
    }

    fn may_warn(&self, now: Instant) -> bool {
        let mut warned = self.warned.lock();
        let may = warned.is_none_or(|at| WARNING_INTERVAL <= now.saturating_duration_since(at));
        if may {
            *warned = Some(now);
        }
        may
    }

    /// Computes `handshake` with one turn per message of the client, because a client chooses which
    /// of its messages is expensive (another key share, TLS 1.2).
    async fn in_turns<F: Future>(&self, address: IpAddr, handshake: F) -> F::Output {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut handshake = std::pin::pin!(handshake);
        loop {
            let turn = self.semaphore.acquire(client_address(address)).await;
            let polled = handshake.as_mut().poll(&mut Context::from_waker(&waker));
            drop(turn);
            match polled {
                Poll::Ready(outcome) => return outcome,
                Poll::Pending => woken.0.notified().await,
            }
        }
    }
}

fn is_about_the_client_certificate(error: &std::io::Error) -> bool {
    let error = error.get_ref();
    let error = error.and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(
        error,
        Some(rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_))
    )
}

/// Records that a handshake can continue.
#[derive(Debug, Default)]
struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn each_message_of_a_handshake_waits_for_a_turn() {
        let semaphore = FairSemaphore::new(1);
        let handshakes = Handshakes::through(semaphore.clone());
        let [client, other] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let turn = || semaphore.acquire(other).now_or_never();
        let mut messages = 0;
        let message = std::future::poll_fn(|context| {
            assert!(turn().is_none(), "computed without a turn");
            messages += 1;
            context.waker().wake_by_ref();
            if messages == 3 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        let mut handshake = Box::pin(handshakes.in_turns(client, message));
        let theirs = turn();
        assert!(theirs.is_some());
        assert!(handshake.as_mut().now_or_never().is_none(), "two at once");
        drop(theirs);
        assert!(handshake.as_mut().now_or_never().is_some());
        drop(handshake);
        assert_eq!(messages, 3);
        assert!(turn().is_some(), "a turn was kept");
    }

    #[test]
    fn a_warning_is_written_once_in_its_time() {
        let (handshakes, start) = (Handshakes::new(), Instant::now());
        for (second, expect) in [(0, true), (59, false), (60, true), (61, false)] {
            let now = start + Duration::from_secs(second);
            assert_eq!(handshakes.clone().may_warn(now), expect, "{second}");
        }
    }
}
