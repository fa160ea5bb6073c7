//! Whose TLS handshake is next.
//!
//! A handshake costs processor time that a stranger can ask for by opening a connection. So only a
//! few are computed at a time, and the clients that wait take turns: one that opens a thousand
//! connections at once delays itself, and requests on other connections find a free processor.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use holdfast_core::Gate;
use tokio::{net::TcpStream, sync::Notify};
use tokio_rustls::{TlsAcceptor, rustls, server::TlsStream};

use super::{places::client_address, socket::Socket};

/// Between two warnings about clients without a certificate: anybody can cause them.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The handshakes of a listener. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Handshakes {
    gate: Gate<IpAddr>,
    warned: Arc<Mutex<Option<Instant>>>,
}

impl Handshakes {
    /// Half of the processors compute handshakes at most.
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::through(Gate::new((processors / 2).max(1)))
    }

    fn through(gate: Gate<IpAddr>) -> Self {
        Self {
            gate,
            warned: Arc::default(),
        }
    }

    /// Shakes hands with a client of `address`.
    ///
    /// # Errors
    /// The connection broke, or the client does not speak TLS.
    pub(super) async fn run(
        &self,
        stream: Socket<TcpStream>,
        address: IpAddr,
        config: &Arc<rustls::ServerConfig>,
    ) -> std::io::Result<TlsStream<Socket<TcpStream>>> {
        // Until the client has sent something, its connection costs nearly nothing.
        stream.readable().await?;
        let handshake = TlsAcceptor::from(Arc::clone(config)).accept(stream);
        self.in_turns(address, handshake).await
    }

    /// Logs that a handshake failed. That a client has no certificate of the CA where it must have
    /// one is an error of whoever configured one of the two.
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
                "a client was refused, it showed no certificate of the CA; further ones within a minute are logged at level debug"
            );
        } else {
            tracing::debug!(%peer, %error, "TLS handshake failed");
        }
    }

    fn may_warn(&self, now: Instant) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let may = warned.is_none_or(|at| WARN_EVERY <= now.saturating_duration_since(at));
        if may {
            *warned = Some(now);
        }
        may
    }

    /// Computes `handshake` by turns: it takes one for each message of the client, because a client
    /// chooses which of its messages costs the most (another key share, TLS 1.2).
    async fn in_turns<F: Future>(&self, address: IpAddr, handshake: F) -> F::Output {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut handshake = std::pin::pin!(handshake);
        loop {
            let turn = self.gate.turn(client_address(address)).await;
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

/// Remembers that a handshake can go on.
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
        let gate = Gate::new(1);
        let handshakes = Handshakes::through(gate.clone());
        let [client, other] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let turn = || gate.turn(other).now_or_never();
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
