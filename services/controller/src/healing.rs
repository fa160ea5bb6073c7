//! Healing: pods that cannot pull get references that can be pulled, in both directions, and who
//! insists is left alone.
//!
//! A pod that was admitted unrewritten and waits for an image that is local gets the registry's
//! reference; a rewritten pod whose source proves unfillable gets its upstream's reference back,
//! and the webhook leaves that source alone until it can be filled. Where a policy refuses the
//! registry's references, a namespace's pods keep theirs. What is done is decided by pure functions
//! (`decide`, `refusals`, `sources`, `policies`, `wake`) from the watches: `looking` asks them,
//! `acting` does it to the live pod, `trials` tries out who refuses what. Pods only are changed,
//! never what makes them, and none is deleted that has no owner.

mod acting;
pub mod bucket;
pub mod decide;
mod events;
#[cfg(test)]
mod fixtures;
mod looking;
pub mod patch;
pub mod policies;
pub mod refusals;
mod shared;
pub mod sources;
mod trials;
pub mod turns;
pub mod wake;

pub use shared::Healing;

use crate::Context;
use crate::world::Key;
use crate::world::health::Patient;
use bucket::Bucket;
use decide::{Act, Copy};
use events::Events;
use holdfast_api::history::ImageHistory;
use holdfast_config::{HealingMode, HealingValues};
use holdfast_runtime::supervise::Heartbeat;
use policies::Policies;
use refusals::{Proof, Refusals};
use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use turns::Turns;
use wake::Wakes;

/// How often everything is looked at without a change.
const EVERY: Duration = Duration::from_secs(5);
/// Changes within this time are one.
const SETTLE: Duration = Duration::from_millis(500);
/// A pod rests this long after something was done or tried: the watch is to show it first.
const REST: Duration = Duration::from_secs(5);
/// The longest rest of a pod for which nothing succeeds.
const LONG_REST: Duration = Duration::from_secs(300);
/// Images of which the registry is asked at one look whether it holds them still.
const DOUBTS: usize = 64;
/// What was done to a pod is remembered so long after it last needed help; the pod's annotation
/// knows longer.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// How much is done, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether anything is done at all.
    pub mode: HealingMode,
    /// When a source counts as unfillable.
    pub proof: Proof,
    /// Seconds that a pod which was admitted unrewritten has for starting by itself.
    pub grace: i64,
    /// Pods that are patched at once at most, and how soon one more.
    pub patches: (u32, Duration),
    /// Pods that are evicted at once at most, and how soon one more.
    pub evictions: (u32, Duration),
    /// How old the registry's word may be that it holds an image, when a pod is sent to it; as
    /// often it is asked for at most.
    pub fresh: Duration,
    /// Seconds until a policy that refuses the registry's references is asked about for the first
    /// time, and at most.
    pub asks: (i64, i64),
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
            fresh: Duration::from_secs(10),
            asks: (60, 3600),
        }
    }
}

/// Heals, for ever.
pub async fn run(context: Context, heart: Heartbeat) -> Result<(), Infallible> {
    let mut version = context.world.version.subscribe();
    let mut state = context.healing.state.subscribe();
    context.known(&heart).await;
    let mut healer = Healer::new(context);
    loop {
        version.borrow_and_update();
        state.borrow_and_update();
        for task in healer.look() {
            heart.beat();
            healer.perform(task).await;
        }
        healer.try_policies().await;
        heart.success();
        tokio::select! {
            _ = version.changed() => {}
            _ = state.changed() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// A pod and what is to be done for it.
#[derive(Debug)]
struct Task {
    pod: Key,
    patient: Arc<Patient>,
    act: Act,
}

/// What is remembered of a pod.
#[derive(Debug)]
struct Note {
    history: ImageHistory,
    told: BTreeSet<&'static str>,
    rests_until: Option<Instant>,
    /// Attempts in a row that the API server refused.
    failures: u32,
    needed_help: Instant,
}

/// The loop's own state.
struct Healer {
    context: Context,
    events: Events,
    refusals: Refusals,
    policies: Policies,
    wakes: Wakes,
    /// By UID.
    notes: HashMap<String, Note>,
    /// When pods of an owner were made anew, by its UID, in seconds.
    recreated: HashMap<String, Vec<i64>>,
    patches: Bucket,
    evictions: Bucket,
    turns: AllTurns,
    /// When the registry was asked whether it holds an image still.
    doubts: HashMap<Key, Instant>,
}

/// Turns of namespaces, for each thing that may be done only so often.
#[derive(Debug, Default)]
struct AllTurns {
    patches: Turns,
    evictions: Turns,
    doubts: Turns,
}

/// How far the copies of some sources are, by namespace and source.
type Copies = HashMap<(String, String), (Copy, String)>;

impl Healer {
    fn new(context: Context) -> Self {
        let Policy {
            patches,
            evictions,
            asks,
            ..
        } = context.healing.policy;
        Self {
            events: Events::new(context.client.clone()),
            context,
            refusals: Refusals::default(),
            policies: Policies::new(asks),
            wakes: Wakes::default(),
            notes: HashMap::new(),
            recreated: HashMap::new(),
            patches: Bucket::new(patches.0, patches.1),
            evictions: Bucket::new(evictions.0, evictions.1),
            turns: AllTurns::default(),
            doubts: HashMap::new(),
        }
    }
}
