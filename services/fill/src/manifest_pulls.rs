//! The answer to a pull of a manifest that is not stored: as soon as it is verified, here or at
//! another replica.

use std::{sync::Arc, time::Duration};

use holdfast_api::fill::Priority;
use holdfast_core::{Algorithm, ManifestRef, RepositoryName};
use holdfast_runtime::time_limit::within;
use holdfast_store::Hasher;
use holdfast_upstream::{
    self as upstream, Requester, SharedPriority, UpstreamRepository, Upstreams,
};

use super::{
    Error, Result,
    image_fills::ImageFills,
    manifests::Manifests,
    pending_manifests::PendingManifest,
    replicas::{Replicas, repo_lock_name},
    settings::Settings,
    sources::Sources,
};

/// Interval between checks of what other replicas do on the volume.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Pulls of manifests.
pub(super) struct ManifestPulls {
    upstreams: Upstreams,
    manifests: Arc<Manifests>,
    sources: Arc<Sources>,
    images: Arc<ImageFills>,
    replicas: Arc<Replicas>,
    /// The platforms that a pull copies of an index.
    platforms: Vec<String>,
    /// How long a pull waits.
    hold: Duration,
    /// Whether fill requests may come.
    has_controller: bool,
}

impl ManifestPulls {
    pub(super) fn new(
        upstreams: Upstreams,
        manifests: Arc<Manifests>,
        sources: Arc<Sources>,
        images: Arc<ImageFills>,
        replicas: Arc<Replicas>,
        settings: &Settings,
    ) -> Self {
        Self {
            upstreams,
            manifests,
            sources,
            images,
            replicas,
            platforms: settings.platforms.clone(),
            hold: settings.hold,
            has_controller: settings.has_controller,
        }
    }

    /// The manifest, as soon as it is verified. Its image is copied behind the answer.
    ///
    /// # Errors
    /// Why there is none within the time for which a pull is held.
    pub(super) async fn manifest(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<PendingManifest> {
        let mut asks = false;
        let waits = async {
            loop {
                if let Some(entry) = self.manifests.known(repo, reference).await? {
                    return Ok(entry);
                }
                self.sources.permit_repository(repo)?;
                if let Some(source) = self.sources.of_manifest(repo, reference).await {
                    asks = true;
                    return self.begin_image(&source, repo, reference).await;
                }
                if let Some(entry) = self.ask_owner(repo, reference).await? {
                    return Ok(entry);
                }
                if !self.has_controller {
                    return Err(Error::NotListed);
                }
                // The controller may be about to name it, or another replica to finish it.
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        match within(self.hold, waits).await {
            Some(outcome) => outcome,
            // It continues; a client that asks again joins it.
            None if asks => Err(Error::Unavailable(
                "the upstream did not send the manifest in time".to_owned(),
            )),
            None => Err(Error::NotAllowed),
        }
    }

    /// Begins to fill an image and returns when its manifest is verified; the rest goes on alone.
    pub(super) async fn begin_image(
        &self,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<PendingManifest> {
        let mut changed = self.manifests.changed();
        // It may be pending since the caller looked; that is not announced again.
        if let Some(entry) = self.manifests.pending(repo, reference) {
            return Ok(entry);
        }
        // The pulls of its blobs will show which of them a client waits for.
        let source = &UpstreamRepository {
            priority: SharedPriority::new(Priority::Running).on_behalf_of(Requester::current()),
            ..source.clone()
        };
        let platforms = &self.platforms;
        let fill = self
            .images
            .fill_for_pull(source, repo, reference, platforms);
        let mut fill = std::pin::pin!(fill);
        loop {
            tokio::select! {
                biased;
                filled = &mut fill => {
                    // The manifest may have been good and a blob not: the client learns that from
                    // the blob.
                    return match (self.manifests.known(repo, reference).await?, filled) {
                        (Some(entry), _) => Ok(entry),
                        (None, Err(error)) => Err(error),
                        (None, Ok(_)) => Err(Error::NotFound),
                    };
                }
                _ = changed.changed() => {
                    if let Some(entry) = self.manifests.pending(repo, reference) {
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
        let Some(owner) = self.replicas.holder(&repo_lock_name(repo)).await? else {
            return Ok(None);
        };
        let (peers, memory) = (&self.replicas.peers, self.upstreams.memory());
        let found = peers.manifest(&owner.address, repo, reference, memory);
        let Some((bytes, reserved)) = found.await else {
            return Ok(None);
        };
        let algorithm = match reference {
            ManifestRef::Digest(digest) => digest.algorithm(),
            ManifestRef::Tag(_) => Algorithm::Sha256,
        };
        let digest = Hasher::digest(algorithm, &bytes);
        if matches!(reference, ManifestRef::Digest(wanted) if *wanted != digest) {
            return Ok(None);
        }
        let manifest = upstream::Manifest::new(digest, bytes, reserved);
        self.manifests.add(repo, reference, &manifest)?;
        Ok(self.manifests.pending(repo, reference))
    }
}
