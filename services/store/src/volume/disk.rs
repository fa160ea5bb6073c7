//! The real file system. The one place of the crate that may name `std::fs` or rustix' file calls.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    mem::MaybeUninit,
    num::NonZeroU64,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, MetadataExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{Advice, AtFlags, FileType, Mode, OFlags, RawDir, Timespec, Timestamps},
    io::Errno,
};

use super::{Entry, Kind, Metadata, Volume, VolumeFile};
use crate::Space;

mod nonblocking;

/// The file system of this machine, network mounts included.
#[derive(Clone, Debug)]
pub struct Disk {
    root: PathBuf,
    /// Other machines may write to it, too.
    shared: bool,
}

/// File systems of one machine, by the magic number of `statfs(2)`. Every other may have several
/// clients.
const LOCAL: [u64; 8] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683E, // Btrfs
    0xF2F5_2010, // F2FS
    0x2FC1_2FC1, // ZFS
    0x0102_1994, // tmpfs
    0x8584_58F6, // ramfs
    0x794C_7630, // overlayfs
];

impl Disk {
    /// The file system that holds `root`; look-ups are refreshed below it only.
    pub fn at(root: &Path) -> Self {
        let existing = root.ancestors().find(|path| path.exists());
        let magic = existing
            .and_then(|path| rustix::fs::statfs(path).ok())
            .map(|stat| magic(stat.f_type));
        Self {
            root: root.to_owned(),
            shared: !magic.is_some_and(|magic| LOCAL.contains(&magic)),
        }
    }
}

/// The kernel's 32 bits, whatever the width and sign of the platform's field.
fn magic(field: impl TryInto<i64>) -> u64 {
    let field = field.try_into().unwrap_or_default();
    u64::from_ne_bytes(field.to_ne_bytes()) & 0xFFFF_FFFF
}

#[derive(Debug)]
struct DiskFile(File);

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(
        i32::try_from((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits()).unwrap_or_default(),
    );
    options
}

fn opened(file: io::Result<File>) -> io::Result<Arc<dyn VolumeFile>> {
    Ok(Arc::new(DiskFile(file?)))
}

fn described(metadata: fs::Metadata) -> Metadata {
    Metadata {
        kind: kind(metadata.file_type()),
        len: metadata.len(),
        modified: metadata.modified().ok(),
        inode: (metadata.dev(), metadata.ino()),
    }
}

fn kind(file_type: fs::FileType) -> Kind {
    if file_type.is_file() {
        Kind::File
    } else if file_type.is_dir() {
        Kind::Dir
    } else {
        Kind::Other
    }
}

/// Bytes for names of a directory: those of most fit in.
const NAMES_BYTES: usize = 8 << 10;

/// The names in a directory below an open one; `None` if there is no such directory.
fn names_at(
    folder: BorrowedFd<'_>,
    name: &str,
    buffer: &mut [MaybeUninit<u8>],
) -> io::Result<Option<Vec<Entry>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        opened => opened?,
    };
    let mut found = Vec::new();
    let mut entries = RawDir::new(&dir, buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let file_type = match entry.file_type() {
            // Not every file system says it with the name.
            FileType::Unknown => rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_or(FileType::Unknown, |stat| {
                    FileType::from_raw_mode(stat.st_mode)
                }),
            known => known,
        };
        found.push(Entry {
            kind: match file_type {
                FileType::RegularFile => Kind::File,
                FileType::Directory => Kind::Dir,
                _ => Kind::Other,
            },
            name: OsStr::from_bytes(name.to_bytes()).to_owned(),
        });
    }
    Ok(Some(found))
}

impl VolumeFile for DiskFile {
    fn read_at(&self, buffer: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pread(
            &self.0,
            rustix::buffer::spare_capacity(buffer),
            offset,
        )?)
    }

    fn read_into(&self, buffer: &mut [u8], offset: u64, wait: bool) -> io::Result<usize> {
        if wait {
            FileExt::read_at(&self.0, buffer, offset)
        } else {
            nonblocking::read(&self.0, buffer, offset)
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(&self.0, bytes, offset)
    }

    fn write_vectored_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwritev(&self.0, pieces, offset)?)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.0.metadata().map(described)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn start_write_back(&self, offset: u64, length: u64) {
        // For dirty pages Linux takes this advice as "start to write them", and keeps them in
        // memory. It drops clean ones, so the range must not be so long that its first
        // pages are clean before its last ones are queued: of 8 MiB none is dropped, of 32
        // MiB some are.
        if let Some(length) = NonZeroU64::new(length) {
            rustix::fs::fadvise(&self.0, offset, Some(length), Advice::DontNeed).ok();
        }
    }
}

impl Volume for Disk {
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        opened(options().read(true).open(path))
    }

    fn open_write(&self, path: &Path, create: bool) -> io::Result<Arc<dyn VolumeFile>> {
        opened(
            options()
                .read(true)
                .write(true)
                .create(create)
                .truncate(false)
                .open(path),
        )
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        opened(options().read(true).write(true).create_new(true).open(path))
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        fs::symlink_metadata(path).map(described)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        fs::read_dir(folder)?
            .map(|entry| {
                let entry = entry?;
                Ok(Entry {
                    kind: entry.file_type().map_or(Kind::Other, kind),
                    name: entry.file_name(),
                })
            })
            .collect()
    }

    fn list_below(&self, folder: &Path, names: &[String]) -> io::Result<Vec<Option<Vec<Entry>>>> {
        // Relative to an open folder: the folder's own path is walked once, not once a name.
        let Some(dir) = crate::error::absent(File::open(folder))? else {
            return Ok(vec![None; names.len()]);
        };
        let mut buffer = vec![MaybeUninit::uninit(); NAMES_BYTES];
        names
            .iter()
            .map(|name| names_at(dir.as_fd(), name, &mut buffer))
            .collect()
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        // Both times, because then the permission to write is enough; one alone takes the file's
        // owner.
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        Ok(rustix::fs::utimensat(
            rustix::fs::CWD,
            path,
            &times,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    fn refresh(&self, path: &Path) -> io::Result<bool> {
        if !self.shared {
            return Ok(false);
        }
        let Ok(below) = path.strip_prefix(&self.root) else {
            return Ok(false);
        };
        let mut folder = self.root.clone();
        for name in below.parent().into_iter().flatten() {
            folder.push(name);
            if crate::error::absent(File::open(&folder))?.is_none() {
                break;
            }
        }
        Ok(true)
    }

    fn nonblocking_view(&self) -> Option<Arc<dyn Volume>> {
        // With other machines even what is in memory may have to be asked for again.
        if self.shared {
            return None;
        }
        nonblocking::NonBlockingView::of(&self.root).map(|view| Arc::new(view) as Arc<dyn Volume>)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(Space {
            total_bytes: stat.f_blocks * stat.f_frsize,
            available_bytes: stat.f_bavail * stat.f_frsize,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_file_systems_of_several_machines_are_refreshed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let mut disk = Disk::at(dir.path());
        let path = dir.path().join("a/b/c/d");
        assert!(!disk.refresh(&path).unwrap(), "a local directory");
        disk.shared = true;
        assert!(disk.refresh(&path).unwrap());
        assert!(!disk.refresh(Path::new("/elsewhere/x")).unwrap());
    }

    #[test]
    fn magic_numbers_compare_on_every_platform() {
        assert_eq!(magic(0x9123_683E_u32), 0x9123_683E);
        assert_eq!(magic(i64::from(0x9123_683E_u32)), 0x9123_683E);
        assert_eq!(
            magic(i32::from_ne_bytes(0x9123_683E_u32.to_ne_bytes())),
            0x9123_683E
        );
    }
}
