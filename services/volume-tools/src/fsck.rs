//! The check of a whole volume: what is damaged, what it means, and what can be repaired because
//! only one answer is possible.
//!
//! Three steps that do not know of each other: the store's survey reads the volume into an
//! inventory and changes nothing, [`plan`] is a pure function from that to findings, [`repair`]
//! carries one of them out and checks again before it changes anything. Works beside running
//! registries: what is young may be under way and is no finding, and [`confirm`] keeps only what
//! two surveys agree on.
//!
//! Destroys nothing: damaged content is moved aside, and only leftovers of writes that were never
//! acknowledged are removed.

mod plan;
mod totals;

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use holdfast_core::{digest::Digest, reference::RepositoryName};
use holdfast_store::{Maintenance, Result, volume::Volume};

pub use self::{plan::plan, totals::Totals};

/// The ages from which leftovers count as abandoned.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Leftovers that are younger may belong to a write under way.
    pub in_flight: Duration,
    /// Uploads and partial copies without activity for this long are abandoned.
    pub idle: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            in_flight: Duration::from_secs(60 * 60),
            idle: Duration::from_secs(7 * 24 * 60 * 60),
        }
    }
}

/// The kinds of findings, from harmful to untidy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Bytes that do not hash to their name.
    WrongContent,
    /// Something names content whose bytes are not there.
    MissingContent,
    /// Sound bytes in the quarantine that are missing in their place.
    SoundInQuarantine,
    /// The volume answers with an error.
    Unreadable,
    /// A tag whose link is empty or garbage.
    DamagedTag,
    /// A tag that names a manifest that its repository does not have.
    DanglingTag,
    /// A link that is empty or garbage.
    DamagedLink,
    /// A link that names other content than its folder.
    LinkElsewhere,
    /// A manifest refers to content that its repository does not link.
    Unlinked,
    /// A manifest gives a size that sound content does not have.
    WrongSize,
    /// Content that is linked as a manifest and is none.
    NotAManifest,
    /// A tag's history lacks the digest that the tag names.
    TagHistory,
    /// A manifest with a subject that the index of referrers does not list.
    UnlistedReferrer,
    /// The index of referrers lists a manifest that is gone.
    StaleReferrer,
    /// A symbolic link, which is never followed, or a special file.
    Symlink,
    /// A file or folder that does not belong to the layout.
    Foreign,
    /// A tag's folder without the tag: a write or a delete that did not end.
    UnfinishedTag,
    /// A deleted manifest whose tags are not removed yet.
    UnfinishedDelete,
    /// An upload without the file that says when it began.
    UploadWithoutStart,
    /// An abandoned upload or partial copy.
    Abandoned,
    /// A temporary file of a write that did not end.
    Leftover,
}

impl Kind {
    /// All kinds, in the order in which they are reported.
    pub const ALL: [Self; 21] = [
        Self::WrongContent,
        Self::MissingContent,
        Self::SoundInQuarantine,
        Self::Unreadable,
        Self::DamagedTag,
        Self::DanglingTag,
        Self::DamagedLink,
        Self::LinkElsewhere,
        Self::Unlinked,
        Self::WrongSize,
        Self::NotAManifest,
        Self::TagHistory,
        Self::UnlistedReferrer,
        Self::StaleReferrer,
        Self::Symlink,
        Self::Foreign,
        Self::UnfinishedTag,
        Self::UnfinishedDelete,
        Self::UploadWithoutStart,
        Self::Abandoned,
        Self::Leftover,
    ];

    /// A name for tables and machines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WrongContent => "wrong-content",
            Self::MissingContent => "missing-content",
            Self::SoundInQuarantine => "sound-in-quarantine",
            Self::Unreadable => "unreadable",
            Self::DamagedTag => "damaged-tag",
            Self::DanglingTag => "dangling-tag",
            Self::DamagedLink => "damaged-link",
            Self::LinkElsewhere => "link-elsewhere",
            Self::Unlinked => "unlinked",
            Self::WrongSize => "wrong-size",
            Self::NotAManifest => "not-a-manifest",
            Self::TagHistory => "tag-history",
            Self::UnlistedReferrer => "unlisted-referrer",
            Self::StaleReferrer => "stale-referrer",
            Self::Symlink => "symlink",
            Self::Foreign => "foreign",
            Self::UnfinishedTag => "unfinished-tag",
            Self::UnfinishedDelete => "unfinished-delete",
            Self::UploadWithoutStart => "upload-without-start",
            Self::Abandoned => "abandoned",
            Self::Leftover => "leftover",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// Where, below the volume's root.
    pub path: PathBuf,
    /// Whose it is, if it belongs to one repository.
    pub repository: Option<RepositoryName>,
    /// The content concerned, if it is known.
    pub digest: Option<Digest>,
    /// What it means for those who pull.
    pub meaning: String,
    /// The repair, if exactly one is certain.
    pub repair: Option<Repair>,
}

/// The repair of a finding. Paths lie below the volume's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Writes a link.
    WriteLink {
        /// The link.
        path: PathBuf,
        /// What it names.
        digest: Digest,
        /// Files without which it must not exist: what it belongs to was deleted.
        only_with: Vec<PathBuf>,
    },
    /// Moves content aside, so that it is copied or pushed again.
    Quarantine {
        /// The content.
        digest: Digest,
    },
    /// Moves sound content from the quarantine to its place.
    Restore {
        /// The content.
        digest: Digest,
        /// The file in the quarantine.
        path: PathBuf,
    },
    /// Removes a file that nothing reads.
    RemoveFile {
        /// The file.
        path: PathBuf,
    },
    /// Removes the folder of a tag that is not there.
    RemoveTag {
        /// The tag's folder.
        path: PathBuf,
    },
    /// Ends an abandoned upload.
    RemoveUpload {
        /// The upload's folder.
        path: PathBuf,
    },
    /// Writes when an upload began, so that every registry's own purge finds it.
    WriteStart {
        /// The upload's folder.
        upload: PathBuf,
    },
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriteLink { digest, .. } => write!(f, "writes the link to {digest}"),
            Self::Quarantine { .. } => f.write_str(
                "moves the bytes to the quarantine, so that they are copied or pushed again",
            ),
            Self::Restore { .. } => f.write_str("moves the sound bytes back to their place"),
            Self::RemoveFile { .. } => f.write_str("removes the file"),
            Self::RemoveTag { .. } => f.write_str("removes the tag's folder"),
            Self::RemoveUpload { .. } => f.write_str("removes the upload"),
            Self::WriteStart { .. } => {
                f.write_str("writes startedat from the time of the last byte")
            }
        }
    }
}

/// What became of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Repaired,
    /// It was not needed any more.
    Resolved,
}

/// Repairs one finding on the volume below `root`.
///
/// # Errors
/// The volume fails; the finding remains.
pub fn repair(
    volume: &(impl Volume + Clone + 'static),
    root: &Path,
    repair: &Repair,
) -> Result<Outcome> {
    let maintenance = Maintenance::new(Arc::new(volume.clone()), root);
    let is_done = match repair {
        Repair::WriteLink {
            path,
            digest,
            only_with,
        } => maintenance.write_link(path, digest, only_with),
        Repair::Quarantine { digest } => maintenance.quarantine(digest),
        Repair::Restore { digest, path } => maintenance.restore(digest, path),
        Repair::RemoveFile { path } => maintenance.remove_file(path),
        Repair::RemoveTag { path } => maintenance.remove_tag(path),
        Repair::RemoveUpload { path } => maintenance.remove_upload(path),
        Repair::WriteStart { upload } => maintenance.write_start(upload),
    };
    Ok(if is_done? {
        Outcome::Repaired
    } else {
        Outcome::Resolved
    })
}

/// The findings of `first` that `second`, planned from a later survey, has too: what changed in
/// between was work in progress.
pub fn confirm(first: Vec<Finding>, second: &[Finding]) -> Vec<Finding> {
    let again: BTreeSet<_> = second
        .iter()
        .map(|finding| (finding.kind, &finding.path, &finding.digest))
        .collect();
    first
        .into_iter()
        .filter(|finding| again.contains(&(finding.kind, &finding.path, &finding.digest)))
        .collect()
}

#[cfg(test)]
mod tests;
