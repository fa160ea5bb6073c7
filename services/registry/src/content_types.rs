//! The content types of large manifests, each found once.

use holdfast_core::{digest::Digest, oci, reference::RepositoryName, shares::Shares};
use parking_lot::Mutex;

use crate::limits;

/// Bytes of a manifest above which an answer is read from the volume while the client takes it,
/// instead of being held in memory.
pub(crate) const LARGE_MANIFEST_BYTES: usize = 64 << 10;
/// What a content type that is remembered takes in memory beside its text, bytes.
const CONTENT_TYPE_COST: usize = 1024;

/// The content types of large manifests that were asked for, which are parsed once. Each repository
/// has a share of the memory.
pub(crate) struct ContentTypes {
    cache: Mutex<Shares<RepositoryName, Digest, String>>,
}

impl Default for ContentTypes {
    fn default() -> Self {
        Self {
            cache: Mutex::new(Shares::new(limits::CONTENT_TYPES_BYTES, usize::MAX)),
        }
    }
}

impl ContentTypes {
    /// The content type of these bytes, which are what the digest says.
    pub(crate) fn of(&self, repo: &RepositoryName, digest: &Digest, bytes: &[u8]) -> String {
        if bytes.len() <= LARGE_MANIFEST_BYTES {
            return oci::content_type(bytes);
        }
        if let Some(known) = self.cache.lock().get(digest) {
            return known.clone();
        }
        let found = oci::content_type(bytes);
        let entry = (found.clone(), CONTENT_TYPE_COST + found.len());
        let now = std::time::Instant::now();
        self.cache.lock().insert(repo, digest.clone(), entry, now);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_of_a_large_manifest_is_found_once() {
        let types = ContentTypes::default();
        let repo = RepositoryName::parse("a/app").unwrap();
        let digest = |number: usize| Digest::parse(&format!("sha256:{number:064x}")).unwrap();
        let typed = |kind: &str, length: usize| {
            let pad = " ".repeat(length);
            format!(r#"{{"mediaType":"application/{kind}"{pad}}}"#).into_bytes()
        };
        let large = LARGE_MANIFEST_BYTES;
        assert_eq!(
            types.of(&repo, &digest(0), &typed("a", large)),
            "application/a"
        );
        // Other bytes cannot have this digest: anyone who sees them was not asked.
        assert_eq!(
            types.of(&repo, &digest(0), &typed("b", large)),
            "application/a"
        );
        assert_eq!(types.of(&repo, &digest(1), &typed("a", 1)), "application/a");
        assert_eq!(types.of(&repo, &digest(1), &typed("b", 1)), "application/b");
        let bytes = typed("c", large);
        for number in 2..3000 {
            types.of(&repo, &digest(number), &bytes);
        }
        let cache = types.cache.lock();
        assert!(cache.bytes() <= limits::CONTENT_TYPES_BYTES);
        assert!(cache.get(&digest(2)).is_none() && cache.get(&digest(2999)).is_some());
    }
}
