//! Whose TLS handshake is next.
//!
//! A handshake costs processor time that a stranger can ask for by opening a connection. So only a
//! few are computed at a time, and the clients that wait take turns: one that opens a thousand
//! connections at once delays itself, and requests on other connections find a free processor.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use holdfast_core::Turns;
use tokio::{
    net::TcpStream,
    sync::{Notify, oneshot},
};
use tokio_rustls::{TlsAcceptor, rustls, server::TlsStream};

use super::{places::client_address, socket::Socket};

/// The handshakes of a listener. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Handshakes {
    at_once: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    waiting: Turns<IpAddr, oneshot::Sender<()>>,
}

/// Leave to compute one handshake, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn(Handshakes);

/// A place in the queue; given up when this is dropped.
struct Queued {
    handshakes: Handshakes,
    client: IpAddr,
    arrival: u64,
    turn: oneshot::Receiver<()>,
}

impl Handshakes {
    /// Half of the processors compute handshakes at most.
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::at_once((processors / 2).max(1))
    }

    fn at_once(at_once: usize) -> Self {
        Self {
            at_once,
            state: Arc::default(),
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

    /// Computes `handshake` by turns: it takes one for each message of the client, because a client
    /// chooses which of its messages costs the most (another key share, TLS 1.2).
    async fn in_turns<F: Future>(&self, address: IpAddr, handshake: F) -> F::Output {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut handshake = std::pin::pin!(handshake);
        loop {
            let turn = self.turn(address).await;
            let polled = handshake.as_mut().poll(&mut Context::from_waker(&waker));
            drop(turn);
            match polled {
                Poll::Ready(outcome) => return outcome,
                Poll::Pending => woken.0.notified().await,
            }
        }
    }

    /// Waits for the turn of a connection of `address`.
    pub(super) async fn turn(&self, address: IpAddr) -> Turn {
        let client = client_address(address);
        let (give, turn) = oneshot::channel();
        let arrival = self.state().waiting.push(client, give);
        let mut queued = Queued {
            handshakes: self.clone(),
            client,
            arrival,
            turn,
        };
        self.serve();
        // The sender stays in the queue as long as `queued` does.
        (&mut queued.turn).await.ok();
        // What was received is not given back by `queued`.
        Turn(self.clone())
    }

    fn serve(&self) {
        self.state().serve(self.at_once);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Remembers that a handshake can go on.
#[derive(Debug, Default)]
struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

impl State {
    /// Gives turns while there is room.
    fn serve(&mut self, at_once: usize) {
        while self.running < at_once {
            let Some(give) = self.waiting.pop() else {
                return;
            };
            self.running += usize::from(give.send(()).is_ok());
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        let mut state = self.handshakes.state();
        state.waiting.remove(self.client, self.arrival);
        drop(state);
        // A turn that came too late goes to the next one.
        if self.turn.try_recv().is_ok() {
            drop(Turn(self.handshakes.clone()));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.running -= 1;
        state.serve(self.0.at_once);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    /// Connections of these clients wait; in which order they are served.
    fn order(clients: &[u8]) -> Vec<u8> {
        let handshakes = Handshakes::at_once(1);
        let mut running = handshakes.turn(address(0)).now_or_never();
        let mut waiting: Vec<_> = clients
            .iter()
            .map(|client| (*client, Box::pin(handshakes.turn(address(*client)))))
            .collect();
        for (_, turn) in &mut waiting {
            assert!(turn.now_or_never().is_none(), "two at once");
        }
        let mut order = Vec::new();
        while !waiting.is_empty() {
            assert!(running.take().is_some(), "nobody was served");
            waiting.retain_mut(|(client, turn)| match turn.now_or_never() {
                Some(turn) => {
                    order.push(*client);
                    assert!(running.replace(turn).is_none(), "two at once");
                    false
                }
                None => true,
            });
        }
        drop(running);
        let state = handshakes.state();
        assert!(state.running == 0 && state.waiting.is_empty());
        order
    }

    #[test]
    fn clients_take_turns_whatever_one_of_them_opens() {
        assert_eq!(order(&[1, 1, 1, 1, 2, 3, 2]), [1, 2, 3, 1, 2, 1, 1]);
    }

    #[test]
    fn who_gives_up_takes_nobodys_turn() {
        let handshakes = Handshakes::at_once(1);
        let running = handshakes.turn(address(1)).now_or_never().unwrap();
        let mut gone = Box::pin(handshakes.turn(address(1)));
        let mut served = Box::pin(handshakes.turn(address(2)));
        let mut last = Box::pin(handshakes.turn(address(3)));
        for turn in [&mut gone, &mut served, &mut last] {
            assert!(turn.now_or_never().is_none());
        }
        drop(gone);
        drop(running);
        // It has its turn and does not take it.
        drop(served);
        let turn = last.as_mut().now_or_never().unwrap();
        assert_eq!(handshakes.state().running, 1);
        drop(turn);
        assert_eq!(handshakes.state().running, 0);
        assert!(handshakes.state().waiting.is_empty());
    }

    #[test]
    fn each_message_of_a_handshake_waits_for_a_turn() {
        let handshakes = Handshakes::at_once(1);
        let mut messages = 0;
        let message = std::future::poll_fn(|context| {
            assert_eq!(handshakes.state().running, 1, "computed without a turn");
            messages += 1;
            if messages == 3 {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        });
        let mut handshake = Box::pin(handshakes.in_turns(address(1), message));
        let mut polls = 0;
        loop {
            let other = handshakes.turn(address(2)).now_or_never();
            let waits = other.is_some();
            let done = handshake.as_mut().now_or_never().is_some();
            assert!(!(waits && done), "two at once");
            drop(other);
            polls += 1;
            if done {
                break;
            }
        }
        drop(handshake);
        assert_eq!(messages, 3);
        assert!(polls > 1, "{polls}");
        assert_eq!(handshakes.state().running, 0);
    }
}
