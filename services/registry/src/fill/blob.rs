//! The fill of one blob: one writer in the process and on the volume, resumed until verified, or given up with a reason.

use std::{panic::AssertUnwindSafe, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use holdfast_core::Digest;
use holdfast_store::{Claim, GrowingBlob, Hasher, Incoming, Lock, Owner};
use tokio::{sync::watch, time::Instant};

use super::{Error, Fills, Result};
use crate::{
    source::{RemoteBlob, SourceError},
    upstream::{self, Source},
};

/// Bytes of one read for a stream.
const READ_BYTES: u64 = 256 << 10;
/// Attempts without a single new byte before a blob is given up.
const ATTEMPTS: u32 = 3;
/// Times that a blob is begun anew after wrong bytes.
const ROUNDS: u32 = 3;
/// Between two looks at a lock that another replica holds.
const LOOK: Duration = Duration::from_millis(200);
/// How long a stream from another replica may stand still: longer than a dead replica's lock lives.
const PATIENCE: Duration = Duration::from_secs(45);

/// How far the fill of a blob is.
#[derive(Debug, Clone)]
pub(super) enum State {
    /// Nothing to read yet.
    Starting,
    /// This process writes it.
    Growing(GrowingBlob),
    /// Another replica writes it.
    Elsewhere(Owner),
    /// It is in the store.
    Done,
    /// Given up.
    Failed(Error),
}

impl Fills {
    /// Joins the fill of a blob in this process or begins it; true when it began.
    pub(super) fn begin(
        &self,
        source: Option<&Source>,
        digest: &Digest,
        size: Option<u64>,
    ) -> (watch::Receiver<State>, bool) {
        let mut blobs = self.lock_blobs();
        if let Some(running) = blobs.get(digest) {
            return (running.clone(), false);
        }
        let (announce, state) = watch::channel(State::Starting);
        blobs.insert(digest.clone(), state.clone());
        let (fills, source, digest) = (self.clone(), source.cloned(), digest.clone());
        // Its own task: whoever asked may leave.
        tokio::spawn(async move {
            // A panic must not leave the entry behind: everybody would join it for ever.
            let copy = AssertUnwindSafe(fills.run(source.as_ref(), &digest, size, &announce));
            let result = copy
                .catch_unwind()
                .await
                .unwrap_or(Err(Error::Store("panic")));
            fills.lock_blobs().remove(&digest);
            match result {
                Ok(()) => announce.send_replace(State::Done),
                Err(error) => {
                    tracing::warn!(image.digest = %digest, %error, "blob was not copied");
                    announce.send_replace(State::Failed(error))
                }
            };
        });
        (state, true)
    }

    /// Fills a blob and waits for its end. A fill that somebody else began with other credentials is tried again with ours.
    pub(super) async fn complete(&self, source: &Source, digest: &Digest, size: u64) -> Result<()> {
        loop {
            let (mut state, ours) = self.begin(Some(source), digest, Some(size));
            let end = state
                .wait_for(|state| matches!(state, State::Done | State::Failed(_)))
                .await;
            match end.as_deref() {
                Ok(State::Done) => return Ok(()),
                Ok(State::Failed(error)) if ours => return Err(error.clone()),
                Err(_) if ours => return Err(Error::Unavailable("shutting down".to_owned())),
                _ => {}
            }
        }
    }

    async fn run(
        &self,
        source: Option<&Source>,
        digest: &Digest,
        size: Option<u64>,
        announce: &watch::Sender<State>,
    ) -> Result<()> {
        let name = format!("blob-{}-{}", digest.algorithm(), digest.hex());
        loop {
            if self.is_stored(digest, size).await? {
                return Ok(());
            }
            match self.inner.store.try_lock(&name, &self.inner.owner).await? {
                Claim::Busy(owner) => {
                    announce.send_if_modified(|state| {
                        let changed = !matches!(state, State::Elsewhere(known) if *known == owner);
                        if changed {
                            *state = State::Elsewhere(owner.clone());
                        }
                        changed
                    });
                    tokio::time::sleep(LOOK).await;
                }
                Claim::Held(lock) => {
                    // The one before us may have finished between the look and the lock.
                    if self.is_stored(digest, size).await? {
                        return Ok(());
                    }
                    let source = source.ok_or(Error::NotAllowed)?;
                    return self.download(source, digest, size, announce, &lock).await;
                }
            }
        }
    }

    async fn is_stored(&self, digest: &Digest, size: Option<u64>) -> Result<bool> {
        match self.inner.store.stat_blob(digest).await? {
            None => Ok(false),
            Some(found) if size.is_none_or(|size| size == found) => Ok(true),
            Some(_) => {
                self.inner.store.quarantine(digest).await?;
                Ok(false)
            }
        }
    }

    async fn download(
        &self,
        source: &Source,
        digest: &Digest,
        size: Option<u64>,
        announce: &watch::Sender<State>,
        lock: &Lock,
    ) -> Result<()> {
        self.inner.store.check_write(size.unwrap_or(0)).await?;
        let mut wrong = Error::Invalid(String::new());
        for _ in 0..ROUNDS {
            let mut incoming = self.inner.store.incoming(digest, size).await?;
            let kept = incoming.offset();
            announce.send_replace(State::Growing(incoming.reader()));
            let outcome = self
                .receive(source, digest, size, &mut incoming, lock)
                .await;
            let (endpoint, error) = match outcome {
                Received::All(endpoint) => match incoming.commit().await {
                    Ok(_) => return Ok(()),
                    Err(
                        error @ (holdfast_store::Error::DigestMismatch { .. }
                        | holdfast_store::Error::SizeMismatch { .. }),
                    ) => (endpoint, Error::Invalid(error.to_string())),
                    Err(error) => return Err(error.into()),
                },
                Received::Wrong(endpoint, what) => {
                    incoming.discard().await?;
                    (endpoint, Error::Invalid(what))
                }
                // What is there stays for the next attempt, by whomever.
                Received::Failed(error) => return Err(error),
            };
            // Bytes of an earlier attempt may be at fault; then the endpoint gets a second chance.
            if let Some(endpoint) = endpoint.filter(|_| kept == 0) {
                tracing::warn!(image.digest = %digest, upstream.url = endpoint, %error, "the upstream sent wrong bytes");
                self.inner.upstreams.quarantine(&endpoint, digest);
            }
            announce.send_replace(State::Starting);
            wrong = error;
        }
        Err(wrong)
    }

    async fn receive(
        &self,
        source: &Source,
        digest: &Digest,
        size: Option<u64>,
        incoming: &mut Incoming,
        lock: &Lock,
    ) -> Received {
        let mut attempts = 0;
        let mut endpoint = None;
        let mut failure;
        loop {
            if size == Some(incoming.offset()) && incoming.offset() > 0 {
                return Received::All(endpoint);
            }
            let before = incoming.offset();
            match self.inner.upstreams.blob(source, digest, before).await {
                Ok(mut body) => {
                    endpoint = Some(body.endpoint());
                    failure = loop {
                        if lock.is_lost() {
                            return Received::Failed(Error::Unavailable(
                                "another replica took the copy over".to_owned(),
                            ));
                        }
                        match body.chunk().await {
                            Ok(Some(bytes)) => match incoming.append(bytes).await {
                                Ok(()) => {}
                                Err(error @ holdfast_store::Error::SizeMismatch { .. }) => {
                                    return Received::Wrong(endpoint, error.to_string());
                                }
                                Err(error) => return Received::Failed(error.into()),
                            },
                            Ok(None) if size.is_none_or(|size| size == incoming.offset()) => {
                                return Received::All(endpoint);
                            }
                            Ok(None) => {
                                break upstream::Error::Unavailable(
                                    "the body ended early".to_owned(),
                                );
                            }
                            Err(error) => break error,
                        }
                    };
                }
                // A range that the upstream cannot serve: from the beginning, then.
                Err(upstream::Error::Invalid(what)) if before > 0 => {
                    return Received::Wrong(None, what);
                }
                Err(error @ upstream::Error::Unavailable(_)) => failure = error,
                Err(error) => return Received::Failed(error.into()),
            }
            attempts = if incoming.offset() > before {
                0
            } else {
                attempts + 1
            };
            if attempts >= ATTEMPTS {
                return Received::Failed(failure.into());
            }
            tracing::info!(image.digest = %digest, offset = incoming.offset(), error = %failure, "copy broke off, goes on");
            tokio::time::sleep(self.inner.settings.retry * 2_u32.pow(attempts)).await;
        }
    }

    /// Waits until a blob can be read or is given up.
    pub(super) async fn readable(state: &mut watch::Receiver<State>) -> State {
        let ready = state
            .wait_for(|state| !matches!(state, State::Starting))
            .await;
        ready.map_or_else(
            |_| State::Failed(Error::Unavailable("shutting down".to_owned())),
            |state| state.clone(),
        )
    }
}

enum Received {
    /// Everything, from this endpoint at last; not verified yet.
    All(Option<String>),
    /// Bytes that cannot be right.
    Wrong(Option<String>, String),
    /// No more to be had now.
    Failed(Error),
}

/// A blob that another replica fills, or filled a moment ago; goes on from whoever has it when that replica dies.
pub(super) struct Relay {
    pub(super) fills: Fills,
    pub(super) source: Option<Source>,
    pub(super) digest: Digest,
    pub(super) size: Option<u64>,
}

impl RemoteBlob for Relay {
    fn size(&self) -> Option<u64> {
        self.size
    }

    fn open(
        &self,
        offset: u64,
    ) -> BoxFuture<'_, Result<BoxStream<'static, std::io::Result<Bytes>>, SourceError>> {
        let cursor = Cursor {
            fills: self.fills.clone(),
            source: self.source.clone(),
            digest: self.digest.clone(),
            size: self.size,
            offset,
            from: From::Nowhere,
            hasher: (offset == 0).then(|| Hasher::new(self.digest.algorithm())),
            sought: false,
            moved: Instant::now(),
        };
        let stream = futures::stream::unfold(Some(cursor), |cursor| async {
            let mut cursor = cursor?;
            match cursor.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(cursor))),
                Ok(None) => None,
                Err(error) => Some((Err(std::io::Error::other(error)), None)),
            }
        });
        Box::pin(async move { Ok(stream.boxed()) })
    }
}

struct Cursor {
    fills: Fills,
    source: Option<Source>,
    digest: Digest,
    size: Option<u64>,
    offset: u64,
    from: From,
    /// Over what was handed on, when that is everything: pieces of several sources must fit together.
    hasher: Option<Hasher>,
    sought: bool,
    moved: Instant,
}

enum From {
    Nowhere,
    Stored(holdfast_store::BlobFile),
    Here(GrowingBlob),
    Peer(BoxStream<'static, Result<Bytes, reqwest::Error>>),
}

impl Cursor {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let (offset, size) = (self.offset, self.size);
            let bytes = match &mut self.from {
                From::Nowhere => None,
                From::Stored(file) => Some(file.read_at(offset, READ_BYTES).await?),
                From::Here(growing) => growing.read_at(offset, READ_BYTES).await.ok(),
                From::Peer(stream) => match tokio::time::timeout(PATIENCE / 3, stream.next()).await
                {
                    // An empty piece is no end.
                    Ok(Some(Ok(bytes))) if bytes.is_empty() => continue,
                    Ok(Some(Ok(bytes))) => Some(bytes),
                    // The replica ends its answer cleanly only behind the verified end.
                    Ok(None) if size.is_none_or(|size| size == offset) => Some(Bytes::new()),
                    _ => None,
                },
            };
            match bytes {
                Some(bytes) => return self.advance(bytes),
                None => self.seek().await?,
            }
        }
    }

    fn advance(&mut self, bytes: Bytes) -> Result<Option<Bytes>> {
        self.offset += bytes.len() as u64;
        self.moved = Instant::now();
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes);
            // Before the last byte is handed on: a wrong body never ends cleanly.
            let is_end = bytes.is_empty() || self.size == Some(self.offset);
            if is_end && hasher.clone().finish() != self.digest {
                return Err(Error::Invalid(format!(
                    "what arrived is not {}",
                    self.digest
                )));
            }
        }
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    /// Finds out who has the bytes now.
    async fn seek(&mut self) -> Result<()> {
        if self.moved.elapsed() > PATIENCE {
            return Err(Error::Unavailable(
                "the replica that copies it does not answer".to_owned(),
            ));
        }
        if self.sought && self.hasher.is_none() && !matches!(self.from, From::Nowhere) {
            // The rest may come from other bytes than the part that was handed on, and nobody could tell.
            return Err(Error::Unavailable(
                "the replica that copies it broke off".to_owned(),
            ));
        }
        self.sought = true;
        self.from = From::Nowhere;
        if let Some(file) = self.fills.inner.store.open_blob(&self.digest).await? {
            self.from = From::Stored(file);
            return Ok(());
        }
        let (mut state, _) = self
            .fills
            .begin(self.source.as_ref(), &self.digest, self.size);
        match Fills::readable(&mut state).await {
            State::Growing(growing) => self.from = From::Here(growing),
            State::Failed(error) => return Err(error),
            State::Elsewhere(owner) => match self
                .fills
                .inner
                .peers
                .blob(&owner.address, &self.digest, self.offset)
                .await
            {
                Some(stream) => self.from = From::Peer(stream),
                None => tokio::time::sleep(LOOK).await,
            },
            State::Starting | State::Done => {}
        }
        Ok(())
    }
}
