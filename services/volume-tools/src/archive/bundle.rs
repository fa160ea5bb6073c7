//! Everything that belongs to one image: the manifests from the top down and the contents they
//! need. Pure over what fetches them.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_core::{
    digest::Digest,
    oci::{Descriptor, IMAGE_DEPTH, IMAGE_MANIFEST_BYTES, IMAGE_MANIFESTS, Manifest, Platform},
};

use super::{Error, Result};

/// Where manifests and contents are: a repository of a volume, or an archive.
pub trait Fetch {
    /// The bytes of a manifest, checked against its digest; `None` if it is not there.
    fn manifest(&mut self, digest: &Digest) -> Result<Option<Vec<u8>>>;

    /// The size of a content; `None` if it is not there.
    fn size(&mut self, digest: &Digest) -> Result<Option<u64>>;
}

/// An image with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Its name.
    pub digest: Digest,
    /// Media type of the top.
    pub media_type: String,
    /// Manifests, children before the index that lists them, the top last.
    pub manifests: Vec<(Digest, Vec<u8>)>,
    /// Contents and their sizes.
    pub blobs: BTreeMap<Digest, u64>,
    /// Entries of indexes that are not there, or were not asked for.
    pub left_out: Vec<Descriptor>,
    /// Platforms of the images that are there, as the index gives them; empty for a single image.
    pub platforms: Vec<Platform>,
    /// The configuration of a single image.
    pub config: Option<Digest>,
    /// Attached manifests and what they are attached to.
    pub subjects: Vec<(Digest, Digest)>,
}

impl Bundle {
    /// Bytes of all contents and manifests.
    pub fn bytes(&self) -> u64 {
        let manifests: u64 = self
            .manifests
            .iter()
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        manifests + self.blobs.values().sum::<u64>()
    }

    /// Collects the image `digest`; of an index only the images for `platforms`, all of them if
    /// that is empty. An index stays byte for byte as it is, whatever of it is there: a copy
    /// for the platforms of one cluster is whole for that cluster.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when an image lacks something, [`Error::Platform`] when none is for a
    /// platform that was asked for.
    pub fn collect(fetch: &mut dyn Fetch, digest: &Digest, platforms: &[Platform]) -> Result<Self> {
        let mut collecting = Collecting {
            fetch,
            platforms,
            seen: BTreeSet::new(),
            manifest_bytes: 0,
            bundle: Self {
                digest: digest.clone(),
                media_type: String::new(),
                manifests: Vec::new(),
                blobs: BTreeMap::new(),
                left_out: Vec::new(),
                platforms: Vec::new(),
                config: None,
                subjects: Vec::new(),
            },
        };
        let Some(manifest) = collecting.manifest(digest, 0)? else {
            return Err(Error::Incomplete {
                digest: digest.clone(),
            });
        };
        let mut bundle = collecting.bundle;
        manifest
            .media_type
            .as_str()
            .clone_into(&mut bundle.media_type);
        bundle.config = manifest.config.map(|config| config.digest);
        Ok(bundle)
    }
}

struct Collecting<'a> {
    fetch: &'a mut dyn Fetch,
    platforms: &'a [Platform],
    seen: BTreeSet<Digest>,
    manifest_bytes: u64,
    bundle: Bundle,
}

impl Collecting<'_> {
    /// Takes a manifest and all below it; `None` if it is not there.
    fn manifest(&mut self, digest: &Digest, depth: usize) -> Result<Option<Manifest>> {
        let Some(bytes) = self.fetch.manifest(digest)? else {
            return Ok(None);
        };
        let manifest = Manifest::parse(&bytes)
            .map_err(|error| Error::refused(format!("{digest}: {error}")))?;
        if !self.seen.insert(digest.clone()) {
            return Ok(Some(manifest));
        }
        self.manifest_bytes += bytes.len() as u64;
        if depth > IMAGE_DEPTH
            || self.seen.len() > IMAGE_MANIFESTS
            || self.manifest_bytes > IMAGE_MANIFEST_BYTES
        {
            return Err(Error::refused(format!(
                "{digest} holds more indexes or images than any image needs"
            )));
        }
        for part in manifest.parts() {
            match self.fetch.size(&part.digest)? {
                Some(size) if size == part.size => {
                    self.bundle.blobs.insert(part.digest.clone(), size);
                }
                Some(_) => {
                    return Err(Error::Damaged {
                        digest: part.digest.clone(),
                    });
                }
                None if part.is_foreign() => {}
                None => {
                    return Err(Error::Incomplete {
                        digest: part.digest.clone(),
                    });
                }
            }
        }
        if manifest.is_index() {
            self.children(&manifest.manifests, depth)?;
        }
        if let Some(subject) = &manifest.subject {
            self.bundle.subjects.push((digest.clone(), subject.clone()));
        }
        self.bundle.manifests.push((digest.clone(), bytes));
        Ok(Some(manifest))
    }

    fn children(&mut self, children: &[Descriptor], depth: usize) -> Result<()> {
        let mut taken = 0;
        let mut absent = None;
        for child in children {
            if !child.is_manifest() {
                // A cache of a build tool lists its layers in an index.
                taken += 1;
                match self.fetch.size(&child.digest)? {
                    Some(size) if size == child.size => {
                        self.bundle.blobs.insert(child.digest.clone(), size);
                    }
                    _ => self.bundle.left_out.push(child.clone()),
                }
                continue;
            }
            if depth >= IMAGE_DEPTH || !self.is_wanted(child) {
                self.bundle.left_out.push(child.clone());
                continue;
            }
            if self.manifest(&child.digest, depth + 1)?.is_some() {
                taken += 1;
                self.bundle.platforms.extend(child.platform.clone());
            } else {
                absent.get_or_insert_with(|| child.digest.clone());
                self.bundle.left_out.push(child.clone());
            }
        }
        match absent {
            // An index that was pulled is kept without the images that were not requested.
            _ if taken > 0 || self.platforms.is_empty() || children.is_empty() => Ok(()),
            Some(digest) => Err(Error::Incomplete { digest }),
            None => Err(Error::Platform {
                wanted: list(self.platforms.iter()),
                found: list(children.iter().filter_map(|child| child.platform.as_ref())),
            }),
        }
    }

    /// An index in an index is looked into; a platform is asked of images only.
    fn is_wanted(&self, child: &Descriptor) -> bool {
        match &child.platform {
            _ if self.platforms.is_empty() => true,
            Some(platform) => self.platforms.iter().any(|wanted| platform.answers(wanted)),
            None => true,
        }
    }
}

fn list<'a>(platforms: impl Iterator<Item = &'a Platform>) -> String {
    let mut names: Vec<String> = platforms
        .filter(|platform| !platform.is_unknown())
        .map(ToString::to_string)
        .collect();
    names.dedup();
    names.join(", ")
}
