//! Which images are needed, in which namespace, by which owners, and how urgently.

use crate::nodes::NamespaceFacts;
use crate::owner::Owner;
use crate::pods::PodFacts;
use crate::scope::Scope;
use crate::templates::OwnerFacts;
use crate::view::{Key, Objects, OwnerView, find_owner, top_owner};
use holdfast_api::artifact::Reference;
use holdfast_api::artifact_name;
use holdfast_api::fill::Priority;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The need for one image in one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// The upstream's reference.
    pub source: String,
    /// Distinct uppermost owners, also of finished pods and Jobs, of what is scaled to zero and of
    /// revisions.
    pub owners: BTreeSet<Reference>,
    /// Whether a pod waits for it to start.
    pub waiting: bool,
    /// One of the running pods, name and UID, for events.
    pub pod: Option<(String, String)>,
    /// Without a running pod: the first owner whose template needs it, for which it is prefetched.
    pub ahead: Option<Owner>,
    /// Pull secrets of the running pods; where there are none, of the templates.
    pub pull_secrets: BTreeSet<String>,
    /// Service accounts of the running pods; where there are none, of the templates.
    pub service_accounts: BTreeSet<String>,
}

impl Demand {
    /// Whether an object that may use the namespace's pull secrets needs a copy: a living pod, or a
    /// workload that may make one. Only then a missing Artifact is made, and only their credentials
    /// are used.
    pub fn asks_for_copy(&self) -> bool {
        self.pod.is_some() || self.ahead.is_some()
    }

    /// How urgent a copy is; `None` if none is needed.
    pub fn priority(&self) -> Option<Priority> {
        match (self.waiting, &self.pod, &self.ahead) {
            (true, _, _) => Some(Priority::Blocking),
            (_, Some(_), _) => Some(Priority::Running),
            (_, _, Some(_)) => Some(Priority::Prefetch),
            _ => None,
        }
    }

    /// Whether running pods or templates bring credentials, or may, that those of `before` did not.
    pub fn brings_more_than(&self, before: Option<&Self>) -> bool {
        self.asks_for_copy()
            && before
                .filter(|before| before.asks_for_copy())
                .is_none_or(|before| {
                    !self.pull_secrets.is_subset(&before.pull_secrets)
                        || !self.service_accounts.is_subset(&before.service_accounts)
                })
    }
}

/// The demand by namespace and Artifact name, of pods and owners in scope. Finished pods, and
/// owners that start nothing any more, count as references.
pub fn demand(
    pods: &Objects<PodFacts>,
    owners: &OwnerView<'_>,
    namespaces: &Objects<NamespaceFacts>,
    scope: &Scope,
) -> BTreeMap<Key, Demand> {
    let mut all = All {
        included: namespaces
            .iter()
            .filter(|((_, name), facts)| !facts.terminating && scope.includes(name, facts))
            .map(|((_, name), _)| name.as_str())
            .collect(),
        names: HashMap::new(),
        demand: BTreeMap::new(),
    };
    for ((namespace, name), pod) in pods {
        if pod.sources.is_empty() || !all.included.contains(namespace.as_str()) {
            continue;
        }
        let top = top_owner(owners, namespace, &pod.owner);
        for source in &pod.sources {
            let demand = all.of(namespace, source);
            demand.owners.insert(top.reference.clone());
            if pod.alive {
                demand.waiting |= pod.waiting;
                let this = (name.clone(), pod.uid.clone());
                // The first by name, so that the answer does not depend on the order of the map.
                if demand.pod.as_ref().is_none_or(|other| this < *other) {
                    demand.pod = Some(this);
                }
                demand.pull_secrets.extend(pod.pull_secrets.iter().cloned());
                demand.service_accounts.insert(pod.service_account.clone());
            }
        }
    }
    for (kind, known) in owners {
        for ((namespace, name), facts) in *known {
            if facts.sources.is_empty() || !all.included.contains(namespace.as_str()) {
                continue;
            }
            let owner = Owner {
                reference: Reference {
                    kind: (*kind).to_owned(),
                    name: name.clone(),
                },
                uid: facts.uid.clone(),
            };
            let top = top_owner(owners, namespace, &owner);
            let starts = starts_pods(owners, namespace, kind, facts);
            for source in &facts.sources {
                let demand = all.of(namespace, source);
                demand.owners.insert(top.reference.clone());
                if starts && demand.pod.is_none() {
                    if demand.ahead.as_ref().is_none_or(|other| top < *other) {
                        demand.ahead = Some(top.clone());
                    }
                    demand
                        .pull_secrets
                        .extend(facts.pull_secrets.iter().cloned());
                    demand
                        .service_accounts
                        .insert(facts.service_account.clone());
                }
            }
        }
    }
    all.demand
}

/// Whether pods may still be made of an owner: nothing above it is being deleted, and a revision,
/// which makes no pods itself, belongs to a workload that exists. (Otherwise a user who may write
/// only revisions could use pull secrets.)
fn starts_pods(owners: &OwnerView<'_>, namespace: &str, kind: &str, facts: &OwnerFacts) -> bool {
    let above = facts
        .controller
        .as_ref()
        .and_then(|controller| find_owner(owners, namespace, controller));
    facts.may_start
        && match above {
            Some(above) => above.may_start,
            None => kind != "ControllerRevision",
        }
}

/// The demand while it is gathered.
struct All<'a> {
    /// Namespaces in scope.
    included: BTreeSet<&'a str>,
    /// Names of Artifacts by source: an image is asked for by many, and its name is a hash.
    names: HashMap<&'a str, String>,
    demand: BTreeMap<Key, Demand>,
}

impl<'a> All<'a> {
    fn of(&mut self, namespace: &str, source: &'a str) -> &mut Demand {
        let name = self
            .names
            .entry(source)
            .or_insert_with(|| artifact_name(source));
        let demand = self
            .demand
            .entry((namespace.to_owned(), name.clone()))
            .or_default();
        if demand.source.is_empty() {
            source.clone_into(&mut demand.source);
        }
        demand
    }
}

#[cfg(test)]
mod tests;
