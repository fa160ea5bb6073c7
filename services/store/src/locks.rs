//! Locks between replicas, on the volume: a file with a document of its holder, made by `link(2)`.
//! The modification time of the file is the heartbeat.
//!
//! `link(2)` is the only create-if-absent that every network file system keeps. Ages are measured
//! by the clock of the volume (the modification time of a file touched now), never by the local
//! one. A lock whose heartbeat stopped is taken over.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    Error, Layout, Pool, Result,
    durable::DurableFs,
    error::absent,
    files,
    volume::{Metadata, Volume},
};

/// The process that holds a lock, and the address of its internal API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    /// Address of the owner's internal API (`host:port`), empty when it has none.
    pub address: String,
    /// A name that is unique for the owner's process.
    pub id: String,
}

#[derive(Serialize, Deserialize)]
struct LockDocument {
    #[serde(flatten)]
    owner: LockHolder,
    /// Unique for each acquisition.
    token: String,
}

/// The result of an attempt to take a lock.
#[derive(Debug)]
pub enum LockAttempt {
    /// The caller holds the lock until the guard is dropped or the lock is lost.
    Acquired(Lock),
    /// Another live process holds it.
    Contended(LockHolder),
}

/// A held lock. Its heartbeat runs until it is dropped, which also releases it.
#[derive(Debug)]
pub struct Lock {
    locks: Arc<Locks>,
    path: PathBuf,
    token: String,
    lost: watch::Receiver<bool>,
    heartbeat: tokio::task::AbortHandle,
}

/// A lock without a heartbeat for this long has a dead holder and may be taken over.
const LOCK_TTL: Duration = Duration::from_secs(15);
/// How often a holder renews its lock; several heartbeats fit into [`LOCK_TTL`].
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(4);

/// An owner document is far smaller: a token, an address and an id.
const MAX_DOCUMENT_BYTES: usize = 4 << 10;

impl Lock {
    /// Whether another owner took the lock over (after we were silent for too long).
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }
}

impl Lock {
    /// Releases the lock and waits until it is released, so that the next owner finds it free.
    pub async fn release(mut self, pool: &Pool) {
        let release = self.disarm();
        drop(
            pool.run(move || {
                release();
                Ok(())
            })
            .await,
        );
    }

    /// [`Lock::release`] for callers that are on the pool already.
    pub(crate) fn release_here(mut self) {
        let release = self.disarm();
        release();
    }

    /// Checks that the lock was not lost: a process that stalled for too long may not know yet.
    ///
    /// # Errors
    /// [`Error::LockLost`], or an error of the volume.
    pub(crate) async fn check(&self) -> Result<()> {
        let (locks, path, token) = (self.locks.clone(), self.path.clone(), self.token.clone());
        self.locks
            .pool
            .run(move || check(locks.files.volume(), &path, &token))
            .await
    }

    /// [`Lock::check`] for callers that are on the pool already.
    pub(crate) fn check_here(&self) -> Result<()> {
        check(self.locks.files.volume(), &self.path, &self.token)
    }

    fn disarm(&mut self) -> impl FnOnce() + Send + 'static {
        self.heartbeat.abort();
        let files = self.locks.files.clone();
        let (path, token) = (
            std::mem::take(&mut self.path),
            std::mem::take(&mut self.token),
        );
        move || {
            let volume = files.volume();
            if read(volume, &path)
                .is_ok_and(|found| found.is_some_and(|found| found.token == token))
            {
                drop(volume.remove_file(&path));
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        let release = self.disarm();
        self.locks.pool.detach(release);
    }
}

/// The locks of the volume.
#[derive(Debug)]
pub(crate) struct Locks {
    files: DurableFs,
    layout: Layout,
    pool: Pool,
}

impl Locks {
    pub(crate) fn new(files: DurableFs, layout: Layout, pool: Pool) -> Self {
        Self {
            files,
            layout,
            pool,
        }
    }

    /// Tries to take the lock `name` (a plain file name).
    pub(crate) async fn try_lock(
        self: &Arc<Self>,
        name: &str,
        owner: &LockHolder,
    ) -> Result<LockAttempt> {
        self.try_lock_with(name, owner, LOCK_TTL).await
    }

    async fn try_lock_with(
        self: &Arc<Self>,
        name: &str,
        owner: &LockHolder,
        stale: Duration,
    ) -> Result<LockAttempt> {
        debug_assert!(!name.contains('/'), "a lock's name is a file name");
        let path = self.layout.lock(name);
        let document = LockDocument {
            owner: owner.clone(),
            token: Uuid::new_v4().to_string(),
        };
        let locks = Arc::clone(self);
        // The guard is made where the lock is taken, so that a caller that is gone by then cannot
        // leave a lock without a guard.
        self.pool
            .run(move || {
                if let Some(owner) = acquire(locks.files.volume(), &path, &document, stale)? {
                    return Ok(LockAttempt::Contended(owner));
                }
                let token = document.token;
                let (announce, lost) = watch::channel(false);
                let beats =
                    run_heartbeat(Arc::clone(&locks), path.clone(), token.clone(), announce);
                Ok(LockAttempt::Acquired(Lock {
                    locks,
                    path,
                    token,
                    lost,
                    heartbeat: tokio::spawn(beats).abort_handle(),
                }))
            })
            .await
    }

    /// The holder of a lock, alive or not.
    pub(crate) fn holder(&self, name: &str) -> Result<Option<LockHolder>> {
        let found = read(self.files.volume(), &self.layout.lock(name))?;
        Ok(found.map(|document| document.owner))
    }
}

fn check(volume: &dyn Volume, path: &Path, token: &str) -> Result<()> {
    match read(volume, path)? {
        Some(found) if found.token == token => Ok(()),
        _ => Err(Error::LockLost),
    }
}

async fn run_heartbeat(locks: Arc<Locks>, path: PathBuf, token: String, lost: watch::Sender<bool>) {
    let mut ticks = tokio::time::interval_at(
        tokio::time::Instant::now() + HEARTBEAT_INTERVAL,
        HEARTBEAT_INTERVAL,
    );
    loop {
        ticks.tick().await;
        let (path, token) = (path.clone(), token.clone());
        let files = locks.files.clone();
        let ours = locks
            .pool
            .run(move || match read(files.volume(), &path)? {
                Some(document) if document.token == token => files
                    .volume()
                    .touch(&path)
                    .map(|()| true)
                    .map_err(Error::io("touch", &path)),
                _ => Ok(false),
            })
            .await;
        if matches!(ours, Ok(false)) {
            lost.send_replace(true);
            return;
        }
    }
}

/// Takes a lock; the holder if another process has it.
fn acquire(
    volume: &dyn Volume,
    path: &Path,
    document: &LockDocument,
    stale: Duration,
) -> Result<Option<LockHolder>> {
    let folder = files::parent(path)?;
    files::create_dir_unsynced(volume, folder)?;
    let candidate = files::temporary(path);
    let json =
        serde_json::to_vec(document).map_err(|error| Error::io("encode", path)(error.into()))?;
    files::write_unsynced(volume, &candidate, &json)?;
    let result = (|| {
        if create(volume, &candidate, path)? {
            return Ok(None);
        }
        let now = modified(volume, &candidate)?.unwrap_or(SystemTime::UNIX_EPOCH);
        let Some(beat) = modified(volume, path)? else {
            // The holder released it meanwhile.
            return if create(volume, &candidate, path)? {
                Ok(None)
            } else {
                Ok(Some(holder(volume, path)?))
            };
        };
        if time_between(now, beat) < stale {
            return Ok(Some(holder(volume, path)?));
        }
        take_over(volume, &candidate, path, now, stale)
    })();
    drop(volume.remove_file(&candidate));
    result
}

/// Replaces the lock of a dead holder. Of several processes the one that links the marker first
/// continues; it checks the lock again before it removes it.
fn take_over(
    volume: &dyn Volume,
    candidate: &Path,
    path: &Path,
    now: SystemTime,
    stale: Duration,
) -> Result<Option<LockHolder>> {
    let marker = path.with_extension("takeover");
    if !create(volume, candidate, &marker)? {
        if modified(volume, &marker)?.is_some_and(|at| time_between(now, at) > stale) {
            drop(volume.remove_file(&marker));
        }
        return Ok(Some(holder(volume, path)?));
    }
    let result = (|| {
        if modified(volume, path)?.is_some_and(|beat| time_between(now, beat) < stale) {
            return Ok(Some(holder(volume, path)?));
        }
        absent(volume.remove_file(path)).map_err(Error::io("remove", path))?;
        if create(volume, candidate, path)? {
            Ok(None)
        } else {
            Ok(Some(holder(volume, path)?))
        }
    })();
    drop(volume.remove_file(&marker));
    result
}

/// `link(2)`; a lost reply on NFS shows as two names of the file, not in the result.
fn create(volume: &dyn Volume, candidate: &Path, path: &Path) -> Result<bool> {
    match volume.link(candidate, path) {
        Ok(()) => Ok(true),
        Err(error) => {
            let inode = |found: Option<Metadata>| found.map(|found| found.inode);
            let ours = inode(present(volume, candidate)?);
            if ours.is_some() && ours == inode(present(volume, path)?) {
                Ok(true)
            } else if error.kind() == io::ErrorKind::AlreadyExists {
                Ok(false)
            } else {
                Err(Error::io("link", path)(error))
            }
        }
    }
}

fn holder(volume: &dyn Volume, path: &Path) -> Result<LockHolder> {
    Ok(read(volume, path)?.map_or_else(
        || LockHolder {
            address: String::new(),
            id: String::new(),
        },
        |document| document.owner,
    ))
}

fn read(volume: &dyn Volume, path: &Path) -> Result<Option<LockDocument>> {
    let bytes = files::with_file(volume, path, |file| {
        files::read_up_to(file, MAX_DOCUMENT_BYTES).map_err(Error::io("read", path))
    })?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

fn modified(volume: &dyn Volume, path: &Path) -> Result<Option<SystemTime>> {
    Ok(present(volume, path)?.and_then(|metadata| metadata.modified))
}

/// The present metadata of a file. It is opened, because a network file system answers `stat(2)`
/// from a cache that may be a minute old, and a live holder would seem dead.
fn present(volume: &dyn Volume, path: &Path) -> Result<Option<Metadata>> {
    files::with_file(volume, path, |file| {
        file.metadata().map_err(Error::io("stat", path))
    })
}

/// The distance between two times of the volume. A time in the future was written before the clock
/// was set back; a live holder writes a new one soon.
fn time_between(now: SystemTime, then: SystemTime) -> Duration {
    now.duration_since(then)
        .unwrap_or_else(|ahead| ahead.duration())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, Store};

    fn owner(id: &str) -> LockHolder {
        LockHolder {
            address: format!("{id}.internal:5001"),
            id: id.to_owned(),
        }
    }

    async fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::unlimited()).await.unwrap();
        (dir, store)
    }

    #[tokio::test]
    async fn a_lock_from_a_clock_that_was_ahead_does_not_hold_for_years() {
        let (_dir, store) = store().await;
        let LockAttempt::Acquired(lock) = store.try_lock("x", &owner("a")).await.unwrap() else {
            panic!("free")
        };
        // As after a crash: the lock is neither renewed nor released.
        lock.heartbeat.abort();
        std::mem::forget(lock);
        let path = store.layout().lock("x");
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(10 * 365 * 86_400))
            .unwrap();
        assert!(matches!(
            store.try_lock("x", &owner("b")).await.unwrap(),
            LockAttempt::Acquired(_)
        ));
    }

    #[tokio::test]
    async fn second_claim_learns_who_holds_the_lock() {
        let (_dir, store) = store().await;
        let LockAttempt::Acquired(lock) = store.try_lock("x", &owner("a")).await.unwrap() else {
            panic!("free")
        };
        let LockAttempt::Contended(holder) = store.try_lock("x", &owner("b")).await.unwrap() else {
            panic!("held")
        };
        assert_eq!(holder, owner("a"));
        drop(lock);
        for _ in 0..100 {
            if let LockAttempt::Acquired(lock) = store.try_lock("x", &owner("b")).await.unwrap() {
                assert!(!lock.is_lost());
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("a released lock stays held");
    }

    #[tokio::test]
    async fn lock_of_a_dead_owner_is_taken_over_by_one() {
        let (dir, store) = store().await;
        let LockAttempt::Acquired(lock) = store.try_lock("x", &owner("dead")).await.unwrap() else {
            panic!("free")
        };
        lock.heartbeat.abort();
        // Let the first beat, which may be running, pass.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut takers = Vec::new();
        for n in 0..8 {
            let store = Store::open(dir.path(), Options::unlimited()).await.unwrap();
            takers.push(tokio::spawn(async move {
                store
                    .parts
                    .locks
                    .try_lock_with("x", &owner(&n.to_string()), Duration::from_millis(20))
                    .await
                    .unwrap()
            }));
        }
        let mut held = Vec::new();
        for taker in takers {
            if let LockAttempt::Acquired(lock) = taker.await.unwrap() {
                held.push(lock);
            }
        }
        let owners: Vec<_> = held
            .iter()
            .filter(|lock| {
                read(lock.locks.files.volume(), &lock.path)
                    .unwrap()
                    .unwrap()
                    .token
                    == lock.token
            })
            .collect();
        assert_eq!(
            owners.len(),
            1,
            "of {} that believe so one owns it",
            held.len()
        );
    }
}
