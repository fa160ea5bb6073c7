//! Tests of policies: excludes a namespace in which a policy denies pods, and ends the exclusion
//! when the rewrite was not the cause or when a dry run passes.

use super::policies::{Policies, Refusal, Step};
use super::{events, exclusions};
use crate::Context;
use holdfast_api::state::EVERY_SOURCE;
use holdfast_cluster_index::apply::patch_params;
use holdfast_cluster_index::{ClusterIndex, Key};
use holdfast_cluster_model::{Denial, denied_by, document, find_owner};
use holdfast_config::HealingMode;
use holdfast_core::pod::Kind;
use holdfast_core::{Reference, meaning, rewrite};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Pods of a namespace that a dry run tries.
const MAX_PROBED_PODS: usize = 3;
/// The label of the action in metrics and logs.
const ACTION: &str = "exclude_namespace";

/// Tests which policies deny the registry's references.
pub(super) struct PolicyProbe {
    context: Context,
    policies: Policies,
}

impl PolicyProbe {
    pub(super) fn new(context: Context) -> Self {
        let policies = Policies::new(context.healing.policy.probe_pauses);
        Self { context, policies }
    }

    /// Excludes namespaces in which a policy denies pods, and ends their exclusions.
    pub(super) async fn run(&mut self) {
        if self.context.healing.policy.mode != HealingMode::Heal {
            return;
        }
        let now = self.context.healing.snapshot().now;
        let mut excluded = self.excluded_namespaces();
        let gone: Vec<String> = ClusterIndex::read(&self.context.index.namespaces, |namespaces| {
            let is_gone =
                |name: &&String| namespaces.get(&(String::new(), (*name).clone())).is_none();
            excluded.iter().filter(is_gone).cloned().collect()
        });
        for namespace in gone {
            self.end_exclusion(&namespace);
            excluded.remove(&namespace);
        }
        for namespace in self.not_written(&excluded) {
            self.policies.not_published(&namespace, now);
        }
        self.apply_denials(&mut excluded, now).await;
        self.probe_excluded(&mut excluded, now).await;
        ClusterIndex::read(&self.context.index.namespaces, |namespaces| {
            let exists = |name: &str| namespaces.get(&(String::new(), name.to_owned())).is_some();
            self.policies.forget(exists, now);
        });
        self.context.metrics.excluded_namespaces(excluded.len());
    }

    /// Excludes the namespaces of new denials. Ends the exclusion of a namespace whose pods are
    /// denied all the same.
    async fn apply_denials(&mut self, excluded: &mut BTreeSet<String>, now: i64) {
        for (namespace, denial) in self.denials() {
            let refusal = Refusal {
                namespace: &namespace,
                owner: &denial.owner.uid,
                at: denial.at,
                rewritten: self.would_be_rewritten(&namespace, &denial),
            };
            let step = self
                .policies
                .observe(&refusal, excluded.contains(&namespace), now);
            let outcome = match step {
                Step::Nothing => continue,
                Step::Exclude => {
                    self.exclude(&namespace, &denial.by);
                    excluded.insert(namespace.clone());
                    "done"
                }
                Step::Unrelated => {
                    self.end_exclusion(&namespace);
                    excluded.remove(&namespace);
                    "unrelated"
                }
            };
            tracing::warn!(
                pod.namespace = namespace,
                policy = denial.by,
                owner = denial.owner.reference.name,
                outcome,
                "a policy denies pods of a namespace; testing whether it admits upstream references"
            );
            self.context.metrics.healed(ACTION, outcome);
            let (prefixes, address) = (self.prefixes(&namespace, &denial), self.address());
            let publisher = &self.context.events;
            events::publish_denial(publisher, &namespace, &denial, step, &prefixes, &address).await;
        }
    }

    /// Tests by dry runs whether policies still deny the registry's references.
    async fn probe_excluded(&mut self, excluded: &mut BTreeSet<String>, now: i64) {
        for namespace in self.policies.due(excluded.iter().map(String::as_str), now) {
            if self.is_admitted(&namespace).await == Some(true) {
                self.policies.admits(&namespace, now);
                self.end_exclusion(&namespace);
                excluded.remove(&namespace);
                self.context.metrics.healed(ACTION, "ended");
                tracing::info!(
                    pod.namespace = namespace,
                    "policies admit the registry's references; the namespace is no longer excluded"
                );
            } else {
                self.policies.still_denies(&namespace, now);
            }
        }
    }

    fn address(&self) -> String {
        self.context.healing.snapshot().address.unwrap_or_default()
    }

    fn excluded_namespaces(&self) -> BTreeSet<String> {
        let list = self.context.healing.excluded.borrow();
        let entries = list
            .iter()
            .flatten()
            .filter(|entry| entry.source == EVERY_SOURCE);
        entries.map(|entry| entry.namespace.clone()).collect()
    }

    /// The excluded namespaces that are not in the written state yet.
    fn not_written(&self, excluded: &BTreeSet<String>) -> Vec<String> {
        let state = self.context.healing.state.borrow();
        let written = |namespace: &&String| {
            state.as_ref().is_some_and(|state| {
                exclusions::is_excluded(&state.excluded, namespace, EVERY_SOURCE)
            })
        };
        let missing = excluded.iter().filter(|namespace| !written(namespace));
        missing.cloned().collect()
    }

    /// All known denials, in a fixed order.
    fn denials(&self) -> Vec<(String, Denial)> {
        let mut denials: Vec<(Key, Denial)> =
            ClusterIndex::read(&self.context.index.denials, |denials| {
                let known = denials
                    .iter()
                    .filter_map(|(key, denial)| Some((key.clone(), denial.clone()?)));
                known.collect()
            });
        denials.sort_by(|one, other| one.0.cmp(&other.0));
        denials
            .into_iter()
            .map(|((namespace, _), denial)| (namespace, denial))
            .collect()
    }

    /// Whether the webhook rewrites pods of this owner. True for an unknown owner, which leads only
    /// to a test.
    fn would_be_rewritten(&self, namespace: &str, denial: &Denial) -> bool {
        let (index, scope) = (&self.context.index, &self.context.scope);
        let included = ClusterIndex::read(&index.namespaces, |namespaces| {
            let facts = namespaces.get(&(String::new(), namespace.to_owned()));
            facts.is_some_and(|facts| !facts.terminating && scope.includes(namespace, facts))
        });
        included
            && self.context.healing.snapshot().address.is_some()
            && index.owners.read(|view| {
                if !view.contains_key(denial.owner.reference.kind.as_str()) {
                    return true;
                }
                find_owner(view, namespace, &denial.owner)
                    .is_some_and(|facts| !facts.sources.is_empty())
            })
    }

    /// The prefixes of the registry's references in pods of this owner, as far as they are known.
    fn prefixes(&self, namespace: &str, denial: &Denial) -> BTreeSet<String> {
        let address = self.address();
        self.context.index.owners.read(|view| {
            let facts = find_owner(view, namespace, &denial.owner);
            let sources = facts.into_iter().flat_map(|facts| &facts.sources);
            sources
                .filter_map(|source| Reference::parse(source).ok())
                .filter_map(|source| rewrite::upstream_prefix(&source, &address))
                .collect()
        })
    }

    fn exclude(&self, namespace: &str, by: &str) {
        let now = jiff::Timestamp::now();
        self.context.healing.excluded.send_if_modified(|list| {
            let Some(list) = list else {
                return false;
            };
            exclusions::add(list, namespace, EVERY_SOURCE, by, now);
            true
        });
    }

    fn end_exclusion(&self, namespace: &str) {
        self.context.healing.excluded.send_if_modified(|list| {
            list.as_mut()
                .is_some_and(|list| exclusions::remove(list, namespace, EVERY_SOURCE))
        });
    }

    /// Whether the API server admits the registry's reference in a pod of the namespace, by a dry
    /// run. `None` if no pod can be tested.
    async fn is_admitted(&self, namespace: &str) -> Option<bool> {
        let mut names: Vec<String> = ClusterIndex::read(&self.context.index.pods, |pods| {
            let of = pods
                .iter()
                .filter(|((of, _), pod)| of == namespace && pod.alive && !pod.sources.is_empty());
            of.map(|((_, name), _)| name.clone()).collect()
        });
        names.sort();
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), namespace);
        let params = PatchParams {
            dry_run: true,
            ..patch_params()
        };
        for name in names.iter().take(MAX_PROBED_PODS) {
            let Ok(Some(live)) = api.get_opt(name).await else {
                continue;
            };
            let Some(operations) = self.probe_patch(&live) else {
                continue;
            };
            match api
                .patch(name, &params, &Patch::<()>::Json(operations))
                .await
            {
                Ok(_) => return Some(true),
                Err(kube::Error::Api(status)) if denied_by(&status.message).is_some() => {
                    return Some(false);
                }
                Err(error) => {
                    tracing::debug!(
                        pod.namespace = namespace, pod.name = name, %error,
                        "cannot test an admission policy"
                    );
                }
            }
        }
        None
    }

    /// The change of one image of a pod to the registry's reference.
    fn probe_patch(&self, live: &Pod) -> Option<json_patch::Patch> {
        let address = self.context.healing.snapshot().address?;
        let addresses = self.context.index.addresses.borrow().clone();
        let access = self.context.image_access();
        let namespace = live.metadata.namespace.as_deref();
        let namespace = namespace.unwrap_or_default();
        let (found, source) = meaning::of_pod(&document(live), &addresses)
            .into_iter()
            .filter(|found| !found.meaning.is_rewritten() && !found.meaning.is_reserved_word())
            .filter(|found| matches!(found.image.kind, Kind::Container | Kind::Init))
            .filter_map(|found| Some((found.meaning.source()?.clone(), found)))
            .map(|(source, found)| (found, source))
            .find(|(_, source)| access.permits(namespace, source))?;
        let pointer = &found.image.pointer;
        let operations = json!([
            {"op": "test", "path": pointer, "value": found.image.image},
            {"op": "replace", "path": pointer, "value": rewrite::rewrite(&source, &address)?},
        ]);
        serde_json::from_value::<json_patch::Patch>(Value::clone(&operations)).ok()
    }
}
