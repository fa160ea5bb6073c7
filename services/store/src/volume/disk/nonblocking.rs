//! A view of the same file system that reads only what the kernel has in memory, so that no call
//! waits for the disk.
//!
//! `openat2(2)` with `RESOLVE_CACHED` (Linux 5.12) resolves names and `preadv2(2)` with
//! `RWF_NOWAIT` reads bytes only where both need no I/O. Everything else fails with
//! [`io::ErrorKind::WouldBlock`], an absent name included: the blocking call then decides.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    io::{Errno, ReadWriteFlags},
};

use super::{DiskFile, described};
use crate::{
    Space,
    volume::{Entry, Metadata, Volume, VolumeFile},
};

/// The non-blocking view.
#[derive(Debug)]
pub(super) struct NonBlockingView;

/// Largest read from an open file, as it is done where no stream is: links and manifests.
const MAX_READ_BYTES: usize = 64 << 10;

impl NonBlockingView {
    /// The view, if the kernel and its filters let it be.
    pub(super) fn of(root: &Path) -> Option<Self> {
        let existing = root.ancestors().find(|path| path.exists())?;
        match open(existing, OFlags::PATH) {
            Ok(_) => Some(Self),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(Self),
            Err(_) => None,
        }
    }
}

fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    // A named pipe in a foreign tree must not block the open either.
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(
        CWD,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::CACHED,
    )?)
}

fn cannot<T>() -> io::Result<T> {
    Err(io::ErrorKind::WouldBlock.into())
}

/// An absent name counts as unknown: the blocking call decides.
fn unless_absent<T>(found: io::Result<T>) -> io::Result<T> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => cannot(),
        found => found,
    }
}

/// Reads what the page cache has.
pub(super) fn read(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut buffers = [IoSliceMut::new(buffer)];
    match rustix::io::preadv2(file, &mut buffers, offset, ReadWriteFlags::NOWAIT) {
        Ok(read) => Ok(read),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => cannot(),
        Err(errno) => Err(errno.into()),
    }
}

#[derive(Debug)]
struct NonBlockingFile(Arc<DiskFile>);

impl VolumeFile for NonBlockingFile {
    fn read_at(&self, buffer: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        let (held, room) = (buffer.len(), buffer.capacity() - buffer.len());
        if room > MAX_READ_BYTES {
            return cannot();
        }
        buffer.resize(held + room, 0);
        let read = read(
            &self.0.0,
            buffer.get_mut(held..).unwrap_or_default(),
            offset,
        );
        buffer.truncate(held + read.as_ref().copied().unwrap_or(0));
        read
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
        cannot()
    }

    fn metadata(&self) -> io::Result<Metadata> {
        // The inode of an open file is in memory.
        self.0.metadata()
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        cannot()
    }

    fn sync(&self) -> io::Result<()> {
        cannot()
    }

    /// Nothing was written here.
    fn start_write_back(&self, _offset: u64, _length: u64) {}

    fn blocking_handle(&self) -> Option<Arc<dyn VolumeFile>> {
        Some(Arc::clone(&self.0) as Arc<dyn VolumeFile>)
    }
}

impl Volume for NonBlockingView {
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        let file = unless_absent(open(path, OFlags::RDONLY | OFlags::NONBLOCK))?;
        Ok(Arc::new(NonBlockingFile(Arc::new(DiskFile(file.into())))))
    }

    fn open_write(&self, _path: &Path, _create: bool) -> io::Result<Arc<dyn VolumeFile>> {
        cannot()
    }

    fn create_new(&self, _path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        cannot()
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let file = File::from(unless_absent(open(path, OFlags::PATH))?);
        file.metadata().map(described)
    }

    fn list(&self, _folder: &Path) -> io::Result<Vec<Entry>> {
        cannot()
    }

    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        cannot()
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        cannot()
    }

    fn link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        cannot()
    }

    fn remove_file(&self, _path: &Path) -> io::Result<()> {
        cannot()
    }

    fn remove_dir(&self, _path: &Path) -> io::Result<()> {
        cannot()
    }

    fn remove_dir_all(&self, _path: &Path) -> io::Result<()> {
        cannot()
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        cannot()
    }

    fn touch(&self, _path: &Path) -> io::Result<()> {
        cannot()
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        cannot()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_is_read_without_waiting_the_rest_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, b"0123456789").unwrap();
        let Some(view) = NonBlockingView::of(dir.path()) else {
            return; // an old kernel
        };
        let file = view.open_read(&path).unwrap();
        let mut bytes = Vec::with_capacity(4);
        match file.read_at(&mut bytes, 3) {
            Ok(read) => assert_eq!((read, bytes.as_slice()), (4, b"3456".as_slice())),
            // A file system without RWF_NOWAIT.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        let blocking = file.blocking_handle().unwrap();
        let mut bytes = Vec::with_capacity(64);
        assert_eq!(blocking.read_at(&mut bytes, 0).unwrap(), 10);
        assert_eq!(view.metadata(&path).unwrap().len, 10);
        for path in ["absent", "absent/below"] {
            let error = view.open_read(&dir.path().join(path)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{path}");
        }
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        assert!(view.open_read(&dir.path().join("link")).is_err());
        assert!(!view.metadata(&dir.path().join("link")).unwrap().is_file());
    }
}
