//! The accept queue: takes connections from the kernel, and gives them connection slots in a
//! fair order.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use holdfast_core::FairQueue;
use tokio::net::{TcpListener, TcpStream};

use super::{
    Limits,
    connection_slots::{ConnectionSlot, ConnectionSlots, NoSlot},
    count::{Counts, Open},
    outgoing::UnreadBytes,
    requests::Requests,
    watch::Watch,
};
use crate::descriptors::Share;

/// Connections that wait for a slot if a listener is full, a quarter of them per address. Fewer if
/// the process may not have enough files open ([`Share`]).
pub const MAX_WAITING: usize = 64;

/// A connection that waits for a slot, and since when.
type Waiting = (TcpStream, SocketAddr, Instant);

/// A connection with a slot.
pub(super) struct Admitted {
    pub(super) stream: TcpStream,
    pub(super) address: SocketAddr,
    pub(super) watch: Arc<Watch>,
    pub(super) slot: ConnectionSlot,
    pub(super) open: Open,
}

/// The connections of a listener that are not served yet: arrivals, and those that wait for a slot.
pub(super) struct AcceptQueue {
    slots: ConnectionSlots,
    held: UnreadBytes,
    requests: Requests,
    wait_timeout: Duration,
    /// Accepted and not processed yet, by client.
    arrivals: FairQueue<IpAddr, (TcpStream, SocketAddr)>,
    share: Share,
    waiting: VecDeque<Waiting>,
    /// When evictions for waiting connections were last considered.
    evictions_checked: Option<Instant>,
}

/// Least time between two attempts to evict a connection for a waiting one.
const EVICTION_INTERVAL: Duration = Duration::from_millis(100);

impl AcceptQueue {
    pub(super) fn new(limits: &Limits) -> Self {
        let share = Share::of_this_process(limits);
        Self {
            arrivals: FairQueue::default(),
            slots: ConnectionSlots::new(share.connections, limits),
            share,
            held: UnreadBytes::default(),
            requests: Requests::default(),
            wait_timeout: limits.header_timeout,
            waiting: VecDeque::new(),
            evictions_checked: None,
        }
    }

    /// Returns the next connection that has a slot.
    pub(super) async fn next(&mut self, listener: &TcpListener, counts: &Counts) -> Admitted {
        loop {
            // Lets other tasks run during a flood of connections that are refused.
            tokio::task::coop::consume_budget().await;
            if let Some(admitted) = self.admit_waiting(counts) {
                return admitted;
            }
            self.take_arrivals(listener);
            let Some((stream, address)) = self.arrivals.pop() else {
                self.wait(listener).await;
                continue;
            };
            // Otherwise small answers wait for the delayed acknowledgement of the previous one.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(peer = %address, %error, "a connection was closed at once");
                continue;
            }
            // An arrival does not overtake a waiting connection of a client that has no more
            // connections.
            let waiting = self.waiting.iter().map(|(_, other, _)| other.ip());
            if let Some(at) = self.slots.waiting_before(address.ip(), waiting)
                && let Some((waited, from, since)) = self.waiting.remove(at)
            {
                let admitted = self.admit(waited, from, counts).map_err(|(waited, _)| {
                    self.waiting.insert(at, (waited, from, since));
                });
                self.enqueue((stream, address, Instant::now()), counts);
                if let Ok(admitted) = admitted {
                    return admitted;
                }
                continue;
            }
            match self.admit(stream, address, counts) {
                Ok(admitted) => return admitted,
                Err((_, NoSlot::Address)) => {
                    counts.refused("address");
                    tracing::debug!(
                        peer = %address,
                        "refused a connection: its address has too many"
                    );
                }
                Err((stream, NoSlot::Full)) => {
                    self.enqueue((stream, address, Instant::now()), counts);
                }
            }
        }
    }

    /// Lets a connection wait for a slot, or refuses it if too many wait.
    fn enqueue(&mut self, connection: Waiting, counts: &Counts) {
        let (_, address, _) = connection;
        let client = self.slots.client(address.ip());
        let of_client = |(_, other, _): &&Waiting| self.slots.client(other.ip()) == client;
        let waiting = self.waiting.iter().filter(of_client).count();
        let most = self.share.waiting;
        if self.waiting.len() < most && waiting < most.div_ceil(4) {
            self.waiting.push_back(connection);
        } else {
            counts.refused("full");
            tracing::debug!(peer = %address, "refused a connection: no slot is free");
        }
    }

    /// Accepts what has arrived. The kernel returns connections in the order of their arrival, and
    /// accepting one is far cheaper than serving it. So the burst of one client is accepted
    /// quickly, and then clients take turns.
    fn take_arrivals(&mut self, listener: &TcpListener) {
        while self.arrivals.len() < self.share.arrivals {
            // tokio's budget of a task must not stop this loop.
            let accept = tokio::task::coop::unconstrained(listener.accept());
            let Some(Ok((stream, address))) = accept.now_or_never() else {
                return;
            };
            let client = self.slots.client(address.ip());
            self.arrivals.push(client, (stream, address));
        }
    }

    /// Waits for an arrival, or for a slot for a waiting connection.
    async fn wait(&mut self, listener: &TcpListener) {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    let client = self.slots.client(address.ip());
                    self.arrivals.push(client, (stream, address));
                }
                Err(error) => {
                    // For instance out of file descriptors: retrying at once would not help.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(EVICTION_INTERVAL).await;
                }
            },
            () = self.slots.released(), if !self.waiting.is_empty() => {}
            () = tokio::time::sleep(EVICTION_INTERVAL), if !self.waiting.is_empty() => {}
        }
    }

    /// Returns a waiting connection if there is a slot for it now. Evictions for waiting
    /// connections are considered once per [`EVICTION_INTERVAL`], and before an eviction for an
    /// arrival.
    fn admit_waiting(&mut self, counts: &Counts) -> Option<Admitted> {
        if self.waiting.is_empty() {
            return None;
        }
        if !self.slots.has_free() {
            if self
                .evictions_checked
                .is_some_and(|at| at.elapsed() < EVICTION_INTERVAL)
            {
                return None;
            }
            self.evictions_checked = Some(Instant::now());
        }
        for _ in 0..self.waiting.len() {
            let (stream, address, since) = self.waiting.pop_front()?;
            if self.wait_timeout <= since.elapsed() {
                counts.refused("full");
                continue;
            }
            match self.admit(stream, address, counts) {
                Ok(admitted) => return Some(admitted),
                Err((stream, _)) => self.waiting.push_back((stream, address, since)),
            }
        }
        None
    }

    fn admit(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        counts: &Counts,
    ) -> Result<Admitted, (TcpStream, NoSlot)> {
        let watch = Watch::of_listener(self.held.clone(), self.requests.clone());
        match self.slots.acquire(address.ip(), &watch) {
            Ok(slot) => Ok(Admitted {
                stream,
                address,
                watch,
                slot,
                open: counts.open(),
            }),
            Err(reason) => Err((stream, reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::*;

    /// A listener, and connections to it from `127.0.0.LAST`.
    async fn burst(clients: impl IntoIterator<Item = u8>) -> (TcpListener, Vec<TcpStream>) {
        let listener = super::super::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let open = connect_from_each(&listener, clients).await;
        (listener, open)
    }

    async fn connect_from_each(
        listener: &TcpListener,
        clients: impl IntoIterator<Item = u8>,
    ) -> Vec<TcpStream> {
        let mut open = Vec::new();
        for last in clients {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(([127, 0, 0, last], 0).into()).unwrap();
            let to = listener.local_addr().unwrap();
            open.push(socket.connect(to).await.unwrap());
        }
        open
    }

    #[tokio::test]
    async fn a_burst_of_one_client_does_not_delay_later_clients() {
        let (listener, open) = burst(std::iter::repeat_n(2, 300).chain([3])).await;
        let (mut queue, counts) = (AcceptQueue::new(&Limits::default()), Counts::default());
        let mut admitted = Vec::new();
        for _ in &open {
            admitted.push(queue.next(&listener, &counts).await.address.ip());
        }
        let last = IpAddr::from([127, 0, 0, 3]);
        assert_eq!(
            admitted.iter().position(|address| *address == last),
            Some(1)
        );
        assert!(queue.arrivals.is_empty());
    }

    #[tokio::test]
    async fn further_arrivals_wait_in_the_kernel() {
        const SLOTS: usize = 8;
        let (listener, open) = burst(std::iter::repeat_n(2, 3 * SLOTS)).await;
        let limits = Limits {
            connections: SLOTS,
            ..Limits::default()
        };
        let (mut queue, counts) = (AcceptQueue::new(&limits), Counts::default());
        let mut admitted = Vec::new();
        for _ in &open {
            admitted.push(queue.next(&listener, &counts).await);
            assert!(queue.arrivals.len() < SLOTS, "{}", queue.arrivals.len());
        }
    }

    /// A listener of two slots, and the first connections, which have them.
    async fn full(listener: &TcpListener) -> (AcceptQueue, Counts, [Admitted; 2]) {
        let limits = Limits {
            connections: 2,
            ..Limits::default()
        };
        let (mut queue, counts) = (AcceptQueue::new(&limits), Counts::default());
        let first = queue.next(listener, &counts).await;
        let second = queue.next(listener, &counts).await;
        (queue, counts, [first, second])
    }

    #[tokio::test]
    async fn a_released_slot_goes_to_a_waiting_client_and_not_to_a_flood() {
        let (listener, _open) = burst([2, 3, 4, 4, 4, 4]).await;
        let (mut queue, counts, busy) = full(&listener).await;
        let requests = busy.each_ref().map(|held| held.watch.request(None));
        // No slot is released, so the first ones wait.
        assert!(queue.next(&listener, &counts).now_or_never().is_none());
        let waiting = queue.waiting.len();
        assert_eq!(waiting, 4);
        let _flood = connect_from_each(&listener, [5; 4]).await;
        drop((busy, requests));
        for _ in 0..2 {
            let next = queue.next(&listener, &counts).await;
            assert_eq!(next.address.ip(), IpAddr::from([127, 0, 0, 4]));
            std::mem::forget(next);
        }
    }

    #[tokio::test]
    async fn an_idle_connection_is_evicted_for_a_waiting_client_not_for_a_flood() {
        let (listener, _open) = burst([2, 3, 4]).await;
        let (mut queue, counts, held) = full(&listener).await;
        let [becomes_idle, _busy] = held.each_ref().map(|held| held.watch.request(None));
        assert!(queue.next(&listener, &counts).now_or_never().is_none());
        assert_eq!(queue.waiting.len(), 1);
        // Evictions were considered a moment ago.
        queue.evictions_checked = Some(Instant::now() + EVICTION_INTERVAL * 100);
        drop(becomes_idle);
        let _flood = connect_from_each(&listener, [5; MAX_WAITING / 4 + 4]).await;
        let next = queue.next(&listener, &counts).await;
        assert_eq!(next.address.ip(), IpAddr::from([127, 0, 0, 4]));
        assert!(held[0].watch.is_evicted());
        let _request = next.watch.request(None);
        assert!(queue.next(&listener, &counts).now_or_never().is_none());
        assert_eq!(
            queue.waiting.len(),
            MAX_WAITING / 4,
            "a quarter for one address"
        );
    }

    #[tokio::test]
    async fn fewer_connections_do_not_wait_behind_those_with_no_eviction() {
        let (listener, _open) = burst([2, 2, 2, 2]).await;
        let (mut queue, counts, busy) = full(&listener).await;
        let _requests = busy.each_ref().map(|held| held.watch.request(None));
        assert!(queue.next(&listener, &counts).now_or_never().is_none());
        assert_eq!(queue.waiting.len(), 2);
        let _other = connect_from_each(&listener, [3]).await;
        let next = queue.next(&listener, &counts).await;
        assert_eq!(next.address.ip(), IpAddr::from([127, 0, 0, 3]));
        assert_eq!(queue.waiting.len(), 2);
    }
}
