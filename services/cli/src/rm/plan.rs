//! What a deletion removes from a repository, and what forbids it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_core::Tag;
use holdfast_core::digest::Digest;
use holdfast_core::reference::RepositoryName;

/// A manifest, as far as deletions need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) digest: Digest,
    /// The manifests that it lists as an index.
    pub(super) children: BTreeSet<Digest>,
}

/// A repository, without what was removed before.
#[derive(Debug)]
pub(super) struct Repository {
    pub(super) name: RepositoryName,
    pub(super) tags: BTreeMap<Tag, Stored>,
    /// Manifests that were asked for by digest.
    pub(super) by_digest: BTreeMap<Digest, Stored>,
}

/// What is to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Tag(Tag),
    /// A manifest with all its tags.
    Digest(Digest),
}

impl Target {
    /// The name by which the distribution API knows it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Tag(tag) => tag.to_string(),
            Self::Digest(digest) => digest.to_string(),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, ":{tag}"),
            Self::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

/// An image of the registry that a pod or a template names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Use {
    /// For people: `Deployment shop/web`.
    pub(super) by: String,
    pub(super) repository: RepositoryName,
    pub(super) tag: Option<Tag>,
    pub(super) digest: Option<Digest>,
}

/// What is done about a target.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The tag goes; these other tags need its manifest.
    DeleteTag { digest: Digest, others: Vec<Tag> },
    /// The first manifest goes with its tags, then those that it alone listed.
    DeleteManifests(Vec<Digest>),
    /// These name it.
    InUse(Vec<String>),
    /// The index of this tag lists it.
    PartOf(Tag),
    /// The repository does not have it.
    Absent,
}

/// Decides on one target. What goes is taken out of `repository`, so that the next decision counts
/// with what is left.
pub(super) fn decide(repository: &mut Repository, target: &Target, uses: &[Use]) -> Decision {
    let uses: Vec<&Use> = uses
        .iter()
        .filter(|it| it.repository == repository.name)
        .collect();
    match target {
        Target::Tag(tag) => decide_tag(repository, tag, &uses),
        Target::Digest(digest) => decide_manifest(repository, digest, &uses),
    }
}

fn decide_tag(repository: &mut Repository, tag: &Tag, uses: &[&Use]) -> Decision {
    let Some(stored) = repository.tags.get(tag).cloned() else {
        return Decision::Absent;
    };
    let users = users(uses, |it| it.tag.as_ref() == Some(tag));
    if !users.is_empty() {
        return Decision::InUse(users);
    }
    let others: Vec<Tag> = repository
        .tags
        .iter()
        .filter(|(other, it)| *other != tag && it.needs(&stored.digest))
        .map(|(other, _)| other.clone())
        .collect();
    if others.is_empty() {
        return decide_manifest(repository, &stored.digest, uses);
    }
    repository.tags.remove(tag);
    let digest = stored.digest;
    Decision::DeleteTag { digest, others }
}

fn decide_manifest(repository: &mut Repository, digest: &Digest, uses: &[&Use]) -> Decision {
    let is_it = |stored: &Stored| stored.digest == *digest;
    let tagged = repository.tags.values().find(|stored| is_it(stored));
    let Some(stored) = tagged.or_else(|| repository.by_digest.get(digest)).cloned() else {
        return Decision::Absent;
    };
    let names = |tag: &Tag| repository.tags.get(tag).is_some_and(is_it);
    let users = users(uses, |it| {
        it.digest.as_ref() == Some(digest) || it.tag.as_ref().is_some_and(names)
    });
    if !users.is_empty() {
        return Decision::InUse(users);
    }
    let lists = |stored: &Stored| !is_it(stored) && stored.children.contains(digest);
    if let Some((tag, _)) = repository.tags.iter().find(|(_, stored)| lists(stored)) {
        return Decision::PartOf(tag.clone());
    }
    repository.tags.retain(|_, stored| !is_it(stored));
    repository.by_digest.remove(digest);
    let is_needed = |child: &Digest| {
        repository.tags.values().any(|stored| stored.needs(child))
            || uses.iter().any(|it| it.digest.as_ref() == Some(child))
    };
    let orphans = stored
        .children
        .into_iter()
        .filter(|child| !is_needed(child));
    Decision::DeleteManifests(std::iter::once(stored.digest).chain(orphans).collect())
}

impl Stored {
    /// Whether an image is incomplete without this manifest.
    fn needs(&self, digest: &Digest) -> bool {
        self.digest == *digest || self.children.contains(digest)
    }
}

fn users(uses: &[&Use], named: impl Fn(&Use) -> bool) -> Vec<String> {
    let users = uses.iter().filter(|it| named(it));
    users.map(|it| it.by.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(letter: char) -> Digest {
        let hex: String = std::iter::repeat_n(letter, 64).collect();
        Digest::parse(&format!("sha256:{hex}")).unwrap()
    }

    fn tag(text: &str) -> Target {
        Target::Tag(Tag::parse(text).unwrap())
    }

    /// Tags by name: the letter of the digest, then those of its children.
    fn repository(tags: &[(&str, &str)]) -> Repository {
        let stored = |letters: &str| {
            let mut digests = letters.chars().map(digest);
            Stored {
                digest: digests.next().unwrap(),
                children: digests.collect(),
            }
        };
        Repository {
            name: RepositoryName::parse("team/app").unwrap(),
            tags: tags
                .iter()
                .map(|(name, letters)| (Tag::parse(name).unwrap(), stored(letters)))
                .collect(),
            by_digest: [(digest('f'), stored("f"))].into(),
        }
    }

    fn used(repository: &str, tag: Option<&str>, digest: Option<Digest>) -> Use {
        Use {
            by: "Deployment shop/web".to_owned(),
            repository: RepositoryName::parse(repository).unwrap(),
            tag: tag.map(|tag| Tag::parse(tag).unwrap()),
            digest,
        }
    }

    #[test]
    fn the_last_tag_of_a_manifest_takes_it_along() {
        let mut found = repository(&[("1", "a"), ("latest", "a"), ("2", "b")]);
        let others = vec![Tag::latest()];
        let digest_a = digest('a');
        assert_eq!(
            decide(&mut found, &tag("1"), &[]),
            Decision::DeleteTag {
                digest: digest_a,
                others
            }
        );
        assert_eq!(decide(&mut found, &tag("1"), &[]), Decision::Absent);
        assert_eq!(
            decide(&mut found, &tag("latest"), &[]),
            Decision::DeleteManifests(vec![digest('a')])
        );
        assert_eq!(decide(&mut found, &tag("3"), &[]), Decision::Absent);
        let names: Vec<_> = found.tags.keys().map(Tag::as_str).collect();
        assert_eq!(names, ["2"]);
    }

    #[test]
    fn a_digest_goes_with_all_its_tags() {
        let mut found = repository(&[("1", "a"), ("latest", "a")]);
        let target = Target::Digest(digest('a'));
        assert_eq!(
            decide(&mut found, &target, &[]),
            Decision::DeleteManifests(vec![digest('a')])
        );
        assert!(found.tags.is_empty());
        let untagged = Target::Digest(digest('f'));
        let gone = Decision::DeleteManifests(vec![digest('f')]);
        assert_eq!(decide(&mut found, &untagged, &[]), gone);
        assert_eq!(decide(&mut found, &untagged, &[]), Decision::Absent);
    }

    #[test]
    fn what_a_pod_or_a_template_names_stays() {
        let in_use = Decision::InUse(vec!["Deployment shop/web".to_owned()]);
        for (named, target) in [
            (used("team/app", Some("1"), None), tag("1")),
            (used("team/app", None, Some(digest('a'))), tag("1")),
            (
                used("team/app", Some("1"), None),
                Target::Digest(digest('a')),
            ),
            (
                used("team/app", Some("x"), Some(digest('a'))),
                Target::Digest(digest('a')),
            ),
        ] {
            let mut found = repository(&[("1", "a"), ("2", "b")]);
            assert_eq!(decide(&mut found, &target, &[named]), in_use, "{target}");
            assert_eq!(found.tags.len(), 2);
        }
        for elsewhere in [
            used("team/other", Some("1"), None),
            used("team/app", Some("2"), None),
            used("team/app", None, Some(digest('b'))),
        ] {
            let mut found = repository(&[("1", "a"), ("2", "b")]);
            let gone = Decision::DeleteManifests(vec![digest('a')]);
            assert_eq!(decide(&mut found, &tag("1"), &[elsewhere]), gone);
        }
        // The manifest stays with its other tag, so a pod by digest loses nothing.
        let mut found = repository(&[("1", "a"), ("latest", "a")]);
        let by_digest = used("team/app", None, Some(digest('a')));
        let decision = decide(&mut found, &tag("1"), &[by_digest]);
        assert!(
            matches!(decision, Decision::DeleteTag { .. }),
            "{decision:?}"
        );
    }

    #[test]
    fn the_images_of_an_index_go_with_it_unless_something_needs_them() {
        let mut found = repository(&[("1", "abcde"), ("arm", "c"), ("2", "9d")]);
        assert_eq!(
            decide(&mut found, &Target::Digest(digest('b')), &[]),
            Decision::Absent
        );
        let listed = Target::Digest(digest('c'));
        assert_eq!(
            decide(&mut found, &listed, &[]),
            Decision::PartOf(Tag::parse("1").unwrap())
        );
        let decision = decide(&mut found, &tag("arm"), &[]);
        assert!(
            matches!(decision, Decision::DeleteTag { .. }),
            "{decision:?}"
        );
        let by_digest = used("team/app", None, Some(digest('e')));
        assert_eq!(
            decide(&mut found, &tag("1"), &[by_digest]),
            Decision::DeleteManifests(vec![digest('a'), digest('b'), digest('c')])
        );
    }
}
