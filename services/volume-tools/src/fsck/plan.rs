//! From a survey to findings and their repairs. Pure.
//!
//! A repair is planned only where one answer is possible: a link in a folder named by a digest can
//! only name that digest; a tag without content whose history holds one manifest that is there can
//! only have named that one. Everything else is said and left alone.

use std::path::{Path, PathBuf};

use holdfast_core::{
    digest::Digest,
    oci::Manifest,
    reference::{RepositoryName, Tag},
};

use holdfast_store::{
    Layout,
    survey::{Content, Inventory, Link, Oddity, Repository, TagFolder},
};

use super::{Finding, Kind, Policy, Repair};

/// What is wrong with a volume, harmful things first.
pub fn plan(inventory: &Inventory, policy: &Policy) -> Vec<Finding> {
    let mut plan = Plan {
        inventory,
        policy,
        layout: Layout::new(Path::new("")),
        findings: Vec::new(),
    };
    plan.contents();
    for (name, repository) in &inventory.repositories {
        Within {
            plan: &mut plan,
            name,
            repository,
        }
        .all();
    }
    plan.quarantined();
    plan.pending();
    plan.tombstones();
    plan.oddities();
    let mut findings = plan.findings;
    findings.sort_by(|a, b| (a.kind, &a.path).cmp(&(b.kind, &b.path)));
    findings.dedup_by(|a, b| (a.kind, &a.path) == (b.kind, &b.path));
    findings
}

struct Plan<'a> {
    inventory: &'a Inventory,
    policy: &'a Policy,
    layout: Layout,
    findings: Vec<Finding>,
}

impl Plan<'_> {
    fn push(
        &mut self,
        kind: Kind,
        path: PathBuf,
        owner: Option<&RepositoryName>,
        digest: Option<&Digest>,
        meaning: impl Into<String>,
        repair: Option<Repair>,
    ) {
        self.findings.push(Finding {
            kind,
            path,
            repository: owner.cloned(),
            digest: digest.cloned(),
            meaning: meaning.into(),
            repair,
        });
    }

    fn contents(&mut self) {
        for (digest, blob) in &self.inventory.blobs {
            if let Content::Wrong { actual } = &blob.content {
                let meaning = format!(
                    "the {} bytes hash to {actual}: pulls fail or bring wrong content",
                    blob.size
                );
                let repair = Some(Repair::Quarantine {
                    digest: digest.clone(),
                });
                let path = self.layout.blob(digest);
                self.push(
                    Kind::WrongContent,
                    path,
                    None,
                    Some(digest),
                    meaning,
                    repair,
                );
            }
        }
    }

    fn quarantined(&mut self) {
        for (digest, path) in &self.inventory.restorable {
            let repair = Repair::Restore {
                digest: digest.clone(),
                path: path.clone(),
            };
            let meaning =
                "the content is missing, and these bytes of it were moved aside and are sound";
            self.push(
                Kind::SoundInQuarantine,
                path.clone(),
                None,
                Some(digest),
                meaning,
                Some(repair),
            );
        }
    }

    fn pending(&mut self) {
        for pending in &self.inventory.pending {
            let owner = pending.repository.as_ref();
            let days = pending.age.as_secs() / 86_400;
            if pending.age >= self.policy.idle {
                let meaning = format!("{} bytes, without activity for {days} days", pending.size);
                let path = pending.path.clone();
                let repair = if owner.is_some() {
                    Repair::RemoveUpload { path }
                } else {
                    Repair::RemoveFile { path }
                };
                self.push(
                    Kind::Abandoned,
                    pending.path.clone(),
                    owner,
                    None,
                    meaning,
                    Some(repair),
                );
            } else if !pending.has_start && pending.age >= self.policy.in_flight {
                let repair = Repair::WriteStart {
                    upload: pending.path.clone(),
                };
                self.push(
                    Kind::UploadWithoutStart,
                    pending.path.clone(),
                    owner,
                    None,
                    "distribution's purge would never find it",
                    Some(repair),
                );
            }
        }
    }

    fn tombstones(&mut self) {
        for tombstone in &self.inventory.tombstones {
            if tombstone.age >= self.policy.in_flight {
                self.push(
                    Kind::UnfinishedDelete,
                    tombstone.path.clone(),
                    tombstone.repository.as_ref(),
                    Some(&tombstone.digest),
                    "the manifest was deleted and tags may still name it, unseen: a registry \
                     removes them when it starts, and every hour",
                    None,
                );
            }
        }
    }

    fn oddities(&mut self) {
        for (path, oddity) in &self.inventory.oddities {
            let (kind, meaning, repair) = match oddity {
                Oddity::Symlink => (
                    Kind::Symlink,
                    "a symbolic link or a special file: it is not followed, and what lies behind \
                     it is not served"
                        .to_owned(),
                    None,
                ),
                Oddity::Foreign => (
                    Kind::Foreign,
                    "it does not belong to the layout and is not served".to_owned(),
                    None,
                ),
                Oddity::Unreadable(cause) => {
                    (Kind::Unreadable, format!("the volume says: {cause}"), None)
                }
                Oddity::Temporary(age) if *age >= self.policy.in_flight => (
                    Kind::Leftover,
                    "left by a write that did not end; nothing reads it".to_owned(),
                    Some(Repair::RemoveFile { path: path.clone() }),
                ),
                Oddity::NfsLeftover(age) if *age >= self.policy.idle => (
                    Kind::Leftover,
                    "kept by NFS for a reader of a removed file that is long gone".to_owned(),
                    Some(Repair::RemoveFile { path: path.clone() }),
                ),
                Oddity::Temporary(_) | Oddity::NfsLeftover(_) => continue,
            };
            self.push(kind, path.clone(), None, None, meaning, repair);
        }
    }
}

/// What lies behind a link to a manifest.
enum Read<'a> {
    /// Nothing whole.
    Nothing,
    /// Something else.
    NoManifest,
    /// A manifest or index.
    Manifest(&'a Manifest),
}

/// The findings of one repository.
struct Within<'a, 'b> {
    plan: &'a mut Plan<'b>,
    name: &'a RepositoryName,
    repository: &'a Repository,
}

impl<'b> Within<'_, 'b> {
    fn all(&mut self) {
        for (digest, link) in &self.repository.layers {
            let path = self.plan.layout.layer_link(self.name, digest);
            self.link("blob", path, digest, link);
        }
        for (digest, link) in &self.repository.revisions {
            let path = self.plan.layout.revision_link(self.name, digest);
            self.link("manifest", path, digest, link);
            self.manifest(digest);
        }
        for (tag, folder) in &self.repository.tags {
            self.tag(tag, folder);
        }
        for ((subject, referrer), link) in &self.repository.referrers {
            self.referrer(subject, referrer, link);
        }
    }

    fn push(
        &mut self,
        kind: Kind,
        path: PathBuf,
        digest: Option<&Digest>,
        meaning: impl Into<String>,
        repair: Option<Repair>,
    ) {
        self.plan
            .push(kind, path, Some(self.name), digest, meaning, repair);
    }

    /// A link in a folder that is named by a digest.
    fn link(&mut self, what: &str, path: PathBuf, digest: &Digest, link: &Link) {
        let whole = self.plan.inventory.holds(digest);
        let repair = whole.then(|| Repair::WriteLink {
            path: path.clone(),
            digest: digest.clone(),
            only_with: vec![path.clone()],
        });
        match link {
            Link::Empty | Link::Garbage => {
                let state = if *link == Link::Empty {
                    "is empty"
                } else {
                    "names no digest"
                };
                let meaning = if whole {
                    format!(
                        "the link {state}: the {what} {digest} is not served from here, though \
                         its bytes are there"
                    )
                } else {
                    format!(
                        "the link {state}, and the bytes of {digest} are not there either: copy \
                         or push the image again"
                    )
                };
                self.push(Kind::DamagedLink, path, Some(digest), meaning, repair);
            }
            // One content under a name of each algorithm is an alias, and is served.
            Link::Names(target) if target != digest && target.algorithm() == digest.algorithm() => {
                let meaning = format!(
                    "the link names {target}: pulls of the {what} get that content instead"
                );
                self.push(Kind::LinkElsewhere, path, Some(digest), meaning, repair);
            }
            Link::Names(target) => {
                if !self.plan.inventory.blobs.contains_key(target)
                    && !self.plan.inventory.is_restorable(target)
                {
                    let meaning = format!(
                        "the bytes of the {what} {target} are not there: copy or push the image \
                         again"
                    );
                    self.push(Kind::MissingContent, path, Some(target), meaning, None);
                }
            }
        }
    }

    /// What a manifest of the repository refers to.
    fn manifest(&mut self, digest: &Digest) {
        let manifest = match self.read(digest) {
            Read::Nothing => return,
            Read::NoManifest => {
                let path = self.plan.layout.revision_link(self.name, digest);
                let meaning = "the content is no image manifest and no index: it is served as it \
                 is, and no runtime takes it";
                self.push(Kind::NotAManifest, path, Some(digest), meaning, None);
                return;
            }
            Read::Manifest(manifest) => manifest,
        };
        for part in manifest.parts().filter(|part| !part.is_foreign()) {
            if !self.repository.layers.contains_key(&part.digest) {
                self.unlinked(digest, &part.digest);
            }
            self.size(digest, &part.digest, part.size);
        }
        for child in &manifest.manifests {
            self.size(digest, &child.digest, child.size);
        }
        if let Some(subject) = &manifest.subject
            && !self
                .repository
                .referrers
                .contains_key(&(subject.clone(), digest.clone()))
            && !self.under_fallback_tag(subject, digest)
        {
            let path = self.plan.layout.referrer_link(self.name, subject, digest);
            let repair = Repair::WriteLink {
                path: path.clone(),
                digest: digest.clone(),
                only_with: vec![self.plan.layout.revision_link(self.name, digest)],
            };
            let meaning = format!(
                "{digest} is attached to {subject}, and the list of what is attached does not \
                 show it"
            );
            self.push(
                Kind::UnlistedReferrer,
                path,
                Some(digest),
                meaning,
                Some(repair),
            );
        }
    }

    /// The parsed content behind a revision.
    fn read(&self, digest: &Digest) -> Read<'b> {
        let inventory: &'b Inventory = self.plan.inventory;
        let target = match self.repository.revisions.get(digest) {
            Some(Link::Names(target)) => target,
            Some(Link::Empty | Link::Garbage) => digest,
            None => return Read::Nothing,
        };
        match inventory.documents.get(target) {
            None => Read::Nothing,
            Some(None) => Read::NoManifest,
            Some(Some(manifest)) => Read::Manifest(manifest),
        }
    }

    fn unlinked(&mut self, manifest: &Digest, part: &Digest) {
        let path = self.plan.layout.layer_link(self.name, part);
        if self.plan.inventory.is_restorable(part) {
            return;
        }
        if !self.plan.inventory.holds(part) {
            let meaning = format!(
                "the manifest {manifest} needs {part}, whose bytes are not there: copy or push \
                 the image again"
            );
            self.push(Kind::MissingContent, path, Some(part), meaning, None);
            return;
        }
        // If the whole folder is gone, this is no deletion of a single blob.
        let (meaning, repair) = if self.repository.has_layers {
            (
                format!(
                    "the manifest {manifest} needs {part}, which was deleted from this \
                     repository: delete the manifest, or push the image again"
                ),
                None,
            )
        } else {
            (
                format!(
                    "the manifest {manifest} needs {part}, and the repository has lost all its \
                     links to blobs"
                ),
                Some(Repair::WriteLink {
                    path: path.clone(),
                    digest: part.clone(),
                    only_with: vec![self.plan.layout.revision_link(self.name, manifest)],
                }),
            )
        };
        self.push(Kind::Unlinked, path, Some(part), meaning, repair);
    }

    fn size(&mut self, manifest: &Digest, part: &Digest, expected: u64) {
        let Some(blob) = self.plan.inventory.blobs.get(part) else {
            return;
        };
        if blob.content == Content::Sound && blob.size != expected {
            let path = self.plan.layout.revision_link(self.name, manifest);
            let meaning = format!(
                "the manifest says that {part} has {expected} bytes, it has {}, and they are \
                 sound: runtimes refuse the image",
                blob.size
            );
            self.push(Kind::WrongSize, path, Some(manifest), meaning, None);
        }
    }

    /// Whether clients of registries without a list of referrers keep it under the tag made for
    /// that.
    fn under_fallback_tag(&self, subject: &Digest, referrer: &Digest) -> bool {
        let hex: String = subject.hex().chars().take(64).collect();
        let Ok(tag) = Tag::parse(&format!("{}-{hex}", subject.algorithm())) else {
            return false;
        };
        let Some(Link::Names(list)) = self
            .repository
            .tags
            .get(&tag)
            .and_then(|tag| tag.current.as_ref())
        else {
            return false;
        };
        match self.read(list) {
            Read::Manifest(list) => list.manifests.iter().any(|child| child.digest == *referrer),
            Read::Nothing | Read::NoManifest => false,
        }
    }

    fn tag(&mut self, tag: &Tag, folder: &TagFolder) {
        let link = self.plan.layout.tag_link(self.name, tag);
        for (digest, entry) in &folder.index {
            if matches!(entry, Link::Names(target) if target == digest) {
                continue;
            }
            let path = self.plan.layout.tag_index_link(self.name, tag, digest);
            let repair = if self.has_manifest(digest) {
                Repair::WriteLink {
                    path: path.clone(),
                    digest: digest.clone(),
                    only_with: vec![
                        path.clone(),
                        self.plan.layout.revision_link(self.name, digest),
                    ],
                }
            } else {
                Repair::RemoveFile { path: path.clone() }
            };
            let meaning = format!("an entry of the history of the tag {tag} names nothing");
            self.push(Kind::DamagedLink, path, Some(digest), meaning, Some(repair));
        }
        match &folder.current {
            None => {
                if folder.age >= self.plan.policy.in_flight {
                    let path = self.plan.layout.tag(self.name, tag);
                    let repair = Repair::RemoveTag { path: path.clone() };
                    let meaning = format!(
                        "the tag {tag} was being written or deleted and is not there; \
                         distribution lists it nevertheless"
                    );
                    self.push(Kind::UnfinishedTag, path, None, meaning, Some(repair));
                }
            }
            Some(Link::Empty | Link::Garbage) => self.damaged_tag(tag, folder, link),
            Some(Link::Names(digest)) => {
                if self.is_deleted(digest) {
                    // Its delete is under way, or reported as one that did not end.
                } else if !self.has_manifest(digest) {
                    let meaning = format!(
                        "the tag {tag} names {digest}, which the repository does not have: copy \
                         or push the image again, or delete the tag"
                    );
                    self.push(Kind::DanglingTag, link, Some(digest), meaning, None);
                } else if !folder.index.contains_key(digest) {
                    let path = self.plan.layout.tag_index_link(self.name, tag, digest);
                    let revision = self.plan.layout.revision_link(self.name, digest);
                    let repair = Repair::WriteLink {
                        path: path.clone(),
                        digest: digest.clone(),
                        only_with: vec![link, revision],
                    };
                    let meaning = format!(
                        "the history of the tag {tag} lacks the manifest it names: tools that go \
                         by histories do not find it"
                    );
                    self.push(Kind::TagHistory, path, Some(digest), meaning, Some(repair));
                }
            }
        }
    }

    fn damaged_tag(&mut self, tag: &Tag, folder: &TagFolder, link: PathBuf) {
        let known: Vec<&Digest> = folder
            .index
            .keys()
            .filter(|digest| self.has_manifest(digest))
            .collect();
        let (meaning, repair) = match known.as_slice() {
            [] => (
                format!(
                    "the tag {tag} names nothing, and its history no manifest that is there: \
                     copy or push the image again"
                ),
                None,
            ),
            [only] => (
                format!(
                    "the tag {tag} names nothing; its history holds one manifest that is there"
                ),
                Some(Repair::WriteLink {
                    path: link.clone(),
                    digest: (*only).clone(),
                    only_with: vec![
                        link.clone(),
                        self.plan.layout.revision_link(self.name, only),
                    ],
                }),
            ),
            several => {
                let several: Vec<String> = several.iter().map(ToString::to_string).collect();
                (
                    format!(
                        "the tag {tag} names nothing; push or tag again which of these it was: {}",
                        several.join(", ")
                    ),
                    None,
                )
            }
        };
        self.push(Kind::DamagedTag, link, None, meaning, repair);
    }

    fn referrer(&mut self, subject: &Digest, referrer: &Digest, link: &Link) {
        let path = self.plan.layout.referrer_link(self.name, subject, referrer);
        if !self.repository.revisions.contains_key(referrer) {
            let meaning = format!("{referrer} is gone; readers look again and leave it out");
            let repair = Repair::RemoveFile { path: path.clone() };
            self.push(
                Kind::StaleReferrer,
                path,
                Some(referrer),
                meaning,
                Some(repair),
            );
        } else if *link != Link::Names(referrer.clone()) {
            let repair = Repair::WriteLink {
                path: path.clone(),
                digest: referrer.clone(),
                only_with: vec![self.plan.layout.revision_link(self.name, referrer)],
            };
            let meaning = format!("{referrer} is not listed as attached to {subject}");
            self.push(
                Kind::DamagedLink,
                path,
                Some(referrer),
                meaning,
                Some(repair),
            );
        }
    }

    /// Whether the manifest was deleted a moment ago, and its tags may not be removed yet.
    fn is_deleted(&self, digest: &Digest) -> bool {
        !self.repository.revisions.contains_key(digest)
            && self.plan.inventory.tombstones.iter().any(|tombstone| {
                tombstone.repository.as_ref() == Some(self.name) && tombstone.digest == *digest
            })
    }

    /// Whether the repository has the manifest with its bytes after all repairs.
    fn has_manifest(&self, digest: &Digest) -> bool {
        match self.repository.revisions.get(digest) {
            Some(Link::Names(target)) if target.algorithm() != digest.algorithm() => {
                self.plan.inventory.holds_or_can_restore(target)
            }
            Some(_) => self.plan.inventory.holds_or_can_restore(digest),
            None => false,
        }
    }
}
