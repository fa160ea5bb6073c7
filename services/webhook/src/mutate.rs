//! The rewrite of a pod: a pure function from raw JSON to patch operations (SPEC 5, SPEC 8).
//!
//! Raw, so that fields which this version does not know stay untouched. Never denies, never writes twice, and
//! touches nothing but image references and one annotation.

use std::collections::BTreeMap;

use holdfast_api::labels;
use holdfast_core::pod::{self, Kind, PodImage};
use holdfast_core::{Reference, reference, rewrite};
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, PatchOperation, ReplaceOperation};
use serde_json::{Map, Value, json};

use crate::rules::Rules;

/// The annotation by which the kubelet marks the API's copy of a static pod.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Marks everything that belongs to an application made of parts.
const PART_OF_LABEL: &str = "app.kubernetes.io/part-of";
/// Bytes of all annotations together that the API server accepts.
const MAX_ANNOTATIONS_BYTES: usize = 256 * 1024;
/// Characters of a reference that a warning repeats.
const MAX_SHOWN_CHARS: usize = 100;

/// What the API server asks about a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A new pod.
    Create,
    /// A change of an existing pod.
    Update,
    /// New ephemeral containers by their own subresource, where nothing else can be written.
    Ephemeral,
}

impl Request {
    /// The kinds of images that such a request can still change. An image volume cannot change after creation.
    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Create => &[Kind::Container, Kind::Init, Kind::Volume],
            Self::Update => &[Kind::Container, Kind::Init],
            Self::Ephemeral => &[Kind::Ephemeral],
        }
    }
}

/// Why a whole pod or one of its images keeps its reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LeftAlone {
    /// The nodes are not prepared, or the shared state is unknown.
    NotRewriting,
    /// The pod's label opts out.
    OptedOut,
    /// The API's copy of a static pod, which the kubelet starts by itself.
    Mirror,
    /// A pod of Holdfast itself.
    OwnPlatform,
    /// `imagePullPolicy: Never`: only what the node holds may run.
    PullNever,
    /// The image is at the registry already.
    AlreadyLocal,
    /// The upstream is none of those that are rewritten.
    OtherSource,
    /// The reference is malformed and has no certain meaning.
    Malformed,
    /// The rewritten name would be longer than a repository's name may be.
    TooLong,
}

impl LeftAlone {
    /// One word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotRewriting => "not_rewriting",
            Self::OptedOut => "opted_out",
            Self::Mirror => "mirror",
            Self::OwnPlatform => "own_platform",
            Self::PullNever => "pull_never",
            Self::AlreadyLocal => "already_local",
            Self::OtherSource => "other_source",
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
        }
    }
}

/// What is to be done with a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mutation {
    /// Operations on raw paths; empty when nothing changes.
    pub patch: Vec<PatchOperation>,
    /// Texts for whoever made the request.
    pub warnings: Vec<String>,
    /// The upstream references that the registry is to hold for this pod, each once.
    pub images: Vec<Reference>,
    /// How many references were rewritten.
    pub rewritten: usize,
    /// Why the others were not, one entry an image, or one for a whole pod.
    pub left_alone: Vec<LeftAlone>,
}

/// Decides what to do with `pod`, whose state before the change is `old`.
pub fn mutate(pod: &Value, old: Option<&Value>, request: Request, rules: &Rules) -> Mutation {
    let mut mutation = Mutation::default();
    if let Some(reason) = reason_to_skip(pod, rules) {
        mutation.left_alone.push(reason);
        return mutation;
    }
    let Some(address) = rules.address.as_deref() else {
        return mutation;
    };
    let before: BTreeMap<String, String> = old
        .filter(|_| request != Request::Create)
        .map(|old| {
            pod::images(old)
                .into_iter()
                .map(|image| (image.key(), image.image))
                .collect()
        })
        .unwrap_or_default();
    let mut originals = Map::new();
    for image in pod::images(pod) {
        let unchanged = before.get(&image.key()) == Some(&image.image);
        if !request.kinds().contains(&image.kind) || unchanged {
            continue;
        }
        match judge(&image, rules, address) {
            Verdict::Rewrite {
                local,
                original,
                written,
            } => {
                if written != image.image {
                    mutation.warnings.push(format!(
                        "holdfast: the image of {} is malformed and read as {:?}",
                        image.key(),
                        shown(&written)
                    ));
                }
                let Ok(path) = PointerBuf::parse(&image.pointer) else {
                    continue;
                };
                mutation
                    .patch
                    .push(PatchOperation::Replace(ReplaceOperation {
                        path,
                        value: Value::String(local),
                    }));
                mutation.rewritten += 1;
                originals.insert(image.key(), Value::String(written));
                announce(&mut mutation.images, original);
            }
            Verdict::Leave { reason, original } => {
                if let Some(warning) = warning(&image, reason) {
                    mutation.warnings.push(warning);
                }
                mutation.left_alone.push(reason);
                if let Some(original) = original {
                    announce(&mut mutation.images, original);
                }
            }
        }
    }
    if request != Request::Ephemeral && !originals.is_empty() {
        mutation.patch.extend(annotate(pod, originals));
    }
    mutation
}

fn reason_to_skip(pod: &Value, rules: &Rules) -> Option<LeftAlone> {
    let metadata = |field: &str, key: &str| {
        pod.pointer(&format!("/metadata/{field}"))?
            .get(key)?
            .as_str()
    };
    if rules.address.is_none() {
        Some(LeftAlone::NotRewriting)
    } else if metadata("labels", labels::REWRITE) == Some(labels::REWRITE_DISABLED) {
        Some(LeftAlone::OptedOut)
    } else if metadata("annotations", MIRROR_ANNOTATION).is_some() {
        Some(LeftAlone::Mirror)
    } else if [PART_OF_LABEL, labels::NAME]
        .into_iter()
        .any(|key| metadata("labels", key) == Some(labels::HOLDFAST))
    {
        Some(LeftAlone::OwnPlatform)
    } else {
        None
    }
}

enum Verdict {
    Rewrite {
        local: String,
        original: Reference,
        /// What the annotation keeps: the text as written, or its repaired form.
        written: String,
    },
    Leave {
        reason: LeftAlone,
        original: Option<Reference>,
    },
}

fn judge(image: &PodImage, rules: &Rules, address: &str) -> Verdict {
    let leave = |reason| Verdict::Leave {
        reason,
        original: None,
    };
    if image.pull_policy.as_deref() == Some("Never") {
        return leave(LeftAlone::PullNever);
    }
    let (original, written) = match Reference::parse(&image.image) {
        Ok(reference) => (reference, image.image.clone()),
        Err(_) => match reference::repair(&image.image) {
            // An address of ours in a malformed reference is left to its author: nothing there is upstream's.
            Some(reference) if !rules.is_own(reference.host()) => {
                let written = reference.to_string();
                (reference, written)
            }
            _ => return leave(LeftAlone::Malformed),
        },
    };
    if rules.is_own(original.host()) {
        return Verdict::Leave {
            reason: LeftAlone::AlreadyLocal,
            original: rewrite::original(&image.image, &rules.known_addresses),
        };
    }
    if !rules.upstreams.include(original.host()) {
        return leave(LeftAlone::OtherSource);
    }
    match rewrite::rewrite(&original, address) {
        Some(local) => Verdict::Rewrite {
            local,
            original,
            written,
        },
        None => leave(LeftAlone::TooLong),
    }
}

fn announce(images: &mut Vec<Reference>, original: Reference) {
    if !images.contains(&original) {
        images.push(original);
    }
}

fn warning(image: &PodImage, reason: LeftAlone) -> Option<String> {
    let why = match reason {
        LeftAlone::Malformed => "is not a valid reference",
        LeftAlone::TooLong => "has a name too long for the cluster's registry",
        _ => return None,
    };
    Some(format!(
        "holdfast: the image {:?} of {} {why}; it is left as it is",
        shown(&image.image),
        image.key()
    ))
}

fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_SHOWN_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// The operations that put `originals` into the pod's annotation, beside what is there already. None where the
/// annotations would become too large for the API server: the originals are derivable without it.
fn annotate(pod: &Value, originals: Map<String, Value>) -> Vec<PatchOperation> {
    let mut merged = match pod::annotated_originals(pod) {
        Some(Value::Object(existing)) => existing,
        _ => Map::new(),
    };
    merged.extend(originals);
    let text = Value::Object(merged).to_string();
    let annotations = pod
        .pointer("/metadata/annotations")
        .and_then(Value::as_object);
    let others: usize = annotations
        .into_iter()
        .flatten()
        .filter(|(key, _)| *key != labels::ORIGINAL_IMAGES)
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if others + labels::ORIGINAL_IMAGES.len() + text.len() > MAX_ANNOTATIONS_BYTES {
        return Vec::new();
    }
    if annotations.is_some() {
        let key = labels::ORIGINAL_IMAGES
            .replace('~', "~0")
            .replace('/', "~1");
        return add(&format!("/metadata/annotations/{key}"), json!(text));
    }
    let annotations = json!({ labels::ORIGINAL_IMAGES: text });
    if pod.get("metadata").is_some_and(Value::is_object) {
        add("/metadata/annotations", annotations)
    } else {
        add("/metadata", json!({ "annotations": annotations }))
    }
}

fn add(path: &str, value: Value) -> Vec<PatchOperation> {
    PointerBuf::parse(path)
        .map(|path| PatchOperation::Add(AddOperation { path, value }))
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests;
