//! Repairs of a volume, beside running registries. They follow the protocols of pushes and deletes,
//! and check first that they are still needed, except the removal of a file. Which repairs a volume
//! needs is the caller's decision. A repair refuses paths of other kinds than it is for.

use std::{
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use holdfast_core::digest::Digest;
use uuid::Uuid;

use crate::{
    Error, Layout, Result, deletes,
    durable::DurableFs,
    files,
    layout::{self, names},
    links,
    volume::Volume,
};

/// The repairs of one volume. Paths are relative to the root of the volume. Every repair returns
/// whether it changed something: `false` means that it was not needed any more.
#[derive(Clone, Debug)]
pub struct Maintenance {
    files: DurableFs,
    layout: Layout,
}

impl Maintenance {
    /// The repairs of the volume below `root`.
    pub fn new(volume: Arc<dyn Volume>, root: &Path) -> Self {
        Self {
            files: DurableFs::new(volume, root.to_owned()),
            layout: Layout::new(root),
        }
    }

    /// Writes a link, in the order of a push, unless one of `only_with` is absent or the manifest
    /// `digest` is being deleted (see `deletes.rs`).
    ///
    /// # Errors
    /// The volume fails, or the path is no link of a repository.
    pub fn write_link(&self, path: &Path, digest: &Digest, only_with: &[PathBuf]) -> Result<bool> {
        let volume = self.files.volume();
        let path = &self.at(path)?;
        if !self.is_link(path) {
            return Err(refused(path));
        }
        let is_wanted = || -> Result<bool> {
            for path in only_with {
                if files::metadata(volume, &self.at(path)?)?.is_none() {
                    return Ok(false);
                }
            }
            Ok(!deletes::is_being_deleted(volume, &self.layout, digest)?)
        };
        if links::read(volume, path)?.as_ref() == Some(digest) || !is_wanted()? {
            return Ok(false);
        }
        // A delete that begins now removes the pending file; one that began before is to be seen.
        self.files.create_dir(files::parent(path)?)?;
        let pending = self
            .files
            .create_pending(path, digest.to_string().as_bytes())?;
        pending.sync()?;
        if !is_wanted()? {
            return Ok(false);
        }
        match links::publish(&self.files, path, pending) {
            Err(error) if error.is_absent() => return Ok(false),
            published => published?,
        }
        if is_wanted()? {
            return Ok(true);
        }
        self.files.remove_file(path)?;
        Ok(false)
    }

    /// Moves a blob whose bytes do not hash to its name to the quarantine.
    ///
    /// # Errors
    /// The volume fails.
    pub fn quarantine(&self, digest: &Digest) -> Result<bool> {
        let path = self.layout.blob(digest);
        let found = files::metadata(self.files.volume(), &path)?;
        let hashed = files::hash(self.files.volume(), &path, digest.algorithm(), |_| ())?;
        match found.zip(hashed) {
            Some((found, (_, actual))) if actual != *digest => {
                let aside = self.layout.quarantine(digest, &Uuid::new_v4().to_string());
                self.files.move_known(&found, &path, &aside)
            }
            _ => Ok(false),
        }
    }

    /// Moves a file of the quarantine back to the place of the blob, if its bytes hash to `digest`
    /// and the blob is absent.
    ///
    /// # Errors
    /// The volume fails, or the path is not in the quarantine.
    pub fn restore(&self, digest: &Digest, path: &Path) -> Result<bool> {
        let (path, place) = (self.at(path)?, self.layout.blob(digest));
        if !path.starts_with(self.layout.own().join(names::QUARANTINE)) {
            return Err(refused(&path));
        }
        let hashed = files::hash(self.files.volume(), &path, digest.algorithm(), |_| ())?;
        let is_sound = hashed.is_some_and(|(_, actual)| actual == *digest);
        let is_needed = is_sound && files::metadata(self.files.volume(), &place)?.is_none();
        if is_needed {
            self.files.restore(&path, &place)?;
        }
        Ok(is_needed)
    }

    /// Removes a file, durably: what a write left, a partial copy, or the link of a tag's history
    /// or of a referrer.
    ///
    /// # Errors
    /// The volume fails, or the path is that of another file.
    pub fn remove_file(&self, path: &Path) -> Result<bool> {
        let path = self.at(path)?;
        let name = path.file_name().and_then(|name| name.to_str());
        let folder = path.ancestors().nth(3).and_then(Path::file_name);
        let is_listing = folder.is_some_and(|folder| folder == names::INDEX)
            || path.iter().any(|part| part == names::REFERRERS);
        let is_removable = name.is_some_and(layout::is_leftover)
            || path.starts_with(self.layout.own().join(names::INCOMING))
            || is_listing && self.is_link(&path);
        if !is_removable {
            return Err(refused(&path));
        }
        self.files.remove_file(&path)
    }

    /// Removes the folder of a tag that has no link.
    ///
    /// # Errors
    /// The volume fails, or the path is no folder of a tag.
    pub fn remove_tag(&self, path: &Path) -> Result<bool> {
        let (volume, path) = (self.files.volume(), self.entry(path, names::TAG_FOLDERS)?);
        let is_needed = files::metadata(volume, &path)?.is_some()
            && files::metadata(volume, &path.join(names::TAG_LINK))?.is_none();
        if is_needed {
            files::remove_tree(volume, &path)?;
        }
        Ok(is_needed)
    }

    /// Removes the folder of an upload session.
    ///
    /// # Errors
    /// The volume fails, or the path is no folder of an upload session.
    pub fn remove_upload(&self, path: &Path) -> Result<bool> {
        let (volume, path) = (self.files.volume(), self.entry(path, names::UPLOADS)?);
        let is_needed = files::metadata(volume, &path)?.is_some();
        files::remove_tree(volume, &path)?;
        Ok(is_needed)
    }

    /// Writes the missing file `startedat` into the folder of an upload session, with the time of
    /// its last byte.
    ///
    /// # Errors
    /// The volume fails, or the path is no folder of an upload session.
    pub fn write_start(&self, upload: &Path) -> Result<bool> {
        let volume = self.files.volume();
        let path = self.entry(upload, names::UPLOADS)?.join(names::STARTED_AT);
        let newest = match files::metadata(volume, &path.with_file_name(names::DATA))? {
            Some(data) => Some(data),
            None => files::metadata(volume, files::parent(&path)?)?,
        };
        let Some(at) = newest.and_then(|newest| newest.modified) else {
            return Ok(false);
        };
        if files::metadata(volume, &path)?.is_some() {
            return Ok(false);
        }
        self.files.write_file(&path, rfc3339(at).as_bytes())?;
        Ok(true)
    }

    /// The path below the root of the volume.
    fn at(&self, path: &Path) -> Result<PathBuf> {
        let stays_below = |part| matches!(part, Component::Normal(_));
        if path.components().all(stays_below) {
            Ok(self.files.root().join(path))
        } else {
            Err(refused(path))
        }
    }

    /// The path below the root, if it is an entry of such a folder in a repository.
    fn entry(&self, path: &Path, folder: &str) -> Result<PathBuf> {
        let path = self.at(path)?;
        let is_entry = path.starts_with(self.layout.repositories())
            && path.parent().is_some_and(|parent| parent.ends_with(folder));
        if is_entry {
            Ok(path)
        } else {
            Err(refused(&path))
        }
    }

    fn is_link(&self, path: &Path) -> bool {
        path.starts_with(self.layout.repositories()) && path.ends_with(names::LINK)
    }
}

fn refused(path: &Path) -> Error {
    Error::io("repair", path)(io::Error::from(io::ErrorKind::InvalidInput))
}

/// `2024-02-29T23:59:59Z`, as distribution writes `startedat`.
fn rfc3339(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at)
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn paths_of_nothing_that_fsck_repairs_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let volume = Arc::new(crate::volume::Disk::at(folder.path()));
        let maintenance = Maintenance::new(volume, folder.path());
        let v2 = Path::new("docker/registry/v2");
        let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        for path in [
            "/etc/hostname",
            "../link",
            "repositories/a/../../link",
            "blobs/sha256/00/x/data",
            "_holdfast/volume-id",
            "_holdfast/locks/link",
        ] {
            let path = v2.join(path);
            assert!(maintenance.remove_file(&path).is_err(), "{path:?}");
            assert!(
                maintenance.write_link(&path, &digest, &[]).is_err(),
                "{path:?}"
            );
        }
        for path in [
            "",
            "docker/registry/v2/blobs",
            "docker/registry/v2/_uploads/x",
        ] {
            let path = Path::new(path);
            assert!(maintenance.remove_upload(path).is_err(), "{path:?}");
            assert!(maintenance.remove_tag(path).is_err(), "{path:?}");
            assert!(maintenance.write_start(path).is_err(), "{path:?}");
            assert!(maintenance.restore(&digest, path).is_err(), "{path:?}");
        }
        let (upload, tag) = (
            "repositories/a/_uploads/x",
            "repositories/a/_manifests/tags/1",
        );
        assert!(!maintenance.remove_upload(&v2.join(upload)).unwrap());
        assert!(!maintenance.remove_tag(&v2.join(tag)).unwrap());
        assert!(maintenance.remove_upload(&v2.join(tag)).is_err());
        assert!(maintenance.remove_tag(&v2.join(upload)).is_err());
        let revision = v2.join("repositories/a/_manifests/revisions/sha256/x/link");
        assert!(maintenance.remove_file(&revision).is_err());
        for path in [
            "_holdfast/incoming/sha256/x",
            "blobs/sha256/00/x/.data.u.tmp",
            "repositories/a/_manifests/tags/1/index/sha256/x/link",
            "repositories/a/_referrers/sha256/x/sha256/y/link",
        ] {
            assert!(!maintenance.remove_file(&v2.join(path)).unwrap(), "{path}");
        }
    }

    #[test]
    fn times_are_written_as_distribution_does() {
        for (seconds, expect) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expect);
        }
    }
}
