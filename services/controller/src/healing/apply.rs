//! Applies an act: reads the live pod, decides again, then patches or evicts it, writes an event
//! and counts.

use super::decide::{self, Act, Copy};
use super::{Copies, Healer, MAX_PAUSE, PAUSE_AFTER_ACT, Task, exclusions, patch};
use crate::index::Key;
use holdfast_api::history::ImageHistory;
use holdfast_cluster_model::pull_status::StuckPod;
use holdfast_cluster_model::{document, pod_facts};
use holdfast_config::HealingMode;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

impl Healer {
    pub(super) async fn perform(&mut self, task: Task) {
        let Task {
            pod,
            stuck_pod,
            act,
        } = task;
        let now = Instant::now();
        if self.context.healing.policy.mode == HealingMode::DryRun {
            if self.note(&stuck_pod.uid, now).told.insert(act.label()) {
                tracing::info!(
                    pod.namespace = pod.0, pod.name = pod.1, act = act.label(), detail = ?act,
                    "dry run: healing would change a pod"
                );
                self.context.metrics.healed(act.label(), "planned");
            }
            return;
        }
        if !act.only_tells() {
            let (bucket, turns) = match act {
                Act::Recreate(_) => (&mut self.evictions, &mut self.turns.evictions),
                _ => (&mut self.patches, &mut self.turns.patches),
            };
            if !bucket.take(now) {
                self.context.metrics.healed(act.label(), "deferred");
                return;
            }
            turns.had(&pod.0);
        }
        let word = act.label();
        let outcome = self.act(&pod, &stuck_pod, act).await;
        let note = self.note(&stuck_pod.uid, now);
        note.failures = match &outcome {
            Err(error) if !is_conflict(error) => note.failures.saturating_add(1),
            _ => 0,
        };
        let rest = PAUSE_AFTER_ACT * 2_u32.saturating_pow(note.failures.min(8));
        note.rests_until = Some(Instant::now() + rest.min(MAX_PAUSE));
        let result = match outcome {
            Ok(Some((done, history))) => {
                note.told.insert(done.label());
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
                self.events.tell(&pod, &stuck_pod.uid, &done).await;
                "done"
            }
            // It needs nothing any more, or something else.
            Ok(None) => "outdated",
            Err(error) if is_conflict(&error) => {
                tracing::debug!(
                    pod.namespace = pod.0, pod.name = pod.1, %error,
                    "the pod changed during healing"
                );
                "outdated"
            }
            Err(error) => {
                tracing::warn!(
                    pod.namespace = pod.0, pod.name = pod.1, act = word, %error,
                    "healing a pod failed; retrying"
                );
                // A policy, for example: the pod gets one event about it.
                if let kube::Error::Api(status) = &error
                    && (400..429).contains(&status.code)
                    && note.told.insert("refused")
                {
                    self.events
                        .refused(&pod, &stuck_pod.uid, word, &status.message)
                        .await;
                }
                "failed"
            }
        };
        self.context.metrics.healed(word, result);
    }

    /// Applies an act to the live pod if that still needs it. Returns the act and the pod's new
    /// history.
    async fn act(
        &mut self,
        pod: &Key,
        stuck_pod: &StuckPod,
        act: Act,
    ) -> Result<Option<(Act, Option<ImageHistory>)>, kube::Error> {
        if act.only_tells() {
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
        let snapshot = self.snapshot();
        let one = [(pod.clone(), current)];
        let copies = self.copies(&one, snapshot.now);
        let [(_, current)] = one;
        let again = self.decide(&pod.0, &current, &copies, &snapshot);
        let unconfirmed = self.unconfirmed(&pod.0, &again, &copies, Instant::now());
        if current.uid != stuck_pod.uid || again.label() != act.label() || !unconfirmed.is_empty() {
            return Ok(None);
        }
        let (kind, changes) = match &again {
            Act::Heal(changes) => (patch::Kind::Heal, changes.as_slice()),
            Act::Restore(changes) => {
                self.exclude_sources(&pod.0, changes, &copies);
                (patch::Kind::Restore, changes.as_slice())
            }
            Act::Exclude { .. } => (patch::Kind::Exclude, [].as_slice()),
            Act::Recreate(changes) => {
                let written = self.exclude_sources(&pod.0, changes, &copies);
                if !written {
                    return Ok(None);
                }
                self.evict(&api, &pod.1, &current, snapshot.now).await?;
                return Ok(Some((again, None)));
            }
            Act::Nothing | Act::Unfixable { .. } => return Ok(None),
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

    /// Puts the sources that proved unfillable onto the list; whether the webhook can know all of
    /// them by now.
    fn exclude_sources(
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
            written.is_some_and(|list| exclusions::is_there(list, namespace, source))
        })
    }

    /// Evicts this very pod: budgets of disruption are kept, and no right to delete pods is needed.
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

/// The pod is not what it was a moment ago; the next look decides again.
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
