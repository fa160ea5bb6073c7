//! Indexes of indexes of large manifests whose blobs never end.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use holdfast_core::Hasher;
use holdfast_core::{Digest, digest::Algorithm, oci::ManifestType};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

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

/// An upstream that makes its manifests while it sends them, so that it takes no memory itself. The
/// tags `bomb0`, `bomb1` and so on are the images, in any repository.
#[derive(Default)]
pub struct Bomb {
    documents: HashMap<String, Document>,
    tops: Vec<Digest>,
    sent: AtomicUsize,
    number: usize,
}

impl Bomb {
    /// Adds an image: an index of eight, `depth` times, of manifests of 4 MiB whose blobs trickle.
    pub fn push(&mut self, depth: usize) {
        let mut number = self.number;
        let (top, ..) = self.build(depth, &mut number);
        self.number = number;
        self.tops.push(top);
    }

    /// Manifests that were sent so far.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

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
            let digest = top
                .and_then(|top| self.tops.get(top))
                .map_or_else(|| name.to_owned(), ToString::to_string);
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

    /// Serves on a port of 127.0.0.1 as long as the runtime lives.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn serve(self) -> std::io::Result<(SocketAddr, Arc<Self>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let bomb = Arc::new(self);
        let served = Arc::clone(&bomb);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let bomb = Arc::clone(&served);
                tokio::spawn(async move { bomb.answer(stream).await });
            }
        });
        Ok((address, bomb))
    }
}
