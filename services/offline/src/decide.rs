//! What would not start without the uplink, by owner: pure. Every pod that may start is judged:
//! living ones where they are bound, and those that a template becomes on every node that takes
//! pods.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_cli_kit::exit_status::Answer;
use holdfast_core::pod;
use holdfast_core::workload::{self, controller_of, may_start, pod_of, pod_template, text};
use serde::Serialize;
use serde_json::Value;

use crate::images::{Images, Unit};
use crate::inventory::{Inventory, Key};
use crate::outcome::{Image, Verdict};

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

/// What the answer is based on.
const BASIS: &str = "Artifacts that are Ready, and what the status of nodes lists";

/// What would become of everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Judgement {
    pub(crate) owners: Vec<Owner>,
    pub(crate) not_judged: Vec<String>,
    /// What the answer is based on.
    pub(crate) basis: &'static str,
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
