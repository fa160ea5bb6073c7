//! Names of tombstones, of untag intents, and of their files.

use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};

use crate::{Hasher, layout};

/// Hexadecimal digits of the hash of a repository's name in a folder's name. They are enough to
/// tell all repositories apart.
const KEY_DIGITS: usize = 32;

/// Replaces the digest in the name of an untag intent.
pub(super) const UNTAG: &str = "untag";

/// The kind of a folder, by its name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Tombstone(Digest),
    UntagIntent,
}

/// The key of a repository in folder names.
pub(super) fn repository_key(repo: &RepositoryName) -> String {
    let digest = Hasher::digest(Algorithm::Sha256, repo.as_str().as_bytes());
    digest.hex().chars().take(KEY_DIGITS).collect()
}

/// The empty file that replaces the link in a tombstone. It is made before the link is moved, so
/// that a delete on a full volume fails before it has an effect.
pub(super) const PLACEHOLDER: &str = "placeholder.tmp";

/// The name of a repository as a file name. It never equals [`PLACEHOLDER`], although that is a
/// legal name of a repository.
pub(super) fn encode_repository(repo: &RepositoryName) -> String {
    if repo.as_str() == PLACEHOLDER {
        return format!("{PLACEHOLDER}+");
    }
    repo.as_str().replace('/', "+")
}

/// The repository that an entry of a tombstone names; `None` for the placeholder.
pub(crate) fn decode_repository(name: &str) -> Option<RepositoryName> {
    let parsed = is_entry(name).then(|| {
        let name = name.strip_suffix('+').unwrap_or(name);
        RepositoryName::parse(&name.replace('+', "/"))
    });
    parsed?.ok()
}

/// Whether a file of a tombstone is the deleted link or its replacement, and not the placeholder
/// or a temporary file.
pub(super) fn is_entry(name: &str) -> bool {
    name != PLACEHOLDER && !layout::is_hidden(name)
}

/// The digest in the name of a tombstone; `None` for other names.
pub(crate) fn tombstone_digest(name: &str) -> Option<Digest> {
    match parse(name)?.1 {
        Name::Tombstone(digest) => Some(digest),
        Name::UntagIntent => None,
    }
}

/// The key of the repository, and the kind of the folder.
pub(super) fn parse(name: &str) -> Option<(&str, Name)> {
    let mut parts = name.splitn(3, '.');
    let (key, what, _) = (parts.next()?, parts.next()?, parts.next()?);
    let name = if what == UNTAG {
        Name::UntagIntent
    } else {
        let (algorithm, hex) = what.split_once('-')?;
        Name::Tombstone(Digest::from_hex(algorithm.parse().ok()?, hex).ok()?)
    };
    Some((key, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_repository_has_a_file_name_that_is_not_the_placeholder() {
        for name in [
            "a",
            "shop/app",
            "shop/app.tmp",
            "placeholder.tmp",
            "placeholder/tmp",
            "a/placeholder.tmp",
        ] {
            let repo = RepositoryName::parse(name).unwrap();
            let file = encode_repository(&repo);
            assert!(is_entry(&file) && !file.contains('/'), "{file}");
            assert_eq!(decode_repository(&file), Some(repo), "{file}");
        }
        assert_eq!(decode_repository(PLACEHOLDER), None);
        assert!(!is_entry(".nfs0001") && !is_entry(PLACEHOLDER));
    }
}
