//! What a manifest refers to, with sizes and platforms. Pure. The registry's own reader judges what is accepted; this one reads what is there.

use std::fmt;

use holdfast_core::digest::Digest;
use serde::Deserialize;

/// Most bytes that are read as a manifest.
pub(crate) const MAX_BYTES: u64 = 16 << 20;

/// The platform of an image, as an index or the image's configuration gives it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Platform {
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Architecture.
    #[serde(default)]
    pub architecture: String,
    /// Variant of the architecture; empty if there is none.
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// Parses `os/architecture[/variant]`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/').map(str::to_owned);
        let platform = Self {
            os: parts.next()?,
            architecture: parts.next()?,
            variant: parts.next().unwrap_or_default(),
        };
        let whole = !platform.os.is_empty() && !platform.architecture.is_empty();
        (whole && parts.next().is_none()).then_some(platform)
    }

    /// Whether an image for `self` is one that `wanted` asks for; a variant that is not asked for does not count.
    pub fn answers(&self, wanted: &Self) -> bool {
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && (wanted.variant.is_empty() || self.variant == wanted.variant)
    }

    /// Whether it says nothing, as the entries that carry attestations do.
    pub fn is_unknown(&self) -> bool {
        self.os.is_empty() || self.os == "unknown"
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// A blob that a manifest needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub digest: Digest,
    /// Bytes that the manifest says it has.
    pub size: u64,
    /// Lives elsewhere and need not be in a registry.
    pub foreign: bool,
}

/// A manifest that an index lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its name.
    pub digest: Digest,
    /// Bytes that the index says it has.
    pub size: u64,
    /// Its platform, if the index gives one.
    pub platform: Option<Platform>,
}

/// What a manifest or index refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its media type: its own word, else derived from its shape.
    pub media_type: String,
    /// The configuration, if it is an image.
    pub config: Option<Part>,
    /// Configuration and layers.
    pub parts: Vec<Part>,
    /// The images of an index.
    pub children: Vec<Child>,
    /// Whether it is an index.
    pub is_index: bool,
    /// What it is attached to.
    pub subject: Option<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
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
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    urls: Option<Vec<String>>,
    #[serde(default)]
    platform: Option<Platform>,
}

impl Document {
    /// Reads a manifest or index; `None` if the bytes are neither.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let raw: Raw = serde_json::from_slice(bytes).ok()?;
        let is_index = raw.manifests.is_some();
        if is_index == (raw.config.is_some() || raw.layers.is_some()) {
            return None;
        }
        let media_type = raw
            .media_type
            .filter(|own| !own.is_empty())
            .unwrap_or_else(|| {
                let shape = if is_index {
                    "application/vnd.oci.image.index.v1+json"
                } else {
                    "application/vnd.oci.image.manifest.v1+json"
                };
                shape.to_owned()
            });
        let config = raw.config.map(Part::from);
        let layers = raw.layers.unwrap_or_default().into_iter().map(Part::from);
        Some(Self {
            media_type,
            parts: config.iter().cloned().chain(layers).collect(),
            config,
            children: raw
                .manifests
                .unwrap_or_default()
                .into_iter()
                .map(|child| Child {
                    digest: child.digest,
                    size: child.size,
                    platform: child.platform,
                })
                .collect(),
            is_index,
            subject: raw.subject.map(|subject| subject.digest),
        })
    }
}

impl From<Descriptor> for Part {
    fn from(descriptor: Descriptor) -> Self {
        Self {
            foreign: descriptor.urls.is_some_and(|urls| !urls.is_empty())
                || descriptor.media_type.contains(".nondistributable.")
                || descriptor.media_type.contains(".foreign."),
            digest: descriptor.digest,
            size: descriptor.size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_asked_for_with_or_without_a_variant() {
        for (has, wanted, expect) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm/v7", "linux/arm/v6", false),
            ("linux/arm64", "linux/arm64/v8", false),
            ("windows/amd64", "linux/amd64", false),
        ] {
            let answers = Platform::parse(has)
                .unwrap()
                .answers(&Platform::parse(wanted).unwrap());
            assert_eq!(answers, expect, "{has} for {wanted}");
        }
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d"] {
            assert_eq!(Platform::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_document_is_an_image_or_an_index() {
        let part = r#"{"mediaType":"t","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}"#;
        for (text, expect) in [
            (
                format!(r#"{{"config":{part},"layers":[{part}]}}"#),
                Some(false),
            ),
            (format!(r#"{{"manifests":[{part}]}}"#), Some(true)),
            (r#"{"manifests":[]}"#.to_owned(), Some(true)),
            (format!(r#"{{"config":{part},"manifests":[]}}"#), None),
            ("{}".to_owned(), None),
            (String::new(), None),
            (r#"{"config":{"digest":"x"}}"#.to_owned(), None),
        ] {
            let found = Document::parse(text.as_bytes()).map(|document| document.is_index);
            assert_eq!(found, expect, "{text}");
        }
    }
}
