//! The answer to a pull that misses: a manifest as soon as it is verified, a blob as soon as its
//! first bytes have arrived.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use holdfast_api::fill::Priority;
use holdfast_core::{Digest, ManifestRef, RepositoryName, Tag, rewrite};

use super::{
    Error, Fills, Result, blob_copy, candidates::Candidate, entry::State, image::repo_lock_name,
    manifests::BlobClaims, peer_stream::PeerStream, pending_manifests::PendingManifest,
};
use crate::pull_through::{self, Freshness, PulledBlob};
use holdfast_runtime::time_limit::within;
use holdfast_upstream::{self as upstream, Requester, SharedPriority, UpstreamRepository};

/// Interval between checks of what other replicas do on the volume.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

impl pull_through::PullThrough for Fills {
    fn fetches(&self, repo: &RepositoryName) -> bool {
        self.inner.sources.fetches(repo)
    }

    fn manifest<'a>(
        &'a self,
        repo: &'a RepositoryName,
        reference: &'a ManifestRef,
    ) -> BoxFuture<'a, Result<pull_through::Manifest>> {
        Box::pin(async move {
            let entry = self.pull_manifest(repo, reference).await?;
            Ok(pull_through::Manifest {
                digest: entry.digest,
                bytes: entry.bytes,
            })
        })
    }

    fn blob<'a>(
        &'a self,
        repo: &'a RepositoryName,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<PulledBlob>> {
        Box::pin(self.pull_blob(repo, digest))
    }

    fn served(&self, kind: &'static str, is_hit: bool, bytes: u64) {
        self.metrics().proxy.served(kind, is_hit, bytes);
    }

    fn tags<'a>(&'a self, repo: &'a RepositoryName) -> BoxFuture<'a, pull_through::Listed<Tag>> {
        Box::pin(self.list_tags(repo))
    }

    fn referrers<'a>(
        &'a self,
        repo: &'a RepositoryName,
        subject: &'a Digest,
    ) -> BoxFuture<'a, pull_through::Listed<pull_through::Referrer>> {
        Box::pin(self.list_referrers(repo, subject))
    }

    fn revalidate<'a>(
        &'a self,
        repo: &'a RepositoryName,
        tag: &'a Tag,
        local: &'a Digest,
    ) -> BoxFuture<'a, Freshness> {
        Box::pin(self.revalidate_tag(repo, tag, local))
    }
}

impl Fills {
    async fn pull_manifest(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<PendingManifest> {
        let mut asks = false;
        let waits = async {
            loop {
                if let Some(entry) = self.inner.manifests.known(repo, reference).await? {
                    return Ok(entry);
                }
                self.inner.sources.permit_repository(repo)?;
                if let Some(source) = self.inner.sources.of_manifest(repo, reference).await {
                    asks = true;
                    return self.begin_image(&source, repo, reference).await;
                }
                if let Some(entry) = self.ask_owner(repo, reference).await? {
                    return Ok(entry);
                }
                if !self.inner.settings.has_controller {
                    return Err(Error::NotListed);
                }
                // The controller may be about to name it, or another replica to finish it.
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        match within(self.inner.settings.hold, waits).await {
            Some(outcome) => outcome,
            // It continues; a client that asks again joins it.
            None if asks => Err(Error::Unavailable(
                "the upstream did not send the manifest in time".to_owned(),
            )),
            None => Err(Error::NotAllowed),
        }
    }

    /// Begins to fill an image and returns when its manifest is verified; the rest goes on alone.
    async fn begin_image(
        &self,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<PendingManifest> {
        let mut changed = self.inner.manifests.changed();
        // The pulls of its blobs will show which of them a client waits for.
        let source = &UpstreamRepository {
            priority: SharedPriority::new(Priority::Running).on_behalf_of(Requester::current()),
            ..source.clone()
        };
        let platforms = &self.inner.settings.platforms;
        let fill = self.image_for_pull(source, repo, reference, platforms);
        let mut fill = std::pin::pin!(fill);
        loop {
            tokio::select! {
                biased;
                result = &mut fill => {
                    let filled = result;
                    // The manifest may have been good and a blob not: the client learns that from
                    // the blob.
                    return match (self.inner.manifests.known(repo, reference).await?, filled) {
                        (Some(entry), _) => Ok(entry),
                        (None, Err(error)) => Err(error),
                        (None, Ok(_)) => Err(Error::NotFound),
                    };
                }
                _ = changed.changed() => {
                    if let Some(entry) = self.inner.manifests.pending(repo, reference) {
                        return Ok(entry);
                    }
                }
            }
        }
    }

    /// Asks the replica that fills images of this repository, if there is one.
    async fn ask_owner(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<Option<PendingManifest>> {
        let Some(owner) = self.inner.store.lock_holder(&repo_lock_name(repo)).await? else {
            return Ok(None);
        };
        if owner == self.inner.owner || owner.address.is_empty() {
            return Ok(None);
        }
        let (peers, memory) = (&self.inner.peers, self.inner.upstreams.memory());
        let found = peers.manifest(&owner.address, repo, reference, memory);
        let Some((bytes, reserved)) = found.await else {
            return Ok(None);
        };
        let algorithm = match reference {
            ManifestRef::Digest(digest) => digest.algorithm(),
            ManifestRef::Tag(_) => holdfast_core::Algorithm::Sha256,
        };
        let digest = holdfast_store::Hasher::digest(algorithm, &bytes);
        if matches!(reference, ManifestRef::Digest(wanted) if *wanted != digest) {
            return Ok(None);
        }
        let manifest = upstream::Manifest::new(digest, bytes, reserved);
        self.inner.manifests.add(repo, reference, &manifest)?;
        Ok(self.inner.manifests.pending(repo, reference))
    }

    async fn pull_blob(&self, repo: &RepositoryName, digest: &Digest) -> Result<PulledBlob> {
        if let Err(forbidden) = self.inner.sources.permit_repository(repo) {
            let stored = self.inner.store.open_repo_blob(repo, digest).await?;
            return stored.map(PulledBlob::Stored).ok_or(forbidden);
        }
        // Only what a manifest of this repository names: this is no way to blobs of other
        // repositories.
        let mut seen = HashSet::new();
        let named = match self.inner.manifests.claims(repo, digest, &mut seen).await? {
            Some(named) => named,
            None => match self.named_elsewhere(repo, digest, &mut seen).await? {
                Some(named) => named,
                None => self.named_upstream(repo, digest).await?,
            },
        };
        let size = named.size();
        let source = self.inner.sources.of_blob(repo, digest).await;
        let deadline = Instant::now() + self.inner.settings.hold;
        let mut begun_by_others = 0;
        loop {
            let store = &self.inner.store;
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
                        entry.waits(|| self.inner.upstreams.wait(&host));
                    }
                    let relay = PeerStream {
                        store: self.inner.store.clone(),
                        copies: Arc::clone(&self.inner.copies),
                        peers: Arc::clone(&self.inner.peers),
                        source,
                        repo: repo.clone(),
                        digest: digest.clone(),
                        size,
                        authorized: named.is_stored,
                    };
                    let shared = self.inner.streams.share(repo, digest, Arc::new(relay));
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
    ) -> (super::entry::Entry, Vec<Arc<Candidate>>) {
        let mut ours = Vec::new();
        let claims = named.claims();
        let (mut entry, first) = self.inner.copies.begin(source, repo, digest, claims[0]);
        ours.extend(first);
        for claim in claims.into_iter().skip(1) {
            let (joined, candidate) = self.inner.copies.begin(source, repo, digest, claim);
            entry = joined;
            ours.extend(candidate);
        }
        (entry, ours)
    }

    /// The upstream let this repository's credentials read what is copied: it is linked once it is
    /// there.
    async fn authorize_for(
        &self,
        entry: &super::entry::Entry,
        repo: &RepositoryName,
        digest: &Digest,
    ) -> Result<()> {
        if entry.authorize(repo) && self.inner.store.stat_blob(digest).await?.is_some() {
            self.inner.store.link_blob(repo, digest).await?;
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
            Some(source) => self
                .inner
                .copies
                .authorize(source, digest)
                .await
                .map(|()| true),
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
        let deadline = Instant::now() + self.inner.settings.hold;
        let locks = [repo_lock_name(repo), blob_copy::lock_name(digest)];
        loop {
            let mut others = Vec::new();
            for lock in &locks {
                let owner = self.inner.store.lock_holder(lock).await?;
                others.extend(
                    owner.filter(|owner| *owner != self.inner.owner && !owner.address.is_empty()),
                );
            }
            if others.is_empty() {
                // It may have been stored while we asked who does it.
                return self.inner.manifests.claims(repo, digest, seen).await;
            }
            for owner in others {
                let peers = &self.inner.peers;
                let sizes = peers.named(&owner.address, repo, digest).await;
                if !sizes.is_empty() {
                    return Ok(Some(BlobClaims::unstored(sizes)));
                }
            }
            if let Some(named) = self.inner.manifests.claims(repo, digest, seen).await? {
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
        let source = self
            .inner
            .sources
            .of_settings(repo)
            .ok_or(Error::NotFound)?;
        let size = self.inner.upstreams.has_blob(&source, digest).await?;
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
