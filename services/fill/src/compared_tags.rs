//! The tags that were compared with their upstream, or are being compared.

use std::{collections::HashMap, time::Duration};

use holdfast_core::{Digest, RepositoryName, Tag};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use crate::pull_through::Freshness;

/// For how long an upstream that did not answer is not asked about this tag again.
const FAILURE_TTL: Duration = Duration::from_secs(5);
/// Most tags whose comparison is remembered; above, the memory starts over.
const MAX_TAGS: usize = 20_000;

/// A tag of a repository, and what is local for it.
pub(super) type LocalTag = (RepositoryName, Tag, Digest);

/// A comparison, under way or done.
#[derive(Debug, Clone)]
pub(super) struct Check {
    pub(super) begun: Instant,
    pub(super) outcome: watch::Receiver<Option<Freshness>>,
}

impl Check {
    /// A comparison that begins now.
    pub(super) fn begin(outcome: watch::Receiver<Option<Freshness>>) -> Self {
        Self {
            begun: Instant::now(),
            outcome,
        }
    }

    /// Whether it still counts.
    fn stands(&self, fresh: Duration, now: Instant) -> bool {
        let age = now.duration_since(self.begun);
        match &*self.outcome.borrow() {
            // The asking client ends within the time limits of a request.
            None => self.outcome.has_changed().is_ok(),
            Some(Freshness::Current) => age < fresh,
            Some(_) => age < fresh.min(FAILURE_TTL),
        }
    }
}

/// Comparisons, by what was compared.
#[derive(Debug, Default)]
pub(super) struct ComparedTags {
    checks: Mutex<HashMap<LocalTag, Check>>,
}

impl ComparedTags {
    /// The comparison of a tag that counts for `fresh`, or the one that `begin` begins.
    pub(super) fn check(
        &self,
        tag: LocalTag,
        fresh: Duration,
        begin: impl FnOnce(&LocalTag) -> Check,
    ) -> Check {
        let mut checks = self.checks.lock();
        match checks.get(&tag) {
            Some(known) if known.stands(fresh, Instant::now()) => known.clone(),
            _ => {
                let check = begin(&tag);
                insert(&mut checks, tag, check.clone());
                check
            }
        }
    }

    /// A tag that was copied a moment ago is fresh.
    pub(super) fn mark_fresh(&self, repo: &RepositoryName, tag: &Tag, digest: &Digest) {
        let check = Check::begin(watch::channel(Some(Freshness::Current)).1);
        let tag = (repo.clone(), tag.clone(), digest.clone());
        insert(&mut self.checks.lock(), tag, check);
    }
}

fn insert(checks: &mut HashMap<LocalTag, Check>, tag: LocalTag, check: Check) {
    if checks.len() >= MAX_TAGS {
        checks.clear();
    }
    checks.insert(tag, check);
}
