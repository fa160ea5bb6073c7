//! Finds pods that need healing and the state of their copies, and collects the acts. Changes
//! nothing in the cluster.

use super::decide::{Act, Known, Snapshot, decide, original, relies_on};
use super::unfillable;
use super::{
    Healer, MAX_CONFIRMATIONS_PER_ROUND, NOTE_TTL, Note, SECOND_FAILURE_SECONDS, SourceState,
    Sources, Task, exclusions,
};
use crate::Context;
use crate::comparing_owners::exclusions::is_excluded;
use holdfast_api::artifact::Reason;
use holdfast_api::delivery::Answer;
use holdfast_api::history::ImageHistory;
use holdfast_api::state::EVERY_SOURCE;
use holdfast_api::{Artifact, artifact_name};
use holdfast_cluster_index::{ClusterIndex, Key};
use holdfast_cluster_model::pull_status::{Image, Progress, StuckPod};
use holdfast_config::HealingMode;
use holdfast_core::delivery::{Copy, OnNodes, Upstream};
use holdfast_core::{Reference, rewrite};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

/// The Artifacts that failed, by namespace and source: their names, and the pods that need them
/// (UID, and whether it runs).
type Failed = HashMap<String, HashMap<String, (String, BTreeSet<(String, bool)>)>>;

impl Healer {
    /// The acts that are due, by pod.
    pub(super) fn tasks(&mut self) -> Vec<Task> {
        let context = self.context.clone();
        let (now, snapshot) = (Instant::now(), self.context.healing.snapshot());
        let mut stuck_pods = stuck_pods(&context);
        let failed = self.observe_artifacts(snapshot.now);
        self.trigger_retries(failed, now);
        self.observe_failures(&stuck_pods, snapshot.now);
        let sources = self.sources(&stuck_pods, snapshot.now);
        self.drop_settled(snapshot.now);
        let stuck = stuck_pods
            .iter()
            .filter(|(_, stuck_pod)| stuck_pod.is_stuck(None));
        context.metrics.pods_stuck(stuck.count());
        if context.healing.policy.mode == HealingMode::None {
            return Vec::new();
        }
        stuck_pods.sort_by(|one, other| one.0.cmp(&other.0));
        let (mut tasks, mut unconfirmed_copies) = (Vec::new(), BTreeSet::new());
        for (pod, stuck_pod) in stuck_pods {
            let known = self.notes.get_mut(&stuck_pod.uid);
            let is_paused = known.is_some_and(|note| {
                note.needed_help = now;
                note.paused_until.is_some_and(|until| now < until)
            });
            if is_paused {
                continue;
            }
            let act = self.decide(&pod.0, &stuck_pod, &sources, &snapshot);
            let is_reported = self
                .notes
                .get(&stuck_pod.uid)
                .is_some_and(|note| note.reported.contains(act.label()));
            let unconfirmed = self.unconfirmed(&pod.0, &act, &sources, now);
            if !unconfirmed.is_empty() {
                unconfirmed_copies.extend(unconfirmed);
            } else if act != Act::Nothing && !(act.is_event_only() && is_reported) {
                tasks.push(Task {
                    pod,
                    stuck_pod,
                    act,
                });
            }
        }
        self.notes
            .retain(|_, note| now.duration_since(note.needed_help) < NOTE_TTL);
        self.request_confirmations(unconfirmed_copies, now);
        self.in_turns(tasks)
    }

    /// Orders tasks so that namespaces take turns. Patches and evictions have separate limits, and
    /// so separate turns.
    fn in_turns(&self, tasks: Vec<Task>) -> Vec<Task> {
        let (evictions, patches): (Vec<_>, Vec<_>) = tasks
            .into_iter()
            .partition(|task| matches!(task.act, Act::Recreate(_)));
        let mut tasks = self.turns.patches.order(patches, |task| &task.pod.0);
        tasks.extend(self.turns.evictions.order(evictions, |task| &task.pod.0));
        tasks
    }

    /// The Artifacts that an act relies on and that the registry did not confirm lately. A status
    /// may be 15 minutes old.
    pub(super) fn unconfirmed(
        &self,
        namespace: &str,
        act: &Act,
        sources: &Sources,
        now: Instant,
    ) -> Vec<Key> {
        let is_held = |source: &str| state_of(sources, namespace, source).copy == Copy::Held;
        relies_on(act, is_held)
            .into_iter()
            .map(|source| (namespace.to_owned(), artifact_name(source)))
            .filter(|key| !self.context.healing.is_confirmed(key, now))
            .collect()
    }

    /// Requests confirmations of images from the registry, a bounded number at a time.
    fn request_confirmations(&mut self, unconfirmed_copies: BTreeSet<Key>, now: Instant) {
        let (asked, spacing) = (
            &mut self.confirmations,
            self.context.healing.policy.confirmation_ttl,
        );
        asked.retain(|_, at| now.duration_since(*at) < spacing);
        let unconfirmed_copies = unconfirmed_copies
            .into_iter()
            .filter(|key| !asked.contains_key(key));
        let turns = &mut self.turns.confirmations;
        let mut due = turns.order(unconfirmed_copies.collect(), |key: &Key| &key.0);
        due.truncate(MAX_CONFIRMATIONS_PER_ROUND);
        for (namespace, _) in &due {
            turns.record(namespace);
        }
        let due: BTreeSet<Key> = due.into_iter().collect();
        if due.is_empty() {
            return;
        }
        asked.extend(due.iter().map(|key| (key.clone(), now)));
        self.context.healing.request_confirmations(due);
        self.context.index.notify();
    }

    pub(super) fn decide(
        &self,
        namespace: &str,
        stuck_pod: &StuckPod,
        sources: &Sources,
        snapshot: &Snapshot,
    ) -> Act {
        let history = self.history(stuck_pod);
        let recreated = stuck_pod.owner.as_ref().map_or(0, |owner| {
            let times = self.recreated.get(&owner.uid);
            times.map_or(0, |times| {
                times.iter().filter(|at| snapshot.now - **at < 3600).count()
            })
        });
        let delivery = self.context.healing.delivery.borrow().clone();
        let unprepared = &delivery.state.unprepared;
        let is_prepared = stuck_pod
            .node
            .as_ref()
            .is_none_or(|node| unprepared.binary_search(node).is_err());
        let local = |image: &Image| {
            let source = Reference::parse(&image.source).ok()?;
            rewrite::rewrite(&source, snapshot.address.as_deref()?)
        };
        let known = |image: &Image| {
            let source = state_of(sources, namespace, &image.source);
            let since = self.stuck_since.get(&failure_key(stuck_pod, image));
            let failed_twice =
                since.is_some_and(|since| snapshot.now - since >= SECOND_FAILURE_SECONDS);
            Known {
                copy: source.copy,
                upstream: source.upstream,
                original: self.on_node(stuck_pod, &original(image)),
                local: local(image).map_or(OnNodes::Unknown, |text| self.on_node(stuck_pod, &text)),
                prepared: is_prepared,
                permitted: source.permitted,
                failures: if failed_twice { 2 } else { 1 },
            }
        };
        decide(stuck_pod, &history, known, recreated, snapshot)
    }

    /// Whether the pod's node starts an image by this name without a pull, as its agent reported.
    fn on_node(&self, stuck_pod: &StuckPod, text: &str) -> OnNodes {
        let node = stuck_pod.node.as_deref();
        let reports = &self.context.reports;
        let now = Instant::now();
        match node.and_then(|node| reports.starts(text, node, &stuck_pod.credentials, now)) {
            Some(true) => OnNodes::All,
            Some(false) => OnNodes::None,
            None => OnNodes::Unknown,
        }
    }

    /// Records since when images are stuck under their present names. A kubelet tries again after
    /// ten seconds at the earliest.
    fn observe_failures(&mut self, stuck_pods: &[(Key, Arc<StuckPod>)], now: i64) {
        let before = std::mem::take(&mut self.stuck_since);
        for (_, stuck_pod) in stuck_pods {
            let images = stuck_pod.images.iter();
            for image in images.filter(|image| image.progress == Progress::Stuck) {
                let key = failure_key(stuck_pod, image);
                let since = before.get(&key).copied().unwrap_or(now);
                self.stuck_since.insert(key, since);
            }
        }
    }

    /// The history of the pod's annotation, merged with the one that this process remembers.
    pub(super) fn history(&self, stuck_pod: &StuckPod) -> ImageHistory {
        let known = stuck_pod.history.clone();
        match self.notes.get(&stuck_pod.uid) {
            // Only the pod's annotation knows which restored images were healed since.
            Some(note) => known.with(ImageHistory {
                restored: BTreeSet::new(),
                ..note.history.clone()
            }),
            None => known,
        }
    }

    pub(super) fn note(&mut self, uid: &str, now: Instant) -> &mut Note {
        let note = self.notes.entry(uid.to_owned()).or_insert_with(|| Note {
            history: ImageHistory {
                uid: uid.to_owned(),
                ..ImageHistory::default()
            },
            reported: BTreeSet::new(),
            paused_until: None,
            failures: 0,
            needed_help: now,
        });
        note.needed_help = now;
        note
    }

    /// Records the refusals of upstreams. Returns the Artifacts that failed.
    fn observe_artifacts(&mut self, now: i64) -> Failed {
        let refusals = &mut self.refusals;
        ClusterIndex::read(&self.context.index.artifacts, |artifacts| {
            let all = || artifacts.iter().map(|(key, it)| (key, it.as_ref()));
            refusals.observe(all(), now);
            let mut failed = Failed::new();
            for ((namespace, name), artifact) in all().filter(|(_, it)| has_failed(it)) {
                let of_namespace = failed.entry(namespace.clone()).or_default();
                let source = artifact.spec.source_artifact.clone();
                of_namespace.insert(source, (name.clone(), BTreeSet::new()));
            }
            failed
        })
    }

    /// The sources of the stuck pods' images, as the index knows them.
    pub(super) fn sources(&self, stuck_pods: &[(Key, Arc<StuckPod>)], now: i64) -> Sources {
        let delivery = self.context.healing.delivery.borrow().clone();
        let access = self.context.image_access();
        ClusterIndex::read(&self.context.index.artifacts, |artifacts| {
            let mut sources = Sources::new();
            for (pod, stuck_pod) in stuck_pods {
                for image in &stuck_pod.images {
                    let Ok(source) = Reference::parse(&image.source) else {
                        continue;
                    };
                    let key = (pod.0.clone(), artifact_name(&image.source));
                    let artifact = artifacts.get(&key).map(Arc::as_ref);
                    let host = delivery.recent_answer(&source.host().to_string(), now);
                    let state = SourceState {
                        permitted: access.permits(&pod.0, &source),
                        ..self.source_state(&key, artifact, host, now)
                    };
                    sources.insert((pod.0.clone(), image.source.clone()), state);
                }
            }
            sources
        })
    }

    /// What an Artifact says of its source, and what is known of its host.
    fn source_state(
        &self,
        key: &Key,
        artifact: Option<&Artifact>,
        host: Option<Answer>,
        now: i64,
    ) -> SourceState {
        let proof = self.context.healing.policy.proof;
        let reason = artifact.and_then(Artifact::reason).unwrap_or_default();
        let refused = artifact.and_then(|artifact| self.refusals.proven(key, artifact, proof, now));
        let copy = if artifact.is_some_and(Artifact::is_held) && !self.context.healing.is_lost(key)
        {
            Copy::Held
        } else if reason == Reason::Copying.as_str() {
            Copy::Arriving
        } else {
            Copy::Absent
        };
        let upstream = if refused.is_some() {
            Upstream::Refuses
        } else if unfillable::is_refusal(reason) {
            // Not for long enough: its credential may be about to come.
            Upstream::Unknown
        } else if reason == Reason::UpstreamUnavailable.as_str() {
            Upstream::Away
        } else {
            match host {
                Some(Answer::Answers) => Upstream::Answers,
                Some(Answer::Away) => Upstream::Away,
                None => Upstream::Unknown,
            }
        };
        SourceState {
            copy,
            upstream,
            refused: refused.unwrap_or_default(),
            permitted: true,
        }
    }

    /// Requests retries of failed Artifacts whose pods show that the image can be pulled, or that
    /// it is needed now.
    fn trigger_retries(&mut self, mut failed: Failed, now: Instant) {
        if !failed.is_empty() {
            ClusterIndex::read(&self.context.index.pods, |known| {
                for ((namespace, _), pod) in known.iter().filter(|(_, pod)| pod.alive) {
                    let Some(failed) = failed.get_mut(namespace) else {
                        continue;
                    };
                    for source in &pod.sources {
                        let Some((_, pods)) = failed.get_mut(source) else {
                            continue;
                        };
                        let stuck_pod = pod.stuck_pod.as_ref();
                        let stuck =
                            stuck_pod.is_some_and(|stuck_pod| stuck_pod.is_stuck(Some(source)));
                        pods.insert((pod.uid.clone(), !pod.waiting && !stuck));
                    }
                }
            });
        }
        let failed = failed.into_iter().flat_map(|(namespace, of_namespace)| {
            let all = of_namespace.into_values();
            all.map(move |(name, pods)| ((namespace.clone(), name), pods))
        });
        let woken = self.retry_triggers.triggered(failed.collect(), now);
        if !woken.is_empty() {
            tracing::debug!(
                count = woken.len(),
                "retrying an Artifact before its back-off ends"
            );
            self.context.healing.request_retries(woken);
            self.context.index.notify();
        }
    }

    /// Removes exclusions whose image is local, and forgets evictions of more than an hour ago.
    fn drop_settled(&mut self, now: i64) {
        let index = &self.context.index;
        let mut settled = Vec::new();
        self.context.healing.excluded.send_if_modified(|list| {
            let Some(list) = list else {
                return false;
            };
            ClusterIndex::read(&index.artifacts, |artifacts| {
                let artifact = |namespace: &str, name: &str| {
                    let key = (namespace.to_owned(), name.to_owned());
                    artifacts.get(&key).map(Arc::as_ref)
                };
                settled = exclusions::drop_settled(list, artifact);
            });
            let sources = list.iter().filter(|entry| entry.source != EVERY_SOURCE);
            self.context.metrics.excluded_sources(sources.count());
            !settled.is_empty()
        });
        for entry in settled {
            tracing::info!(
                image = entry.source,
                artifact.namespace = entry.namespace,
                "the source is no longer excluded"
            );
        }
        self.recreated
            .retain(|_, times| times.iter().any(|at| now - at < 3600));
    }
}

fn state_of(sources: &Sources, namespace: &str, source: &str) -> SourceState {
    let key = (namespace.to_owned(), source.to_owned());
    sources.get(&key).cloned().unwrap_or_default()
}

/// The pod, the image and its present name.
fn failure_key(stuck_pod: &StuckPod, image: &Image) -> (String, String, String) {
    (stuck_pod.uid.clone(), image.key(), image.written.clone())
}

/// The pods that may need healing. Those of namespaces out of scope are not `wanted`.
fn stuck_pods(context: &Context) -> Vec<(Key, Arc<StuckPod>)> {
    let mut stuck_pods: Vec<(Key, Arc<StuckPod>)> =
        ClusterIndex::read(&context.index.pods, |pods| {
            pods.iter()
                .filter_map(|(key, pod)| Some((key.clone(), Arc::clone(pod.stuck_pod.as_ref()?))))
                .collect()
        });
    ClusterIndex::read(&context.index.namespaces, |namespaces| {
        for ((namespace, _), stuck_pod) in &mut stuck_pods {
            let included = namespaces
                .get(&(String::new(), namespace.clone()))
                .is_some_and(|facts| {
                    !facts.terminating && context.scope.includes(namespace, facts)
                });
            if stuck_pod.wanted && !included {
                Arc::make_mut(stuck_pod).wanted = false;
            }
        }
    });
    exclude_owners(context, &mut stuck_pods);
    // Pods of the release itself are never healed.
    stuck_pods.retain(|((namespace, _), _)| *namespace != context.namespace);
    stuck_pods
}

/// Pods of excluded owners are not `wanted`: their owners would delete them.
fn exclude_owners(context: &Context, stuck_pods: &mut [(Key, Arc<StuckPod>)]) {
    let excluded = context.healing.excluded_owners.borrow();
    let Some(excluded) = excluded.as_ref().filter(|list| !list.is_empty()) else {
        return;
    };
    for ((namespace, _), stuck_pod) in stuck_pods {
        let is_excluded = stuck_pod.owner.as_ref().is_some_and(|owner| {
            let owner = &owner.reference;
            is_excluded(excluded, namespace, &owner.kind, &owner.name)
        });
        if stuck_pod.wanted && is_excluded {
            Arc::make_mut(stuck_pod).wanted = false;
        }
    }
}

/// Whether a retry may have another result.
fn has_failed(artifact: &Artifact) -> bool {
    artifact.reason().is_some_and(|reason| {
        ![
            Reason::Copied,
            Reason::Copying,
            Reason::Invalid,
            Reason::NoDemand,
            Reason::TooManyArtifacts,
        ]
        .iter()
        .any(|other| other.as_str() == reason)
    })
}
