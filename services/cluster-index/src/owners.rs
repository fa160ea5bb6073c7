//! Watches of owners: Deployments, ReplicaSets, StatefulSets, DaemonSets, revisions, Jobs and
//! CronJobs. Owners are read and never changed.
//!
//! A kind that this process may not list (403), or that the API server does not have, is reported
//! once and skipped: its images then count only while pods use them.

use super::watch_cache::{Change, WatchCache};
use super::{BEAT, ClusterIndex, Watches};
use futures::StreamExt as _;
use holdfast_cluster_model::{OwnerFacts, OwnerView, address_of, owner_facts};
use holdfast_core::pod;
use holdfast_core::workload::{self, KINDS, WorkloadKind};
use holdfast_runtime::supervise::Heartbeat;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use parking_lot::RwLock;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Objects in one page of a list: all kinds are listed at once, and an owner may be many kilobytes.
const PAGE_SIZE: u32 = 100;
/// The pauses before a kind that may not be listed is listed again. An API server that starts
/// refuses everything for some seconds.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// All owners, by kind.
#[derive(Debug)]
pub struct Owners {
    kinds: Vec<OfKind>,
    /// Counts changes.
    pub version: watch::Sender<u64>,
}

#[derive(Debug)]
struct OfKind {
    kind: &'static WorkloadKind,
    hidden: AtomicBool,
    known: RwLock<WatchCache<OwnerFacts>>,
}

impl Default for Owners {
    fn default() -> Self {
        let of = |kind| OfKind {
            kind,
            hidden: AtomicBool::new(false),
            known: RwLock::default(),
        };
        Self {
            kinds: Self::kinds().map(of).collect(),
            version: watch::Sender::new(0),
        }
    }
}

impl Owners {
    /// The kinds that are followed: all workloads but the pods themselves.
    pub fn kinds() -> impl Iterator<Item = &'static WorkloadKind> {
        KINDS.iter().filter(|kind| kind.kind != "Pod")
    }

    /// Whether every kind was listed, or may not be read.
    pub fn settled(&self) -> bool {
        self.kinds
            .iter()
            .all(|of| of.hidden.load(Ordering::Relaxed) || of.known.read().synced())
    }

    /// Reads all kinds at one moment.
    pub fn read<R>(&self, read: impl FnOnce(&OwnerView<'_>) -> R) -> R {
        let guards: Vec<_> = self
            .kinds
            .iter()
            .map(|of| {
                let known = of.known.read();
                (of.kind.kind, known)
            })
            .collect();
        let view = guards
            .iter()
            .map(|(kind, known)| (*kind, known.all()))
            .collect();
        read(&view)
    }

    fn of(&self, kind: &WorkloadKind) -> Option<&OfKind> {
        self.kinds.iter().find(|of| of.kind == kind)
    }

    fn changed(&self) {
        self.version
            .send_modify(|version| *version = version.wrapping_add(1));
    }
}

/// An owner as it comes from the API: raw, because the templates' images are read from raw JSON,
/// and without what is not used (managed fields, annotations), because a page of these is held at
/// once.
#[derive(Clone, Debug)]
struct Raw {
    metadata: ObjectMeta,
    object: Value,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Value::deserialize(deserializer)?;
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
            metadata.remove("annotations");
        }
        let metadata = object.get("metadata").cloned().unwrap_or_default();
        Ok(Self {
            metadata: ObjectMeta::deserialize(metadata).map_err(serde::de::Error::custom)?,
            object,
        })
    }
}

impl kube::Resource for Raw {
    type DynamicType = WorkloadKind;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(kind: &WorkloadKind) -> Cow<'_, str> {
        kind.kind.into()
    }

    fn group(kind: &WorkloadKind) -> Cow<'_, str> {
        kind.group.into()
    }

    fn version(kind: &WorkloadKind) -> Cow<'_, str> {
        kind.version.into()
    }

    fn plural(kind: &WorkloadKind) -> Cow<'_, str> {
        kind.plural.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Why a watch ended.
enum Ended {
    /// The kind may not be read or does not exist; with the API server's message.
    Hidden(String),
    /// The registry's addresses changed, and facts depend on them.
    Addresses,
    /// The stream ended.
    Stream,
}

/// Follows the owners of one kind in all namespaces, for ever.
pub async fn watch_owners(
    watches: Watches,
    kind: &'static WorkloadKind,
    heart: Heartbeat,
) -> Result<(), Infallible> {
    let Some(of) = watches.index.owners.of(kind) else {
        return Ok(());
    };
    let mut pause = RETRY_PAUSES.0;
    loop {
        match follow(&watches, of, &heart).await {
            Ended::Addresses => {}
            Ended::Stream => tokio::time::sleep(RETRY_PAUSES.0).await,
            Ended::Hidden(said) => {
                if of.hidden.swap(true, Ordering::Relaxed) {
                    pause = pause.saturating_mul(2).min(RETRY_PAUSES.1);
                } else {
                    pause = RETRY_PAUSES.0;
                    watches.index.owners.changed();
                    watches.metrics.hidden(kind.plural, true);
                    tracing::warn!(
                        kind = kind.kind,
                        error = said,
                        "the controller may not read {}: their images are copied only for \
                         existing pods; allow get, list and watch in the \
                         release's ClusterRole",
                        kind.plural
                    );
                }
                let end = tokio::time::Instant::now() + pause;
                while tokio::time::Instant::now() < end {
                    heart.beat();
                    tokio::time::sleep_until(end.min(tokio::time::Instant::now() + BEAT)).await;
                }
            }
        }
    }
}

async fn follow(watches: &Watches, of: &OfKind, heart: &Heartbeat) -> Ended {
    let index: &ClusterIndex = &watches.index;
    let mut addresses = index.addresses.subscribe();
    let api: Api<Raw> = Api::all_with(watches.client.clone(), of.kind);
    let config = watcher::Config::default().page_size(PAGE_SIZE);
    let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
    let mut tick = tokio::time::interval(BEAT);
    // Whether a template names what may be an address of the registry. Only then facts depend on
    // the addresses, and that is rare.
    let at_address = AtomicBool::new(false);
    let mut facts = |raw: Raw| {
        let named = workload::pod_template(of.kind.kind, &raw.object)
            .into_iter()
            .flat_map(pod::images)
            .any(|image| address_of(&image.image).is_some());
        at_address.fetch_or(named, Ordering::Relaxed);
        let known = index.addresses.borrow().clone();
        owner_facts(of.kind, &raw.object, &known, &watches.scope)
    };
    loop {
        tokio::select! {
            next = stream.next() => match next {
                Some(Ok(event)) => {
                    heart.success();
                    let listed = matches!(event, watcher::Event::InitDone);
                    let change = Change::of(event, &mut facts);
                    let changed = of.known.write().apply(change);
                    if listed && of.hidden.swap(false, Ordering::Relaxed) {
                        watches.metrics.hidden(of.kind.plural, false);
                        tracing::info!(
                            kind = of.kind.kind,
                            "the controller can read {} again",
                            of.kind.plural
                        );
                    }
                    if changed {
                        index.owners.changed();
                    }
                }
                Some(Err(error)) => {
                    if let Some(said) = refusal(&error) {
                        return Ended::Hidden(said);
                    }
                    // The stream retries with growing pauses.
                    heart.beat();
                    tracing::warn!(kind = of.kind.kind, %error, "a watch failed; retrying");
                }
                None => return Ended::Stream,
            },
            Ok(()) = addresses.changed() => {
                if at_address.load(Ordering::Relaxed) {
                    return Ended::Addresses;
                }
            }
            _ = tick.tick() => heart.beat(),
        }
    }
}

/// The API server's message if it refuses a kind.
fn refusal(error: &watcher::Error) -> Option<String> {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))
    | watcher::Error::WatchError(status)) = error
    else {
        return None;
    };
    // Forbidden, not found, method not allowed.
    matches!(status.code, 403..=405).then(|| status.message.clone())
}

#[cfg(test)]
mod tests;
