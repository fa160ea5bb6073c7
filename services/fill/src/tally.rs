//! What is known of an image while it is copied, and the bounds of an image.

use std::collections::HashSet;

use holdfast_core::{
    Digest,
    oci::{IMAGE_MANIFEST_BYTES, IMAGE_MANIFESTS, Manifest, Platform},
};

use super::{
    Error, Result,
    wanted::{self, Part},
};

/// Missing parts of an image that are listed by name.
const NAMED: usize = 16;
/// Why entries of an index are not held.
pub(super) const TOO_DEEP: &str = "indexes in it are nested too deeply";

/// The size of an image as its manifests claim it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ImageSize {
    pub(super) bytes: u64,
    pub(super) blobs: u64,
}

impl ImageSize {
    pub(super) fn add(&mut self, parts: &[Part]) {
        for part in parts.iter().filter(|part| !part.is_foreign) {
            self.bytes = self.bytes.saturating_add(part.size);
            self.blobs += 1;
        }
    }
}

/// What is known of an image while it is copied.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) seen: HashSet<Digest>,
    manifest_bytes: u64,
    pub(super) size: ImageSize,
    /// Indexes whose children are there, with their depth and their subject.
    pub(super) indexes: Vec<(usize, Digest, Option<Digest>)>,
    pub(super) missing: Vec<String>,
}

impl Tally {
    /// Counts a manifest that the image names, before it is fetched; `false` if it was counted
    /// before.
    pub(super) fn see(&mut self, digest: &Digest) -> Result<bool> {
        if !self.seen.contains(digest) && self.seen.len() >= IMAGE_MANIFESTS {
            return Err(too_many());
        }
        Ok(self.seen.insert(digest.clone()))
    }

    /// Counts a manifest in that is here.
    pub(super) fn add(&mut self, digest: &Digest, bytes: u64) -> Result<()> {
        self.see(digest)?;
        self.manifest_bytes += bytes;
        self.size.bytes = self.size.bytes.saturating_add(bytes);
        if self.manifest_bytes > IMAGE_MANIFEST_BYTES {
            return Err(too_many());
        }
        Ok(())
    }

    /// An entry of an index is not held.
    pub(super) fn lacks(&mut self, child: &Part, why: &str) {
        let of = child.platform.as_ref().filter(|of| !of.is_unknown());
        let what = of.map_or_else(|| child.digest.to_string(), ToString::to_string);
        if self.missing.len() < NAMED {
            self.missing.push(format!("{what}: {why}"));
        }
    }
}

/// The wanted platforms that an index has nothing for, for people.
pub(super) fn in_no_index(manifest: &Manifest, wanted: &[Platform]) -> Vec<String> {
    let lacking = wanted::lacking(manifest, wanted).into_iter().take(NAMED);
    lacking
        .map(|platform| format!("{platform}: the index has none"))
        .collect()
}

fn too_many() -> Error {
    Error::Invalid(format!(
        "the image has more than {IMAGE_MANIFESTS} manifests, or they have more than \
         {IMAGE_MANIFEST_BYTES} bytes together"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(manifests: usize, bytes: u64, expect: bool) {
        let mut tally = Tally::default();
        for number in 1..manifests {
            let digest = Digest::parse(&format!("sha256:{number:064x}")).unwrap();
            tally.add(&digest, 0).unwrap();
        }
        let last = Digest::parse(&format!("sha256:{}", "f".repeat(64))).unwrap();
        assert_eq!(
            tally.add(&last, bytes).is_ok(),
            expect,
            "{manifests}, {bytes}"
        );
    }

    #[test]
    fn manifests_of_an_image_are_bounded_in_number_and_in_bytes() {
        check(IMAGE_MANIFESTS, 0, true);
        check(IMAGE_MANIFESTS + 1, 0, false);
        check(1, IMAGE_MANIFEST_BYTES, true);
        check(1, IMAGE_MANIFEST_BYTES + 1, false);
        // What the upstream lacks counts as well: it is asked for.
        let mut tally = Tally::default();
        let digest = |number: usize| Digest::parse(&format!("sha256:{number:064x}")).unwrap();
        for number in 0..IMAGE_MANIFESTS {
            assert_eq!(tally.see(&digest(number)).ok(), Some(true));
        }
        assert_eq!(tally.see(&digest(0)).ok(), Some(false));
        assert!(tally.see(&digest(IMAGE_MANIFESTS)).is_err());
        assert_eq!(tally.seen.len(), IMAGE_MANIFESTS);
    }
}
