//! The answer to a pull of a blob that is not stored: as soon as its first bytes have arrived, here
//! or at another replica.
//!
//! Only what a manifest of the repository names is answered, or what the upstream says that the
//! repository has.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use holdfast_core::{Digest, RepositoryName, rewrite};
use holdfast_store::Store;
use holdfast_upstream::{UpstreamRepository, Upstreams};

use super::{
    Error, Result,
    blob_copies::BlobCopies,
    candidates::Candidate,
    entry::{Entry, State},
    fan_out::Streams,
    manifests::{BlobClaims, Manifests},
    peer_stream::PeerStream,
    replicas::{Replicas, blob_lock_name, repo_lock_name},
    settings::Settings,
    sources::Sources,
};
use crate::pull_through::PulledBlob;

/// Interval between checks of what other replicas do on the volume.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Pulls of blobs.
pub(super) struct BlobPulls {
    store: Store,
    upstreams: Upstreams,
    manifests: Arc<Manifests>,
    sources: Arc<Sources>,
    copies: Arc<BlobCopies>,
    replicas: Arc<Replicas>,
    /// Streams from other replicas that several clients read.
    streams: Streams,
    /// How long a pull waits for what other replicas do.
    hold: Duration,
}

impl BlobPulls {
    pub(super) fn new(
        store: Store,
        upstreams: Upstreams,
        manifests: Arc<Manifests>,
        sources: Arc<Sources>,
        copies: Arc<BlobCopies>,
        replicas: Arc<Replicas>,
        settings: &Settings,
    ) -> Self {
        Self {
            store,
            upstreams,
            manifests,
            sources,
            copies,
            replicas,
            streams: Streams::default(),
            hold: settings.hold,
        }
    }

    /// The blob, as soon as its first bytes can be read.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub(super) async fn blob(&self, repo: &RepositoryName, digest: &Digest) -> Result<PulledBlob> {
        if let Err(forbidden) = self.sources.permit_repository(repo) {
            let stored = self.store.open_repo_blob(repo, digest).await?;
            return stored.map(PulledBlob::Stored).ok_or(forbidden);
        }
        // Only what a manifest of this repository names: this is no way to blobs of other
        // repositories.
        let mut seen = HashSet::new();
        let named = match self.manifests.claims(repo, digest, &mut seen).await? {
            Some(named) => named,
            None => match self.named_elsewhere(repo, digest, &mut seen).await? {
                Some(named) => named,
                None => self.named_upstream(repo, digest).await?,
            },
        };
        let size = named.size();
        let source = self.sources.of_blob(repo, digest).await;
        let deadline = Instant::now() + self.hold;
        let mut begun_by_others = 0;
        loop {
            let store = &self.store;
            if let Some(file) = store.open_repo_blob(repo, digest).await? {
                return Ok(PulledBlob::Stored(file));
            }
            // The digest decides about the blob, not the claims of its manifest.
            if store.stat_blob(digest).await?.is_some() {
                if self.may_read(source.as_ref(), &named, digest).await? {
                    store.link_blob(repo, digest).await?;
                } else if Instant::now() >= deadline {
                    return Err(Error::NotAllowed);
                } else {
                    // The replica that copies it links it.
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
                continue;
            }
            let (entry, ours) = self.join(source.as_ref(), repo, digest, &named);
            let state = tokio::select! {
                biased;
                state = entry.readable() => state,
                error = given_up(&ours), if !ours.is_empty() => return Err(error),
            };
            match state {
                State::Growing(growing) => {
                    if !entry.is_authorized(repo) {
                        if !self.may_read(source.as_ref(), &named, digest).await? {
                            return Err(Error::NotAllowed);
                        }
                        self.authorize_for(&entry, repo, digest).await?;
                    }
                    return Ok(PulledBlob::Growing(growing.claiming(size)));
                }
                State::Elsewhere(_) => {
                    if named.is_stored {
                        self.authorize_for(&entry, repo, digest).await?;
                    }
                    if let Some((host, _)) = rewrite::upstream_of(repo) {
                        entry.waits(|| self.upstreams.wait(&host));
                    }
                    let relay = PeerStream {
                        store: self.store.clone(),
                        copies: Arc::clone(&self.copies),
                        peers: Arc::clone(&self.replicas.peers),
                        source,
                        repo: repo.clone(),
                        digest: digest.clone(),
                        size,
                        authorized: named.is_stored,
                    };
                    let shared = self.streams.share(repo, digest, Arc::new(relay));
                    return Ok(PulledBlob::Remote(Box::new(shared)));
                }
                State::Failed(error) if begun_by_others > 2 => return Err(error),
                State::Failed(_) => {
                    if let Some(error) = ours.iter().find_map(|one| one.given_up().now_or_never()) {
                        return Err(error);
                    }
                    begun_by_others += 1;
                }
                State::Starting | State::Done => {}
            }
        }
    }

    /// Joins the copy of a blob with each size that the repository's manifests claim.
    fn join(
        &self,
        source: Option<&UpstreamRepository>,
        repo: &RepositoryName,
        digest: &Digest,
        named: &BlobClaims,
    ) -> (Entry, Vec<Arc<Candidate>>) {
        let mut ours = Vec::new();
        let claims = named.claims();
        let (mut entry, first) = self.copies.begin(source, repo, digest, claims[0]);
        ours.extend(first);
        for claim in claims.into_iter().skip(1) {
            let (joined, candidate) = self.copies.begin(source, repo, digest, claim);
            entry = joined;
            ours.extend(candidate);
        }
        (entry, ours)
    }

    /// The upstream let this repository's credentials read what is copied: it is linked once it is
    /// there.
    async fn authorize_for(
        &self,
        entry: &Entry,
        repo: &RepositoryName,
        digest: &Digest,
    ) -> Result<()> {
        if entry.authorize(repo) && self.store.stat_blob(digest).await?.is_some() {
            self.store.link_blob(repo, digest).await?;
        }
        Ok(())
    }

    /// Whether this repository may also use a blob that was copied for another one. `false` if no
    /// source can be asked.
    async fn may_read(
        &self,
        source: Option<&UpstreamRepository>,
        named: &BlobClaims,
        digest: &Digest,
    ) -> Result<bool> {
        match source {
            _ if named.is_stored => Ok(true),
            Some(source) => self.copies.authorize(source, digest).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// What a manifest says that another replica has and has not stored yet: a client may get the
    /// manifest there and ask here for the blob.
    async fn named_elsewhere(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
        seen: &mut HashSet<Digest>,
    ) -> Result<Option<BlobClaims>> {
        let deadline = Instant::now() + self.hold;
        let locks = [repo_lock_name(repo), blob_lock_name(digest)];
        loop {
            let mut others = Vec::new();
            for lock in &locks {
                others.extend(self.replicas.holder(lock).await?);
            }
            if others.is_empty() {
                // It may have been stored while we asked who does it.
                return self.manifests.claims(repo, digest, seen).await;
            }
            for owner in others {
                let peers = &self.replicas.peers;
                let sizes = peers.named(&owner.address, repo, digest).await;
                if !sizes.is_empty() {
                    return Ok(Some(BlobClaims::unstored(sizes)));
                }
            }
            if let Some(named) = self.manifests.claims(repo, digest, seen).await? {
                return Ok(Some(named));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// A blob that no manifest here names: a copy may have broken off, or the replica that had the
    /// manifest is gone, after a client got the manifest. Whether the repository has the blob,
    /// the upstream says, to the repository's own credentials.
    async fn named_upstream(&self, repo: &RepositoryName, digest: &Digest) -> Result<BlobClaims> {
        let source = self.sources.of_settings(repo).ok_or(Error::NotFound)?;
        let size = self.upstreams.has_blob(&source, digest).await?;
        Ok(BlobClaims::unstored(size.into_iter().collect()))
    }
}

/// Resolves when the copy gave all of these sources up, with the reason of the last.
async fn given_up(all: &[Arc<Candidate>]) -> Error {
    let mut last = Error::NotAllowed;
    for one in all {
        last = one.given_up().await;
    }
    last
}
