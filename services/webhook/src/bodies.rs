//! The bytes of request bodies in memory: one budget for the process.
//!
//! A body takes its announced length before it is read. Small bodies have a part of the budget that
//! large ones cannot take. Of those that wait, the client goes first that holds least; of its own
//! bodies, the smallest. While somebody waits for room, bodies that arrive slowly are cut, those of
//! clients that hold more first: an announced length is a claim and must not hold back others.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::{Stream, StreamExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

/// Bytes of a body at most. The API server takes requests of up to 3 MiB (`MaxRequestBodyBytes`),
/// etcd stores up to 1.5 MiB (`--max-request-bytes`), and a review of an update has the new object
/// and the stored one, each with its managed fields. Half a MiB is for the rest of the review.
pub const MAX_BODY_BYTES: usize = 5 * 1024 * 1024;
/// Bytes of all bodies together.
pub const BUDGET_BYTES: usize = 24 * 1024 * 1024;
/// Bytes of all bodies together that are larger than [`SMALL_BODY_BYTES`].
pub const LARGE_BUDGET_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of all bodies together that are no larger: one of the largest has room beside them.
pub const SMALL_BUDGET_BYTES: usize = BUDGET_BYTES - MAX_BODY_BYTES;
/// Bytes of a body that counts as small. Nearly every review does.
pub const SMALL_BODY_BYTES: usize = 128 * 1024;
/// Time for a review, the waits for room and for its turn included. Less than the webhook's
/// `timeoutSeconds` (5 by default), so that the API server gets an answer that says why.
pub const BODY_TIME: Duration = Duration::from_secs(4);
/// Bytes of a body that is too large that are read and dropped, so that its sender sees the answer.
const DISCARD_BYTES: usize = 8 * 1024 * 1024;
/// Time that a body has for arriving, before it may be cut for one that waits.
const GRACE: Duration = Duration::from_millis(50);
/// How often one that waits looks for a slow body.
const CUT_CHECK_INTERVAL: Duration = Duration::from_millis(25);

/// Why a body was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is larger than [`MAX_BODY_BYTES`].
    #[error("the body is larger than 5 MiB")]
    TooLarge,
    /// There was no room for it in time.
    #[error("too many reviews at once; try again")]
    Busy,
    /// It did not arrive in time, or too slowly while others waited.
    #[error("the body arrived too slowly")]
    Slow,
    /// It ended early, or is longer than announced.
    #[error("the body broke off")]
    Broken,
}

/// The budget. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Bodies {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Room was given back.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    small: usize,
    large: usize,
    next: u64,
    clients: HashMap<IpAddr, Client>,
    /// Bodies that are arriving and may be cut, or were.
    arriving: BTreeMap<u64, Arriving>,
}

/// What the bodies of one client hold, and which of them wait.
#[derive(Debug, Default)]
struct Client {
    held: usize,
    /// Lengths, each with a number.
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

/// A body among those of all clients.
#[derive(Clone, Copy, Debug)]
struct Place {
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
    /// It was told to end; its room comes back when its task has done so.
    is_cut: bool,
}

fn is_large(length: usize) -> bool {
    length > SMALL_BODY_BYTES
}

impl State {
    /// Bytes that a body of this length lacks, where those that are held come to this.
    fn lacks(length: usize, small: usize, large: usize) -> usize {
        let of_all = (small + large + length).saturating_sub(BUDGET_BYTES);
        let of_kind = if is_large(length) {
            (large + length).saturating_sub(LARGE_BUDGET_BYTES)
        } else {
            (small + length).saturating_sub(SMALL_BUDGET_BYTES)
        };
        of_all.max(of_kind)
    }

    /// Whether a body of this length has room.
    fn has_room(&self, length: usize) -> bool {
        Self::lacks(length, self.small, self.large) == 0
    }

    /// Whether no body of the same kind goes before this one.
    fn is_next(&self, place: Place) -> bool {
        let first = |client: &Client| {
            let waiting = if is_large(place.length) {
                client.large.first()
            } else {
                client.small.first()
            };
            waiting.map(|first| (client.held, *first))
        };
        let first = self.clients.values().filter_map(first).min();
        first.is_some_and(|(_, first)| first == (place.length, place.id))
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

    fn take(&mut self, place: Place, now: Instant) -> Arc<Notify> {
        *self.held(place.length) += place.length;
        self.client(place.client, |client| client.held += place.length);
        let cut = Arc::new(Notify::new());
        self.arriving.insert(
            place.id,
            Arriving {
                client: place.client,
                length: place.length,
                received: 0,
                since: now,
                cut: Arc::clone(&cut),
                is_cut: false,
            },
        );
        cut
    }

    fn give_back(&mut self, place: Place) {
        self.arriving.remove(&place.id);
        *self.held(place.length) -= place.length;
        self.client(place.client, |client| client.held -= place.length);
    }

    fn held(&mut self, length: usize) -> &mut usize {
        if is_large(length) {
            &mut self.large
        } else {
            &mut self.small
        }
    }

    /// Cuts slow bodies of the same kind for this one: those of clients that hold more first, the
    /// slowest of them first. No more than it needs beside what others that were cut give back; and
    /// none where all of them would not make room for it, for they would be lost for nothing.
    fn cut_for(&mut self, place: Place, now: Instant) {
        let length = place.length;
        let cut = |large: bool| -> usize {
            let bodies = self.arriving.values();
            bodies
                .filter(|body| body.is_cut && is_large(body.length) == large)
                .map(|body| body.length)
                .sum()
        };
        let (small, large) = (self.small - cut(false), self.large - cut(true));
        let lacks = Self::lacks(length, small, large);
        if lacks == 0 {
            return;
        }
        let own = self.holds(place.client);
        let speed = |body: &Arriving| {
            let millis = now.duration_since(body.since).as_millis().max(1);
            body.received as u128 * 1000 / millis
        };
        let mut slow: Vec<_> = self
            .arriving
            .iter()
            .filter(|(_, body)| !body.is_cut && is_large(body.length) == is_large(length))
            .filter(|(_, body)| now.duration_since(body.since) >= GRACE)
            .map(|(id, body)| {
                let has_more = own < self.holds(body.client);
                (Reverse(has_more), speed(body), *id, body.length)
            })
            .collect();
        slow.sort_unstable();
        let mut freed = 0;
        let enough = slow.iter().position(|(_, _, _, length)| {
            freed += length;
            lacks <= freed
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body that waits for room; no longer when it is dropped.
struct Waiting {
    shared: Arc<Shared>,
    place: Place,
}

impl Waiting {
    fn enter(shared: &Arc<Shared>, client: IpAddr, length: usize) -> Self {
        let mut state = shared.lock();
        state.next += 1;
        let place = Place {
            client,
            length,
            id: state.next,
        };
        state.client(client, |client| {
            client.waiting(length).insert((length, place.id));
        });
        drop(state);
        Self {
            shared: Arc::clone(shared),
            place,
        }
    }

    fn try_take(&self) -> Option<Room> {
        let now = Instant::now();
        let mut state = self.shared.lock();
        if !state.is_next(self.place) {
            return None;
        }
        if !state.has_room(self.place.length) {
            state.cut_for(self.place, now);
            return None;
        }
        let cut = state.take(self.place, now);
        drop(state);
        Some(Room {
            shared: Arc::clone(&self.shared),
            place: self.place,
            cut,
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Place { client, length, id } = self.place;
        self.shared.lock().client(client, |client| {
            client.waiting(length).remove(&(length, id));
        });
        // Whoever is next may have room at once.
        self.shared.changed.notify_waiters();
    }
}

/// The room of one body; given back when it is dropped.
#[derive(Debug)]
struct Room {
    shared: Arc<Shared>,
    place: Place,
    cut: Arc<Notify>,
}

impl Room {
    fn received(&self, bytes: usize) {
        if let Some(body) = self.shared.lock().arriving.get_mut(&self.place.id) {
            body.received += bytes;
        }
    }

    /// The body is complete and cannot be cut any more; `false`: it was cut, and its room is
    /// promised to another one.
    fn arrived(&self) -> bool {
        let mut state = self.shared.lock();
        let id = self.place.id;
        let is_cut = state.arriving.get(&id).is_some_and(|body| body.is_cut);
        if !is_cut {
            state.arriving.remove(&id);
        }
        !is_cut
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.shared.lock().give_back(self.place);
        self.shared.changed.notify_waiters();
    }
}

/// A body in memory; its room is given back with it.
#[derive(Debug)]
pub struct Body {
    bytes: BytesMut,
    _room: Room,
}

impl Body {
    /// Whether it is larger than [`SMALL_BODY_BYTES`], so that reading it takes milliseconds.
    pub fn is_large(&self) -> bool {
        is_large(self.bytes.len())
    }
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Bodies {
    /// Reads a client's body of this announced length, before `deadline`. Without a length it
    /// counts as the largest.
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
        let room = timeout_at(deadline, self.room(client, length))
            .await
            .map_err(|_| Refusal::Busy)?;
        let cut = Arc::clone(&room.cut);
        tokio::select! {
            outcome = timeout_at(deadline, collect(room, body)) => outcome.unwrap_or(Err(Refusal::Slow)),
            () = cut.notified() => Err(Refusal::Slow),
        }
    }

    async fn room(&self, client: IpAddr, length: usize) -> Room {
        let waiting = Waiting::enter(&self.shared, client, length);
        loop {
            let mut changed = pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            if let Some(room) = waiting.try_take() {
                return room;
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(CUT_CHECK_INTERVAL) => {}
            }
        }
    }
}

/// Reads and drops a body, some of it and for some time.
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
    // Whether it came to its end makes no difference.
    timeout(BODY_TIME, read).await.ok();
}

async fn collect<S, B, E>(room: Room, body: S) -> Result<Body, Refusal>
where
    S: Stream<Item = Result<B, E>> + Send,
    B: Buf,
{
    let mut body = pin!(body);
    let mut bytes = BytesMut::with_capacity(room.place.length);
    while let Some(part) = body.next().await {
        let mut part = part.map_err(|_| Refusal::Broken)?;
        if bytes.len() + part.remaining() > room.place.length {
            return Err(if room.place.length == MAX_BODY_BYTES {
                Refusal::TooLarge
            } else {
                Refusal::Broken
            });
        }
        room.received(part.remaining());
        while part.has_remaining() {
            let chunk = part.chunk();
            let length = chunk.len();
            bytes.extend_from_slice(chunk);
            part.advance(length);
        }
    }
    if !room.arrived() {
        return Err(Refusal::Slow);
    }
    Ok(Body { bytes, _room: room })
}

#[cfg(test)]
mod tests;
