//! `AdmissionReview` as raw JSON: what is needed is read, everything else is tolerated.

mod prune;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_api::labels;
use holdfast_core::{dns, pod};
use serde_json::{Value, json};

use self::prune::{Kept, Shape};
use crate::mutate::{Mutation, Request};

/// The version that is spoken.
const API_VERSION: &str = "admission.k8s.io/v1";

/// Values of one review that are kept. A pod with a hundred containers and all its annotations has
/// a few hundred.
pub const MAX_KEPT_VALUES: usize = 8192;
/// Images of one review, those of containers of all kinds and of volumes. Each becomes a line of
/// the patch, several times as long as its shortest form in the review.
pub const MAX_IMAGES: usize = 256;
/// Bytes of text of one review that are kept. The API server takes 256 KiB of annotations.
pub const MAX_KEPT_BYTES: usize = 1024 * 1024;

/// A container as far as it is judged.
const CONTAINER: Shape = Shape::Members(&[
    ("name", Shape::Plain),
    ("image", Shape::Plain),
    ("imagePullPolicy", Shape::Plain),
]);
const CONTAINERS: Shape = Shape::List(&CONTAINER);
/// Of volumes only those matter that are images.
const VOLUMES: Shape = Shape::List(&Shape::Members(&[
    ("name", Shape::Plain),
    (
        "image",
        Shape::Members(&[("reference", Shape::Plain), ("pullPolicy", Shape::Plain)]),
    ),
]));

/// The pod as it would be stored. All annotations: their bytes are counted before one is added.
const POD: Shape = Shape::Members(&[
    (
        "metadata",
        Shape::Members(&[
            ("namespace", Shape::Plain),
            ("uid", Shape::Plain),
            (
                "labels",
                Shape::Members(&[
                    (labels::REWRITE, Shape::Plain),
                    (labels::PART_OF, Shape::Plain),
                    (labels::NAME, Shape::Plain),
                ]),
            ),
            ("annotations", Shape::Map),
        ]),
    ),
    (
        "spec",
        Shape::Members(&[
            ("containers", CONTAINERS),
            ("initContainers", CONTAINERS),
            ("ephemeralContainers", CONTAINERS),
            ("volumes", VOLUMES),
            (
                "imagePullSecrets",
                Shape::List(&Shape::Members(&[("name", Shape::Plain)])),
            ),
            ("serviceAccountName", Shape::Plain),
            ("serviceAccount", Shape::Plain),
        ]),
    ),
]);

/// Where a pod's specification names images.
const IMAGES: Shape = Shape::Members(&[
    ("containers", CONTAINERS),
    ("initContainers", CONTAINERS),
    ("ephemeralContainers", CONTAINERS),
    ("volumes", VOLUMES),
]);

/// The pod as far as its references are put back. No other annotations: nobody makes a pod too
/// large to be read by adding some.
const NAMES: Shape = Shape::Members(&[
    (
        "metadata",
        Shape::Members(&[
            ("namespace", Shape::Plain),
            (
                "annotations",
                Shape::Members(&[
                    (pod::MIRROR_ANNOTATION, Shape::Plain),
                    (labels::IMAGE_HISTORY, Shape::Plain),
                ]),
            ),
        ]),
    ),
    ("spec", IMAGES),
]);

/// The pod as it is stored: its images and their history.
const OLD_POD: Shape = Shape::Members(&[
    (
        "metadata",
        Shape::Members(&[
            ("uid", Shape::Plain),
            (
                "annotations",
                Shape::Members(&[(labels::IMAGE_HISTORY, Shape::Plain)]),
            ),
        ]),
    ),
    ("spec", IMAGES),
]);

/// A review with this much of its pod.
macro_rules! review {
    ($pod:expr) => {
        Shape::Members(&[
            ("apiVersion", Shape::Plain),
            ("kind", Shape::Plain),
            (
                "request",
                Shape::Members(&[
                    ("uid", Shape::Plain),
                    (
                        "kind",
                        Shape::Members(&[("kind", Shape::Plain), ("group", Shape::Plain)]),
                    ),
                    ("subResource", Shape::Plain),
                    ("namespace", Shape::Plain),
                    ("operation", Shape::Plain),
                    ("object", $pod),
                    ("oldObject", OLD_POD),
                    ("dryRun", Shape::Plain),
                ]),
            ),
        ])
    };
}

static REVIEW: Shape = review!(POD);
static NAMES_REVIEW: Shape = review!(NAMES);

/// Why a body cannot be answered with a review at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The body is no JSON.
    #[error("the body is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The body is JSON of another kind.
    #[error("the body is not an AdmissionReview of {API_VERSION}")]
    Kind,
    /// A review without a request's identifier cannot be answered.
    #[error("the AdmissionReview has no request.uid")]
    Uid,
}

/// A question of the API server.
#[derive(Debug, Clone, PartialEq)]
pub struct Review {
    /// Identifies the question; the answer repeats it.
    pub uid: String,
    /// The pod's namespace; empty where none is named, or what is named is no DNS label.
    pub namespace: String,
    /// Whether nothing may be kept: no announcement follows.
    pub dry_run: bool,
    /// What is to be judged; nothing where the review is about something that is never changed, or
    /// `too_large`.
    pub subject: Option<Subject>,
    /// Whether the pod has more images and annotations than are read.
    pub too_large: bool,
}

/// The pod of a review, both states without what no rewrite depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// What is asked.
    pub request: Request,
    /// The pod as it would be stored.
    pub pod: Value,
    /// The pod as it is stored.
    pub old: Option<Value>,
}

impl Review {
    /// Reads the body of a request.
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        Self::read(body, &REVIEW)
    }

    /// The same without what only a rewrite depends on.
    pub fn parse_names(body: &[u8]) -> Result<Self, Error> {
        Self::read(body, &NAMES_REVIEW)
    }

    fn read(body: &[u8], shape: &'static Shape) -> Result<Self, Error> {
        let mut kept = Kept::at_most(MAX_KEPT_VALUES, MAX_KEPT_BYTES);
        let mut document = prune::parse(body, shape, &mut kept)?;
        let text = |value: &Value, pointer: &str| {
            value
                .pointer(pointer)
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let is = |pointer: &str, expected: &str| {
            document.pointer(pointer).and_then(Value::as_str) == Some(expected)
        };
        if !is("/apiVersion", API_VERSION) || !is("/kind", "AdmissionReview") {
            return Err(Error::Kind);
        }
        let uid = text(&document, "/request/uid")
            .filter(|uid| !uid.is_empty())
            .ok_or(Error::Uid)?;
        let is_pod = is("/request/kind/kind", "Pod") && is("/request/kind/group", "");
        let operation = text(&document, "/request/operation").unwrap_or_default();
        let subresource = text(&document, "/request/subResource").unwrap_or_default();
        let request = match (operation.as_str(), subresource.as_str()) {
            ("CREATE", "") => Some(Request::Create),
            ("UPDATE", "") => Some(Request::Update),
            ("UPDATE", "ephemeralcontainers") => Some(Request::Ephemeral),
            _ => None,
        };
        let mut take = |pointer: &str| {
            document
                .pointer_mut(pointer)
                .map(Value::take)
                .filter(Value::is_object)
        };
        let subject = match (
            request.filter(|_| is_pod),
            take("/request/object"),
            take("/request/oldObject"),
        ) {
            // Without the old object it cannot be told what an update changes.
            (Some(Request::Update | Request::Ephemeral), _, None) | (None, _, _) | (_, None, _) => {
                None
            }
            (Some(request), Some(pod), old) => Some(Subject { request, pod, old }),
        };
        let images = subject.as_ref().map_or(0, |subject| images(&subject.pod));
        let too_large = kept.exceeded() || MAX_IMAGES < images;
        let subject = subject.filter(|_| !too_large);
        let namespace = text(&document, "/request/namespace")
            .or_else(|| {
                subject
                    .as_ref()
                    .and_then(|subject| text(&subject.pod, "/metadata/namespace"))
            })
            .filter(|namespace| dns::is_label(namespace))
            .unwrap_or_default();
        Ok(Self {
            uid,
            namespace,
            dry_run: document.pointer("/request/dryRun") == Some(&Value::Bool(true)),
            subject,
            too_large,
        })
    }
}

/// How many images a pod may have at most.
fn images(pod: &Value) -> usize {
    let lists = [
        "containers",
        "initContainers",
        "ephemeralContainers",
        "volumes",
    ];
    let lists = lists.iter().filter_map(|list| pod["spec"][list].as_array());
    lists
        .flatten()
        .filter(|one| one.get("image").is_some())
        .count()
}

/// The answer: allowed unless the mutation says otherwise, with a patch where there is one.
pub fn answer(uid: &str, mutation: &Mutation) -> Result<Value, serde_json::Error> {
    let mut response = json!({ "uid": uid, "allowed": mutation.refused.is_none() });
    if let Some(message) = mutation.refused {
        response["status"] = json!({ "code": 403, "reason": "Forbidden", "message": message });
    }
    if !mutation.patch.is_empty() {
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(STANDARD.encode(serde_json::to_vec(&mutation.patch)?));
    }
    if !mutation.warnings.is_empty() {
        response["warnings"] = json!(mutation.warnings);
    }
    Ok(json!({ "apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response }))
}

#[cfg(test)]
mod tests;
