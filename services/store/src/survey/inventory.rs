//! What a survey of a volume found: facts, without a judgement. Pure data.

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

/// What is known of the bytes of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Not hashed in this survey.
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
pub struct Blob {
    /// Bytes on the volume.
    pub size: u64,
    /// What is known of them.
    pub content: Content,
}

/// A link file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// It names this content.
    Names(Digest),
    /// It has no content.
    Empty,
    /// Its content is no digest.
    Garbage,
}

/// A tag's folder.
#[derive(Clone, Debug)]
pub struct TagFolder {
    /// The tag itself; `None` if the file is not there.
    pub current: Option<Link>,
    /// Its history.
    pub index: BTreeMap<Digest, Link>,
    /// Since its last change.
    pub age: Duration,
}

/// A repository's folder.
#[derive(Clone, Debug, Default)]
pub struct Repository {
    /// Whether it has a folder of blobs at all.
    pub has_layers: bool,
    /// Its links to blobs.
    pub layers: BTreeMap<Digest, Link>,
    /// Its links to manifests.
    pub revisions: BTreeMap<Digest, Link>,
    /// Its tags.
    pub tags: BTreeMap<Tag, TagFolder>,
    /// Its index of referrers: subject, then referrer.
    pub referrers: BTreeMap<(Digest, Digest), Link>,
}

/// Something that does not belong to the layout, or may not belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Oddity {
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
pub struct Pending {
    /// Its folder or file, below the root.
    pub path: PathBuf,
    /// Its repository; `None` for a partial copy.
    pub repository: Option<RepositoryName>,
    /// Since its last activity.
    pub age: Duration,
    /// Bytes received.
    pub size: u64,
    /// Whether it says when it began; true for a partial copy, which need not.
    pub has_start: bool,
}

/// A deleted manifest whose tags may not be removed yet.
#[derive(Clone, Debug)]
pub struct Tombstone {
    /// Its folder, below the root.
    pub path: PathBuf,
    /// Its repository; `None` if the delete did not happen.
    pub repository: Option<RepositoryName>,
    /// The manifest.
    pub digest: Digest,
    /// Since the delete.
    pub age: Duration,
}

/// What a survey of a volume found. Paths are relative to the root of the volume.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// All blobs.
    pub blobs: BTreeMap<Digest, Blob>,
    /// All repositories.
    pub repositories: BTreeMap<RepositoryName, Repository>,
    /// Parsed content of what repositories link as manifests; `None` if it is no manifest.
    pub documents: BTreeMap<Digest, Option<Manifest>>,
    /// Upload sessions and partial copies.
    pub pending: Vec<Pending>,
    /// Deletes whose tags may not be removed yet.
    pub tombstones: Vec<Tombstone>,
    /// What does not belong to the layout, with its path.
    pub oddities: Vec<(PathBuf, Oddity)>,
    /// Files of the quarantine, and their bytes.
    pub quarantined: (u64, u64),
    /// Files of the quarantine, below the root, that hash to what they were, where that content is
    /// missing.
    pub restorable: Vec<(Digest, PathBuf)>,
    /// Bytes that were hashed in this survey.
    pub hashed_bytes: u64,
}

impl Inventory {
    /// The blobs with wrong content, which a second survey hashes again.
    pub fn wrong(&self) -> BTreeSet<Digest> {
        self.blobs
            .iter()
            .filter(|(_, blob)| matches!(blob.content, Content::Wrong { .. }))
            .map(|(digest, _)| digest.clone())
            .collect()
    }

    /// The contents that repositories link.
    pub fn linked(&self) -> BTreeSet<&Digest> {
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
    pub fn wanted(&self) -> BTreeSet<&Digest> {
        let all = self.repositories.values();
        let folders = all.flat_map(|it| it.layers.keys().chain(it.revisions.keys()));
        let manifests = self.documents.values().flatten();
        let parts = manifests.flat_map(Manifest::references);
        let mut wanted = self.linked();
        wanted.extend(folders.chain(parts.map(|part| &part.digest)));
        wanted
    }

    /// Whether sound bytes are there under that name, or can be given back from the quarantine.
    pub fn holds_or_can_restore(&self, digest: &Digest) -> bool {
        self.holds(digest) || self.is_restorable(digest)
    }

    /// Whether sound bytes can be given back from the quarantine.
    pub fn is_restorable(&self, digest: &Digest) -> bool {
        self.restorable.iter().any(|(aside, _)| aside == digest)
    }

    /// Whether sound bytes, as far as known, are there under that name.
    pub fn holds(&self, digest: &Digest) -> bool {
        self.blobs
            .get(digest)
            .is_some_and(|blob| !matches!(blob.content, Content::Wrong { .. }))
    }
}
