//! Remembers what the manifests of a repository name, so that a request for something that none of
//! them names does not read all of them again. A manifest never changes, so its entry stays true.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Weak},
    time::Instant,
};

use holdfast_core::{Digest, RepositoryName, oci::Manifest};
use parking_lot::{Mutex, MutexGuard};

use super::wanted;
use crate::limits::{NAMES_BYTES, SEARCHED_BYTES};
use holdfast_core::shares::Shares;

/// What a name takes in memory as a digest, bytes.
const DIGEST_COST: usize = 160;

/// What a manifest names.
#[derive(Debug)]
pub(super) struct Summary {
    /// Hashes of its blobs with a secret key, in order: a tenth of the memory of their digests.
    blobs: Box<[u64]>,
    /// What an index lists.
    children: Box<[Digest]>,
}

impl Summary {
    fn cost(&self) -> usize {
        4 * DIGEST_COST + 8 * self.blobs.len() + DIGEST_COST * self.children.len()
    }

    /// Whether it names the blob of this hash.
    pub(super) fn names(&self, blob: u64) -> bool {
        self.blobs.binary_search(&blob).is_ok()
    }

    /// The entries of an index.
    pub(super) fn children(&self) -> &[Digest] {
        &self.children
    }
}

type SummaryCache = Shares<RepositoryName, (RepositoryName, Digest), Arc<Summary>>;

/// What manifests name. Each repository has a share of the memory.
pub(super) struct Names {
    hasher: RandomState,
    held: Mutex<SummaryCache>,
    searches: Mutex<HashMap<RepositoryName, Weak<tokio::sync::Mutex<()>>>>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            held: Mutex::new(Shares::new(NAMES_BYTES, usize::MAX)),
            searches: Mutex::default(),
        }
    }
}

impl Names {
    fn held(&self) -> MutexGuard<'_, SummaryCache> {
        self.held.lock()
    }

    pub(super) fn hash(&self, blob: &Digest) -> u64 {
        self.hasher.hash_one(blob)
    }

    /// What is remembered of a manifest of a repository.
    pub(super) fn get(&self, key: &(RepositoryName, Digest)) -> Option<Arc<Summary>> {
        self.held().get(key).map(Arc::clone)
    }

    /// Remembers what a manifest of a repository names.
    pub(super) fn insert(
        &self,
        repo: &RepositoryName,
        key: (RepositoryName, Digest),
        summary: &Arc<Summary>,
    ) {
        let entry = (Arc::clone(summary), summary.cost());
        self.held().insert(repo, key, entry, Instant::now());
    }

    pub(super) fn summary(&self, manifest: &Manifest) -> Summary {
        let blobs = wanted::blobs(manifest).map(|blob| self.hash(&blob.digest));
        let mut blobs: Vec<u64> = blobs.collect();
        blobs.sort_unstable();
        blobs.dedup();
        let children = manifest.manifests.iter();
        Summary {
            blobs: blobs.into(),
            children: children.map(|child| child.digest.clone()).collect(),
        }
    }

    /// The lock of searches through a repository: one at a time, so that the others find what it
    /// read.
    pub(super) fn search(&self, repo: &RepositoryName) -> Arc<tokio::sync::Mutex<()>> {
        let mut searches = self.searches.lock();
        if let Some(running) = searches.get(repo).and_then(Weak::upgrade) {
            return running;
        }
        searches.retain(|_, running| running.strong_count() > 0);
        let search = Arc::default();
        searches.insert(repo.clone(), Arc::downgrade(&search));
        search
    }
}

/// Bytes of manifests that one request may still make us read.
#[derive(Debug)]
pub(super) struct Budget(pub(super) u64);

impl Default for Budget {
    fn default() -> Self {
        Self(SEARCHED_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_manifests_name_is_remembered_up_to_so_many_bytes() {
        let names = Names::default();
        let repo = |name: &str| RepositoryName::parse(name).unwrap();
        let (small, large) = (repo("up.example/small"), repo("up.example/large"));
        let digest = |number: usize| Digest::parse(&format!("sha256:{number:064x}")).unwrap();
        let put = |repo: &RepositoryName, number: usize, blobs: usize| {
            let summary = Arc::new(Summary {
                blobs: vec![7; blobs].into(),
                children: Box::default(),
            });
            let cost = summary.cost();
            let key = (repo.clone(), digest(number));
            names
                .held()
                .insert(repo, key, (summary, cost), Instant::now());
            assert!(names.held().bytes() <= NAMES_BYTES);
        };
        put(&small, 0, 10);
        for number in 1..=400 {
            put(&large, number, 10_000);
        }
        let held = names.held();
        for (repo, number, expect) in [(&small, 0, true), (&large, 1, false), (&large, 400, true)] {
            let found = held.get(&(repo.clone(), digest(number)));
            assert_eq!(found.is_some(), expect, "{number}");
        }
    }
}
