//! Indexes of indexes of large manifests whose layer never ends: memory stays bounded.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use holdfast_api::fill::FillRequest;
use holdfast_core::{Digest, digest::Algorithm, oci::ManifestType};
use holdfast_registry::limits::{IMAGE_MANIFEST_BYTES, MANIFEST_MEMORY};
use holdfast_store::Hasher;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::mirror::{mirror, uplink};

const INDEX: &str = ManifestType::OciIndex.as_str();
const IMAGE: &str = ManifestType::OciManifest.as_str();
const PAD: usize = 4 << 20;
static PIECE: [u8; 65_536] = [b'p'; 65_536];
const CHILDREN: usize = 8;

/// A document of the upstream: its bytes, or what a large image is made of.
enum Document {
    Text(String),
    Large { head: String, tail: String },
}

impl Document {
    /// The bytes, in pieces that take no memory of their own.
    fn pieces(&self) -> Vec<&[u8]> {
        match self {
            Self::Text(text) => vec![text.as_bytes()],
            Self::Large { head, tail } => {
                let pad = PAD - head.len() - tail.len();
                let mut pieces = vec![head.as_bytes()];
                pieces.extend(vec![&PIECE[..]; pad / PIECE.len()]);
                pieces.push(&PIECE[..pad % PIECE.len()]);
                pieces.push(tail.as_bytes());
                pieces
            }
        }
    }

    fn length(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Large { .. } => PAD,
        }
    }
}

/// An upstream that makes its manifests while it sends them, so that it takes no memory itself.
#[derive(Default)]
struct Bomb {
    documents: HashMap<String, Document>,
    tops: Vec<Digest>,
    sent: AtomicUsize,
}

impl Bomb {
    fn add(&mut self, document: Document) -> (Digest, usize) {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        for piece in document.pieces() {
            hasher.update(piece);
        }
        let (digest, length) = (hasher.finish(), document.length());
        self.documents.insert(digest.to_string(), document);
        (digest, length)
    }

    /// An index of eight, `depth` times, of large images that share one layer.
    fn build(&mut self, depth: usize, number: &mut usize) -> (Digest, usize, &'static str) {
        if depth == 0 {
            *number += 1;
            let layer = format!("sha256:{:064x}", *number);
            let head = format!(
                r#"{{"schemaVersion":2,"mediaType":"{IMAGE}","config":{{"mediaType":"c","digest":"{layer}","size":100000000}},"layers":[],"x":""#
            );
            let tail = "\"}".to_owned();
            let (digest, size) = self.add(Document::Large { head, tail });
            return (digest, size, IMAGE);
        }
        let children: Vec<_> = (0..CHILDREN)
            .map(|_| self.build(depth - 1, number))
            .collect();
        let children: Vec<_> = children
            .iter()
            .map(
                |(digest, size, kind)| json!({ "mediaType": kind, "digest": digest, "size": size }),
            )
            .collect();
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": children });
        let (digest, size) = self.add(Document::Text(index.to_string()));
        (digest, size, INDEX)
    }

    async fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let (mut first, mut line) = (String::new(), String::new());
            if stream.read_line(&mut first).await? == 0 {
                return Ok(());
            }
            while stream.read_line(&mut line).await? > 2 {
                line.clear();
            }
            let path = first.split(' ').nth(1).unwrap_or_default();
            let name = path.rsplit('/').next().unwrap_or_default();
            let top = name
                .strip_prefix("bomb")
                .and_then(|number| number.parse::<usize>().ok());
            let digest = top.map_or_else(|| name.to_owned(), |top| self.tops[top].to_string());
            let is_get = first.starts_with("GET");
            let head = |length: usize| {
                format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\ncontent-type: {INDEX}\r\n\r\n"
                )
            };
            if let Some(document) = self.documents.get(&digest) {
                stream.write_all(head(document.length()).as_bytes()).await?;
                for piece in document.pieces().into_iter().filter(|_| is_get) {
                    stream.write_all(piece).await?;
                }
                self.sent.fetch_add(usize::from(is_get), Ordering::Relaxed);
            } else if path.contains("/blobs/") {
                stream.write_all(head(100_000_000).as_bytes()).await?;
                stream.flush().await?;
                if !is_get {
                    continue;
                }
                loop {
                    stream.write_all(&[0; 2048]).await?;
                    stream.flush().await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            } else {
                stream
                    .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                    .await?;
            }
            stream.flush().await?;
        }
    }

    async fn serve(self) -> (String, Arc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let bomb = Arc::new(self);
        let served = Arc::clone(&bomb);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let bomb = Arc::clone(&served);
                tokio::spawn(async move { bomb.answer(stream).await });
            }
        });
        (url, bomb)
    }
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let number = line.split_whitespace().nth(1).unwrap();
    number.parse::<u64>().unwrap() << 10
}

/// The memory that copies of `bombs` such images at once take, and how many manifests were sent.
async fn explode(depth: usize, bombs: usize) -> (u64, usize, Vec<String>) {
    let (mut bomb, mut number) = (Bomb::default(), 0);
    for _ in 0..bombs {
        let (top, ..) = bomb.build(depth, &mut number);
        bomb.tops.push(top);
    }
    let (url, bomb) = bomb.serve().await;
    let mirror = mirror("bomb.example", &url, &uplink()).await;
    let before = resident();
    let copies: Vec<_> = (0..bombs)
        .map(|number| {
            let fills = mirror.fills.clone();
            let request = FillRequest {
                source: format!("bomb.example/x:bomb{number}"),
                ..FillRequest::default()
            };
            tokio::spawn(async move { fills.fill(&request).await })
        })
        .collect();
    let (mut most, mut still, mut sent) = (0, 0, 0);
    // Until nothing more is sent for two seconds, and a minute at most.
    for _ in 0..1200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        most = most.max(resident().saturating_sub(before));
        let now = bomb.sent.load(Ordering::Relaxed);
        still = if now == sent { still + 1 } else { 0 };
        sent = now;
        if sent > 0 && still > 40 {
            break;
        }
    }
    let mut errors = Vec::new();
    for copy in copies {
        if copy.is_finished() {
            errors.extend(copy.await.unwrap().err().map(|error| error.to_string()));
        } else {
            copy.abort();
        }
    }
    (most, sent, errors)
}

/// One test, so that nothing else of this process takes memory meanwhile but small tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nested_indexes_of_large_manifests_take_bounded_memory() {
    let budget = MANIFEST_MEMORY + (64 << 20);
    for (depth, bombs) in [(2, 1), (1, 6)] {
        let (most, sent, errors) = explode(depth, bombs).await;
        println!(
            "depth {depth}, {bombs} at once: {} MiB, {sent} manifests",
            most >> 20
        );
        assert!(sent > 1, "the upstream was asked");
        assert!(
            most < budget,
            "{bombs} images of depth {depth} took {} MiB, more than {} MiB",
            most >> 20,
            budget >> 20
        );
        for error in errors {
            assert!(error.contains(&IMAGE_MANIFEST_BYTES.to_string()), "{error}");
        }
    }
}
