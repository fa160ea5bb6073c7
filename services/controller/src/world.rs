//! What is known of the cluster: small facts about pods, their owners, namespaces, nodes and
//! Artifacts, kept by watches.
//!
//! Of a pod or an owner only what decides is kept (a few hundred bytes), so that memory does not
//! follow the size of the cluster's pods. Facts are complete only when `synced`; nobody decides
//! anything before.

mod denials;
mod facts;
pub mod health;
mod mirror;
mod owners;

pub use denials::{Denial, denied_by, watch_denials};
pub(crate) use facts::document;
pub use facts::{Agent, NamespaceFacts, NodeFacts, PodFacts, Scope, node_facts, pod_facts};
pub use mirror::{Key, Mirror, key};
pub use owners::{
    Owner, OwnerFacts, Owners, View, find as find_owner, owner_facts, top as top_owner,
    watch_owners,
};

use crate::Context;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use holdfast_api::Artifact;
use holdfast_runtime::supervise::Heartbeat;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::sync::watch;

/// How often a quiet watch shows that it lives.
const BEAT: Duration = Duration::from_secs(20);

/// Everything that is known.
#[derive(Debug)]
pub struct World {
    /// Pods of all namespaces.
    pub pods: RwLock<Mirror<PodFacts>>,
    /// Namespaces.
    pub namespaces: RwLock<Mirror<NamespaceFacts>>,
    /// Nodes.
    pub nodes: RwLock<Mirror<NodeFacts>>,
    /// Artifacts.
    pub artifacts: RwLock<Mirror<Arc<Artifact>>>,
    /// Pods that policies refused to their owners, by the event that tells it; nothing for events
    /// of another meaning. `synced` does not wait for it.
    pub denials: RwLock<Mirror<Option<Denial>>>,
    /// What pods are made of. It has a version of its own, and `synced` does not wait for it.
    pub owners: Owners,
    /// Counts changes of pods, namespaces, nodes and Artifacts.
    pub version: watch::Sender<u64>,
    /// The registry's addresses, the current one first; what the images of pods are read back by.
    pub addresses: watch::Sender<Vec<String>>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            pods: RwLock::default(),
            namespaces: RwLock::default(),
            nodes: RwLock::default(),
            artifacts: RwLock::default(),
            denials: RwLock::default(),
            owners: Owners::default(),
            version: watch::Sender::new(0),
            addresses: watch::Sender::new(Vec::new()),
        }
    }
}

impl World {
    /// Reads one of the mirrors. A poisoned lock is read all the same: its content is replaced by
    /// the next event.
    pub fn read<V, R>(mirror: &RwLock<Mirror<V>>, read: impl FnOnce(&Mirror<V>) -> R) -> R {
        read(
            &mirror
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }

    /// Whether the watches of pods, namespaces, nodes and Artifacts have delivered their first
    /// lists.
    pub fn synced(&self) -> bool {
        Self::read(&self.pods, Mirror::synced)
            && Self::read(&self.namespaces, Mirror::synced)
            && Self::read(&self.nodes, Mirror::synced)
            && Self::read(&self.artifacts, Mirror::synced)
    }

    /// Has everybody who decides look again.
    pub fn nudge(&self) {
        self.changed();
    }

    fn changed(&self) {
        self.version
            .send_modify(|version| *version = version.wrapping_add(1));
    }
}

/// Follows the pods of all namespaces. Ends, to be started again, when the registry's addresses
/// change, because facts depend on them.
pub async fn watch_pods(context: Context, heart: Heartbeat) -> Result<(), watcher::Error> {
    let api: Api<Pod> = Api::all(context.client.clone());
    let mut addresses = context.world.addresses.subscribe();
    let known = addresses.borrow_and_update().clone();
    let scope = Arc::clone(&context.scope);
    let names = context.names.clone();
    let stream = watcher(api, watcher::Config::default().page_size(200)).default_backoff();
    let follow = follow(
        stream,
        &context.world,
        &context.world.pods,
        heart,
        move |pod| {
            let labels = pod.metadata.labels.as_ref();
            let agent = facts::is_agent(&names, pod.metadata.namespace.as_deref(), labels);
            pod_facts(&pod, &known, &scope, agent)
        },
    );
    tokio::select! {
        outcome = follow => outcome,
        _ = addresses.changed() => Ok(()),
    }
}

/// Follows the namespaces.
pub async fn watch_namespaces(context: Context, heart: Heartbeat) -> Result<(), watcher::Error> {
    let api: Api<Namespace> = Api::all(context.client.clone());
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    follow(
        stream,
        &context.world,
        &context.world.namespaces,
        heart,
        |namespace| NamespaceFacts {
            labels: namespace.metadata.labels.unwrap_or_default(),
            terminating: namespace.metadata.deletion_timestamp.is_some(),
        },
    )
    .await
}

/// Follows the nodes.
pub async fn watch_nodes(context: Context, heart: Heartbeat) -> Result<(), watcher::Error> {
    let api: Api<Node> = Api::all(context.client.clone());
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    follow(
        stream,
        &context.world,
        &context.world.nodes,
        heart,
        |node| node_facts(&node),
    )
    .await
}

/// Follows the Artifacts.
pub async fn watch_artifacts(context: Context, heart: Heartbeat) -> Result<(), watcher::Error> {
    let api: Api<Artifact> = Api::all(context.client.clone());
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    follow(
        stream,
        &context.world,
        &context.world.artifacts,
        heart,
        |mut artifact| {
            artifact.metadata.managed_fields = None;
            Arc::new(artifact)
        },
    )
    .await
}

async fn follow<K, V: PartialEq>(
    stream: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>>,
    world: &World,
    mirror: &RwLock<Mirror<V>>,
    heart: Heartbeat,
    mut facts: impl FnMut(K) -> V,
) -> Result<(), watcher::Error>
where
    K: kube::ResourceExt,
{
    let mut stream = std::pin::pin!(stream.fuse());
    let mut tick = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            next = stream.try_next() => match next {
                Ok(Some(event)) => {
                    heart.success();
                    let changed = mirror
                        .write()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .apply(event, &mut facts);
                    if changed {
                        world.changed();
                    }
                }
                Ok(None) => return Ok(()),
                // The stream goes on by itself, with growing pauses.
                Err(error) => {
                    heart.beat();
                    tracing::warn!(%error, "a watch failed; retrying");
                }
            },
            _ = tick.tick() => heart.beat(),
        }
    }
}
