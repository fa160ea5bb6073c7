//! Manifests and link files.

use std::collections::BTreeSet;

use holdfast_core::oci;
use holdfast_registry::parsers;
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};

use super::text;
use crate::{Shape, Target, ensure, shape};

/// Manifests.
pub(super) const MANIFEST: Target = Target {
    name: "manifest",
    promise: "a push takes it, a copy takes it and the check reads it, or none of them does; it is one of four types",
    check: manifest,
    dictionary: &[
        "{\"schemaVersion\":2",
        ",\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\"",
        ",\"mediaType\":\"application/vnd.oci.image.index.v1+json\"",
        ",\"config\":{\"mediaType\":\"a/b\",\"digest\":\"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a\",\"size\":2}",
        ",\"layers\":[",
        ",\"manifests\":[",
        ",\"subject\":{",
        "\"digest\":\"sha256:",
        "\"size\":",
        ",\"annotations\":{\"a\":\"b\"}",
        "null",
        "[[[[[[[[",
        "{\"a\":{\"a\":{\"a\":",
        ",\"urls\":[\"https://x\"]",
        "\"fsLayers\":[]",
        "1e5",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        ".nondistributable.",
        "application/vnd.docker.container.image.v1+json",
        ",\"platform\":{\"os\":\"linux\",\"architecture\":\"amd64\"}",
        "\"layers\":null",
    ],
    max_bytes: 8_000,
};

const TYPES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

fn manifest(input: &[u8]) -> Result<Shape, String> {
    let pushed = parsers::manifest(input, None);
    let copied = holdfast_fill::references(input);
    let checked = oci::Manifest::parse(input);
    ensure(
        pushed.is_ok() == copied.is_ok() && copied.is_ok() == checked.is_ok(),
        || format!("pushed {pushed:?}, copied {copied:?}, checked {checked:?}"),
    )?;
    for header in TYPES {
        if let (Ok((own, ..)), Ok((with, ..))) = (&pushed, parsers::manifest(input, Some(header))) {
            // A header never turns an image into an index, nor into another type than its own.
            ensure(*own == with, || {
                format!("{own} with the header {header} is {with}")
            })?;
        }
    }
    let served = oci::content_type(input);
    ensure(oci::is_media_type(&served), || {
        format!("served as {served:?}")
    })?;
    if let Ok((media_type, blobs, children, _)) = &pushed {
        ensure(TYPES.contains(&media_type.as_str()), || {
            format!("type {media_type} is taken")
        })?;
        ensure(served == *media_type, || {
            format!("read as {media_type}, served as {served}")
        })?;
        ensure(blobs.is_empty() || children.is_empty(), || {
            "both blobs and manifests".to_owned()
        })?;
        ensure(!repeats(input), || {
            "a key is there twice, readers may take either".to_owned()
        })?;
        if let Ok((needed, taken)) = &copied {
            let of = |digests: &[_]| digests.iter().cloned().collect::<BTreeSet<_>>();
            ensure(of(blobs) == of(needed), || {
                format!("a push needs {blobs:?}, a copy {needed:?}")
            })?;
            ensure(of(taken).is_subset(&of(children)), || {
                format!("of {children:?} a copy takes {taken:?}")
            })?;
        }
    }
    let words = |error: &String| error.split(' ').take(3).collect::<Vec<_>>().join(" ");
    Ok(shape((
        pushed
            .as_ref()
            .map(|(kind, blobs, children, subject)| {
                (
                    kind.clone(),
                    blobs.len().min(3),
                    children.len().min(3),
                    subject.is_some(),
                )
            })
            .map_err(words),
        copied
            .map(|(needed, taken)| (needed.len() + taken.len()).min(3))
            .map_err(|error| words(&error)),
    )))
}

/// Whether an object's own keys repeat.
fn repeats(json: &[u8]) -> bool {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = bool;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
            const READ: [&str; 8] = [
                "schemaVersion",
                "mediaType",
                "config",
                "layers",
                "manifests",
                "subject",
                "artifactType",
                "annotations",
            ];
            let mut seen = BTreeSet::new();
            let mut repeats = false;
            while let Some(key) = map.next_key::<String>()? {
                map.next_value::<IgnoredAny>()?;
                repeats |= READ.contains(&key.as_str()) && !seen.insert(key);
            }
            Ok(repeats)
        }
    }
    serde_json::Deserializer::from_slice(json)
        .deserialize_map(Keys)
        .unwrap_or(false)
}

/// Link files.
pub(super) const LINK: Target = Target {
    name: "link",
    promise: "a link names exactly the digest that is written in it, or nothing",
    check: link,
    dictionary: &[
        "sha256:",
        "sha512:",
        "\n",
        " ",
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    ],
    max_bytes: 300,
};

fn link(input: &[u8]) -> Result<Shape, String> {
    let found = holdfast_store::parse_link(input);
    if let Some(digest) = &found {
        ensure(text(input).trim() == digest.as_str(), || {
            format!("read as {digest}")
        })?;
    }
    Ok(shape((
        found.map(|digest| digest.algorithm().as_str()),
        input.is_empty(),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_repeat_are_seen() {
        for (json, expect) in [
            (r#"{"config":1,"config":2}"#, true),
            (r#"{"config":1,"layers":{"config":2}}"#, false),
            (r#"{"x":1,"x":2}"#, false),
            ("[", false),
        ] {
            assert_eq!(repeats(json.as_bytes()), expect, "{json}");
        }
    }
}
