//! The fill of one blob: one writer in the process and on the volume, resumed until verified, or given up with a reason.
//!
//! A blob belongs to a repository once the repository's own credentials read it, or were told by the upstream that they may:
//! that its bytes are on the volume, or on their way for somebody else, is no leave to read them.

use std::{
    collections::BTreeSet,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt;
use holdfast_core::{Digest, RepositoryName};
use holdfast_store::{Claim, GrowingBlob, Incoming, Lock, Owner};
use tokio::sync::watch;

use super::{Error, Fills, Result};
use crate::upstream::{self, Priority, Source, Wanted};

/// Attempts that bring next to nothing before a blob is given up.
const ATTEMPTS: u32 = 3;
/// What an attempt must bring to count as a step forward, bytes.
const STEP_BYTES: u64 = 64 << 10;
/// Times that a blob is begun anew after wrong bytes.
const ROUNDS: u32 = 3;
/// Between two looks at a lock that another replica holds.
const LOOK: Duration = Duration::from_millis(200);
/// Looks for the link that another replica makes right after it copied a blob.
const LINK_LOOKS: u32 = 5;

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

/// The fill of a blob in this process. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) state: watch::Receiver<State>,
    pub(super) priority: Priority,
    /// The repositories whose credentials the upstream let read it.
    proven: Arc<Mutex<BTreeSet<RepositoryName>>>,
}

impl Entry {
    pub(super) fn new(state: watch::Receiver<State>, priority: Priority) -> Self {
        Self {
            state,
            priority,
            proven: Arc::default(),
        }
    }

    /// Whether the repository's own credentials may read it.
    pub(super) fn is_proven(&self, repo: &RepositoryName) -> bool {
        let proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        proven.contains(repo)
    }

    /// The upstream let this repository's credentials read it.
    pub(super) fn prove(&self, repo: &RepositoryName) {
        let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        proven.insert(repo.clone());
    }

    /// Waits until it can be read or is given up.
    pub(super) async fn readable(&self) -> State {
        let mut state = self.state.clone();
        let ready = state
            .wait_for(|state| !matches!(state, State::Starting))
            .await;
        ready.map_or_else(
            |_| State::Failed(Error::Unavailable("shutting down".to_owned())),
            |state| state.clone(),
        )
    }

    /// Waits until it is stored or given up.
    async fn ended(&self) -> Option<Result<()>> {
        let mut state = self.state.clone();
        let end = state
            .wait_for(|state| matches!(state, State::Done | State::Failed(_)))
            .await
            .ok()?;
        match &*end {
            State::Failed(error) => Some(Err(error.clone())),
            _ => Some(Ok(())),
        }
    }

    /// Whether it was stored.
    pub(super) async fn is_done(&self) -> bool {
        self.ended().await == Some(Ok(()))
    }
}

/// One fill's own things.
struct Copy<'a> {
    source: &'a Source,
    repo: &'a RepositoryName,
    digest: &'a Digest,
    size: Option<u64>,
    entry: &'a Entry,
    announce: &'a watch::Sender<State>,
    lock: &'a Lock,
}

impl Fills {
    /// Joins the fill of a blob in this process or begins it; true when it began.
    pub(super) fn begin(
        &self,
        source: Option<&Source>,
        repo: &RepositoryName,
        digest: &Digest,
        size: Option<u64>,
    ) -> (Entry, bool) {
        let mut blobs = self.lock_blobs();
        if let Some(running) = blobs.get(digest).cloned() {
            drop(blobs);
            if let Some(source) = source {
                let need = source.priority.need();
                self.inner.upstreams.raise(&running.priority, need);
            }
            return (running, false);
        }
        let (announce, state) = watch::channel(State::Starting);
        let priority = source.map_or_else(Priority::default, |source| source.priority.clone());
        let entry = Entry::new(state, priority);
        blobs.insert(digest.clone(), entry.clone());
        let (fills, source, repo, digest) =
            (self.clone(), source.cloned(), repo.clone(), digest.clone());
        let ours = entry.clone();
        // Its own task: whoever asked may leave.
        tokio::spawn(async move {
            // A panic must not leave the entry behind: everybody would join it for ever.
            let copy = fills.run(source.as_ref(), &repo, &digest, size, &ours, &announce);
            let result = AssertUnwindSafe(copy)
                .catch_unwind()
                .await
                .unwrap_or(Err(Error::Store("panic")));
            fills.lock_blobs().remove(&digest);
            let word = result.as_ref().map_or_else(Error::word, |()| "ok");
            fills.inner.upstreams.metrics().ended("blob", word);
            match result {
                Ok(()) => announce.send_replace(State::Done),
                Err(error) => {
                    tracing::warn!(image.digest = %digest, %error, "blob was not copied");
                    announce.send_replace(State::Failed(error))
                }
            };
        });
        (entry, true)
    }

    /// Fills a blob for a repository, waits for its end and links it. A fill that somebody else began with other credentials is
    /// tried again with ours.
    pub(super) async fn complete(
        &self,
        source: &Source,
        repo: &RepositoryName,
        digest: &Digest,
        size: u64,
    ) -> Result<()> {
        let store = &self.inner.store;
        loop {
            if self.is_stored(digest, Some(size)).await? {
                if !store.repo_has_blob(repo, digest).await? {
                    self.prove(source, digest).await?;
                    store.link_blob(repo, digest).await?;
                }
                return Ok(());
            }
            let (entry, ours) = self.begin(Some(source), repo, digest, Some(size));
            match entry.ended().await {
                Some(Ok(())) if entry.is_proven(repo) => {
                    return Ok(store.link_blob(repo, digest).await?);
                }
                // Another replica's work, perhaps for this very repository: then it links it.
                Some(Ok(())) => {
                    for _ in 0..LINK_LOOKS {
                        if store.repo_has_blob(repo, digest).await? {
                            break;
                        }
                        tokio::time::sleep(LOOK).await;
                    }
                }
                Some(Err(error)) if ours => return Err(error),
                None if ours => return Err(Error::Unavailable("shutting down".to_owned())),
                _ => {}
            }
        }
    }

    /// Has the upstream say that the source's credentials may read a blob.
    pub(super) async fn prove(&self, source: &Source, digest: &Digest) -> Result<()> {
        self.inner.upstreams.has_blob(source, digest).await?;
        Ok(())
    }

    async fn run(
        &self,
        source: Option<&Source>,
        repo: &RepositoryName,
        digest: &Digest,
        size: Option<u64>,
        entry: &Entry,
        announce: &watch::Sender<State>,
    ) -> Result<()> {
        let name = lock_name(digest);
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
                    // Who streamed from the one before us waits for ours now.
                    announce.send_replace(State::Starting);
                    let source = source.ok_or(Error::NotAllowed)?;
                    let copy = Copy {
                        source,
                        repo,
                        digest,
                        size,
                        entry,
                        announce,
                        lock: &lock,
                    };
                    return self.download(&copy).await;
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

    async fn download(&self, copy: &Copy<'_>) -> Result<()> {
        let Copy { digest, size, .. } = *copy;
        self.inner.store.check_write(size.unwrap_or(0)).await?;
        let mut wrong = Error::Invalid(String::new());
        let mut avoid = Vec::new();
        for _ in 0..ROUNDS {
            let mut incoming = self.inner.store.incoming(digest, size).await?;
            let kept = incoming.offset();
            if kept > 0 {
                self.inner.upstreams.metrics().resumed.inc();
            }
            let outcome = self.receive(copy, &mut incoming, &mut avoid).await;
            let (senders, error) = match outcome {
                Received::All(senders) => match incoming.commit().await {
                    Ok(_) => return Ok(()),
                    Err(
                        error @ (holdfast_store::Error::DigestMismatch { .. }
                        | holdfast_store::Error::SizeMismatch { .. }),
                    ) => (senders, Error::Invalid(error.to_string())),
                    Err(error) => return Err(error.into()),
                },
                Received::Wrong(senders, what) => {
                    incoming.discard().await?;
                    (senders, Error::Invalid(what))
                }
                // What is there stays for the next attempt, by whomever.
                Received::Failed(error) => return Err(error),
            };
            tracing::warn!(image.digest = %digest, upstream.urls = ?senders, %error, "wrong bytes were thrown away");
            // Bytes of an earlier attempt, or of another sender, may be at fault; then each gets its chance to send it whole.
            if let ([sender], 0) = (senders.as_slice(), kept) {
                self.inner.upstreams.quarantine(sender, digest);
            }
            copy.announce.send_replace(State::Starting);
            wrong = error;
        }
        Err(wrong)
    }

    async fn receive(
        &self,
        copy: &Copy<'_>,
        incoming: &mut Incoming,
        avoid: &mut Vec<String>,
    ) -> Received {
        let Copy { digest, size, .. } = *copy;
        let mut attempts = 0;
        let mut senders: Vec<String> = Vec::new();
        let mut identity: Option<(String, String)> = None;
        let mut whole = false;
        loop {
            let before = incoming.offset();
            if size == Some(before) && before > 0 {
                // All of it was there already, fetched with whatever credentials.
                if !copy.entry.is_proven(copy.repo) {
                    if let Err(error) = self.prove(copy.source, digest).await {
                        return Received::Failed(error);
                    }
                    copy.entry.prove(copy.repo);
                }
                return Received::All(senders);
            }
            let wanted = Wanted {
                digest,
                size,
                offset: before,
                whole,
                avoid,
            };
            let failure = match self.inner.upstreams.blob(copy.source, wanted).await {
                Ok(mut body) => {
                    let sender = body.endpoint();
                    if let (_, Some(etag)) = body.identity() {
                        let same = |(of, _): &&(String, String)| *of == sender;
                        if before > 0
                            && identity
                                .as_ref()
                                .filter(same)
                                .is_some_and(|(_, e)| e != etag)
                        {
                            return Received::Wrong(
                                Vec::new(),
                                "the content changed at the upstream".to_owned(),
                            );
                        }
                        identity = Some((sender.clone(), etag.to_owned()));
                    }
                    copy.entry.prove(copy.repo);
                    copy.announce.send_if_modified(|state| {
                        let is_news = !matches!(state, State::Growing(_));
                        if is_news {
                            *state = State::Growing(incoming.reader());
                        }
                        is_news
                    });
                    if !senders.contains(&sender) {
                        senders.push(sender.clone());
                    }
                    let failure = loop {
                        if copy.lock.is_lost() {
                            return Received::Failed(Error::Unavailable(
                                "another replica took the copy over".to_owned(),
                            ));
                        }
                        match body.chunk().await {
                            Ok(Some(bytes)) => match incoming.append(bytes).await {
                                Ok(()) => {}
                                Err(error @ holdfast_store::Error::SizeMismatch { .. }) => {
                                    return Received::Wrong(senders, error.to_string());
                                }
                                Err(error) => return Received::Failed(error.into()),
                            },
                            Ok(None) if size.is_none_or(|size| size == incoming.offset()) => {
                                return Received::All(senders);
                            }
                            Ok(None) => {
                                break upstream::Error::Unavailable(
                                    "the body ended early".to_owned(),
                                );
                            }
                            Err(error) => break error,
                        }
                    };
                    // The next mirror goes on, if there is one.
                    avoid.retain(|url| *url != sender);
                    avoid.push(sender);
                    failure
                }
                // A server that cannot do this range may still send everything.
                Err(upstream::Error::Invalid(what)) if before > 0 && !whole => {
                    whole = true;
                    upstream::Error::Unavailable(what)
                }
                Err(error @ upstream::Error::Unavailable(_)) => error,
                Err(error) => return Received::Failed(error.into()),
            };
            attempts = if incoming.offset() >= before + STEP_BYTES {
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
}

/// The name of the lock of a blob's one filler.
pub(super) fn lock_name(digest: &Digest) -> String {
    format!("blob-{}-{}", digest.algorithm(), digest.hex())
}

enum Received {
    /// Everything, from these endpoints; not verified yet.
    All(Vec<String>),
    /// Bytes that cannot be right.
    Wrong(Vec<String>, String),
    /// No more to be had now.
    Failed(Error),
}
