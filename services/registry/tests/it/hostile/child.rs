//! A registry in a process of its own: this test binary, started once more. What it costs is then
//! its own.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use holdfast_config::Standalone;
use holdfast_runtime::CancellationToken;
use holdfast_testkit::server::free_address;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

/// Tells a test that it is the child, and where its configuration lies.
const CONFIGURATION: &str = "HOLDFAST_TEST_REGISTRY";

/// A running child; it is killed when it is dropped.
pub(crate) struct Child {
    process: std::process::Child,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    folder: tempfile::TempDir,
}

impl Drop for Child {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Runs `test` against a child with these further entries of `limits` and these further lines of
/// its configuration; `files` are written into its folder before. `name` is the path of the test
/// that calls this: the child runs the same one and comes here, too.
pub(crate) fn with(
    name: &str,
    (limits, lines): (&str, &str),
    files: &[(&str, &str)],
    test: impl AsyncFnOnce(&Child),
) {
    holdfast_runtime::tls::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    if let Ok(path) = std::env::var(CONFIGURATION) {
        let settings = Standalone::from_file(path.as_ref()).unwrap().settings();
        let never = CancellationToken::new();
        runtime
            .block_on(holdfast_registry::run_until(settings, None, never))
            .unwrap();
        return;
    }
    let child = Child::start(name, (limits, lines), files);
    runtime.block_on(async {
        child.ready().await;
        test(&child).await;
    });
}

impl Child {
    fn start(name: &str, (limits, lines): (&str, &str), files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in files {
            std::fs::write(folder.path().join(file), text).unwrap();
        }
        let [listen, admin] = [free_address().unwrap(), free_address().unwrap()];
        let root = folder.path().display().to_string();
        let lines = lines.replace("FOLDER", &root);
        // The test machine's own disk is not what is tested.
        let text = format!(
            "listen: {listen}\nadminListen: {admin}\ndata: {root}/data\nupstreams: []\n\
             accessLog: {{mode: none}}\nlimits: {{reservePercent: 0{limits}}}\n{lines}\n"
        );
        std::fs::create_dir(folder.path().join("data")).unwrap();
        let configuration = folder.path().join("registry.yaml");
        std::fs::write(&configuration, text).unwrap();
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(CONFIGURATION, configuration)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            process,
            listen,
            admin,
            folder,
        }
    }

    async fn ready(&self) {
        for _ in 0..600 {
            if self.status(1, "/v2/").await.is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the registry does not start");
    }

    /// Where its content lies.
    pub(crate) fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    /// Resident memory, bytes.
    pub(crate) fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let file = BufReader::new(std::fs::File::open(path).unwrap());
        let line = file
            .lines()
            .map(Result::unwrap)
            .find(|line| line.starts_with("VmRSS"));
        let line = line.expect("the process lives");
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib << 10
    }

    /// A connection from `127.0.0.LAST`.
    pub(crate) async fn connect(&self, last: u8) -> std::io::Result<TcpStream> {
        connect(self.listen, last).await
    }

    /// The status of a GET on a connection of its own, if there is an answer within five seconds.
    pub(crate) async fn status(&self, last: u8, path: &str) -> Option<u16> {
        status(self.listen, last, path).await
    }
}

pub(crate) async fn connect(address: SocketAddr, last: u8) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(([127, 0, 0, last], 0).into())?;
    socket.connect(address).await
}

pub(crate) async fn status(address: SocketAddr, last: u8, path: &str) -> Option<u16> {
    let ask = async {
        let mut stream = connect(address, last).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), ask).await;
    let answer = answer.ok()?.ok()?;
    std::str::from_utf8(&answer[9..]).ok()?.parse().ok()
}
