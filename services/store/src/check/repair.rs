//! Carries out one repair. Each looks again first: beside a running registry the damage may have
//! healed since it was found.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use holdfast_core::digest::Digest;
use uuid::Uuid;

use super::{Repair, tree};
use crate::{
    Layout, Result, deletes,
    durable::{self, DurableFs},
    links,
    volume::Volume,
};

/// What became of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Repaired,
    /// It was not needed any more.
    Resolved,
}

/// Mends one finding on the volume below `root`.
///
/// # Errors
/// What the volume says; the finding stays.
pub fn repair(
    volume: &(impl Volume + Clone + 'static),
    root: &Path,
    repair: &Repair,
) -> Result<Outcome> {
    let files = DurableFs::new(Arc::new(volume.clone()), root.to_owned());
    let volume = files.volume();
    let layout = Layout::new(root);
    let done = match repair {
        Repair::WriteLink {
            path,
            digest,
            only_with,
        } => {
            let only_with: Vec<_> = only_with.iter().map(|path| root.join(path)).collect();
            write_link(&files, &layout, &root.join(path), digest, &only_with)?
        }
        Repair::Quarantine { digest } => {
            let path = layout.blob(digest);
            let found = durable::metadata(volume, &path)?;
            let hashed = tree::hash(volume, &path, digest.algorithm(), |_| ())?;
            match found.zip(hashed) {
                Some((found, (_, actual))) if actual != *digest => {
                    let aside = layout.quarantine(digest, &Uuid::new_v4().to_string());
                    files.move_known(&found, &path, &aside)?
                }
                _ => false,
            }
        }
        Repair::GiveBack { digest, path } => {
            let (path, place) = (root.join(path), layout.blob(digest));
            let hashed = tree::hash(volume, &path, digest.algorithm(), |_| ())?;
            let is_sound = hashed.is_some_and(|(_, actual)| actual == *digest);
            let is_wanted = is_sound && durable::metadata(volume, &place)?.is_none();
            if is_wanted {
                files.restore(&path, &place)?;
            }
            is_wanted
        }
        Repair::RemoveFile { path } => files.remove_file(&root.join(path))?,
        Repair::RemoveTag { path } => {
            let path = root.join(path);
            let gone = durable::metadata(volume, &path)?.is_some()
                && durable::metadata(volume, &path.join("current/link"))?.is_none();
            if gone {
                durable::remove_tree(volume, &path)?;
            }
            gone
        }
        Repair::RemoveUpload { path } => {
            let path = root.join(path);
            let there = durable::metadata(volume, &path)?.is_some();
            durable::remove_tree(volume, &path)?;
            there
        }
        Repair::WriteStart { path } => {
            let path = root.join(path);
            let (folder, data) = (
                durable::parent(&path)?.to_owned(),
                path.with_file_name("data"),
            );
            let newest = durable::metadata(volume, &data)?.or(durable::metadata(volume, &folder)?);
            let at = newest.and_then(|newest| newest.modified);
            match (durable::metadata(volume, &path)?, at) {
                (None, Some(at)) => {
                    files.write_file(&path, rfc3339(at).as_bytes())?;
                    true
                }
                _ => false,
            }
        }
    };
    Ok(if done {
        Outcome::Repaired
    } else {
        Outcome::Resolved
    })
}

/// Writes a link unless what it belongs to is being deleted, in the order of a push ([`deletes`]).
fn write_link(
    files: &DurableFs,
    layout: &Layout,
    path: &Path,
    digest: &Digest,
    only_with: &[PathBuf],
) -> Result<bool> {
    let volume = files.volume();
    let is_wanted = || -> Result<bool> {
        for path in only_with {
            if durable::metadata(volume, path)?.is_none() {
                return Ok(false);
            }
        }
        Ok(!deletes::is_being_deleted(volume, layout, digest)?)
    };
    if links::read(volume, path)?.as_ref() == Some(digest) || !is_wanted()? {
        return Ok(false);
    }
    // A delete that begins now removes the pending file; one that began before is to be seen.
    files.create_dir(durable::parent(path)?)?;
    let pending = files.create_pending(path, digest.to_string().as_bytes())?;
    pending.sync()?;
    if !is_wanted()? {
        return Ok(false);
    }
    match links::publish(files, path, pending) {
        Err(error) if error.is_absent() => return Ok(false),
        published => published?,
    }
    if is_wanted()? {
        return Ok(true);
    }
    files.remove_file(path)?;
    Ok(false)
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
    fn times_are_written_as_distribution_does() {
        for (seconds, expect) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expect);
        }
    }
}
