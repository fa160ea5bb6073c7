//! Remembers what the manifests of a repository name, so that a request for something that none of
//! them names does not read all of them again. A manifest never changes, so its entry stays true.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Weak},
    time::Instant,
};

use holdfast_core::{Digest, ManifestRef, RepositoryName, oci::Manifest};
use parking_lot::{Mutex, MutexGuard};

use super::{Fills, wanted};
use crate::limits::{NAMES_BYTES, SEARCHED_BYTES};
use holdfast_core::shares::Shares;

/// Manifests below one that a request led to.
const REACHED_MANIFESTS: usize = 512;
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

    fn summary(&self, manifest: &Manifest) -> Summary {
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

impl Fills {
    /// What a manifest of the repository names; `None` when it is not here, or nothing is left of
    /// the budget to read it with.
    pub(super) async fn summary(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
        budget: &mut Budget,
    ) -> Option<Arc<Summary>> {
        let names = &self.inner.names;
        let key = (repo.clone(), digest.clone());
        if let Some(known) = names.held().get(&key) {
            return Some(Arc::clone(known));
        }
        if budget.0 == 0 {
            return None;
        }
        let reference = ManifestRef::Digest(digest.clone());
        let pending_manifests = self.inner.pending_manifests.manifest(repo, &reference);
        let (summary, bytes) = if let Some(entry) = pending_manifests {
            let manifest = Manifest::parse(&entry.bytes).ok()?;
            (names.summary(&manifest), 0)
        } else {
            let read = |manifest: &Manifest, bytes| (names.summary(manifest), bytes);
            self.stored(repo, digest, read).await.ok()??
        };
        budget.0 = budget.0.saturating_sub(bytes);
        let summary = Arc::new(summary);
        let entry = (Arc::clone(&summary), summary.cost());
        names.held().insert(repo, key, entry, Instant::now());
        Some(summary)
    }

    /// Those of `roots` from which `wanted`, a manifest or a blob, is reachable.
    pub(super) async fn leading_to(
        &self,
        repo: &RepositoryName,
        roots: Vec<Digest>,
        wanted: &Digest,
    ) -> Vec<Digest> {
        let hash = self.inner.names.hash(wanted);
        let (mut leads, mut budget) = (Vec::new(), Budget::default());
        // From these it is, and from those it is not.
        let (mut live, mut dead) = (HashSet::new(), HashSet::new());
        for root in roots {
            let (mut left, mut seen) = (vec![root.clone()], HashSet::new());
            let leads_there = loop {
                let Some(next) = left.pop() else {
                    break false;
                };
                if next == *wanted || live.contains(&next) {
                    break true;
                }
                let is_cut = seen.len() >= REACHED_MANIFESTS;
                if is_cut || dead.contains(&next) || !seen.insert(next.clone()) {
                    continue;
                }
                let Some(summary) = self.summary(repo, &next, &mut budget).await else {
                    continue;
                };
                if summary.names(hash) {
                    live.insert(next);
                    break true;
                }
                left.extend(summary.children.iter().cloned());
            };
            if leads_there {
                leads.push(root);
            } else if seen.len() < REACHED_MANIFESTS {
                dead.extend(seen);
            }
        }
        leads
    }

    /// The size that a stored manifest of the repository claims for a blob, of those that were not
    /// `seen` by this request before.
    pub(super) async fn claimed(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
        revisions: Vec<Digest>,
        seen: &mut HashSet<Digest>,
    ) -> Option<u64> {
        let hash = self.inner.names.hash(digest);
        let search = self.inner.names.search(repo);
        let _alone = search.lock().await;
        let mut budget = Budget::default();
        for next in revisions.into_iter().rev() {
            if !seen.insert(next.clone()) {
                continue;
            }
            let summary = self.summary(repo, &next, &mut budget).await;
            if !summary.is_some_and(|summary| summary.names(hash)) {
                continue;
            }
            let size = |manifest: &Manifest, _| {
                let mut blobs = wanted::blobs(manifest);
                blobs
                    .find(|blob| blob.digest == *digest)
                    .map(|blob| blob.size)
            };
            if let Ok(Some(Some(size))) = self.stored(repo, &next, size).await {
                return Some(size);
            }
        }
        None
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
