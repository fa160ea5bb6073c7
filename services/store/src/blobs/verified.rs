//! The blobs whose content this process has hashed and found intact, for a limited time.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use holdfast_core::digest::Digest;
use parking_lot::Mutex;

use crate::volume::Metadata;

/// Most blobs that are remembered. When it is reached, all are forgotten.
const MAX_VERIFIED_BLOBS: usize = 50_000;

/// The verified blobs. A blob counts while its file has the inode, size and modification time that
/// it had when it was hashed.
#[derive(Debug)]
pub(crate) struct VerifiedBlobs {
    ttl: Duration,
    known: Mutex<HashMap<Digest, Verified>>,
}

/// What a file looked like when its content was last hashed and found intact.
#[derive(Clone, Copy, Debug)]
struct Verified {
    inode: (u64, u64),
    size: u64,
    modified: Option<SystemTime>,
    at: Instant,
}

impl Verified {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.inode,
            size: metadata.len,
            modified: metadata.modified,
            at: Instant::now(),
        }
    }

    fn same(&self, metadata: &Metadata) -> bool {
        self.inode == metadata.inode
            && self.size == metadata.len
            && self.modified == metadata.modified
    }
}

impl VerifiedBlobs {
    /// An empty memory; a blob counts as verified for `ttl` after it was hashed.
    pub(crate) fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            known: Mutex::default(),
        }
    }

    /// Whether this very file was hashed and found intact within the time to live.
    pub(super) fn contains(&self, digest: &Digest, metadata: &Metadata) -> bool {
        self.known
            .lock()
            .get(digest)
            .is_some_and(|entry| entry.same(metadata) && entry.at.elapsed() < self.ttl)
    }

    pub(super) fn insert(&self, digest: &Digest, metadata: &Metadata) {
        let mut known = self.known.lock();
        if known.len() >= MAX_VERIFIED_BLOBS {
            known.clear();
        }
        known.insert(digest.clone(), Verified::of(metadata));
    }

    pub(super) fn remove(&self, digest: &Digest) {
        self.known.lock().remove(digest);
    }

    /// Records that the modification time of a file was renewed, unless another file took its
    /// place. Its content was not hashed, so it counts as verified no longer than before.
    pub(super) fn touched(&self, digest: &Digest, before: &Metadata, after: &Metadata) {
        if after.inode == before.inode
            && after.len == before.len
            && let Some(entry) = self.known.lock().get_mut(digest)
            && entry.same(before)
        {
            entry.modified = after.modified;
        }
    }
}
