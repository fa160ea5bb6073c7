//! What the webhook goes by: the registry's addresses, whether to rewrite at all, and which
//! upstreams. Made from the configuration and the shared state; swapped as a whole when one of them
//! changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_api::access::ImageAccess;
use holdfast_api::state::{ClusterState, EVERY_SOURCE, Exclusion};
use holdfast_config::Values;
use holdfast_core::UpstreamFilter;
use holdfast_core::{Host, Reference, rewrite};

/// Everything by which a pod is judged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// The registry's address as it stands in front of a rewritten path; nothing while pods are
    /// left alone.
    pub address: Option<String>,
    /// All addresses that mean this registry, the current one included.
    pub known_addresses: Vec<String>,
    /// The upstreams of the configuration.
    pub upstreams: UpstreamFilter,
    /// Sources that the registry cannot get, canonical, by namespace.
    pub excluded: Arc<BTreeMap<String, BTreeSet<String>>>,
    /// Which images pods of which namespaces may have from the registry.
    pub access: ImageAccess,
}

/// What the configuration says, whatever the shared state is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configured {
    /// The upstreams that concern Holdfast.
    pub upstreams: UpstreamFilter,
    /// Whether private images are given to the namespaces only that may have them.
    pub by_namespace: bool,
}

impl Configured {
    /// Reads the values.
    pub fn of(values: &Values) -> Self {
        Self {
            upstreams: upstreams(values),
            by_namespace: values.access.is_by_namespace(),
        }
    }
}

impl From<UpstreamFilter> for Configured {
    fn from(upstreams: UpstreamFilter) -> Self {
        Self {
            upstreams,
            ..Self::default()
        }
    }
}

impl Rules {
    /// Combines the configuration with the shared state. Without a state, with `rewrite: false` or
    /// with an address that no reference could carry, nothing is rewritten.
    pub fn new(configured: impl Into<Configured>, state: Option<&ClusterState>) -> Self {
        let Configured {
            upstreams,
            by_namespace,
        } = configured.into();
        let access = ImageAccess::new(by_namespace, state);
        let Some(state) = state else {
            return Self {
                upstreams,
                access,
                ..Self::default()
            };
        };
        let mut known_addresses = state.aliases.clone();
        known_addresses.push(state.registry_address.clone());
        let usable = Host::parse(&state.registry_address).is_ok();
        Self {
            address: (state.rewrite && usable).then(|| state.registry_address.clone()),
            known_addresses,
            upstreams,
            excluded: Arc::new(excluded(&state.excluded)),
            access,
        }
    }

    /// Whether pods of a namespace keep this source until the registry can get it.
    pub fn leaves_alone(&self, namespace: &str, source: &Reference) -> bool {
        self.excluded
            .get(namespace)
            .is_some_and(|sources| sources.contains(&source.to_string()))
    }

    /// Whether pods of a namespace keep all their sources, because a policy refuses the registry's
    /// references.
    pub fn leaves_namespace_alone(&self, namespace: &str) -> bool {
        self.excluded
            .get(namespace)
            .is_some_and(|sources| sources.contains(EVERY_SOURCE))
    }

    /// Whether a host is this registry, under its current or an earlier address.
    pub fn is_own(&self, host: &Host) -> bool {
        rewrite::is_at_any(host, &self.known_addresses)
    }
}

fn excluded(list: &[Exclusion]) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in list {
        all.entry(entry.namespace.clone())
            .or_default()
            .insert(entry.source.clone());
    }
    all
}

/// Reads `sources` and `upstreams` of the values (SPEC 11).
pub fn upstreams(values: &Values) -> UpstreamFilter {
    let configured = values
        .upstreams
        .iter()
        .filter_map(|upstream| Host::parse(&upstream.host).ok());
    UpstreamFilter::new(&values.sources, configured.collect())
        .only_configured(values.only_listed_upstreams)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_usable_state_nothing_is_rewritten() {
        let state = |address: &str, rewrite| ClusterState {
            registry_address: address.to_owned(),
            rewrite,
            ..ClusterState::default()
        };
        for (state, expect) in [
            (None, None),
            (Some(state("10.96.0.50", false)), None),
            (Some(state("", true)), None),
            (Some(state("not an address", true)), None),
            (Some(state("10.96.0.50", true)), Some("10.96.0.50")),
            (Some(state("[fd00::1]", true)), Some("[fd00::1]")),
        ] {
            let rules = Rules::new(Configured::default(), state.as_ref());
            assert_eq!(rules.address.as_deref(), expect, "{state:?}");
        }
    }
}
