//! What would not start without the uplink, by owner: pure. Every pod that may start is judged:
//! living ones where they are bound, and those that a template becomes on every node that takes
//! pods.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_cli_kit::exit_status::Answer;
use holdfast_cli_kit::leader::Question;
use holdfast_core::pod;
use holdfast_core::workload::{self, controller_of, may_start, pod_of, pod_template, text};
use serde::Serialize;
use serde_json::Value;

use crate::answers::Basis;
use crate::images::Images;
use crate::inventory::{Inventory, Key};
use crate::outcome::{Image, Verdict};
use crate::plan::Unit;

/// What pods are made of, or a pod that nothing makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Owner {
    pub(crate) namespace: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) images: Vec<Image>,
}

impl Owner {
    /// Whether an image has this verdict.
    pub(crate) fn has(&self, verdict: Verdict) -> bool {
        self.images.iter().any(|image| image.verdict == verdict)
    }
}

/// What would become of everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Judgement {
    pub(crate) owners: Vec<Owner>,
    pub(crate) not_judged: Vec<String>,
    /// What the answer is based on.
    pub(crate) basis: Basis,
}

impl Judgement {
    /// Whether nothing would be missing; images that Holdfast does not care for count unless told
    /// otherwise.
    pub(crate) fn answer(&self, ignore_uncovered: bool) -> Answer {
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
pub(crate) fn decide(inventory: &Inventory) -> Judgement {
    let judge = Images::new(inventory);
    let mut owners: BTreeMap<Key, Vec<Image>> = BTreeMap::new();
    for start in starts(inventory) {
        let found = judge.of_unit(&start.unit());
        let images = owners.entry(start.owner).or_default();
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
        basis: inventory.basis,
    }
}

/// What has to be asked about nodes.
pub(crate) fn questions(inventory: &Inventory) -> BTreeSet<Question> {
    let judge = Images::new(inventory);
    let starts = starts(inventory);
    starts
        .iter()
        .flat_map(|start| judge.questions(&start.unit()))
        .collect()
}

/// A pod that starts, and what is known of its owner.
struct Starting {
    owner: Key,
    pod: Value,
    has_pods: bool,
    is_excluded: bool,
}

impl Starting {
    fn unit(&self) -> Unit<'_> {
        Unit {
            namespace: &self.owner.0,
            pod: &self.pod,
            stored: is_stored(&self.pod),
            has_pods: self.has_pods,
            is_daemon: self.owner.1 == "DaemonSet",
            is_excluded: self.is_excluded,
        }
    }
}

/// Every pod that starts.
fn starts(inventory: &Inventory) -> Vec<Starting> {
    let mut pods = pods(inventory);
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
    if let Some(node) = &inventory.lost {
        pods = recreated(pods, node);
    }
    pods.into_iter()
        .map(|(owner, pod)| Starting {
            has_pods: alive.contains(&owner),
            is_excluded: excluded.contains(&owner),
            owner,
            pod,
        })
        .collect()
}

/// The pods that their owners make after the loss of a node: those of the templates of owners with
/// a pod there, or, of owners without a known template, the pods there without their node. Static
/// pods and pods without an owner are lost.
fn recreated(pods: Vec<(Key, Value)>, node: &str) -> Vec<(Key, Value)> {
    let is_there = |pod: &Value| text(pod, "/spec/nodeName") == node;
    let hit: BTreeSet<Key> = pods
        .iter()
        .filter(|(_, pod)| is_there(pod) && !pod::is_mirror(pod) && controller_of(pod).is_some())
        .map(|(key, _)| key.clone())
        .collect();
    let templates: BTreeSet<Key> = pods
        .iter()
        .filter(|(_, pod)| !is_stored(pod))
        .map(|(key, _)| key.clone())
        .collect();
    pods.into_iter()
        .filter(|(key, pod)| {
            let is_new = !is_stored(pod) || !templates.contains(key) && is_there(pod);
            hit.contains(key) && is_new
        })
        .map(|(key, mut pod)| {
            for (object, field) in [("/spec", "nodeName"), ("/metadata", "uid")] {
                let object = pod.pointer_mut(object).and_then(Value::as_object_mut);
                object.map(|object| object.remove(field));
            }
            (key, pod)
        })
        .collect()
}

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
