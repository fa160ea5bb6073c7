//! What pods are made of: the templates of Deployments, their ReplicaSets, StatefulSets,
//! DaemonSets, revisions, Jobs and CronJobs, as facts; and what controls what. Reads, never
//! changes, an owner.
//!
//! A kind that this process may not list (403), or that the API server does not have, is reported
//! once and left out: its images are then needed as long as pods need them.

use super::Scope;
use super::facts::{address_of, sources};
use super::mirror::Mirror;
use crate::Context;
use futures::StreamExt as _;
use holdfast_api::artifact::Reference;
use holdfast_core::pod;
use holdfast_core::workload::{self, KINDS, WorkloadKind};
use holdfast_runtime::supervise::Heartbeat;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;

/// Objects in one page of a list: all kinds are listed at once, and an owner may be many kilobytes.
const PAGE: u32 = 100;
/// How often a quiet watch shows that it lives.
const BEAT: Duration = Duration::from_secs(20);
/// The pauses before a kind that may not be listed is asked for again. An API server that boots
/// refuses everything for some seconds.
const HIDDEN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
/// The longest chain of controllers that is followed.
const MAX_CHAIN: usize = 8;

/// One owner: who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Kind and name.
    pub reference: Reference,
    /// Its UID.
    pub uid: String,
}

impl Owner {
    /// What controls a raw object.
    pub fn above(object: &Value) -> Option<Self> {
        let (kind, name, uid) = workload::controller_of(object)?;
        Some(Self {
            reference: Reference {
                kind: kind.to_owned(),
                name: name.to_owned(),
            },
            uid: uid.to_owned(),
        })
    }
}

/// An owner, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerFacts {
    /// Its UID.
    pub uid: String,
    /// What controls it.
    pub controller: Option<Owner>,
    /// The upstream images that a pod of its template needs, canonical references; empty when such
    /// a pod is left alone.
    pub sources: BTreeSet<String>,
    /// Whether pods may still be made of it.
    pub may_start: bool,
    /// Names of the template's pull secrets.
    pub pull_secrets: Vec<String>,
    /// The template's service account.
    pub service_account: String,
}

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
    known: RwLock<Mirror<OwnerFacts>>,
}

/// What is known of the owners of each kind, at one moment.
pub type View<'a> = BTreeMap<&'static str, &'a Mirror<OwnerFacts>>;

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

    /// Whether every kind was listed, or is known not to be shown to this process.
    pub fn settled(&self) -> bool {
        self.kinds.iter().all(|of| {
            of.hidden.load(Ordering::Relaxed)
                || of
                    .known
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .synced()
        })
    }

    /// Reads everything at one moment.
    pub fn read<R>(&self, read: impl FnOnce(&View<'_>) -> R) -> R {
        let guards: Vec<_> = self
            .kinds
            .iter()
            .map(|of| {
                let known = of.known.read().unwrap_or_else(PoisonError::into_inner);
                (of.kind.kind, known)
            })
            .collect();
        let view = guards
            .iter()
            .map(|(kind, known)| (*kind, &**known))
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

/// The facts of an owner when it is known and still the same object.
pub fn find<'a>(view: &View<'a>, namespace: &str, owner: &Owner) -> Option<&'a OwnerFacts> {
    view.get(owner.reference.kind.as_str())?
        .get(&(namespace.to_owned(), owner.reference.name.clone()))
        .filter(|facts| facts.uid == owner.uid)
}

/// The uppermost controller that is known of, from `owner` up: the Deployment of a ReplicaSet, the
/// CronJob of a Job, the operator's resource where one controls a workload. What is not known is
/// its own top.
pub fn top(view: &View<'_>, namespace: &str, owner: &Owner) -> Owner {
    let mut owner = owner;
    for _ in 0..MAX_CHAIN {
        match find(view, namespace, owner).and_then(|facts| facts.controller.as_ref()) {
            Some(above) => owner = above,
            None => break,
        }
    }
    owner.clone()
}

/// The facts of an owner, with the registry's `addresses` known so far.
pub fn owner_facts(
    kind: &WorkloadKind,
    object: &Value,
    addresses: &[String],
    scope: &Scope,
) -> OwnerFacts {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let template = workload::pod_template(kind.kind, object)
        .map(|template| workload::pod_of(template, text("/metadata/namespace").unwrap_or_default()))
        .unwrap_or_default();
    let sources = sources(&template, addresses, scope);
    let (pull_secrets, service_account) = if sources.is_empty() {
        Default::default()
    } else {
        let account = pod::service_account_name(&template).to_owned();
        (pod::pull_secret_names(&template), account)
    };
    OwnerFacts {
        uid: text("/metadata/uid").unwrap_or_default().to_owned(),
        controller: Owner::above(object),
        sources,
        may_start: workload::may_start(kind.kind, object),
        pull_secrets,
        service_account,
    }
}

/// An owner as it comes from the API: raw, because the templates' images are read from raw JSON,
/// and without what nobody asks for (managed fields, annotations), because a page of these is held
/// at once.
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

/// Why following a kind ended.
enum Ended {
    /// This process may not see the kind, or the API server has none; with what it said.
    Hidden(String),
    /// The registry's addresses changed, and facts depend on them.
    Addresses,
    /// The stream ended.
    Stream,
}

/// Follows the owners of one kind in all namespaces, for ever.
pub async fn watch_owners(
    context: Context,
    kind: &'static WorkloadKind,
    heart: Heartbeat,
) -> Result<(), Infallible> {
    let Some(of) = context.world.owners.of(kind) else {
        return Ok(());
    };
    let mut pause = HIDDEN.0;
    loop {
        match follow(&context, of, &heart).await {
            Ended::Addresses => {}
            Ended::Stream => tokio::time::sleep(HIDDEN.0).await,
            Ended::Hidden(said) => {
                if of.hidden.swap(true, Ordering::Relaxed) {
                    pause = pause.saturating_mul(2).min(HIDDEN.1);
                } else {
                    pause = HIDDEN.0;
                    context.world.owners.changed();
                    context.metrics.hidden(kind.plural, true);
                    tracing::warn!(
                        kind = kind.kind,
                        error = said,
                        "the controller may not read {}: their images are copied only for existing pods; allow get, list and watch in the \
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

async fn follow(context: &Context, of: &OfKind, heart: &Heartbeat) -> Ended {
    let world = &context.world;
    let mut addresses = world.addresses.subscribe();
    let api: Api<Raw> = Api::all_with(context.client.clone(), of.kind);
    let config = watcher::Config::default().page_size(PAGE);
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
        let known = world.addresses.borrow().clone();
        owner_facts(of.kind, &raw.object, &known, &context.scope)
    };
    loop {
        tokio::select! {
            next = stream.next() => match next {
                Some(Ok(event)) => {
                    heart.success();
                    let listed = matches!(event, watcher::Event::InitDone);
                    let changed = of
                        .known
                        .write()
                        .unwrap_or_else(PoisonError::into_inner)
                        .apply(event, &mut facts);
                    if listed && of.hidden.swap(false, Ordering::Relaxed) {
                        context.metrics.hidden(of.kind.plural, false);
                        tracing::info!(kind = of.kind.kind, "the controller can read {} again", of.kind.plural);
                    }
                    if changed {
                        world.owners.changed();
                    }
                }
                Some(Err(error)) => {
                    if let Some(said) = refusal(&error) {
                        return Ended::Hidden(said);
                    }
                    // The stream goes on by itself, with growing pauses.
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

/// What the API server said when it does not show a kind at all.
fn refusal(error: &watcher::Error) -> Option<String> {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))
    | watcher::Error::WatchError(status)) = error
    else {
        return None;
    };
    // Forbidden, not found, not to be listed.
    matches!(status.code, 403..=405).then(|| status.message.clone())
}

#[cfg(test)]
#[path = "owners_tests.rs"]
mod tests;
