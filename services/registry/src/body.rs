//! Bodies of answers: always streams, with bounded memory.
//!
//! A stored blob is read in pieces of 128 KiB inside the store's budget of buffers, when the client
//! takes them. A blob that was not hashed for a while is hashed while it is sent; its last piece
//! leaves only when the digest is right (SPEC 37).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, future::BoxFuture, stream};
use holdfast_store::{BlobFile, Hasher, PartialBlob, Progress, Store};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, SizeHint};

use holdfast_upstream::Reserved;

/// Body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A body without bytes.
pub(crate) fn empty() -> Body {
    full(Bytes::new())
}

/// Bytes from memory.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Bytes from memory that count in a budget until the client took them.
pub(crate) fn counted(bytes: Bytes, reserved: Reserved) -> Body {
    full(Bytes::from_owner(ReservedBytes {
        bytes,
        _reserved: reserved,
    }))
}

struct ReservedBytes {
    bytes: Bytes,
    _reserved: Reserved,
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A stream of pieces. An error ends the connection before the announced length: never a clean end.
pub(crate) fn stream(pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// The bytes `first..end` of a stored blob.
pub(crate) fn blob(store: Store, blob: BlobFile, first: u64, end: u64) -> Body {
    let whole = first == 0 && end == blob.size();
    let hasher = (whole && !blob.is_verified()).then(|| Hasher::new(blob.digest().algorithm()));
    Stored {
        state: State::Idle(Reader {
            store,
            blob,
            offset: first,
            end,
            hasher,
        }),
        left: end - first,
    }
    .boxed_unsync()
}

/// A blob on its way out. What the kernel has in memory is read at the moment when the connection
/// takes it, and so goes from the processor's cache to the socket; for the rest the volume is
/// waited for on the store's pool.
struct Stored {
    state: State,
    left: u64,
}

#[expect(
    clippy::large_enum_variant,
    reason = "one of them lives for each stream, and most streams never leave the first"
)]
enum State {
    Idle(Reader),
    Waiting(BoxFuture<'static, (Reader, io::Result<Bytes>)>),
    Ended,
}

impl hyper::body::Body for Stored {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let body = &mut *self;
        let mut work: BoxFuture<'static, _> = match std::mem::replace(&mut body.state, State::Ended)
        {
            State::Ended => return Poll::Ready(None),
            State::Waiting(work) => work,
            State::Idle(mut reader) => match reader.read_now() {
                Some(Ok(piece)) if reader.is_sound_so_far(&piece) => {
                    return Poll::Ready(Some(body.sent(reader, Ok(piece))));
                }
                Some(Ok(_)) => Box::pin(reader.set_aside()),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => Box::pin(reader.read()),
            },
        };
        match work.as_mut().poll(cx) {
            Poll::Ready((reader, piece)) => Poll::Ready(Some(body.sent(reader, piece))),
            Poll::Pending => {
                body.state = State::Waiting(work);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl Stored {
    fn sent(&mut self, reader: Reader, piece: io::Result<Bytes>) -> io::Result<Frame<Bytes>> {
        let piece = piece?;
        self.left -= piece.len() as u64;
        if self.left > 0 {
            self.state = State::Idle(reader);
        }
        Ok(Frame::data(piece))
    }
}

struct Reader {
    store: Store,
    blob: BlobFile,
    offset: u64,
    end: u64,
    hasher: Option<Hasher>,
}

impl Reader {
    /// The next piece, if the volume need not be waited for.
    fn read_now(&mut self) -> Option<io::Result<Bytes>> {
        let read = self
            .blob
            .read_nonblocking(self.offset, self.end - self.offset)?;
        Some(self.taken(read))
    }

    async fn read(mut self) -> (Self, io::Result<Bytes>) {
        let left = self.end - self.offset;
        let read = self.blob.read_at(self.offset, left).await;
        match self.taken(read) {
            Ok(piece) if self.is_sound_so_far(&piece) => (self, Ok(piece)),
            Ok(_) => self.set_aside().await,
            Err(error) => (self, Err(error)),
        }
    }

    fn taken(&mut self, read: holdfast_store::Result<Bytes>) -> io::Result<Bytes> {
        match read {
            Ok(piece) if piece.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(piece) => {
                self.offset += piece.len() as u64;
                Ok(piece)
            }
            Err(error) => {
                tracing::warn!(image.digest = %self.blob.digest(), %error, "a blob cannot be read");
                Err(io::Error::other(error))
            }
        }
    }

    /// Hashes the piece if the blob is hashed; `false` when it is the last one and the digest is
    /// wrong: then it must not be sent.
    fn is_sound_so_far(&mut self, piece: &Bytes) -> bool {
        let Some(hasher) = &mut self.hasher else {
            return true;
        };
        hasher.update(piece);
        if self.offset < self.end {
            return true;
        }
        let sound = self
            .hasher
            .take()
            .is_some_and(|hasher| hasher.finish() == *self.blob.digest());
        if sound {
            self.store.remember_verified(&self.blob);
        }
        sound
    }

    /// Moves the damaged blob aside and ends the stream short.
    async fn set_aside(self) -> (Self, io::Result<Bytes>) {
        tracing::error!(image.digest = %self.blob.digest(), "a stored blob is damaged; it is moved aside and fetched again at the next pull");
        if let Err(error) = self.store.quarantine_blob(&self.blob).await {
            tracing::error!(%error, "a damaged blob cannot be moved aside");
        }
        (self, Err(io::ErrorKind::InvalidData.into()))
    }
}

/// How much of a blob that arrives is waited for, and how long, before the next piece of it is
/// sent.
const GATHERED_BYTES: u64 = 256 << 10;
const GATHER: Duration = Duration::from_millis(8);

/// The bytes `first..end` of a blob that arrives; without `end`, all that will come. The last piece
/// leaves only when the digest of the whole is right.
pub(crate) fn growing(blob: PartialBlob, first: u64, end: Option<u64>) -> Body {
    let blob = match end {
        Some(end) => blob.up_to(end),
        None => blob,
    };
    stream(stream::unfold(
        Some((blob, first)),
        move |state| async move {
            let (mut blob, offset) = state?;
            let limit = end.map_or(u64::MAX, |end| end - offset);
            if limit == 0 {
                return None;
            }
            // With a slow upstream every client would be woken for every few bytes.
            if let Progress::Growing(there) = blob.progress()
                && offset > first
                && there.saturating_sub(offset) < GATHERED_BYTES
            {
                tokio::time::sleep(GATHER).await;
            }
            match blob.read_at(offset, limit).await {
                Ok(piece) if piece.is_empty() && end.is_none() => None,
                Ok(piece) if piece.is_empty() => {
                    Some((Err(io::ErrorKind::UnexpectedEof.into()), None))
                }
                Ok(piece) => {
                    let next = offset + piece.len() as u64;
                    Some((Ok(piece), Some((blob, next))))
                }
                Err(error) => Some((Err(io::Error::other(error)), None)),
            }
        },
    ))
}

/// The first `limit` bytes of a stream. The last of these pieces leaves only when the stream ended
/// well: until then the digest is not compared.
pub(crate) fn take(
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
    limit: u64,
) -> Body {
    stream(stream::unfold(
        (pieces, limit),
        |(mut pieces, left)| async move {
            if left == 0 {
                return None;
            }
            let mut piece = match pieces.next().await? {
                Ok(piece) => piece,
                Err(error) => return Some((Err(error), (pieces, 0))),
            };
            if (piece.len() as u64) < left {
                let left = left - piece.len() as u64;
                return Some((Ok(piece), (pieces, left)));
            }
            piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            while let Some(rest) = pieces.next().await {
                if let Err(error) = rest {
                    return Some((Err(error), (pieces, 0)));
                }
            }
            Some((Ok(piece), (pieces, 0)))
        },
    ))
}
