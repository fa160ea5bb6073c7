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

impl<V: PartialEq> WatchCache<V> {
    /// Takes in one event; true when the content differs afterwards.
    pub fn apply<K: ResourceExt>(
        &mut self,
        event: Event<K>,
        facts: &mut impl FnMut(K) -> V,
    ) -> bool {
        match event {
            Event::Init => {
                self.incoming = Some(HashMap::new());
                false
            }
            Event::InitApply(object) => {
                let key = key(&object);
                self.incoming
                    .get_or_insert_default()
                    .insert(key, facts(object));
                false
            }
            Event::InitDone => {
                let Some(incoming) = self.incoming.take() else {
                    return false;
                };
                let changed = !self.synced || incoming != self.current;
                self.current = incoming;
                self.synced = true;
                changed
            }
            Event::Apply(object) => {
                let key = key(&object);
                let value = facts(object);
                if self.current.get(&key) == Some(&value) {
                    return false;
                }
                self.current.insert(key, value);
                true
            }
            Event::Delete(object) => self.current.remove(&key(&object)).is_some(),
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
        let mut facts = |object: ConfigMap| object.name_any();
        cache.apply(Event::Init, &mut facts);
        cache.apply(Event::InitApply(object("a")), &mut facts);
        assert!(!cache.synced());
        assert!(
            cache.apply(Event::InitDone, &mut facts),
            "an empty world that is known is a change"
        );
        assert!(cache.apply(Event::Apply(object("b")), &mut facts));
        assert!(
            !cache.apply(Event::Apply(object("b")), &mut facts),
            "the same again"
        );
        cache.apply(Event::<ConfigMap>::Init, &mut facts);
        cache.apply(Event::InitApply(object("b")), &mut facts);
        assert_eq!(
            names(&cache),
            ["a", "b"],
            "the old content stays until the new one is complete"
        );
        assert!(cache.apply(Event::InitDone, &mut facts));
        assert_eq!(names(&cache), ["b"]);
        assert!(cache.apply(Event::Delete(object("b")), &mut facts));
        assert!(names(&cache).is_empty());
    }
}
