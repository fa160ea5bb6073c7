//! Manifests that are verified and not stored yet, because what they name has not arrived. Pulls
//! are answered from here.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use holdfast_core::{Digest, ManifestRef, RepositoryName};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::limits::ARRIVING_BYTES;
use holdfast_core::shares::Shares;

/// For how long a manifest is remembered whose fill does not end, and after a fill ended badly.
const TTL: Duration = Duration::from_secs(15 * 60);
/// What a blob's name takes in memory, bytes.
const NAME_BYTES: usize = 160;

/// A verified manifest.
#[derive(Debug, Clone)]
pub(crate) struct PendingManifest {
    pub(crate) digest: Digest,
    pub(crate) media_type: &'static str,
    pub(crate) bytes: Bytes,
}

/// A manifest, the blobs that it names, and the tags that led to it.
#[derive(Debug)]
struct Manifest {
    repo: RepositoryName,
    entry: PendingManifest,
    blobs: Vec<(Digest, u64)>,
    tags: Vec<String>,
}

impl Manifest {
    /// What it takes in memory.
    fn cost(&self) -> usize {
        self.entry.bytes.len() + (self.blobs.len() + self.tags.len() + 1) * NAME_BYTES
    }
}

/// Each repository has a share: an image with large manifests takes no other image's place.
struct State {
    manifests: Shares<RepositoryName, (RepositoryName, Digest), Manifest>,
    tags: HashMap<(RepositoryName, String), Digest>,
}

impl State {
    /// Forgets the tags of manifests that are forgotten.
    fn forget(&mut self, manifests: impl IntoIterator<Item = Manifest>) {
        for Manifest {
            repo, entry, tags, ..
        } in manifests
        {
            for tag in tags {
                let key = (repo.clone(), tag);
                if self.tags.get(&key) == Some(&entry.digest) {
                    self.tags.remove(&key);
                }
            }
        }
    }
}

/// What is on its way.
pub(super) struct PendingManifests {
    held: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Default for PendingManifests {
    fn default() -> Self {
        let held = State {
            manifests: Shares::new(ARRIVING_BYTES, usize::MAX),
            tags: HashMap::new(),
        };
        Self {
            held: Mutex::new(held),
            changed: watch::Sender::new(0),
        }
    }
}

impl PendingManifests {
    fn held(&self) -> MutexGuard<'_, State> {
        self.held.lock()
    }

    /// Remembers a verified manifest with the blobs that it names, and the tag that led to it.
    pub(super) fn add(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
        entry: PendingManifest,
        blobs: Vec<(Digest, u64)>,
    ) {
        let now = Instant::now();
        let mut held = self.held();
        let key = (repo.clone(), entry.digest.clone());
        let known = held.manifests.remove(&key);
        let mut tags = known.map(|known| known.tags).unwrap_or_default();
        if let ManifestRef::Tag(tag) = reference {
            let name = tag.as_str().to_owned();
            if !tags.contains(&name) {
                tags.push(name.clone());
            }
            held.tags.insert((repo.clone(), name), entry.digest.clone());
        }
        let manifest = Manifest {
            repo: repo.clone(),
            entry,
            blobs,
            tags,
        };
        let cost = manifest.cost();
        let mut ended = held.manifests.insert(repo, key, (manifest, cost), now);
        if let Some(limit) = now.checked_sub(TTL) {
            ended.extend(held.manifests.expire(limit));
        }
        held.forget(ended);
        drop(held);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Forgets a manifest: it is in the store now.
    pub(super) fn remove(&self, repo: &RepositoryName, digest: &Digest) {
        let mut held = self.held();
        let ended = held.manifests.remove(&(repo.clone(), digest.clone()));
        held.forget(ended);
    }

    /// A manifest on its way.
    pub(super) fn manifest(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Option<PendingManifest> {
        let held = self.held();
        let digest = match reference {
            ManifestRef::Digest(digest) => digest,
            ManifestRef::Tag(tag) => held.tags.get(&(repo.clone(), tag.as_str().to_owned()))?,
        };
        held.manifests
            .get(&(repo.clone(), digest.clone()))
            .map(|manifest| manifest.entry.clone())
    }

    /// The sizes that manifests on their way claim for a blob: one when they agree, none when no
    /// manifest names it.
    pub(super) fn blob(&self, repo: &RepositoryName, digest: &Digest) -> Vec<u64> {
        let held = self.held();
        let named = held.manifests.of(repo).flat_map(|manifest| &manifest.blobs);
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
        let pending_manifests = PendingManifests::default();
        let add = |repo: &str, number: usize, bytes: usize| {
            let repo = RepositoryName::parse(repo).unwrap();
            let digest = Digest::parse(&format!("sha256:{number:064x}")).unwrap();
            let reference = ManifestRef::Digest(digest.clone());
            let entry = PendingManifest {
                digest,
                media_type: "m",
                bytes: vec![0; bytes].into(),
            };
            pending_manifests.add(&repo, &reference, entry, Vec::new());
            (repo, reference)
        };
        let small = add("a/small", 0, 1000);
        let large: Vec<_> = (1..=8)
            .map(|number| add("b/large", number, 4 << 20))
            .collect();
        let is_there =
            |(repo, reference): &(_, _)| pending_manifests.manifest(repo, reference).is_some();
        assert!(is_there(&small), "the oldest of all");
        let left: Vec<_> = large.iter().map(is_there).collect();
        assert_eq!(left, [false, false, false, false, false, true, true, true]);
    }
    #[test]
    fn a_tag_leads_to_the_manifest_that_it_named_last() {
        let pending_manifests = PendingManifests::default();
        let repo = RepositoryName::parse("a/app").unwrap();
        let tag = |name: &str| ManifestRef::Tag(holdfast_core::Tag::parse(name).unwrap());
        let digest = |number: usize| Digest::parse(&format!("sha256:{number:064x}")).unwrap();
        let add = |name: &str, number: usize| {
            let entry = PendingManifest {
                digest: digest(number),
                media_type: "m",
                bytes: Bytes::new(),
            };
            pending_manifests.add(&repo, &tag(name), entry, Vec::new());
        };
        let led = |name: &str| {
            let found = pending_manifests.manifest(&repo, &tag(name));
            found.map(|entry| entry.digest)
        };
        add("1", 1);
        add("latest", 1);
        add("latest", 2);
        assert_eq!(
            (led("1"), led("latest")),
            (Some(digest(1)), Some(digest(2)))
        );
        pending_manifests.remove(&repo, &digest(1));
        assert_eq!((led("1"), led("latest")), (None, Some(digest(2))));
        pending_manifests.remove(&repo, &digest(2));
        assert_eq!(led("latest"), None);
        assert!(pending_manifests.held().tags.is_empty());
    }
}
