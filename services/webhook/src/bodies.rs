//! One memory budget for all request bodies of the process.
//!
//! A body reserves its announced length before it is read. Large bodies cannot take a part of the
//! budget that is kept for small ones. Among waiting bodies, the client that holds least goes
//! first, with its smallest body. While a body waits, bodies that arrive slowly are cut, first
//! those of clients that hold more: a client must not hold back others by an announced length.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::{Stream, StreamExt as _};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

/// Largest body. The API server accepts requests of up to 3 MiB (`MaxRequestBodyBytes`),
/// etcd stores up to 1.5 MiB (`--max-request-bytes`), and the review of an update holds the new and
/// the stored object, each with its managed fields. Half a MiB is for the rest of the review.
pub const MAX_BODY_BYTES: usize = 5 * 1024 * 1024;
/// Bytes of all bodies together.
pub const BUDGET_BYTES: usize = 24 * 1024 * 1024;
/// Bytes of all large bodies together, those above [`SMALL_BODY_BYTES`].
pub const LARGE_BUDGET_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of all small bodies together; a body of the largest size fits beside them.
pub const SMALL_BUDGET_BYTES: usize = BUDGET_BYTES - MAX_BODY_BYTES;
/// Largest small body. Nearly every review is small.
pub const SMALL_BODY_BYTES: usize = 128 * 1024;
/// Time for a review, including the waits for memory and for its turn. Less than the webhook's
/// `timeoutSeconds` (5 by default), so that the API server gets an answer with the reason.
pub const BODY_TIME: Duration = Duration::from_secs(4);
/// Bytes of a too large body that are read and dropped, so that its sender sees the answer.
const DISCARD_BYTES: usize = 8 * 1024 * 1024;
/// Time that each body has to arrive before it may be cut for a waiting one.
const MIN_TIME_BEFORE_CUT: Duration = Duration::from_millis(50);
/// How often a waiting body looks for slow bodies to cut.
const CUT_CHECK_INTERVAL: Duration = Duration::from_millis(25);

/// Why a body was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is larger than [`MAX_BODY_BYTES`].
    #[error("the body is larger than 5 MiB")]
    TooLarge,
    /// There was no memory for it in time.
    #[error("too many reviews at once; try again")]
    Busy,
    /// It did not arrive in time, or arrived too slowly while others waited.
    #[error("the body arrived too slowly")]
    Slow,
    /// It ended early, or is longer than announced.
    #[error("the body is incomplete, or longer than announced")]
    Broken,
}

/// The budget. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct BodyBudget {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when memory is released, or a waiting body leaves.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    small: usize,
    large: usize,
    next: u64,
    clients: HashMap<IpAddr, Client>,
    /// Bodies that are arriving, including those that were cut and have not ended yet.
    arriving: BTreeMap<u64, Arriving>,
}

/// The bytes that the bodies of one client hold, and its waiting bodies.
#[derive(Debug, Default)]
struct Client {
    held: usize,
    /// Lengths of waiting bodies, each with its id.
    small: BTreeSet<(usize, u64)>,
    large: BTreeSet<(usize, u64)>,
}

impl Client {
    fn waiting(&mut self, length: usize) -> &mut BTreeSet<(usize, u64)> {
        if is_large(length) {
            &mut self.large
        } else {
            &mut self.small
        }
    }

    fn is_gone(&self) -> bool {
        self.held == 0 && self.small.is_empty() && self.large.is_empty()
    }
}

/// Identifies a body.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    client: IpAddr,
    length: usize,
    id: u64,
}

#[derive(Debug)]
struct Arriving {
    client: IpAddr,
    length: usize,
    received: usize,
    since: Instant,
    cut: Arc<Notify>,
    /// Whether it was cut. Its memory is released when its task has ended.
    is_cut: bool,
}

fn is_large(length: usize) -> bool {
    length > SMALL_BODY_BYTES
}

impl State {
    /// Bytes that are missing for a body of this length, if these bytes are held.
    fn missing(length: usize, small: usize, large: usize) -> usize {
        let of_all = (small + large + length).saturating_sub(BUDGET_BYTES);
        let of_kind = if is_large(length) {
            (large + length).saturating_sub(LARGE_BUDGET_BYTES)
        } else {
            (small + length).saturating_sub(SMALL_BUDGET_BYTES)
        };
        of_all.max(of_kind)
    }

    /// Whether a body of this length fits.
    fn has_room(&self, length: usize) -> bool {
        Self::missing(length, self.small, self.large) == 0
    }

    /// Whether this is the first waiting body of its kind.
    fn is_next(&self, ticket: Ticket) -> bool {
        let first = |client: &Client| {
            let waiting = if is_large(ticket.length) {
                client.large.first()
            } else {
                client.small.first()
            };
            waiting.map(|first| (client.held, *first))
        };
        let first = self.clients.values().filter_map(first).min();
        first.is_some_and(|(_, first)| first == (ticket.length, ticket.id))
    }

    fn client(&mut self, address: IpAddr, change: impl FnOnce(&mut Client)) {
        let client = self.clients.entry(address).or_default();
        change(client);
        if client.is_gone() {
            self.clients.remove(&address);
        }
    }

    fn holds(&self, client: IpAddr) -> usize {
        self.clients.get(&client).map_or(0, |client| client.held)
    }

    fn take(&mut self, ticket: Ticket, now: Instant) -> Arc<Notify> {
        *self.held(ticket.length) += ticket.length;
        self.client(ticket.client, |client| client.held += ticket.length);
        let cut = Arc::new(Notify::new());
        self.arriving.insert(
            ticket.id,
            Arriving {
                client: ticket.client,
                length: ticket.length,
                received: 0,
                since: now,
                cut: Arc::clone(&cut),
                is_cut: false,
            },
        );
        cut
    }

    fn give_back(&mut self, ticket: Ticket) {
        self.arriving.remove(&ticket.id);
        *self.held(ticket.length) -= ticket.length;
        self.client(ticket.client, |client| client.held -= ticket.length);
    }

    fn held(&mut self, length: usize) -> &mut usize {
        if is_large(length) {
            &mut self.large
        } else {
            &mut self.small
        }
    }

    /// Cuts slow bodies of the same kind to make room for this one: first those of clients that
    /// hold more, of these the slowest first. Cuts no more than needed, counting what bodies that
    /// are cut already will release, and none if all of them together would not make room.
    fn cut_for(&mut self, ticket: Ticket, now: Instant) {
        let length = ticket.length;
        let cut = |large: bool| -> usize {
            let bodies = self.arriving.values();
            bodies
                .filter(|body| body.is_cut && is_large(body.length) == large)
                .map(|body| body.length)
                .sum()
        };
        let (small, large) = (self.small - cut(false), self.large - cut(true));
        let missing = Self::missing(length, small, large);
        if missing == 0 {
            return;
        }
        let own = self.holds(ticket.client);
        let speed = |body: &Arriving| {
            let millis = now.duration_since(body.since).as_millis().max(1);
            body.received as u128 * 1000 / millis
        };
        let mut slow: Vec<_> = self
            .arriving
            .iter()
            .filter(|(_, body)| !body.is_cut && is_large(body.length) == is_large(length))
            .filter(|(_, body)| now.duration_since(body.since) >= MIN_TIME_BEFORE_CUT)
            .map(|(id, body)| {
                let has_more = own < self.holds(body.client);
                (Reverse(has_more), speed(body), *id, body.length)
            })
            .collect();
        slow.sort_unstable();
        let mut freed = 0;
        let enough = slow.iter().position(|(_, _, _, length)| {
            freed += length;
            missing <= freed
        });
        for (_, _, id, _) in enough
            .and_then(|last| slow.get(..=last))
            .unwrap_or_default()
        {
            if let Some(body) = self.arriving.get_mut(id) {
                body.is_cut = true;
                body.cut.notify_one();
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// A waiting body. Dropping it ends the wait.
struct Waiter {
    shared: Arc<Shared>,
    ticket: Ticket,
}

impl Waiter {
    fn enter(shared: &Arc<Shared>, client: IpAddr, length: usize) -> Self {
        let mut state = shared.lock();
        state.next += 1;
        let ticket = Ticket {
            client,
            length,
            id: state.next,
        };
        state.client(client, |client| {
            client.waiting(length).insert((length, ticket.id));
        });
        drop(state);
        Self {
            shared: Arc::clone(shared),
            ticket,
        }
    }

    fn try_take(&self) -> Option<Reservation> {
        let now = Instant::now();
        let mut state = self.shared.lock();
        if !state.is_next(self.ticket) {
            return None;
        }
        if !state.has_room(self.ticket.length) {
            state.cut_for(self.ticket, now);
            return None;
        }
        let cut = state.take(self.ticket, now);
        drop(state);
        Some(Reservation {
            shared: Arc::clone(&self.shared),
            ticket: self.ticket,
            cut,
        })
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let Ticket { client, length, id } = self.ticket;
        self.shared.lock().client(client, |client| {
            client.waiting(length).remove(&(length, id));
        });
        // The next one may fit at once.
        self.shared.changed.notify_waiters();
    }
}

/// The reserved memory of one body. Dropping it releases the memory.
#[derive(Debug)]
struct Reservation {
    shared: Arc<Shared>,
    ticket: Ticket,
    cut: Arc<Notify>,
}

impl Reservation {
    fn received(&self, bytes: usize) {
        if let Some(body) = self.shared.lock().arriving.get_mut(&self.ticket.id) {
            body.received += bytes;
        }
    }

    /// Marks the body as complete, so that it is not cut. Returns `false` if it was cut before and
    /// its memory is promised to another body.
    fn arrived(&self) -> bool {
        let mut state = self.shared.lock();
        let id = self.ticket.id;
        let is_cut = state.arriving.get(&id).is_some_and(|body| body.is_cut);
        if !is_cut {
            state.arriving.remove(&id);
        }
        !is_cut
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.lock().give_back(self.ticket);
        self.shared.changed.notify_waiters();
    }
}

/// A body in memory. Dropping it releases its part of the budget.
#[derive(Debug)]
pub struct Body {
    bytes: BytesMut,
    _reservation: Reservation,
}

impl Body {
    /// Whether it is larger than [`SMALL_BODY_BYTES`]. Parsing it takes milliseconds then.
    pub fn is_large(&self) -> bool {
        is_large(self.bytes.len())
    }
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl BodyBudget {
    /// Reads a client's body of the announced length, until `deadline`. A body without a length
    /// reserves the largest.
    pub async fn receive<S, B, E>(
        &self,
        client: IpAddr,
        (length, body): (Option<u64>, S),
        deadline: Instant,
    ) -> Result<Body, Refusal>
    where
        S: Stream<Item = Result<B, E>> + Send,
        B: Buf,
    {
        let length = match length.map(usize::try_from) {
            None => MAX_BODY_BYTES,
            Some(Ok(length)) if length <= MAX_BODY_BYTES => length,
            Some(_) => {
                discard(body).await;
                return Err(Refusal::TooLarge);
            }
        };
        let reservation = timeout_at(deadline, self.room(client, length))
            .await
            .map_err(|_| Refusal::Busy)?;
        let cut = Arc::clone(&reservation.cut);
        tokio::select! {
            outcome = timeout_at(deadline, collect(reservation, body)) => outcome.unwrap_or(Err(Refusal::Slow)),
            () = cut.notified() => Err(Refusal::Slow),
        }
    }

    async fn room(&self, client: IpAddr, length: usize) -> Reservation {
        let waiting = Waiter::enter(&self.shared, client, length);
        loop {
            let mut changed = pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            if let Some(reservation) = waiting.try_take() {
                return reservation;
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(CUT_CHECK_INTERVAL) => {}
            }
        }
    }
}

/// Reads and drops a body, up to a number of bytes and for a limited time.
async fn discard<S, B, E>(body: S)
where
    S: Stream<Item = Result<B, E>> + Send,
    B: Buf,
{
    let read = async {
        let (mut body, mut bytes) = (pin!(body), 0);
        while let Some(Ok(part)) = body.next().await {
            bytes += part.remaining();
            if bytes > DISCARD_BYTES {
                return;
            }
        }
    };
    // Whether the body ended makes no difference.
    timeout(BODY_TIME, read).await.ok();
}

async fn collect<S, B, E>(reservation: Reservation, body: S) -> Result<Body, Refusal>
where
    S: Stream<Item = Result<B, E>> + Send,
    B: Buf,
{
    let mut body = pin!(body);
    let mut bytes = BytesMut::with_capacity(reservation.ticket.length);
    while let Some(part) = body.next().await {
        let mut part = part.map_err(|_| Refusal::Broken)?;
        if bytes.len() + part.remaining() > reservation.ticket.length {
            return Err(if reservation.ticket.length == MAX_BODY_BYTES {
                Refusal::TooLarge
            } else {
                Refusal::Broken
            });
        }
        reservation.received(part.remaining());
        while part.has_remaining() {
            let chunk = part.chunk();
            let length = chunk.len();
            bytes.extend_from_slice(chunk);
            part.advance(length);
        }
    }
    if !reservation.arrived() {
        return Err(Refusal::Slow);
    }
    Ok(Body {
        bytes,
        _reservation: reservation,
    })
}

#[cfg(test)]
mod tests;
