//! The real file system with a record of the calls that change it.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use holdfast_store::{
    Space,
    volume::{Disk, Entry, Metadata, Volume, VolumeFile},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    CreateDir(PathBuf),
    /// Bytes or the size of a file changed.
    Write(PathBuf),
    /// The write-back of this number of bytes of a file was started.
    StartWriteBack(PathBuf, u64),
    /// The file's bytes were synced; under the name it was opened by, or renamed to since.
    Sync(PathBuf),
    SyncDir(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    RemoveDir(PathBuf),
    /// A directory with all below it.
    RemoveTree(PathBuf),
}

#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    disk: Disk,
    calls: Arc<Mutex<Vec<Call>>>,
    /// Present names of renamed files, by the name they were opened by.
    names: Arc<Mutex<HashMap<PathBuf, PathBuf>>>,
}

#[derive(Debug)]
struct RecordedFile {
    file: Arc<dyn VolumeFile>,
    path: PathBuf,
    recorder: Recorder,
}

impl Recorder {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            disk: Disk::at(root),
            calls: Arc::default(),
            names: Arc::default(),
        }
    }

    /// The calls since the last time.
    pub(crate) fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn done<T>(&self, result: io::Result<T>, call: Call) -> io::Result<T> {
        if result.is_ok() {
            self.calls.lock().unwrap().push(call);
        }
        result
    }

    fn file(&self, path: &Path, file: Arc<dyn VolumeFile>) -> Arc<dyn VolumeFile> {
        Arc::new(RecordedFile {
            file,
            path: path.to_owned(),
            recorder: self.clone(),
        })
    }
}

impl Volume for Recorder {
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        self.disk.open_read(path)
    }

    fn open_write(&self, path: &Path, create: bool) -> io::Result<Arc<dyn VolumeFile>> {
        Ok(self.file(path, self.disk.open_write(path, create)?))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        Ok(self.file(path, self.disk.create_new(path)?))
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.disk.metadata(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        self.disk.list(folder)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.done(self.disk.create_dir(path), Call::CreateDir(path.to_owned()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = self.names.lock().unwrap();
        names.insert(from.to_owned(), to.to_owned());
        drop(names);
        self.done(
            self.disk.rename(from, to),
            Call::Rename(from.to_owned(), to.to_owned()),
        )
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.link(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.done(self.disk.remove_file(path), Call::Remove(path.to_owned()))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.done(self.disk.remove_dir(path), Call::RemoveDir(path.to_owned()))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let removed = self.disk.remove_dir_all(path);
        self.done(removed, Call::RemoveTree(path.to_owned()))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.done(self.disk.sync_dir(path), Call::SyncDir(path.to_owned()))
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        self.disk.touch(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.disk.space(path)
    }

    /// Everything where it is asked for: what is recorded belongs to one operation, and nothing
    /// goes on beside it.
    fn is_blocking(&self) -> bool {
        false
    }
}

impl RecordedFile {
    fn name(&self) -> PathBuf {
        let names = self.recorder.names.lock().unwrap();
        names.get(&self.path).unwrap_or(&self.path).clone()
    }
}

impl VolumeFile for RecordedFile {
    fn read_at(&self, buffer: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let written = self.file.write_at(bytes, offset);
        self.recorder.done(written, Call::Write(self.name()))
    }

    fn write_vectored_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let written = self.file.write_vectored_at(pieces, offset);
        self.recorder.done(written, Call::Write(self.name()))
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let cut = self.file.set_len(len);
        self.recorder.done(cut, Call::Write(self.name()))
    }

    fn sync(&self) -> io::Result<()> {
        let synced = self.file.sync();
        self.recorder.done(synced, Call::Sync(self.name()))
    }

    fn start_write_back(&self, offset: u64, length: u64) {
        self.file.start_write_back(offset, length);
        let call = Call::StartWriteBack(self.name(), length);
        self.recorder.calls.lock().unwrap().push(call);
    }
}
