//! What would not start without the uplink: pure. An image is there when the registry holds it and
//! its pods are sent to the registry, or when the nodes hold it already and are not told to ask
//! again.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::access::ImageAccess;
use holdfast_api::{Artifact, labels};
use holdfast_cluster_model::{NamespaceFacts, Scope, pod_facts};
use holdfast_core::meaning::{self, Meaning};
use holdfast_core::workload::{
    self, condition_is_true, controller_of, may_start, pod_of, pod_template, text,
};
use holdfast_core::{Reference, pod};
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use serde_json::Value;

use crate::artifact_status::{CopyStatus, copy_status};
use crate::exit_status::Answer;

/// Why pods of a namespace are not sent to the registry for an image.
const PRIVATE: &str = "it is not known that their namespace may have it (access.privateImages)";

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
    /// Which images pods may have from the registry.
    pub(super) access: ImageAccess,
    /// What concerns Holdfast, by its configuration.
    pub(super) scope: Scope,
    /// What the caller may not see.
    pub(super) not_judged: Vec<String>,
}

/// What would become of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Verdict {
    /// It could not be pulled.
    Missing,
    /// The registry would not serve it, and whether the nodes hold it is not known.
    NotJudged,
    /// The nodes hold it already.
    OnNodes,
    /// `imagePullPolicy: Never`: the uplink makes no difference.
    NeverPulled,
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
    /// Why it would be missing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) why: String,
    /// Whether Holdfast is to care for it: not what opts out or lies outside its configuration.
    pub(super) covered: bool,
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

/// What would become of everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Judgement {
    pub(super) owners: Vec<Owner>,
    pub(super) not_judged: Vec<String>,
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
    let judge = Judge::new(inventory);
    let pods = pods(inventory);
    let alive: BTreeSet<Key> = pods
        .iter()
        .filter(|(_, pod, _)| is_stored(pod))
        .map(|(key, _, _)| key.clone())
        .collect();
    let mut owners: BTreeMap<Key, Vec<Image>> = BTreeMap::new();
    for (key, pod, node) in pods {
        let found = judge.pod(&key.0, &pod, node.as_deref(), alive.contains(&key));
        let images = owners.entry(key).or_default();
        for image in found {
            if !images.contains(&image) {
                images.push(image);
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
    }
}

/// Namespace, kind and name of an owner.
type Key = (String, String, String);

/// Whether a pod exists; else it is one that a template would become.
fn is_stored(pod: &Value) -> bool {
    !text(pod, "/metadata/uid").is_empty()
}

/// Every pod that may start, living or made of a template, with its highest known owner; the node
/// of what is bound to it.
fn pods(inventory: &Inventory) -> Vec<(Key, Value, Option<String>)> {
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
                if pod::is_mirror(object) || pod::is_windows(object) {
                    continue;
                }
                let (owner, bare) = match controller_of(object) {
                    Some((kind, name, uid)) => (top(&by_uid, namespace, kind, name, uid), false),
                    None => (key(kind, object), true),
                };
                let node = Some(text(object, "/spec/nodeName"))
                    .filter(|node| bare && !node.is_empty())
                    .map(str::to_owned);
                found.push((owner, object.clone(), node));
                continue;
            }
            let owned = controller_of(object).is_some_and(|(_, _, uid)| by_uid.contains_key(uid));
            if !owned
                && let Some(template) = pod_template(kind, object)
                && !pod::is_windows(template)
            {
                found.push((key(kind, object), pod_of(template, namespace), None));
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

/// How an image is pulled.
#[derive(Clone, Copy)]
struct Pulled<'a> {
    namespace: &'a str,
    policy: &'a str,
    /// The node that its pod is bound to.
    node: Option<&'a str>,
    /// Whether its pod exists; else it is one that a template would become.
    stored: bool,
}

/// What is known of images.
struct Judge<'a> {
    inventory: &'a Inventory,
    /// By canonical reference; what is local in one namespace is local for every node (SPEC 12).
    copies: BTreeMap<String, CopyStatus>,
    /// Images by node, of nodes that take pods; `None` where nodes may not be listed.
    nodes: Option<BTreeMap<&'a str, BTreeSet<String>>>,
}

impl<'a> Judge<'a> {
    fn new(inventory: &'a Inventory) -> Self {
        let mut copies: BTreeMap<String, CopyStatus> = BTreeMap::new();
        for artifact in &inventory.artifacts {
            let source = &artifact.spec.source_artifact;
            let source =
                Reference::parse(source).map_or_else(|_| source.clone(), |r| r.to_string());
            let status = copy_status(artifact);
            if copies.get(&source).is_none_or(|known| !known.local) {
                copies.insert(source, status);
            }
        }
        let nodes = inventory.nodes.as_ref().map(|nodes| {
            let nodes = nodes.iter().filter(|node| takes_pods(node));
            nodes
                .map(|node| (text(node, "/metadata/name"), images_of(node)))
                .collect()
        });
        Self {
            inventory,
            copies,
            nodes,
        }
    }

    /// The images of a pod; `node` is where it is bound to. `has_pods` says whether its owner has
    /// living pods: these show the images that other webhooks put in the place of their words.
    fn pod(&self, namespace: &str, pod: &Value, node: Option<&str>, has_pods: bool) -> Vec<Image> {
        let covered_sources = self.covered_sources(namespace, pod);
        let stored = is_stored(pod);
        meaning::of_pod(pod, &self.inventory.addresses)
            .into_iter()
            // One for debugging is gone with its pod.
            .filter(|found| found.image.kind != pod::Kind::Ephemeral)
            .filter(|found| stored || !has_pods || !found.meaning.is_reserved_word())
            .map(|found| {
                let written = found.image.pull_policy.as_deref();
                let policy =
                    written.unwrap_or_else(|| meaning::default_pull_policy(&found.image.image));
                let image = Pulled {
                    namespace,
                    policy,
                    node,
                    stored,
                };
                let (verdict, why, covered) = self.image(&found.meaning, image, &covered_sources);
                Image {
                    image: found
                        .meaning
                        .reference()
                        .map_or_else(|| found.image.image.clone(), ToString::to_string),
                    pull_policy: policy.to_owned(),
                    verdict,
                    why,
                    covered,
                }
            })
            .collect()
    }

    /// The verdict about an image, the reason, and whether Holdfast is to care for it.
    fn image(
        &self,
        meaning: &Meaning,
        image: Pulled<'_>,
        covered_sources: &Result<BTreeSet<String>, &'static str>,
    ) -> (Verdict, String, bool) {
        let Pulled {
            namespace,
            policy,
            node,
            stored,
        } = image;
        let missing = |why: &str| (Verdict::Missing, why.to_owned(), true);
        if policy == "Never" {
            return (Verdict::NeverPulled, String::new(), true);
        }
        let reference = match meaning {
            Meaning::Local { reference } => return self.copied(reference, policy, node, None),
            Meaning::Own { .. } => return (Verdict::Local, String::new(), true),
            Meaning::Unreadable(_) => return missing("its reference cannot be read"),
            Meaning::TooLong { reference } => {
                let why = "its name is too long for the registry";
                return self.excluded(reference, policy, node, why);
            }
            Meaning::Placeholder { .. } if meaning.is_reserved_word() && stored => {
                return missing("no webhook replaced this word by an image");
            }
            Meaning::Placeholder { .. } if meaning.is_reserved_word() => {
                let why = "another webhook replaces this word by an image when a pod is created";
                return (Verdict::NotJudged, why.to_owned(), true);
            }
            Meaning::Upstream { reference, .. }
            | Meaning::Placeholder { reference, .. }
            | Meaning::Restored { reference } => reference,
        };
        match covered_sources {
            Ok(sources) if sources.contains(&reference.to_string()) => {
                let refused = self
                    .inventory
                    .excluded
                    .get(namespace)
                    .map(|by| format!("{by} refuses its references"));
                let not_rewritten_because = self.inventory.not_rewriting.as_deref();
                let is_private = !self.inventory.access.permits(namespace, reference);
                let not_rewritten_because = not_rewritten_because
                    .or(refused.as_deref())
                    .or_else(|| is_private.then_some(PRIVATE));
                self.copied(reference, policy, node, not_rewritten_because)
            }
            Ok(_) => self.excluded(reference, policy, node, "the configuration leaves it out"),
            Err(why) => self.excluded(reference, policy, node, why),
        }
    }

    /// The sources of a pod that Holdfast rewrites, or why it rewrites no image of the pod.
    fn covered_sources(
        &self,
        namespace: &str,
        pod: &Value,
    ) -> Result<BTreeSet<String>, &'static str> {
        let scope = &self.inventory.scope;
        if let Some(facts) = self.inventory.namespaces.get(namespace)
            && !scope.includes(namespace, facts)
        {
            return Err("its namespace is left out");
        }
        if labels::opts_out(pod) {
            return Err("its pods opt out");
        }
        let typed: Pod =
            serde_json::from_value(pod.clone()).map_err(|_| "it cannot be read as a pod")?;
        Ok(pod_facts(&typed, &self.inventory.addresses, scope, false).sources)
    }

    /// An image whose pods are sent to the registry, unless `not_rewritten_because` says why they
    /// are not.
    fn copied(
        &self,
        reference: &Reference,
        policy: &str,
        node: Option<&str>,
        not_rewritten_because: Option<&str>,
    ) -> (Verdict, String, bool) {
        let copy = self.copies.get(&reference.to_string());
        let why = match (copy, not_rewritten_because) {
            (Some(copy), None) if copy.local => return (Verdict::Local, String::new(), true),
            (Some(copy), Some(reason)) if copy.local => {
                format!("it is local, but new pods are not sent to the registry: {reason}")
            }
            (Some(copy), _) => format!("{}: {}", copy.reason, copy.message),
            (None, _) => "there is no Artifact for it yet".to_owned(),
        };
        let (verdict, why) = self.not_served(reference, policy, node, why);
        (verdict, why, true)
    }

    fn excluded(
        &self,
        reference: &Reference,
        policy: &str,
        node: Option<&str>,
        why: &str,
    ) -> (Verdict, String, bool) {
        let why = format!("{why}: it would be pulled from {}", reference.host());
        let (verdict, why) = self.not_served(reference, policy, node, why);
        (verdict, why, false)
    }

    /// An image that the registry would not serve, for this reason: it is available only if the
    /// nodes hold it.
    fn not_served(
        &self,
        reference: &Reference,
        policy: &str,
        node: Option<&str>,
        why: String,
    ) -> (Verdict, String) {
        match self.on_nodes(reference, policy, node) {
            Some(true) => (Verdict::OnNodes, String::new()),
            Some(false) => (Verdict::Missing, why),
            None => (
                Verdict::NotJudged,
                format!("{why}; whether nodes hold it: nodes may not be listed"),
            ),
        }
    }

    /// Whether every node that the pod may come to holds the image, as far as nodes tell (the
    /// kubelet names 50 images). `None` where nodes may not be listed.
    fn on_nodes(&self, reference: &Reference, policy: &str, node: Option<&str>) -> Option<bool> {
        if policy == "Always" {
            return Some(false);
        }
        let nodes = self.nodes.as_ref()?;
        if nodes.is_empty() {
            return Some(false);
        }
        let mut names = vec![reference.to_string()];
        if let Some(digest) = reference.digest() {
            let (host, repository) = (reference.host(), reference.repository());
            let bare = Reference::new(host.clone(), repository.clone(), None, Some(digest.clone()));
            names.push(bare.to_string());
        }
        let holds = |images: &BTreeSet<String>| names.iter().any(|name| images.contains(name));
        Some(match node {
            Some(node) => nodes.get(node).is_some_and(holds),
            None => nodes.values().all(holds),
        })
    }
}

/// Whether a node takes pods.
fn takes_pods(node: &Value) -> bool {
    let cordoned = node.pointer("/spec/unschedulable") == Some(&Value::Bool(true));
    !cordoned && condition_is_true(node, &["Ready"])
}

fn images_of(node: &Value) -> BTreeSet<String> {
    let images = node.pointer("/status/images").and_then(Value::as_array);
    images
        .into_iter()
        .flatten()
        .filter_map(|image| image.get("names").and_then(Value::as_array))
        .flatten()
        .filter_map(|name| Reference::parse(name.as_str()?).ok())
        .map(|reference| reference.to_string())
        .collect()
}

#[cfg(test)]
mod tests;
