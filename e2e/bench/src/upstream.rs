//! An upstream with a limit of bytes a second for all its clients together. It counts what it
//! sends, and runs on a thread of its own, so that the load of a run does not slow it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use crate::content::{MANIFEST, Named};

/// What is sent at once.
const PIECE: usize = 32 << 10;

/// One answer: its media type and its bytes.
type Content = HashMap<String, (&'static str, Arc<Vec<u8>>)>;

struct Shared {
    content: Content,
    bytes_per_second: f64,
    sent: AtomicU64,
    /// How often each path was asked for.
    asked: Mutex<HashMap<String, u64>>,
    /// When the next piece may leave.
    next: Mutex<Instant>,
}

/// What an upstream has: an image under a tag.
pub(crate) struct Served {
    /// Its repository.
    pub(crate) repository: String,
    /// Its tag.
    pub(crate) tag: String,
    /// The manifest.
    pub(crate) manifest: Named,
    /// Its blobs.
    pub(crate) blobs: Vec<Named>,
}

/// The upstream; it ends with its owner.
pub(crate) struct Upstream {
    /// Its listener.
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Upstream {
    /// Serves images: manifests under their tags and digests, and blobs.
    pub(crate) fn start(images: Vec<Served>, bytes_per_second: f64) -> Result<Self> {
        let mut content = Content::new();
        for image in images {
            let repository = image.repository;
            let (digest, bytes) = image.manifest;
            let bytes = Arc::new(bytes);
            for reference in [image.tag, format!("sha256:{digest}")] {
                let path = format!("/v2/{repository}/manifests/{reference}");
                content.insert(path, (MANIFEST, Arc::clone(&bytes)));
            }
            for (digest, bytes) in image.blobs {
                let path = format!("/v2/{repository}/blobs/sha256:{digest}");
                content.insert(path, ("application/octet-stream", Arc::new(bytes)));
            }
        }
        content.insert(
            "/v2/".to_owned(),
            ("application/json", Arc::new(b"{}".to_vec())),
        );
        let shared = Arc::new(Shared {
            content,
            bytes_per_second,
            sent: AtomicU64::new(0),
            asked: Mutex::default(),
            next: Mutex::new(Instant::now()),
        });
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let server = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::bind("127.0.0.1:0").await else {
                    return;
                };
                tell.send(listener.local_addr()).ok();
                tokio::select! {
                    () = accept(listener, server) => {}
                    _ = stopped => {}
                }
            });
        });
        let address = told.recv().context("the upstream does not start")??;
        Ok(Self {
            address,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Bytes of bodies sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// How often each path was asked for.
    pub(crate) fn asked(&self) -> HashMap<String, u64> {
        let asked = &self.shared.asked;
        asked.lock().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let shared = Arc::clone(&shared);
            // A client that disconnects is not an error here.
            tokio::spawn(async move { serve(stream, &shared).await.ok() });
        }
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::new();
    loop {
        request.clear();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0; 1024];
            let read = stream.read(&mut byte).await?;
            if read == 0 {
                return Ok(());
            }
            request.extend_from_slice(&byte[..read]);
        }
        let text = String::from_utf8_lossy(&request).into_owned();
        let mut words = text.split_whitespace();
        let (method, path) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        let path = path.split('?').next().unwrap_or_default();
        shared.count(path);
        let Some((media_type, bytes)) = shared.content.get(path) else {
            stream
                .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                .await?;
            continue;
        };
        let first = range(&text).filter(|first| *first < bytes.len());
        let (status, from) = first.map_or(("200 OK", 0), |first| ("206 Partial Content", first));
        let digest = path.rsplit_once("sha256:").map_or_else(
            || format!("sha256:{}", crate::content::hex_digest(bytes)),
            |(_, digest)| format!("sha256:{digest}"),
        );
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\nDocker-Content-Digest: {digest}\r\n\r\n",
            bytes.len() - from,
            bytes.len() - 1,
            bytes.len()
        );
        let head = if first.is_some() {
            head
        } else {
            head.lines()
                .filter(|line| !line.starts_with("Content-Range"))
                .flat_map(|line| [line, "\r\n"])
                .collect()
        };
        stream.write_all(head.as_bytes()).await?;
        if method == "HEAD" {
            continue;
        }
        for piece in bytes[from..].chunks(PIECE) {
            shared.wait(piece.len()).await;
            stream.write_all(piece).await?;
            shared.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    }
}

/// The start of `Range: bytes=N-`.
fn range(request: &str) -> Option<usize> {
    let line = request
        .lines()
        .find(|line| line.to_ascii_lowercase().starts_with("range:"))?;
    let (_, range) = line.split_once("bytes=")?;
    range.split('-').next()?.trim().parse().ok()
}

impl Shared {
    fn count(&self, path: &str) {
        let mut asked = self.asked.lock();
        *asked.entry(path.to_owned()).or_default() += 1;
    }

    /// Waits until `bytes` may leave. What was not used is not saved up beyond some
    /// milliseconds.
    async fn wait(&self, bytes: usize) {
        let share = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        let turn = {
            let mut next = self.next.lock();
            let earliest = Instant::now()
                .checked_sub(Duration::from_millis(5))
                .unwrap_or(*next);
            *next = (*next).max(earliest) + share;
            *next
        };
        if turn > Instant::now() + Duration::from_millis(1) {
            tokio::time::sleep_until(turn.into()).await;
        }
    }
}
