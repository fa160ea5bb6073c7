//! The custom resource `Artifact`: one per namespace and source image (SPEC 6).
//!
//! Defines the schema, the deterministic object name and the reasons of the `Ready` condition. The
//! webhook announces Artifacts, and the controller writes their status.

#![allow(
    unreachable_pub,
    clippy::duplicated_attributes,
    reason = "kube's derives copy each struct into a function, and printer columns repeat their keys"
)]

use crate::access::Access;
use crate::labels;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema, ResourceExt as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The longest list of references that a status carries; `referenceCount` counts all of them.
pub const MAX_LISTED_REFERENCES: usize = 10;

pub use holdfast_core::meaning::MAX_SOURCE_BYTES;

/// The type of the one condition that tells whether the image is held locally.
pub const READY: &str = "Ready";

/// An image that this cluster needs, and whether the registry holds it.
#[derive(
    CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize,
)]
#[kube(
    group = "holdfast.dev",
    version = "v1alpha1",
    kind = "Artifact",
    plural = "artifacts",
    shortname = "art",
    category = "holdfast",
    namespaced,
    status = "ArtifactStatus",
    derive = "Default",
    derive = "PartialEq",
    printcolumn(name = "Source", type_ = "string", json_path = ".spec.sourceArtifact"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.shortDigest"),
    printcolumn(name = "Size", type_ = "integer", json_path = ".status.sizeBytes"),
    printcolumn(
        name = "References",
        type_ = "integer",
        json_path = ".status.referenceCount"
    ),
    printcolumn(
        name = "Access",
        type_ = "string",
        json_path = ".status.access.answer",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactSpec {
    /// The full original reference of the image, `host/repository:tag`, `host/repository@digest`
    /// or both. It cannot be changed: another image is another Artifact.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^\S+$"))]
    #[x_kube(validation = ("self == oldSelf", "sourceArtifact cannot be changed; create another Artifact"))]
    pub source_artifact: String,

    /// Names of the pull secrets of the pod that was announced first. Informative: the controller
    /// takes pull secrets from the live pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub pull_secrets: Option<Vec<String>>,

    /// Name of the service account of the pod that was announced first. Informative, as
    /// `pullSecrets`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,

    /// The platforms to copy, `os/architecture[/variant]`. When absent, the platforms of the
    /// cluster's nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 16),
        inner(
            length(min = 3, max = 64),
            regex(pattern = r"^[a-z0-9]+/[a-z0-9]+(/[a-z0-9.]+)?$")
        )
    )]
    pub platforms: Option<Vec<String>>,
}

/// The state of an Artifact. It does not decide what is copied or kept.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactStatus {
    /// `Ready` is True when the registry holds the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the specification that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The digest of the manifest or index that the registry holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The first twelve hexadecimal characters of `digest`, for lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short_digest: Option<String>,
    /// The media type of the manifest or index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The bytes of everything that was copied for it; layers shared with other images are counted
    /// here too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub size_bytes: Option<i64>,
    /// The number of topmost owners that need the image: Deployments, CronJobs and so on,
    /// with or without running pods. A pod without an owner counts as its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub reference_count: Option<i64>,
    /// The first ten owners, ordered by kind and name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub references: Vec<Reference>,
    /// When the registry last copied the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_copy_time: Option<Time>,
    /// The number of failed attempts since the last success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub attempts: Option<i64>,
    /// Whether pods of the namespace may pull the image from the registry. Only with
    /// `access.privateImages: namespace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<ArtifactAccess>,
}

/// The result of the upstream's access check.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactAccess {
    /// `public`: everyone may pull it. `configured`: with a credential of `upstreams`
    /// in the values. `proved`: with a credential of this namespace. `denied`: with
    /// none of these; pods of this namespace keep the upstream's reference.
    pub answer: Access,
    /// The time of the answer, which is valid until the next one.
    pub time: Time,
}

impl Artifact {
    /// The Artifact of a source as every writer makes it: under the name of [`artifact_name`],
    /// asking for nothing but the source.
    pub fn of_source(source: &str) -> Self {
        let spec = ArtifactSpec {
            source_artifact: source.to_owned(),
            ..ArtifactSpec::default()
        };
        Self::new(&artifact_name(source), spec)
    }

    /// Its `Ready` condition.
    pub fn ready(&self) -> Option<&Condition> {
        self.status.as_ref()?.ready()
    }

    /// Whether the registry held the image when the status was written.
    pub fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(ArtifactStatus::is_ready)
    }

    /// The reason of its `Ready` condition. A newer controller may write others than [`Reason`].
    pub fn reason(&self) -> Option<&str> {
        Some(&self.ready()?.reason)
    }

    /// Whether the image was copied at some time.
    pub fn was_copied(&self) -> bool {
        let status = self.status.as_ref();
        status.is_some_and(|status| status.digest.is_some() || status.last_copy_time.is_some())
    }

    /// Whether the registry holds its image. While the registry does not answer, as after a power
    /// cut, what it held before counts.
    pub fn is_held(&self) -> bool {
        let unanswered = [Reason::RegistryUnavailable, Reason::PullSecretUnreadable];
        let reason = self.reason();
        let is_unanswered = unanswered
            .iter()
            .any(|known| reason == Some(known.as_str()));
        self.is_ready() || is_unanswered && self.was_copied()
    }

    /// What made it, by the label [`labels::MANAGED_BY`].
    pub fn manager(&self) -> Option<&str> {
        self.labels().get(labels::MANAGED_BY).map(String::as_str)
    }

    /// Whether its image is wanted even if no pod or workload names it: the label
    /// [`labels::KEEP`].
    pub fn is_kept(&self) -> bool {
        self.labels().contains_key(labels::KEEP)
    }
}

impl ArtifactStatus {
    /// The `Ready` condition.
    pub fn ready(&self) -> Option<&Condition> {
        self.conditions
            .iter()
            .find(|condition| condition.type_ == READY)
    }

    /// Whether the `Ready` condition is true.
    pub fn is_ready(&self) -> bool {
        self.ready()
            .is_some_and(|condition| condition.status == "True")
    }
}

/// An owner that needs an image, in the Artifact's namespace.
#[derive(
    KubeSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    /// `Deployment`, `StatefulSet`, `CronJob`, `Pod`, …
    pub kind: String,
    /// The owner's name.
    pub name: String,
}

/// Why an Artifact is Ready or is not: the reason of the `Ready` condition. Bounded, so it may
/// label metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The registry holds the image.
    Copied,
    /// The registry is copying the image.
    Copying,
    /// The upstream refused every credential that the pods bring.
    Unauthorized,
    /// The upstream has no such image.
    NotFound,
    /// The upstream does not answer, or fails.
    UpstreamUnavailable,
    /// The upstream's bytes do not match their digest, or are no image.
    UpstreamInvalid,
    /// The registry's volume is too full.
    NoSpace,
    /// The reference cannot be fetched.
    Invalid,
    /// The registry's volume failed during the copy. The upstream and the image are not the cause.
    StoreFailed,
    /// The registry takes no more work now, or the upstream asked for a pause.
    Busy,
    /// The pull secrets of the pods cannot be read, so the registry got no request.
    PullSecretUnreadable,
    /// The registry itself could not be reached or failed.
    RegistryUnavailable,
    /// It was announced, but no running pod or template of the namespace names the source. It is
    /// not copied, and is removed.
    NoDemand,
    /// There are too many Artifacts in the namespace or in total, so this one is not copied.
    TooManyArtifacts,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 14] = [
        Self::Copied,
        Self::Copying,
        Self::Unauthorized,
        Self::NotFound,
        Self::UpstreamUnavailable,
        Self::UpstreamInvalid,
        Self::NoSpace,
        Self::Invalid,
        Self::StoreFailed,
        Self::Busy,
        Self::PullSecretUnreadable,
        Self::RegistryUnavailable,
        Self::NoDemand,
        Self::TooManyArtifacts,
    ];

    /// The text in the condition.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Copied => "Copied",
            Self::Copying => "Copying",
            Self::Unauthorized => "Unauthorized",
            Self::NotFound => "NotFound",
            Self::UpstreamUnavailable => "UpstreamUnavailable",
            Self::UpstreamInvalid => "UpstreamInvalid",
            Self::NoSpace => "NoSpace",
            Self::Invalid => "Invalid",
            Self::StoreFailed => "StoreFailed",
            Self::Busy => "Busy",
            Self::PullSecretUnreadable => "PullSecretUnreadable",
            Self::RegistryUnavailable => "RegistryUnavailable",
            Self::NoDemand => "NoDemand",
            Self::TooManyArtifacts => "TooManyArtifacts",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of the Artifact of a source reference, the same for every writer (SPEC 6): a DNS-1123
/// label of at most 63 characters, made of the repository's last element and its tag, so that
/// people recognise it, and 16 hexadecimal characters of the SHA-256 of the whole reference, so
/// that two references never meet.
///
/// ```
/// let name = holdfast_api::artifact_name("registry.example/team/App:1.2");
/// assert!(name.starts_with("app-1-2-"));
/// ```
pub fn artifact_name(source: &str) -> String {
    const HASH: usize = 16;
    const PREFIX: usize = 63 - HASH - 1;
    let hash: String = hex::encode(Sha256::digest(source.as_bytes()))
        .chars()
        .take(HASH)
        .collect();
    let without_digest = source.split('@').next().unwrap_or(source);
    let last = without_digest.rsplit('/').next().unwrap_or(without_digest);
    let mut prefix = String::with_capacity(PREFIX);
    for c in last.chars() {
        if prefix.len() == PREFIX {
            break;
        }
        if c.is_ascii_alphanumeric() {
            prefix.push(c.to_ascii_lowercase());
        } else if !prefix.is_empty() && !prefix.ends_with('-') {
            prefix.push('-');
        }
    }
    let prefix = prefix.trim_end_matches('-');
    if prefix.is_empty() {
        format!("image-{hash}")
    } else {
        format!("{prefix}-{hash}")
    }
}

/// The first twelve hexadecimal characters of a digest, `sha256:` left out.
pub fn short_digest(digest: &str) -> String {
    digest
        .rsplit(':')
        .next()
        .unwrap_or(digest)
        .chars()
        .take(12)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::CustomResourceExt;

    fn check(source: &str, prefix: &str) {
        let name = artifact_name(source);
        assert_eq!(name, artifact_name(source), "deterministic");
        assert!(name.len() <= 63, "{name}");
        assert!(
            name.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
            "{name}"
        );
        assert!(!name.starts_with('-') && !name.ends_with('-'), "{name}");
        assert_eq!(name.rsplit_once('-').unwrap().0, prefix, "{source}");
    }

    // SPEC 6
    #[test]
    fn names_are_labels_that_people_recognise() {
        check("registry.example/team/app:1.2", "app-1-2");
        check("registry.example:5000/Team/App_x:v1", "app-x-v1");
        check(&format!("r.example/app@sha256:{}", "a".repeat(64)), "app");
        check("___", "image");
        check("", "image");
        check(&format!("r.example/{}:1", "x".repeat(200)), &"x".repeat(46));
        check(&format!("r.example/{}-:1", "x".repeat(45)), &"x".repeat(45));
        check("r.example/ünï:1", "n-1");
    }

    // SPEC 6
    #[test]
    fn different_references_have_different_names() {
        let names: std::collections::BTreeSet<_> = [
            "a.example/app:1",
            "b.example/app:1",
            "a.example/x/app:1",
            "a.example/app:1@sha256:00",
        ]
        .iter()
        .map(|s| artifact_name(s))
        .collect();
        assert_eq!(names.len(), 4);
    }

    #[test]
    fn a_registry_that_does_not_answer_still_holds_what_it_held() {
        for (reason, copied, expect) in [
            ("Copied", true, true),
            ("RegistryUnavailable", true, true),
            ("RegistryUnavailable", false, false),
            ("PullSecretUnreadable", true, true),
            ("UpstreamUnavailable", true, false),
            ("NoSpace", true, false),
        ] {
            let status = if reason == "Copied" { "True" } else { "False" };
            let ready = serde_json::json!({
                "type": READY, "status": status, "reason": reason, "message": "",
                "lastTransitionTime": "1970-01-01T00:00:00Z",
            });
            let digest = copied.then_some("sha256:0");
            let artifact: Artifact = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "a"},
                "spec": {"sourceArtifact": "r.io/a:1"},
                "status": {"conditions": [ready], "digest": digest},
            }))
            .unwrap();
            assert_eq!(artifact.is_held(), expect, "{reason} {copied}");
        }
    }

    // SPEC 7
    #[test]
    fn the_resource_is_listed_as_documented() {
        let crd = serde_json::to_value(Artifact::crd()).unwrap();
        assert_eq!(crd["spec"]["names"]["plural"], "artifacts");
        assert_eq!(crd["spec"]["scope"], "Namespaced");
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let source = &schema["properties"]["spec"]["properties"]["sourceArtifact"];
        assert_eq!(source["maxLength"], 512, "{source}");
        assert_eq!(source["minLength"], 1);
        assert_eq!(source["pattern"], r"^\S+$");
        assert_eq!(
            source["x-kubernetes-validations"][0]["rule"],
            "self == oldSelf"
        );
        let conditions = &schema["properties"]["status"]["properties"]["conditions"];
        assert_eq!(conditions["x-kubernetes-list-type"], "map", "{conditions}");
        assert!(crd["spec"]["versions"][0]["subresources"]["status"].is_object());
    }
}
