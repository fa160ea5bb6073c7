//! The trait behind which all of the store's I/O goes: the few calls of a file system that the
//! store is made of.
//!
//! Knows nothing of blobs and links. [`Disk`] is the real one; tests put a simulated or a recording
//! one in its place ([`Store::open_on`](crate::Store::open_on)). Calls block, and are made from the
//! store's [`Pool`](crate::Pool) only.

use std::{
    ffi::OsString,
    fmt,
    io::{self, IoSlice},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use crate::Space;

mod disk;

pub use disk::Disk;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link, or anything else that the store never makes and never follows.
    Other,
}

/// What is known of a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// File, directory or neither.
    pub kind: Kind,
    /// Size in bytes.
    pub len: u64,
    /// Last modification, by the volume's clock; `None` when the volume keeps none.
    pub modified: Option<SystemTime>,
    /// Device and number of the inode: two names with equal ones are one file.
    pub inode: (u64, u64),
}

impl Metadata {
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == Kind::File
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, without its directory.
    pub name: OsString,
    /// What it stands for.
    pub kind: Kind,
}

/// An open file. Reads and writes name their offset, so clones of the handle never disturb each
/// other.
pub trait VolumeFile: fmt::Debug + Send + Sync {
    /// Appends to `buffer` what is at `offset`, as much as fits into its spare capacity; 0 at the
    /// end of the file. May give less than there is.
    fn read_at(&self, buffer: &mut Vec<u8>, offset: u64) -> io::Result<usize>;

    /// [`VolumeFile::read_at`] into a buffer that is used again and again. Without `wait` it reads
    /// only what needs no waiting for the volume, and fails with [`io::ErrorKind::WouldBlock`]
    /// where there is nothing of that.
    fn read_into(&self, buffer: &mut [u8], offset: u64, _wait: bool) -> io::Result<usize> {
        let mut bytes = Vec::with_capacity(buffer.len());
        let read = self.read_at(&mut bytes, offset)?;
        for (to, from) in buffer.iter_mut().zip(bytes) {
            *to = from;
        }
        Ok(read)
    }

    /// The same file for calls that may block; `None` when this handle is it.
    fn blocking_handle(&self) -> Option<Arc<dyn VolumeFile>> {
        None
    }

    /// Writes at `offset`; may take fewer bytes than were given.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// [`VolumeFile::write_at`] of several pieces that follow each other: one call costs less than
    /// one a piece.
    fn write_vectored_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let first = pieces.iter().find(|piece| !piece.is_empty());
        first.map_or(Ok(0), |piece| self.write_at(piece, offset))
    }

    /// What is known of the file now.
    fn metadata(&self) -> io::Result<Metadata>;

    /// Cuts the file, or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns when the file's bytes and its size survive a loss of power. Says nothing of its
    /// name.
    fn sync(&self) -> io::Result<()>;

    /// Asks the volume to start writing these bytes to the disk, so that a later
    /// [`VolumeFile::sync`] has less to wait for. A hint: it promises nothing, and a failure shows
    /// at that sync.
    fn start_write_back(&self, offset: u64, length: u64);

    /// Writes all bytes at `offset`.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_vectored_at(&mut [IoSlice::new(bytes)], offset)
    }

    /// Writes all bytes of pieces that follow each other, the first at `offset`.
    fn write_all_vectored_at(
        &self,
        mut pieces: &mut [IoSlice<'_>],
        mut offset: u64,
    ) -> io::Result<()> {
        // Empty pieces at the front count as written.
        IoSlice::advance_slices(&mut pieces, 0);
        while !pieces.is_empty() {
            match self.write_vectored_at(pieces, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    IoSlice::advance_slices(&mut pieces, written);
                    offset += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A file system. No call follows a symbolic link in the last component of its path.
pub trait Volume: fmt::Debug + Send + Sync {
    /// Opens for reading.
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>>;

    /// Opens for reading and writing; with `create` an absent file is made, empty.
    fn open_write(&self, path: &Path, create: bool) -> io::Result<Arc<dyn VolumeFile>>;

    /// Makes a file that must not be there yet, and opens it for writing.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>>;

    /// What is known of a name.
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;

    /// The names in a directory, in no order.
    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>>;

    /// The names in several directories of a folder, each in no order, in the order they are asked
    /// for; `None` for what is no directory.
    fn list_below(&self, folder: &Path, names: &[String]) -> io::Result<Vec<Option<Vec<Entry>>>> {
        names
            .iter()
            .map(|name| crate::error::absent(self.list(&folder.join(name))))
            .collect()
    }

    /// Makes one directory; its parent must be there.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name, at once, in place of the file that had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name that must not be there yet.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a name of a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory and all below it; what disappears meanwhile is not an error.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        for entry in self.list(path)? {
            let path = path.join(&entry.name);
            let removed = match entry.kind {
                Kind::Dir => self.remove_dir_all(&path),
                Kind::File | Kind::Other => self.remove_file(&path),
            };
            crate::error::absent(removed)?;
        }
        self.remove_dir(path)
    }

    /// Returns when the names in a directory survive a loss of power.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Sets a file's modification time to the volume's present time.
    fn touch(&self, path: &Path) -> io::Result<()>;

    /// Size of the volume that holds `path`, and what is free on it.
    fn space(&self, path: &Path) -> io::Result<Space>;

    /// Makes the next look-up of `path` see what other machines have done, and says whether a
    /// second look is worthwhile after the first one found nothing. Network file systems
    /// remember for up to a minute that a name was absent; what is opened is always asked for
    /// again, so opening the directories on the way is enough. `false` where there is one machine.
    fn refresh(&self, _path: &Path) -> io::Result<bool> {
        Ok(false)
    }

    /// A view of the same volume that never blocks: a read that would have to wait, and every
    /// change, fails with [`io::ErrorKind::WouldBlock`]. Its calls need no thread of their own.
    /// `None` where the volume cannot tell, for example on network file systems.
    fn nonblocking_view(&self) -> Option<Arc<dyn Volume>> {
        None
    }

    /// Whether calls block, so that they need threads of the pool. A simulated volume in memory
    /// does not block and is called in place, which makes a run repeatable.
    fn is_blocking(&self) -> bool {
        true
    }
}
