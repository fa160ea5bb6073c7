//! The form of an event, field by field as distribution writes it. Pure.

use holdfast_core::oci::{self, Manifest};
use serde::Serialize;

/// The media type of an [`Envelope`].
pub(super) const MEDIA_TYPE: &str = "application/vnd.docker.distribution.events.v2+json";

/// What is posted.
#[derive(Debug, Serialize)]
pub(super) struct Envelope<'a> {
    pub(super) events: Vec<&'a Event>,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Event {
    pub(super) id: String,
    pub(super) timestamp: String,
    pub(super) action: &'static str,
    pub(super) target: Target,
    pub(super) request: Origin,
    pub(super) actor: Actor,
    pub(super) source: PullThrough,
}

/// To what it happened.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Target {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) media_type: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) digest: String,
    /// The size once more: a name from before descriptors.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) length: u64,
    pub(super) repository: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) from_repository: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) url: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) tag: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) references: Vec<Reference>,
}

/// What a pushed manifest refers to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reference {
    media_type: String,
    size: u64,
    digest: String,
}

/// Who asked, and from where.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Origin {
    pub(super) id: String,
    pub(super) addr: String,
    pub(super) host: String,
    pub(super) method: String,
    pub(super) useragent: String,
}

/// Whose credentials it were.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Actor {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) name: String,
}

/// Which registry tells.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PullThrough {
    pub(super) addr: String,
    #[serde(rename = "instanceID")]
    pub(super) instance_id: String,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Target {
    /// Fills in what a manifest's bytes say.
    pub(super) fn describe(&mut self, bytes: &[u8]) {
        self.media_type = oci::content_type(bytes);
        self.size = bytes.len() as u64;
        let manifest = Manifest::parse(bytes).ok();
        let references = manifest.iter().flat_map(Manifest::references);
        self.references = references
            .map(|part| Reference {
                media_type: part.media_type.clone(),
                size: part.size,
                digest: part.digest.to_string(),
            })
            .collect();
    }
}
