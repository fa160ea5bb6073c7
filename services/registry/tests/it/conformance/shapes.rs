//! The shapes that content has: what is pushed, in which order, and what must be found afterwards.

use std::collections::BTreeMap;

use crate::harness::{OCI_INDEX, OCI_MANIFEST, noise};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_core::digest::{Algorithm, Digest};
use holdfast_store::Hasher;
use serde_json::{Value, json};

pub(crate) const EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// One shape, and the maker of its parts.
pub(crate) struct Shape {
    algorithm: Algorithm,
    /// Blobs to push first.
    pub(crate) blobs: BTreeMap<String, (Digest, Vec<u8>)>,
    /// Manifests in their order: digest, media type, bytes.
    pub(crate) manifests: Vec<(Digest, String, String)>,
    /// Tags, by name.
    pub(crate) tags: BTreeMap<String, Digest>,
    /// Tags go as parameters of the push by digest.
    pub(crate) by_parameter: bool,
    /// Subjects, with the descriptors that their lists must hold.
    pub(crate) referrers: BTreeMap<String, Vec<Value>>,
    /// Descriptors carry their content.
    pub(crate) with_data: bool,
    made: usize,
}

impl Shape {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            blobs: BTreeMap::new(),
            manifests: Vec::new(),
            tags: BTreeMap::new(),
            by_parameter: false,
            referrers: BTreeMap::new(),
            with_data: false,
            made: 0,
        }
    }

    fn digest(&self, bytes: &[u8]) -> Digest {
        Hasher::digest(self.algorithm, bytes)
    }

    /// The descriptor of some bytes, which need not exist.
    pub(crate) fn descriptor(&self, media_type: &str, bytes: &[u8]) -> Value {
        let mut descriptor =
            json!({ "mediaType": media_type, "digest": self.digest(bytes), "size": bytes.len() });
        if self.with_data {
            descriptor["data"] = STANDARD.encode(bytes).into();
        }
        descriptor
    }

    /// A blob, and its descriptor.
    pub(crate) fn blob(&mut self, media_type: &str, bytes: impl Into<Vec<u8>>) -> Value {
        let bytes = bytes.into();
        let descriptor = self.descriptor(media_type, &bytes);
        let digest = self.digest(&bytes);
        self.blobs.insert(digest.to_string(), (digest, bytes));
        descriptor
    }

    /// A blob like no other of this shape.
    pub(crate) fn layer(&mut self, media_type: &str) -> Value {
        self.made += 1;
        self.blob(media_type, noise(500 + self.made))
    }

    /// A manifest of these fields, `schemaVersion` and `mediaType` set unless given; returns its
    /// descriptor.
    pub(crate) fn manifest(&mut self, media_type: &str, fields: Value) -> Value {
        self.made += 1;
        let mut manifest = json!({ "schemaVersion": 2, "mediaType": media_type });
        let object = manifest.as_object_mut().unwrap();
        object.extend(fields.as_object().unwrap().clone());
        object.retain(|_, value| !value.is_null());
        let text = manifest.to_string();
        let descriptor = self.descriptor(media_type, text.as_bytes());
        if let Some(subject) = manifest["subject"]["digest"].as_str() {
            let kind = [&manifest["artifactType"], &manifest["config"]["mediaType"]]
                .into_iter()
                .find(|kind| !kind.is_null());
            let mut listed = json!({ "mediaType": media_type, "digest": descriptor["digest"], "size": text.len() });
            if let Some(kind) = kind {
                listed["artifactType"] = kind.clone();
            }
            if !manifest["annotations"].is_null() {
                listed["annotations"] = manifest["annotations"].clone();
            }
            self.referrers
                .entry(subject.to_owned())
                .or_default()
                .push(listed);
        }
        self.manifests
            .push((self.digest(text.as_bytes()), media_type.to_owned(), text));
        descriptor
    }

    /// An image of two layers; `extra` are more fields of its manifest.
    pub(crate) fn image(&mut self, extra: Value) -> Value {
        let layers = [self.layer(LAYER), self.layer(LAYER)];
        let config = json!({ "os": "linux", "architecture": "amd64", "number": self.made });
        let config = self.blob(CONFIG, config.to_string());
        let fields = json!({ "config": config, "layers": layers });
        self.manifest(OCI_MANIFEST, merged(fields, extra))
    }

    /// An artifact of one layer, with a type of its own.
    pub(crate) fn artifact(&mut self, kind: &str, extra: Value) -> Value {
        let layer = self.layer(kind);
        let config = self.blob(EMPTY, "{}");
        let fields = json!({ "artifactType": kind, "config": config, "layers": [layer] });
        self.manifest(OCI_MANIFEST, merged(fields, extra))
    }

    /// An index of these.
    pub(crate) fn index(&mut self, children: &[Value], extra: Value) -> Value {
        self.manifest(OCI_INDEX, merged(json!({ "manifests": children }), extra))
    }

    /// Names what was made last.
    pub(crate) fn tag(&mut self, tag: &str) {
        let (digest, ..) = self.manifests.last().unwrap();
        self.tags.insert(tag.to_owned(), digest.clone());
    }
}

fn merged(mut fields: Value, extra: Value) -> Value {
    if let (Some(fields), Value::Object(extra)) = (fields.as_object_mut(), extra) {
        fields.extend(extra);
    }
    fields
}
