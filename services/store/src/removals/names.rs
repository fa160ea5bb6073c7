//! The names of removals, of holds and of what lies in them.

use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};

use crate::{Hasher, layout};

/// Digits of a repository's name in the names of its folders: enough that no two repositories share
/// them.
const KEY_DIGITS: usize = 32;

/// What stands for the digest in the name of a hold.
pub(super) const HOLD: &str = "hold";

/// A folder of the volume's, as its name tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Removal(Digest),
    Hold,
}

/// What stands for a repository in names of folders.
pub(super) fn key(repo: &RepositoryName) -> String {
    let digest = Hasher::digest(Algorithm::Sha256, repo.as_str().as_bytes());
    digest.hex().chars().take(KEY_DIGITS).collect()
}

/// An empty file that takes the place of the link in a removal. There before the link is, so that a
/// full volume is noticed before anything happened.
pub(super) const NOTE: &str = "note.tmp";

/// A repository's name as the name of a file. It is never that of a note: `note.tmp` is a legal
/// name of a repository.
pub(super) fn encoded(repo: &RepositoryName) -> String {
    if repo.as_str() == NOTE {
        return format!("{NOTE}+");
    }
    repo.as_str().replace('/', "+")
}

/// The repository that a removal's file is named by; `None` for a note.
pub(crate) fn decoded(name: &str) -> Option<RepositoryName> {
    let parsed = is_held(name).then(|| {
        let name = name.strip_suffix('+').unwrap_or(name);
        RepositoryName::parse(&name.replace('+', "/"))
    });
    parsed?.ok()
}

/// Whether a file of a removal is the deleted link, or what stands in its place: no note and no
/// temporary file.
pub(super) fn is_held(name: &str) -> bool {
    name != NOTE && !layout::is_hidden(name)
}

/// The digest that a removal's folder is named by; `None` for what is none.
pub(crate) fn digest_of(name: &str) -> Option<Digest> {
    match parse(name)?.1 {
        Name::Removal(digest) => Some(digest),
        Name::Hold => None,
    }
}

/// The key of the repository, and what the folder is.
pub(super) fn parse(name: &str) -> Option<(&str, Name)> {
    let mut parts = name.splitn(3, '.');
    let (key, what, _) = (parts.next()?, parts.next()?, parts.next()?);
    let name = if what == HOLD {
        Name::Hold
    } else {
        let (algorithm, hex) = what.split_once('-')?;
        Name::Removal(Digest::from_hex(algorithm.parse().ok()?, hex).ok()?)
    };
    Some((key, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_repository_has_a_name_as_a_file_that_is_no_note() {
        for name in [
            "a",
            "shop/app",
            "shop/app.tmp",
            "note.tmp",
            "note/tmp",
            "a/note.tmp",
        ] {
            let repo = RepositoryName::parse(name).unwrap();
            let file = encoded(&repo);
            assert!(is_held(&file) && !file.contains('/'), "{file}");
            assert_eq!(decoded(&file), Some(repo), "{file}");
        }
        assert_eq!(decoded(NOTE), None);
        assert!(!is_held(".nfs0001") && !is_held(NOTE));
    }
}
