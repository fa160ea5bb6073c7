//! The handle that all parts of a process share: a façade over the components of the store. Each of
//! its calls runs one component on the pool. `content.rs` and `sessions.rs` hold its methods.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{
    Error, Layout, Pool, Result, Space, VolumeHealth, WriteGate, WriteLimits,
    blobs::{Blobs, VerifiedBlobs},
    buffers::Buffers,
    deletes::{Deletes, UntagQueue},
    durable::DurableFs,
    health,
    ingest::Ingests,
    locks::Locks,
    manifests::Manifests,
    referrers::Referrers,
    repositories::Repositories,
    tags::Tags,
    uploads::Uploads,
    volume::{Disk, Volume},
};

mod content;
mod sessions;

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
    pub(crate) parts: Arc<Parts>,
    /// Components over the volume's non-blocking view.
    nonblocking: Option<Arc<NonBlocking>>,
    /// The client for whom lists are read.
    client: Option<IpAddr>,
}

/// The components of the store.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) files: DurableFs,
    pub(crate) root: PathBuf,
    pub(crate) layout: Layout,
    pub(crate) pool: Pool,
    pub(crate) gate: Arc<WriteGate>,
    pub(crate) blobs: Blobs,
    pub(crate) repositories: Repositories,
    pub(crate) manifests: Manifests,
    pub(crate) tags: Tags,
    pub(crate) referrers: Referrers,
    pub(crate) deletes: Deletes,
    pub(crate) locks: Arc<Locks>,
    pub(crate) uploads: Arc<Uploads>,
    pub(crate) ingests: Arc<Ingests>,
}

/// What a pull needs, over the non-blocking view of the volume.
#[derive(Debug)]
pub(crate) struct NonBlocking {
    pub(crate) blobs: Blobs,
    pub(crate) manifests: Manifests,
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
        let shared = Shared::new(root, layout, pool, &options);
        let nonblocking = view.map(|view| {
            let content = shared.content(&files.with_volume(view));
            Arc::new(NonBlocking {
                blobs: content.blobs,
                manifests: content.manifests,
            })
        });
        Ok(Self {
            parts: Arc::new(shared.parts(files)),
            nonblocking,
            client: None,
        })
    }

    /// Where things are.
    pub fn layout(&self) -> &Layout {
        &self.parts.layout
    }

    /// The root that the store was opened with.
    pub fn root(&self) -> &Path {
        &self.parts.root
    }

    /// The threads of the volume, for callers that read growing files themselves.
    pub fn pool(&self) -> &Pool {
        &self.parts.pool
    }

    /// Free and total bytes of the volume, asked now.
    pub async fn free_space(&self) -> Result<Space> {
        self.run(|parts| {
            parts
                .files
                .volume()
                .space(&parts.root)
                .map_err(Error::io("stat", &parts.root))
        })
        .await
    }

    /// Refuses a write of `bytes` (0 = unknown) while the volume is too full; asked of the volume
    /// at most once a second.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub async fn check_write(&self, bytes: u64) -> Result<()> {
        let space = if let Some(space) = self.parts.gate.cached() {
            space
        } else {
            let space = self.free_space().await?;
            self.parts.gate.remember(space);
            space
        };
        self.parts.gate.allows(space, bytes)
    }

    /// The used share of the volume in percent, once it is high enough to warn clients that write.
    /// As the last write found it: asks nothing.
    pub fn filling(&self) -> Option<u8> {
        self.parts.gate.filling()
    }

    /// Checks the volume. Blocks for as long as the volume does, on the caller's thread.
    ///
    /// # Errors
    /// [`Error::Io`] when the volume answers with anything but "full" and "read-only".
    pub fn check_health(&self) -> Result<VolumeHealth> {
        let parts = &self.parts;
        health::check(parts.files.volume(), &parts.layout, &parts.gate)
    }

    /// Runs work that only reads on the caller's thread, if the kernel has all that it needs in
    /// memory: that saves two changes of thread. `None` when it has not; the same work then runs on
    /// the pool.
    pub(crate) fn try_nonblocking<T>(
        &self,
        work: impl FnOnce(&NonBlocking) -> Result<T>,
    ) -> Option<Result<T>> {
        match work(self.nonblocking.as_deref()?) {
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

    /// [`Store::run`] for lists, which may be long: few at a time, and clients take turns.
    pub(crate) async fn list<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Parts) -> Result<T> + Send + 'static,
    {
        let parts = Arc::clone(&self.parts);
        let lists = self.parts.pool.list(self.client, move || work(&parts));
        lists.await
    }

    /// Runs a component on the pool.
    pub(crate) async fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Parts) -> Result<T> + Send + 'static,
    {
        let parts = Arc::clone(&self.parts);
        self.parts.pool.run(move || work(&parts)).await
    }
}

/// What the components share, whatever view of the volume they use.
struct Shared {
    root: PathBuf,
    layout: Layout,
    pool: Pool,
    buffers: Buffers,
    gate: Arc<WriteGate>,
    verified: Arc<VerifiedBlobs>,
    untag_queue: Arc<UntagQueue>,
}

struct Content {
    blobs: Blobs,
    deletes: Deletes,
    tags: Tags,
    manifests: Manifests,
}

impl Shared {
    fn new(root: PathBuf, layout: Layout, pool: Pool, options: &Options) -> Self {
        Self {
            gate: Arc::new(WriteGate::new(root.clone(), options.write_limits)),
            root,
            layout,
            pool,
            buffers: Buffers::new(options.buffer_bytes),
            verified: Arc::new(VerifiedBlobs::new(options.verified_for)),
            untag_queue: Arc::default(),
        }
    }

    /// The components of content, over one view of the volume.
    fn content(&self, files: &DurableFs) -> Content {
        let layout = || self.layout.clone();
        let blobs = Blobs::new(
            files.clone(),
            layout(),
            self.pool.clone(),
            self.buffers.clone(),
            Arc::clone(&self.verified),
        );
        let queue = Arc::clone(&self.untag_queue);
        let deletes = Deletes::new(files.clone(), layout(), self.pool.clone(), queue);
        let tags = Tags::new(files.clone(), layout(), deletes.clone());
        let manifests = Manifests::new(
            files.clone(),
            layout(),
            blobs.clone(),
            tags.clone(),
            deletes.clone(),
        );
        Content {
            blobs,
            deletes,
            tags,
            manifests,
        }
    }

    fn parts(self, files: DurableFs) -> Parts {
        let Content {
            blobs,
            deletes,
            tags,
            manifests,
        } = self.content(&files);
        let layout = || self.layout.clone();
        let pool = || self.pool.clone();
        let locks = Arc::new(Locks::new(files.clone(), layout(), pool()));
        Parts {
            repositories: Repositories::new(files.clone(), layout(), blobs.clone()),
            referrers: Referrers::new(files.clone(), layout()),
            uploads: Arc::new(Uploads::new(
                files.clone(),
                layout(),
                pool(),
                Arc::clone(&self.gate),
                blobs.clone(),
                Arc::clone(&locks),
            )),
            ingests: Arc::new(Ingests::new(
                files.clone(),
                layout(),
                pool(),
                self.buffers.clone(),
                Arc::clone(&self.gate),
                blobs.clone(),
            )),
            files,
            root: self.root,
            layout: self.layout,
            pool: self.pool,
            gate: self.gate,
            blobs,
            manifests,
            tags,
            deletes,
            locks,
        }
    }
}
