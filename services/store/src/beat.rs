//! One look at the whole volume: does it answer, does it take writes, how full is it, and is it
//! still the same one.
//!
//! Blocking, and outside of the store's own threads: whoever watches the volume brings a thread, so
//! that calls which hang cannot keep the watch from seeing that they hang.

use std::{io, path::Path};

use uuid::Uuid;

use crate::{Error, Result, Space, Store, atomic, error::absent, volume::Volume};

/// How much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Enough.
    Enough,
    /// Clients that write are warned.
    Filling,
    /// Writes are refused; reads go on.
    Full,
}

/// What one look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Free and total bytes.
    pub space: Space,
    /// What the limits for writes say to that.
    pub room: Room,
    /// Whether a file could be made; a volume that is full or read-only still answers.
    pub writable: bool,
    /// The volume's own name, given to it when it was first seen; `None` when it takes no writes
    /// and has none.
    pub volume: Option<String>,
}

impl Store {
    /// Looks at the volume. Blocks for as long as the volume does.
    ///
    /// # Errors
    /// [`Error::Io`] when the volume answers with anything but "full" and "read-only".
    pub fn beat(&self) -> Result<Beat> {
        let inner = &self.inner;
        let repositories = inner.layout.repositories();
        let volume = inner.volume();
        // A volume that was emptied or replaced has no folders; it answers all the same.
        atomic::metadata(volume, &repositories)?;
        let own = inner.layout.own();
        let writable = makes_file(volume, &own)?;
        let space = volume
            .space(&inner.root)
            .map_err(Error::io("stat", &inner.root))?;
        inner.gate.remember(space);
        let room = match (inner.gate.allows(space, 0), inner.gate.filling()) {
            (Err(_), _) => Room::Full,
            (Ok(()), Some(_)) => Room::Filling,
            (Ok(()), None) => Room::Enough,
        };
        let name = own.join("volume");
        let volume = match read(volume, &name)? {
            Some(known) => Some(known),
            None if writable => Some(christen(volume, &name)?),
            None => None,
        };
        Ok(Beat {
            space,
            room,
            writable,
            volume,
        })
    }
}

/// Makes and removes a file. Nothing is synced: what is asked is whether the volume answers.
fn makes_file(volume: &dyn Volume, folder: &Path) -> Result<bool> {
    let path = atomic::temporary(&folder.join("beat"));
    let made = match volume.create_new(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            atomic::create_dir_plain(volume, folder)
                .and_then(|()| volume.create_new(&path).map_err(Error::io("create", &path)))
        }
        other => other.map_err(Error::io("create", &path)),
    };
    match made {
        Ok(_) => {
            absent(volume.remove_file(&path)).map_err(Error::io("remove", &path))?;
            Ok(true)
        }
        Err(error) if takes_nothing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the volume answered that it is full or read-only.
fn takes_nothing(error: &Error) -> bool {
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

fn read(volume: &dyn Volume, path: &Path) -> Result<Option<String>> {
    let Some(file) = atomic::open_read(volume, path)? else {
        return Ok(None);
    };
    let bytes = atomic::read_up_to(&*file, 64).map_err(Error::io("read", path))?;
    Ok(String::from_utf8(bytes)
        .ok()
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty()))
}

/// Gives the volume a name. Of several replicas that do so at once, the first one's holds.
fn christen(volume: &dyn Volume, path: &Path) -> Result<String> {
    let name = Uuid::new_v4().to_string();
    let candidate = atomic::temporary(path);
    atomic::write_plain(volume, &candidate, name.as_bytes())?;
    let linked = volume.link(&candidate, path);
    absent(volume.remove_file(&candidate)).map_err(Error::io("remove", &candidate))?;
    match linked {
        Ok(()) => Ok(name),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // An empty file is what a crash left; then this one look knows no name.
            Ok(read(volume, path)?.unwrap_or(name))
        }
        Err(error) => Err(Error::io("link", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use std::fs;

    #[tokio::test]
    async fn a_volume_keeps_its_name_and_another_one_has_another() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::unlimited()).await.unwrap();
        let first = store.beat().unwrap();
        assert!(first.writable);
        assert_eq!(first.volume, store.beat().unwrap().volume);
        let second = Store::open(dir.path(), Options::unlimited()).await.unwrap();
        assert_eq!(first.volume, second.beat().unwrap().volume);
        fs::remove_dir_all(dir.path().join("docker")).unwrap();
        let other = store.beat().unwrap();
        assert!(other.volume.is_some() && other.volume != first.volume);
        let left: Vec<_> = fs::read_dir(store.layout().own())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["volume"], "nothing else stays");
    }
}
