//! How long a former address of the registry stays an alias after its last pod is gone.

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Time within which all webhook replicas know a new address, and the watch shows their last pods
/// with the former one.
const GRACE: Duration = Duration::from_secs(120);

/// When this process last observed each address in use. A new leader keeps all of them for the
/// grace time.
#[derive(Debug)]
pub struct AddressHistory {
    grace: Duration,
    born: Instant,
    seen: Mutex<BTreeMap<String, Instant>>,
}

impl Default for AddressHistory {
    fn default() -> Self {
        Self::for_at_least(GRACE)
    }
}

impl AddressHistory {
    /// An empty history; addresses outlive their last pod by `grace`.
    pub fn for_at_least(grace: Duration) -> Self {
        Self {
            grace,
            born: Instant::now(),
            seen: Mutex::default(),
        }
    }

    /// The addresses that count as used at `now`: those that pods name, or named within the grace
    /// time. `None` while this process runs for a shorter time.
    pub fn in_use(
        &self,
        named: BTreeSet<String>,
        current: &str,
        now: Instant,
    ) -> Option<BTreeSet<String>> {
        let mut seen = self.seen.lock();
        seen.retain(|_, at| now.saturating_duration_since(*at) < self.grace);
        for address in named.into_iter().chain([current.to_owned()]) {
            seen.insert(address, now);
        }
        let used = seen.keys().cloned().collect();
        (now.saturating_duration_since(self.born) >= self.grace).then_some(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_outlives_its_last_pod_by_two_minutes() {
        let former = AddressHistory::default();
        let at = |seconds| former.born + Duration::from_secs(seconds);
        let in_use = |named: &[&str], current: &str, seconds| {
            let named = named.iter().map(|name| (*name).to_owned()).collect();
            let used = former.in_use(named, current, at(seconds));
            used.map(|used| used.into_iter().collect::<Vec<_>>().join(" "))
        };
        assert_eq!(in_use(&[], "a", 0), None, "too young to tell");
        assert_eq!(in_use(&[], "a", 130).as_deref(), Some("a"));
        // The address changes: a webhook replica may still write the former one.
        assert_eq!(in_use(&[], "b", 140).as_deref(), Some("a b"));
        assert_eq!(in_use(&["a"], "b", 250).as_deref(), Some("a b"));
        assert_eq!(in_use(&[], "b", 369).as_deref(), Some("a b"));
        assert_eq!(in_use(&[], "b", 371).as_deref(), Some("b"));
    }
}
