//! A volume that measures how long its calls take, under distribution's names where those exist.
//!
//! Files that are only read are not wrapped: their reads are the data path.

use std::{
    io::{self, IoSlice},
    path::Path,
    sync::Arc,
    time::Instant,
};

use holdfast_runtime::metrics::Histogram;
use holdfast_store::{
    Space,
    volume::{Entry, Metadata, Volume, VolumeFile},
};

use crate::Metrics;

/// Measures another volume.
#[derive(Debug)]
pub struct MeasuredVolume {
    inner: Arc<dyn Volume>,
    stat: Histogram,
    list: Histogram,
    reader: Histogram,
    writer: Histogram,
    moved: Histogram,
    delete: Histogram,
    write: Arc<Write>,
}

/// What is measured of files that are written.
#[derive(Debug)]
struct Write {
    write: Histogram,
    sync: Histogram,
}

#[derive(Debug)]
struct MeasuredFile {
    inner: Arc<dyn VolumeFile>,
    times: Arc<Write>,
}

fn timed<T>(histogram: &Histogram, call: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = call();
    histogram.observe(begun.elapsed().as_secs_f64());
    result
}

impl MeasuredVolume {
    /// Measures `inner`.
    pub fn new(inner: Arc<dyn Volume>, metrics: &Metrics) -> Self {
        Self {
            inner,
            stat: metrics.action("Stat"),
            list: metrics.action("List"),
            reader: metrics.action("Reader"),
            writer: metrics.action("Writer"),
            moved: metrics.action("Move"),
            delete: metrics.action("Delete"),
            write: Arc::new(Write {
                write: metrics.action("Write"),
                sync: metrics.action("Sync"),
            }),
        }
    }

    fn written(&self, file: io::Result<Arc<dyn VolumeFile>>) -> io::Result<Arc<dyn VolumeFile>> {
        Ok(Arc::new(MeasuredFile {
            inner: file?,
            times: Arc::clone(&self.write),
        }))
    }
}

impl Volume for MeasuredVolume {
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        timed(&self.reader, || self.inner.open_read(path))
    }

    fn open_write(&self, path: &Path, create: bool) -> io::Result<Arc<dyn VolumeFile>> {
        self.written(timed(&self.writer, || self.inner.open_write(path, create)))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        self.written(timed(&self.writer, || self.inner.create_new(path)))
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        timed(&self.stat, || self.inner.metadata(path))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        timed(&self.list, || self.inner.list(folder))
    }

    fn list_below(&self, folder: &Path, names: &[String]) -> io::Result<Vec<Option<Vec<Entry>>>> {
        timed(&self.list, || self.inner.list_below(folder, names))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        timed(&self.writer, || self.inner.create_dir(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        timed(&self.moved, || self.inner.rename(from, to))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        timed(&self.moved, || self.inner.link(from, to))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        timed(&self.delete, || self.inner.remove_file(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        timed(&self.delete, || self.inner.remove_dir(path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        timed(&self.delete, || self.inner.remove_dir_all(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        timed(&self.write.sync, || self.inner.sync_dir(path))
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        timed(&self.stat, || self.inner.touch(path))
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.inner.space(path)
    }

    fn refresh(&self, path: &Path) -> io::Result<bool> {
        self.inner.refresh(path)
    }

    fn nonblocking_view(&self) -> Option<Arc<dyn Volume>> {
        // What never waits for the volume says nothing of the volume.
        self.inner.nonblocking_view()
    }

    fn is_blocking(&self) -> bool {
        self.inner.is_blocking()
    }
}

impl VolumeFile for MeasuredFile {
    fn read_at(&self, buffer: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        self.inner.read_at(buffer, offset)
    }

    fn read_into(&self, buffer: &mut [u8], offset: u64, wait: bool) -> io::Result<usize> {
        self.inner.read_into(buffer, offset, wait)
    }

    fn blocking_handle(&self) -> Option<Arc<dyn VolumeFile>> {
        self.inner.blocking_handle()
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        timed(&self.times.write, || self.inner.write_at(bytes, offset))
    }

    fn write_vectored_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        timed(&self.times.write, || {
            self.inner.write_vectored_at(pieces, offset)
        })
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.inner.metadata()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        timed(&self.times.sync, || self.inner.sync())
    }

    fn start_write_back(&self, offset: u64, length: u64) {
        self.inner.start_write_back(offset, length);
    }
}
