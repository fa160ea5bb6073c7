//! Healing: gives pods that cannot pull a reference that can be pulled, in both directions, and
//! stops when another controller reverts it each time. The protocol is `docs/design/healing.md`.
//!
//! `observe` reads the index, pure functions decide (`decide`, `unfillable`, `exclusions`,
//! `policies`, `retry_triggers`), `apply` changes the live pod, and `policy_probe` tests which
//! policies deny the registry's references. Healing changes pods only, never their owners, and
//! deletes no pod without an owner.

mod apply;
pub mod comparing_owners;
mod context;
pub mod decide;
mod events;
pub mod exclusions;
#[cfg(test)]
pub(crate) mod fixtures;
mod handle;
mod metrics;
mod observe;
pub mod patch;
pub mod policies;
mod policy_probe;
pub mod retry_triggers;
pub mod token_bucket;
pub mod turns;
pub mod unfillable;

pub use context::Context;
pub use handle::Healing;
pub use metrics::Metrics;

use decide::Act;
use holdfast_api::history::ImageHistory;
use holdfast_cluster_index::Key;
use holdfast_cluster_model::pull_status::StuckPod;
use holdfast_config::{HealingMode, HealingValues};
use holdfast_core::delivery::{Copy, Upstream};
use holdfast_runtime::supervise::Heartbeat;
use policy_probe::PolicyProbe;
use retry_triggers::RetryTriggers;
use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use token_bucket::TokenBucket;
use turns::Turns;
use unfillable::{Proof, Refusals};

/// How often a round runs without a change.
const RESYNC_INTERVAL: Duration = Duration::from_secs(5);
/// Changes within this time are one.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// Pause of a pod after an attempt, until the watch shows its result.
const PAUSE_AFTER_ACT: Duration = Duration::from_secs(5);
/// The longest pause of a pod for which no attempt succeeds.
const MAX_PAUSE: Duration = Duration::from_secs(300);
/// Images per round that the registry is asked to confirm.
const MAX_CONFIRMATIONS_PER_ROUND: usize = 64;
/// Seconds after which an image that is still stuck counts as failed twice.
const SECOND_FAILURE_SECONDS: i64 = 20;
/// How long notes of a pod are kept after it last needed healing. The pod's annotation lasts
/// longer.
const NOTE_TTL: Duration = Duration::from_secs(3600);

/// The limits of healing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether pods are changed.
    pub mode: HealingMode,
    /// When a source counts as unfillable.
    pub proof: Proof,
    /// Seconds that a pod without rewriting has to start.
    pub grace: i64,
    /// Burst of patches, and the interval of further ones.
    pub patches: (u32, Duration),
    /// Burst of evictions, and the interval of further ones.
    pub evictions: (u32, Duration),
    /// Longest age of the registry's confirmation of an image when a pod is changed to pull it;
    /// also the least interval between two requests for a confirmation.
    pub confirmation_ttl: Duration,
    /// First and longest pause between dry runs of a policy, in seconds.
    pub probe_pauses: (i64, i64),
}

impl Policy {
    /// The policy of a configuration.
    pub fn of(values: HealingValues) -> Self {
        let evictions = u32::from(values.evictions_per_minute);
        Self {
            mode: values.mode,
            proof: Proof {
                seconds: i64::from(values.refused_seconds),
                tries: 3,
            },
            grace: 20,
            patches: (50, Duration::from_millis(100)),
            evictions: (evictions.min(3), Duration::from_secs(60) / evictions.max(1)),
            confirmation_ttl: Duration::from_secs(10),
            probe_pauses: (60, 3600),
        }
    }
}

/// Runs healing for ever.
pub async fn run(context: Context, heart: Heartbeat) -> Result<(), Infallible> {
    let mut version = context.index.version.subscribe();
    let mut state = context.healing.state.subscribe();
    context.healing.known(&context.index, &heart).await;
    let mut policy_probe = PolicyProbe::new(context.clone());
    let mut healer = Healer::new(context);
    loop {
        version.borrow_and_update();
        state.borrow_and_update();
        for task in healer.tasks() {
            heart.beat();
            healer.perform(task).await;
        }
        policy_probe.run().await;
        heart.success();
        tokio::select! {
            _ = version.changed() => {}
            _ = state.changed() => {}
            () = tokio::time::sleep(RESYNC_INTERVAL) => {}
        }
        tokio::time::sleep(DEBOUNCE).await;
    }
}

/// A pod and its act.
#[derive(Debug)]
struct Task {
    pod: Key,
    stuck_pod: Arc<StuckPod>,
    act: Act,
}

/// Notes about a pod.
#[derive(Debug)]
struct Note {
    history: ImageHistory,
    reported: BTreeSet<&'static str>,
    paused_until: Option<Instant>,
    /// Attempts in a row that the API server refused.
    failures: u32,
    needed_help: Instant,
}

/// What the loop knows beside the shared state.
struct Healer {
    context: Context,
    refusals: Refusals,
    retry_triggers: RetryTriggers,
    /// By UID.
    notes: HashMap<String, Note>,
    /// Since when an image is stuck, in seconds, by the pod's UID, the image's key and its name.
    stuck_since: HashMap<(String, String, String), i64>,
    /// When pods of an owner were evicted, by its UID, in seconds.
    recreated: HashMap<String, Vec<i64>>,
    patches: TokenBucket,
    evictions: TokenBucket,
    turns: AllTurns,
    /// When the registry was last requested to confirm an image.
    confirmations: HashMap<Key, Instant>,
}

/// Turns of namespaces, for each limited action.
#[derive(Debug, Default)]
struct AllTurns {
    patches: Turns,
    evictions: Turns,
    confirmations: Turns,
}

/// What is known of a source in a namespace.
#[derive(Clone, Debug)]
struct SourceState {
    copy: Copy,
    upstream: Upstream,
    /// Why its upstream refuses it, if it did for long enough.
    refused: String,
    /// Whether pods of the namespace may have it from the registry.
    permitted: bool,
}

impl Default for SourceState {
    fn default() -> Self {
        Self {
            copy: Copy::Absent,
            upstream: Upstream::Unknown,
            refused: String::new(),
            permitted: false,
        }
    }
}

/// Sources by namespace and reference.
type Sources = HashMap<(String, String), SourceState>;

impl Healer {
    fn new(context: Context) -> Self {
        let Policy {
            patches, evictions, ..
        } = context.healing.policy;
        Self {
            context,
            refusals: Refusals::default(),
            retry_triggers: RetryTriggers::default(),
            notes: HashMap::new(),
            stuck_since: HashMap::new(),
            recreated: HashMap::new(),
            patches: TokenBucket::new(patches.0, patches.1),
            evictions: TokenBucket::new(evictions.0, evictions.1),
            turns: AllTurns::default(),
            confirmations: HashMap::new(),
        }
    }
}
