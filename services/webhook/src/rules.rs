//! The rules for pods: the registry's addresses, whether to rewrite, and which upstreams. Computed
//! from the configuration and the shared state, and replaced as a whole when the state changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_api::access::ImageAccess;
use holdfast_api::delivery::Delivery;
use holdfast_api::state::{ClusterState, EVERY_SOURCE, Exclusion, OwnerExclusion};
use holdfast_config::Values;
use holdfast_core::UpstreamFilter;
use holdfast_core::workload;
use holdfast_core::{Host, Reference};
use serde_json::Value;

/// Everything that a decision about a pod depends on, besides the pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// The registry's address for rewritten references; `None` while rewriting is off.
    pub address: Option<String>,
    /// All addresses of this registry, the current one included.
    pub known_addresses: Vec<String>,
    /// The upstreams that are rewritten.
    pub upstreams: UpstreamFilter,
    /// Excluded sources by namespace, canonical.
    pub excluded: Arc<BTreeMap<String, BTreeSet<String>>>,
    /// Kind and name of excluded owners, by namespace.
    pub excluded_owners: Arc<BTreeMap<String, BTreeSet<(String, String)>>>,
    /// Which images the pods of a namespace may have from the registry.
    pub access: ImageAccess,
    /// What is known of copies, upstreams and nodes.
    pub delivery: Arc<Delivery>,
}

/// The part of the rules that comes from the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configured {
    /// The upstreams that are rewritten.
    pub upstreams: UpstreamFilter,
    /// Whether private images are restricted to the namespaces that may have them.
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
    /// Combines the configuration with the shared state. Nothing is rewritten without a state, with
    /// `rewrite: false`, or with an address that is not valid in a reference.
    pub fn new(configured: impl Into<Configured>, state: Option<&ClusterState>) -> Self {
        let Configured {
            upstreams,
            by_namespace,
        } = configured.into();
        let access = ImageAccess::new(by_namespace, state.and_then(|state| state.access.as_ref()));
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
            excluded_owners: Arc::new(excluded_owners(&state.excluded_owners)),
            access,
            delivery: Arc::default(),
        }
    }

    /// Whether a source is excluded in a namespace until the registry can copy it.
    pub fn excludes(&self, namespace: &str, source: &Reference) -> bool {
        self.excluded
            .get(namespace)
            .is_some_and(|sources| sources.contains(&source.to_string()))
    }

    /// Whether all sources are excluded in a namespace, because a policy refuses the registry's
    /// references.
    pub fn excludes_namespace(&self, namespace: &str) -> bool {
        self.excluded
            .get(namespace)
            .is_some_and(|sources| sources.contains(EVERY_SOURCE))
    }

    /// Whether the owner of a pod deletes its pods when their images are rewritten.
    pub fn excludes_owner(&self, namespace: &str, pod: &Value) -> bool {
        let Some(owners) = self.excluded_owners.get(namespace) else {
            return false;
        };
        workload::controller_of(pod).is_some_and(|(kind, name, _)| {
            let is_it = |(of_kind, of_name): &(String, String)| of_kind == kind && of_name == name;
            owners.iter().any(is_it)
        })
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

fn excluded_owners(list: &[OwnerExclusion]) -> BTreeMap<String, BTreeSet<(String, String)>> {
    let mut all: BTreeMap<String, BTreeSet<(String, String)>> = BTreeMap::new();
    for entry in list.iter().filter(|entry| !entry.ended) {
        all.entry(entry.namespace.clone())
            .or_default()
            .insert((entry.kind.clone(), entry.name.clone()));
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
