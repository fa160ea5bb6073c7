//! The copies of blobs: one for each digest in the process, which every request for the digest
//! joins.
//!
//! A repository may read a blob only after its own credentials fetched it, or after the upstream
//! confirmed that they may. Bytes on the volume, or a copy for another repository, grant nothing.

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use holdfast_api::fill::Priority;
use holdfast_core::{Digest, RepositoryName};
use holdfast_store::PartialBlob;
use holdfast_upstream::{SharedPriority, UpstreamRepository};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::{
    Error, Result,
    blob_copy::BlobCopier,
    candidates::Candidate,
    entry::{Entry, State},
    failures,
};

/// Interval between checks for the link that another replica makes.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Checks for the link that another replica makes right after it copied a blob.
const LINK_CHECKS: u32 = 5;

/// What this process has of a blob that arrives.
pub(crate) enum Growing {
    /// Its growing file.
    Local(PartialBlob),
    /// Bytes that the named repository may not read.
    NotAuthorized,
    /// No bytes so far.
    NotYet,
    /// Nothing.
    Nothing,
}

/// The copies of blobs that run in this process, one for each digest.
pub(super) struct BlobCopies {
    copier: BlobCopier,
    running: Mutex<HashMap<Digest, Entry>>,
}

impl BlobCopies {
    pub(super) fn new(copier: BlobCopier) -> Self {
        Self {
            copier,
            running: Mutex::default(),
        }
    }

    pub(super) fn running(&self) -> MutexGuard<'_, HashMap<Digest, Entry>> {
        self.running.lock()
    }

    /// Joins the fill of a blob in this process, or begins it, with a source and the size that its
    /// manifest claims. A source that cannot join, because there are too many, waits for the
    /// others.
    pub(super) fn begin(
        self: &Arc<Self>,
        source: Option<&UpstreamRepository>,
        repo: &RepositoryName,
        digest: &Digest,
        claim: Option<u64>,
    ) -> (Entry, Option<Arc<Candidate>>) {
        let mut blobs = self.running();
        let join = |entry: &Entry| {
            let source = UpstreamRepository {
                priority: entry.priority.clone(),
                ..source?.clone()
            };
            entry.candidates.join(&source, repo, claim)
        };
        if let Some(running) = blobs.get(digest).cloned() {
            drop(blobs);
            if let Some(source) = source {
                let upstreams = &self.copier.upstreams;
                upstreams.join(&running.priority, &source.priority);
            }
            let candidate = join(&running);
            return (running, candidate);
        }
        let (announce, state) = watch::channel(State::Starting);
        let priority =
            source.map_or_else(SharedPriority::default, |source| source.priority.clone());
        let entry = Entry::new(state, priority);
        let candidate = join(&entry);
        blobs.insert(digest.clone(), entry.clone());
        let (copies, digest, ours) = (Arc::clone(self), digest.clone(), entry.clone());
        // A task of its own: every request may leave.
        tokio::spawn(async move {
            // A panic must remove the entry: every later request would join it.
            let copy = copies.copier.run(&digest, &ours, &announce);
            let result = AssertUnwindSafe(copy)
                .catch_unwind()
                .await
                .unwrap_or(Err(Error::Store("panic")));
            ours.candidates.end(&result);
            copies.link(&digest, &ours, result.is_ok()).await;
            copies.running().remove(&digest);
            let label = result.as_ref().map_or_else(Error::label, |()| "ok");
            copies.copier.metrics.ended("blob", label);
            match result {
                Ok(()) => announce.send_replace(State::Done),
                Err(error) => {
                    failures::log_blob(&copies.copier.upstreams, &digest, &error);
                    announce.send_replace(State::Failed(error))
                }
            };
        });
        (entry, candidate)
    }

    /// Links the copied blob into every repository that may read it.
    async fn link(&self, digest: &Digest, entry: &Entry, is_stored: bool) {
        for repo in entry.close().iter().filter(|_| is_stored) {
            if let Err(error) = self.copier.store.link_blob(repo, digest).await {
                tracing::warn!(image.digest = %digest, %error, "a copied blob was not linked");
            }
        }
    }

    /// Fills a blob for a repository, waits for its end and links it. A fill that another request
    /// began with other credentials is tried again with those of this one.
    pub(super) async fn complete(
        self: &Arc<Self>,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        digest: &Digest,
        size: u64,
    ) -> Result<()> {
        let store = &self.copier.store;
        loop {
            if let Some(found) = store.stat_blob(digest).await? {
                has_size(digest, size, found)?;
                if !store.repo_has_blob(repo, digest).await? {
                    self.authorize(source, digest).await?;
                    store.link_blob(repo, digest).await?;
                }
                return Ok(());
            }
            let (entry, candidate) = self.begin(Some(source), repo, digest, Some(size));
            let ended = match &candidate {
                Some(candidate) => tokio::select! {
                    biased;
                    error = candidate.given_up() => return Err(error),
                    ended = entry.ended() => ended,
                },
                None => entry.ended().await,
            };
            match ended {
                // Whether it has this manifest's size is looked at above.
                Some(Ok(())) if entry.is_authorized(repo) => store.link_blob(repo, digest).await?,
                // Another replica copied it, and links it if that was for this repository.
                Some(Ok(())) => {
                    for _ in 0..LINK_CHECKS {
                        if store.repo_has_blob(repo, digest).await? {
                            break;
                        }
                        tokio::time::sleep(POLL_INTERVAL).await;
                    }
                }
                // This source was not part of that copy.
                Some(Err(_)) => {}
                None => return Err(Error::Busy("the registry is shutting down".to_owned())),
            }
        }
    }

    /// Asks the upstream whether the source's credentials may read a blob.
    pub(super) async fn authorize(
        &self,
        source: &UpstreamRepository,
        digest: &Digest,
    ) -> Result<()> {
        self.copier.upstreams.has_blob(source, digest).await?;
        Ok(())
    }

    /// What another replica may read of a blob that this process copies, for a repository if one is
    /// named. Its request means that a client waits.
    pub(super) fn growing(&self, digest: &Digest, repo: Option<&RepositoryName>) -> Growing {
        let Some(entry) = self.running().get(digest).cloned() else {
            return Growing::Nothing;
        };
        let upstreams = &self.copier.upstreams;
        upstreams.raise(&entry.priority, Priority::Blocking);
        match &*entry.state.borrow() {
            State::Growing(_) if repo.is_some_and(|repo| !entry.is_authorized(repo)) => {
                Growing::NotAuthorized
            }
            State::Growing(growing) => Growing::Local(growing.clone()),
            State::Starting => Growing::NotYet,
            _ => Growing::Nothing,
        }
    }

    /// Adds a source that another replica offers to a copy that runs here. `false`: none runs, or
    /// it takes no further sources.
    pub(super) fn take_offer(
        &self,
        digest: &Digest,
        claim: Option<u64>,
        source: UpstreamRepository,
        repo: &RepositoryName,
    ) -> bool {
        let Some(entry) = self.running().get(digest).cloned() else {
            return false;
        };
        if matches!(*entry.state.borrow(), State::Elsewhere(_)) {
            return false;
        }
        let level = source.priority.level();
        self.copier.upstreams.raise(&entry.priority, level);
        let source = UpstreamRepository {
            priority: entry.priority.clone(),
            ..source
        };
        entry.candidates.take(&source, repo, claim).is_some()
    }
}

/// Compares the size of a stored blob, which its digest proves, with what a manifest claims.
///
/// # Errors
/// [`Error::Invalid`] when the claim is wrong.
fn has_size(digest: &Digest, claim: u64, found: u64) -> Result<()> {
    if claim == found {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{digest} has {found} bytes, its manifest says {claim}"
    )))
}
