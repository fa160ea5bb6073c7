//! What a manifest says about itself and refers to.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use super::{MANIFEST_BYTES, MANIFEST_DESCRIPTORS, ManifestType, Platform, json};
use crate::Digest;

/// Why bytes are no manifest that is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More bytes than anything reads.
    #[error("the manifest has {0} bytes, more than {MANIFEST_BYTES}")]
    TooLarge(u64),
    /// No JSON, JSON that readers take differently, or not of a manifest's shape.
    #[error("the manifest does not parse: {0}")]
    Syntax(String),
    /// Docker's first format.
    #[error("manifests of schema version 1 are not supported")]
    Schema1,
    /// A format that does not exist yet.
    #[error("manifests of schema version {0} are not supported")]
    SchemaVersion(u64),
    /// Both an image and an index.
    #[error("a manifest is an image or an index, not both")]
    Ambiguous,
    /// The manifest names another media type than those of manifests.
    #[error("the media type {0} is not supported")]
    MediaType(String),
    /// The manifest names a media type of another shape.
    #[error("the content has not the shape of {0}")]
    Shape(&'static str),
}

/// A reference from one piece of content to another. Sizes and types are the author's claims.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of what is referred to; empty if the descriptor names none.
    #[serde(default, deserialize_with = "nullable")]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes, as the author says: at most what 63 bits hold, as in Go.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    /// Its platform, if the descriptor gives one.
    #[serde(default, deserialize_with = "platform")]
    pub platform: Option<Platform>,
    /// Whether the descriptor names other places to get it from.
    #[serde(rename = "urls", default, deserialize_with = "has_items")]
    has_urls: bool,
    #[serde(default, rename = "annotations")]
    _annotations: Option<Texts>,
}

impl Descriptor {
    /// Whether a registry may lack it: it lives elsewhere, or may not be distributed.
    pub fn is_foreign(&self) -> bool {
        self.has_urls
            || self.media_type.contains(".nondistributable.")
            || self.media_type.contains(".foreign.")
    }

    /// Whether an entry of an index may be a manifest that a reader takes. Caches of build tools
    /// list layers in an index, and older tools list formats that no longer exist.
    pub fn is_manifest(&self) -> bool {
        self.media_type.is_empty() || ManifestType::parse(&self.media_type).is_some()
    }
}

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The type that it names, else the one that its parts tell.
    pub media_type: ManifestType,
    /// Whether it names its type itself.
    pub is_typed: bool,
    /// The configuration of an image.
    pub config: Option<Descriptor>,
    /// The layers of an image.
    pub layers: Vec<Descriptor>,
    /// What an index lists.
    pub manifests: Vec<Descriptor>,
    /// What it is attached to; need not exist.
    pub subject: Option<Digest>,
    /// The kind of artifact that it names, else the type of its configuration.
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
    /// Why no part of Holdfast takes these bytes as a manifest.
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

    /// Whether it lists manifests.
    pub fn is_index(&self) -> bool {
        self.media_type.is_index()
    }

    /// The configuration and the layers of an image, as often as it names them.
    pub fn parts(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(&self.layers)
    }

    /// Everything that it lists or consists of.
    pub fn references(&self) -> impl Iterator<Item = &Descriptor> {
        self.parts().chain(&self.manifests)
    }
}

/// The annotations of a manifest itself. They are read apart, because a map of hostile ones takes
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

/// The begin of a text that a stranger chose, for a message.
fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}

/// A field that may be `null`, which means its default.
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

/// A platform that names neither system nor architecture is none.
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

/// An object. Without this a list of its fields in their order would be taken for one as well, and
/// no other reader does that.
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

/// A text or `null` that is checked and not kept.
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

/// An object of texts that is checked and not kept.
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
