//! The bytes of request bodies in memory: one budget for the process.
//!
//! A body takes its announced length before it is read. Small bodies go first and have a part of the budget that large
//! ones cannot take. While somebody waits for room, bodies that arrive slowly are cut, the slowest first: an announced
//! length is a claim and must not hold back others.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::{Stream, StreamExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

/// Bytes of a body at most. The API server takes requests of up to 3 MiB (`MaxRequestBodyBytes`), etcd stores up to
/// 1.5 MiB (`--max-request-bytes`), and a review of an update has the new object and the stored one, each with its
/// managed fields. Half a MiB is for the rest of the review.
pub const MAX_BODY_BYTES: usize = 5 * 1024 * 1024;
/// Bytes of all bodies together.
pub const BUDGET_BYTES: usize = 24 * 1024 * 1024;
/// Bytes of all bodies together that are larger than [`SMALL_BODY_BYTES`].
pub const LARGE_BUDGET_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of a body that counts as small. Nearly every review does.
pub const SMALL_BODY_BYTES: usize = 128 * 1024;
/// Time for a body, the wait for room included. Less than the webhook's `timeoutSeconds` (5 by default), so that the
/// API server gets an answer that says why.
pub const BODY_TIME: Duration = Duration::from_secs(4);
/// Bytes of a body that is too large that are read and dropped, so that its sender sees the answer.
const DISCARD_BYTES: usize = 8 * 1024 * 1024;
/// Time that a body has for arriving, before it may be cut for one that waits.
const GRACE: Duration = Duration::from_millis(50);
/// How often one that waits looks for a slow body.
const LOOK: Duration = Duration::from_millis(25);

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
    /// Lengths of the bodies that wait, each with a number.
    waiting: BTreeSet<(usize, u64)>,
    /// Bodies that are arriving and may be cut.
    arriving: BTreeMap<u64, Arriving>,
}

#[derive(Debug)]
struct Arriving {
    length: usize,
    received: usize,
    since: Instant,
    cut: Arc<Notify>,
}

fn is_large(length: usize) -> bool {
    length > SMALL_BODY_BYTES
}

impl State {
    /// Whether a body of this length has room.
    fn has_room(&self, length: usize) -> bool {
        let fits = self.small + self.large + length <= BUDGET_BYTES;
        fits && (!is_large(length) || self.large + length <= LARGE_BUDGET_BYTES)
    }

    /// Whether nobody of the same kind goes before this one: the smallest first, then the one that came first.
    fn is_next(&self, waiting: (usize, u64)) -> bool {
        let first = if is_large(waiting.0) {
            self.waiting.range((SMALL_BODY_BYTES + 1, 0)..).next()
        } else {
            self.waiting.first()
        };
        first.is_none_or(|first| waiting <= *first)
    }

    fn take(&mut self, id: u64, length: usize, now: Instant) -> Arc<Notify> {
        *self.held(length) += length;
        let cut = Arc::new(Notify::new());
        self.arriving.insert(
            id,
            Arriving {
                length,
                received: 0,
                since: now,
                cut: Arc::clone(&cut),
            },
        );
        cut
    }

    fn held(&mut self, length: usize) -> &mut usize {
        if is_large(length) {
            &mut self.large
        } else {
            &mut self.small
        }
    }

    /// Cuts the slowest bodies of the same kind, until this one would have room.
    fn cut_for(&mut self, length: usize, now: Instant) {
        let speed = |body: &Arriving| {
            let millis = now.duration_since(body.since).as_millis().max(1);
            body.received as u128 * 1000 / millis
        };
        let mut slow: Vec<(u128, u64)> = self
            .arriving
            .iter()
            .filter(|(_, body)| is_large(body.length) == is_large(length))
            .filter(|(_, body)| now.duration_since(body.since) >= GRACE)
            .map(|(id, body)| (speed(body), *id))
            .collect();
        slow.sort_unstable();
        let mut freed = 0;
        for (_, id) in slow {
            if freed >= length {
                return;
            }
            if let Some(body) = self.arriving.remove(&id) {
                freed += body.length;
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
    place: (usize, u64),
}

impl Waiting {
    fn enter(shared: &Arc<Shared>, length: usize) -> Self {
        let mut state = shared.lock();
        state.next += 1;
        let place = (length, state.next);
        state.waiting.insert(place);
        drop(state);
        Self {
            shared: Arc::clone(shared),
            place,
        }
    }

    fn try_take(&self) -> Option<Room> {
        let (length, id) = self.place;
        let now = Instant::now();
        let mut state = self.shared.lock();
        if !state.is_next(self.place) {
            return None;
        }
        if !state.has_room(length) {
            state.cut_for(length, now);
            return None;
        }
        let cut = state.take(id, length, now);
        drop(state);
        Some(Room {
            shared: Arc::clone(&self.shared),
            id,
            length,
            cut,
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.place);
        // Whoever is next may have room at once.
        self.shared.changed.notify_waiters();
    }
}

/// The room of one body; given back when it is dropped.
#[derive(Debug)]
struct Room {
    shared: Arc<Shared>,
    id: u64,
    length: usize,
    cut: Arc<Notify>,
}

impl Room {
    fn received(&self, bytes: usize) {
        if let Some(body) = self.shared.lock().arriving.get_mut(&self.id) {
            body.received += bytes;
        }
    }

    /// The body is complete and cannot be cut any more.
    fn arrived(&self) {
        self.shared.lock().arriving.remove(&self.id);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.arriving.remove(&self.id);
        *state.held(self.length) -= self.length;
        drop(state);
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
    /// Reads a body of this announced length, within [`BODY_TIME`]. Without a length it counts as the largest.
    pub async fn receive<S, B, E>(&self, length: Option<u64>, body: S) -> Result<Body, Refusal>
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
        let deadline = Instant::now() + BODY_TIME;
        let room = timeout_at(deadline, self.room(length))
            .await
            .map_err(|_| Refusal::Busy)?;
        let cut = Arc::clone(&room.cut);
        tokio::select! {
            outcome = timeout_at(deadline, collect(room, body)) => outcome.unwrap_or(Err(Refusal::Slow)),
            () = cut.notified() => Err(Refusal::Slow),
        }
    }

    async fn room(&self, length: usize) -> Room {
        let waiting = Waiting::enter(&self.shared, length);
        loop {
            let mut changed = pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            if let Some(room) = waiting.try_take() {
                return room;
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(LOOK) => {}
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
    let mut bytes = BytesMut::with_capacity(room.length);
    while let Some(part) = body.next().await {
        let mut part = part.map_err(|_| Refusal::Broken)?;
        if bytes.len() + part.remaining() > room.length {
            return Err(if room.length == MAX_BODY_BYTES {
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
    room.arrived();
    Ok(Body { bytes, _room: room })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::stream;

    const SLOW: Duration = Duration::from_millis(10);

    type Parts = stream::BoxStream<'static, Result<Bytes, std::io::Error>>;

    /// A body of this many bytes at once.
    fn whole(bytes: usize) -> Parts {
        stream::once(async move { Ok(Bytes::from(vec![b' '; bytes])) }).boxed()
    }

    /// A byte at a time, a pause before each.
    fn trickling() -> Parts {
        stream::repeat(())
            .then(async |()| {
                tokio::time::sleep(SLOW).await;
                Ok(Bytes::from_static(b" "))
            })
            .boxed()
    }

    fn held(bodies: &Bodies) -> usize {
        let state = bodies.shared.lock();
        state.small + state.large
    }

    async fn refusal(bodies: &Bodies, length: Option<u64>, body: Parts) -> Option<Refusal> {
        bodies.receive(length, body).await.err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_taken_up_to_its_length_and_the_limit() {
        let bodies = Bodies::default();
        let most = MAX_BODY_BYTES as u64;
        for (length, bytes, expect) in [
            (Some(3), 3, None),
            (Some(0), 0, None),
            (None, 3, None),
            (Some(most), MAX_BODY_BYTES, None),
            (Some(3), 4, Some(Refusal::Broken)),
            (Some(most + 1), 0, Some(Refusal::TooLarge)),
            (Some(u64::MAX), 0, Some(Refusal::TooLarge)),
            (None, MAX_BODY_BYTES + 1, Some(Refusal::TooLarge)),
        ] {
            let found = refusal(&bodies, length, whole(bytes)).await;
            assert_eq!(found, expect, "{length:?}, {bytes} bytes");
            assert_eq!(held(&bodies), 0);
        }
        let slow = refusal(&bodies, Some(9999), trickling()).await;
        assert_eq!(slow, Some(Refusal::Slow));
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_in_memory_never_exceed_the_budget() {
        let bodies = Bodies::default();
        let mut kept = Vec::new();
        let large = MAX_BODY_BYTES as u64;
        while held(&bodies) + MAX_BODY_BYTES <= LARGE_BUDGET_BYTES {
            kept.push(
                bodies
                    .receive(Some(large), whole(MAX_BODY_BYTES))
                    .await
                    .unwrap(),
            );
        }
        let busy = refusal(&bodies, Some(large), whole(MAX_BODY_BYTES)).await;
        assert_eq!(busy, Some(Refusal::Busy), "large ones have a part of it");
        let small = SMALL_BODY_BYTES as u64;
        while held(&bodies) + SMALL_BODY_BYTES <= BUDGET_BYTES {
            kept.push(
                bodies
                    .receive(Some(small), whole(SMALL_BODY_BYTES))
                    .await
                    .unwrap(),
            );
        }
        assert!(held(&bodies) <= BUDGET_BYTES);
        let busy = refusal(&bodies, Some(small), whole(SMALL_BODY_BYTES)).await;
        assert_eq!(busy, Some(Refusal::Busy));
        assert!(bodies.shared.lock().waiting.is_empty());
        kept.pop();
        assert!(bodies.receive(Some(small), whole(1)).await.is_ok());
        kept.clear();
        assert_eq!(held(&bodies), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_gives_its_room_to_one_that_waits() {
        let bodies = Bodies::default();
        for length in [SMALL_BODY_BYTES, MAX_BODY_BYTES] {
            let slow: Vec<_> = (0..BUDGET_BYTES / length)
                .map(|_| {
                    let bodies = bodies.clone();
                    tokio::spawn(
                        async move { refusal(&bodies, Some(length as u64), trickling()).await },
                    )
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(1)).await;
            let begun = Instant::now();
            let taken = bodies.receive(Some(length as u64), whole(length)).await;
            assert!(taken.is_ok());
            assert!(
                begun.elapsed() < Duration::from_millis(100),
                "{:?}",
                begun.elapsed()
            );
            drop(taken);
            for slow in slow {
                let outcome = slow.await.unwrap();
                assert!(
                    matches!(outcome, Some(Refusal::Slow | Refusal::Busy)),
                    "{outcome:?}"
                );
            }
            assert_eq!(held(&bodies), 0);
        }
    }

    #[test]
    fn the_document_lists_the_limits() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/LIMITS.md");
        let text = std::fs::read_to_string(path).unwrap();
        for (name, value) in [
            ("MAX_BODY_BYTES", MAX_BODY_BYTES),
            ("BUDGET_BYTES", BUDGET_BYTES),
            ("LARGE_BUDGET_BYTES", LARGE_BUDGET_BYTES),
            ("SMALL_BODY_BYTES", SMALL_BODY_BYTES),
            ("MAX_KEPT_VALUES", crate::review::MAX_KEPT_VALUES),
            ("MAX_KEPT_BYTES", crate::review::MAX_KEPT_BYTES),
        ] {
            let cells = format!("| `{name}` | {value} |");
            assert!(text.contains(&cells), "{cells}");
        }
        let cells = format!("| `BODY_TIME` | {} |", BODY_TIME.as_secs());
        assert!(text.contains(&cells), "{cells}");
    }

    #[test]
    fn the_slowest_goes_first_and_nobody_within_the_grace() {
        let begun = Instant::now();
        let mut state = State::default();
        let length = LARGE_BUDGET_BYTES / 3;
        for id in 1..=3 {
            state.take(id, length, begun);
        }
        for (id, received) in [(1, 5000), (2, 10), (3, 4000)] {
            state.arriving.get_mut(&id).unwrap().received = received;
        }
        state.cut_for(length, begun + GRACE / 2);
        assert_eq!(state.arriving.len(), 3);
        state.cut_for(SMALL_BODY_BYTES, begun + GRACE * 2);
        assert_eq!(state.arriving.len(), 3, "small ones cut no large ones");
        state.cut_for(length, begun + GRACE * 2);
        assert_eq!(state.arriving.keys().collect::<Vec<_>>(), [&1, &3]);
    }
}
