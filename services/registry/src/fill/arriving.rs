//! Manifests that were verified and are not stored yet, because what they name is still on its way: pulls are answered from here.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use holdfast_core::{Digest, RepositoryName};
use tokio::sync::watch;

use crate::{limits::ARRIVING_BYTES, source::ManifestRef};

/// For how long a manifest is remembered whose fill does not end, and after a fill ended badly.
const KEPT: Duration = Duration::from_secs(15 * 60);
/// What a blob's name takes in memory, bytes.
const NAME_BYTES: usize = 160;

/// A verified manifest.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) digest: Digest,
    pub(crate) media_type: &'static str,
    pub(crate) bytes: Bytes,
}

/// A manifest, the blobs that it names, and since when it is here.
type Manifest = (Entry, Vec<(Digest, u64)>, Instant);

/// What a manifest takes in memory.
fn cost((entry, blobs, _): &Manifest) -> usize {
    entry.bytes.len() + (blobs.len() + 1) * NAME_BYTES
}

#[derive(Default)]
struct Held {
    manifests: HashMap<(RepositoryName, Digest), Manifest>,
    tags: HashMap<(RepositoryName, String), Digest>,
}

impl Held {
    /// Forgets the oldest manifests of the repository that has most, until all of them together take
    /// at most `most` bytes: an image with large manifests takes no other image's place.
    fn trim(&mut self, most: usize) {
        let mut costs: HashMap<RepositoryName, usize> = HashMap::new();
        for ((repo, _), manifest) in &self.manifests {
            *costs.entry(repo.clone()).or_default() += cost(manifest);
        }
        while costs.values().sum::<usize>() > most {
            let Some(largest) = costs.iter().max_by_key(|(_, cost)| **cost) else {
                return;
            };
            let largest = largest.0.clone();
            let of_it = self
                .manifests
                .iter()
                .filter(|((repo, _), _)| *repo == largest);
            let oldest = of_it.min_by_key(|(_, (_, _, at))| *at);
            let Some((key, cost)) = oldest.map(|(key, found)| (key.clone(), cost(found))) else {
                return;
            };
            self.manifests.remove(&key);
            if let Some(left) = costs.get_mut(&largest) {
                *left = left.saturating_sub(cost);
            }
        }
    }
}

/// What is on its way.
pub(super) struct Arriving {
    held: Mutex<Held>,
    changed: watch::Sender<u64>,
}

impl Default for Arriving {
    fn default() -> Self {
        Self {
            held: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Arriving {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a verified manifest with the blobs that it names, and the tag that led to it.
    pub(super) fn add(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
        entry: Entry,
        blobs: Vec<(Digest, u64)>,
    ) {
        let now = Instant::now();
        let mut held = self.held();
        if let ManifestRef::Tag(tag) = reference {
            held.tags.insert(
                (repo.clone(), tag.as_str().to_owned()),
                entry.digest.clone(),
            );
        }
        held.manifests
            .insert((repo.clone(), entry.digest.clone()), (entry, blobs, now));
        held.manifests
            .retain(|_, (_, _, at)| now.duration_since(*at) < KEPT);
        held.trim(ARRIVING_BYTES);
        let Held { manifests, tags } = &mut *held;
        tags.retain(|(repo, _), digest| manifests.contains_key(&(repo.clone(), digest.clone())));
        drop(held);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Forgets a manifest: it is in the store now.
    pub(super) fn remove(&self, repo: &RepositoryName, digest: &Digest) {
        let mut held = self.held();
        held.manifests.remove(&(repo.clone(), digest.clone()));
        held.tags
            .retain(|(of, _), named| of != repo || named != digest);
    }

    /// A manifest on its way.
    pub(super) fn manifest(&self, repo: &RepositoryName, reference: &ManifestRef) -> Option<Entry> {
        let held = self.held();
        let digest = match reference {
            ManifestRef::Digest(digest) => digest,
            ManifestRef::Tag(tag) => held.tags.get(&(repo.clone(), tag.as_str().to_owned()))?,
        };
        held.manifests
            .get(&(repo.clone(), digest.clone()))
            .map(|(entry, _, _)| entry.clone())
    }

    /// The sizes that manifests on their way claim for a blob: one when they agree, none when no manifest
    /// names it.
    pub(super) fn blob(&self, repo: &RepositoryName, digest: &Digest) -> Vec<u64> {
        let held = self.held();
        let named = held
            .manifests
            .iter()
            .filter(|((of, _), _)| of == repo)
            .flat_map(|(_, (_, blobs, _))| blobs);
        let mut sizes: Vec<u64> = named
            .filter(|(named, _)| named == digest)
            .map(|(_, size)| *size)
            .collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// Tells of every addition.
    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_manifests_take_no_other_images_place() {
        let arriving = Arriving::default();
        let add = |repo: &str, number: usize, bytes: usize| {
            let repo = RepositoryName::parse(repo).unwrap();
            let digest = Digest::parse(&format!("sha256:{number:064x}")).unwrap();
            let reference = ManifestRef::Digest(digest.clone());
            let entry = Entry {
                digest,
                media_type: "m",
                bytes: vec![0; bytes].into(),
            };
            arriving.add(&repo, &reference, entry, Vec::new());
            (repo, reference)
        };
        let small = add("a/small", 0, 1000);
        let large: Vec<_> = (1..=8)
            .map(|number| add("b/large", number, 4 << 20))
            .collect();
        let is_there = |(repo, reference): &(_, _)| arriving.manifest(repo, reference).is_some();
        assert!(is_there(&small), "the oldest of all");
        let left: Vec<_> = large.iter().map(is_there).collect();
        assert_eq!(left, [false, false, false, false, false, true, true, true]);
    }
}
