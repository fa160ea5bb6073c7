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
    Error, Fills, Result, blob, candidates::Candidate, entry::State, image::repo_lock_name,
    peer_stream::PeerStream, pending_manifests::PendingManifest,
};
use crate::{
    limits::SEARCHED_MANIFESTS,
    pull_through::{self, Freshness, PulledBlob},
};
use holdfast_runtime::time_limit::within;
use holdfast_upstream::{self as upstream, Login, Requester, SharedPriority, UpstreamRepository};

/// Interval between checks of what other replicas do on the volume.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The claims of a repository's manifests about a blob.
#[derive(Debug, Clone)]
struct BlobClaims {
    /// The sizes that they claim: several when they do not agree. None: no manifest is here, and
    /// the upstream, which has the blob, does not say its size.
    sizes: Vec<u64>,
    /// Whether that manifest is in the store: then everything that it names was this repository's
    /// once.
    is_stored: bool,
}

impl BlobClaims {
    /// The size that clients get before it is verified; `None` when manifests do not agree.
    fn size(&self) -> Option<u64> {
        match self.sizes[..] {
            [size] => Some(size),
            _ => None,
        }
    }

    /// The claims that a copy is joined with: each is its manifest's own.
    fn claims(&self) -> Vec<Option<u64>> {
        if self.sizes.is_empty() {
            return vec![None];
        }
        self.sizes.iter().copied().map(Some).collect()
    }
}

impl pull_through::PullThrough for Fills {
    fn fetches(&self, repo: &RepositoryName) -> bool {
        rewrite::upstream_of(repo).is_some_and(|(host, _)| {
            self.permit(&host).is_ok()
                && (self.pulls_through(&host) || self.inner.grants.names(repo, Instant::now()))
        })
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
    /// Where a pull may fetch a manifest from, and with what: `None` when neither a fill request
    /// nor the settings name it.
    pub(super) async fn source_of(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<Option<UpstreamRepository>> {
        let exactly = self.inner.grants.exactly(repo, reference, Instant::now());
        let granted = match (exactly, reference) {
            (Some(logins), _) => Some(logins),
            (None, ManifestRef::Digest(digest)) => self.reachable(repo, digest).await?,
            (None, ManifestRef::Tag(_)) => None,
        };
        Ok(self.source(repo, granted))
    }

    pub(super) fn source(
        &self,
        repo: &RepositoryName,
        granted: Option<Vec<Login>>,
    ) -> Option<UpstreamRepository> {
        let (host, repository) = rewrite::upstream_of(repo)?;
        self.permit(&host).ok()?;
        let is_listed = self.pulls_through(&host);
        let logins = granted.or_else(|| is_listed.then(Vec::new))?;
        Some(UpstreamRepository {
            host,
            repository,
            logins,
            priority: SharedPriority::default().on_behalf_of(Requester::current()),
        })
    }

    /// The credentials of the requests that led to something from which `wanted`, a manifest or a
    /// blob, is reachable.
    async fn reachable(
        &self,
        repo: &RepositoryName,
        wanted: &Digest,
    ) -> Result<Option<Vec<Login>>> {
        let now = Instant::now();
        let roots = self.inner.grants.roots(repo, now);
        let leads = self.leading_to(repo, roots, wanted).await;
        Ok(self.inner.grants.of_roots(repo, &leads, now))
    }

    async fn pull_manifest(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<PendingManifest> {
        let mut asks = false;
        let waits = async {
            loop {
                if let Some(entry) = self.known(repo, reference).await? {
                    return Ok(entry);
                }
                self.permit_repository(repo)?;
                if let Some(source) = self.source_of(repo, reference).await? {
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

    /// A manifest that is verified in memory or already stored.
    async fn known(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<Option<PendingManifest>> {
        if let Some(entry) = self.inner.pending_manifests.manifest(repo, reference) {
            return Ok(Some(entry));
        }
        let stored = match reference {
            ManifestRef::Tag(tag) => self.inner.store.tagged_manifest(repo, tag).await?,
            ManifestRef::Digest(digest) => self
                .inner
                .store
                .manifest(repo, digest)
                .await?
                .map(|bytes| (digest.clone(), bytes)),
        };
        Ok(stored.map(|(digest, bytes)| PendingManifest {
            digest,
            media_type: "",
            bytes,
        }))
    }

    /// Begins to fill an image and returns when its manifest is verified; the rest goes on alone.
    async fn begin_image(
        &self,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<PendingManifest> {
        let mut changed = self.inner.pending_manifests.changed();
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
                    return match (self.known(repo, reference).await?, filled) {
                        (Some(entry), _) => Ok(entry),
                        (None, Err(error)) => Err(error),
                        (None, Ok(_)) => Err(Error::NotFound),
                    };
                }
                _ = changed.changed() => {
                    if let Some(entry) = self.inner.pending_manifests.manifest(repo, reference) {
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
        self.arrived(
            repo,
            reference,
            &upstream::Manifest::new(digest, bytes, reserved),
        )?;
        Ok(self.inner.pending_manifests.manifest(repo, reference))
    }

    async fn pull_blob(&self, repo: &RepositoryName, digest: &Digest) -> Result<PulledBlob> {
        if let Err(forbidden) = self.permit_repository(repo) {
            let stored = self.inner.store.open_repo_blob(repo, digest).await?;
            return stored.map(PulledBlob::Stored).ok_or(forbidden);
        }
        // Only what a manifest of this repository names: this is no way to blobs of other
        // repositories.
        let mut seen = HashSet::new();
        let named = match self.named(repo, digest, &mut seen).await? {
            Some(named) => named,
            None => match self.named_elsewhere(repo, digest, &mut seen).await? {
                Some(named) => named,
                None => self.named_upstream(repo, digest).await?,
            },
        };
        let size = named.size();
        let granted = self.reachable(repo, digest).await?;
        let source = self.source(repo, granted);
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
                        fills: self.clone(),
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
        let (mut entry, first) = self.begin(source, repo, digest, claims[0]);
        ours.extend(first);
        for claim in claims.into_iter().skip(1) {
            let (joined, candidate) = self.begin(source, repo, digest, claim);
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
            Some(source) => self.authorize(source, digest).await.map(|()| true),
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
        let locks = [repo_lock_name(repo), blob::lock_name(digest)];
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
                return self.named(repo, digest, seen).await;
            }
            for owner in others {
                let peers = &self.inner.peers;
                let sizes = peers.named(&owner.address, repo, digest).await;
                if !sizes.is_empty() {
                    return Ok(Some(BlobClaims {
                        sizes,
                        is_stored: false,
                    }));
                }
            }
            if let Some(named) = self.named(repo, digest, seen).await? {
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
        let source = self.source(repo, None).ok_or(Error::NotFound)?;
        let size = self.inner.upstreams.has_blob(&source, digest).await?;
        Ok(BlobClaims {
            sizes: size.into_iter().collect(),
            is_stored: false,
        })
    }

    /// What the repository's manifests say of a blob: those on their way, then all that there are
    /// and were not `seen` before.
    async fn named(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
        seen: &mut HashSet<Digest>,
    ) -> Result<Option<BlobClaims>> {
        let sizes = self.inner.pending_manifests.blob(repo, digest);
        if !sizes.is_empty() {
            return Ok(Some(BlobClaims {
                sizes,
                is_stored: false,
            }));
        }
        let store = &self.inner.store;
        let revisions = store.revisions(repo, SEARCHED_MANIFESTS).await?;
        let claimed = self.claimed(repo, digest, revisions.unwrap_or_default(), seen);
        Ok(claimed.await.map(|size| BlobClaims {
            sizes: vec![size],
            is_stored: true,
        }))
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
