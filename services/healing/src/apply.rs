//! Applies an act: reads the live pod, decides again, patches or evicts it, and publishes an event.

use super::decide::{self, Act};
use super::{Healer, MAX_PAUSE, PAUSE_AFTER_ACT, Sources, Task, events, exclusions, patch};
use holdfast_api::history::ImageHistory;
use holdfast_cluster_index::Key;
use holdfast_cluster_index::apply::patch_params;
use holdfast_cluster_model::pull_status::StuckPod;
use holdfast_cluster_model::{document, pod_facts};
use holdfast_config::HealingMode;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PostParams};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

impl Healer {
    pub(super) async fn perform(&mut self, task: Task) {
        let now = Instant::now();
        if self.context.healing.policy.mode == HealingMode::DryRun {
            self.plan_only(&task, now);
            return;
        }
        let act = task.act.label();
        if !self.may_act(&task, now) {
            self.context.metrics.healed(act, "deferred");
            return;
        }
        let Task {
            pod,
            stuck_pod,
            act: decided,
        } = task;
        let outcome = self.act(&pod, &stuck_pod, decided).await;
        let note = self.note(&stuck_pod.uid, now);
        note.failures = match &outcome {
            Err(error) if !is_conflict(error) => note.failures.saturating_add(1),
            _ => 0,
        };
        let pause = PAUSE_AFTER_ACT * 2_u32.saturating_pow(note.failures.min(8));
        note.paused_until = Some(Instant::now() + pause.min(MAX_PAUSE));
        let result = match outcome {
            Ok(Some((done, history))) => {
                note.reported.insert(done.label());
                if let Some(history) = history {
                    note.history = history;
                }
                tracing::info!(
                    pod.namespace = pod.0, pod.name = pod.1, act, detail = ?done,
                    "healing"
                );
                events::publish(&self.context.events, &pod, &stuck_pod.uid, &done).await;
                "done"
            }
            // The pod needs nothing any more, or another act.
            Ok(None) => "outdated",
            Err(error) if is_conflict(&error) => {
                tracing::debug!(
                    pod.namespace = pod.0, pod.name = pod.1, %error,
                    "the pod changed during healing"
                );
                "outdated"
            }
            Err(error) => {
                self.report_failure(&pod, &stuck_pod.uid, act, &error).await;
                "failed"
            }
        };
        self.context.metrics.healed(act, result);
    }

    /// Reports what a dry run would do, once per pod and act.
    fn plan_only(&mut self, task: &Task, now: Instant) {
        let act = task.act.label();
        if self.note(&task.stuck_pod.uid, now).reported.insert(act) {
            tracing::info!(
                pod.namespace = task.pod.0, pod.name = task.pod.1, act, detail = ?task.act,
                "dry run: healing would change a pod"
            );
            self.context.metrics.healed(act, "planned");
        }
    }

    /// Takes the namespace's turn and a token, if the act changes anything.
    fn may_act(&mut self, task: &Task, now: Instant) -> bool {
        if task.act.is_event_only() {
            return true;
        }
        let (bucket, turns) = match task.act {
            Act::Recreate(_) => (&mut self.evictions, &mut self.turns.evictions),
            _ => (&mut self.patches, &mut self.turns.patches),
        };
        let is_taken = bucket.take(now);
        if is_taken {
            turns.record(&task.pod.0);
        }
        is_taken
    }

    /// Logs a failure. A pod gets one event if the API server denies its change.
    async fn report_failure(&mut self, pod: &Key, uid: &str, act: &str, error: &kube::Error) {
        tracing::warn!(
            pod.namespace = pod.0, pod.name = pod.1, act, %error,
            "healing a pod failed; retrying"
        );
        if let kube::Error::Api(status) = error
            && (400..429).contains(&status.code)
            && self.note(uid, Instant::now()).reported.insert("refused")
        {
            events::publish_refusal(&self.context.events, pod, uid, act, &status.message).await;
        }
    }

    /// Applies an act to the live pod if that still needs it. Returns the act and the pod's new
    /// history.
    async fn act(
        &mut self,
        pod: &Key,
        stuck_pod: &StuckPod,
        act: Act,
    ) -> Result<Option<(Act, Option<ImageHistory>)>, kube::Error> {
        if act.is_event_only() {
            return Ok(Some((act, None)));
        }
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &pod.0);
        let Some(live) = api.get_opt(&pod.1).await? else {
            return Ok(None);
        };
        let addresses = self.context.index.addresses.borrow().clone();
        let facts = pod_facts(&live, &addresses, &self.context.scope, false);
        let Some(mut current) = facts.stuck_pod else {
            return Ok(None);
        };
        Arc::make_mut(&mut current).wanted &= stuck_pod.wanted;
        let snapshot = self.context.healing.snapshot();
        let one = [(pod.clone(), current)];
        let sources = self.sources(&one, snapshot.now);
        let [(_, current)] = one;
        let again = self.decide(&pod.0, &current, &sources, &snapshot);
        let unconfirmed = self.unconfirmed(&pod.0, &again, &sources, Instant::now());
        if current.uid != stuck_pod.uid || again.label() != act.label() || !unconfirmed.is_empty() {
            return Ok(None);
        }
        let (kind, changes) = match &again {
            Act::Heal(changes) => (patch::Kind::Heal, changes.as_slice()),
            Act::Restore(changes) => {
                self.exclude_sources(&pod.0, changes, &sources);
                (patch::Kind::Restore, changes.as_slice())
            }
            Act::Recreate(changes) => {
                let written = self.exclude_sources(&pod.0, changes, &sources);
                if !written {
                    return Ok(None);
                }
                self.evict(&api, &pod.1, &current, snapshot.now).await?;
                return Ok(Some((again, None)));
            }
            Act::Nothing | Act::CannotPull { .. } | Act::Unfixable { .. } => return Ok(None),
        };
        let next = patch::history(&self.history(&current), kind, changes, snapshot.now);
        let operations = patch::operations(&document(&live), &current, kind, changes, &next);
        // An invalid patch would only fail here.
        let operations: json_patch::Patch =
            serde_json::from_value(Value::Array(operations)).map_err(kube::Error::SerdeError)?;
        let params = patch_params();
        api.patch(&pod.1, &params, &Patch::<()>::Json(operations))
            .await?;
        Ok(Some((again, Some(next))))
    }

    /// Excludes the unfillable sources. True if all of them are in the written state.
    fn exclude_sources(
        &self,
        namespace: &str,
        changes: &[decide::Change],
        sources: &Sources,
    ) -> bool {
        let now = jiff::Timestamp::now();
        let refused: Vec<(&str, &str)> = changes
            .iter()
            .filter_map(|change| {
                let found = sources.get(&(namespace.to_owned(), change.source.clone()))?;
                let reason = found.refused.as_str();
                (!reason.is_empty()).then_some((change.source.as_str(), reason))
            })
            .collect();
        self.context.healing.excluded.send_if_modified(|list| {
            let Some(list) = list else {
                return false;
            };
            let before = list.clone();
            for (source, reason) in &refused {
                exclusions::add(list, namespace, source, reason, now);
            }
            *list != before
        });
        let state = self.context.healing.state.borrow();
        let written = state.as_ref().map(|state| state.excluded.as_slice());
        refused.iter().all(|(source, _)| {
            written.is_some_and(|list| exclusions::is_excluded(list, namespace, source))
        })
    }

    /// Evicts the pod with this UID. An eviction respects disruption budgets, and needs no
    /// permission to delete pods.
    async fn evict(
        &mut self,
        api: &Api<Pod>,
        name: &str,
        stuck_pod: &StuckPod,
        now: i64,
    ) -> Result<(), kube::Error> {
        let Some(owner) = &stuck_pod.owner else {
            return Ok(());
        };
        let eviction = json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name},
            "deleteOptions": {"preconditions": {"uid": stuck_pod.uid}},
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

/// Whether the pod changed meanwhile. The next round decides again.
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
