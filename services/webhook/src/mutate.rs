//! Decides about the images of a pod: a pure function from raw JSON to patch operations (SPEC 5,
//! SPEC 8).
//!
//! The patch works on raw JSON, so that fields which this version does not know stay untouched. It
//! changes image references and two annotations only: the original references, and the history of
//! the pod's images. Applying it twice changes nothing. `docs/design/admission.md` has the rules.

use std::collections::BTreeSet;

use holdfast_api::access::ImageAccess;
use holdfast_api::labels;
use holdfast_core::delivery::{self, Rule};
use holdfast_core::meaning::{self, Meaning, meaning};
use holdfast_core::pod::{self, Kind, PodImage};
use holdfast_core::{Reference, rewrite};
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, PatchOperation, ReplaceOperation};
use serde_json::{Map, Value, json};

use self::stored::Stored;
use crate::choice;
use crate::rules::Rules;

mod stored;

/// Total size of annotations that the API server accepts.
const MAX_ANNOTATIONS_BYTES: usize = 256 * 1024;
/// Longest part of a reference that a warning quotes.
const MAX_SHOWN_CHARS: usize = 100;

/// The operation on a pod that is reviewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A new pod.
    Create,
    /// A change of an existing pod.
    Update,
    /// New ephemeral containers, through their subresource. Nothing else can be changed there.
    Ephemeral,
}

impl Request {
    /// The kinds of images that the operation can change. Image volumes are immutable after
    /// creation.
    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Create => &[Kind::Container, Kind::Init, Kind::Volume],
            Self::Update => &[Kind::Container, Kind::Init],
            Self::Ephemeral => &[Kind::Ephemeral],
        }
    }
}

/// Why an image, or a whole pod, is not rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SkipReason {
    /// Rewriting is off: the nodes are not prepared, or the shared state is unknown.
    NotRewriting,
    /// A label of the pod opts out.
    OptedOut,
    /// A mirror pod: the API's copy of a static pod, which the kubelet has started already.
    Mirror,
    /// A pod of Holdfast itself.
    OwnPlatform,
    /// A pod of Windows nodes, which have no node agent.
    Windows,
    /// `imagePullPolicy: Never`: only an image that the node holds may run.
    PullNever,
    /// The reference names the registry already.
    AlreadyLocal,
    /// `sources` excludes the upstream.
    OtherSource,
    /// The reference is malformed and has no certain repair.
    Malformed,
    /// The local name would be too long for kubelets, or the reference for an Artifact.
    TooLong,
    /// A bare word that another webhook replaces by an image.
    Placeholder,
    /// The pods that keep the original name would lose the image.
    Protected,
    /// Nodes have the image under its original name, and the registry has no copy yet.
    OnNodes,
    /// The local name is less likely to start than the original.
    NotBetter,
    /// The registry cannot copy the image from its upstream, but nodes may be able to pull it.
    Unfillable,
    /// A policy of the namespace refuses the registry's references.
    Refused,
    /// The owner of the pod deletes it if its image is rewritten.
    OwnerExcluded,
    /// It is unknown whether the namespace may have the image (`access.privateImages: namespace`).
    Private,
    /// The pod has more images or annotations than the webhook reads.
    TooLarge,
}

impl SkipReason {
    /// Why the original name is chosen; `None` for the local name.
    fn of(rule: Rule) -> Option<Self> {
        match rule {
            Rule::Never => Some(Self::PullNever),
            Rule::Protected => Some(Self::Protected),
            Rule::Placeholder => Some(Self::Placeholder),
            Rule::OnNodes => Some(Self::OnNodes),
            Rule::NotBetter => Some(Self::NotBetter),
            Rule::Held | Rule::Expected | Rule::Unknown => None,
        }
    }

    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotRewriting => "not_rewriting",
            Self::OptedOut => "opted_out",
            Self::Mirror => "mirror",
            Self::OwnPlatform => "own_platform",
            Self::Windows => "windows",
            Self::PullNever => "pull_never",
            Self::AlreadyLocal => "already_local",
            Self::OtherSource => "other_source",
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::Placeholder => "placeholder",
            Self::Protected => "protected",
            Self::OnNodes => "on_nodes",
            Self::NotBetter => "not_better",
            Self::Unfillable => "unfillable",
            Self::Refused => "refused",
            Self::OwnerExcluded => "owner_excluded",
            Self::Private => "private",
            Self::TooLarge => "too_large",
        }
    }
}

/// The decision about a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mutation {
    /// Operations on raw paths; empty if nothing changes.
    pub patch: Vec<PatchOperation>,
    /// Texts for the client that made the request.
    pub warnings: Vec<String>,
    /// The upstream references that the registry should hold for this pod, without duplicates.
    pub images: Vec<Reference>,
    /// Number of rewritten references.
    pub rewritten: usize,
    /// Why other references were not rewritten: one entry per image, or one for the whole pod.
    pub skipped: Vec<SkipReason>,
    /// Number of references of this update that mean the stored ones, which stay.
    pub kept: usize,
    /// Number of references to the registry that were replaced by the originals, because the
    /// namespace may not have the image.
    pub restored: usize,
    /// Why the pod is denied, if it is.
    pub refused: Option<&'static str>,
}

impl Mutation {
    /// The decision about a pod that is too large to be read: admitted unchanged.
    pub fn too_large() -> Self {
        let warning = "holdfast: the pod has too many images (more than 256) or annotations; it \
            is admitted unchanged";
        Self {
            warnings: vec![warning.to_owned()],
            skipped: vec![SkipReason::TooLarge],
            ..Self::default()
        }
    }

    /// Applies the decision about an image. Returns the upstream reference to announce.
    fn apply(&mut self, image: &PodImage, decision: Decision) -> Option<Reference> {
        match decision {
            Decision::Rewrite {
                local,
                original,
                written,
                repaired,
            } => {
                if repaired {
                    self.warnings.push(format!(
                        "holdfast: the image of {} is malformed; it was read as {:?}",
                        image.key(),
                        shown(&written)
                    ));
                }
                self.replace(image, local)?;
                self.rewritten += 1;
                Some(original)
            }
            Decision::Restore { original } => {
                self.replace(image, original.to_string())?;
                self.restored += 1;
                self.skipped.push(SkipReason::Private);
                self.warnings.push(format!(
                    "holdfast: {} gets {:?} from its upstream, because it is unknown whether this \
                     namespace may have it",
                    image.key(),
                    shown(&original.to_string())
                ));
                Some(original)
            }
            Decision::Skip { reason, original } => {
                self.warnings.extend(warning(image, reason));
                self.skipped.push(reason);
                original
            }
            Decision::Keep => None,
        }
    }

    /// Replaces the reference of an image.
    fn replace(&mut self, image: &PodImage, reference: String) -> Option<()> {
        let path = PointerBuf::parse(&image.pointer).ok()?;
        let value = Value::String(reference);
        self.patch
            .push(PatchOperation::Replace(ReplaceOperation { path, value }));
        Some(())
    }
}

/// Decides about `pod`, whose state before the change is `old`.
pub fn mutate(pod: &Value, old: Option<&Value>, request: Request, rules: &Rules) -> Mutation {
    if let Some(reason) = reason_to_skip(pod) {
        return Mutation {
            skipped: vec![reason],
            ..Mutation::default()
        };
    }
    let stored = old
        .filter(|_| request != Request::Create)
        .map(|old| Stored::new(pod, old, Some(&rules.known_addresses)));
    let mut mutation = decide_all(
        pod,
        stored.as_ref(),
        request,
        rules,
        rules.address.as_deref(),
    );
    if rules.address.is_none() {
        mutation.skipped = vec![SkipReason::NotRewriting];
    }
    mutation
}

/// Replaces references to the registry by the originals where the pod's namespace may not have the
/// image, and changes nothing else. It applies to pods that opt out of rewriting, too: a label must
/// not open the images of other namespaces.
pub fn restore(pod: &Value, old: Option<&Value>, request: Request, rules: &Rules) -> Mutation {
    if rules.access == ImageAccess::Every || pod::is_mirror(pod) {
        return Mutation::default();
    }
    let stored = old
        .filter(|_| request != Request::Create)
        .map(|old| Stored::new(pod, old, None));
    Mutation {
        images: Vec::new(),
        ..decide_all(pod, stored.as_ref(), request, rules, None)
    }
}

/// The decision about a pod that is too large for [`restore`]. It may hide a reference to the
/// registry, so it is denied if access is restricted.
pub fn restore_unread(rules: &Rules) -> Mutation {
    let refused =
        "holdfast: access.privateImages=namespace admits no pod with more than 256 images";
    Mutation {
        refused: (rules.access != ImageAccess::Every).then_some(refused),
        ..Mutation::default()
    }
}

/// Decides about each image that is new or changed. Without an address nothing is rewritten.
fn decide_all(
    pod: &Value,
    stored: Option<&Stored<'_>>,
    request: Request,
    rules: &Rules,
    address: Option<&str>,
) -> Mutation {
    let mut mutation = Mutation::default();
    let namespace = pod.pointer("/metadata/namespace").and_then(Value::as_str);
    let criteria = Criteria {
        rules,
        address,
        namespace: namespace.unwrap_or_default(),
        restored: stored.map(Stored::restored),
        owner_excluded: rules.excludes_owner(namespace.unwrap_or_default(), pod),
        prepared: choice::can_pull(pod, &rules.delivery),
    };
    let known_originals = pod::annotated_originals(pod);
    let mut originals = Map::new();
    let mut announced = BTreeSet::new();
    for image in pod::images(pod) {
        let key = image.key();
        let was = stored.and_then(|stored| stored.image(&key));
        if !request.kinds().contains(&image.kind) || was == Some(&image.image) {
            continue;
        }
        let annotated = meaning::annotated(known_originals.as_ref(), &key);
        let meant = meaning(&image.image, annotated, &rules.known_addresses);
        if request == Request::Update
            && let Some(kept) = stored.and_then(|stored| stored.kept(&key, &meant))
        {
            mutation.kept += 1;
            if annotated.is_none()
                && let Some(original) = kept.original
            {
                originals.insert(key, Value::String(original.to_owned()));
            }
            mutation.replace(&image, kept.text.to_owned());
            continue;
        }
        let decision = decide(&image, meant, annotated, &criteria);
        if let Decision::Rewrite { written, .. } = &decision {
            originals.insert(key, Value::String(written.clone()));
        }
        if let Some(source) = mutation.apply(&image, decision)
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
    if mutation.kept > 0
        && let Some(history) = stored.and_then(Stored::lost_history)
    {
        annotations.push((labels::IMAGE_HISTORY, history));
    }
    mutation.patch.extend(annotate(pod, annotations));
    mutation
}

fn reason_to_skip(pod: &Value) -> Option<SkipReason> {
    if labels::opts_out(pod) {
        Some(SkipReason::OptedOut)
    } else if pod::is_mirror(pod) {
        Some(SkipReason::Mirror)
    } else if labels::is_holdfasts(pod) {
        Some(SkipReason::OwnPlatform)
    } else if pod::is_windows(pod) {
        Some(SkipReason::Windows)
    } else {
        None
    }
}

/// What the decision about an image depends on, besides its own text.
struct Criteria<'a> {
    rules: &'a Rules,
    /// The address for rewritten references; `None` if nothing is rewritten.
    address: Option<&'a str>,
    namespace: &'a str,
    /// The sources that keep their upstream's references in this pod.
    restored: Option<&'a BTreeSet<String>>,
    /// Whether the owner of the pod is excluded.
    owner_excluded: bool,
    /// Whether the nodes where the pod may run can pull from the registry.
    prepared: bool,
}

enum Decision {
    Rewrite {
        local: String,
        original: Reference,
        /// The text for the annotation: the original as its author wrote it, or its repaired form.
        written: String,
        /// Whether the text was malformed.
        repaired: bool,
    },
    /// Nothing to do: rewriting is off.
    Keep,
    /// Replace a reference to the registry by the original.
    Restore { original: Reference },
    Skip {
        reason: SkipReason,
        original: Option<Reference>,
    },
}

/// Decides about an image that is new or changed, and means `meant`. `annotated` is what the
/// annotation of originals says for it.
fn decide(
    image: &PodImage,
    meant: Meaning,
    annotated: Option<&str>,
    criteria: &Criteria<'_>,
) -> Decision {
    let rules = criteria.rules;
    let skip = |reason, original| Decision::Skip { reason, original };
    // Checked first: a node may hold the image for another namespace under this name, whatever the
    // pull policy is.
    if let Meaning::Local { reference } = &meant
        && !rules.access.permits(criteria.namespace, reference)
    {
        let original = reference.clone();
        return Decision::Restore { original };
    }
    let Some(address) = criteria.address else {
        return Decision::Keep;
    };
    if image.pull_policy.as_deref() == Some("Never") {
        return skip(SkipReason::PullNever, None);
    }
    let is_placeholder = meant.is_reserved_word();
    let repaired = meant.is_repaired();
    let (original, written) = match meant {
        Meaning::Unreadable(_) => return skip(SkipReason::Malformed, None),
        Meaning::Own { .. } => return skip(SkipReason::AlreadyLocal, None),
        Meaning::Local { reference } => return skip(SkipReason::AlreadyLocal, Some(reference)),
        Meaning::TooLong { reference } if rules.upstreams.include(reference.host()) => {
            return skip(SkipReason::TooLong, None);
        }
        Meaning::TooLong { .. } => return skip(SkipReason::OtherSource, None),
        Meaning::Restored { reference } => {
            let written = annotated.map_or_else(|| reference.to_string(), str::to_owned);
            (reference, written)
        }
        Meaning::Upstream { reference, .. } | Meaning::Placeholder { reference, .. } => {
            let written = if repaired {
                reference.to_string()
            } else {
                image.image.clone()
            };
            (reference, written)
        }
    };
    if !rules.upstreams.include(original.host()) {
        return skip(SkipReason::OtherSource, None);
    }
    let Some(local) = rewrite::rewrite(&original, address) else {
        return skip(SkipReason::TooLong, None);
    };
    if let Some(reason) = excluded(&original, criteria) {
        return skip(reason, Some(original));
    }
    let known = &rules.delivery;
    let state = choice::state(image, &original, is_placeholder, criteria.prepared, known);
    if let Some(reason) = SkipReason::of(delivery::choose(&state)) {
        // A placeholder is no image yet.
        return skip(reason, (!is_placeholder).then_some(original));
    }
    Decision::Rewrite {
        local,
        original,
        written,
        repaired,
    }
}

/// Why a source stays with its upstream in this namespace or pod, if it does.
fn excluded(original: &Reference, criteria: &Criteria<'_>) -> Option<SkipReason> {
    let (rules, namespace) = (criteria.rules, criteria.namespace);
    if rules.excludes_namespace(namespace) {
        Some(SkipReason::Refused)
    } else if criteria.owner_excluded {
        Some(SkipReason::OwnerExcluded)
    } else if criteria
        .restored
        .is_some_and(|restored| restored.contains(&original.to_string()))
        || rules.excludes(namespace, original)
    {
        Some(SkipReason::Unfillable)
    } else if !rules.access.permits(namespace, original) {
        Some(SkipReason::Private)
    } else {
        None
    }
}

fn warning(image: &PodImage, reason: SkipReason) -> Option<String> {
    let why = match reason {
        SkipReason::Malformed => "is not a valid reference",
        SkipReason::TooLong => "has a name that is too long for the cluster's registry",
        _ => return None,
    };
    Some(format!(
        "holdfast: the image {:?} of {} {why}; it is not rewritten",
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

/// The text of the annotation of originals, with `originals` added to its present content.
fn merged_originals(pod: &Value, originals: Map<String, Value>) -> String {
    let mut merged = match pod::annotated_originals(pod) {
        Some(Value::Object(existing)) => existing,
        _ => Map::new(),
    };
    merged.extend(originals);
    Value::Object(merged).to_string()
}

/// The operations that set these annotations. None if the annotations would exceed the limit of the
/// API server; the originals can be derived without them.
fn annotate(pod: &Value, new: Vec<(&str, String)>) -> Vec<PatchOperation> {
    let annotations = pod
        .pointer("/metadata/annotations")
        .and_then(Value::as_object);
    let others: usize = annotations
        .into_iter()
        .flatten()
        .filter(|(key, _)| new.iter().all(|(name, _)| name != key))
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    let added: usize = new.iter().map(|(key, text)| key.len() + text.len()).sum();
    if new.is_empty() || others + added > MAX_ANNOTATIONS_BYTES {
        return Vec::new();
    }
    if annotations.is_some() {
        let path = |key: &str| {
            let key = key.replace('~', "~0").replace('/', "~1");
            format!("/metadata/annotations/{key}")
        };
        return new
            .into_iter()
            .flat_map(|(key, text)| add(&path(key), json!(text)))
            .collect();
    }
    let new: Map<String, Value> = new
        .into_iter()
        .map(|(key, text)| (key.to_owned(), json!(text)))
        .collect();
    if pod.get("metadata").is_some_and(Value::is_object) {
        add("/metadata/annotations", Value::Object(new))
    } else {
        add("/metadata", json!({ "annotations": new }))
    }
}

fn add(path: &str, value: Value) -> Vec<PatchOperation> {
    PointerBuf::parse(path)
        .map(|path| PatchOperation::Add(AddOperation { path, value }))
        .into_iter()
        .collect()
}

#[cfg(test)]
mod known;
#[cfg(test)]
mod matrix;
#[cfg(test)]
mod meant;
#[cfg(test)]
mod odd;
#[cfg(test)]
mod private;
#[cfg(test)]
mod tests;
