//! The handle that every part of a process shares.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_core::digest::Digest;
use uuid::Uuid;

use crate::{
    Error, Layout, Pool, Result, Space, WriteGate, WriteLimits,
    buffers::Buffers,
    deletes::UntagQueue,
    durable::{self, DurableFs},
    uploads::RehashSlots,
    volume::{Disk, Volume},
};

/// How a store uses its machine.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads that may be on the volume at once.
    pub threads: usize,
    /// Bytes that all streams of the process together may hold in buffers.
    pub buffer_bytes: usize,
    /// When writes are refused.
    pub write_limits: WriteLimits,
    /// For how long content that was hashed once counts as sound.
    pub verified_for: Duration,
}

impl Options {
    /// The defaults without any limit or warning for room: for tests and tools that write where
    /// other users of the disk must not matter.
    pub fn unlimited() -> Self {
        Self {
            write_limits: WriteLimits {
                max_used_percent: 100,
                reserve_bytes: 0,
                warn_used_percent: 101,
            },
            ..Self::default()
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 32,
            buffer_bytes: 48 << 20,
            write_limits: WriteLimits::default(),
            verified_for: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// The content store of one volume. Clones share everything.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    /// The same store over what needs no waiting.
    nonblocking: Option<Arc<Inner>>,
    /// Who asks for its lists.
    client: Option<IpAddr>,
}

#[derive(Clone, Debug)]
pub(crate) struct Inner {
    pub(crate) files: DurableFs,
    pub(crate) root: PathBuf,
    pub(crate) layout: Layout,
    pub(crate) pool: Pool,
    pub(crate) buffers: Buffers,
    pub(crate) gate: Arc<WriteGate>,
    pub(crate) verified: Arc<Mutex<HashMap<Digest, crate::blobs::Verified>>>,
    pub(crate) verified_for: Duration,
    pub(crate) untag_queue: Arc<UntagQueue>,
    pub(crate) rehash_slots: Arc<RehashSlots>,
}

impl Store {
    /// Opens the store below `dir` (distribution's `rootdirectory`), making its folders if they are
    /// missing.
    ///
    /// # Errors
    /// [`Error::Io`] when the folders cannot be made.
    pub async fn open(dir: impl Into<PathBuf>, options: Options) -> Result<Self> {
        let root = dir.into();
        let at = root.clone();
        let disk = tokio::task::spawn_blocking(move || Disk::at(&at))
            .await
            .map_err(|_| Error::Busy)?;
        Self::open_on(Arc::new(disk), root, options).await
    }

    /// Opens the store below `dir` of another volume than this machine's file system.
    ///
    /// # Errors
    /// [`Error::Io`] when the folders cannot be made.
    pub async fn open_on(
        volume: Arc<dyn Volume>,
        dir: impl Into<PathBuf>,
        options: Options,
    ) -> Result<Self> {
        let root = dir.into();
        let layout = Layout::new(&root);
        let pool = if volume.is_blocking() {
            Pool::new(options.threads)
        } else {
            Pool::in_place()
        };
        let folders = [
            layout.blobs(),
            layout.repositories(),
            layout.own(),
            layout.deletes(),
        ];
        let view = volume.nonblocking_view();
        let files = DurableFs::new(volume, root.clone());
        let files = pool
            .run(move || {
                folders
                    .iter()
                    .try_for_each(|folder| files.create_dir(folder))
                    .map(|()| files)
            })
            .await?;
        let inner = Inner {
            files,
            gate: Arc::new(WriteGate::new(root.clone(), options.write_limits)),
            root,
            layout,
            pool,
            buffers: Buffers::new(options.buffer_bytes),
            verified: Arc::default(),
            verified_for: options.verified_for,
            untag_queue: Arc::default(),
            rehash_slots: Arc::default(),
        };
        Ok(Self {
            nonblocking: view.map(|volume| {
                Arc::new(Inner {
                    files: inner.files.with_volume(volume),
                    ..inner.clone()
                })
            }),
            inner: Arc::new(inner),
            client: None,
        })
    }

    /// Where things are.
    pub fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    /// The root that the store was opened with.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The threads of the volume, for callers that read growing files themselves.
    pub fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    /// Free and total bytes of the volume, asked now.
    pub async fn free_space(&self) -> Result<Space> {
        self.run(|inner| {
            inner
                .volume()
                .space(&inner.root)
                .map_err(Error::io("stat", &inner.root))
        })
        .await
    }

    /// Refuses a write of `bytes` (0 = unknown) while the volume is too full; asked of the volume
    /// at most once a second.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub async fn check_write(&self, bytes: u64) -> Result<()> {
        let space = if let Some(space) = self.inner.gate.cached() {
            space
        } else {
            let space = self.free_space().await?;
            self.inner.gate.remember(space);
            space
        };
        self.inner.gate.allows(space, bytes)
    }

    /// The used share of the volume in percent, once it is high enough to warn clients that write.
    /// As the last write found it: asks nothing.
    pub fn filling(&self) -> Option<u8> {
        self.inner.gate.filling()
    }

    /// Writes, renames, reads and removes a file on the volume; fails after `deadline`. For
    /// readiness.
    ///
    /// # Errors
    /// [`Error::Busy`] after the deadline, or what the volume says.
    pub async fn probe(&self, deadline: Duration) -> Result<()> {
        let path = self
            .inner
            .layout
            .own()
            .join(format!("probe.{}", Uuid::new_v4()));
        let work = self.run(move |inner| {
            inner.files.write_file(&path, b"probe")?;
            let read = inner
                .volume()
                .open_read(&path)
                .and_then(|file| durable::read_up_to(&*file, 16))
                .map_err(Error::io("read", &path))?;
            inner.files.remove_file(&path)?;
            if read == b"probe" {
                Ok(())
            } else {
                Err(Error::io("read", path)(
                    std::io::ErrorKind::InvalidData.into(),
                ))
            }
        });
        tokio::time::timeout(deadline, work)
            .await
            .unwrap_or(Err(Error::Busy))
    }

    /// Reads one byte range of metadata to see whether the volume answers; works on a full volume
    /// too.
    ///
    /// # Errors
    /// [`Error::Busy`] after the deadline, or what the volume says.
    pub async fn probe_read(&self, deadline: Duration) -> Result<()> {
        let path = self.inner.layout.repositories();
        let work = self.run(move |inner| {
            inner
                .volume()
                .list(&path)
                .map(drop)
                .map_err(Error::io("list", path))
        });
        tokio::time::timeout(deadline, work)
            .await
            .unwrap_or(Err(Error::Busy))
    }

    /// Runs work that only reads here and now, if all that it needs is in the kernel's memory: that
    /// spares two changes of thread. `None` when it is not; the same work then belongs on the
    /// pool.
    pub(crate) fn try_nonblocking<T>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T>,
    ) -> Option<Result<T>> {
        match work(self.nonblocking.as_ref()?) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::WouldBlock => {
                None
            }
            done => Some(done),
        }
    }

    /// The same store for a client, given as an IPv4 address or the first 64 bits of an IPv6
    /// address: clients take turns in reading lists.
    #[must_use]
    pub fn for_client(&self, client: IpAddr) -> Self {
        Self {
            client: Some(client),
            ..self.clone()
        }
    }

    /// [`Store::run`] for lists, which may be long.
    pub(crate) async fn list<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Inner) -> Result<T> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        let lists = self.inner.pool.list(self.client, move || work(&inner));
        lists.await
    }

    pub(crate) async fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Inner) -> Result<T> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        self.inner.pool.run(move || work(&inner)).await
    }
}

impl Inner {
    pub(crate) fn volume(&self) -> &dyn Volume {
        self.files.volume()
    }

    /// Whether the volume has room for `bytes` more, asked now.
    ///
    /// # Errors
    /// [`Error::NoSpace`], or what the volume says.
    pub(crate) fn check_room(&self, bytes: u64) -> Result<()> {
        let space = self.volume().space(&self.root);
        let space = space.map_err(Error::io("stat", &self.root))?;
        self.gate.allows(space, bytes)
    }
}
