//! The other replicas, as the locks on the volume name them.

use std::sync::Arc;

use holdfast_core::{Algorithm, Digest, RepositoryName};
use holdfast_store::{Hasher, LockHolder, Store};

use super::{Result, peers::Peers};

/// The name of the lock of a blob's one filler.
pub(super) fn blob_lock_name(digest: &Digest) -> String {
    format!("blob-{}-{}", digest.algorithm(), digest.hex())
}

/// The name of the lock that tells other replicas who fills images of a repository.
pub(super) fn repo_lock_name(repo: &RepositoryName) -> String {
    let digest = Hasher::digest(Algorithm::Sha256, repo.as_str().as_bytes());
    format!("repo-{}", digest.hex())
}

/// The replicas that hold locks on the volume.
pub(super) struct Replicas {
    store: Store,
    /// This replica.
    own: LockHolder,
    pub(super) peers: Arc<Peers>,
}

impl Replicas {
    pub(super) fn new(store: Store, own: LockHolder, peers: Arc<Peers>) -> Self {
        Self { store, own, peers }
    }

    /// The other replica that holds a lock, if it can be asked.
    pub(super) async fn holder(&self, lock: &str) -> Result<Option<LockHolder>> {
        let holder = self.store.lock_holder(lock).await?;
        Ok(holder.filter(|holder| *holder != self.own && !holder.address.is_empty()))
    }
}
