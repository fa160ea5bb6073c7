//! What healing shares with the other loops: the excluded sources and owners, the written state,
//! and requests for early retries and confirmations.

use super::Policy;
use super::decide::Snapshot;
use holdfast_api::delivery::Delivery;
use holdfast_api::state::{ClusterState, Exclusion, OwnerExclusion};
use holdfast_cluster_index::{ClusterIndex, Key};
use holdfast_runtime::supervise::Heartbeat;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Interval of checks whether the index is complete.
const SYNC_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Shared between the loops of one leader.
#[derive(Debug)]
pub struct Healing {
    /// The limits of healing.
    pub policy: Policy,
    /// Excluded sources; `None` until the state of an earlier leader was read.
    pub excluded: watch::Sender<Option<Vec<Exclusion>>>,
    /// Excluded owners; `None` until the state of an earlier leader was read.
    pub excluded_owners: watch::Sender<Option<Vec<OwnerExclusion>>>,
    /// The cluster's state as it stands in its ConfigMap.
    pub state: watch::Sender<Option<ClusterState>>,
    /// What the webhook knows of images, upstreams and nodes.
    pub delivery: watch::Sender<Arc<Delivery>>,
    /// Artifacts to retry before their pause ends.
    retries: Mutex<BTreeSet<Key>>,
    /// Artifacts whose image the registry must confirm again.
    to_confirm: Mutex<BTreeSet<Key>>,
    /// When the registry last confirmed an image to this process.
    confirmed: Mutex<HashMap<Key, Instant>>,
    /// Artifacts whose image the registry lost, whatever their status says.
    lost: Mutex<BTreeSet<Key>>,
}

impl Healing {
    /// An empty state.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            excluded: watch::Sender::new(None),
            excluded_owners: watch::Sender::new(None),
            state: watch::Sender::new(None),
            delivery: watch::Sender::new(Arc::default()),
            retries: Mutex::default(),
            to_confirm: Mutex::default(),
            confirmed: Mutex::default(),
            lost: Mutex::default(),
        }
    }

    /// The excluded sources to write. A new leader takes over the list of the ConfigMap.
    pub fn init_excluded(&self, previous: Option<&ClusterState>) -> Vec<Exclusion> {
        init(&self.excluded, || {
            previous.map(|state| state.excluded.clone())
        })
    }

    /// The excluded owners to write. A new leader takes over the list of the ConfigMap.
    pub fn init_excluded_owners(&self, previous: Option<&ClusterState>) -> Vec<OwnerExclusion> {
        init(&self.excluded_owners, || {
            previous.map(|state| state.excluded_owners.clone())
        })
    }

    /// Returns when the first lists are complete and the written state is known.
    pub async fn known(&self, index: &ClusterIndex, heart: &Heartbeat) {
        while !index.synced() || self.state.borrow().is_none() {
            heart.beat();
            tokio::time::sleep(SYNC_POLL_INTERVAL).await;
        }
    }

    /// Records the state of the ConfigMap.
    pub fn set_state(&self, state: &ClusterState) {
        self.state.send_if_modified(|known| {
            let differs = known.as_ref() != Some(state);
            if differs {
                *known = Some(state.clone());
            }
            differs
        });
    }

    /// What decisions need to know beside pods and copies.
    pub(super) fn snapshot(&self) -> Snapshot {
        let state = self.state.borrow();
        Snapshot {
            address: state
                .as_ref()
                .filter(|state| state.rewrite)
                .map(|state| state.registry_address.clone()),
            grace: self.policy.grace,
            now: jiff::Timestamp::now().as_second(),
            recreates: self.policy.evictions.0 > 0,
        }
    }

    /// Requests retries of these Artifacts before their pauses end.
    pub fn request_retries(&self, keys: Vec<Key>) {
        self.retries.lock().extend(keys);
    }

    /// Takes the pending requests for retries.
    pub fn take_retries(&self) -> BTreeSet<Key> {
        std::mem::take(&mut *self.retries.lock())
    }

    /// Requests that the registry confirms again that it holds these images.
    pub fn request_confirmations(&self, keys: BTreeSet<Key>) {
        self.to_confirm.lock().extend(keys);
    }

    /// Takes the pending requests for confirmations.
    pub fn take_confirmations(&self) -> BTreeSet<Key> {
        std::mem::take(&mut *self.to_confirm.lock())
    }

    /// Records whether the registry answered at `now` that it holds an image.
    pub fn record_answer(&self, key: &Key, held: bool, now: Instant) {
        let mut confirmed = self.confirmed.lock();
        if held {
            self.lost.lock().remove(key);
            confirmed.insert(key.clone(), now);
        } else {
            confirmed.remove(key);
        }
    }

    /// Records that the registry does not hold these images, and requests that it is asked for them
    /// again, which copies them.
    pub fn record_lost(&self, keys: BTreeSet<Key>) {
        self.confirmed.lock().retain(|key, _| !keys.contains(key));
        self.lost.lock().extend(keys.iter().cloned());
        self.request_confirmations(keys);
    }

    /// Whether the registry lost an image and did not confirm it since.
    pub fn is_lost(&self, key: &Key) -> bool {
        self.lost.lock().contains(key)
    }

    /// Forgets the answers for Artifacts that are gone.
    pub fn forget(&self, exists: impl Fn(&Key) -> bool) {
        self.confirmed.lock().retain(|key, _| exists(key));
        self.lost.lock().retain(|key| exists(key));
    }

    /// Whether the registry confirmed an image within [`Policy::confirmation_ttl`].
    pub fn is_confirmed(&self, key: &Key, now: Instant) -> bool {
        self.confirmed
            .lock()
            .get(key)
            .is_some_and(|at| now.saturating_duration_since(*at) < self.policy.confirmation_ttl)
    }
}

/// The value of a list, which is the one of an earlier leader if it is not known yet.
fn init<T: Clone>(
    list: &watch::Sender<Option<Vec<T>>>,
    earlier: impl FnOnce() -> Option<Vec<T>>,
) -> Vec<T> {
    list.send_if_modified(|list| {
        let is_unknown = list.is_none();
        if is_unknown {
            *list = Some(earlier().unwrap_or_default());
        }
        is_unknown
    });
    list.borrow().clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_config::HealingValues;

    #[test]
    fn a_lost_image_is_lost_until_the_registry_confirms_it() {
        let healing = Healing::new(Policy::of(HealingValues::default()));
        let key = |name: &str| ("apps".to_owned(), name.to_owned());
        let now = Instant::now();
        healing.record_answer(&key("a"), true, now);
        healing.record_lost(BTreeSet::from([key("a"), key("b")]));
        assert!(healing.is_lost(&key("a")) && healing.is_lost(&key("b")));
        assert!(!healing.is_confirmed(&key("a"), now));
        let requested = healing.take_confirmations();
        assert_eq!(requested, BTreeSet::from([key("a"), key("b")]));
        healing.record_answer(&key("a"), false, now);
        assert!(healing.is_lost(&key("a")));
        healing.record_answer(&key("a"), true, now);
        assert!(!healing.is_lost(&key("a")));
        healing.forget(|_| false);
        assert!(!healing.is_lost(&key("b")));
    }
}
