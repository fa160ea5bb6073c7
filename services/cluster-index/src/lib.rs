//! The index of the cluster: small facts about pods, their owners, namespaces, nodes and Artifacts,
//! kept by watches.
//!
//! Of a pod or an owner it keeps a few hundred bytes, so that memory does not grow with the size of
//! the objects. Facts are complete only when `synced`; no loop decides before. Beside it are what
//! node agents report (`reports`), and how the controller writes objects (`apply`) and events.

pub mod apply;
pub mod deletion;
pub mod events;
mod metrics;
mod owners;
pub mod recognizer;
pub mod reports;
mod watch_cache;

pub use holdfast_cluster_model::Key;
pub use metrics::Metrics;
pub use owners::{Owners, watch_owners};
pub use watch_cache::{Change, WatchCache, key};

use deletion::Deletion;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use holdfast_api::Artifact;
use holdfast_api::names::Names;
use holdfast_cluster_model::admission_denials::{self, FAILED_CREATE};
use holdfast_cluster_model::{
    Denial, NamespaceFacts, NodeFacts, PodFacts, Scope, is_agent, node_facts, pod_facts,
};
use holdfast_runtime::supervise::Heartbeat;
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod};
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use parking_lot::{Mutex, RwLock};
use recognizer::Recognizer;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Interval of heartbeats of a quiet watch.
const BEAT: Duration = Duration::from_secs(20);

/// What the watches need.
#[derive(Clone)]
pub struct Watches {
    /// The client of the API server.
    pub client: kube::Client,
    /// What they fill.
    pub index: Arc<ClusterIndex>,
    /// Which pods and templates are in scope.
    pub scope: Arc<Scope>,
    /// Names of the release's objects.
    pub names: Names,
    /// Where kinds that may not be read are counted.
    pub metrics: Metrics,
}

impl std::fmt::Debug for Watches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watches").finish_non_exhaustive()
    }
}

/// Everything that is known.
#[derive(Debug)]
pub struct ClusterIndex {
    /// Pods of all namespaces.
    pub pods: RwLock<WatchCache<PodFacts>>,
    /// Namespaces.
    pub namespaces: RwLock<WatchCache<NamespaceFacts>>,
    /// Nodes.
    pub nodes: RwLock<WatchCache<NodeFacts>>,
    /// Artifacts.
    pub artifacts: RwLock<WatchCache<Arc<Artifact>>>,
    /// Pods that policies denied, by the event that reports it; nothing for other events. `synced`
    /// does not wait for it.
    pub denials: RwLock<WatchCache<Option<Denial>>>,
    /// What pods are made of. It has a version of its own, and `synced` does not wait for it.
    pub owners: Owners,
    /// Recognizes owners that delete rewritten pods.
    recognizer: Mutex<Recognizer>,
    /// Wakes when an owner was recognized.
    pub owner_recognized: Notify,
    /// Counts changes of pods, namespaces, nodes and Artifacts.
    pub version: watch::Sender<u64>,
    /// The registry's addresses, the current one first, by which rewritten images are recognized.
    pub addresses: watch::Sender<Vec<String>>,
}

impl Default for ClusterIndex {
    fn default() -> Self {
        Self {
            pods: RwLock::default(),
            namespaces: RwLock::default(),
            nodes: RwLock::default(),
            artifacts: RwLock::default(),
            denials: RwLock::default(),
            owners: Owners::default(),
            recognizer: Mutex::default(),
            owner_recognized: Notify::new(),
            version: watch::Sender::new(0),
            addresses: watch::Sender::new(Vec::new()),
        }
    }
}

impl ClusterIndex {
    /// Reads one of the caches.
    pub fn read<V, R>(cache: &RwLock<WatchCache<V>>, read: impl FnOnce(&WatchCache<V>) -> R) -> R {
        read(&cache.read())
    }

    /// Whether the watches of pods, namespaces, nodes and Artifacts have delivered their first
    /// lists.
    pub fn synced(&self) -> bool {
        Self::read(&self.pods, WatchCache::synced)
            && Self::read(&self.namespaces, WatchCache::synced)
            && Self::read(&self.nodes, WatchCache::synced)
            && Self::read(&self.artifacts, WatchCache::synced)
    }

    /// Takes the last deletion of each owner that was recognized as one that compares images.
    pub fn take_recognized(&self) -> Vec<Deletion> {
        self.recognizer.lock().take_recognized()
    }

    /// Records the deletion of a pod for the recognition of owners that compare images. The first
    /// event with a deletion timestamp counts, because containers still have the state of before.
    fn observe_deletion(&self, event: &watcher::Event<Pod>, addresses: &[String]) {
        let pod = match event {
            watcher::Event::Apply(pod) if pod.metadata.deletion_timestamp.is_some() => pod,
            watcher::Event::Delete(pod) => pod,
            _ => return,
        };
        let now = jiff::Timestamp::now().as_second();
        if let Some(deletion) = Deletion::of(pod, addresses, now)
            && self.recognizer.lock().observe(&deletion)
        {
            self.owner_recognized.notify_one();
        }
    }

    /// Wakes every loop that waits for a change.
    pub fn notify(&self) {
        self.version
            .send_modify(|version| *version = version.wrapping_add(1));
    }
}

/// Follows the pods of all namespaces. Ends, to be started again, when the registry's addresses
/// change, because facts depend on them.
pub async fn watch_pods(watches: Watches, heart: Heartbeat) -> Result<(), watcher::Error> {
    let api: Api<Pod> = Api::all(watches.client.clone());
    let mut addresses = watches.index.addresses.subscribe();
    let known = addresses.borrow_and_update().clone();
    let scope = Arc::clone(&watches.scope);
    let names = watches.names.clone();
    let stream = watcher(api, watcher::Config::default().page_size(200))
        .default_backoff()
        .inspect_ok(|event| watches.index.observe_deletion(event, &known));
    let follow = follow(stream, &watches.index, &watches.index.pods, heart, |pod| {
        let agent = is_agent(&names, &pod.metadata);
        pod_facts(&pod, &known, &scope, agent)
    });
    tokio::select! {
        outcome = follow => outcome,
        _ = addresses.changed() => Ok(()),
    }
}

/// Follows the namespaces.
pub async fn watch_namespaces(watches: Watches, heart: Heartbeat) -> Result<(), watcher::Error> {
    let api: Api<Namespace> = Api::all(watches.client.clone());
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    follow(
        stream,
        &watches.index,
        &watches.index.namespaces,
        heart,
        |namespace| NamespaceFacts {
            labels: namespace.metadata.labels.unwrap_or_default(),
            terminating: namespace.metadata.deletion_timestamp.is_some(),
        },
    )
    .await
}

/// Follows the nodes.
pub async fn watch_nodes(watches: Watches, heart: Heartbeat) -> Result<(), watcher::Error> {
    let api: Api<Node> = Api::all(watches.client.clone());
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    follow(
        stream,
        &watches.index,
        &watches.index.nodes,
        heart,
        |node| node_facts(&node),
    )
    .await
}

/// Follows the events of pods that could not be created, in all namespaces.
pub async fn watch_denials(watches: Watches, heart: Heartbeat) -> Result<(), watcher::Error> {
    let api: Api<Event> = Api::all(watches.client.clone());
    let config = watcher::Config::default().fields(&format!("reason={FAILED_CREATE}"));
    let stream = watcher(api, config.page_size(100)).default_backoff();
    let index = &watches.index;
    follow(stream, index, &index.denials, heart, |event| {
        admission_denials::denial(&event)
    })
    .await
}

/// Follows the Artifacts.
pub async fn watch_artifacts(watches: Watches, heart: Heartbeat) -> Result<(), watcher::Error> {
    let api: Api<Artifact> = Api::all(watches.client.clone());
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    follow(
        stream,
        &watches.index,
        &watches.index.artifacts,
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
    index: &ClusterIndex,
    cache: &RwLock<WatchCache<V>>,
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
                    let change = Change::of(event, &mut facts);
                    let changed = cache.write().apply(change);
                    if changed {
                        index.notify();
                    }
                }
                Ok(None) => return Ok(()),
                // The stream retries with growing pauses.
                Err(error) => {
                    heart.beat();
                    tracing::warn!(%error, "a watch failed; retrying");
                }
            },
            _ = tick.tick() => heart.beat(),
        }
    }
}
