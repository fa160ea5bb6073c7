//! Healing: pods that cannot pull get references that can be pulled, in both directions, and who insists is left alone.
//!
//! A pod that was admitted unrewritten and waits for an image that is local gets the registry's reference; a rewritten pod
//! whose source proves unfillable gets its upstream's reference back, and the webhook leaves that source alone until it can be
//! filled. What is done is decided by pure functions (`decide`, `refusals`, `sources`, `wake`) from the watches; this file
//! looks at the live pod once more, acts, tells and counts. It changes pods only, never what makes them, and deletes none
//! that has no owner.

pub mod bucket;
pub mod decide;
mod events;
#[cfg(test)]
mod fixtures;
pub mod patch;
pub mod refusals;
mod shared;
pub mod sources;
pub mod wake;

pub use shared::Healing;

use crate::Context;
use crate::artifacts::status;
use crate::world::health::Patient;
use crate::world::{Key, World, document, pod_facts};
use bucket::Bucket;
use decide::{Act, Copy, Site, decide};
use events::Events;
use holdfast_api::artifact::Reason;
use holdfast_api::history::ImageHistory;
use holdfast_api::{Artifact, artifact_name};
use holdfast_config::{HealingMode, HealingValues};
use holdfast_runtime::supervise::Heart;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams, PostParams};
use refusals::{Proof, Refusals};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wake::Wakes;

/// How often everything is looked at without a change.
const EVERY: Duration = Duration::from_secs(5);
/// Changes within this time are one.
const SETTLE: Duration = Duration::from_millis(500);
/// A pod rests this long after something was done or tried: the watch is to show it first.
const REST: Duration = Duration::from_secs(5);
/// The longest rest of a pod for which nothing succeeds.
const LONG_REST: Duration = Duration::from_secs(300);
/// What was done to a pod is remembered so long after it last needed help; the pod's annotation knows longer.
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
        }
    }
}

/// Heals, for ever.
pub async fn run(context: Context, heart: Heart) -> Result<(), Infallible> {
    let mut version = context.world.version.subscribe();
    let mut state = context.healing.state.subscribe();
    while !context.world.synced() || state.borrow_and_update().is_none() {
        heart.beat();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut healer = Healer::new(context);
    loop {
        version.borrow_and_update();
        state.borrow_and_update();
        for task in healer.look() {
            heart.beat();
            healer.perform(task).await;
        }
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
    wakes: Wakes,
    /// By UID.
    notes: HashMap<String, Note>,
    /// When pods of an owner were made anew, by its UID, in seconds.
    recreated: HashMap<String, Vec<i64>>,
    patches: Bucket,
    evictions: Bucket,
}

/// How far the copies of some sources are, by namespace and source.
type Copies = HashMap<(String, String), (Copy, String)>;

impl Healer {
    fn new(context: Context) -> Self {
        let Policy {
            patches, evictions, ..
        } = context.healing.policy;
        Self {
            events: Events::new(context.client.clone()),
            context,
            refusals: Refusals::default(),
            wakes: Wakes::default(),
            notes: HashMap::new(),
            recreated: HashMap::new(),
            patches: Bucket::new(patches.0, patches.1),
            evictions: Bucket::new(evictions.0, evictions.1),
        }
    }

    fn site(&self) -> Site {
        let state = self.context.healing.state.borrow();
        Site {
            address: state
                .as_ref()
                .filter(|state| state.rewrite)
                .map(|state| state.registry_address.clone()),
            grace: self.context.healing.policy.grace,
            now: jiff::Timestamp::now().as_second(),
        }
    }

    /// Looks at everything that is known; what is to be done, pod by pod.
    fn look(&mut self) -> Vec<Task> {
        let context = self.context.clone();
        let (now, site) = (Instant::now(), self.site());
        let mut patients = patients(&context);
        let (copies, failed) = self.copies(&patients, site.now);
        self.wake(failed, now);
        self.settle(site.now);
        let stuck = patients
            .iter()
            .filter(|(_, patient)| patient.is_stuck(None));
        context.metrics.pods_stuck(stuck.count());
        if context.healing.policy.mode == HealingMode::None {
            return Vec::new();
        }
        patients.sort_by(|one, other| one.0.cmp(&other.0));
        let mut tasks = Vec::new();
        for (pod, patient) in patients {
            let known = self.notes.get_mut(&patient.uid);
            let rests = known.is_some_and(|note| {
                note.needed_help = now;
                note.rests_until.is_some_and(|until| now < until)
            });
            if rests {
                continue;
            }
            let act = self.decide(&pod.0, &patient, &copies, &site);
            let told = self
                .notes
                .get(&patient.uid)
                .is_some_and(|note| note.told.contains(act.word()));
            let only_words = matches!(act, Act::LeaveAlone { record: false } | Act::Hopeless(_));
            if act != Act::Nothing && !(only_words && told) {
                tasks.push(Task { pod, patient, act });
            }
        }
        self.notes
            .retain(|_, note| now.duration_since(note.needed_help) < REMEMBERED);
        tasks
    }

    fn decide(&self, namespace: &str, patient: &Patient, copies: &Copies, site: &Site) -> Act {
        let known = self.history(patient);
        let recreated = patient.owner.as_ref().map_or(0, |owner| {
            let times = self.recreated.get(&owner.uid);
            times.map_or(0, |times| {
                times.iter().filter(|at| site.now - **at < 3600).count()
            })
        });
        let copy = |source: &str| {
            copies
                .get(&(namespace.to_owned(), source.to_owned()))
                .map_or(Copy::Pending, |(copy, _)| *copy)
        };
        decide(patient, &known, copy, recreated, site)
    }

    /// What the pod says and what this process remembers.
    fn history(&self, patient: &Patient) -> ImageHistory {
        let known = patient.history.clone();
        match self.notes.get(&patient.uid) {
            // What was given back may be healed since: only the pod itself knows.
            Some(note) => known.with(ImageHistory {
                restored: BTreeSet::new(),
                ..note.history.clone()
            }),
            None => known,
        }
    }

    fn note(&mut self, uid: &str, now: Instant) -> &mut Note {
        let note = self.notes.entry(uid.to_owned()).or_insert_with(|| Note {
            history: ImageHistory {
                uid: uid.to_owned(),
                ..ImageHistory::default()
            },
            told: BTreeSet::new(),
            rests_until: None,
            failures: 0,
            needed_help: now,
        });
        note.needed_help = now;
        note
    }

    /// How far the patients' images are, and which Artifacts failed.
    fn copies(&mut self, patients: &[(Key, Arc<Patient>)], now: i64) -> (Copies, BTreeSet<Key>) {
        let proof = self.context.healing.policy.proof;
        let refusals = &mut self.refusals;
        World::read(&self.context.world.artifacts, |artifacts| {
            let all = || artifacts.iter().map(|(key, it)| (key, it.as_ref()));
            refusals.see(all(), now);
            let mut copies = Copies::new();
            for (pod, patient) in patients {
                for image in &patient.images {
                    let key = (pod.0.clone(), artifact_name(&image.source));
                    let Some(artifact) = artifacts.get(&key) else {
                        continue;
                    };
                    let copy = if status::was_ready(artifact) {
                        (Copy::Held, String::new())
                    } else if let Some(reason) = refusals.proven(&key, artifact, proof, now) {
                        (Copy::Refused, reason)
                    } else {
                        continue;
                    };
                    copies.insert((pod.0.clone(), image.source.clone()), copy);
                }
            }
            let failed = all()
                .filter(|(_, artifact)| has_failed(artifact))
                .map(|(key, _)| key.clone())
                .collect();
            (copies, failed)
        })
    }

    /// Asks again for what failed, where pods show that it may be had by now, or that it is wanted now.
    fn wake(&mut self, failed: BTreeSet<Key>, now: Instant) {
        let namespaces: BTreeSet<String> = failed
            .iter()
            .map(|(namespace, _)| namespace.clone())
            .collect();
        let mut pods: HashMap<Key, BTreeSet<(String, bool)>> = failed
            .into_iter()
            .map(|key| (key, BTreeSet::new()))
            .collect();
        if !pods.is_empty() {
            World::read(&self.context.world.pods, |known| {
                for ((namespace, _), pod) in known.iter() {
                    if !pod.alive || !namespaces.contains(namespace) {
                        continue;
                    }
                    for source in &pod.sources {
                        let patient = pod.patient.as_ref();
                        let stuck = patient.is_some_and(|patient| patient.is_stuck(Some(source)));
                        let runs = !pod.waiting && !stuck;
                        let key = (namespace.clone(), artifact_name(source));
                        if let Some(pods) = pods.get_mut(&key) {
                            pods.insert((pod.uid.clone(), runs));
                        }
                    }
                }
            });
        }
        let woken = self.wakes.see(pods, now);
        if !woken.is_empty() {
            tracing::debug!(count = woken.len(), "asking again before the pause ends");
            self.context.healing.ask(woken);
            self.context.world.nudge();
        }
    }

    /// Takes sources off the list that the registry holds by now, and forgets what was done to owners long ago.
    fn settle(&mut self, now: i64) {
        let world = &self.context.world;
        let mut settled = Vec::new();
        self.context.healing.left_alone.send_if_modified(|list| {
            let Some(list) = list else {
                return false;
            };
            World::read(&world.artifacts, |artifacts| {
                let artifact = |namespace: &str, name: &str| {
                    let key = (namespace.to_owned(), name.to_owned());
                    artifacts.get(&key).map(Arc::as_ref)
                };
                settled = sources::drop_settled(list, artifact);
            });
            self.context.metrics.sources_left_alone(list.len());
            !settled.is_empty()
        });
        for entry in settled {
            tracing::info!(
                image = entry.source,
                artifact.namespace = entry.namespace,
                "the source is rewritten again"
            );
        }
        self.recreated
            .retain(|_, times| times.iter().any(|at| now - at < 3600));
    }

    async fn perform(&mut self, task: Task) {
        let Task { pod, patient, act } = task;
        let now = Instant::now();
        if self.context.healing.policy.mode == HealingMode::DryRun {
            if self.note(&patient.uid, now).told.insert(act.word()) {
                tracing::info!(pod.namespace = pod.0, pod.name = pod.1, act = act.word(), detail = ?act, "healing would do this");
                self.context.metrics.healed(act.word(), "planned");
            }
            return;
        }
        let enough = match act {
            Act::Recreate(_) => self.evictions.take(now),
            _ => self.patches.take(now),
        };
        if !enough {
            self.context.metrics.healed(act.word(), "deferred");
            return;
        }
        let word = act.word();
        let outcome = self.act(&pod, &patient, act).await;
        let note = self.note(&patient.uid, now);
        note.failures = match &outcome {
            Err(error) if !is_conflict(error) => note.failures.saturating_add(1),
            _ => 0,
        };
        let rest = REST * 2_u32.saturating_pow(note.failures.min(8));
        note.rests_until = Some(Instant::now() + rest.min(LONG_REST));
        let result = match outcome {
            Ok(Some((done, history))) => {
                note.told.insert(done.word());
                if let Some(history) = history {
                    note.history = history;
                }
                tracing::info!(
                    pod.namespace = pod.0,
                    pod.name = pod.1,
                    act = word,
                    detail = ?done,
                    "healing"
                );
                self.events.tell(&pod, &patient.uid, &done).await;
                "done"
            }
            // It needs nothing any more, or something else.
            Ok(None) => "outdated",
            Err(error) if is_conflict(&error) => {
                tracing::debug!(pod.namespace = pod.0, pod.name = pod.1, %error, "a pod changed meanwhile");
                "outdated"
            }
            Err(error) => {
                tracing::warn!(pod.namespace = pod.0, pod.name = pod.1, act = word, %error, "healing failed and is tried again");
                // A policy, say: whoever looks at the pod is to know, once.
                if let kube::Error::Api(status) = &error
                    && (400..429).contains(&status.code)
                    && note.told.insert("refused")
                {
                    self.events
                        .refused(&pod, &patient.uid, word, &status.message)
                        .await;
                }
                "failed"
            }
        };
        self.context.metrics.healed(word, result);
    }

    /// Does it to the live pod, if that still needs it; what was done, and what the pod's history is then.
    async fn act(
        &mut self,
        pod: &Key,
        patient: &Patient,
        act: Act,
    ) -> Result<Option<(Act, Option<ImageHistory>)>, kube::Error> {
        if matches!(act, Act::LeaveAlone { record: false } | Act::Hopeless(_)) {
            return Ok(Some((act, None)));
        }
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &pod.0);
        let Some(live) = api.get_opt(&pod.1).await? else {
            return Ok(None);
        };
        let addresses = self.context.world.addresses.borrow().clone();
        let facts = pod_facts(&live, &addresses, &self.context.scope, false);
        let Some(mut current) = facts.patient else {
            return Ok(None);
        };
        Arc::make_mut(&mut current).wanted &= patient.wanted;
        let site = self.site();
        let one = [(pod.clone(), current)];
        let (copies, _) = self.copies(&one, site.now);
        let [(_, current)] = one;
        let again = self.decide(&pod.0, &current, &copies, &site);
        if current.uid != patient.uid || again.word() != act.word() {
            return Ok(None);
        }
        let (kind, changes) = match &again {
            Act::Heal(changes) => (patch::Kind::Heal, changes.as_slice()),
            Act::Restore(changes) => {
                self.leave_sources_alone(&pod.0, changes, &copies);
                (patch::Kind::Restore, changes.as_slice())
            }
            Act::LeaveAlone { .. } => (patch::Kind::LeaveAlone, [].as_slice()),
            Act::Recreate(changes) => {
                let written = self.leave_sources_alone(&pod.0, changes, &copies);
                if !written {
                    return Ok(None);
                }
                self.evict(&api, &pod.1, &current, site.now).await?;
                return Ok(Some((again, None)));
            }
            Act::Nothing | Act::Hopeless(_) => return Ok(None),
        };
        let next = patch::history(&self.history(&current), kind, changes);
        let operations = patch::operations(&document(&live), &current, kind, changes, &next);
        // Ours are well formed; what is not would do nothing but fail here.
        let operations: json_patch::Patch =
            serde_json::from_value(Value::Array(operations)).map_err(kube::Error::SerdeError)?;
        let params = PatchParams {
            field_manager: Some(crate::FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        api.patch(&pod.1, &params, &Patch::<()>::Json(operations))
            .await?;
        Ok(Some((again, Some(next))))
    }

    /// Puts the sources that proved unfillable onto the list; whether the webhook can know all of them by now.
    fn leave_sources_alone(
        &self,
        namespace: &str,
        changes: &[decide::Change],
        copies: &Copies,
    ) -> bool {
        let now = jiff::Timestamp::now();
        let refused: Vec<(&str, &str)> = changes
            .iter()
            .filter_map(|change| {
                let found = copies.get(&(namespace.to_owned(), change.source.clone()))?;
                (found.0 == Copy::Refused).then_some((change.source.as_str(), found.1.as_str()))
            })
            .collect();
        self.context.healing.left_alone.send_if_modified(|list| {
            let Some(list) = list else {
                return false;
            };
            let before = list.clone();
            for (source, reason) in &refused {
                sources::add(list, namespace, source, reason, now);
            }
            *list != before
        });
        let state = self.context.healing.state.borrow();
        let written = state.as_ref().map(|state| state.left_alone.as_slice());
        refused.iter().all(|(source, _)| {
            written.is_some_and(|list| sources::is_there(list, namespace, source))
        })
    }

    /// Evicts this very pod: budgets of disruption are kept, and no right to delete pods is needed.
    async fn evict(
        &mut self,
        api: &Api<Pod>,
        name: &str,
        patient: &Patient,
        now: i64,
    ) -> Result<(), kube::Error> {
        let Some(owner) = &patient.owner else {
            return Ok(());
        };
        let eviction = json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name},
            "deleteOptions": {"preconditions": {"uid": patient.uid}},
        });
        let _: Value = api
            .create_subresource("eviction", name, &PostParams::default(), &eviction)
            .await?;
        self.recreated
            .entry(owner.uid.clone())
            .or_default()
            .push(now);
        Ok(())
    }
}

/// The pods that may need help; those in namespaces out of scope are wanted by nobody.
fn patients(context: &Context) -> Vec<(Key, Arc<Patient>)> {
    let mut patients: Vec<(Key, Arc<Patient>)> = World::read(&context.world.pods, |pods| {
        pods.iter()
            .filter_map(|(key, pod)| Some((key.clone(), Arc::clone(pod.patient.as_ref()?))))
            .collect()
    });
    World::read(&context.world.namespaces, |namespaces| {
        for ((namespace, _), patient) in &mut patients {
            let included = namespaces
                .get(&(String::new(), namespace.clone()))
                .is_some_and(|facts| {
                    !facts.terminating && context.scope.includes(namespace, facts)
                });
            if patient.wanted && !included {
                Arc::make_mut(patient).wanted = false;
            }
        }
    });
    // The release's own pods are nobody's patients.
    patients.retain(|((namespace, _), _)| *namespace != context.names.namespace);
    patients
}

/// Whether asking again might be answered otherwise.
fn has_failed(artifact: &Artifact) -> bool {
    status::reason(artifact).is_some_and(|reason| {
        ![Reason::Copied, Reason::Copying, Reason::Invalid]
            .iter()
            .any(|other| other.as_str() == reason)
    })
}

/// The pod is not what it was a moment ago; the next look decides anew.
fn is_conflict(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let failed_test = std::iter::once(&status.message)
        .chain(causes.map(|cause| &cause.message))
        .any(|message| message.contains("test failed"));
    matches!(status.code, 404 | 409) || (status.code == 422 && failed_test)
}
