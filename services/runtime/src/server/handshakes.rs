//! Whose TLS handshake is next.
//!
//! A handshake costs processor time that a stranger can ask for by opening a connection. So only a
//! few are computed at a time, and the clients that wait take turns: one that opens a thousand
//! connections at once delays itself, and requests on other connections find a free processor.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures::FutureExt as _;
use tokio::{net::TcpStream, sync::oneshot};
use tokio_rustls::{LazyConfigAcceptor, rustls, server::TlsStream};

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
    arrivals: u64,
    /// By client, then by arrival.
    waiting: BTreeMap<IpAddr, VecDeque<(u64, oneshot::Sender<()>)>>,
    /// Clients with a connection that waits, in the order of their turns.
    turns: VecDeque<IpAddr>,
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
        let mut turn = Some(self.turn(address).await);
        let mut hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
        let hello = match first(&mut hello).await {
            Poll::Ready(hello) => hello?,
            Poll::Pending => {
                drop(turn.take());
                hello.await?
            }
        };
        // What takes time is the answer to the client's first message, which the first poll
        // computes. Clients of TLS 1.2, and those that are asked for another key share, have theirs
        // computed later, and without a turn.
        let turn = match turn {
            Some(turn) => turn,
            None => self.turn(address).await,
        };
        let mut handshake = hello.into_stream(Arc::clone(config));
        let answered = first(&mut handshake).await;
        drop(turn);
        match answered {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => handshake.await,
        }
    }

    /// Waits for the turn of a connection of `address`.
    pub(super) async fn turn(&self, address: IpAddr) -> Turn {
        let client = client_address(address);
        let (give, turn) = oneshot::channel();
        let arrival = self.state().enter(client, give);
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

/// Polls once.
async fn first<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::future::poll_fn(|context| Poll::Ready(future.poll_unpin(context))).await
}

impl State {
    fn enter(&mut self, client: IpAddr, give: oneshot::Sender<()>) -> u64 {
        self.arrivals += 1;
        let queue = self.waiting.entry(client).or_default();
        if queue.is_empty() {
            self.turns.push_back(client);
        }
        queue.push_back((self.arrivals, give));
        self.arrivals
    }

    fn leave(&mut self, client: IpAddr, arrival: u64) {
        let Some(queue) = self.waiting.get_mut(&client) else {
            return;
        };
        queue.retain(|(other, _)| *other != arrival);
        if queue.is_empty() {
            self.waiting.remove(&client);
            self.turns.retain(|other| *other != client);
        }
    }

    /// Gives turns while there is room.
    fn serve(&mut self, at_once: usize) {
        while self.running < at_once {
            let Some(client) = self.turns.pop_front() else {
                return;
            };
            let Some(queue) = self.waiting.get_mut(&client) else {
                continue;
            };
            let next = queue.pop_front();
            if queue.is_empty() {
                self.waiting.remove(&client);
            } else {
                self.turns.push_back(client);
            }
            let given = next.is_some_and(|(_, give)| give.send(()).is_ok());
            self.running += usize::from(given);
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.handshakes.state().leave(self.client, self.arrival);
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
        assert!(state.running == 0 && state.waiting.is_empty() && state.turns.is_empty());
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
}
