//! What is copied of an image. Pure.

use std::collections::HashSet;

use holdfast_core::{
    Digest,
    oci::{Descriptor, Manifest, Platform},
};

/// Something that a manifest refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) digest: Digest,
    /// Bytes, as the manifest claims.
    pub(super) size: u64,
    /// The upstream may lack it.
    pub(super) is_foreign: bool,
    pub(super) platform: Option<Platform>,
}

/// The platforms that a request names; invalid ones are ignored.
pub(super) fn platforms(texts: &[String]) -> Vec<Platform> {
    let parsed = texts.iter().filter_map(|text| Platform::parse(text));
    parsed.collect()
}

/// The configuration and the layers of an image, or the children of an index that are copied for
/// the wanted platforms, each once. No platform wanted means all of them. Children that are no
/// manifests come when a client asks for them.
pub(super) fn parts(manifest: &Manifest, wanted: &[Platform]) -> Vec<Part> {
    let is_here = |part: &&Descriptor| !part.is_foreign();
    let needed: HashSet<_> = manifest
        .references()
        .filter(is_here)
        .map(|part| &part.digest)
        .collect();
    let mut seen = HashSet::new();
    let is_wanted = |child: &&Descriptor| {
        let fits = |platform: &Platform| wanted.iter().any(|one| platform.fits(one));
        let for_platform = wanted.is_empty() || child.platform.as_ref().is_none_or(fits);
        child.is_manifest() && for_platform
    };
    let all = manifest
        .parts()
        .chain(manifest.manifests.iter().filter(is_wanted));
    all.filter(|part| seen.insert(&part.digest))
        .map(|part| Part {
            digest: part.digest.clone(),
            size: part.size,
            is_foreign: !needed.contains(&part.digest),
            platform: part.platform.clone(),
        })
        .collect()
}

/// Every blob that a manifest names, with its size: what a client may ask for by its digest.
pub(super) fn blobs(manifest: &Manifest) -> impl Iterator<Item = &Descriptor> {
    let others = manifest
        .manifests
        .iter()
        .filter(|child| !child.is_manifest());
    manifest.parts().chain(others)
}

/// The wanted platforms that an index has nothing for, as far as its own entries tell.
pub(super) fn lacking<'a>(manifest: &Manifest, wanted: &'a [Platform]) -> Vec<&'a Platform> {
    let children: Vec<_> = manifest
        .manifests
        .iter()
        .filter(|child| child.is_manifest())
        .collect();
    let tells = manifest.is_index() && children.iter().all(|child| child.platform.is_some());
    let has = |one: &&Platform| {
        let mut platforms = children.iter().filter_map(|child| child.platform.as_ref());
        platforms.any(|platform| platform.fits(one))
    };
    wanted.iter().filter(|one| tells && !has(one)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(children: &[(&str, Option<&str>)]) -> Manifest {
        let entry = |(number, (kind, platform)): (usize, &(&str, Option<&str>))| {
            let platform = platform.and_then(Platform::parse).map_or_else(String::new, |of| {
                let (os, arch, variant) = (of.os, of.architecture, of.variant);
                format!(r#","platform":{{"os":"{os}","architecture":"{arch}","variant":"{variant}"}}"#)
            });
            format!(
                r#"{{"mediaType":"{kind}","digest":"sha256:{number:064x}","size":1{platform}}}"#
            )
        };
        let entries: Vec<_> = children.iter().enumerate().map(entry).collect();
        let json = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            entries.join(",")
        );
        Manifest::parse(json.as_bytes()).unwrap()
    }

    fn check(wanted: &[&str], chosen: &[Option<&str>], lacks: &[&str]) {
        let wanted: Vec<_> = wanted.iter().map(|text| (*text).to_owned()).collect();
        let wanted = platforms(&wanted);
        let full = [
            ("", Some("linux/amd64")),
            ("", Some("linux/arm64/v8")),
            ("", Some("unknown/unknown")),
            ("application/vnd.oci.image.layer.v1.tar+gzip", None),
        ];
        for with_nested in [false, true] {
            let mut children = full.to_vec();
            children.extend(with_nested.then_some(("", None)));
            let index = index(&children);
            let found: Vec<_> = parts(&index, &wanted)
                .into_iter()
                .map(|part| part.platform.map(|platform| platform.to_string()))
                .collect();
            let mut expect: Vec<_> = chosen.iter().map(|text| text.map(str::to_owned)).collect();
            expect.extend(with_nested.then_some(None));
            assert_eq!(found, expect, "{wanted:?}");
            let lacking: Vec<_> = lacking(&index, &wanted)
                .iter()
                .map(ToString::to_string)
                .collect();
            let expect: &[&str] = if with_nested { &[] } else { lacks };
            assert_eq!(lacking, expect, "{wanted:?}");
        }
    }

    #[test]
    fn platforms_are_chosen_and_what_lacks_is_told() {
        let all = [
            Some("linux/amd64"),
            Some("linux/arm64/v8"),
            Some("unknown/unknown"),
        ];
        check(&[], &all, &[]);
        check(&["linux/amd64"], &[Some("linux/amd64")], &[]);
        check(&["linux/arm64"], &[Some("linux/arm64/v8")], &[]);
        check(&["linux/amd64/v1"], &[Some("linux/amd64")], &[]);
        check(&["windows/amd64"], &[], &["windows/amd64"]);
        check(
            &["linux/amd64", "linux/s390x"],
            &[Some("linux/amd64")],
            &["linux/s390x"],
        );
        check(&["nonsense", "linux/amd64"], &[Some("linux/amd64")], &[]);
    }

    #[test]
    fn layers_of_an_index_are_blobs_that_clients_may_ask_for() {
        let index = index(&[
            ("", None),
            ("application/vnd.buildkit.cacheconfig.v0", None),
        ]);
        let named: Vec<_> = blobs(&index).map(|blob| blob.digest.clone()).collect();
        assert_eq!(named, [index.manifests[1].digest.clone()]);
    }
}
