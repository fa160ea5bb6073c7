//! Clients that vanish while the volume works for them, and clients that make it read whole
//! sessions for a few bytes.

#![allow(clippy::unwrap_used, reason = "a test, helpers included")]

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};
use holdfast_store::{
    CarriedHash, Error, Hasher, LockAttempt, LockHolder, Options, Space, Store, UploadId,
    UploadWriter,
    volume::{Disk, Entry, Metadata, Volume, VolumeFile},
};

/// A call that stands still while the gate is shut for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Read,
    Sync,
    Link,
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    shut: Option<Call>,
    waiting: usize,
    /// Files of sessions that were made.
    made: usize,
    is_full: bool,
}

impl Gate {
    fn pass(&self, call: Call) {
        let mut state = self.state.lock().unwrap();
        if state.shut != Some(call) {
            return;
        }
        state.waiting += 1;
        state = self
            .changed
            .wait_while(state, |state| state.shut == Some(call))
            .unwrap();
        state.waiting -= 1;
    }

    fn shut(&self, call: Option<Call>) {
        self.state.lock().unwrap().shut = call;
        self.changed.notify_all();
    }

    fn waiting(&self) -> usize {
        self.state.lock().unwrap().waiting
    }

    fn made(&self) -> usize {
        self.state.lock().unwrap().made
    }
}

/// This machine's file system with a gate before some calls.
#[derive(Clone, Debug)]
struct Gated {
    disk: Disk,
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct GatedFile {
    file: Arc<dyn VolumeFile>,
    gate: Arc<Gate>,
}

impl Gated {
    fn file(&self, path: &Path, file: Arc<dyn VolumeFile>) -> Arc<dyn VolumeFile> {
        let is_of_session = path.to_string_lossy().contains("_uploads");
        let gate = Arc::clone(&self.gate);
        if is_of_session {
            Arc::new(GatedFile { file, gate })
        } else {
            file
        }
    }
}

impl Volume for Gated {
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        Ok(self.file(path, self.disk.open_read(path)?))
    }

    fn open_write(&self, path: &Path, create: bool) -> io::Result<Arc<dyn VolumeFile>> {
        Ok(self.file(path, self.disk.open_write(path, create)?))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        let name = path.file_name().unwrap().to_string_lossy();
        if name.contains("data") && path.to_string_lossy().contains("_uploads") {
            self.gate.state.lock().unwrap().made += 1;
        }
        Ok(self.file(path, self.disk.create_new(path)?))
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.disk.metadata(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        self.disk.list(folder)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.gate.pass(Call::Link);
        self.disk.link(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        self.disk.touch(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        if self.gate.state.lock().unwrap().is_full {
            return Ok(Space {
                total_bytes: 1 << 30,
                available_bytes: 1,
            });
        }
        self.disk.space(path)
    }
}

impl VolumeFile for GatedFile {
    fn read_at(&self, buffer: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        self.gate.pass(Call::Read);
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(bytes, offset)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.gate.pass(Call::Sync);
        self.file.sync()
    }

    fn start_write_back(&self, _: u64, _: u64) {}
}

struct Scene {
    _folder: tempfile::TempDir,
    gate: Arc<Gate>,
    store: Store,
}

/// A session that holds the first half of [`CONTENT`].
#[derive(Clone)]
struct Session {
    store: Store,
    repo: RepositoryName,
    id: UploadId,
    carried: CarriedHash,
}

const CONTENT: Bytes = Bytes::from_static(b"all of it.");
const HALF: u64 = 5;

fn owner(name: &str) -> LockHolder {
    LockHolder {
        address: String::new(),
        id: name.to_owned(),
    }
}

fn digest() -> Digest {
    Hasher::digest(Algorithm::Sha256, &CONTENT)
}

async fn scene() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::<Gate>::default();
    let volume = Gated {
        disk: Disk::at(folder.path()),
        gate: Arc::clone(&gate),
    };
    let options = Options::unlimited();
    let store = Store::open_on(Arc::new(volume), folder.path(), options)
        .await
        .unwrap();
    Scene {
        _folder: folder,
        gate,
        store,
    }
}

impl Drop for Scene {
    /// A test that fails does not wait for calls that stand before the gate.
    fn drop(&mut self) {
        self.gate.shut(None);
    }
}

impl Scene {
    async fn session(&self, repo: &str) -> Session {
        let repo = RepositoryName::parse(repo).unwrap();
        let begun = self.store.create_upload(&repo, "2026-01-01T00:00:00Z");
        let mut session = Session {
            store: self.store.clone(),
            id: begun.await.unwrap(),
            repo,
            carried: CarriedHash::none(Algorithm::Sha256),
        };
        let mut writer = session.open(0, session.carried.clone()).await.unwrap();
        writer.append(CONTENT.slice(..5)).await.unwrap();
        let (size, carried) = writer.finish().await.unwrap();
        assert_eq!(size, HALF);
        session.carried = carried;
        session
    }

    /// Waits until this number of calls stand before the gate.
    async fn until(&self, waiting: usize) {
        for _ in 0..6_000 {
            if self.gate.waiting() == waiting {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.gate.waiting(), waiting);
    }
}

impl Session {
    async fn open(&self, offset: u64, carried: CarriedHash) -> Result<UploadWriter, Error> {
        let owner = owner("any");
        self.store
            .upload_writer(&self.repo, &self.id, offset, carried, &owner)
            .await
    }

    /// Opens the session with a state that carries no hash.
    async fn open_unhashed(&self) -> Result<UploadWriter, Error> {
        let carried = CarriedHash::none(Algorithm::Sha256);
        self.open(HALF, carried).await
    }

    fn folder(&self) -> PathBuf {
        self.store.layout().upload(&self.repo, self.id.as_str())
    }

    async fn work(self, what: &str) {
        let ended = match what {
            "open" => self.open_unhashed().await.map(drop),
            what => {
                let mut writer = self.open(HALF, self.carried.clone()).await.unwrap();
                writer.append(CONTENT.slice(5..)).await.unwrap();
                if what == "commit" {
                    writer.commit(&digest()).await.map(drop)
                } else {
                    writer.finish().await.map(drop)
                }
            }
        };
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_locked_while_the_volume_works_for_a_vanished_client() {
    for (what, call) in [
        ("open", Call::Read),
        ("finish", Call::Sync),
        ("commit", Call::Sync),
    ] {
        let s = scene().await;
        let session = s.session("team/app").await;
        let made = s.gate.made();
        s.gate.shut(Some(call));
        let client = tokio::spawn(session.clone().work(what));
        s.until(1).await;
        client.abort();
        assert!(client.await.is_err());
        let next = tokio::time::timeout(Duration::from_secs(60), session.open_unhashed()).await;
        let refused = next.unwrap().map(drop).unwrap_err();
        assert!(matches!(refused, Error::UploadInUse), "{what}: {refused}");
        s.gate.shut(None);
        // The next request waits for the end of that work, and goes on with the same file.
        let next = loop {
            match session.open_unhashed().await {
                Err(Error::UploadInUse) => {}
                next => break next,
            }
        };
        if what == "commit" {
            let ended = next.map(drop).unwrap_err();
            assert!(matches!(ended, Error::UploadUnknown), "{ended}");
            assert!(
                s.store
                    .repo_has_blob(&session.repo, &digest())
                    .await
                    .unwrap()
            );
            continue;
        }
        let mut next = next.unwrap();
        assert_eq!(s.gate.made(), made, "{what}: nothing was copied");
        next.append(CONTENT.slice(5..)).await.unwrap();
        next.commit(&digest()).await.unwrap();
        assert!(!session.folder().exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_was_taken_for_a_client_that_vanished_is_free_again() {
    let s = scene().await;
    s.gate.shut(Some(Call::Link));
    let store = s.store.clone();
    let client = tokio::spawn(async move { store.try_lock("x", &owner("gone")).await.map(drop) });
    s.until(1).await;
    client.abort();
    assert!(client.await.is_err());
    s.gate.shut(None);
    s.until(0).await;
    // Time for the lock to be taken.
    tokio::time::sleep(Duration::from_millis(300)).await;
    // A lock without a heartbeat would be held for 15 seconds.
    let begun = Instant::now();
    let mut is_free = false;
    while !is_free && begun.elapsed() < Duration::from_secs(12) {
        let claim = s.store.try_lock("x", &owner("next")).await.unwrap();
        is_free = matches!(claim, LockAttempt::Acquired(_));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(is_free);
}

#[tokio::test(flavor = "multi_thread")]
async fn few_sessions_are_hashed_again_at_a_time_and_one_of_a_repository() {
    let s = scene().await;
    let mut sessions = Vec::new();
    for repo in ["greedy", "greedy", "other", "third"] {
        sessions.push(s.session(repo).await);
    }
    s.gate.shut(Some(Call::Read));
    let mut clients = Vec::new();
    for (session, reading) in sessions.into_iter().zip([1, 1, 2, 2]) {
        clients.push(tokio::spawn(async move {
            session.open_unhashed().await.map(drop)
        }));
        s.until(reading).await;
        // Time for one that should wait to be wrong.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(s.gate.waiting(), reading, "{} clients", clients.len());
    }
    s.gate.shut(None);
    for client in clients {
        client.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_copied_only_where_the_volume_has_room() {
    let s = scene().await;
    let session = s.session("team/app").await;
    let crashed = session.open(HALF, session.carried.clone()).await.unwrap();
    std::mem::forget(crashed);
    let lock = format!("upload-{}", session.id.as_str());
    let past = SystemTime::now() - Duration::from_secs(60);
    let lock = fs::File::open(s.store.layout().lock(&lock)).unwrap();
    lock.set_modified(past).unwrap();
    let made = s.gate.made();
    s.gate.state.lock().unwrap().is_full = true;
    let refused = session.open_unhashed().await.map(drop).unwrap_err();
    assert!(matches!(refused, Error::NoSpace { .. }), "{refused}");
    assert_eq!(s.gate.made(), made);
    s.gate.state.lock().unwrap().is_full = false;
    let mut next = session.open_unhashed().await.unwrap();
    assert_eq!(s.gate.made(), made + 1);
    next.append(CONTENT.slice(5..)).await.unwrap();
    next.commit(&digest()).await.unwrap();
}
