//! What a manifest or index refers to: a pure reading of hostile JSON.

use holdfast_core::Digest;
use serde::Deserialize;

/// Most descriptors of one document.
const MAX_DESCRIPTORS: usize = 2000;

/// Why bytes are no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// Not JSON, or not of the shape.
    #[error("it is no manifest")]
    Shape,
    /// Both an image and an index.
    #[error("it is both an image and an index")]
    Ambiguous,
    /// More descriptors than anybody needs.
    #[error("it has more than {MAX_DESCRIPTORS} descriptors")]
    TooLarge,
}

/// Something that a document refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// A child of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Child {
    pub(crate) descriptor: Descriptor,
    /// `os/architecture[/variant]`; absent when the index does not say.
    pub(crate) platform: Option<String>,
}

/// A parsed manifest or index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    /// Config and layers.
    Image(Vec<Descriptor>),
    /// Manifests by platform.
    Index(Vec<Child>),
}

/// A document with what its JSON says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) document: Document,
    pub(crate) media_type: String,
    pub(crate) subject: Option<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    subject: Option<RawDescriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: Digest,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl RawDescriptor {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            digest: self.digest.clone(),
            size: self.size,
        }
    }

    /// Layers that a registry need not hold: clients fetch them elsewhere.
    fn is_foreign(&self) -> bool {
        self.media_type
            .as_deref()
            .is_some_and(|kind| kind.contains(".foreign.") || kind.contains(".nondistributable."))
    }
}

/// Reads a document; `content_type` counts where the JSON says nothing.
pub(crate) fn parse(bytes: &[u8], content_type: &str) -> Result<Parsed, Error> {
    crate::json::check(bytes).map_err(|_| Error::Shape)?;
    let raw: Raw = serde_json::from_slice(bytes).map_err(|_| Error::Shape)?;
    if raw.schema_version != 2 {
        return Err(Error::Shape);
    }
    let count =
        raw.layers.as_ref().map_or(0, Vec::len) + raw.manifests.as_ref().map_or(0, Vec::len);
    if count > MAX_DESCRIPTORS {
        return Err(Error::TooLarge);
    }
    let subject = raw.subject.map(|subject| subject.digest);
    let (document, default) = match (raw.manifests, raw.config, raw.layers) {
        (Some(_), config, layers) if config.is_some() || layers.is_some() => {
            return Err(Error::Ambiguous);
        }
        (Some(manifests), _, _) => {
            let children = manifests.into_iter().map(|child| Child {
                descriptor: child.descriptor(),
                platform: child.platform.map(|platform| {
                    let variant = platform
                        .variant
                        .map(|variant| format!("/{variant}"))
                        .unwrap_or_default();
                    format!("{}/{}{variant}", platform.os, platform.architecture)
                }),
            });
            (
                Document::Index(children.collect()),
                "application/vnd.oci.image.index.v1+json",
            )
        }
        (None, Some(config), layers) => {
            let layers = layers.unwrap_or_default();
            let held = layers
                .iter()
                .filter(|layer| !layer.is_foreign())
                .map(RawDescriptor::descriptor);
            let mut blobs: Vec<Descriptor> =
                std::iter::once(config.descriptor()).chain(held).collect();
            let mut seen = std::collections::BTreeSet::new();
            blobs.retain(|blob| seen.insert(blob.digest.clone()));
            (
                Document::Image(blobs),
                "application/vnd.oci.image.manifest.v1+json",
            )
        }
        (None, None, _) => return Err(Error::Shape),
    };
    let said = if content_type.starts_with("application/vnd.") {
        content_type
    } else {
        default
    };
    Ok(Parsed {
        document,
        media_type: raw.media_type.unwrap_or_else(|| said.to_owned()),
        subject,
    })
}

/// The children that are copied for the wanted platforms: all when nothing is wanted; a wanted `os/architecture` takes every variant.
pub(crate) fn choose<'a>(children: &'a [Child], wanted: &[String]) -> Vec<&'a Child> {
    let fits = |child: &&Child| match &child.platform {
        _ if wanted.is_empty() => true,
        None => true,
        Some(platform) => wanted.iter().any(|wanted| {
            platform == wanted
                || platform
                    .strip_prefix(wanted.as_str())
                    .is_some_and(|rest| rest.starts_with('/'))
                || wanted
                    .strip_prefix(platform.as_str())
                    .is_some_and(|rest| rest.starts_with('/'))
        }),
    };
    children.iter().filter(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn check(json: &str, expect: Result<(&str, usize), Error>) {
        let parsed = parse(json.replace('D', DIGEST).as_bytes(), "").map(|parsed| {
            let count = match parsed.document {
                Document::Image(blobs) => blobs.len(),
                Document::Index(children) => children.len(),
            };
            (parsed.media_type, count)
        });
        assert_eq!(
            parsed,
            expect.map(|(kind, count)| (kind.to_owned(), count)),
            "{json}"
        );
    }

    #[test]
    fn documents_are_told_apart() {
        let image = "application/vnd.oci.image.manifest.v1+json";
        let index = "application/vnd.oci.image.index.v1+json";
        check(
            r#"{"schemaVersion":2,"config":{"digest":"D","size":1},"layers":[]}"#,
            Ok((image, 1)),
        );
        check(
            r#"{"schemaVersion":2,"config":{"digest":"D","size":1},"layers":[{"digest":"D","size":1}]}"#,
            Ok((image, 1)),
        );
        check(
            r#"{"schemaVersion":2,"manifests":[{"digest":"D","size":1}]}"#,
            Ok((index, 1)),
        );
        check(
            r#"{"schemaVersion":2,"mediaType":"x","manifests":[]}"#,
            Ok(("x", 0)),
        );
        check(
            r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#,
            Err(Error::Ambiguous),
        );
        check(r#"{"schemaVersion":1,"fsLayers":[]}"#, Err(Error::Shape));
        check(
            r#"{"schemaVersion":2,"config":{"digest":"../x","size":1}}"#,
            Err(Error::Shape),
        );
        check(
            r#"{"schemaVersion":2,"config":{"digest":"D","size":-1}}"#,
            Err(Error::Shape),
        );
        check("<html>", Err(Error::Shape));
        check(
            r#"{"schemaVersion":2,"manifests":[],"x":1,"x":2}"#,
            Err(Error::Shape),
        );
    }

    fn check_choice(wanted: &[&str], expect: &[Option<&str>]) {
        let child = |platform: Option<&str>| Child {
            descriptor: Descriptor {
                digest: DIGEST.parse().unwrap(),
                size: 1,
            },
            platform: platform.map(str::to_owned),
        };
        let children = [
            Some("linux/amd64"),
            Some("linux/arm64/v8"),
            Some("unknown/unknown"),
            None,
        ]
        .map(child);
        let wanted: Vec<String> = wanted.iter().map(|text| (*text).to_owned()).collect();
        let chosen: Vec<_> = choose(&children, &wanted)
            .into_iter()
            .map(|child| child.platform.as_deref())
            .collect();
        assert_eq!(chosen, expect, "{wanted:?}");
    }

    #[test]
    fn platforms_are_chosen() {
        check_choice(
            &[],
            &[
                Some("linux/amd64"),
                Some("linux/arm64/v8"),
                Some("unknown/unknown"),
                None,
            ],
        );
        check_choice(&["linux/amd64"], &[Some("linux/amd64"), None]);
        check_choice(&["linux/arm64"], &[Some("linux/arm64/v8"), None]);
        check_choice(&["windows/amd64"], &[None]);
    }
}
