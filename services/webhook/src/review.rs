//! Reads an `AdmissionReview` and writes the answer. Only the members that a decision needs are
//! kept; others are ignored.

mod prune;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_api::labels;
use holdfast_core::{dns, pod};
use serde_json::{Value, json};

use self::prune::{Budget, Shape};
use crate::mutate::{Mutation, Request};

/// The version of reviews and answers.
const API_VERSION: &str = "admission.k8s.io/v1";

/// JSON values that are kept of one review. A pod with a hundred containers and all its annotations
/// has a few hundred.
pub const MAX_KEPT_VALUES: usize = 8192;
/// Images of one review, of containers of all kinds and of volumes. Bounds the patch: an operation
/// is several times as long as the shortest image in a review.
pub const MAX_IMAGES: usize = 256;
/// Bytes of text that are kept of one review. The API server accepts 256 KiB of annotations.
pub const MAX_KEPT_BYTES: usize = 1024 * 1024;

/// The members of a container that a decision needs.
const CONTAINER: Shape = Shape::Members(&[
    ("name", Shape::Plain),
    ("image", Shape::Plain),
    ("imagePullPolicy", Shape::Plain),
]);
const CONTAINERS: Shape = Shape::List(&CONTAINER);
/// The members of an image volume that a decision needs.
const VOLUMES: Shape = Shape::List(&Shape::Members(&[
    ("name", Shape::Plain),
    (
        "image",
        Shape::Members(&[("reference", Shape::Plain), ("pullPolicy", Shape::Plain)]),
    ),
]));

/// The node to which a `DaemonSet`'s pod is bound.
const AFFINITY: Shape = Shape::Members(&[(
    "nodeAffinity",
    Shape::Members(&[(
        "requiredDuringSchedulingIgnoredDuringExecution",
        Shape::Members(&[(
            "nodeSelectorTerms",
            Shape::List(&Shape::Members(&[(
                "matchFields",
                Shape::List(&Shape::Members(&[
                    ("key", Shape::Plain),
                    ("operator", Shape::Plain),
                    ("values", Shape::List(&Shape::Plain)),
                ])),
            )])),
        )]),
    )]),
)]);
const TOLERATIONS: Shape = Shape::List(&Shape::Members(&[
    ("key", Shape::Plain),
    ("operator", Shape::Plain),
    ("effect", Shape::Plain),
]));

/// The owners of a pod, of which one controls it.
const OWNERS: Shape = Shape::List(&Shape::Members(&[
    ("kind", Shape::Plain),
    ("name", Shape::Plain),
    ("controller", Shape::Plain),
]));

/// The new pod, for `/mutate`. All annotations are kept, because their total size is limited.
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
            ("ownerReferences", OWNERS),
        ]),
    ),
    (
        "spec",
        Shape::Members(&[
            ("nodeName", Shape::Plain),
            ("affinity", AFFINITY),
            ("tolerations", TOLERATIONS),
            ("hostNetwork", Shape::Plain),
            ("priorityClassName", Shape::Plain),
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
            ("os", Shape::Members(&[("name", Shape::Plain)])),
            (
                "nodeSelector",
                Shape::Members(&[(pod::OS_LABEL, Shape::Plain)]),
            ),
        ]),
    ),
]);

/// The members of a pod's specification that name images.
const IMAGES: Shape = Shape::Members(&[
    ("containers", CONTAINERS),
    ("initContainers", CONTAINERS),
    ("ephemeralContainers", CONTAINERS),
    ("volumes", VOLUMES),
]);

/// The new pod, for `/put-back`. Other annotations are not kept, so that they cannot make a pod too
/// large to be read.
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

/// The old pod: its images, their originals and their history.
const OLD_POD: Shape = Shape::Members(&[
    (
        "metadata",
        Shape::Members(&[
            ("uid", Shape::Plain),
            (
                "annotations",
                Shape::Members(&[
                    (labels::ORIGINAL_IMAGES, Shape::Plain),
                    (labels::IMAGE_HISTORY, Shape::Plain),
                ]),
            ),
        ]),
    ),
    ("spec", IMAGES),
]);

/// A review with this shape of its new pod.
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
                    ("userInfo", Shape::Members(&[("username", Shape::Plain)])),
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

/// Why a body cannot be answered with a review.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The body is not JSON.
    #[error("the body is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The body is not an `AdmissionReview`.
    #[error("the body is not an AdmissionReview of {API_VERSION}")]
    Kind,
    /// The review has no `request.uid`, which the answer must repeat.
    #[error("the AdmissionReview has no request.uid")]
    Uid,
}

/// A review.
#[derive(Debug, Clone, PartialEq)]
pub struct Review {
    /// Identifies the request; the answer repeats it.
    pub uid: String,
    /// The pod's namespace; empty if none is named, or the name is not a DNS label.
    pub namespace: String,
    /// The name of the user who made the request.
    pub user: String,
    /// Whether side effects are forbidden, so that no announcement follows.
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
    /// Parses the body of a request to `/mutate`.
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        Self::read(body, &REVIEW)
    }

    /// Parses the body of a request to `/put-back`, which needs less of the pod.
    pub fn parse_names(body: &[u8]) -> Result<Self, Error> {
        Self::read(body, &NAMES_REVIEW)
    }

    fn read(body: &[u8], shape: &'static Shape) -> Result<Self, Error> {
        let mut budget = Budget::at_most(MAX_KEPT_VALUES, MAX_KEPT_BYTES);
        let mut document = prune::parse(body, shape, &mut budget)?;
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
            // Without the old object it is unknown what an update changes.
            (Some(Request::Update | Request::Ephemeral), _, None) | (None, _, _) | (_, None, _) => {
                None
            }
            (Some(request), Some(pod), old) => Some(Subject { request, pod, old }),
        };
        let images = subject.as_ref().map_or(0, |subject| images(&subject.pod));
        let too_large = budget.exceeded() || MAX_IMAGES < images;
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
            user: text(&document, "/request/userInfo/username").unwrap_or_default(),
            namespace,
            dry_run: document.pointer("/request/dryRun") == Some(&Value::Bool(true)),
            subject,
            too_large,
        })
    }
}

/// Number of images that a pod names, valid or not.
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

/// The answer: allowed unless the mutation says otherwise, with its patch and warnings.
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
