//! Reads a volume into an [`Inventory`]. Changes nothing and follows no symbolic link. An error of
//! the volume at one place is a finding and does not end the survey. Links are read before the
//! contents they name, so that a write under way never looks broken.

mod inventory;
mod own;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use holdfast_core::{
    digest::{Algorithm, Digest},
    oci::{MANIFEST_BYTES, Manifest},
    reference::{RepositoryName, Tag},
};

pub use inventory::{
    Blob, Content, Inventory, Link, Oddity, Pending, Repository, TagFolder, Tombstone,
};

use crate::{
    Error, Layout, Result, UploadId, deletes,
    error::absent,
    files,
    layout::{self, names},
    repositories::{self, MAX_NAME_BYTES},
    volume::{Kind, Volume},
};

/// Longest link that is read; a digest of any known algorithm is shorter.
const MAX_LINK_BYTES: u64 = 256;

/// Which blobs are hashed, beyond manifests and what looks wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Depth {
    /// None.
    Quick,
    /// These.
    Only(BTreeSet<Digest>),
    /// All.
    Deep,
}

/// How far a survey is.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// Reads this repository.
    Repository(&'a str),
    /// Lists the blobs.
    Contents,
    /// Hashes blobs; starts again for those of the quarantine.
    Hashing {
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// Surveys the volume below `root`; ages are counted back from `now`.
///
/// # Errors
/// Only when there is no volume of ours or of distribution at all: [`Error::Io`] with "not found".
pub fn survey(
    volume: &dyn Volume,
    root: &Path,
    now: SystemTime,
    depth: &Depth,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Inventory> {
    let layout = Layout::new(root);
    let there = [layout.repositories(), layout.blobs()]
        .iter()
        .any(|folder| matches!(volume.metadata(folder), Ok(found) if found.is_dir()));
    if !there {
        return Err(Error::io("find", layout.repositories())(
            std::io::ErrorKind::NotFound.into(),
        ));
    }
    let mut survey = Survey {
        volume,
        root,
        layout,
        now,
        found: Inventory::default(),
    };
    // Before the tags: a tombstone is removed only after the tags of its manifest.
    survey.tombstones();
    survey.repositories(progress);
    progress(Progress::Contents);
    survey.own();
    survey.blobs();
    survey.documents();
    survey.contents(depth, progress);
    survey.quarantined(progress);
    Ok(survey.found)
}

struct Survey<'a> {
    volume: &'a dyn Volume,
    root: &'a Path,
    layout: Layout,
    now: SystemTime,
    found: Inventory,
}

impl Survey<'_> {
    fn repositories(&mut self, progress: &mut dyn FnMut(Progress<'_>)) {
        let mut pending = vec![(self.layout.repositories(), String::new())];
        while let Some((folder, name)) = pending.pop() {
            let mut own = Vec::new();
            for entry in self.named(&folder) {
                let path = folder.join(&entry.name);
                if entry.kind != Kind::Dir {
                    self.odd(&path, Oddity::Foreign);
                } else if entry.name.starts_with('_') {
                    own.push(entry.name);
                } else {
                    let name = repositories::join(&name, &entry.name);
                    if name.len() <= MAX_NAME_BYTES {
                        pending.push((path, name));
                    } else {
                        self.odd(&path, Oddity::Foreign);
                    }
                }
            }
            if own.is_empty() {
                continue;
            }
            progress(Progress::Repository(&name));
            match RepositoryName::parse(&name) {
                Ok(repo) => self.repository(&repo, &folder, &own),
                Err(_) => self.odd(&folder, Oddity::Foreign),
            }
        }
    }

    fn repository(&mut self, repo: &RepositoryName, folder: &Path, own: &[String]) {
        let mut repository = Repository::default();
        for name in own {
            let folder = folder.join(name);
            match name.as_str() {
                names::LAYERS => {
                    repository.has_layers = true;
                    repository.layers = self.links(&folder).into_iter().collect();
                }
                names::MANIFESTS => self.manifests(&folder, &mut repository),
                names::UPLOADS => self.uploads(repo, &folder),
                names::REFERRERS => {
                    for (subject, folder) in self.digest_folders(&folder) {
                        for (referrer, link) in self.links(&folder) {
                            repository
                                .referrers
                                .insert((subject.clone(), referrer), link);
                        }
                    }
                }
                _ => {}
            }
        }
        self.found.repositories.insert(repo.clone(), repository);
    }

    fn manifests(&mut self, folder: &Path, repository: &mut Repository) {
        for entry in self.entries(folder) {
            let path = folder.join(&entry.name);
            match (entry.name.as_str(), entry.kind) {
                (names::REVISIONS, Kind::Dir) => {
                    repository.revisions = self.links(&path).into_iter().collect();
                }
                (names::TAGS, Kind::Dir) => {
                    for entry in self.named(&path) {
                        let path = path.join(&entry.name);
                        match (Tag::parse(&entry.name), entry.kind) {
                            (Ok(tag), Kind::Dir) => {
                                let tag_folder = self.tag(&path);
                                repository.tags.insert(tag, tag_folder);
                            }
                            _ => self.odd(&path, Oddity::Foreign),
                        }
                    }
                }
                _ => self.odd(&path, Oddity::Foreign),
            }
        }
    }

    fn tag(&mut self, folder: &Path) -> TagFolder {
        // The tag is written after its history: read before it, it never names what the history
        // lacks.
        let current = self.link(&folder.join(names::CURRENT));
        let mut index = Vec::new();
        for entry in self.entries(folder) {
            match (entry.name.as_str(), entry.kind) {
                (names::INDEX, Kind::Dir) => index = self.links(&folder.join(names::INDEX)),
                (names::CURRENT, Kind::Dir) => {}
                _ => self.odd(&folder.join(&entry.name), Oddity::Foreign),
            }
        }
        TagFolder {
            current,
            index: index.into_iter().collect(),
            age: self.age(&[
                folder.to_owned(),
                folder.join(names::INDEX),
                folder.join(names::CURRENT),
            ]),
        }
    }

    /// The links of `folder/<algorithm>/<hex>/link` by the names of their folders.
    fn links(&mut self, folder: &Path) -> Vec<(Digest, Link)> {
        self.digest_folders(folder)
            .into_iter()
            .filter_map(|(digest, folder)| Some((digest, self.link(&folder)?)))
            .collect()
    }

    /// The link in a folder that holds nothing else.
    fn link(&mut self, folder: &Path) -> Option<Link> {
        let mut found = None;
        for entry in self.entries(folder) {
            let path = folder.join(&entry.name);
            if entry.name != names::LINK || entry.kind != Kind::File {
                self.odd(&path, Oddity::Foreign);
                continue;
            }
            match files::read(self.volume, &path, MAX_LINK_BYTES) {
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    let text = String::from_utf8(bytes).unwrap_or_else(|_| "?".to_owned());
                    found = Some(match text.trim().parse() {
                        Ok(digest) => Link::Names(digest),
                        Err(_) if text.trim().is_empty() => Link::Empty,
                        Err(_) => Link::Garbage,
                    });
                }
                Err(error) => self.unreadable(&path, &error),
            }
        }
        found
    }

    /// The folders `folder/<algorithm>/<hex>`.
    fn digest_folders(&mut self, folder: &Path) -> Vec<(Digest, PathBuf)> {
        let mut found = Vec::new();
        for entry in self.entries(folder) {
            let path = folder.join(&entry.name);
            let (Ok(algorithm), Kind::Dir) = (entry.name.parse(), entry.kind) else {
                self.odd(&path, Oddity::Foreign);
                continue;
            };
            self.hex_folders(&path, algorithm, &mut found);
        }
        found
    }

    fn hex_folders(
        &mut self,
        folder: &Path,
        algorithm: Algorithm,
        found: &mut Vec<(Digest, PathBuf)>,
    ) {
        for entry in self.entries(folder) {
            let path = folder.join(&entry.name);
            match (Digest::from_hex(algorithm, &entry.name), entry.kind) {
                (Ok(digest), Kind::Dir) => found.push((digest, path)),
                _ => self.odd(&path, Oddity::Foreign),
            }
        }
    }

    fn uploads(&mut self, repo: &RepositoryName, folder: &Path) {
        for entry in self.entries(folder) {
            let path = folder.join(&entry.name);
            if entry.kind != Kind::Dir || UploadId::parse(&entry.name).is_none() {
                self.odd(&path, Oddity::Foreign);
                continue;
            }
            let data = OsStr::new(names::DATA);
            // The bytes, at rest or with a writer that is at work or has stopped.
            let is_left = |name: &str| {
                layout::is_leftover(name) && !is_partial(name, OsStr::new(names::DATA))
            };
            let files = self.entries_but(&path, is_left);
            let mut paths = vec![path.clone()];
            paths.extend(files.iter().map(|entry| path.join(&entry.name)));
            let sizes = files
                .iter()
                .filter(|entry| entry.name.as_str() == data || is_partial(&entry.name, data));
            self.found.pending.push(Pending {
                repository: Some(repo.clone()),
                age: self.age(&paths),
                size: sizes
                    .map(|entry| self.size(&path.join(&entry.name)))
                    .max()
                    .unwrap_or_default(),
                has_start: files.iter().any(|entry| entry.name == names::STARTED_AT),
                path: self.relative(&path),
            });
        }
    }

    /// Deletes whose tags may not be removed yet.
    fn tombstones(&mut self) {
        let folder = self.layout.deletes();
        for entry in self.entries(&folder) {
            let path = folder.join(&entry.name);
            let Some(digest) = deletes::tombstone_digest(&entry.name) else {
                continue;
            };
            let entries = self.named(&path);
            self.found.tombstones.push(Tombstone {
                repository: entries
                    .iter()
                    .find_map(|entry| deletes::decode_repository(&entry.name)),
                age: self.age(std::slice::from_ref(&path)),
                path: self.relative(&path),
                digest,
            });
        }
    }

    fn blobs(&mut self) {
        let blobs = self.layout.blobs();
        for algorithm in self.entries(&blobs) {
            let folder = blobs.join(&algorithm.name);
            let (Ok(parsed), Kind::Dir) = (algorithm.name.parse(), algorithm.kind) else {
                self.odd(&folder, Oddity::Foreign);
                continue;
            };
            for prefix in self.entries(&folder) {
                let folder = folder.join(&prefix.name);
                if prefix.kind != Kind::Dir {
                    self.odd(&folder, Oddity::Foreign);
                    continue;
                }
                let mut found = Vec::new();
                self.hex_folders(&folder, parsed, &mut found);
                for (digest, folder) in found {
                    if digest.hex().starts_with(&prefix.name) {
                        self.blob(digest, &folder);
                    } else {
                        self.odd(&folder, Oddity::Foreign);
                    }
                }
            }
        }
    }

    fn blob(&mut self, digest: Digest, folder: &Path) {
        for entry in self.entries(folder) {
            let path = folder.join(&entry.name);
            if entry.name != names::DATA || entry.kind != Kind::File {
                self.odd(&path, Oddity::Foreign);
                continue;
            }
            match files::metadata(self.volume, &path) {
                Ok(Some(metadata)) => {
                    let blob = Blob {
                        size: metadata.len,
                        content: Content::Unread,
                    };
                    self.found.blobs.insert(digest.clone(), blob);
                }
                Ok(None) => {}
                Err(error) => self.unreadable(&path, &error),
            }
        }
    }

    /// Reads and hashes everything that is linked as a manifest.
    fn documents(&mut self) {
        let wanted: BTreeSet<Digest> = self
            .found
            .repositories
            .values()
            .flat_map(|repository| &repository.revisions)
            .map(|(digest, link)| match link {
                Link::Names(target) => target.clone(),
                Link::Empty | Link::Garbage => digest.clone(),
            })
            .collect();
        for digest in wanted {
            let Some(blob) = self.found.blobs.get_mut(&digest) else {
                continue;
            };
            if blob.size > MANIFEST_BYTES {
                self.found.documents.insert(digest, None);
                continue;
            }
            let path = self.layout.blob(&digest);
            match files::read(self.volume, &path, MANIFEST_BYTES) {
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    self.found.hashed_bytes += bytes.len() as u64;
                    let actual = crate::Hasher::digest(digest.algorithm(), &bytes);
                    if actual == digest {
                        blob.content = Content::Sound;
                        self.found
                            .documents
                            .insert(digest, Manifest::parse(&bytes).ok());
                    } else {
                        blob.content = Content::Wrong { actual };
                    }
                }
                Err(error) => self.unreadable(&path, &error),
            }
        }
    }

    /// Hashes what `depth` says, and in any case what has not the size that a manifest gives it.
    fn contents(&mut self, depth: &Depth, progress: &mut dyn FnMut(Progress<'_>)) {
        let mut suspects: BTreeSet<Digest> = self
            .found
            .documents
            .values()
            .flatten()
            .flat_map(Manifest::references)
            .map(|part| (&part.digest, part.size))
            .filter(|(digest, size)| {
                self.found
                    .blobs
                    .get(*digest)
                    .is_some_and(|blob| blob.size != *size)
            })
            .map(|(digest, _)| digest.clone())
            .collect();
        let found = &self.found.blobs;
        suspects.extend(
            found
                .iter()
                .filter(|(_, blob)| blob.size == 0)
                .map(|(digest, _)| digest.clone()),
        );
        match depth {
            Depth::Quick => {}
            Depth::Only(digests) => suspects.extend(digests.iter().cloned()),
            Depth::Deep => suspects.extend(found.keys().cloned()),
        }
        suspects.retain(|digest| {
            found
                .get(digest)
                .is_some_and(|blob| blob.content == Content::Unread)
        });
        let total = suspects
            .iter()
            .filter_map(|digest| found.get(digest))
            .map(|blob| blob.size)
            .sum();
        let mut done = 0;
        for digest in suspects {
            let path = self.layout.blob(&digest);
            let hashed = files::hash(self.volume, &path, digest.algorithm(), |bytes| {
                done += bytes;
                progress(Progress::Hashing { done, total });
            });
            match hashed {
                Ok(Some((size, actual))) => {
                    self.found.hashed_bytes += size;
                    if let Some(blob) = self.found.blobs.get_mut(&digest) {
                        blob.size = size;
                        blob.content = if actual == digest {
                            Content::Sound
                        } else {
                            Content::Wrong { actual }
                        };
                    }
                }
                Ok(None) => drop(self.found.blobs.remove(&digest)),
                Err(error) => self.unreadable(&path, &error),
            }
        }
    }

    /// The entries of a folder without what is odd about them, which is noted.
    fn entries(&mut self, folder: &Path) -> Vec<Entry> {
        self.entries_but(folder, layout::is_leftover)
    }

    /// [`Survey::entries`] of a folder of tags or of repositories, where a legal name may end in
    /// `.tmp`.
    fn named(&mut self, folder: &Path) -> Vec<Entry> {
        self.entries_but(folder, layout::is_hidden)
    }

    fn entries_but(&mut self, folder: &Path, is_left: fn(&str) -> bool) -> Vec<Entry> {
        let all = match list(self.volume, folder) {
            Ok(all) => all,
            Err(error) => {
                self.unreadable(folder, &error);
                return Vec::new();
            }
        };
        let mut plain = Vec::new();
        for entry in all {
            let path = folder.join(&entry.name);
            if entry.kind == Kind::Other {
                self.odd(&path, Oddity::Symlink);
            } else if is_left(&entry.name) {
                let age = self.age(std::slice::from_ref(&path));
                let oddity = if entry.name.starts_with(".nfs") {
                    Oddity::NfsLeftover(age)
                } else {
                    Oddity::Temporary(age)
                };
                self.odd(&path, oddity);
            } else if entry.is_text {
                plain.push(entry);
            } else {
                self.odd(&path, Oddity::Foreign);
            }
        }
        plain
    }

    /// Since the newest of these changed; zero when none is there, so that what vanishes is young.
    fn age(&self, paths: &[PathBuf]) -> Duration {
        let newest = paths
            .iter()
            .filter_map(|path| self.volume.metadata(path).ok()?.modified)
            .max();
        newest
            .and_then(|newest| self.now.duration_since(newest).ok())
            .unwrap_or_default()
    }

    fn odd(&mut self, path: &Path, oddity: Oddity) {
        let path = self.relative(path);
        self.found.oddities.push((path, oddity));
    }

    fn unreadable(&mut self, path: &Path, error: &Error) {
        let cause =
            std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
        self.odd(path, Oddity::Unreadable(cause));
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.root).unwrap_or(path).to_owned()
    }

    fn size(&self, path: &Path) -> u64 {
        self.volume.metadata(path).map_or(0, |found| found.len)
    }
}

/// A name in a folder.
#[derive(Clone, Debug)]
struct Entry {
    /// The name; what is no UTF-8 is replaced, and `is_text` is false.
    name: String,
    /// Whether the name is text.
    is_text: bool,
    /// What it stands for.
    kind: Kind,
}

/// The names in a folder, sorted; none if it is absent.
fn list(volume: &dyn Volume, folder: &Path) -> Result<Vec<Entry>> {
    let entries = absent(volume.list(folder)).map_err(Error::io("list", folder))?;
    let mut found: Vec<_> = entries
        .into_iter()
        .flatten()
        .map(|entry| Entry {
            is_text: entry.name.to_str().is_some(),
            name: entry.name.to_string_lossy().into_owned(),
            kind: entry.kind,
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn is_partial(entry: &str, name: &OsStr) -> bool {
    layout::is_temporary_of(OsStr::new(entry), name)
}
