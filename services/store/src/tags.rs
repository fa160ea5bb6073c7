//! Tags of a repository: the digest that each names now, and the history of those before.

use std::collections::BTreeSet;

use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::{RepositoryName, Tag},
};

use crate::{
    Layout, Result, deletes::Deletes, durable::DurableFs, files, layout::names, links,
    repositories, volume::Volume,
};

/// The tags of all repositories.
#[derive(Clone, Debug)]
pub(crate) struct Tags {
    files: DurableFs,
    layout: Layout,
    deletes: Deletes,
}

/// Where the digest of a tag was found.
#[derive(Debug)]
pub(crate) enum Target {
    /// In its link.
    Link(Digest),
    /// In its history, because the link is damaged.
    History(Digest),
}

impl Target {
    pub(crate) fn into_digest(self) -> Digest {
        match self {
            Self::Link(digest) | Self::History(digest) => digest,
        }
    }
}

/// The digest that a tag names. A link that is there but empty is a crash of an older registry:
/// then the tag's history decides, if it holds exactly one manifest that is there. Changes nothing.
pub(crate) fn read(
    volume: &dyn Volume,
    layout: &Layout,
    repo: &RepositoryName,
    tag: &Tag,
) -> Result<Option<Target>> {
    let path = layout.tag_link(repo, tag);
    if let Some(digest) = links::read(volume, &path)? {
        return Ok(Some(Target::Link(digest)));
    }
    if !links::is_damaged(volume, &path)? {
        // Absent, or set a moment ago.
        return Ok(links::read(volume, &path)?.map(Target::Link));
    }
    let mut known = Vec::new();
    for digest in links::list(volume, &layout.tag_index(repo, tag))? {
        if links::read(volume, &layout.revision_link(repo, &digest))?.is_some()
            && files::metadata(volume, &layout.blob(&digest))?.is_some_and(|found| found.is_file())
        {
            known.push(digest);
        }
    }
    Ok(match known.as_slice() {
        [only] => Some(Target::History(only.clone())),
        _ => None,
    })
}

impl Tags {
    pub(crate) fn new(files: DurableFs, layout: Layout, deletes: Deletes) -> Self {
        Self {
            files,
            layout,
            deletes,
        }
    }

    /// Points a tag at a manifest.
    pub(crate) fn set(&self, repo: &RepositoryName, tag: &Tag, digest: &Digest) -> Result<()> {
        let history = self.layout.tag_index_link(repo, tag, digest);
        let current = self.layout.tag_link(repo, tag);
        loop {
            links::ensure(&self.files, &history, digest)?;
            links::ensure(&self.files, &current, digest)?;
            if self.deletes.abort_untags(repo, digest)? {
                // The state of the link must be durable before it is checked.
                self.files.sync_removal(&current)?;
                continue;
            }
            // A concurrent delete of the tag may have removed the history between the two writes.
            if links::read(self.files.volume(), &history)?.is_some() {
                return Ok(());
            }
        }
    }

    /// All tags of a repository in ASCII order; `None` if the repository does not exist.
    pub(crate) fn list(&self, repo: &RepositoryName) -> Result<Option<Vec<Tag>>> {
        if !repositories::exists(self.files.volume(), &self.layout, repo)? {
            return Ok(None);
        }
        self.list_after(repo, None, usize::MAX).map(Some)
    }

    /// At most `limit` tags behind `after`, and whether there are more; `None` if the repository
    /// does not exist.
    pub(crate) fn page(
        &self,
        repo: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Option<(Vec<Tag>, bool)>> {
        if !repositories::exists(self.files.volume(), &self.layout, repo)? {
            return Ok(None);
        }
        let mut page = self.list_after(repo, after, limit.saturating_add(1))?;
        let more = limit > 0 && page.len() > limit;
        page.truncate(limit);
        Ok(Some((page, more)))
    }

    pub(crate) fn get(&self, repo: &RepositoryName, tag: &Tag) -> Result<Option<Digest>> {
        Ok(match read(self.files.volume(), &self.layout, repo, tag)? {
            Some(Target::History(digest)) => {
                tracing::warn!(
                    image.repository = %repo, image.tag = %tag, image.digest = %digest,
                    "tag without content was repaired from its history"
                );
                links::write(&self.files, &self.layout.tag_link(repo, tag), &digest)?;
                Some(digest)
            }
            found => found.map(Target::into_digest),
        })
    }

    pub(crate) fn delete(&self, repo: &RepositoryName, tag: &Tag) -> Result<bool> {
        let link = self.layout.tag_link(repo, tag);
        let is_hidden = self.names_one_of(repo, tag, &self.deletes.deleted_manifests(repo)?)?;
        let removed = self.files.remove_file(&link)?;
        // The history before the folder of the link: who sets the tag again at this moment keeps
        // both or loses both.
        files::remove_tree(self.files.volume(), &self.layout.tag_index(repo, tag))?;
        files::remove_tree(self.files.volume(), files::parent(&link)?)?;
        files::remove_tree(self.files.volume(), &self.layout.tag(repo, tag))?;
        Ok(removed && !is_hidden)
    }

    /// Whether a tag names one of these manifests. Without manifests the tag is not read.
    fn names_one_of(
        &self,
        repo: &RepositoryName,
        tag: &Tag,
        digests: &BTreeSet<Digest>,
    ) -> Result<bool> {
        Ok(!digests.is_empty()
            && self
                .get(repo, tag)?
                .is_some_and(|digest| digests.contains(&digest)))
    }

    fn list_after(
        &self,
        repo: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Tag>> {
        // Before the names: a tombstone is removed only after the tags of its manifest.
        let hidden = self.deletes.deleted_manifests(repo)?;
        let folder = self.layout.tags(repo);
        let mut tags = Vec::new();
        for name in links::names(self.files.volume(), &folder)? {
            if tags.len() >= limit {
                break;
            }
            if after.is_some_and(|after| name.as_str() <= after) {
                continue;
            }
            let Ok(tag) = Tag::parse(&name) else { continue };
            if self.names_one_of(repo, &tag, &hidden)? {
                continue;
            }
            let link = folder.join(&name).join(names::TAG_LINK);
            let Some(metadata) = files::metadata(self.files.volume(), &link)? else {
                continue;
            };
            // One look at the size tells a link from what a crash of an older registry left: then
            // the tag's history may settle it.
            let is_link = [Algorithm::Sha256, Algorithm::Sha512]
                .iter()
                .any(|algorithm| {
                    metadata.len == (algorithm.as_str().len() + 1 + algorithm.hex_length()) as u64
                });
            if is_link || self.get(repo, &tag)?.is_some() {
                tags.push(tag);
            }
        }
        Ok(tags)
    }
}
