//! Fan-out of one stream between two replicas to all clients that pull the same blob from this one.
//!
//! The bytes that arrived last are kept in a window, from which every subscribed client reads.
//! Without it each client of a cold herd would cost the copying replica a stream of its own. The
//! stream waits [`LAGGARD_TIMEOUT`] for its slowest client. A client that is still behind then, or
//! that begins in the middle, gets a stream of its own.
//!
//! Knows only [`PeerBlob`]; authorization was decided before.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use holdfast_core::{Digest, RepositoryName};
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::Instant};

use crate::{
    limits::{SHARED_STREAM_BYTES as WINDOW_BYTES, SHARED_STREAMS},
    pull_through::PeerBlob,
};

/// Small pieces are coalesced up to this size, for at most this time: every piece wakes every
/// client.
const PIECE_BYTES: usize = 256 << 10;
const COALESCE_TIME: Duration = Duration::from_millis(8);
/// How long the stream waits for a client that still needs the oldest of what is kept.
const LAGGARD_TIMEOUT: Duration = Duration::from_millis(250);
/// How long a client waits for the one that opens the stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(4);

type Pieces = BoxStream<'static, io::Result<Bytes>>;
type Slot = Arc<tokio::sync::Mutex<Weak<Channel>>>;
/// What is read in the same way. A stream ends early if the size that its clients got is wrong;
/// clients that got another size must not read it.
type Key = (RepositoryName, Digest, Option<u64>);

/// The streams that are shared at the moment.
#[derive(Default)]
pub(super) struct Streams {
    slots: Mutex<HashMap<Key, Slot>>,
}

impl Streams {
    /// The stream of this blob in this repository; `None` when too many are shared already.
    fn slot(&self, key: Key) -> Option<Slot> {
        let mut slots = self.slots.lock();
        // A request that is about to open a stream holds the slot, too.
        slots.retain(|_, slot| {
            Arc::strong_count(slot) > 1
                || slot
                    .try_lock()
                    .map_or(true, |channel| channel.strong_count() > 0)
        });
        if slots.len() >= SHARED_STREAMS && !slots.contains_key(&key) {
            return None;
        }
        Some(Arc::clone(slots.entry(key).or_default()))
    }

    /// The blob of another replica, read once for all who want it now.
    pub(super) fn share(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
        remote: Arc<dyn PeerBlob>,
    ) -> FanOut {
        let key = (repo.clone(), digest.clone(), remote.size());
        FanOut {
            slot: self.slot(key),
            remote,
        }
    }
}

/// A blob of another replica.
pub(super) struct FanOut {
    slot: Option<Slot>,
    remote: Arc<dyn PeerBlob>,
}

impl PeerBlob for FanOut {
    fn size(&self) -> Option<u64> {
        self.remote.size()
    }

    fn open(&self, offset: u64) -> BoxFuture<'_, crate::Result<Pieces>> {
        Box::pin(async move {
            let Some(slot) = self.slot.as_ref().filter(|_| offset == 0) else {
                return self.remote.open(offset).await;
            };
            let Ok(mut slot) = tokio::time::timeout(OPEN_TIMEOUT, slot.lock()).await else {
                return self.remote.open(offset).await;
            };
            let running = slot.upgrade().filter(|channel| channel.begins());
            let channel = if let Some(channel) = running {
                channel
            } else {
                let pieces = self.remote.open(0).await?;
                let channel = Arc::new(Channel::default());
                *slot = Arc::downgrade(&channel);
                tokio::spawn(run(pieces, Arc::downgrade(&channel)));
                channel
            };
            let reader = Reader {
                path: ReadPath::Channel(channel.join()),
                offset: 0,
                remote: Arc::clone(&self.remote),
            };
            Ok(stream::unfold(Some(reader), |reader| async move {
                let mut reader = reader?;
                match reader.next().await {
                    Ok(Some(piece)) => Some((Ok(piece), Some(reader))),
                    Ok(None) => None,
                    Err(error) => Some((Err(error), None)),
                }
            })
            .boxed())
        })
    }
}

#[derive(Default)]
struct Channel {
    window: Mutex<Window>,
    changed: Notify,
    /// The last of the clients went on, or away.
    read: Notify,
}

#[derive(Default)]
struct Window {
    /// Each with its offset.
    pieces: VecDeque<(u64, Bytes)>,
    bytes: usize,
    end: u64,
    ended: Option<Result<(), io::ErrorKind>>,
    /// The next byte of each client.
    clients: HashMap<u64, u64>,
    joined: u64,
}

impl Window {
    /// Whether a reader still needs the oldest piece.
    fn is_waited_for(&self) -> bool {
        self.pieces.front().is_some_and(|(first, piece)| {
            let behind = first + piece.len() as u64;
            self.clients.values().any(|next| *next < behind)
        })
    }

    fn forget_oldest(&mut self) {
        if let Some((_, oldest)) = self.pieces.pop_front() {
            self.bytes -= oldest.len();
        }
    }
}

/// One client's subscription to a channel; it ends with the value.
struct Subscription {
    channel: Arc<Channel>,
    client: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.channel.window().clients.remove(&self.client);
        self.channel.read.notify_one();
    }
}

enum ReadOutcome {
    Piece(Bytes),
    End,
    Failed(io::ErrorKind),
    NotYet,
    Forgotten,
}

impl Channel {
    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock()
    }

    /// Whether the first byte is still kept, or will come.
    fn begins(&self) -> bool {
        let window = self.window();
        !matches!(window.ended, Some(Err(_)))
            && window.pieces.front().is_none_or(|(first, _)| *first == 0)
    }

    fn join(self: Arc<Self>) -> Subscription {
        let client = {
            let mut window = self.window();
            window.joined += 1;
            let client = window.joined;
            window.clients.insert(client, 0);
            client
        };
        Subscription {
            channel: self,
            client,
        }
    }

    /// What `client` gets at `offset`, which says that it has everything before.
    fn take(&self, client: u64, offset: u64) -> ReadOutcome {
        let mut window = self.window();
        if let Some(next) = window.clients.get_mut(&client) {
            *next = offset;
        }
        if window.bytes >= WINDOW_BYTES && !window.is_waited_for() {
            self.read.notify_one();
        }
        if offset < window.end {
            let behind = window.pieces.partition_point(|(first, _)| *first <= offset);
            let Some((first, piece)) = behind.checked_sub(1).and_then(|at| window.pieces.get(at))
            else {
                return ReadOutcome::Forgotten;
            };
            let from = usize::try_from(offset - first).unwrap_or(usize::MAX);
            return ReadOutcome::Piece(piece.slice(from.min(piece.len())..));
        }
        match window.ended {
            Some(Ok(())) => ReadOutcome::End,
            Some(Err(kind)) => ReadOutcome::Failed(kind),
            None => ReadOutcome::NotYet,
        }
    }

    /// Waits for room for at most [`LAGGARD_TIMEOUT`], then drops the clients that are behind.
    async fn make_room(&self) {
        let room = async {
            loop {
                {
                    let mut window = self.window();
                    while window.bytes >= WINDOW_BYTES && !window.is_waited_for() {
                        window.forget_oldest();
                    }
                    if window.bytes < WINDOW_BYTES {
                        return;
                    }
                }
                self.read.notified().await;
            }
        };
        if tokio::time::timeout(LAGGARD_TIMEOUT, room).await.is_err() {
            let mut window = self.window();
            while window.bytes >= WINDOW_BYTES {
                window.forget_oldest();
            }
            let oldest = window
                .pieces
                .front()
                .map_or(window.end, |(first, _)| *first);
            window.clients.retain(|_, next| *next >= oldest);
        }
    }

    fn add(&self, piece: Bytes) {
        let mut window = self.window();
        let first = window.end;
        window.end += piece.len() as u64;
        window.bytes += piece.len();
        window.pieces.push_back((first, piece));
        drop(window);
        self.changed.notify_waiters();
    }

    fn end(&self, how: Result<(), io::ErrorKind>) {
        self.window().ended = Some(how);
        self.changed.notify_waiters();
    }
}

/// Takes the stream in while it has readers.
async fn run(mut pieces: Pieces, channel: Weak<Channel>) {
    loop {
        let piece = coalesce(&mut pieces).await;
        let Some(channel) = channel.upgrade() else {
            return;
        };
        let (piece, ended) = piece;
        if !piece.is_empty() {
            channel.make_room().await;
            channel.add(piece);
        }
        if let Some(how) = ended {
            channel.end(how);
            return;
        }
    }
}

/// The next bytes, joined out of small pieces, and how the stream ended if it did.
async fn coalesce(pieces: &mut Pieces) -> (Bytes, Option<Result<(), io::ErrorKind>>) {
    let mut joined_bytes = BytesMut::new();
    let mut until = None;
    loop {
        let next = match until {
            None => pieces.next().await,
            Some(until) => match tokio::time::timeout_at(until, pieces.next()).await {
                Ok(next) => next,
                Err(_) => return (joined_bytes.freeze(), None),
            },
        };
        match next {
            None => return (joined_bytes.freeze(), Some(Ok(()))),
            Some(Err(error)) => return (joined_bytes.freeze(), Some(Err(error.kind()))),
            Some(Ok(piece)) if joined_bytes.is_empty() && piece.len() >= PIECE_BYTES => {
                return (piece, None);
            }
            Some(Ok(piece)) => {
                joined_bytes.extend_from_slice(&piece);
                if joined_bytes.len() >= PIECE_BYTES {
                    return (joined_bytes.freeze(), None);
                }
                until = until.or_else(|| Some(Instant::now() + COALESCE_TIME));
            }
        }
    }
}

struct Reader {
    path: ReadPath,
    offset: u64,
    remote: Arc<dyn PeerBlob>,
}

/// Where a client's next bytes come from.
enum ReadPath {
    Channel(Subscription),
    Own(Pieces),
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let piece = loop {
            let (channel, client) = match &mut self.path {
                ReadPath::Own(pieces) => break pieces.next().await.transpose()?,
                ReadPath::Channel(subscription) => {
                    (Arc::clone(&subscription.channel), subscription.client)
                }
            };
            let mut changed = std::pin::pin!(channel.changed.notified());
            changed.as_mut().enable();
            match channel.take(client, self.offset) {
                ReadOutcome::Piece(piece) => break Some(piece),
                ReadOutcome::End => break None,
                ReadOutcome::Failed(kind) => return Err(kind.into()),
                ReadOutcome::NotYet => changed.await,
                ReadOutcome::Forgotten => {
                    let own = self.remote.open(self.offset).await;
                    self.path = ReadPath::Own(own.map_err(io::Error::other)?);
                }
            }
        };
        self.offset += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A blob of `pieces` pieces of 1 MiB; counts how often it is opened, and fails behind
    /// `fails_at` pieces.
    struct Counted {
        pieces: u64,
        fails_at: Option<u64>,
        opened: Arc<AtomicUsize>,
    }

    impl PeerBlob for Counted {
        fn size(&self) -> Option<u64> {
            Some(self.pieces << 20)
        }

        fn open(&self, offset: u64) -> BoxFuture<'_, crate::Result<Pieces>> {
            self.opened.fetch_add(1, Ordering::Relaxed);
            let (pieces, fails_at) = (self.pieces, self.fails_at);
            Box::pin(async move {
                let numbers = stream::iter(offset >> 20..pieces);
                Ok(numbers
                    .then(move |number| async move {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        if fails_at.is_some_and(|at| number >= at) {
                            return Err(io::ErrorKind::ConnectionReset.into());
                        }
                        let byte = u8::try_from(number % 251).unwrap();
                        Ok(Bytes::from(vec![byte; 1 << 20]))
                    })
                    .boxed())
            })
        }
    }

    fn blob(pieces: u64, fails_at: Option<u64>) -> (Arc<Counted>, Arc<AtomicUsize>) {
        let opened = Arc::new(AtomicUsize::new(0));
        let remote = Counted {
            pieces,
            fails_at,
            opened: Arc::clone(&opened),
        };
        (Arc::new(remote), opened)
    }

    fn named() -> (RepositoryName, Digest) {
        ("a.example/b".parse().unwrap(), Digest::from_sha256([7; 32]))
    }

    async fn read(mut pieces: Pieces, pause: Duration) -> io::Result<u64> {
        let mut bytes = 0;
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            assert_eq!(u64::from(piece[0]), (bytes >> 20) % 251, "at {bytes}");
            bytes += piece.len() as u64;
            tokio::time::sleep(pause).await;
        }
        Ok(bytes)
    }

    #[tokio::test(start_paused = true)]
    async fn a_herd_costs_one_stream() {
        let streams = Streams::default();
        let ((remote, opened), (repo, digest)) = (blob(20, None), named());
        let clients = (0..50_u64).map(|number| {
            let shared = streams.share(&repo, &digest, Arc::clone(&remote) as Arc<dyn PeerBlob>);
            async move {
                // Not all at once, but before the first bytes are gone.
                tokio::time::sleep(Duration::from_millis(number % 5 * 10)).await;
                read(shared.open(0).await.unwrap(), Duration::ZERO).await
            }
        });
        for got in futures::future::join_all(clients).await {
            assert_eq!(got.unwrap(), 20 << 20);
        }
        assert_eq!(opened.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_blobs_are_shared_and_further_ones_get_a_stream_each() {
        let streams = Streams::default();
        let (repo, _) = named();
        let reads = (0..=SHARED_STREAMS).map(|number| {
            let digest = Digest::from_sha256([u8::try_from(number).unwrap(); 32]);
            let (remote, opened) = blob(4, None);
            let clients: Vec<_> = (0..2)
                .map(|_| {
                    let remote = Arc::clone(&remote) as Arc<dyn PeerBlob>;
                    streams.share(&repo, &digest, remote)
                })
                .collect();
            async move {
                let read = async |client: &FanOut| {
                    let pieces = client.open(0).await.unwrap();
                    read(pieces, Duration::ZERO).await.unwrap()
                };
                let found = tokio::join!(read(&clients[0]), read(&clients[1]));
                assert_eq!(found, (4 << 20, 4 << 20));
                opened.load(Ordering::Relaxed)
            }
        });
        let opened = futures::future::join_all(reads).await;
        let (last, shared) = opened.split_last().unwrap();
        assert!(shared.iter().all(|opened| *opened == 1), "{opened:?}");
        assert_eq!(*last, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_for_those_who_were_told_the_same_size() {
        let streams = Streams::default();
        let (repo, digest) = named();
        // Told as much as it sends, and more, where it breaks.
        let (right, wrong) = (blob(4, None), blob(5, Some(4)));
        let [wrong, right] = [wrong, right].map(|(remote, _)| {
            let shared = streams.share(&repo, &digest, remote);
            async move { read(shared.open(0).await.unwrap(), Duration::ZERO).await }
        });
        let (wrong, right) = tokio::join!(wrong, right);
        assert!(wrong.is_err());
        assert_eq!(right.unwrap(), 4 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_or_begins_late_gets_a_stream_of_its_own_and_all_bytes() {
        let streams = Streams::default();
        let ((remote, opened), (repo, digest)) = (blob(40, None), named());
        let share = || streams.share(&repo, &digest, Arc::clone(&remote) as Arc<dyn PeerBlob>);
        let (quick, slow, late) = (share(), share(), share());
        let (quick, slow, late) = tokio::join!(
            async { read(quick.open(0).await.unwrap(), Duration::ZERO).await },
            async { read(slow.open(0).await.unwrap(), Duration::from_secs(1)).await },
            async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                read(late.open(0).await.unwrap(), Duration::ZERO).await
            },
        );
        for got in [quick, slow, late] {
            assert_eq!(got.unwrap(), 40 << 20);
        }
        assert_eq!(opened.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn who_stands_still_for_a_moment_keeps_the_place() {
        let streams = Streams::default();
        let ((remote, opened), (repo, digest)) = (blob(40, None), named());
        let share = || streams.share(&repo, &digest, Arc::clone(&remote) as Arc<dyn PeerBlob>);
        let (quick, pausing) = (share(), share());
        let (quick, pausing) = tokio::join!(
            async { read(quick.open(0).await.unwrap(), Duration::ZERO).await },
            async {
                let mut pieces = pausing.open(0).await.unwrap();
                let first = pieces.next().await.unwrap().unwrap();
                assert_eq!(first.len(), 1 << 20);
                // Longer than what is kept lasts, shorter than the stream waits.
                tokio::time::sleep(Duration::from_millis(200)).await;
                let mut bytes = 1 << 20;
                while let Some(piece) = pieces.next().await {
                    bytes += piece?.len() as u64;
                }
                io::Result::Ok(bytes)
            },
        );
        assert_eq!((quick.unwrap(), pausing.unwrap()), (40 << 20, 40 << 20));
        assert_eq!(opened.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_stream_ends_short_for_all_and_the_next_client_opens_one() {
        let streams = Streams::default();
        let ((remote, opened), (repo, digest)) = (blob(20, Some(3)), named());
        let share = || streams.share(&repo, &digest, Arc::clone(&remote) as Arc<dyn PeerBlob>);
        let (first, second) = (share(), share());
        let (first, second) = tokio::join!(
            async { read(first.open(0).await.unwrap(), Duration::ZERO).await },
            async { read(second.open(0).await.unwrap(), Duration::ZERO).await },
        );
        assert!(first.is_err() && second.is_err());
        assert!(
            read(share().open(0).await.unwrap(), Duration::ZERO)
                .await
                .is_err()
        );
        assert_eq!(opened.load(Ordering::Relaxed), 2);
    }
}
