//! The rewrite of a pod: a pure function from raw JSON to patch operations (SPEC 5, SPEC 8).
//!
//! Raw, so that fields which this version does not know stay untouched. Never denies, never writes
//! twice, and touches nothing but image references and two annotations: the originals, and how
//! often somebody set them back.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::access::ImageAccess;
use holdfast_api::history::{ImageHistory, MAX_REVERTS};
use holdfast_api::labels;
use holdfast_core::pod::{self, Kind, PodImage};
use holdfast_core::{Reference, reference, rewrite};
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, PatchOperation, ReplaceOperation};
use serde_json::{Map, Value, json};

use crate::rules::Rules;

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
    /// The kinds of images that such a request can still change. An image volume cannot change
    /// after creation.
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
pub enum SkipReason {
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
    /// The registry cannot get it from its upstream; the nodes may.
    Unfillable,
    /// A policy refuses the registry's references in that namespace.
    Refused,
    /// It is not known that the namespace may have it (`access.privateImages: namespace`).
    Private,
    /// Somebody set the pod's images back again and again.
    Reverted,
    /// The pod has more images and annotations than are read.
    TooLarge,
}

impl SkipReason {
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
            Self::Unfillable => "unfillable",
            Self::Refused => "refused",
            Self::Private => "private",
            Self::Reverted => "reverted",
            Self::TooLarge => "too_large",
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
    pub skipped: Vec<SkipReason>,
    /// How many references an update put back to what was rewritten before.
    pub set_back: usize,
    /// How many references to the registry became the upstream's, because the namespace may not
    /// have the image.
    pub put_back: usize,
    /// Why the pod is not admitted at all.
    pub refused: Option<&'static str>,
}

impl Mutation {
    /// Nothing is done to a pod that is too large to be read.
    pub fn too_large() -> Self {
        let warning = "holdfast: the pod has too many images (more than 256) or annotations; it is left as it is";
        Self {
            warnings: vec![warning.to_owned()],
            skipped: vec![SkipReason::TooLarge],
            ..Self::default()
        }
    }

    /// Takes in what was decided about an image; its source, where that is the upstream's to know.
    fn enact(&mut self, image: &PodImage, decision: Decision) -> Option<Reference> {
        match decision {
            Decision::Rewrite {
                local,
                original,
                written,
            } => {
                if written != image.image {
                    self.warnings.push(format!(
                        "holdfast: the image of {} is malformed and read as {:?}",
                        image.key(),
                        shown(&written)
                    ));
                }
                self.replace(image, local)?;
                self.rewritten += 1;
                Some(original)
            }
            Decision::PutBack { original } => {
                self.replace(image, original.to_string())?;
                self.put_back += 1;
                self.skipped.push(SkipReason::Private);
                self.warnings.push(format!(
                    "holdfast: {} gets {:?} from its upstream: it is not known that this namespace may have it",
                    image.key(),
                    shown(&original.to_string())
                ));
                Some(original)
            }
            Decision::Leave { reason, original } => {
                self.warnings.extend(warning(image, reason));
                self.skipped.push(reason);
                original
            }
            Decision::Stay => None,
        }
    }

    /// Gives an image another reference.
    fn replace(&mut self, image: &PodImage, reference: String) -> Option<()> {
        let path = PointerBuf::parse(&image.pointer).ok()?;
        let value = Value::String(reference);
        self.patch
            .push(PatchOperation::Replace(ReplaceOperation { path, value }));
        Some(())
    }
}

/// Decides what to do with `pod`, whose state before the change is `old`.
pub fn mutate(pod: &Value, old: Option<&Value>, request: Request, rules: &Rules) -> Mutation {
    if let Some(reason) = reason_to_skip(pod, rules) {
        return Mutation {
            skipped: vec![reason],
            ..Mutation::default()
        };
    }
    judge_all(pod, old, request, rules, rules.address.as_deref())
}

/// Puts references to the registry back to the upstream's where the pod's namespace may not have
/// the image, and changes nothing else. Asked about every pod, also about those that are not
/// rewritten: nobody gets another one's image by a label of his own.
pub fn put_back(pod: &Value, old: Option<&Value>, request: Request, rules: &Rules) -> Mutation {
    if rules.access == ImageAccess::Every || pod::is_mirror(pod) {
        return Mutation::default();
    }
    Mutation {
        images: Vec::new(),
        ..judge_all(pod, old, request, rules, None)
    }
}

/// What becomes of a pod that is too large for [`put_back`]. It may hide a name at the registry, so
/// it is not admitted where that matters.
pub fn put_back_unread(rules: &Rules) -> Mutation {
    let refused =
        "holdfast: access.privateImages=namespace admits no pod with more than 256 images";
    Mutation {
        refused: (rules.access != ImageAccess::Every).then_some(refused),
        ..Mutation::default()
    }
}

/// Judges each image that is new or changed. Without an address nothing is rewritten.
fn judge_all(
    pod: &Value,
    old: Option<&Value>,
    request: Request,
    rules: &Rules,
    address: Option<&str>,
) -> Mutation {
    let mut mutation = Mutation::default();
    let old = old.filter(|_| request != Request::Create);
    let before: BTreeMap<String, String> = old
        .map(|old| {
            pod::images(old)
                .into_iter()
                .map(|image| (image.key(), image.image))
                .collect()
        })
        .unwrap_or_default();
    // Whoever replaces a pod as a whole replaces its annotations, too.
    let mut history = old.map_or_else(ImageHistory::default, |old| {
        ImageHistory::of(pod).with(ImageHistory::of(old))
    });
    let namespace = pod.pointer("/metadata/namespace").and_then(Value::as_str);
    let standing = Standing {
        rules,
        address,
        namespace: namespace.unwrap_or_default(),
        insists: request == Request::Update && history.reverts.saturating_add(1) >= MAX_REVERTS,
        excluded: request == Request::Update && history.is_excluded(),
        history: &history,
    };
    let mut originals = Map::new();
    let mut announced = BTreeSet::new();
    for image in pod::images(pod) {
        let was = before.get(&image.key());
        if !request.kinds().contains(&image.kind) || was == Some(&image.image) {
            continue;
        }
        let verdict = judge(&image, was.map(String::as_str), &standing);
        mutation.set_back += usize::from(verdict.set_back);
        if let Decision::Rewrite { written, .. } = &verdict.decision {
            originals.insert(image.key(), Value::String(written.clone()));
        }
        if let Some(source) = mutation.enact(&image, verdict.decision)
            && announced.insert(source.to_string())
        {
            mutation.images.push(source);
        }
    }
    if request == Request::Ephemeral {
        return mutation;
    }
    let mut annotations = Vec::new();
    if !originals.is_empty() {
        annotations.push((labels::ORIGINAL_IMAGES, merged_originals(pod, originals)));
    }
    if mutation.set_back > 0 && !history.is_excluded() {
        history.reverts += 1;
        annotations.push((labels::IMAGE_HISTORY, history.text()));
    }
    mutation.patch.extend(annotate(pod, annotations));
    mutation
}

fn reason_to_skip(pod: &Value, rules: &Rules) -> Option<SkipReason> {
    if rules.address.is_none() {
        Some(SkipReason::NotRewriting)
    } else if labels::opts_out(pod) {
        Some(SkipReason::OptedOut)
    } else if pod::is_mirror(pod) {
        Some(SkipReason::Mirror)
    } else if labels::is_holdfasts(pod) {
        Some(SkipReason::OwnPlatform)
    } else {
        None
    }
}

/// By what an image is judged, beside its own text.
struct Standing<'a> {
    rules: &'a Rules,
    /// Where rewritten references lead; nothing where the pod's own references stay.
    address: Option<&'a str>,
    namespace: &'a str,
    history: &'a ImageHistory,
    /// Whether setting an image back once more is once too often.
    insists: bool,
    /// Whether that was so before.
    excluded: bool,
}

struct Verdict {
    /// Whether the update puts the original back where its rewritten form stood.
    set_back: bool,
    decision: Decision,
}

enum Decision {
    Rewrite {
        local: String,
        original: Reference,
        /// What the annotation keeps: the text as written, or its repaired form.
        written: String,
    },
    /// Nothing: only references to the registry are judged.
    Stay,
    /// The upstream's reference takes the place of one to the registry.
    PutBack { original: Reference },
    Leave {
        reason: SkipReason,
        original: Option<Reference>,
    },
}

/// Judges an image that is new or changed; `was` is what stood there before.
fn judge(image: &PodImage, was: Option<&str>, standing: &Standing<'_>) -> Verdict {
    let rules = standing.rules;
    let leave = |reason, original| Verdict {
        set_back: false,
        decision: Decision::Leave { reason, original },
    };
    // Before all else: a node that pulled it for others has it under that name, whatever the pull
    // policy is.
    if let Some(original) = rewrite::served(&image.image, &rules.known_addresses)
        && !rules.access.permits(standing.namespace, &original)
    {
        return Verdict {
            set_back: false,
            decision: Decision::PutBack { original },
        };
    }
    let Some(address) = standing.address else {
        return Verdict {
            set_back: false,
            decision: Decision::Stay,
        };
    };
    if image.pull_policy.as_deref() == Some("Never") {
        return leave(SkipReason::PullNever, None);
    }
    let (original, written) = match Reference::parse(&image.image) {
        Ok(reference) => (reference, image.image.clone()),
        Err(_) => match reference::repair(&image.image) {
            // An address of ours in a malformed reference is left to its author: nothing there is
            // upstream's.
            Some(reference) if !rules.is_own(reference.host()) => {
                let written = reference.to_string();
                (reference, written)
            }
            _ => return leave(SkipReason::Malformed, None),
        },
    };
    if rules.is_own(original.host()) {
        let source = rewrite::original(&image.image, &rules.known_addresses);
        return leave(SkipReason::AlreadyLocal, source);
    }
    if !rules.upstreams.include(original.host()) {
        return leave(SkipReason::OtherSource, None);
    }
    let Some(local) = rewrite::rewrite(&original, address) else {
        return leave(SkipReason::TooLong, None);
    };
    if rules.leaves_namespace_alone(standing.namespace) {
        return leave(SkipReason::Refused, Some(original));
    }
    if standing.history.restored.contains(&original.to_string())
        || rules.leaves_alone(standing.namespace, &original)
    {
        return leave(SkipReason::Unfillable, Some(original));
    }
    if !rules.access.permits(standing.namespace, &original) {
        return leave(SkipReason::Private, Some(original));
    }
    let set_back = was.is_some_and(|was| {
        rewrite::original(was, &rules.known_addresses).as_ref() == Some(&original)
    });
    let decision = if standing.excluded || (set_back && standing.insists) {
        Decision::Leave {
            reason: SkipReason::Reverted,
            original: Some(original),
        }
    } else {
        Decision::Rewrite {
            local,
            original,
            written,
        }
    };
    Verdict { set_back, decision }
}

fn warning(image: &PodImage, reason: SkipReason) -> Option<String> {
    let why = match reason {
        SkipReason::Malformed => "is not a valid reference",
        SkipReason::TooLong => "has a name too long for the cluster's registry",
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

/// The originals annotation's text with these beside what is there already.
fn merged_originals(pod: &Value, originals: Map<String, Value>) -> String {
    let mut merged = match pod::annotated_originals(pod) {
        Some(Value::Object(existing)) => existing,
        _ => Map::new(),
    };
    merged.extend(originals);
    Value::Object(merged).to_string()
}

/// The operations that put these annotations onto the pod. None where the annotations would become
/// too large for the API server: the originals are derivable without it.
fn annotate(pod: &Value, ours: Vec<(&str, String)>) -> Vec<PatchOperation> {
    let annotations = pod
        .pointer("/metadata/annotations")
        .and_then(Value::as_object);
    let others: usize = annotations
        .into_iter()
        .flatten()
        .filter(|(key, _)| ours.iter().all(|(own, _)| own != key))
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    let added: usize = ours.iter().map(|(key, text)| key.len() + text.len()).sum();
    if ours.is_empty() || others + added > MAX_ANNOTATIONS_BYTES {
        return Vec::new();
    }
    if annotations.is_some() {
        let path = |key: &str| {
            let key = key.replace('~', "~0").replace('/', "~1");
            format!("/metadata/annotations/{key}")
        };
        return ours
            .into_iter()
            .flat_map(|(key, text)| add(&path(key), json!(text)))
            .collect();
    }
    let ours: Map<String, Value> = ours
        .into_iter()
        .map(|(key, text)| (key.to_owned(), json!(text)))
        .collect();
    if pod.get("metadata").is_some_and(Value::is_object) {
        add("/metadata/annotations", Value::Object(ours))
    } else {
        add("/metadata", json!({ "annotations": ours }))
    }
}

fn add(path: &str, value: Value) -> Vec<PatchOperation> {
    PointerBuf::parse(path)
        .map(|path| PatchOperation::Add(AddOperation { path, value }))
        .into_iter()
        .collect()
}

#[cfg(test)]
mod matrix;
#[cfg(test)]
mod odd;
#[cfg(test)]
mod private;
#[cfg(test)]
mod tests;
