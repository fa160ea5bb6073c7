//! Bodies both ways: always streams, with bounded memory.
//!
//! Out: 256 KiB reads, one of them ahead of the client, inside the store's budget of buffers. A blob that was not hashed for a while is hashed on
//! its way out; its last piece leaves only when the digest is right (SPEC 37). In: frames as they come, with a limit on silence.

use std::{io, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use holdfast_store::{BlobFile, GrowingBlob, Hasher, Store};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};

use crate::{
    error::{Code, Error, Result},
    limits,
};

/// Body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Nothing.
pub(crate) fn empty() -> Body {
    full(Bytes::new())
}

/// Bytes from memory.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A stream of pieces. An error ends the connection before the announced length: never a clean end.
pub(crate) fn stream(pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// The bytes `first..end` of a stored blob.
pub(crate) fn blob(store: Store, blob: BlobFile, first: u64, end: u64) -> Body {
    let whole = first == 0 && end == blob.size();
    let hasher = (whole && !blob.is_verified()).then(|| Hasher::new(blob.digest().algorithm()));
    let reader = Reader {
        store,
        blob,
        end,
        hasher,
    };
    let ahead = tokio::spawn(reader.read(first));
    stream(stream::unfold(Some(ahead), |ahead| async move {
        match ahead?.await {
            Ok((reader, next, Ok(piece))) => {
                let ahead = (next < reader.end).then(|| tokio::spawn(reader.read(next)));
                Some((Ok(piece), ahead))
            }
            Ok((_, _, Err(error))) => Some((Err(error), None)),
            Err(_) => Some((Err(io::ErrorKind::Other.into()), None)),
        }
    }))
}

struct Reader {
    store: Store,
    blob: BlobFile,
    end: u64,
    hasher: Option<Hasher>,
}

impl Reader {
    async fn read(mut self, offset: u64) -> (Self, u64, io::Result<Bytes>) {
        let piece = match self.blob.read_at(offset, self.end - offset).await {
            Ok(piece) if piece.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(piece) => Ok(piece),
            Err(error) => {
                tracing::warn!(image.digest = %self.blob.digest(), %error, "a blob cannot be read");
                Err(io::Error::other(error))
            }
        };
        let piece = match piece {
            Ok(piece) => self.check(offset, piece).await,
            Err(error) => Err(error),
        };
        let next = offset + piece.as_ref().map_or(0, |piece| piece.len() as u64);
        (self, next, piece)
    }

    async fn check(&mut self, offset: u64, piece: Bytes) -> io::Result<Bytes> {
        let Some(hasher) = &mut self.hasher else {
            return Ok(piece);
        };
        hasher.update(&piece);
        if offset + (piece.len() as u64) < self.end {
            return Ok(piece);
        }
        if let Some(hasher) = self.hasher.take()
            && hasher.finish() != *self.blob.digest()
        {
            tracing::error!(image.digest = %self.blob.digest(), "a stored blob is damaged; it is moved aside and fetched again at the next pull");
            if let Err(error) = self.store.quarantine(self.blob.digest()).await {
                tracing::error!(%error, "a damaged blob cannot be moved aside");
            }
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.store.remember_verified(&self.blob);
        Ok(piece)
    }
}

/// The bytes `first..end` of a blob that arrives; without `end`, all that will come.
pub(crate) fn growing(blob: GrowingBlob, first: u64, end: Option<u64>) -> Body {
    stream(stream::unfold(
        Some((blob, first)),
        move |state| async move {
            let (mut blob, offset) = state?;
            let limit = end.map_or(u64::MAX, |end| end - offset);
            if limit == 0 {
                return None;
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

/// At most `limit` bytes of a stream.
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
            match pieces.next().await? {
                Ok(mut piece) => {
                    piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - piece.len() as u64;
                    Some((Ok(piece), (pieces, left)))
                }
                Err(error) => Some((Err(error), (pieces, 0))),
            }
        },
    ))
}

/// What a client sends, piece by piece.
#[derive(Debug)]
pub(crate) struct Received {
    body: Incoming,
    idle: Duration,
}

impl Received {
    /// The body of a request.
    pub(crate) fn new(body: Incoming) -> Self {
        Self {
            body,
            idle: limits::BODY_IDLE,
        }
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// 408 when the client is silent for too long, 400 when it breaks off.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            match tokio::time::timeout(self.idle, self.body.frame()).await {
                Err(_) => {
                    return Err(Error::new(
                        http::StatusCode::REQUEST_TIMEOUT,
                        Code::BlobUploadInvalid,
                        "the client sent nothing for too long",
                    ));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(_))) => {
                    return Err(Error::invalid(
                        Code::BlobUploadInvalid,
                        "the client broke off",
                    ));
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// All of it, at most `limit` bytes.
    ///
    /// # Errors
    /// 413 above the limit.
    pub(crate) async fn collect(mut self, limit: u64) -> Result<Bytes> {
        let mut collected = bytes::BytesMut::new();
        while let Some(piece) = self.next().await? {
            if (collected.len() + piece.len()) as u64 > limit {
                return Err(too_large(limit));
            }
            collected.extend_from_slice(&piece);
        }
        Ok(collected.freeze())
    }
}

/// 413.
pub(crate) fn too_large(limit: u64) -> Error {
    Error::new(
        http::StatusCode::PAYLOAD_TOO_LARGE,
        Code::SizeInvalid,
        format!("a manifest has at most {limit} bytes"),
    )
}
