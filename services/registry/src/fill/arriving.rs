//! Manifests that were verified and are not stored yet, because what they name is still on its way: pulls are answered from here.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use holdfast_core::{Digest, RepositoryName};
use tokio::sync::watch;

use super::document::{Document, Parsed};
use crate::source::ManifestRef;

/// For how long a manifest is remembered whose fill does not end, and after a fill ended badly.
const KEPT: Duration = Duration::from_secs(15 * 60);
/// Bytes of all of them; the oldest go first.
const MAX_BYTES: usize = 16 << 20;

/// A verified manifest.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

/// A manifest, the blobs that it names, and since when it is here.
type Manifest = (Entry, Vec<(Digest, u64)>, Instant);

#[derive(Default)]
struct Held {
    manifests: HashMap<(RepositoryName, Digest), Manifest>,
    tags: HashMap<(RepositoryName, String), Digest>,
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

    /// Remembers a verified manifest, and the tag that led to it.
    pub(super) fn add(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
        entry: Entry,
        parsed: &Parsed,
    ) {
        let now = Instant::now();
        let blobs = match &parsed.document {
            Document::Image(blobs) => blobs
                .iter()
                .map(|blob| (blob.digest.clone(), blob.size))
                .collect(),
            Document::Index(_) => Vec::new(),
        };
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
        while held
            .manifests
            .values()
            .map(|(entry, _, _)| entry.bytes.len())
            .sum::<usize>()
            > MAX_BYTES
        {
            let oldest = held
                .manifests
                .iter()
                .min_by_key(|(_, (_, _, at))| *at)
                .map(|(key, _)| key.clone());
            match oldest {
                Some(key) => held.manifests.remove(&key),
                None => break,
            };
        }
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
