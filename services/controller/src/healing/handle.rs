//! What healing shares with the other loops: the excluded sources, the state as it was written, and
//! requests for an early retry.

use super::Policy;
use crate::index::Key;
use holdfast_api::state::{ClusterState, Exclusion};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// Shared between the loops of one leader.
#[derive(Debug)]
pub struct Healing {
    /// The limits of healing.
    pub policy: Policy,
    /// Excluded sources; `None` until the state of an earlier leader was read.
    pub excluded: watch::Sender<Option<Vec<Exclusion>>>,
    /// The cluster's state as it stands in its ConfigMap.
    pub state: watch::Sender<Option<ClusterState>>,
    asked: Mutex<BTreeSet<Key>>,
    /// Artifacts for which the registry is to confirm again that it holds the image.
    doubted: Mutex<BTreeSet<Key>>,
    /// When the registry last confirmed it to this process.
    confirmed: Mutex<HashMap<Key, Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Healing {
    /// Nothing known yet.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            excluded: watch::Sender::new(None),
            state: watch::Sender::new(None),
            asked: Mutex::default(),
            doubted: Mutex::default(),
            confirmed: Mutex::default(),
        }
    }

    /// The list as it is to be written; what stands in the ConfigMap where this process knows
    /// nothing yet.
    pub fn seeded(&self, previous: Option<&ClusterState>) -> Vec<Exclusion> {
        self.excluded.send_if_modified(|list| {
            let unknown = list.is_none();
            if unknown {
                *list = Some(previous.map_or_else(Vec::new, |state| state.excluded.clone()));
            }
            unknown
        });
        self.excluded.borrow().clone().unwrap_or_default()
    }

    /// Tells what stands in the ConfigMap.
    pub fn written(&self, state: &ClusterState) {
        self.state.send_if_modified(|known| {
            let differs = known.as_ref() != Some(state);
            if differs {
                *known = Some(state.clone());
            }
            differs
        });
    }

    /// Requests a retry of these Artifacts before their pause ends.
    pub fn ask(&self, keys: Vec<Key>) {
        lock(&self.asked).extend(keys);
    }

    /// Takes the pending requests for a retry.
    pub fn asked(&self) -> BTreeSet<Key> {
        std::mem::take(&mut *lock(&self.asked))
    }

    /// Requests that the registry confirms again that it holds these images.
    pub fn doubt(&self, keys: BTreeSet<Key>) {
        lock(&self.doubted).extend(keys);
    }

    /// Takes the pending requests for a confirmation.
    pub fn doubted(&self) -> BTreeSet<Key> {
        std::mem::take(&mut *lock(&self.doubted))
    }

    /// Records the registry's answer at `now`, whether it holds an image.
    pub fn said(&self, key: &Key, held: bool, now: Instant) {
        let mut confirmed = lock(&self.confirmed);
        if held {
            confirmed.insert(key.clone(), now);
        } else {
            confirmed.remove(key);
        }
    }

    /// Forgets the answers for Artifacts that are gone.
    pub fn forget(&self, exists: impl Fn(&Key) -> bool) {
        lock(&self.confirmed).retain(|key, _| exists(key));
    }

    /// Whether the registry said a moment ago that it holds an image.
    pub fn is_confirmed(&self, key: &Key, now: Instant) -> bool {
        lock(&self.confirmed)
            .get(key)
            .is_some_and(|at| now.saturating_duration_since(*at) < self.policy.fresh)
    }
}
