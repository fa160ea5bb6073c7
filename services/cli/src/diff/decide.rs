//! What would not start without the uplink, by owner: pure. Every pod that may start is judged:
//! living ones where they are bound, and those that a template becomes on every node that takes
//! pods.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::Artifact;
use holdfast_api::access::ImageAccess;
use holdfast_api::delivery::Delivery;
use holdfast_cluster_model::{NamespaceFacts, Scope};
use holdfast_config::{FailurePolicy, HealingValues};
use holdfast_core::pod;
use holdfast_core::workload::{self, controller_of, may_start, pod_of, pod_template, text};
use serde::Serialize;
use serde_json::Value;

use super::images::{Images, Unit};
use super::judge::{Candidates, Start};
use crate::exit_status::Answer;

/// What was found in the cluster.
#[derive(Debug)]
pub(super) struct Inventory {
    /// Objects by kind; kinds that could not be listed are absent.
    pub(super) objects: BTreeMap<&'static str, Vec<Value>>,
    /// Namespaces by name.
    pub(super) namespaces: BTreeMap<String, NamespaceFacts>,
    pub(super) artifacts: Vec<Artifact>,
    /// `None` where the caller may not list them.
    pub(super) nodes: Option<Vec<Value>>,
    /// The registry's addresses.
    pub(super) addresses: Vec<String>,
    /// Why pods are not rewritten at the moment; nothing while they are.
    pub(super) not_rewriting: Option<String>,
    /// Namespaces whose pods keep their images, by who refuses the registry's references there.
    pub(super) excluded: BTreeMap<String, String>,
    /// Owners that compare images, so that their pods keep them: namespace, kind and name.
    pub(super) excluded_owners: BTreeSet<Key>,
    /// Which images pods may have from the registry.
    pub(super) access: ImageAccess,
    /// What the controller knows of nodes; `None` where it said nothing.
    pub(super) delivery: Option<Delivery>,
    /// Whether the controller changes the images of pods that cannot pull.
    pub(super) healing: HealingValues,
    /// What happens to new pods while the webhook does not answer.
    pub(super) failure_policy: FailurePolicy,
    /// What concerns Holdfast, by its configuration.
    pub(super) scope: Scope,
    /// What the caller may not see.
    pub(super) not_judged: Vec<String>,
}

/// Where an image would come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Verdict {
    /// From nowhere, at least on some nodes.
    Missing,
    /// That is not known.
    NotJudged,
    /// The nodes hold it already.
    OnNodes,
    /// The registry holds it.
    Local,
}

/// One image of an owner.
#[allow(clippy::struct_field_names, reason = "the key of the JSON")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Image {
    /// As the pod names it, read back to its upstream.
    pub(super) image: String,
    pub(super) pull_policy: String,
    pub(super) verdict: Verdict,
    /// What becomes of the pod that is worst off.
    pub(super) start: Start,
    /// Why it would not start, or only after healing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) why: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) fix: String,
    /// Whether Holdfast is to care for it: not what opts out or lies outside its configuration.
    pub(super) covered: bool,
    /// The nodes by what becomes of it there, unless it starts on each.
    #[serde(skip_serializing_if = "Candidates::is_empty")]
    pub(super) candidates: Candidates,
}

impl Image {
    /// Whether another image of the same owner is the same but for what becomes of it.
    fn is_same(&self, other: &Self) -> bool {
        let key = |image: &Self| {
            (
                image.image.clone(),
                image.pull_policy.clone(),
                image.covered,
            )
        };
        key(self) == key(other)
    }
}

/// What pods are made of, or a pod that nothing makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Owner {
    pub(super) namespace: String,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) images: Vec<Image>,
}

impl Owner {
    /// Whether an image has this verdict.
    pub(super) fn has(&self, verdict: Verdict) -> bool {
        self.images.iter().any(|image| image.verdict == verdict)
    }
}

/// What the answer is based on.
const BASIS: &str = "Artifacts that are Ready, and what the status of nodes lists";

/// What would become of everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Judgement {
    pub(super) owners: Vec<Owner>,
    pub(super) not_judged: Vec<String>,
    /// What the answer is based on.
    pub(super) basis: &'static str,
}

impl Judgement {
    /// Whether nothing would be missing; images that Holdfast does not care for count unless told
    /// otherwise.
    pub(super) fn answer(&self, ignore_uncovered: bool) -> Answer {
        let has = |verdict: Verdict| {
            let mut images = self.owners.iter().flat_map(|owner| &owner.images);
            images.any(|image| image.verdict == verdict && (image.covered || !ignore_uncovered))
        };
        if has(Verdict::Missing) {
            Answer::No
        } else if has(Verdict::NotJudged) || !self.not_judged.is_empty() {
            Answer::Unknown
        } else {
            Answer::Yes
        }
    }
}

/// Judges everything that may start.
pub(super) fn decide(inventory: &Inventory) -> Judgement {
    let judge = Images::new(inventory);
    let pods = pods(inventory);
    let alive: BTreeSet<Key> = pods
        .iter()
        .filter(|(_, pod)| is_stored(pod))
        .map(|(key, _)| key.clone())
        .collect();
    let is_excluded = |(key, pod): &&(Key, Value)| {
        let above = controller_of(pod)
            .map(|(kind, name, _)| (key.0.clone(), kind.to_owned(), name.to_owned()));
        let excluded = &inventory.excluded_owners;
        excluded.contains(key) || above.is_some_and(|above| excluded.contains(&above))
    };
    let excluded: BTreeSet<Key> = pods
        .iter()
        .filter(is_excluded)
        .map(|(key, _)| key.clone())
        .collect();
    let mut owners: BTreeMap<Key, Vec<Image>> = BTreeMap::new();
    for (key, pod) in pods {
        let found = judge.of_unit(&Unit {
            namespace: &key.0,
            pod: &pod,
            stored: is_stored(&pod),
            has_pods: alive.contains(&key),
            is_daemon: key.1 == "DaemonSet",
            is_excluded: excluded.contains(&key),
        });
        let images = owners.entry(key).or_default();
        for image in found {
            // An owner is as well off as the worst of its pods.
            match images.iter_mut().find(|known| known.is_same(&image)) {
                Some(known) if image.start < known.start => *known = image,
                Some(_) => {}
                None => images.push(image),
            }
        }
    }
    let owners = owners
        .into_iter()
        .map(|((namespace, kind, name), images)| Owner {
            namespace,
            kind,
            name,
            images,
        })
        .collect();
    Judgement {
        owners,
        not_judged: inventory.not_judged.clone(),
        basis: BASIS,
    }
}

/// Namespace, kind and name of an owner.
pub(super) type Key = (String, String, String);

/// Whether a pod exists; else it is one that a template would become.
fn is_stored(pod: &Value) -> bool {
    !text(pod, "/metadata/uid").is_empty()
}

/// Every pod that may start, living or made of a template, with its highest known owner.
fn pods(inventory: &Inventory) -> Vec<(Key, Value)> {
    let mut by_uid: BTreeMap<&str, (&str, &Value)> = BTreeMap::new();
    for (&kind, objects) in &inventory.objects {
        for object in objects {
            by_uid.insert(text(object, "/metadata/uid"), (kind, object));
        }
    }
    let key = |kind: &str, object: &Value| {
        (
            text(object, "/metadata/namespace").to_owned(),
            kind.to_owned(),
            text(object, "/metadata/name").to_owned(),
        )
    };
    let mut found = Vec::new();
    for (&kind, objects) in &inventory.objects {
        for object in objects.iter().filter(|object| may_start(kind, object)) {
            let namespace = text(object, "/metadata/namespace");
            if kind == "Pod" {
                // Windows nodes have no agent: Holdfast leaves their pods alone.
                if pod::is_windows(object) {
                    continue;
                }
                let owner = match controller_of(object) {
                    // Its node controls a static pod.
                    Some((kind, name, uid)) if !pod::is_mirror(object) => {
                        top(&by_uid, namespace, kind, name, uid)
                    }
                    _ => key(kind, object),
                };
                found.push((owner, object.clone()));
                continue;
            }
            let owned = controller_of(object).is_some_and(|(_, _, uid)| by_uid.contains_key(uid));
            if !owned
                && let Some(template) = pod_template(kind, object)
                && !pod::is_windows(template)
            {
                found.push((key(kind, object), pod_of(template, namespace)));
            }
        }
    }
    found
}

/// The highest owner that is known: a pod's Deployment, not its ReplicaSet.
fn top(
    by_uid: &BTreeMap<&str, (&str, &Value)>,
    namespace: &str,
    kind: &str,
    name: &str,
    uid: &str,
) -> Key {
    let mut key = (namespace.to_owned(), kind.to_owned(), name.to_owned());
    let mut uid = uid.to_owned();
    // No chain is longer than CronJob, Job, Pod.
    for _ in 0..4 {
        let above = by_uid
            .get(uid.as_str())
            .and_then(|(_, object)| controller_of(object))
            .filter(|(kind, _, _)| workload::by_name(kind).is_some());
        let Some((kind, name, above)) = above else {
            break;
        };
        key = (namespace.to_owned(), kind.to_owned(), name.to_owned());
        above.clone_into(&mut uid);
    }
    key
}

#[cfg(test)]
mod tests;
