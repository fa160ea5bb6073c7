//! Parses manifests and indexes.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use super::{MANIFEST_BYTES, MANIFEST_DESCRIPTORS, ManifestType, Platform, json};
use crate::Digest;

/// Why bytes are not accepted as a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The manifest is larger than [`MANIFEST_BYTES`].
    #[error("the manifest has {0} bytes, more than {MANIFEST_BYTES}")]
    TooLarge(u64),
    /// The bytes are not JSON, are ambiguous JSON, or do not have the shape of a manifest.
    #[error("the manifest does not parse: {0}")]
    Syntax(String),
    /// Docker's schema version 1.
    #[error("manifests of schema version 1 are not supported")]
    Schema1,
    /// Another schema version.
    #[error("manifests of schema version {0} are not supported")]
    SchemaVersion(u64),
    /// The manifest is both an image and an index.
    #[error("a manifest is an image or an index, not both")]
    Ambiguous,
    /// The media type is not one of a manifest.
    #[error("the media type {0} is not supported")]
    MediaType(String),
    /// The content does not match its media type.
    #[error("the content does not have the shape of {0}")]
    Shape(&'static str),
}

/// A reference to other content. Size and type are claims of the author.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content; empty if the descriptor names none.
    #[serde(default, deserialize_with = "nullable")]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes, as claimed; fits 63 bits, as in Go.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    /// Its platform, if the descriptor has one.
    #[serde(default, deserialize_with = "platform")]
    pub platform: Option<Platform>,
    /// Whether the descriptor has `urls`.
    #[serde(rename = "urls", default, deserialize_with = "has_items")]
    has_urls: bool,
    #[serde(default, rename = "annotations")]
    _annotations: Option<Texts>,
}

impl Descriptor {
    /// Whether a registry need not have it: it is hosted elsewhere, or may not be distributed.
    pub fn is_foreign(&self) -> bool {
        self.has_urls
            || self.media_type.contains(".nondistributable.")
            || self.media_type.contains(".foreign.")
    }

    /// Whether an entry of an index may be a manifest. Caches of build tools list layers in an
    /// index, and older tools list formats that no longer exist.
    pub fn is_manifest(&self) -> bool {
        self.media_type.is_empty() || ManifestType::parse(&self.media_type).is_some()
    }
}

/// A parsed manifest or index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its type, as named, or otherwise derived from its content.
    pub media_type: ManifestType,
    /// Whether it names its type.
    pub is_typed: bool,
    /// The configuration of an image.
    pub config: Option<Descriptor>,
    /// The layers of an image.
    pub layers: Vec<Descriptor>,
    /// The entries of an index.
    pub manifests: Vec<Descriptor>,
    /// The manifest that it refers to; it need not exist.
    pub subject: Option<Digest>,
    /// The artifact type, as named, or otherwise the type of the configuration.
    pub artifact_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Object<Descriptor>>,
    #[serde(default, deserialize_with = "list")]
    layers: List,
    #[serde(default, deserialize_with = "list")]
    manifests: List,
    #[serde(default)]
    subject: Option<Object<Descriptor>>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default, rename = "annotations")]
    _annotations: Option<Texts>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
}

/// A list of descriptors. Go writes an empty one as `null`.
#[derive(Default)]
enum List {
    #[default]
    Absent,
    Null,
    Of(Vec<Descriptor>),
}

impl List {
    fn is_some(&self) -> bool {
        matches!(self, Self::Of(_))
    }

    fn items(self) -> Vec<Descriptor> {
        match self {
            Self::Of(items) => items,
            Self::Absent | Self::Null => Vec::new(),
        }
    }
}

impl Manifest {
    /// Reads a manifest or an index. Optional fields may be `null`.
    ///
    /// # Errors
    /// The reason why the bytes are not accepted.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let length = bytes.len() as u64;
        if length > MANIFEST_BYTES {
            return Err(Error::TooLarge(length));
        }
        json::check(bytes).map_err(Error::Syntax)?;
        let Object(raw) = serde_json::from_slice::<Object<Raw>>(bytes)
            .map_err(|error| Error::Syntax(error.to_string()))?;
        let config = raw.config.map(|Object(config)| config);
        match raw.schema_version {
            _ if raw.fs_layers.is_some() => return Err(Error::Schema1),
            Some(1) => return Err(Error::Schema1),
            None | Some(2) => {}
            Some(other) => return Err(Error::SchemaVersion(other)),
        }
        let own = match raw.media_type.as_deref() {
            None | Some("") => None,
            Some(own) => Some(ManifestType::parse(own).ok_or_else(|| Error::MediaType(cut(own)))?),
        };
        let is_index = match (
            config.is_some() || raw.layers.is_some(),
            raw.manifests.is_some(),
        ) {
            (true, true) => return Err(Error::Ambiguous),
            (false, false) => {
                matches!(raw.manifests, List::Null) && own.is_none_or(ManifestType::is_index)
            }
            (_, index) => index,
        };
        let (layers, manifests) = (raw.layers.items(), raw.manifests.items());
        let media_type = own.unwrap_or_else(|| match &config {
            _ if is_index => ManifestType::of_index(types(&manifests)),
            Some(config) => ManifestType::of_image(&config.media_type, types(&layers)),
            None => ManifestType::OciManifest,
        });
        if is_index != media_type.is_index() || (!is_index && config.is_none()) {
            return Err(Error::Shape(media_type.as_str()));
        }
        let of_config = config.as_ref().map(|config| config.media_type.clone());
        Ok(Self {
            media_type,
            is_typed: own.is_some(),
            config,
            layers,
            manifests,
            subject: raw.subject.map(|Object(subject)| subject.digest),
            artifact_type: raw
                .artifact_type
                .filter(|kind| !kind.is_empty())
                .or(of_config)
                .filter(|kind| !kind.is_empty()),
        })
    }

    /// Whether it is an index.
    pub fn is_index(&self) -> bool {
        self.media_type.is_index()
    }

    /// The configuration and the layers of an image, including duplicates.
    pub fn parts(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(&self.layers)
    }

    /// All descriptors: parts and entries.
    pub fn references(&self) -> impl Iterator<Item = &Descriptor> {
        self.parts().chain(&self.manifests)
    }
}

/// The annotations of a manifest. They are parsed separately, because a map of hostile ones takes
/// many times the bytes of the manifest.
pub fn annotations(bytes: &[u8]) -> Option<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: Option<BTreeMap<String, Option<String>>>,
    }
    let Object(found) = serde_json::from_slice::<Object<Annotated>>(bytes).ok()?;
    let found = found.annotations?;
    let text = |(key, value): (_, Option<String>)| (key, value.unwrap_or_default());
    Some(found.into_iter().map(text).collect())
}

fn types(list: &[Descriptor]) -> impl Iterator<Item = &str> {
    list.iter().map(|one| one.media_type.as_str())
}

/// The beginning of an untrusted text, for a message.
fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Deserializes a field in which `null` means the default.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let size = u64::deserialize(deserializer)?;
    i64::try_from(size).map_err(|_| D::Error::custom("a size is more than 63 bits hold"))?;
    Ok(size)
}

/// Deserializes a platform. One without system and architecture is `None`.
fn platform<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Platform>, D::Error> {
    let found = Option::<Object<Platform>>::deserialize(deserializer)?;
    let found = found.map(|Object(found)| found);
    Ok(found.filter(|found| !found.os.is_empty() || !found.architecture.is_empty()))
}

fn has_items<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    struct Items;
    impl<'de> Visitor<'de> for Items {
        type Value = bool;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of texts")
        }
        fn visit_unit<E>(self) -> Result<bool, E> {
            Ok(false)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<bool, A::Error> {
            let mut any = false;
            while items.next_element::<Text>()?.is_some() {
                any = true;
            }
            Ok(any)
        }
    }
    deserializer.deserialize_any(Items)
}

fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<List, D::Error> {
    struct Descriptors;
    impl<'de> Visitor<'de> for Descriptors {
        type Value = List;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of descriptors")
        }
        fn visit_unit<E>(self) -> Result<List, E> {
            Ok(List::Null)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List, A::Error> {
            let mut found = Vec::new();
            while let Some(Object(item)) = items.next_element()? {
                if found.len() >= MANIFEST_DESCRIPTORS {
                    return Err(A::Error::custom(format_args!(
                        "more than {MANIFEST_DESCRIPTORS} descriptors"
                    )));
                }
                found.push(item);
            }
            Ok(List::Of(found))
        }
    }
    deserializer.deserialize_any(Descriptors)
}

/// Deserializes an object only. By default serde also accepts a list of the fields in their order,
/// which no other parser does.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields))
    }
}

/// A text or `null` that is validated and dropped.
struct Text;

impl Visitor<'_> for Text {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

/// An object of texts that is validated and dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Texts;

impl<'de> Visitor<'de> for Texts {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self, A::Error> {
        while object.next_entry::<Text, Text>()?.is_some() {}
        Ok(self)
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self)
    }
}

#[cfg(test)]
mod tests;
