//! Recognizes owners that delete each rewritten pod and create it again: a pure function of early
//! deletions.

use super::deletion::Deletion;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher as _};

/// Deletions in a row after which an owner compares images.
pub const MIN_DELETIONS: usize = 3;
/// Seconds within which they happen.
pub const WINDOW_SECONDS: i64 = 600;
/// Owners whose deletions are remembered. A further one replaces the one that was quiet longest.
pub const MAX_HISTORIES: usize = 1000;
/// Recognized owners that wait to be excluded. Further ones are recognized again later.
const MAX_RECOGNIZED: usize = 200;

/// The early deletions of the last minutes.
#[derive(Debug, Default)]
pub struct Recognizer {
    /// By owner, revision and sources. Hashes, because the texts of a pod can be long.
    histories: HashMap<u64, Vec<Remembered>>,
    recognized: Vec<Deletion>,
}

/// One early deletion.
#[derive(Clone, Copy, Debug)]
struct Remembered {
    pod: u64,
    requested: i64,
}

impl Recognizer {
    /// Records a deletion. True if it shows that its owner compares images.
    ///
    /// A deletion counts if its pod was created after the deletion that counted last. So pods that
    /// are deleted together count once, for example when an owner is scaled down or removed.
    pub fn observe(&mut self, deletion: &Deletion) -> bool {
        let Deletion {
            namespace,
            owner,
            revision,
            sources,
            ..
        } = deletion;
        let key = hash((
            namespace,
            &owner.reference.kind,
            &owner.reference.name,
            &owner.uid,
            revision,
            sources,
        ));
        let pod = hash(&deletion.uid);
        let since = deletion.requested.saturating_sub(WINDOW_SECONDS);
        if !self.histories.contains_key(&key) {
            self.make_room(since);
        }
        let history = self.histories.entry(key).or_default();
        history.retain(|earlier| earlier.requested >= since);
        let is_known = history.iter().any(|earlier| earlier.pod == pod);
        let last = history.last().map(|earlier| earlier.requested);
        if is_known || last.is_some_and(|last| deletion.created < last) {
            return false;
        }
        history.push(Remembered {
            pod,
            requested: deletion.requested,
        });
        if history.len() < MIN_DELETIONS {
            return false;
        }
        self.histories.remove(&key);
        if self.recognized.len() < MAX_RECOGNIZED {
            self.recognized.push(deletion.clone());
        }
        true
    }

    /// Takes the last deletion of each owner that was recognized.
    pub fn take_recognized(&mut self) -> Vec<Deletion> {
        std::mem::take(&mut self.recognized)
    }

    fn make_room(&mut self, since: i64) {
        if self.histories.len() < MAX_HISTORIES {
            return;
        }
        let last = |history: &[Remembered]| history.last().map(|earlier| earlier.requested);
        self.histories
            .retain(|_, history| last(history).is_some_and(|last| last >= since));
        if self.histories.len() < MAX_HISTORIES {
            return;
        }
        let quietest = self
            .histories
            .iter()
            .min_by_key(|(_, history)| last(history));
        if let Some(key) = quietest.map(|(key, _)| *key) {
            self.histories.remove(&key);
        }
    }
}

fn hash(value: impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
