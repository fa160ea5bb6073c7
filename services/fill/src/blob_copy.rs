//! One copy of a blob: sources one after the other, resumed until the bytes are verified, or given
//! up with a reason. While another replica copies it, this replica offers its sources to that one.

use std::{sync::Arc, time::Duration};

use holdfast_core::Digest;
use holdfast_store::{BlobIngest, Lock, LockAttempt, LockHolder, Store};
use holdfast_upstream::{self as upstream, BlobRequest, Body, Upstreams};
use tokio::sync::watch;

use super::{
    Error, Result,
    candidates::Candidate,
    entry::{Entry, State},
    metrics::Metrics,
    offers::Offers,
    peers::Peers,
    replicas::blob_lock_name,
};
use crate::limits::SPACE_EVERY_BYTES;

/// Attempts without progress before a source is given up.
const ATTEMPTS: u32 = 3;
/// Bytes that an attempt must bring to count as progress.
const STEP_BYTES: u64 = 64 << 10;
/// Complete bodies with wrong bytes before a source is given up.
const ROUNDS: u32 = 3;
/// Interval between checks of a lock that another replica holds.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The parts of a copy.
struct Copy<'a> {
    digest: &'a Digest,
    entry: &'a Entry,
    announce: &'a watch::Sender<State>,
    lock: &'a Lock,
}

/// The content of the growing file, since it was empty.
#[derive(Debug, Default)]
struct Round {
    /// The endpoints that sent it.
    senders: Vec<String>,
    /// Whether it began with what an earlier attempt left, whose sender is not known.
    kept: bool,
    /// Each source begins at the first byte: bytes of several sources did not fit together.
    alone: bool,
}

/// What a copy of a blob works with.
pub(super) struct BlobCopier {
    pub(super) store: Store,
    pub(super) upstreams: Upstreams,
    pub(super) peers: Arc<Peers>,
    pub(super) metrics: Metrics,
    /// What other replicas read in the locks of this one.
    pub(super) owner: LockHolder,
    /// First pause before a broken copy is continued; doubles.
    pub(super) retry: Duration,
}

impl BlobCopier {
    /// Copies a blob, or waits while another replica does, until it is stored or given up.
    pub(super) async fn run(
        &self,
        digest: &Digest,
        entry: &Entry,
        announce: &watch::Sender<State>,
    ) -> Result<()> {
        let (name, store) = (blob_lock_name(digest), &self.store);
        let mut offers: Option<Offers> = None;
        loop {
            if store.stat_blob(digest).await?.is_some() {
                return Ok(());
            }
            match store.try_lock(&name, &self.owner).await? {
                LockAttempt::Contended(owner) => {
                    announce.send_if_modified(|state| {
                        let changed = !matches!(state, State::Elsewhere(known) if *known == owner);
                        if changed {
                            *state = State::Elsewhere(owner.clone());
                        }
                        changed
                    });
                    let offers = match &mut offers {
                        Some(offers) if offers.are_for(&owner) => offers,
                        others => others.insert(Offers::new(owner)),
                    };
                    let made = offers.make(&self.peers, digest, entry);
                    tokio::join!(tokio::time::sleep(POLL_INTERVAL), made);
                }
                LockAttempt::Acquired(lock) => {
                    // The last holder may have stored it between the check and the lock.
                    if store.stat_blob(digest).await?.is_some() {
                        return Ok(());
                    }
                    // Requests that streamed from the last holder wait for this copy.
                    announce.send_replace(State::Starting);
                    let copy = Copy {
                        digest,
                        entry,
                        announce,
                        lock: &lock,
                    };
                    if self.download(&copy).await? == CopyOutcome::Stored {
                        return Ok(());
                    }
                    tracing::info!(image.digest = %digest, "another replica took the copy over");
                    announce.send_replace(State::Starting);
                }
            }
        }
    }

    /// Copies from one source after the other, until the bytes are right or no source is left.
    async fn download(&self, copy: &Copy<'_>) -> Result<CopyOutcome> {
        let Copy { digest, entry, .. } = *copy;
        self.store.check_write(0).await?;
        let (mut round, mut avoid) = (Round::default(), Vec::new());
        let mut incoming = self.open(copy, &mut round).await?;
        let mut last = Error::NotAllowed;
        while let Some(candidate) = entry.candidates.next() {
            let received = self
                .receive(copy, &candidate, &mut incoming, (&mut round, &mut avoid))
                .await;
            let error = match received {
                SourceOutcome::Whole => match incoming.commit().await {
                    Ok(_) => return Ok(CopyOutcome::Stored),
                    Err(holdfast_store::Error::LockLost) => return Ok(CopyOutcome::TakenOver),
                    Err(error @ holdfast_store::Error::DigestMismatch { .. }) => error.to_string(),
                    // Its bytes were discarded.
                    Err(error @ holdfast_store::Error::NoSpace { .. }) => {
                        incoming = self.open(copy, &mut round).await?;
                        last = error.into();
                        entry.candidates.fail(&candidate, last.clone());
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                },
                SourceOutcome::Wrong(what) => {
                    incoming.discard().await?;
                    what
                }
                SourceOutcome::Slow(rate) => {
                    tracing::info!(
                        image.digest = %digest,
                        upstream.host = %candidate.source.host,
                        rate,
                        "the copy continues from another source"
                    );
                    entry.candidates.leave(&candidate, rate);
                    if round.alone {
                        incoming.discard().await?;
                        incoming = self.open(copy, &mut round).await?;
                    }
                    continue;
                }
                // The received bytes stay for the next source, or for a later copy.
                SourceOutcome::Failed(error) => {
                    entry.candidates.fail(&candidate, error.clone());
                    last = error;
                    continue;
                }
                // The next source gets the space of these bytes.
                SourceOutcome::NoSpace(error) => {
                    tracing::warn!(
                        image.digest = %digest,
                        upstream.host = %candidate.source.host,
                        "the volume became full: the received bytes were discarded, the copy \
                         continues from another source if there is one"
                    );
                    incoming.discard().await?;
                    incoming = self.open(copy, &mut round).await?;
                    entry.candidates.fail(&candidate, error.clone());
                    last = error;
                    continue;
                }
                SourceOutcome::Ended(error) => return Err(error),
                SourceOutcome::TakenOver => return Ok(CopyOutcome::TakenOver),
            };
            let senders = std::mem::take(&mut round.senders);
            tracing::warn!(
                image.digest = %digest,
                upstream.urls = ?senders,
                error,
                "wrong bytes were discarded"
            );
            last = Error::Invalid(error);
            // Bytes of an earlier attempt, or of another sender, may be at fault; then each gets
            // its chance to send it whole.
            let rate = if let ([sender], false) = (senders.as_slice(), round.kept) {
                self.upstreams.quarantine(sender, digest);
                0
            } else {
                upstream::flow::SLOW
            };
            if candidate.was_wrong() < ROUNDS {
                entry.candidates.leave(&candidate, rate);
            } else {
                entry.candidates.fail(&candidate, last.clone());
            }
            round.alone = true;
            incoming = self.open(copy, &mut round).await?;
        }
        Err(last)
    }

    /// Opens the growing file with what is kept there.
    async fn open(&self, copy: &Copy<'_>, round: &mut Round) -> Result<BlobIngest> {
        copy.announce.send_if_modified(|state| {
            let was_growing = matches!(state, State::Growing(_));
            if was_growing {
                *state = State::Starting;
            }
            was_growing
        });
        let incoming = self.store.ingest_blob(copy.digest).await?;
        round.senders.clear();
        round.kept = incoming.offset() > 0;
        if round.kept {
            self.metrics.resumed.inc();
        }
        Ok(incoming)
    }

    /// Copies from one source until everything is there, the source fails, or another one should go
    /// on.
    async fn receive(
        &self,
        copy: &Copy<'_>,
        candidate: &Candidate,
        incoming: &mut BlobIngest,
        (round, avoid): (&mut Round, &mut Vec<String>),
    ) -> SourceOutcome {
        let Copy { digest, entry, .. } = *copy;
        let (mut attempts, mut whole, mut yielded) = (0, false, 0);
        let mut identity: Option<(String, String)> = None;
        loop {
            let before = incoming.offset();
            if before > 0 {
                match incoming.is_whole().await {
                    Ok(true) => return self.all_there(copy, candidate).await,
                    Ok(false) => {}
                    Err(error) => return SourceOutcome::ended(error),
                }
            }
            let wanted = BlobRequest {
                digest,
                size: candidate.claim,
                offset: before,
                whole,
                avoid,
                yielded,
            };
            let opened = tokio::select! {
                biased;
                opened = self.upstreams.blob(&candidate.source, wanted) => opened,
                rate = entry.candidates.elsewhere(None, round.alone) => {
                    return SourceOutcome::Slow(rate);
                }
            };
            let failure = match opened {
                Ok(body) => {
                    let sender = body.endpoint();
                    let taken =
                        self.take_in(copy, candidate, incoming, (round, &mut identity), body);
                    match taken.await {
                        BodyOutcome::Ended(received) => return received,
                        BodyOutcome::Preempted => {
                            yielded += 1;
                            continue;
                        }
                        BodyOutcome::Broke(failure) => {
                            // The next mirror goes on, if there is one.
                            avoid.retain(|url| *url != sender);
                            avoid.push(sender);
                            failure
                        }
                    }
                }
                // A server that cannot do this range may still send everything.
                Err(upstream::Error::Invalid(what)) if before > 0 && !whole => {
                    whole = true;
                    upstream::Error::Unavailable(what)
                }
                Err(
                    error @ (upstream::Error::Unavailable(_)
                    | upstream::Error::Later(..)
                    | upstream::Error::TooMany(_)),
                ) => error,
                Err(error) => return SourceOutcome::Failed(error.into()),
            };
            attempts = if incoming.offset() >= before + STEP_BYTES {
                0
            } else {
                attempts + 1
            };
            if attempts >= ATTEMPTS {
                return SourceOutcome::Failed(failure.into());
            }
            tracing::info!(
                image.digest = %digest,
                offset = incoming.offset(),
                error = %failure,
                "the copy broke off and continues"
            );
            tokio::time::sleep(self.retry * 2_u32.pow(attempts)).await;
        }
    }

    /// All bytes were there already, fetched with unknown credentials.
    async fn all_there(&self, copy: &Copy<'_>, candidate: &Candidate) -> SourceOutcome {
        if !copy.entry.is_authorized(&candidate.repo) {
            if let Err(error) = self
                .upstreams
                .has_blob(&candidate.source, copy.digest)
                .await
            {
                return SourceOutcome::Failed(error.into());
            }
            copy.entry.authorize(&candidate.repo);
        }
        SourceOutcome::Whole
    }

    /// Receives one body.
    async fn take_in(
        &self,
        copy: &Copy<'_>,
        candidate: &Candidate,
        incoming: &mut BlobIngest,
        (round, identity): (&mut Round, &mut Option<(String, String)>),
        mut body: Body,
    ) -> BodyOutcome {
        let (digest, before) = (copy.digest, incoming.offset());
        let (sender, total) = (body.endpoint(), body.identity().0);
        if let (_, Some(etag)) = body.identity() {
            let same = |(of, known): &(String, String)| *of != sender || known == etag;
            if before > 0 && !identity.as_ref().is_none_or(same) {
                let what = "the content changed at the upstream".to_owned();
                round.kept = true;
                return BodyOutcome::Ended(SourceOutcome::Wrong(what));
            }
            *identity = Some((sender.clone(), etag.to_owned()));
        }
        if let Some(total) = total.filter(|total| *total < before) {
            let what = format!("{before} bytes are there, and {sender} has {total}");
            round.kept = true;
            return BodyOutcome::Ended(SourceOutcome::Wrong(what));
        }
        // By the size that the upstream announces: the size that a manifest claims is unverified,
        // and claiming it costs nothing.
        let needed = total.unwrap_or(before) - before;
        if let Err(error) = self.store.check_write(needed).await {
            let error = no_room(digest, needed, error);
            return BodyOutcome::Ended(SourceOutcome::Failed(error));
        }
        copy.entry.authorize(&candidate.repo);
        copy.announce.send_if_modified(|state| {
            let is_news = !matches!(state, State::Growing(_));
            if is_news {
                *state = State::Growing(incoming.reader());
            }
            is_news
        });
        if !round.senders.contains(&sender) {
            round.senders.push(sender);
        }
        let flow = body.flow();
        let mut preempted = std::pin::pin!(body.preempted());
        let candidates = &copy.entry.candidates;
        let mut elsewhere = std::pin::pin!(candidates.elsewhere(Some(&flow), round.alone));
        let mut unchecked = 0;
        loop {
            if copy.lock.is_lost() {
                return BodyOutcome::Ended(SourceOutcome::TakenOver);
            }
            let next = tokio::select! {
                biased;
                () = &mut preempted => return BodyOutcome::Preempted,
                next = body.chunk() => next,
                rate = &mut elsewhere => return BodyOutcome::Ended(SourceOutcome::Slow(rate)),
            };
            let bytes = match next {
                Ok(Some(bytes)) => bytes,
                Ok(None) => {
                    let end = total.or(candidate.claim);
                    if end.is_some_and(|end| incoming.offset() < end) {
                        let what = "the body ended early".to_owned();
                        return BodyOutcome::Broke(upstream::Error::Unavailable(what));
                    }
                    return BodyOutcome::Ended(SourceOutcome::Whole);
                }
                Err(error) => return BodyOutcome::Broke(error),
            };
            let there = incoming.offset() + bytes.len() as u64;
            if let Some(claim) = candidate.claim.filter(|claim| there > *claim) {
                let what = format!(
                    "the upstream sends more of {digest} than the {claim} bytes that its manifest says"
                );
                return BodyOutcome::Ended(SourceOutcome::Failed(Error::Invalid(what)));
            }
            unchecked += bytes.len() as u64;
            let mut kept = incoming.append(bytes).await;
            if kept.is_ok() && unchecked >= SPACE_EVERY_BYTES {
                unchecked = 0;
                kept = self.store.check_write(0).await;
            }
            match kept {
                Ok(()) => {}
                Err(error) => return BodyOutcome::Ended(SourceOutcome::ended(error)),
            }
        }
    }
}

fn no_room(digest: &Digest, needed: u64, error: holdfast_store::Error) -> Error {
    match error {
        holdfast_store::Error::NoSpace { available_bytes } => Error::NoSpace(format!(
            "{digest} needs {needed} bytes by its upstream, the volume has {available_bytes} left"
        )),
        error => error.into(),
    }
}

/// How a source ended.
enum SourceOutcome {
    /// Everything; not verified yet.
    Whole,
    /// Bytes that are wrong.
    Wrong(String),
    /// Another source should continue; this one sent this many bytes a second.
    Slow(u64),
    /// This source cannot send more.
    Failed(Error),
    /// The volume became full: what the copy took is freed.
    NoSpace(Error),
    /// No more can be done for any source.
    Ended(Error),
    /// Another replica has the lock: this process was suspended for longer than a lock lives.
    TakenOver,
}

impl SourceOutcome {
    /// The outcome of an error of the volume.
    fn ended(error: holdfast_store::Error) -> Self {
        match error {
            // Another replica continued with the file.
            holdfast_store::Error::LockLost => Self::TakenOver,
            error @ holdfast_store::Error::NoSpace { .. } => Self::NoSpace(error.into()),
            error => Self::Ended(error.into()),
        }
    }
}

/// How a copy ended that did not fail.
#[derive(Debug, PartialEq, Eq)]
enum CopyOutcome {
    Stored,
    /// Another replica continues it.
    TakenOver,
}

/// How a body ended.
enum BodyOutcome {
    Ended(SourceOutcome),
    /// Its slot is for another copy; it continues later.
    Preempted,
    /// It can be continued with a range.
    Broke(upstream::Error),
}
