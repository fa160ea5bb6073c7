//! A blob that another replica fills, or filled a moment ago: streamed from that replica, and from
//! any other one that has it if that replica dies.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use holdfast_core::{Digest, RepositoryName};
use holdfast_store::{Hasher, PartialBlob, Store};

use super::{
    Error, Result,
    blob_copies::BlobCopies,
    entry::State,
    peers::{Answer, Peers},
};
use crate::pull_through::PeerBlob;
use holdfast_runtime::time_limit::{TimeLimit, within};
use holdfast_upstream::UpstreamRepository;

/// Bytes of one read for a stream.
const READ_BYTES: u64 = 256 << 10;
/// Interval between checks of which replica has the blob.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long an answer waits for its first bytes.
const FIRST_BYTES_WAIT: Duration = Duration::from_secs(2);
/// How long another replica may give no answer at all: longer than a dead replica's lock lives.
const UNANSWERED_LIMIT: Duration = Duration::from_secs(45);
/// How long a stream from another replica may stall until that replica is asked again.
const STALL_LIMIT: Duration = Duration::from_secs(15);
/// Copies of this replica that fail in succession, without a byte between, before a client gets the
/// error.
const COPIES: u32 = 3;

/// A blob that another replica fills.
#[derive(Clone)]
pub(super) struct PeerStream {
    pub(super) store: Store,
    pub(super) copies: Arc<BlobCopies>,
    pub(super) peers: Arc<Peers>,
    pub(super) source: Option<UpstreamRepository>,
    pub(super) repo: RepositoryName,
    pub(super) digest: Digest,
    /// The size that the repository's manifest claims.
    pub(super) size: Option<u64>,
    /// Whether this repository is known to hold the blob; else the replica that fills it says for
    /// which it does.
    pub(super) authorized: bool,
}

impl PeerBlob for PeerStream {
    fn size(&self) -> Option<u64> {
        self.size
    }

    fn open(
        &self,
        offset: u64,
    ) -> BoxFuture<'_, Result<BoxStream<'static, std::io::Result<Bytes>>>> {
        let mut cursor = Cursor {
            relay: self.clone(),
            start: offset,
            offset,
            from: ReadSource::Unknown,
            handed: Hasher::new(self.digest.algorithm()),
            again: None,
            unanswered: TimeLimit::new(UNANSWERED_LIMIT),
            broke: false,
            failed: 0,
        };
        Box::pin(async move {
            // An early refusal becomes the status of the answer. Bytes far ahead may take longer.
            let soon = tokio::time::timeout(FIRST_BYTES_WAIT, cursor.next()).await;
            let first = soon.ok().transpose()?;
            let rest = futures::stream::unfold(Some(cursor), |cursor| async {
                let mut cursor = cursor?;
                match cursor.next().await {
                    Ok(Some(bytes)) => Some((Ok(bytes), Some(cursor))),
                    Ok(None) => None,
                    Err(error) => {
                        tracing::warn!(image.digest = %cursor.relay.digest, offset = cursor.offset, %error, "a stream from another replica broke off");
                        Some((Err(std::io::Error::other(error)), None))
                    }
                }
            });
            Ok(match first {
                Some(Some(bytes)) => futures::stream::once(async { Ok(bytes) })
                    .chain(rest)
                    .boxed(),
                Some(None) => futures::stream::empty().boxed(),
                None => rest.boxed(),
            })
        })
    }
}

struct Cursor {
    relay: PeerStream,
    /// The first byte of the client's range.
    start: u64,
    /// The next byte that the client gets.
    offset: u64,
    from: ReadSource,
    /// Over what was handed on: pieces of several sources must fit together.
    handed: Hasher,
    /// Behind a break in a part that has no digest of its own: what was handed on is read again
    /// from the new source, up to here, and compared before anything more is handed on.
    again: Option<Replay>,
    /// For how long the replica that copies may go on giving no bytes and no sign of its copy. The
    /// client's own pauses do not count.
    unanswered: TimeLimit,
    /// Whether the last stream broke off.
    broke: bool,
    /// Copies of this replica that failed since the last byte.
    failed: u32,
}

struct Replay {
    at: u64,
    hasher: Hasher,
}

enum ReadSource {
    Unknown,
    Stored(holdfast_store::BlobFile),
    Local(PartialBlob),
    Peer(BoxStream<'static, Result<Bytes, reqwest::Error>>),
}

impl Cursor {
    /// Where the source is to be read.
    fn at(&self) -> u64 {
        self.again.as_ref().map_or(self.offset, |again| again.at)
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let (at, size) = (self.at(), self.relay.size);
            let bytes = match &mut self.from {
                ReadSource::Unknown => None,
                ReadSource::Stored(file) => Some(file.read_at(at, READ_BYTES).await?),
                ReadSource::Local(growing) => match growing.read_at(at, READ_BYTES).await {
                    Ok(bytes) => Some(bytes),
                    Err(error) => {
                        self.broke = true;
                        self.copy_failed(|| Error::Unavailable(error.to_string()))?;
                        None
                    }
                },
                ReadSource::Peer(stream) => match within(STALL_LIMIT, stream.next()).await {
                    // An empty piece is not the end.
                    Some(Some(Ok(bytes))) if bytes.is_empty() => continue,
                    Some(Some(Ok(bytes))) => Some(bytes),
                    // The replica ends its answer cleanly only behind the verified end.
                    Some(None) if size.is_none_or(|size| size == at) => Some(Bytes::new()),
                    broken => {
                        self.broke = broken.is_some();
                        None
                    }
                },
            };
            match bytes {
                Some(bytes) => {
                    let ended = bytes.is_empty();
                    let bytes = self.repeat(bytes)?;
                    if bytes.is_empty() && !ended {
                        continue;
                    }
                    return self.advance(bytes);
                }
                None => self.seek().await?,
            }
        }
    }

    /// Skips the bytes that were sent before a break, and compares them.
    fn repeat(&mut self, mut bytes: Bytes) -> Result<Bytes> {
        let Some(again) = &mut self.again else {
            return Ok(bytes);
        };
        let left = usize::try_from(self.offset - again.at).unwrap_or(usize::MAX);
        let known = bytes.split_to(left.min(bytes.len()));
        again.hasher.update(&known);
        again.at += known.len() as u64;
        if again.at == self.offset {
            if again.hasher.clone().finish() != self.handed.clone().finish() {
                return Err(Error::Invalid(format!(
                    "another source of {} has other bytes",
                    self.relay.digest
                )));
            }
            self.again = None;
        } else if known.is_empty() {
            return Err(Error::Unavailable(
                "another source has less of it".to_owned(),
            ));
        }
        Ok(bytes)
    }

    fn advance(&mut self, bytes: Bytes) -> Result<Option<Bytes>> {
        let offset = self.offset + bytes.len() as u64;
        if let Some(size) = self.relay.size
            && (offset > size || (bytes.is_empty() && offset < size))
        {
            return Err(self.other_size(size));
        }
        self.offset = offset;
        self.unanswered = TimeLimit::new(UNANSWERED_LIMIT);
        (self.broke, self.failed) = (false, 0);
        self.handed.update(&bytes);
        // Before the last byte is handed on: a wrong body never ends cleanly.
        let is_end = bytes.is_empty() || self.relay.size == Some(self.offset);
        if self.start == 0 && is_end && self.handed.clone().finish() != self.relay.digest {
            return Err(Error::Invalid(format!(
                "what arrived is not {}",
                self.relay.digest
            )));
        }
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    fn other_size(&self, claim: u64) -> Error {
        let digest = &self.relay.digest;
        Error::Invalid(format!(
            "{digest} has not the {claim} bytes that its manifest says"
        ))
    }

    /// A copy of this replica failed. It is begun again, a limited number of times.
    fn copy_failed(&mut self, why: impl FnOnce() -> Error) -> Result<()> {
        self.failed += 1;
        if self.failed < COPIES {
            Ok(())
        } else {
            Err(why())
        }
    }

    /// Waits for the next check of which replica has the bytes.
    async fn pause(&mut self) -> Result<()> {
        let pause = self.unanswered.run(tokio::time::sleep(POLL_INTERVAL)).await;
        pause.ok_or_else(|| {
            Error::Unavailable("the replica that copies it does not answer".to_owned())
        })
    }

    /// Asks the upstream whether this repository may have the blob; waits where no source can be
    /// asked.
    async fn authorize(&mut self) -> Result<()> {
        self.relay.authorize().await?;
        if self.relay.authorized {
            Ok(())
        } else {
            self.pause().await
        }
    }

    /// Finds out which replica has the bytes now.
    async fn seek(&mut self) -> Result<()> {
        // The digest proves a whole blob. Bytes of a part can only be compared with those of
        // another source.
        if self.start > 0 && self.offset > self.start {
            self.again = Some(Replay {
                at: self.start,
                hasher: Hasher::new(self.relay.digest.algorithm()),
            });
        }
        self.from = ReadSource::Unknown;
        if self.broke {
            self.pause().await?;
        }
        let (at, relay) = (self.at(), &self.relay);
        let store = &relay.store;
        let stored = if relay.authorized {
            store.open_blob(&relay.digest).await?
        } else {
            store.open_repo_blob(&relay.repo, &relay.digest).await?
        };
        if let Some(file) = stored {
            // A part has no digest of its own that would tell.
            if let Some(claim) = relay.size.filter(|claim| *claim != file.size()) {
                return Err(self.other_size(claim));
            }
            self.from = ReadSource::Stored(file);
            return Ok(());
        }
        let (entry, ours) = relay.copies.begin(
            relay.source.as_ref(),
            &relay.repo,
            &relay.digest,
            relay.size,
        );
        let state = match &ours {
            Some(ours) => tokio::select! {
                biased;
                state = entry.readable() => state,
                error = ours.given_up() => return Err(error),
            },
            None => entry.readable().await,
        };
        match state {
            State::Growing(growing) => {
                if relay.authorized || entry.is_authorized(&relay.repo) {
                    self.from = ReadSource::Local(growing.claiming(relay.size));
                } else {
                    self.authorize().await?;
                }
            }
            State::Failed(error) => {
                if let Some(own) = ours
                    .as_ref()
                    .and_then(|ours| ours.given_up().now_or_never())
                {
                    return Err(own);
                }
                // This source was not part of that copy.
                self.copy_failed(|| error)?;
                self.pause().await?;
            }
            State::Elsewhere(owner) => {
                let repo = (!relay.authorized).then_some(&relay.repo);
                let peers = &relay.peers;
                let (digest, size) = (&relay.digest, relay.size);
                let asked = peers.blob(&owner.address, digest, at, size, repo);
                let answer = self.unanswered.run(asked).await;
                match answer {
                    Some(Answer::Stream(stream)) => {
                        if !self.broke {
                            self.unanswered = TimeLimit::new(UNANSWERED_LIMIT);
                        }
                        self.from = ReadSource::Peer(stream);
                    }
                    Some(Answer::NotYet) => {
                        self.unanswered = TimeLimit::new(UNANSWERED_LIMIT);
                        self.pause().await?;
                    }
                    Some(Answer::NotThisRepository) => self.authorize().await?,
                    Some(Answer::Nothing) | None => self.pause().await?,
                }
            }
            // In the store, and not of this repository so far: the replica that copied it may be
            // about to link it.
            State::Done => {
                self.pause().await?;
                let relay = &mut self.relay;
                let store = &relay.store;
                let linked = store.repo_has_blob(&relay.repo, &relay.digest).await?;
                if !relay.authorized && !linked && relay.source.is_some() {
                    relay.authorize().await?;
                }
            }
            State::Starting => {}
        }
        Ok(())
    }
}

impl PeerStream {
    /// Asks the upstream whether these credentials may read the blob in this repository.
    async fn authorize(&mut self) -> Result<()> {
        if let Some(source) = &self.source {
            self.copies.authorize(source, &self.digest).await?;
            self.authorized = true;
        }
        Ok(())
    }
}
