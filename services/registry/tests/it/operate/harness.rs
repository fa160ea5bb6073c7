//! A whole registry process in this one, on a volume that can be made to hang.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use holdfast_config::{RegistrySettings, Standalone};
use holdfast_registry::{run_on, volume_watch::WatchIntervals};
use holdfast_runtime::CancellationToken;
use holdfast_store::{
    Space,
    volume::{Disk, Entry, Metadata, Volume, VolumeFile},
};
use holdfast_testkit::server::free_address;

/// A disk whose calls wait while it is told to hang, as a network volume's do.
#[derive(Debug)]
pub(crate) struct Hanging {
    disk: Disk,
    hangs: Mutex<bool>,
    answers: Condvar,
}

impl Hanging {
    pub(crate) fn new(root: &Path, hangs: bool) -> Arc<Self> {
        Arc::new(Self {
            disk: Disk::at(root),
            hangs: Mutex::new(hangs),
            answers: Condvar::new(),
        })
    }

    pub(crate) fn set(&self, hangs: bool) {
        *self.hangs.lock().unwrap() = hangs;
        self.answers.notify_all();
    }

    fn disk(&self) -> &Disk {
        let hangs = self.hangs.lock().unwrap();
        drop(self.answers.wait_while(hangs, |hangs| *hangs).unwrap());
        &self.disk
    }
}

impl Volume for Hanging {
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        self.disk().open_read(path)
    }
    fn open_write(&self, path: &Path, create: bool) -> io::Result<Arc<dyn VolumeFile>> {
        self.disk().open_write(path, create)
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        self.disk().create_new(path)
    }
    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.disk().metadata(path)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        self.disk().list(folder)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk().create_dir(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk().rename(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk().link(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk().remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk().remove_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk().sync_dir(path)
    }
    fn touch(&self, path: &Path) -> io::Result<()> {
        self.disk().touch(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.disk().space(path)
    }
}

/// A running process.
pub(crate) struct Process {
    pub(crate) volume: Arc<Hanging>,
    pub(crate) root: PathBuf,
    pub(crate) api: String,
    pub(crate) admin: String,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: tokio::task::JoinHandle<Result<(), holdfast_registry::RunError>>,
    pub(crate) client: reqwest::Client,
    _dir: tempfile::TempDir,
}

impl Process {
    /// Starts on a volume that hangs from the beginning, or not.
    pub(crate) fn start(hangs: bool) -> Self {
        Self::with(hangs, |_| {})
    }

    pub(crate) fn with(hangs: bool, change: impl FnOnce(&mut RegistrySettings)) -> Self {
        holdfast_runtime::tls::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let volume = Hanging::new(dir.path(), hangs);
        let (api, admin) = (free_address().unwrap(), free_address().unwrap());
        let mut settings = Standalone {
            listen: api,
            admin_listen: Some(admin),
            data: dir.path().to_owned(),
            upstreams: Vec::new(),
            ..Standalone::default()
        }
        .settings();
        // The test machine's own disk is not what is tested.
        settings.limits.reserve_percent = 0;
        change(&mut settings);
        let times = WatchIntervals {
            every: Duration::from_millis(50),
            deadline: Duration::from_millis(300),
            hang: Duration::from_millis(600),
        };
        let shutdown = CancellationToken::new();
        let opening = {
            let volume = Arc::clone(&volume);
            async move { Ok(volume as Arc<dyn Volume>) }
        };
        let task = tokio::spawn(run_on(opening, times, settings, None, shutdown.clone()));
        Self {
            volume,
            root: dir.path().to_owned(),
            api: format!("http://{api}"),
            admin: format!("http://{admin}"),
            shutdown,
            task,
            client: reqwest::Client::builder()
                .timeout(Duration::from_secs(5))
                .build()
                .unwrap(),
            _dir: dir,
        }
    }

    /// Status and text; status 0 when there is no answer.
    pub(crate) async fn get(&self, url: &str) -> (u16, String) {
        match self.client.get(url).send().await {
            Ok(answer) => (answer.status().as_u16(), answer.text().await.unwrap()),
            Err(_) => (0, String::new()),
        }
    }

    pub(crate) async fn admin(&self, path: &str) -> (u16, String) {
        self.get(&format!("{}{path}", self.admin)).await
    }

    pub(crate) async fn api(&self, path: &str) -> (u16, String) {
        self.get(&format!("{}{path}", self.api)).await
    }

    /// Waits until the path answers with `status` on the admin listener.
    pub(crate) async fn until(&self, path: &str, status: u16) -> String {
        let begun = tokio::time::Instant::now();
        loop {
            let (found, text) = self.admin(path).await;
            if found == status {
                return text;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "{path} is {found} and not {status}: {text}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the process and says how it ended.
    pub(crate) async fn end(mut self) {
        self.volume.set(false);
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), &mut self.task)
            .await
            .expect("the process ends")
            .unwrap()
            .unwrap();
    }
}

/// A test that fails must not leave threads that hang: the runtime would wait for them.
impl Drop for Process {
    fn drop(&mut self) {
        self.volume.set(false);
    }
}
