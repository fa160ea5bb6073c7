//! Names of images outside and inside of a volume. Pure.
//!
//! An image that came from an upstream leaves under that upstream's name, so that every tool and
//! every other cluster knows it, and comes in under the local name that pods are rewritten to. An
//! image that clients pushed has no other name than its own.

use holdfast_core::{
    digest::Digest,
    reference::{Reference, RepositoryName, Tag},
    rewrite,
};

/// An image of a volume: its repository, and what in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The local repository.
    pub repository: RepositoryName,
    /// The tag, if it is named by one.
    pub tag: Option<Tag>,
    /// The digest, if it is named by one.
    pub digest: Option<Digest>,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// What a text can mean on a volume, most literal first: `team/app:1` is that repository, else the
/// Docker Hub's; `registry.example:5000/app` is the repository of that upstream. Without a tag and
/// a digest it is `latest`. Empty if it is no name of an image.
pub fn local(text: &str) -> Vec<Name> {
    let mut found = Vec::new();
    found.extend(literal(text));
    if let Ok(reference) = Reference::parse(text)
        && let Some(repository) =
            rewrite::local_repository(reference.host(), reference.repository())
    {
        let name = with_default(
            repository,
            reference.tag().cloned(),
            reference.digest().cloned(),
        );
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// `repository[:tag][@digest]` as it stands.
fn literal(text: &str) -> Option<Name> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse().ok()?)),
        None => (text, None),
    };
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(Tag::parse(tag).ok()?)),
        None => (rest, None),
    };
    Some(with_default(
        RepositoryName::parse(repository).ok()?,
        tag,
        digest,
    ))
}

fn with_default(repository: RepositoryName, tag: Option<Tag>, digest: Option<Digest>) -> Name {
    let tag = match (&digest, tag) {
        (None, None) => Some(Tag::latest()),
        (_, tag) => tag,
    };
    Name {
        repository,
        tag,
        digest,
    }
}

/// The name under which an image leaves: its upstream's, or its own.
pub fn original(name: &Name) -> String {
    match rewrite::upstream_of(&name.repository) {
        Some((host, repository)) => {
            Reference::new(host, repository, name.tag.clone(), name.digest.clone()).to_string()
        }
        None => name.to_string(),
    }
}

/// The local name of an image that comes in under `text`. A text without a host is a local name
/// already.
pub(crate) fn incoming(text: &str) -> Option<Name> {
    let (first, rest) = text.split_once('/').unwrap_or(("", text));
    let has_host = !first.is_empty() && (first.contains(['.', ':']) || first == "localhost");
    // A local name of an upstream (`registry.example_5000/app`) is no host that could be asked.
    let is_local = first.contains('_');
    if has_host && !is_local && !rest.is_empty() {
        let reference = Reference::parse(text).ok()?;
        let repository = rewrite::local_repository(reference.host(), reference.repository())?;
        return Some(with_default(
            repository,
            reference.tag().cloned(),
            reference.digest().cloned(),
        ));
    }
    literal(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_out_and_come_back() {
        for (local, outside) in [
            (
                "docker.io/library/nginx:1.27",
                "docker.io/library/nginx:1.27",
            ),
            (
                "registry.example_5000/team/app:1",
                "registry.example:5000/team/app:1",
            ),
            ("localhost_5000/app:1", "localhost:5000/app:1"),
            ("team/app:1", "team/app:1"),
            ("app:1", "app:1"),
        ] {
            let name = literal(local).unwrap();
            assert_eq!(original(&name), outside, "{local}");
            assert_eq!(incoming(outside), Some(name), "{outside}");
        }
    }

    #[test]
    fn a_text_means_what_is_there_literally_first() {
        let shown = |text: &str| {
            local(text)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        for (text, expect) in [
            (
                "nginx",
                vec!["nginx:latest", "docker.io/library/nginx:latest"],
            ),
            ("team/app:1", vec!["team/app:1", "docker.io/team/app:1"]),
            (
                "docker.io/library/nginx:1",
                vec!["docker.io/library/nginx:1"],
            ),
            (
                "registry.example:5000/app:1",
                vec!["registry.example_5000/app:1"],
            ),
            (
                "registry.example_5000/app:1",
                vec!["registry.example_5000/app:1"],
            ),
            ("UPPER", vec![]),
        ] {
            let found = shown(text);
            for name in &expect {
                assert!(found.contains(&(*name).to_owned()), "{text}: {found:?}");
            }
            assert_eq!(
                found.first().map(String::as_str),
                expect.first().copied(),
                "{text}"
            );
        }
    }
}
