//! What a manifest says about itself and refers to. Pure: bytes in, facts out; the bytes stay the truth.

use std::collections::BTreeMap;

use holdfast_core::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::limits;

/// OCI image manifest.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image manifest, schema 2.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// A reference from one piece of content to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    /// Media type of what is referred to.
    #[serde(default)]
    pub(crate) media_type: String,
    /// Its digest.
    pub(crate) digest: Digest,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// Where else it is to be had; such layers need not be pushed.
    #[serde(default, skip_serializing)]
    pub(crate) urls: Vec<String>,
    /// What kind of artifact it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    /// Free text of its maker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

/// Why bytes are no manifest that is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// No JSON, or not of a manifest's shape.
    #[error("the manifest does not parse: {0}")]
    Syntax(String),
    /// Docker schema 1.
    #[error("manifests of schema version 1 are not supported")]
    Schema1,
    /// Both an image and an index.
    #[error("a manifest is an image or an index, not both")]
    Ambiguous,
    /// Another media type.
    #[error("the media type {0} is not supported")]
    MediaType(String),
    /// The header and the content disagree.
    #[error("Content-Type is {header}, the manifest says {content}")]
    Disagree {
        /// The request's `Content-Type`.
        header: String,
        /// The manifest's own `mediaType`.
        content: String,
    },
    /// Too many descriptors.
    #[error("the manifest has too many descriptors")]
    TooMany,
}

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// Its media type: its own word, else derived from its shape.
    pub(crate) media_type: String,
    /// Blobs that must be there before it.
    pub(crate) blobs: Vec<Digest>,
    /// Manifests that must be there before it.
    pub(crate) manifests: Vec<Digest>,
    /// What it is attached to; need not exist.
    pub(crate) subject: Option<Digest>,
    /// The kind of artifact, or the type of its configuration.
    pub(crate) artifact_type: Option<String>,
    /// Its annotations.
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    subject: Option<Descriptor>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest. `content_type` is the request's header, whose parameters do not count.
///
/// # Errors
/// [`Error`]
pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Content, Error> {
    let raw: Raw =
        serde_json::from_slice(bytes).map_err(|error| Error::Syntax(error.to_string()))?;
    if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
        return Err(Error::Schema1);
    }
    let header = content_type
        .map(|value| value.split(';').next().unwrap_or_default().trim())
        .filter(|value| is_manifest(value));
    let own = raw.media_type.as_deref().filter(|own| !own.is_empty());
    if let (Some(header), Some(own)) = (header, own)
        && header != own
    {
        return Err(Error::Disagree {
            header: header.to_owned(),
            content: own.to_owned(),
        });
    }
    let is_index = match (
        raw.config.is_some() || raw.layers.is_some(),
        raw.manifests.is_some(),
    ) {
        (true, true) => return Err(Error::Ambiguous),
        (_, index) => index,
    };
    let media_type = own
        .or(header)
        .unwrap_or(if is_index { OCI_INDEX } else { OCI_MANIFEST });
    if !is_manifest(media_type) {
        return Err(Error::MediaType(media_type.to_owned()));
    }
    if is_index != matches!(media_type, OCI_INDEX | DOCKER_LIST)
        || (!is_index && raw.config.is_none())
    {
        return Err(Error::Syntax(format!(
            "the content has not the shape of {media_type}"
        )));
    }
    let layers = raw.layers.unwrap_or_default();
    let children = raw.manifests.unwrap_or_default();
    if layers.len() + children.len() > limits::MANIFEST_DESCRIPTORS {
        return Err(Error::TooMany);
    }
    let config_type = raw.config.as_ref().map(|config| config.media_type.clone());
    let mut blobs: Vec<_> = raw
        .config
        .into_iter()
        .chain(layers)
        .filter(|layer| !is_foreign(layer))
        .map(|layer| layer.digest)
        .collect();
    blobs.sort();
    blobs.dedup();
    Ok(Content {
        media_type: media_type.to_owned(),
        blobs,
        manifests: children.into_iter().map(|child| child.digest).collect(),
        subject: raw.subject.map(|subject| subject.digest),
        artifact_type: raw
            .artifact_type
            .filter(|kind| !kind.is_empty())
            .or(config_type)
            .filter(|kind| !kind.is_empty()),
        annotations: raw.annotations,
    })
}

/// The media type to serve stored bytes with; whatever is stored is served.
pub(crate) fn media_type(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        #[serde(default)]
        media_type: Option<String>,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
    }
    match serde_json::from_slice::<Shape>(bytes) {
        Ok(Shape {
            media_type: Some(own),
            ..
        }) if !own.is_empty() => own,
        Ok(Shape {
            manifests: Some(_), ..
        }) => OCI_INDEX.to_owned(),
        _ => OCI_MANIFEST.to_owned(),
    }
}

fn is_manifest(media_type: &str) -> bool {
    matches!(
        media_type,
        OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_LIST
    )
}

fn is_foreign(layer: &Descriptor) -> bool {
    !layer.urls.is_empty()
        || layer.media_type.contains(".nondistributable.")
        || layer.media_type.contains(".foreign.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    const B: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn image(extra: &str) -> String {
        format!(
            r#"{{"schemaVersion":2{extra},"config":{{"mediaType":"c/t","digest":"{A}","size":2}},"layers":[{{"mediaType":"l","digest":"{B}","size":0}}]}}"#
        )
    }

    #[test]
    fn media_type_is_the_manifests_own_word_or_its_shape() {
        let own = format!(r#","mediaType":"{DOCKER_MANIFEST}""#);
        for (bytes, header, expect) in [
            (image(&own), None, Ok(DOCKER_MANIFEST)),
            (image(""), None, Ok(OCI_MANIFEST)),
            (
                image(""),
                Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
                Ok(OCI_MANIFEST),
            ),
            (image(""), Some(DOCKER_MANIFEST), Ok(DOCKER_MANIFEST)),
            (image(""), Some("application/json"), Ok(OCI_MANIFEST)),
            (
                r#"{"schemaVersion":2,"manifests":[]}"#.into(),
                None,
                Ok(OCI_INDEX),
            ),
            (image(&own), Some(OCI_MANIFEST), Err("Content-Type is")),
            (
                image(r#","mediaType":"x/y""#),
                None,
                Err("the media type x/y"),
            ),
            (
                image(r#","manifests":[]"#),
                None,
                Err("an image or an index"),
            ),
            (
                r#"{"schemaVersion":1,"fsLayers":[]}"#.into(),
                None,
                Err("schema version 1"),
            ),
            (r#"{"schemaVersion":2}"#.into(), None, Err("shape")),
            (
                r#"{"schemaVersion":2,"manifests":[]}"#.into(),
                Some(OCI_MANIFEST),
                Err("shape"),
            ),
            ("[]".into(), None, Err("does not parse")),
            (
                image("").replace(A, "sha256:x"),
                None,
                Err("does not parse"),
            ),
        ] {
            match (parse(bytes.as_bytes(), header), expect) {
                (Ok(content), Ok(expect)) => assert_eq!(content.media_type, expect, "{bytes}"),
                (Err(error), Err(expect)) => {
                    assert!(error.to_string().contains(expect), "{bytes}: {error}");
                }
                (found, _) => panic!("{bytes}: {found:?}"),
            }
        }
    }

    #[test]
    fn foreign_layers_need_not_be_there() {
        let foreign = image("").replace(
            r#""mediaType":"l""#,
            r#""mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar""#,
        );
        for (bytes, expect) in [
            (image(""), 2),
            (foreign, 1),
            (
                image("").replace(r#""size":0"#, r#""size":0,"urls":["https://x"]"#),
                1,
            ),
        ] {
            assert_eq!(
                parse(bytes.as_bytes(), None).unwrap().blobs.len(),
                expect,
                "{bytes}"
            );
        }
    }

    #[test]
    fn artifact_type_falls_back_to_the_configuration() {
        assert_eq!(
            parse(image("").as_bytes(), None)
                .unwrap()
                .artifact_type
                .as_deref(),
            Some("c/t")
        );
        assert_eq!(
            parse(image(r#","artifactType":"a/t""#).as_bytes(), None)
                .unwrap()
                .artifact_type
                .as_deref(),
            Some("a/t")
        );
    }
}
