//! The layout of the volume: that of distribution's file system driver, plus Holdfast's own
//! folders. Pure.
//!
//! ```text
//! <root>/docker/registry/v2/
//! ├── blobs/<algorithm>/<first 2 hex digits>/<hex>/
//! │   └── data                               bytes of a blob or manifest
//! ├── repositories/<name>/                   <name> may hold slashes: team/app
//! │   ├── _layers/<algorithm>/<hex>/link     the repository may read the blob
//! │   ├── _manifests/                        exists: the repository exists
//! │   │   ├── revisions/<algorithm>/<hex>/link   the repository has the manifest
//! │   │   └── tags/<tag>/
//! │   │       ├── current/link               the digest that the tag names
//! │   │       └── index/<algorithm>/<hex>/link   every digest that the tag ever named
//! │   ├── _uploads/<uuid>/                   an upload session
//! │   │   ├── data                           its bytes, while no request writes
//! │   │   ├── .data.<uuid>.tmp               its bytes, while one request writes
//! │   │   ├── startedat                      when it began
//! │   │   └── hashstates/<uuid>              generation: a hard link to the bytes
//! │   └── _referrers/<algorithm>/<subject>/<algorithm>/<hex>/link   (Holdfast only)
//! └── _holdfast/                             (Holdfast only)
//!     ├── incoming/<algorithm>/<hex>         a blob that arrives from an upstream
//!     ├── locks/<name>                       a lock between replicas
//!     ├── deletes/<repository key>.<algorithm>-<hex>.<uuid>/   tombstone of a manifest
//!     ├── deletes/<repository key>.untag.<uuid>/               untag intent
//!     ├── reserve/<uuid>/                    folders for deletes on a full volume
//!     ├── quarantine/<algorithm>/<hex>.<uuid>   damaged content
//!     ├── volume-id                          identity of the volume
//!     ├── scrub                              progress of the scrubber, JSON
//!     └── clock                              touched to read the clock of the volume
//! ```
//!
//! A link is a file with a digest in ASCII. Distribution ignores folders that begin with `_` in
//! places where it does not know them. Names, tags and digests arrive as parsed types, so no path
//! can leave the root.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use holdfast_core::{
    digest::Digest,
    reference::{RepositoryName, Tag},
};

/// The names of folders and files of the layout.
pub(crate) mod names {
    pub(crate) const BLOBS: &str = "blobs";
    /// The bytes of a blob, and those of an upload session.
    pub(crate) const DATA: &str = "data";
    pub(crate) const REPOSITORIES: &str = "repositories";
    pub(crate) const LAYERS: &str = "_layers";
    pub(crate) const MANIFESTS: &str = "_manifests";
    pub(crate) const REVISIONS: &str = "revisions";
    pub(crate) const TAGS: &str = "tags";
    /// The folder of all tags, below that of a repository.
    pub(crate) const TAG_FOLDERS: &str = "_manifests/tags";
    pub(crate) const CURRENT: &str = "current";
    pub(crate) const INDEX: &str = "index";
    pub(crate) const REFERRERS: &str = "_referrers";
    pub(crate) const LINK: &str = "link";
    /// The link of a tag, below the folder of the tag.
    pub(crate) const TAG_LINK: &str = "current/link";
    pub(crate) const UPLOADS: &str = "_uploads";
    pub(crate) const STARTED_AT: &str = "startedat";
    /// Of a session: distribution's hash states and Holdfast's generations.
    pub(crate) const HASH_STATES: &str = "hashstates";
    /// The folder that only Holdfast reads.
    pub(crate) const OWN: &str = "_holdfast";
    pub(crate) const INCOMING: &str = "incoming";
    pub(crate) const LOCKS: &str = "locks";
    pub(crate) const DELETES: &str = "deletes";
    pub(crate) const RESERVE: &str = "reserve";
    pub(crate) const QUARANTINE: &str = "quarantine";
    pub(crate) const VOLUME_ID: &str = "volume-id";
    pub(crate) const CLOCK: &str = "clock";
}

/// The paths below one root directory (distribution's `storage.filesystem.rootdirectory`).
#[derive(Clone, Debug)]
pub struct Layout {
    base: PathBuf,
}

impl Layout {
    /// The layout below `root`.
    pub fn new(root: &Path) -> Self {
        Self {
            base: root.join("docker/registry/v2"),
        }
    }

    /// Folder of all blobs.
    pub fn blobs(&self) -> PathBuf {
        self.base.join(names::BLOBS)
    }

    /// The bytes of a blob or manifest.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        let (prefix, _) = digest.hex().split_at(2);
        self.blobs()
            .join(digest.algorithm().as_str())
            .join(prefix)
            .join(digest.hex())
            .join(names::DATA)
    }

    /// Folder of all repositories.
    pub fn repositories(&self) -> PathBuf {
        self.base.join(names::REPOSITORIES)
    }

    /// Folder of one repository.
    pub fn repository(&self, name: &RepositoryName) -> PathBuf {
        self.repositories().join(name.as_str())
    }

    /// The link that grants a repository a blob.
    pub fn layer_link(&self, name: &RepositoryName, digest: &Digest) -> PathBuf {
        link(self.repository(name).join(names::LAYERS), digest)
    }

    /// Folder of a repository's manifests; the repository exists if and only if this exists.
    pub fn manifests(&self, name: &RepositoryName) -> PathBuf {
        self.repository(name).join(names::MANIFESTS)
    }

    /// The link that grants a repository a manifest.
    pub fn revision_link(&self, name: &RepositoryName, digest: &Digest) -> PathBuf {
        link(self.manifests(name).join(names::REVISIONS), digest)
    }

    /// Folder of a repository's tags.
    pub fn tags(&self, name: &RepositoryName) -> PathBuf {
        self.manifests(name).join(names::TAGS)
    }

    /// Folder of one tag.
    pub fn tag(&self, name: &RepositoryName, tag: &Tag) -> PathBuf {
        self.tags(name).join(tag.as_str())
    }

    /// The tag's present digest.
    pub fn tag_link(&self, name: &RepositoryName, tag: &Tag) -> PathBuf {
        self.tag(name, tag).join(names::TAG_LINK)
    }

    /// Folder of all digests the tag ever had.
    pub fn tag_index(&self, name: &RepositoryName, tag: &Tag) -> PathBuf {
        self.tag(name, tag).join(names::INDEX)
    }

    /// One of the digests the tag ever had.
    pub fn tag_index_link(&self, name: &RepositoryName, tag: &Tag, digest: &Digest) -> PathBuf {
        link(self.tag_index(name, tag), digest)
    }

    /// Folder of an upload session.
    pub fn upload(&self, name: &RepositoryName, id: &str) -> PathBuf {
        self.repository(name).join(names::UPLOADS).join(id)
    }

    /// Folder of the manifests that name `subject` (ours; distribution skips what starts with `_`).
    pub fn referrers(&self, name: &RepositoryName, subject: &Digest) -> PathBuf {
        self.repository(name)
            .join(names::REFERRERS)
            .join(subject.algorithm().as_str())
            .join(subject.hex())
    }

    /// One manifest that names `subject`.
    pub fn referrer_link(
        &self,
        name: &RepositoryName,
        subject: &Digest,
        referrer: &Digest,
    ) -> PathBuf {
        link(self.referrers(name, subject), referrer)
    }

    /// Folder of what is ours alone and invisible to distribution.
    pub fn own(&self) -> PathBuf {
        self.base.join(names::OWN)
    }

    /// A blob that arrives from an upstream.
    pub fn incoming(&self, digest: &Digest) -> PathBuf {
        self.own()
            .join(names::INCOMING)
            .join(digest.algorithm().as_str())
            .join(digest.hex())
    }

    /// Folder of the deletes whose tags are not removed yet.
    pub fn deletes(&self) -> PathBuf {
        self.own().join(names::DELETES)
    }

    /// Folders made in advance, for deletes on a full volume.
    pub(crate) fn reserve(&self) -> PathBuf {
        self.own().join(names::RESERVE)
    }

    /// The lock of a name on the volume.
    pub fn lock(&self, name: &str) -> PathBuf {
        self.own().join(names::LOCKS).join(name)
    }

    /// Where damaged content is moved; `unique` keeps several apart.
    pub fn quarantine(&self, digest: &Digest, unique: &str) -> PathBuf {
        self.own()
            .join(names::QUARANTINE)
            .join(digest.algorithm().as_str())
            .join(format!("{}.{unique}", digest.hex()))
    }
}

fn link(folder: PathBuf, digest: &Digest) -> PathBuf {
    folder
        .join(digest.algorithm().as_str())
        .join(digest.hex())
        .join(names::LINK)
}

/// The name of a temporary file beside `name`. It begins with a dot, as no tag, no part of a
/// repository's name, no algorithm and no digest does.
pub(crate) fn temporary(name: &str, unique: &str) -> String {
    format!(".{name}.{unique}.tmp")
}

/// Whether a directory entry is a temporary file of a write to `name`.
pub(crate) fn is_temporary_of(entry: &OsStr, name: &OsStr) -> bool {
    let rest = entry.to_str().zip(name.to_str()).and_then(|(entry, name)| {
        entry
            .strip_prefix('.')?
            .strip_prefix(name)?
            .strip_prefix('.')
    });
    rest.is_some_and(|rest| rest.strip_suffix(".tmp").is_some())
}

/// Whether a directory entry has no name of content: a temporary file of ours, or what NFS keeps
/// for a reader. To be ignored everywhere; nothing legal is hidden by that.
pub(crate) fn is_hidden(name: &str) -> bool {
    name.starts_with('.')
}

/// Whether an entry of a folder that holds a link or a blob is left over from a write. There, other
/// than in folders of tags and repositories, no legal name ends in `.tmp`: it is a temporary file
/// of distribution (`link.UUID.tmp`) or of a Holdfast before temporary files began with a dot.
pub(crate) fn is_leftover(name: &str) -> bool {
    is_hidden(name)
        || Path::new(name)
            .extension()
            .is_some_and(|extension| extension == "tmp")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn check(path: &Path, expect: &str) {
        assert_eq!(
            path,
            Path::new("/r/docker/registry/v2").join(expect.replace("HEX", HEX))
        );
    }

    #[test]
    fn paths_are_those_of_distribution() {
        let layout = Layout::new(Path::new("/r"));
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        let name: RepositoryName = "docker.io/library/nginx".parse().unwrap();
        let tag: Tag = "1.27".parse().unwrap();
        check(&layout.blob(&digest), "blobs/sha256/44/HEX/data");
        check(
            &layout.layer_link(&name, &digest),
            "repositories/docker.io/library/nginx/_layers/sha256/HEX/link",
        );
        check(
            &layout.revision_link(&name, &digest),
            "repositories/docker.io/library/nginx/_manifests/revisions/sha256/HEX/link",
        );
        check(
            &layout.tag_link(&name, &tag),
            "repositories/docker.io/library/nginx/_manifests/tags/1.27/current/link",
        );
        check(
            &layout.tag_index_link(&name, &tag, &digest),
            "repositories/docker.io/library/nginx/_manifests/tags/1.27/index/sha256/HEX/link",
        );
        check(
            &layout.upload(&name, "u"),
            "repositories/docker.io/library/nginx/_uploads/u",
        );
    }

    #[test]
    fn names_of_several_parts_are_made_of_the_single_ones() {
        for (several, parts) in [
            (names::TAG_FOLDERS, [names::MANIFESTS, names::TAGS]),
            (names::TAG_LINK, [names::CURRENT, names::LINK]),
        ] {
            assert_eq!(several, parts.join("/"));
        }
    }

    #[test]
    fn leftovers_are_recognised() {
        for (name, leftover, hidden) in [
            ("link.7f.tmp", true, false),
            (".nfs0000a1", true, true),
            (".link.7f.tmp", true, true),
            ("link", false, false),
            ("data", false, false),
            ("tmp", false, false),
            // A tag, or a part of a repository's name.
            ("v1.tmp", true, false),
        ] {
            assert_eq!(is_leftover(name), leftover, "{name}");
            assert_eq!(is_hidden(name), hidden, "{name}");
        }
    }

    #[test]
    fn a_temporary_file_has_no_name_that_is_legal() {
        let temporary = temporary("link", "7f");
        assert!(is_hidden(&temporary));
        assert!(Tag::parse(&temporary).is_err());
        assert!(RepositoryName::parse(&temporary).is_err());
        let of = |name: &str| is_temporary_of(OsStr::new(&temporary), OsStr::new(name));
        assert!(of("link"));
        assert!(!of("lin") && !of("data") && !of(""));
    }
}
