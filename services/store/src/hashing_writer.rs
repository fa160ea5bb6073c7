//! Writes incoming bytes at explicit offsets, hashes them, and reports the progress to readers.
//!
//! Receiving and writing overlap: while one batch is written, the next one queues, up to
//! [`QUEUE_BYTES`] for each file and [`Pool::QUEUE_BYTES`] for all files. A slow volume slows its
//! senders. A batch never waits until it is full. Readers of a growing file follow [`Progress`].

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};

use crate::{Error, Hasher, Pool, Result, volume::VolumeFile};

/// Bytes that may wait for the volume, for each file.
pub(crate) const QUEUE_BYTES: usize = 512 << 10;

/// At every multiple of this offset, write-back of the bytes before it starts. Without it the disk
/// idles while bytes arrive, and the sync at the end waits for all of them. Small files never reach
/// it: their sync is their only write.
pub(crate) const WRITE_BACK_BYTES: u64 = 8 << 20;

/// How far a growing file is, and whether it still grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// This number of bytes can be read; more will come.
    Growing(u64),
    /// All bytes, this number, are written and verified.
    Complete(u64),
    /// The writer gave up; no more will come.
    Failed,
}

#[derive(Clone, Debug)]
pub(crate) struct HashingWriter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pool: Pool,
    file: Arc<dyn VolumeFile>,
    path: PathBuf,
    state: Mutex<State>,
    changed: Notify,
    progress: watch::Sender<Progress>,
}

#[derive(Debug)]
struct State {
    /// Each with its share of the bytes that may wait in all files.
    queue: VecDeque<(Bytes, OwnedSemaphorePermit)>,
    queued_bytes: usize,
    running: bool,
    failed: Option<Failure>,
    hasher: Option<Hasher>,
    written: u64,
    /// Up to here write-back was started.
    written_back: u64,
}

#[derive(Clone, Copy, Debug)]
enum Failure {
    NoSpace,
    Busy,
    Io(io::ErrorKind),
}

impl HashingWriter {
    pub(crate) fn new(
        pool: Pool,
        file: Arc<dyn VolumeFile>,
        path: PathBuf,
        offset: u64,
        hasher: Hasher,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                pool,
                file,
                path,
                state: Mutex::new(State {
                    queue: VecDeque::new(),
                    queued_bytes: 0,
                    running: false,
                    failed: None,
                    hasher: Some(hasher),
                    written: offset,
                    written_back: offset,
                }),
                changed: Notify::new(),
                progress: watch::Sender::new(Progress::Growing(offset)),
            }),
        }
    }

    pub(crate) fn file(&self) -> &Arc<dyn VolumeFile> {
        &self.shared.file
    }

    pub(crate) fn progress(&self) -> &watch::Sender<Progress> {
        &self.shared.progress
    }

    /// Takes bytes; waits only while the queue is full.
    pub(crate) async fn append(&self, bytes: Bytes) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let share = self.shared.pool.queue(bytes.len()).await?;
        {
            let mut state = self.shared.state();
            state.check(&self.shared.path)?;
            state.queued_bytes += bytes.len();
            state.queue.push_back((bytes, share));
            if !state.running {
                state.running = true;
                tokio::spawn(write_all(Arc::clone(&self.shared)));
            }
        }
        self.wait(|state| state.queued_bytes <= QUEUE_BYTES).await
    }

    /// Waits until everything taken is written; returns the size and the digest so far.
    pub(crate) async fn drain(&self) -> Result<(u64, Hasher)> {
        self.wait(|state| !state.running).await?;
        let state = self.shared.state();
        state.check(&self.shared.path)?;
        let hasher = state.hasher.clone().ok_or(Error::Busy)?;
        Ok((state.written, hasher))
    }

    /// Runs `work` once no write is in flight, for example to release the lock of the file.
    pub(crate) fn when_idle(&self, work: impl FnOnce() + Send + 'static) {
        let writer = self.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                drop(writer.drain().await);
                work();
            });
        }
    }

    async fn wait(&self, ready: impl Fn(&State) -> bool) -> Result<()> {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            {
                let state = self.shared.state();
                state.check(&self.shared.path)?;
                if ready(&state) {
                    return Ok(());
                }
            }
            changed.await;
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Writes one batch; `false` when nothing was left to write.
    fn write_batch(&self) -> Result<bool> {
        let (batch, mut offset, hasher) = {
            let mut state = self.state();
            if state.queue.is_empty() {
                state.running = false;
                return Ok(false);
            }
            state.queued_bytes = 0;
            (
                std::mem::take(&mut state.queue),
                state.written,
                state.hasher.take(),
            )
        };
        // Makes room for the sender while this batch is written.
        self.changed.notify_waiters();
        let mut hasher = hasher.ok_or(Error::Busy)?;
        let mut pieces: Vec<_> = batch.iter().map(|(bytes, _)| IoSlice::new(bytes)).collect();
        self.file
            .write_all_vectored_at(&mut pieces, offset)
            .map_err(Error::io("write", &self.path))?;
        for (bytes, _) in &batch {
            hasher.update(bytes);
            offset += bytes.len() as u64;
        }
        let mut state = self.state();
        state.written = offset;
        state.hasher = Some(hasher);
        let behind = state.take_write_back();
        drop(state);
        self.progress.send_if_modified(|progress| {
            let grows = matches!(progress, Progress::Growing(_));
            if grows {
                *progress = Progress::Growing(offset);
            }
            grows
        });
        if let Some((from, length)) = behind {
            self.file.start_write_back(from, length);
        }
        Ok(true)
    }
}

impl State {
    /// Offset and length of what is written and whose write-back is due. It ends at a whole page:
    /// one that is written to while it is on its way to the disk would go twice.
    fn take_write_back(&mut self) -> Option<(u64, u64)> {
        let from = self.written_back;
        let end = self.written - self.written % WRITE_BACK_BYTES;
        (from < end).then(|| {
            self.written_back = end;
            (from, end - from)
        })
    }

    fn check(&self, path: &std::path::Path) -> Result<()> {
        match self.failed {
            None => Ok(()),
            Some(Failure::NoSpace) => Err(Error::NoSpace { available_bytes: 0 }),
            Some(Failure::Busy) => Err(Error::Busy),
            Some(Failure::Io(kind)) => Err(Error::io("write", path)(kind.into())),
        }
    }
}

async fn write_all(shared: Arc<Shared>) {
    loop {
        let batch = Arc::clone(&shared);
        let result = shared.pool.run(move || batch.write_batch()).await;
        match result {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                let mut state = shared.state();
                state.running = false;
                state.failed = Some(match error {
                    Error::NoSpace { .. } => Failure::NoSpace,
                    Error::Io { source, .. } => Failure::Io(source.kind()),
                    _ => Failure::Busy,
                });
                break;
            }
        }
    }
    shared.changed.notify_waiters();
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use holdfast_core::digest::Algorithm;

    use super::*;
    use crate::volume::Metadata;

    /// A file of a volume that takes nothing until it is told to.
    #[derive(Debug, Default)]
    struct Stuck {
        opened: Mutex<bool>,
        opens: parking_lot::Condvar,
        written: AtomicUsize,
    }

    impl VolumeFile for Stuck {
        fn read_at(&self, _: &mut Vec<u8>, _: u64) -> io::Result<usize> {
            Ok(0)
        }

        fn write_at(&self, bytes: &[u8], _: u64) -> io::Result<usize> {
            let mut opened = self.opened.lock();
            self.opens.wait_while(&mut opened, |opened| !*opened);
            drop(opened);
            self.written.fetch_add(bytes.len(), Ordering::SeqCst);
            Ok(bytes.len())
        }

        fn metadata(&self) -> io::Result<Metadata> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        fn start_write_back(&self, _: u64, _: u64) {}
    }

    #[test]
    fn the_document_lists_the_bounds_of_queues() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/LIMITS.md");
        let document = std::fs::read_to_string(path).unwrap();
        for (name, value) in [
            ("QUEUE_BYTES", QUEUE_BYTES),
            ("Pool::QUEUE_BYTES", Pool::QUEUE_BYTES),
        ] {
            let cells = format!("| `{name}` | {value} |");
            assert!(document.contains(&cells), "docs/LIMITS.md lacks {cells}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_waits_for_the_volume_is_bounded_in_all_files_together() {
        const PIECE: usize = 64 << 10;
        let files = 2 * Pool::QUEUE_BYTES / QUEUE_BYTES;
        let pool = Pool::new(8);
        let file = Arc::new(Stuck::default());
        let taken = Arc::new(AtomicUsize::new(0));
        let uploads: Vec<_> = (0..files)
            .map(|number| {
                let (pool, file, taken) = (pool.clone(), Arc::clone(&file), Arc::clone(&taken));
                tokio::spawn(async move {
                    let hasher = Hasher::new(Algorithm::Sha256);
                    let path = PathBuf::from(format!("{number}"));
                    let writer = HashingWriter::new(pool, file, path, 0, hasher);
                    for _ in 0..2 * QUEUE_BYTES / PIECE {
                        let piece = Bytes::from(vec![0; PIECE]);
                        taken.fetch_add(PIECE, Ordering::SeqCst);
                        writer.append(piece).await.unwrap();
                    }
                    writer.drain().await.unwrap().0
                })
            })
            .collect();
        // Until nothing moves any more.
        let mut before = usize::MAX;
        while before != taken.load(Ordering::SeqCst) {
            before = taken.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // Each upload holds the piece that it waits with, too.
        let most = Pool::QUEUE_BYTES + files * PIECE;
        assert!(before <= most, "{before} bytes taken, {most} at most");
        assert!(Pool::QUEUE_BYTES - PIECE < before, "{before} bytes taken");
        *file.opened.lock() = true;
        file.opens.notify_all();
        for upload in uploads {
            assert_eq!(upload.await.unwrap(), 2 * QUEUE_BYTES as u64);
        }
        let all = files * 2 * QUEUE_BYTES;
        assert_eq!(file.written.load(Ordering::SeqCst), all);
        assert_eq!(
            pool.queue(Pool::QUEUE_BYTES).await.unwrap().num_permits(),
            Pool::QUEUE_BYTES
        );
    }
}
