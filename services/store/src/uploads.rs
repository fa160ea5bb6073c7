//! Upload sessions, in distribution's folders. A session's truth is its file's size; whoever continues it says at which offset.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};
use uuid::Uuid;

use crate::{
    Claim, Error, Hasher, Lock, Owner, Result, Store, atomic,
    error::absent,
    incoming::hash_prefix,
    links,
    sink::Sink,
    store::Inner,
    volume::{Volume, VolumeFile},
};

/// Name of an upload session: a UUID of any version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UploadId(String);

impl UploadId {
    /// Parses the canonical form of a UUID; `None` for anything else, so that it is safe in a path.
    pub fn parse(text: &str) -> Option<Self> {
        let id = Uuid::try_parse(text).ok()?.hyphenated().to_string();
        (id == text).then_some(Self(id))
    }

    /// The canonical form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How often, and after which pause, a session's lock is asked for.
const LOCK_ATTEMPTS: usize = 60;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

/// What a session holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadStatus {
    /// Bytes received.
    pub size: u64,
}

/// A writer of a session, for the length of one request.
#[derive(Debug)]
pub struct UploadWriter {
    store: Store,
    repo: RepositoryName,
    id: UploadId,
    path: PathBuf,
    sink: Sink,
    accepted: u64,
    hold: Option<Hold>,
}

/// A file that is written, and the hash of what is in it.
type Opened = (PathBuf, Arc<dyn VolumeFile>, Hasher);

/// Why nobody else writes what this writer writes.
#[derive(Debug)]
enum Hold {
    /// It goes on with the session's file, and holds the session's lock.
    Session(Lock),
    /// It has a file of its own, which goes with it.
    Own,
}

impl Store {
    /// Starts a session.
    pub async fn create_upload(&self, repo: &RepositoryName, started_at: &str) -> Result<UploadId> {
        let (repo, started_at) = (repo.clone(), started_at.to_owned());
        self.run(move |inner| {
            let id = UploadId(Uuid::new_v4().to_string());
            // A session need not survive; what is made of it makes its own folders durable.
            let folder = inner.layout.upload(&repo, id.as_str());
            atomic::create_dir_plain(inner.volume(), &folder)?;
            atomic::write_plain(
                inner.volume(),
                &folder.join("startedat"),
                started_at.as_bytes(),
            )?;
            Ok(id)
        })
        .await
    }

    /// What a session holds; `None` if there is no such session.
    pub async fn upload_status(
        &self,
        repo: &RepositoryName,
        id: &UploadId,
    ) -> Result<Option<UploadStatus>> {
        let (repo, id) = (repo.clone(), id.clone());
        self.run(move |inner| {
            inner
                .upload_size(&repo, &id)
                .map(|size| size.map(|size| UploadStatus { size }))
        })
        .await
    }

    /// Ends a session and frees its bytes at once. `false` if there was none.
    pub async fn cancel_upload(&self, repo: &RepositoryName, id: &UploadId) -> Result<bool> {
        let (repo, id) = (repo.clone(), id.clone());
        self.run(move |inner| {
            let known = inner.upload_size(&repo, &id)?.is_some();
            atomic::remove_tree(inner.volume(), &inner.layout.upload(&repo, id.as_str()))?;
            Ok(known)
        })
        .await
    }

    /// Continues a session at `offset`. Bytes behind it are cut off: they come from an attempt whose reply was lost. Without a hash
    /// state for exactly that offset the file is hashed again.
    ///
    /// # Errors
    /// [`Error::UploadUnknown`], [`Error::UploadInUse`], [`Error::OffsetMismatch`] when `offset` is behind the end.
    pub async fn upload_writer(
        &self,
        repo: &RepositoryName,
        id: &UploadId,
        offset: u64,
        hash: Result<Hasher, Algorithm>,
        owner: &Owner,
    ) -> Result<UploadWriter> {
        let lock = self.lock_upload(id, owner).await?;
        let opened = self.open_upload(repo, id, offset, hash).await;
        match opened {
            Ok(opened) => Ok(self.writing(repo, id, opened, offset, Hold::Session(lock))),
            Err(error) => {
                lock.release(&self.inner.pool).await;
                Err(error)
            }
        }
    }

    fn writing(
        &self,
        repo: &RepositoryName,
        id: &UploadId,
        (path, file, hasher): Opened,
        offset: u64,
        hold: Hold,
    ) -> UploadWriter {
        UploadWriter {
            store: self.clone(),
            repo: repo.clone(),
            id: id.clone(),
            sink: Sink::new(self.inner.pool.clone(), file, path.clone(), offset, hasher),
            path,
            accepted: offset,
            hold: Some(hold),
        }
    }

    /// A writer for a request that brings all bytes of a session, to be committed at the end. It needs no lock, because its file is its own: what
    /// the session held is of no use any more, and what came is thrown away with the writer unless it is committed.
    ///
    /// # Errors
    /// [`Error::UploadUnknown`], or what the volume says.
    pub async fn whole_upload_writer(
        &self,
        repo: &RepositoryName,
        id: &UploadId,
        algorithm: Algorithm,
    ) -> Result<UploadWriter> {
        let (name, session) = (repo.clone(), id.clone());
        let opened = self
            .run(move |inner| {
                let session = inner.layout.upload(&name, session.as_str());
                let path = atomic::temporary(&session.join("data"));
                let file = absent(inner.volume().create_new(&path))
                    .map_err(Error::io("create", &path))?
                    .ok_or(Error::UploadUnknown)?;
                Ok((path, file, Hasher::new(algorithm)))
            })
            .await?;
        Ok(self.writing(repo, id, opened, 0, Hold::Own))
    }

    /// The session's lock. A request that just ended, or whose client just broke off, may still hold it for a moment.
    async fn lock_upload(&self, id: &UploadId, owner: &Owner) -> Result<Lock> {
        let name = format!("upload-{}", id.as_str());
        for _ in 0..LOCK_ATTEMPTS {
            if let Claim::Held(lock) = self.try_lock(&name, owner).await? {
                return Ok(lock);
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
        Err(Error::UploadInUse)
    }

    async fn open_upload(
        &self,
        repo: &RepositoryName,
        id: &UploadId,
        offset: u64,
        hash: Result<Hasher, Algorithm>,
    ) -> Result<Opened> {
        let (name, session) = (repo.clone(), id.clone());
        self.run(move |inner| {
            let path = inner.layout.upload(&name, session.as_str()).join("data");
            let Some(size) = inner.upload_size(&name, &session)? else {
                return Err(Error::UploadUnknown);
            };
            let file =
                atomic::open_write(inner.volume(), &path, true)?.ok_or(Error::UploadUnknown)?;
            if size < offset {
                return Err(Error::OffsetMismatch { size, offset });
            }
            if size > offset {
                // Distribution keeps hashes of what lies before an offset and trusts them by the file's size alone.
                let session = atomic::parent(&path)?;
                atomic::remove_tree(inner.volume(), &session.join("hashstates"))?;
                inner
                    .volume()
                    .sync_dir(session)
                    .map_err(Error::io("sync", session))?;
                file.set_len(offset).map_err(Error::io("truncate", &path))?;
            }
            let hasher = match hash {
                Ok(hasher) => hasher,
                Err(algorithm) => hash_prefix(&*file, Hasher::new(algorithm), offset)
                    .map_err(Error::io("read", &path))?,
            };
            Ok((path, file, hasher))
        })
        .await
    }

    /// Removes sessions and partial fills without activity for `idle`; returns how many. Ages come from the volume's clock.
    pub async fn purge_idle(&self, idle: Duration) -> Result<usize> {
        let repositories = self.repositories_with_uploads().await?;
        self.run(move |inner| {
            let now = volume_now(inner)?;
            let mut purged = 0;
            for repo in repositories {
                let folder = inner.layout.repository(&repo).join("_uploads");
                for id in links::names(inner.volume(), &folder)? {
                    let session = folder.join(&id);
                    if is_idle(
                        inner.volume(),
                        &[
                            session.join("data"),
                            session.join("startedat"),
                            session.clone(),
                        ],
                        now,
                        idle,
                    ) {
                        atomic::remove_tree(inner.volume(), &session)?;
                        purged += 1;
                    }
                }
            }
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let folder = inner.layout.own().join("incoming").join(algorithm.as_str());
                for name in links::names(inner.volume(), &folder)? {
                    let path = folder.join(name);
                    if is_idle(inner.volume(), std::slice::from_ref(&path), now, idle) {
                        absent(inner.volume().remove_file(&path))
                            .map_err(Error::io("remove", &path))?;
                        purged += 1;
                    }
                }
            }
            Ok(purged)
        })
        .await
    }
}

impl UploadWriter {
    /// Bytes of the session, those of earlier requests included.
    pub fn offset(&self) -> u64 {
        self.accepted
    }

    /// Takes the next bytes; waits only while the volume is behind.
    pub async fn append(&mut self, bytes: Bytes) -> Result<()> {
        let length = bytes.len() as u64;
        self.sink.append(bytes).await?;
        self.accepted += length;
        Ok(())
    }

    /// Waits until everything is on the volume and synced; returns the size and the hash state at it. For a session that goes on; of
    /// [`Store::whole_upload_writer`] nothing stays.
    pub async fn finish(mut self) -> Result<(u64, Hasher)> {
        let (size, hasher) = self.sink.drain().await?;
        let (file, path) = (Arc::clone(self.sink.file()), self.path.clone());
        let synced = self
            .store
            .run(move |inner| {
                file.sync().map_err(|error| {
                    // What a failed sync did not write counts as written afterwards: the session cannot go on.
                    drop(inner.volume().remove_file(&path));
                    Error::io("sync", path)(error)
                })
            })
            .await;
        self.release().await;
        synced?;
        Ok((size, hasher))
    }

    /// Makes the session's bytes the blob `digest` of its repository and ends the session. A wrong digest ends it too: nothing can
    /// make those bytes right, so their room is freed at once.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`], [`Error::UploadUnknown`] when somebody ended the session meanwhile, or what the volume says.
    pub async fn commit(mut self, digest: &Digest) -> Result<u64> {
        let committed = self.try_commit(digest).await;
        if committed.is_ok() && matches!(self.hold, Some(Hold::Own)) {
            self.hold = None;
        }
        self.release().await;
        committed
    }

    async fn release(&mut self) {
        match self.hold.take() {
            Some(Hold::Session(lock)) => lock.release(&self.store.inner.pool).await,
            other => self.hold = other,
        }
    }

    async fn try_commit(&self, digest: &Digest) -> Result<u64> {
        let (size, hasher) = self.sink.drain().await?;
        if let Some(Hold::Session(lock)) = &self.hold {
            lock.check().await?;
        }
        let (file, path, digest) = (
            Arc::clone(self.sink.file()),
            self.path.clone(),
            digest.clone(),
        );
        let (repo, id) = (self.repo.clone(), self.id.clone());
        self.store
            .run(move |inner| {
                let hasher = if hasher.algorithm() == digest.algorithm() {
                    hasher
                } else {
                    hash_prefix(&*file, Hasher::new(digest.algorithm()), size)
                        .map_err(Error::io("read", &path))?
                };
                let actual = hasher.finish();
                let session = inner.layout.upload(&repo, id.as_str());
                if actual != digest {
                    atomic::remove_tree(inner.volume(), &session)?;
                    return Err(Error::DigestMismatch {
                        expected: digest,
                        actual,
                    });
                }
                let path_of_link = inner.layout.layer_link(&repo, &digest);
                let link = links::draft(&inner.files, &path_of_link, &digest)?;
                let committed = inner.commit_blob_and(&*file, &path, &digest, size, link.as_ref());
                if let Err(error) = committed {
                    // Cancelled, or ended by the same request that was sent twice.
                    let is_over =
                        error.is_absent() && atomic::metadata(inner.volume(), &session)?.is_none();
                    return Err(if is_over { Error::UploadUnknown } else { error });
                }
                if let Some(link) = link {
                    match links::publish(&inner.files, &path_of_link, link) {
                        // The folder went with somebody's delete.
                        Err(error) if error.is_absent() => inner.link_blob(&repo, &digest)?,
                        published => published?,
                    }
                }
                // What is left of the session harms nobody, and the push is done.
                drop(atomic::remove_tree(inner.volume(), &session));
                Ok(size)
            })
            .await
    }
}

impl Drop for UploadWriter {
    fn drop(&mut self) {
        match self.hold.take() {
            Some(Hold::Session(lock)) => self.sink.when_idle(move || drop(lock)),
            Some(Hold::Own) => {
                let (inner, path) = (Arc::clone(&self.store.inner), self.path.clone());
                self.sink.when_idle(move || {
                    let pool = inner.pool.clone();
                    pool.detach(move || drop(inner.volume().remove_file(&path)));
                });
            }
            None => {}
        }
    }
}

impl Inner {
    fn upload_size(&self, repo: &RepositoryName, id: &UploadId) -> Result<Option<u64>> {
        let folder = self.layout.upload(repo, id.as_str());
        let path = folder.join("data");
        // Opened, not only looked up: an open asks the server of a network file system for the present size.
        let size = atomic::reading(self.volume(), &path, |file| {
            file.metadata().map_err(Error::io("stat", &path))
        })?;
        if let Some(metadata) = size {
            return Ok(Some(metadata.len));
        }
        Ok(atomic::metadata(self.volume(), &folder)?.map(|_| 0))
    }
}

impl Store {
    async fn repositories_with_uploads(&self) -> Result<Vec<RepositoryName>> {
        self.run(|inner| {
            let mut found = Vec::new();
            let mut pending = vec![(inner.layout.repositories(), String::new())];
            while let Some((folder, name)) = pending.pop() {
                for child in links::names(inner.volume(), &folder)? {
                    if child == "_uploads" {
                        found.extend(RepositoryName::parse(&name).ok());
                    } else if !child.starts_with('_') && name.len() <= 255 {
                        let path = folder.join(&child);
                        pending.push((
                            path,
                            if name.is_empty() {
                                child
                            } else {
                                format!("{name}/{child}")
                            },
                        ));
                    }
                }
            }
            Ok(found)
        })
        .await
    }
}

/// The volume's own clock.
fn volume_now(inner: &Inner) -> Result<SystemTime> {
    let path = inner.layout.own().join("clock");
    atomic::write_plain(inner.volume(), &path, b"")?;
    atomic::metadata(inner.volume(), &path)?
        .and_then(|metadata| metadata.modified)
        .ok_or_else(|| Error::io("stat", &path)(std::io::ErrorKind::Unsupported.into()))
}

fn is_idle(volume: &dyn Volume, paths: &[PathBuf], now: SystemTime, idle: Duration) -> bool {
    let newest = paths
        .iter()
        .filter_map(|path| volume.metadata(path).ok()?.modified)
        .max();
    newest.is_none_or(|at| now.duration_since(at).is_ok_and(|age| age > idle))
}

impl From<UploadId> for String {
    fn from(id: UploadId) -> Self {
        id.0
    }
}
