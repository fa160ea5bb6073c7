//! Artifacts: one for each source image of the pods and pod templates in scope (SPEC 6, SPEC 41),
//! each with its copy in the registry.
//!
//! `demand` says what is needed, `queue` orders the work, `reconcile` handles one Artifact: fetch →
//! validate → build → apply → status. An Artifact whose last owner is gone stays until the limits
//! of Artifacts need its room (`limits`, `removal`).

pub mod access;
pub mod backoff;
pub mod credentials;

pub mod events;
pub mod fill;
pub mod limits;
pub mod preemption;
pub mod preload;
pub mod queue;
pub mod reconcile;
mod refusals;
mod removal;
pub mod status;
pub mod undemanded;
pub mod urgency;

use crate::Context;
use futures::{StreamExt as _, stream};
use holdfast_api::Artifact;
use holdfast_api::access::Access;
use holdfast_api::artifact::Reason;
use holdfast_api::fill::Priority;
use holdfast_cluster_index::apply::FIELD_MANAGER;
use holdfast_cluster_index::events::object;
use holdfast_cluster_index::{ClusterIndex, Key, WatchCache};
use holdfast_cluster_model::{Demand, demand};
use holdfast_runtime::supervise::Heartbeat;
use kube::api::{Api, PostParams};
use kube::runtime::events::EventType;
use queue::Queue;
use reconcile::{Memory, Outcome, Reconciler};
use refusals::Refusals;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Artifacts that are created at a time: a cluster that had workloads before has thousands of
/// images.
const MAX_CONCURRENT_CREATES: usize = 8;
/// Changes within this time are handled together. The second figure is the limit where computing
/// the demand takes long.
const DEBOUNCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Pause after a computation of the demand, in multiples of its duration: it takes a twentieth of a
/// processor at most.
const IDLE_FACTOR: u32 = 19;
/// The shortest pause between two rounds.
const MIN_PAUSE: Duration = Duration::from_millis(5);
/// The same while due Artifacts wait for a place. The end of a copy, or a change, ends it.
const MIN_PAUSE_CROWDED: Duration = Duration::from_millis(250);
/// How often the demand is computed without a reason.
const RESYNC_INTERVAL: Duration = Duration::from_secs(60);
/// Longest wait for the first lists of owners: images of pods must not wait for a list that fails.
const OWNERS_SYNC_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval of the events of a namespace with too many Artifacts.
const EVENT_INTERVAL: Duration = Duration::from_secs(3600);
/// How long a created Artifact may take to show up in the watch.
const CREATE_VISIBLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the loop ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry's client cannot be made.
    #[error(transparent)]
    Fill(#[from] fill::Error),
}

/// Reconciles Artifacts and copies for ever. Requests go to the release's registry, or to the one
/// of `client`.
pub async fn run(
    context: Context,
    client: Option<fill::Client>,
    heart: Heartbeat,
) -> Result<(), Error> {
    let mut version = context.index.version.subscribe();
    let mut owners = context.index.owners.version.subscribe();
    let begun = Instant::now();
    while !context.index.synced()
        || !(context.index.owners.settled() || begun.elapsed() >= OWNERS_SYNC_TIMEOUT)
        || (client.is_none() && context.issued.client().is_none())
    {
        heart.beat();
        tokio::time::sleep(Duration::from_millis(200)).await;
        version.borrow_and_update();
        owners.borrow_and_update();
    }
    if !context.index.owners.settled() {
        tracing::warn!(
            "some workload kinds are not listed yet: copies for pods begin, references in \
             statuses stay incomplete until they are"
        );
    }
    let client = match client {
        Some(client) => client,
        None => fill::Client::for_release(&context)?,
    };
    let reconciler = Arc::new(Reconciler::new(context.clone(), client));
    let mut work = Work {
        context,
        queue: Queue::default(),
        memory: HashMap::new(),
        demand: Arc::default(),
        platforms: Platforms::default(),
        took: Duration::ZERO,
        created: HashMap::new(),
        reported: HashMap::new(),
        refusals: Refusals::default(),
    };
    let mut running: JoinSet<(Key, Memory, Outcome)> = JoinSet::new();
    let mut next_round = Instant::now();
    loop {
        heart.success();
        if Instant::now() >= next_round {
            work.compute(&heart).await;
            next_round = Instant::now() + RESYNC_INTERVAL;
        }
        loop {
            let (demand, context) = (Arc::clone(&work.demand), work.context.clone());
            let now = jiff::Timestamp::now();
            let priority = |key: &Key| {
                ClusterIndex::read(&context.index.artifacts, |artifacts| {
                    artifacts.get(key).map_or(Priority::Prefetch, |artifact| {
                        urgency::priority(artifact, demand.get(key), now)
                    })
                })
            };
            let Some(key) = work.queue.take(Instant::now(), priority) else {
                break;
            };
            work.start(&key, &reconciler, &mut running);
        }
        let due = work.queue.next_due();
        // Whether due Artifacts wait for a place.
        let crowded = due.is_some_and(|due| due <= Instant::now());
        reconciler.preemption.set_others_wait(crowded);
        let soonest = if crowded {
            MIN_PAUSE_CROWDED
        } else {
            MIN_PAUSE
        };
        let pause = due
            .map_or(next_round, |due| due.min(next_round))
            .saturating_duration_since(Instant::now())
            .clamp(soonest, Duration::from_secs(10));
        tokio::select! {
            biased;
            Some(done) = running.join_next() => work.finish(done),
            () = either(&mut version, &mut owners) => {
                version.borrow_and_update();
                owners.borrow_and_update();
                let settled = work.took.saturating_mul(IDLE_FACTOR).clamp(DEBOUNCE.0, DEBOUNCE.1);
                next_round = next_round.min(Instant::now() + settled);
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Waits until one of two versions changes.
async fn either(one: &mut watch::Receiver<u64>, other: &mut watch::Receiver<u64>) {
    tokio::select! {
        _ = one.changed() => {}
        _ = other.changed() => {}
    }
}

/// The platforms of the cluster's nodes, which every copy of an index gets.
pub type Platforms = Arc<BTreeSet<String>>;

pub(crate) fn platforms_of_nodes(index: &ClusterIndex) -> Platforms {
    ClusterIndex::read(&index.nodes, |nodes| {
        let platforms = nodes.iter().filter_map(|(_, node)| node.platform.clone());
        Arc::new(platforms.collect())
    })
}

/// The Artifacts of the index.
type Artifacts = WatchCache<Arc<Artifact>>;

/// The loop's own state.
struct Work {
    context: Context,
    queue: Queue,
    memory: HashMap<Key, Memory>,
    demand: Arc<BTreeMap<Key, Demand>>,
    platforms: Platforms,
    /// How long it took to compute the demand and to compare it.
    took: Duration,
    created: HashMap<Key, Instant>,
    /// When each namespace last got an event about too many Artifacts.
    reported: HashMap<String, Instant>,
    /// Namespaces in which the API server refuses Artifacts.
    refusals: Refusals,
}

impl Work {
    /// Computes the demand, creates missing Artifacts, and wakes those that changed.
    async fn compute(&mut self, heart: &Heartbeat) {
        let context = self.context.clone();
        let index = &context.index;
        let begun = Instant::now();
        let demand = ClusterIndex::read(&index.pods, |pods| {
            ClusterIndex::read(&index.namespaces, |namespaces| {
                index.owners.read(|owners| {
                    demand::demand(pods.all(), owners, namespaces.all(), &context.scope)
                })
            })
        });
        // A node of a new architecture makes its platform wanted for every index.
        self.platforms = platforms_of_nodes(index);
        let now = Instant::now();
        self.created
            .retain(|_, at| now.duration_since(*at) < CREATE_VISIBLE_TIMEOUT);
        let plan = ClusterIndex::read(&index.artifacts, |artifacts| {
            let plan = self.plan(artifacts, &demand);
            self.wake_changed(artifacts, &demand, &plan, now);
            self.wake_requested(now);
            let exists = |key: &Key| artifacts.get(key).is_some();
            if context.config.values.access.is_by_namespace() {
                publish_access(&context, artifacts);
            }
            self.memory.retain(|key, _| exists(key));
            context.healing.forget(exists);
            plan
        });
        self.demand = Arc::new(demand);
        self.took = begun.elapsed();
        self.report_refused(&plan.refused, now).await;
        self.create(plan.create, heart).await;
    }

    /// Plans which Artifacts are created and which make room, and counts the wanted images.
    fn plan(&self, artifacts: &Artifacts, demand: &BTreeMap<Key, Demand>) -> limits::Plan {
        let (mut missing, mut progress) = (Vec::new(), Progress::default());
        for (key, demand) in demand {
            let Some(priority) = demand.priority() else {
                continue;
            };
            let artifact = artifacts.get(key);
            progress.count(priority, artifact.is_some_and(|it| it.is_ready()));
            if artifact.is_none() && !self.created.contains_key(key) {
                missing.push((key.clone(), demand.clone()));
            }
        }
        let metrics = &self.context.metrics;
        for (priority, images) in progress.0 {
            metrics.wanted(priority, images.wanted, images.local);
        }
        let existing = artifacts.iter().map(|(key, artifact)| {
            let confirmed = self.memory.get(key).is_some_and(Memory::was_confirmed);
            existing(key, artifact, demand.get(key), confirmed)
        });
        let limits = self.context.config.values.controller.artifacts;
        limits::plan(missing, existing, limits)
    }

    /// Wakes the Artifacts whose inputs changed, and counts all by reason.
    fn wake_changed(
        &mut self,
        artifacts: &Artifacts,
        demand: &BTreeMap<Key, Demand>,
        plan: &limits::Plan,
        now: Instant,
    ) {
        let mut counts: BTreeMap<&'static str, usize> = Reason::ALL
            .iter()
            .map(|reason| (reason.as_str(), 0))
            .collect();
        for (key, artifact) in artifacts.iter() {
            let reason = artifact.reason();
            if let Some(count) = reason.and_then(|reason| counts.get_mut(reason)) {
                *count += 1;
            }
            let memory = self.memory.entry(key.clone()).or_default();
            let demanded = demand.get(key);
            let changed = memory.set_surplus(plan.surplus.contains(key))
                | memory.set_beyond(plan.beyond.contains(key));
            if changed || memory.needs_run(artifact, demanded, &self.platforms) {
                memory.observe(artifact, demanded, &self.platforms);
                self.queue.wake(key, now);
            }
        }
        for (reason, count) in counts {
            self.context.metrics.artifacts(reason, count);
        }
    }

    /// Wakes the Artifacts for which healing requested a retry or a confirmation.
    fn wake_requested(&mut self, now: Instant) {
        for key in self.context.healing.take_retries() {
            if let Some(memory) = self.memory.get_mut(&key) {
                memory.end_pause();
                self.queue.wake(&key, now);
            }
        }
        for key in self.context.healing.take_confirmations() {
            if let Some(memory) = self.memory.get_mut(&key) {
                memory.request_confirmation();
                self.queue.wake(&key, now);
            }
        }
    }

    /// Reports how many images are not copied because there are too many Artifacts: by a metric,
    /// and once an hour by an event on each namespace.
    async fn report_refused(&mut self, refused: &BTreeMap<String, usize>, now: Instant) {
        let metrics = &self.context.metrics;
        metrics.artifacts_refused(refused.values().sum());
        self.reported
            .retain(|_, at| now.duration_since(*at) < EVENT_INTERVAL);
        let limits = self.context.config.values.controller.artifacts;
        for (namespace, images) in refused {
            if self.reported.contains_key(namespace) {
                continue;
            }
            self.reported.insert(namespace.clone(), now);
            let note = format!(
                "{images} images are not copied: there are too many Artifacts in this namespace \
                 (controller.artifacts.perNamespace: {}) or in all (controller.artifacts.total: \
                 {}); remove Artifacts that nothing needs, or raise the limit",
                limits.per_namespace, limits.total
            );
            tracing::warn!(artifact.namespace = namespace, images, "{note}");
            // An event about a namespace is written in that namespace.
            let object = object("Namespace", Some(namespace), namespace, None);
            let events = &self.context.events;
            events
                .publish(
                    &object,
                    EventType::Warning,
                    "TooManyArtifacts",
                    "Copy",
                    &note,
                )
                .await;
        }
    }

    /// Creates Artifacts.
    async fn create(&mut self, missing: Vec<(Key, Demand)>, heart: &Heartbeat) {
        let context = self.context.clone();
        let mut creating = stream::iter(missing)
            .map(async |(key, demand)| {
                let artifact = Artifact::of_source(&demand.source);
                let outcome = create(&context, &key.0, artifact).await;
                (key, demand, outcome)
            })
            .buffer_unordered(MAX_CONCURRENT_CREATES);
        while let Some((key, demand, outcome)) = creating.next().await {
            heart.beat();
            match outcome {
                Ok(made) => {
                    if made {
                        tracing::info!(
                            artifact.namespace = key.0,
                            image = demand.source,
                            priority = demand.priority().map(Priority::as_str),
                            "created an Artifact for an image that the webhook did not announce"
                        );
                    }
                    self.created.insert(key, Instant::now());
                }
                // The next computation retries. A namespace that is being deleted refuses it.
                Err(error) => {
                    tracing::warn!(
                        artifact.namespace = key.0, image = demand.source, %error,
                        "cannot create an Artifact"
                    );
                    if let Some(note) = self.refusals.note(&key.0, &error, Instant::now()) {
                        let object = object("Namespace", Some(&key.0), &key.0, None);
                        context
                            .events
                            .publish(
                                &object,
                                EventType::Warning,
                                "ArtifactsRefused",
                                "Copy",
                                &note,
                            )
                            .await;
                    }
                }
            }
        }
    }

    fn start(
        &mut self,
        key: &Key,
        reconciler: &Arc<Reconciler>,
        running: &mut JoinSet<(Key, Memory, Outcome)>,
    ) {
        let artifact = ClusterIndex::read(&self.context.index.artifacts, |artifacts| {
            artifacts.get(key).cloned()
        });
        let Some(artifact) = artifact else {
            self.queue.done(key, None);
            return;
        };
        let memory = self.memory.get_mut(key).map(Memory::begin);
        let memory = memory.unwrap_or_default();
        let demand = self.demand.get(key).cloned();
        let platforms = Arc::clone(&self.platforms);
        let (reconciler, key) = (Arc::clone(reconciler), key.clone());
        running.spawn(async move {
            let mut memory = memory;
            let outcome = reconciler
                .reconcile(&artifact, demand.as_ref(), &platforms, &mut memory)
                .await;
            (key, memory, outcome)
        });
    }

    fn finish(&mut self, done: Result<(Key, Memory, Outcome), tokio::task::JoinError>) {
        match done {
            Ok((key, memory, outcome)) => {
                self.queue
                    .done(&key, outcome.again.map(|pause| Instant::now() + pause));
                if let Some(current) = self.memory.get_mut(&key) {
                    current.merge(memory);
                }
            }
            Err(error) => {
                tracing::error!(%error, "reconciling an Artifact failed");
                // The failed run is unknown, so all are repeated.
                self.queue.recover(Instant::now() + Duration::from_secs(5));
            }
        }
    }
}

/// Publishes which images the pods of a namespace may pull.
fn publish_access(context: &Context, artifacts: &Artifacts) {
    let mut counts = Access::ALL.map(|access| (access, 0));
    for (_, artifact) in artifacts.iter() {
        let answer = access::of(artifact);
        for (access, count) in &mut counts {
            *count += usize::from(*access == answer);
        }
    }
    for (access, count) in counts {
        context.metrics.access(access.as_str(), count);
    }
    let (list, refused) = access::list(artifacts.iter());
    context.metrics.access_refused(refused);
    context.access.send_if_modified(|known| {
        let differs = known.as_ref() != Some(&list);
        if differs {
            *known = Some(list);
        }
        differs
    });
}

/// The input of the limits.
fn existing<'a>(
    key: &'a Key,
    artifact: &Artifact,
    demand: Option<&Demand>,
    confirmed: bool,
) -> limits::Existing<'a> {
    let created = artifact.metadata.creation_timestamp.as_ref();
    limits::Existing {
        key,
        created: created.map_or(0, |created| created.0.as_second()),
        copied: confirmed || artifact.was_copied(),
        priority: demand.and_then(Demand::priority),
        automatic: undemanded::is_automatic(artifact),
    }
}

/// How many images are wanted, and how many of them are local, by priority.
#[derive(Debug)]
struct Progress(BTreeMap<Priority, Images>);

#[derive(Debug, Default)]
struct Images {
    wanted: usize,
    local: usize,
}

impl Default for Progress {
    fn default() -> Self {
        Self(
            Priority::ALL
                .map(|priority| (priority, Images::default()))
                .into(),
        )
    }
}

impl Progress {
    fn count(&mut self, priority: Priority, local: bool) {
        let images = self.0.entry(priority).or_default();
        images.wanted += 1;
        images.local += usize::from(local);
    }
}

/// Creates an Artifact with the controller's labels. False if the name is taken.
async fn create(
    context: &Context,
    namespace: &str,
    mut artifact: Artifact,
) -> Result<bool, kube::Error> {
    let api: Api<Artifact> = Api::namespaced(context.client.clone(), namespace);
    let labels = artifact.metadata.labels.get_or_insert_default();
    labels.extend(holdfast_cluster_index::apply::labels(&context.names));
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    match api.create(&params, &artifact).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
