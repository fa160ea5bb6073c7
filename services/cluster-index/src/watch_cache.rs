//! A map that follows a watch: complete only after its first list, replaced as a whole by every
//! later list.
//!
//! kube's `reflector` would keep whole objects; this keeps facts, so that memory does not grow with
//! the size of the objects.

use holdfast_cluster_model::{Key, Objects};
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use std::collections::HashMap;

/// The key of an object.
pub fn key(object: &impl ResourceExt) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Values by key.
#[derive(Debug)]
pub struct WatchCache<V> {
    current: Objects<V>,
    incoming: Option<Objects<V>>,
    synced: bool,
}

impl<V> Default for WatchCache<V> {
    fn default() -> Self {
        Self {
            current: HashMap::new(),
            incoming: None,
            synced: false,
        }
    }
}

impl<V> WatchCache<V> {
    /// Whether a list was complete once. It stays true: while a watch is interrupted, the last
    /// content is kept.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// One value.
    pub fn get(&self, key: &Key) -> Option<&V> {
        self.current.get(key)
    }

    /// All values by key.
    pub fn all(&self) -> &Objects<V> {
        &self.current
    }

    /// All values, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &V)> {
        self.current.iter()
    }
}

/// One event of a watch, with the facts about its object. They are computed before the cache is
/// locked, because conditions are evaluated for them.
#[derive(Debug)]
pub enum Change<V> {
    /// A list begins.
    ListStarted,
    /// An object of the list.
    Listed(Key, V),
    /// The list is complete.
    ListCompleted,
    /// An object was made or changed.
    Set(Key, V),
    /// An object is gone.
    Removed(Key),
}

impl<V> Change<V> {
    /// Computes the facts of an event.
    pub fn of<K: ResourceExt>(event: Event<K>, facts: impl FnOnce(K) -> V) -> Self {
        match event {
            Event::Init => Self::ListStarted,
            Event::InitApply(object) => Self::Listed(key(&object), facts(object)),
            Event::InitDone => Self::ListCompleted,
            Event::Apply(object) => Self::Set(key(&object), facts(object)),
            Event::Delete(object) => Self::Removed(key(&object)),
        }
    }
}

impl<V: PartialEq> WatchCache<V> {
    /// Applies one change; true when the content differs afterwards. Only one task applies the
    /// changes of a watch, in the order of its events, so no older facts replace newer ones.
    pub fn apply(&mut self, change: Change<V>) -> bool {
        match change {
            Change::ListStarted => {
                self.incoming = Some(HashMap::new());
                false
            }
            Change::Listed(key, value) => {
                self.incoming.get_or_insert_default().insert(key, value);
                false
            }
            Change::ListCompleted => {
                let Some(incoming) = self.incoming.take() else {
                    return false;
                };
                let changed = !self.synced || incoming != self.current;
                self.current = incoming;
                self.synced = true;
                changed
            }
            Change::Set(key, value) => {
                if self.current.get(&key) == Some(&value) {
                    return false;
                }
                self.current.insert(key, value);
                true
            }
            Change::Removed(key) => self.current.remove(&key).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;

    fn object(name: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    fn names(cache: &WatchCache<String>) -> Vec<&str> {
        let mut names: Vec<_> = cache.iter().map(|(_, name)| name.as_str()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_new_list_replaces_everything_only_when_complete() {
        let mut cache: WatchCache<String> = WatchCache::default();
        let change = |event| Change::of(event, |object: ConfigMap| object.name_any());
        cache.apply(change(Event::Init));
        cache.apply(change(Event::InitApply(object("a"))));
        assert!(!cache.synced());
        assert!(
            cache.apply(change(Event::InitDone)),
            "an empty world that is known is a change"
        );
        assert!(cache.apply(change(Event::Apply(object("b")))));
        assert!(
            !cache.apply(change(Event::Apply(object("b")))),
            "the same again"
        );
        cache.apply(change(Event::Init));
        cache.apply(change(Event::InitApply(object("b"))));
        assert_eq!(
            names(&cache),
            ["a", "b"],
            "the old content stays until the new one is complete"
        );
        assert!(cache.apply(change(Event::InitDone)));
        assert_eq!(names(&cache), ["b"]);
        assert!(cache.apply(change(Event::Delete(object("b")))));
        assert!(names(&cache).is_empty());
    }
}
