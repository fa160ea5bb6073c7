//! The shared state of the webhook (`F-state`) and the node agents (`F-node`).
//!
//! `build` decides; this file fetches, compares and writes if something differs. Pods come and go
//! without an effect on the state, so they alone cause no requests.

mod address_history;
pub mod build;
#[cfg(test)]
mod tests;

use crate::Context;
pub use address_history::AddressHistory;
use build::{Inputs, NodeInput};
use holdfast_api::access::AccessList;
use holdfast_api::state::{ClusterState, Exclusion, KEY, NodeState, OwnerExclusion};
use holdfast_cluster_index::ClusterIndex;
use holdfast_cluster_index::apply;
use holdfast_cluster_index::events::object;
use holdfast_cluster_model::cluster_ips;
use holdfast_runtime::supervise::Heartbeat;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::api::Api;
use kube::runtime::events::EventType;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Interval of rounds without a change.
const RESYNC_INTERVAL: Duration = Duration::from_secs(10);
/// Changes within this time are one.
const DEBOUNCE: Duration = Duration::from_millis(300);

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or could not be reached.
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    /// A document cannot be written as JSON.
    #[error("cannot write the shared state")]
    Json(#[from] serde_json::Error),
}

/// The inputs of the state from this process. While they are equal, only writes of other clients
/// can change the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Addresses that images of living pods name; `None` while the pods are not known.
    used: Option<BTreeSet<String>>,
    /// The nodes in scope; `None` while they are not known.
    nodes: Option<Vec<NodeInput>>,
    excluded: Option<Vec<Exclusion>>,
    excluded_owners: Option<Vec<OwnerExclusion>>,
    access: Option<AccessList>,
    bundle: String,
    /// Whether this process has written or confirmed the node state once.
    settled: bool,
}

impl Seen {
    fn of(context: &Context) -> Self {
        let pods_synced = ClusterIndex::read(
            &context.index.pods,
            holdfast_cluster_index::WatchCache::synced,
        );
        let nodes_synced = ClusterIndex::read(
            &context.index.nodes,
            holdfast_cluster_index::WatchCache::synced,
        );
        Self {
            used: pods_synced.then(|| used_addresses(context)),
            nodes: (pods_synced && nodes_synced).then(|| nodes(context)),
            excluded: context.healing.excluded.borrow().clone(),
            excluded_owners: context.healing.excluded_owners.borrow().clone(),
            access: context.access.borrow().clone(),
            bundle: context.issued.bundle.borrow().clone(),
            settled: context.settled.load(Ordering::Relaxed),
        }
    }
}

/// Keeps the shared state up to date. Runs for ever.
pub async fn run(context: Context, heart: Heartbeat) -> Result<(), Error> {
    let mut version = context.index.version.subscribe();
    let mut bundle = context.issued.bundle.subscribe();
    let mut excluded = context.healing.excluded.subscribe();
    let mut excluded_owners = context.healing.excluded_owners.subscribe();
    let mut access = context.access.subscribe();
    let mut agreed: Option<Seen> = None;
    let mut next = Instant::now();
    loop {
        version.borrow_and_update();
        bundle.borrow_and_update();
        excluded.borrow_and_update();
        excluded_owners.borrow_and_update();
        access.borrow_and_update();
        if Instant::now() >= next || agreed.as_ref() != Some(&Seen::of(&context)) {
            agreed = round(&context).await?;
            next = Instant::now() + RESYNC_INTERVAL;
        }
        heart.success();
        tokio::select! {
            _ = version.changed() => {}
            _ = bundle.changed() => {}
            _ = excluded.changed() => {}
            _ = excluded_owners.changed() => {}
            _ = access.changed() => {}
            () = tokio::time::sleep_until(next) => {}
        }
        tokio::time::sleep(DEBOUNCE).await;
    }
}

/// The objects of the shared state as they are.
struct Observed {
    /// Addresses of the registry's Service; none before it has any.
    addresses: Vec<String>,
    state_map: Option<ConfigMap>,
    previous: Option<ClusterState>,
    node_secret: Option<Secret>,
    previous_node: Option<NodeState>,
}

/// One round: observe, decide (`build`), apply. Returns its inputs; `None` if one was missing.
pub async fn round(context: &Context) -> Result<Option<Seen>, Error> {
    let seen = Seen::of(context);
    let observed = observe(context).await?;
    let address = observed.addresses.first();
    let Some(address) = address.map(|address| build::as_host(address)) else {
        tracing::debug!("the registry's Service has no ClusterIP yet");
        return Ok(None);
    };
    let previous = observed.previous.as_ref();
    if previous.is_some_and(|previous| previous.registry_address != address) {
        tracing::info!(address, "the address of the registry changed");
        context.issued.wake.notify_one();
    }
    let inputs = inputs(context, &seen, &observed, address);
    let state = build::cluster_state(&inputs);
    follow_addresses(context, &state);
    // The nodes get an address before the webhook.
    let complete = write_nodes(context, &seen, &observed, &inputs, &state).await?;
    write_cluster(context, &observed, &state).await?;
    context.healing.set_state(&state);
    Ok(complete.then_some(seen))
}

async fn observe(context: &Context) -> Result<Observed, Error> {
    let names = &context.names;
    let services: Api<Service> = Api::namespaced(context.client.clone(), &names.namespace);
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &names.namespace);
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &names.namespace);
    let addresses = services
        .get_opt(&names.registry())
        .await?
        .map(|service| cluster_ips(&service))
        .unwrap_or_default();
    let state_map = maps.get_opt(&names.state()).await?;
    let previous = state_map
        .as_ref()
        .and_then(|map| map.data.as_ref()?.get(KEY))
        .and_then(|text| serde_json::from_str(text).ok());
    let node_secret = secrets.get_opt(&names.node()).await?;
    let previous_node =
        apply::text(node_secret.as_ref(), KEY).and_then(|text| serde_json::from_str(&text).ok());
    Ok(Observed {
        addresses,
        state_map,
        previous,
        node_secret,
        previous_node,
    })
}

/// What the state is built from.
fn inputs(context: &Context, seen: &Seen, observed: &Observed, address: String) -> Inputs {
    let previous = observed.previous.as_ref();
    let previous_node = observed.previous_node.as_ref();
    let used = seen.used.clone().and_then(|named| {
        context
            .address_history
            .in_use(named, &address, Instant::now())
    });
    Inputs {
        address,
        previous: previous.cloned(),
        // The nodes' Secret has former addresses, too, in case the ConfigMap was deleted.
        earlier: previous_node
            .iter()
            .flat_map(|state| state.hosts.iter().map(|host| host.address.clone()))
            .collect(),
        desired: previous_node.map(|state| state.desired).unwrap_or_default(),
        used,
        nodes: seen.nodes.clone(),
        excluded: context.healing.init_excluded(previous),
        excluded_owners: context.healing.init_excluded_owners(previous),
        access: access(context, seen.access.clone(), previous),
        wait: context.config.values.webhook.wait_for_nodes,
        waited: observed
            .state_map
            .as_ref()
            .and_then(|map| map.metadata.creation_timestamp.as_ref())
            .map_or(Duration::ZERO, |created| {
                let seconds = jiff::Timestamp::now().as_second() - created.0.as_second();
                Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
            }),
    }
    .resumed(!seen.settled)
}

/// Makes the watches read images with the addresses of the state.
fn follow_addresses(context: &Context, state: &ClusterState) {
    let mut known = vec![state.registry_address.clone()];
    known.extend(state.aliases.clone());
    context.index.addresses.send_if_modified(|current| {
        let differs = *current != known;
        if differs {
            *current = known;
        }
        differs
    });
}

/// Writes the nodes' state if it differs. False if an input is missing.
async fn write_nodes(
    context: &Context,
    seen: &Seen,
    observed: &Observed,
    inputs: &Inputs,
    state: &ClusterState,
) -> Result<bool, Error> {
    let names = &context.names;
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &names.namespace);
    let auth = secrets.get_opt(&names.registry_auth()).await?;
    let credential = (
        apply::text(auth.as_ref(), "node-username"),
        apply::first_line(auth.as_ref(), "node-password"),
    );
    let (false, (Some(username), Some(password))) = (seen.bundle.is_empty(), credential) else {
        return Ok(false);
    };
    let bundle = seen.bundle.clone();
    let node_state = build::node_state(state, inputs.desired, bundle, username, password.into());
    if observed.previous_node.as_ref() != Some(&node_state) {
        let data = [(KEY.to_owned(), serde_json::to_vec(&node_state)?)].into();
        let existing = observed.node_secret.clone();
        if apply::secret(&context.client, names, &names.node(), existing, data).await? {
            tracing::info!(address = state.registry_address, "wrote the node state");
        }
    }
    context.settled.store(true, Ordering::Relaxed);
    Ok(true)
}

/// Writes the cluster's state if it differs, and publishes events about it.
async fn write_cluster(
    context: &Context,
    observed: &Observed,
    state: &ClusterState,
) -> Result<(), Error> {
    let previous = observed.previous.as_ref();
    if previous == Some(state) {
        return Ok(());
    }
    let names = &context.names;
    let data: BTreeMap<_, _> = [(KEY.to_owned(), serde_json::to_string(state)?)].into();
    let (existing, data) = (observed.state_map.clone(), (data, BTreeMap::new()));
    if apply::config_map(&context.client, names, &names.state(), existing, data).await? {
        tracing::info!(
            rewrite = state.rewrite,
            reason = state.reason,
            "wrote the cluster state"
        );
        publish_changes(context, previous, state).await;
    }
    Ok(())
}

/// The access list of the Artifacts; the written one until they are known; `None` with
/// `access.privateImages: node`.
fn access(
    context: &Context,
    known: Option<AccessList>,
    previous: Option<&ClusterState>,
) -> Option<AccessList> {
    let by_namespace = context.config.values.access.is_by_namespace();
    let before = || previous.and_then(|state| state.access.clone());
    by_namespace.then(|| known.or_else(before).unwrap_or_default())
}

fn used_addresses(context: &Context) -> BTreeSet<String> {
    ClusterIndex::read(&context.index.pods, |pods| {
        pods.iter()
            .filter(|(_, pod)| pod.alive)
            .flat_map(|(_, pod)| pod.addresses.iter().cloned())
            .collect()
    })
}

/// The nodes in scope.
fn nodes(context: &Context) -> Vec<NodeInput> {
    let mut nodes: Vec<NodeInput> = crate::nodes::survey(context, jiff::Timestamp::now())
        .into_iter()
        .filter(|node| node.in_scope)
        .map(|node| NodeInput {
            name: node.name,
            ready: node.ready,
            prepared: node.prepared,
        })
        .collect();
    // The index has no order, and inputs are compared.
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    nodes
}

/// Publishes events on the ConfigMap: rewriting begins, ends or waits for other nodes, or the
/// address changes.
async fn publish_changes(context: &Context, previous: Option<&ClusterState>, state: &ClusterState) {
    let before = previous.cloned().unwrap_or_default();
    let names = &context.names;
    let object = object("ConfigMap", Some(&names.namespace), &names.state(), None);
    let publish = async |type_, reason, note: &str| {
        let events = &context.events;
        events
            .publish(&object, type_, reason, "Rewrite", note)
            .await;
    };
    if !before.registry_address.is_empty() && before.registry_address != state.registry_address {
        let note = format!(
            "the registry's address is now {}; nodes keep {} configured while pods use it",
            state.registry_address, before.registry_address
        );
        publish(EventType::Normal, "AddressChanged", &note).await;
    }
    if (before.rewrite, &before.reason) == (state.rewrite, &state.reason) {
        return;
    }
    let reason = if state.rewrite {
        "Rewriting"
    } else {
        "NotRewriting"
    };
    // Rewriting began before all nodes were prepared: pods may not start on the others.
    let type_ = if state.rewrite && state.reason.contains("not prepared") {
        EventType::Warning
    } else {
        EventType::Normal
    };
    publish(type_, reason, &state.reason).await;
}
