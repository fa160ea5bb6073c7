//! The health of the whole volume: whether it answers and takes writes, how full it is, and whether
//! it is still the same volume.
//!
//! The check blocks and does not use the store's pool. The caller provides a thread of its own, so
//! that hung calls of the pool cannot delay the check.

use std::{io, path::Path};

use uuid::Uuid;

use crate::{
    Error, Layout, Result, Space, WriteGate, error::absent, files, layout::names, volume::Volume,
};

/// How full the volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceLevel {
    /// Clients write without a warning.
    Enough,
    /// Clients that write get a warning.
    Filling,
    /// Writes are refused; reads go on.
    Full,
}

/// The result of one health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeHealth {
    /// Free and total bytes.
    pub space: Space,
    /// The level that the write limits give this space.
    pub level: SpaceLevel,
    /// Whether a file could be made; a volume that is full or read-only still answers.
    pub writable: bool,
    /// The ID of the volume, from the file `_holdfast/volume-id`. The first check assigns it.
    /// `None` when there is none and the volume takes no writes.
    pub volume_id: Option<String>,
}

/// Checks the volume. Blocks for as long as the volume does.
///
/// # Errors
/// [`Error::Io`] when the volume answers with anything but "full" and "read-only".
pub(crate) fn check(
    volume: &dyn Volume,
    layout: &Layout,
    gate: &WriteGate,
) -> Result<VolumeHealth> {
    let repositories = layout.repositories();
    // A volume that was emptied or replaced has no folders. It still answers.
    files::metadata(volume, &repositories)?;
    let own = layout.own();
    let writable = can_create(volume, &own)?;
    let space = volume
        .space(gate.root())
        .map_err(Error::io("stat", gate.root()))?;
    gate.remember(space);
    let level = match (gate.allows(space, 0), gate.filling()) {
        (Err(_), _) => SpaceLevel::Full,
        (Ok(()), Some(_)) => SpaceLevel::Filling,
        (Ok(()), None) => SpaceLevel::Enough,
    };
    let path = own.join(names::VOLUME_ID);
    let volume_id = match read_volume_id(volume, &path)? {
        Some(known) => Some(known),
        None if writable => Some(assign_volume_id(volume, &path)?),
        None => None,
    };
    Ok(VolumeHealth {
        space,
        level,
        writable,
        volume_id,
    })
}

/// Creates and removes a file, without a sync: it only shows whether the volume takes writes.
fn can_create(volume: &dyn Volume, folder: &Path) -> Result<bool> {
    let path = files::temporary(&folder.join("health"));
    let made = match volume.create_new(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            files::create_dir_unsynced(volume, folder)
                .and_then(|()| volume.create_new(&path).map_err(Error::io("create", &path)))
        }
        other => other.map_err(Error::io("create", &path)),
    };
    match made {
        Ok(_) => {
            absent(volume.remove_file(&path)).map_err(Error::io("remove", &path))?;
            Ok(true)
        }
        Err(error) if is_full_or_read_only(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the error says that the volume is full or read-only.
fn is_full_or_read_only(error: &Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error {
        Error::NoSpace { .. } => true,
        Error::Io { source, .. } => matches!(
            source.kind(),
            StorageFull | QuotaExceeded | ReadOnlyFilesystem
        ),
        _ => false,
    }
}

fn read_volume_id(volume: &dyn Volume, path: &Path) -> Result<Option<String>> {
    let Some(file) = files::open_read(volume, path)? else {
        return Ok(None);
    };
    let bytes = files::read_up_to(&*file, 64).map_err(Error::io("read", path))?;
    Ok(String::from_utf8(bytes)
        .ok()
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty()))
}

/// Gives the volume an ID. When several replicas do so at once, the first one wins.
fn assign_volume_id(volume: &dyn Volume, path: &Path) -> Result<String> {
    let id = Uuid::new_v4().to_string();
    let candidate = files::temporary(path);
    files::write_unsynced(volume, &candidate, id.as_bytes())?;
    let linked = volume.link(&candidate, path);
    absent(volume.remove_file(&candidate)).map_err(Error::io("remove", &candidate))?;
    match linked {
        Ok(()) => Ok(id),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // A crash may leave an empty file. This check then reports an ID that is not stored.
            Ok(read_volume_id(volume, path)?.unwrap_or(id))
        }
        Err(error) => Err(Error::io("link", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use crate::{Options, Store};
    use std::fs;

    #[tokio::test]
    async fn a_volume_keeps_its_id_and_another_one_has_another() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::unlimited()).await.unwrap();
        let first = store.check_health().unwrap();
        assert!(first.writable);
        assert_eq!(first.volume_id, store.check_health().unwrap().volume_id);
        let second = Store::open(dir.path(), Options::unlimited()).await.unwrap();
        assert_eq!(first.volume_id, second.check_health().unwrap().volume_id);
        fs::remove_dir_all(dir.path().join("docker")).unwrap();
        let other = store.check_health().unwrap();
        assert!(other.volume_id.is_some() && other.volume_id != first.volume_id);
        let left: Vec<_> = fs::read_dir(store.layout().own())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["volume-id"], "nothing else stays");
    }
}
