//! What a look at a volume found: facts only, no judgement. Pure data.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use holdfast_core::{
    digest::Digest,
    oci::Manifest,
    reference::{RepositoryName, Tag},
};

/// What is known of a blob's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Not hashed in this look.
    Unread,
    /// They hash to their name.
    Sound,
    /// They hash to something else.
    Wrong {
        /// What they hash to.
        actual: Digest,
    },
}

/// A blob of the volume.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    /// Bytes on the volume.
    pub(crate) size: u64,
    /// What is known of them.
    pub(crate) content: Content,
}

/// A link file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// It names this content.
    Names(Digest),
    /// It has no content.
    Empty,
    /// Its content is no digest.
    Garbage,
}

/// A tag's folder.
#[derive(Clone, Debug)]
pub(crate) struct TagFolder {
    /// The tag itself; `None` if the file is not there.
    pub(crate) current: Option<Link>,
    /// Its history.
    pub(crate) index: BTreeMap<Digest, Link>,
    /// Since its last change.
    pub(crate) age: Duration,
}

/// A repository's folder.
#[derive(Clone, Debug, Default)]
pub(crate) struct Repository {
    /// Whether it has a folder of blobs at all.
    pub(crate) has_layers: bool,
    /// Its links to blobs.
    pub(crate) layers: BTreeMap<Digest, Link>,
    /// Its links to manifests.
    pub(crate) revisions: BTreeMap<Digest, Link>,
    /// Its tags.
    pub(crate) tags: BTreeMap<Tag, TagFolder>,
    /// Its index of referrers: subject, then referrer.
    pub(crate) referrers: BTreeMap<(Digest, Digest), Link>,
}

/// Something that does not belong to the layout, or may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Oddity {
    /// A symbolic link or a special file.
    Symlink,
    /// A name or a kind of file that the layout does not have.
    Foreign,
    /// A temporary file.
    Temporary(Duration),
    /// What NFS keeps for a reader of a removed file.
    NfsLeftover(Duration),
    /// The volume answered with an error.
    Unreadable(String),
}

/// An upload session or a partial copy.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    /// Its folder or file, below the root.
    pub(crate) path: PathBuf,
    /// Whose it is; `None` for a partial copy.
    pub(crate) repository: Option<RepositoryName>,
    /// Since its last activity.
    pub(crate) age: Duration,
    /// Bytes received.
    pub(crate) size: u64,
    /// Whether it says when it began; true for a partial copy, which need not.
    pub(crate) has_start: bool,
}

/// A deleted manifest whose tags may not be removed yet.
#[derive(Clone, Debug)]
pub(crate) struct Tombstone {
    /// Its folder, below the root.
    pub(crate) path: PathBuf,
    /// Whose it was; `None` if the delete did not come to pass.
    pub(crate) repository: Option<RepositoryName>,
    /// The manifest.
    pub(crate) digest: Digest,
    /// Since the delete.
    pub(crate) age: Duration,
}

/// Sums over a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Repositories that hold manifests.
    pub repositories: u64,
    /// Tags.
    pub tags: u64,
    /// Manifests, counted once in each repository.
    pub manifests: u64,
    /// Blobs, manifests' bytes included.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Of these, bytes that no repository links.
    pub unlinked_bytes: u64,
    /// Bytes that were hashed in this look.
    pub hashed_bytes: u64,
    /// Uploads and partial copies under way, or left.
    pub pending: u64,
    /// Damaged contents that were moved aside before.
    pub quarantined: u64,
    /// Their bytes.
    pub quarantined_bytes: u64,
}

/// What a look at a volume found.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pub(crate) blobs: BTreeMap<Digest, Blob>,
    pub(crate) repositories: BTreeMap<RepositoryName, Repository>,
    /// Parsed content of what repositories link as manifests; `None` if it is no manifest.
    pub(crate) documents: BTreeMap<Digest, Option<Manifest>>,
    pub(crate) pending: Vec<Pending>,
    pub(crate) tombstones: Vec<Tombstone>,
    pub(crate) oddities: Vec<(PathBuf, Oddity)>,
    pub(crate) quarantined: (u64, u64),
    /// Files of the quarantine, below the root, that hash to what they were, where that content is
    /// missing.
    pub(crate) sound_aside: Vec<(Digest, PathBuf)>,
    pub(crate) hashed_bytes: u64,
}

impl Inventory {
    /// Sums.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            blobs: self.blobs.len() as u64,
            blob_bytes: self.blobs.values().map(|blob| blob.size).sum(),
            pending: self.pending.len() as u64,
            quarantined: self.quarantined.0,
            quarantined_bytes: self.quarantined.1,
            hashed_bytes: self.hashed_bytes,
            ..Totals::default()
        };
        for repository in self.repositories.values() {
            totals.repositories += u64::from(!repository.revisions.is_empty());
            totals.tags += repository
                .tags
                .values()
                .filter(|tag| tag.current.is_some())
                .count() as u64;
            totals.manifests += repository.revisions.len() as u64;
        }
        let linked = self.linked();
        totals.unlinked_bytes = self
            .blobs
            .iter()
            .filter(|(digest, _)| !linked.contains(*digest))
            .map(|(_, blob)| blob.size)
            .sum();
        totals
    }

    /// The contents found wrong, to be hashed once more in a second look.
    pub fn wrong(&self) -> BTreeSet<Digest> {
        self.blobs
            .iter()
            .filter(|(_, blob)| matches!(blob.content, Content::Wrong { .. }))
            .map(|(digest, _)| digest.clone())
            .collect()
    }

    /// The contents that repositories link.
    pub(crate) fn linked(&self) -> BTreeSet<&Digest> {
        fn target<'a>((digest, link): (&'a Digest, &'a Link)) -> &'a Digest {
            match link {
                Link::Names(target) => target,
                Link::Empty | Link::Garbage => digest,
            }
        }
        let all = self.repositories.values();
        all.flat_map(|repository| repository.layers.iter().chain(&repository.revisions))
            .map(target)
            .collect()
    }

    /// The contents that anything names: a folder, a link, or a manifest.
    pub(crate) fn wanted(&self) -> BTreeSet<&Digest> {
        let all = self.repositories.values();
        let folders = all.flat_map(|it| it.layers.keys().chain(it.revisions.keys()));
        let manifests = self.documents.values().flatten();
        let parts = manifests.flat_map(Manifest::references);
        let mut wanted = self.linked();
        wanted.extend(folders.chain(parts.map(|part| &part.digest)));
        wanted
    }

    /// Whether sound bytes are there under that name, or can be given back from the quarantine.
    pub(crate) fn holds_or_has_aside(&self, digest: &Digest) -> bool {
        self.holds(digest) || self.is_aside(digest)
    }

    /// Whether sound bytes can be given back from the quarantine.
    pub(crate) fn is_aside(&self, digest: &Digest) -> bool {
        self.sound_aside.iter().any(|(aside, _)| aside == digest)
    }

    /// Whether sound bytes, as far as known, are there under that name.
    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.blobs
            .get(digest)
            .is_some_and(|blob| !matches!(blob.content, Content::Wrong { .. }))
    }
}
