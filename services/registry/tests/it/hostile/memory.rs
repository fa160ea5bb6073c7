//! What clients can make the process hold, in resident memory.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use holdfast_core::digest::{Algorithm, Digest};
use holdfast_registry::limits::LIST_MEMORY;
use holdfast_store::Hasher;
use holdfast_testkit::hostile::http2;

use super::child::{self, Child};

const STREAMS: u32 = 128;

/// Memory that a process may take beside what its bounds say: code, stacks, what the allocator
/// keeps.
const OVERHEAD_BYTES: u64 = 40 << 20;

pub(crate) async fn push(child: &Child, bytes: Vec<u8>) -> String {
    let digest: Digest = Hasher::digest(Algorithm::Sha256, &bytes);
    let url = format!("http://{}/v2/a/blobs", child.listen);
    let answer = reqwest::Client::new()
        .post(format!("{url}/uploads/?digest={digest}"))
        .basic_auth("ci0", Some("right-0"))
        .body(bytes)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 201);
    format!("/v2/a/blobs/{digest}")
}

/// Opens every stream for `path` with the largest windows, and reads nothing.
pub(crate) async fn hoard(child: &Child, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(child.listen).await.unwrap();
    let requests = http2::requests(path, STREAMS, http2::WINDOW, &[]);
    client.write_all(&requests).await.unwrap();
    client
}

/// The most that the process takes over some seconds.
async fn most(child: &Child, seconds: u64) -> u64 {
    let mut most = 0;
    for _ in 0..seconds * 10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(child.memory());
    }
    most
}

pub(crate) async fn pulls(child: &Child, last: u8, path: &str) -> usize {
    let mut stream = child.connect(last).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    answer.len()
}

#[test]
fn streams_that_nobody_reads_take_little_memory() {
    let name = "hostile::memory::streams_that_nobody_reads_take_little_memory";
    child::with(name, ("", ""), &[], async |child| {
        const SIZE: usize = 4 << 20;
        let path = push(child, vec![7; SIZE]).await;
        let before = child.memory();
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(hoard(child, &path).await);
        }
        let after = most(child, 6).await;
        // `streamBufferBytes`, of which all connections together use less.
        let bound = before + (48 << 20) + OVERHEAD_BYTES;
        assert!(
            after <= bound,
            "{} MiB, {} MiB at most",
            after >> 20,
            bound >> 20
        );
        assert!(
            SIZE < pulls(child, 1, &path).await,
            "others get their blobs"
        );
    });
}

#[test]
fn connections_that_nobody_reads_take_little_memory() {
    let name = "hostile::memory::connections_that_nobody_reads_take_little_memory";
    child::with(name, ("", ""), &[], async |child| {
        const CONNECTIONS: usize = 800;
        const SIZE: usize = 4 << 20;
        let path = push(child, vec![7; SIZE]).await;
        let before = child.memory();
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            let mut client = socket.connect(child.listen).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            clients.push(client);
        }
        let after = most(child, 3).await;
        // The budget, and a small buffer with a connection's own state for each.
        let bound = before + (48 << 20) + CONNECTIONS as u64 * (48 << 10) + OVERHEAD_BYTES;
        assert!(
            after <= bound,
            "{} MiB, {} MiB at most",
            after >> 20,
            bound >> 20
        );
    });
}

/// Puts this many tags of the greatest length on the volume; the path of their list. To push each
/// would take its syncs.
fn lay_out_tags(child: &Child, count: usize) -> String {
    let digest: Digest = Hasher::digest(Algorithm::Sha256, b"{}");
    let tags = child
        .data()
        .join("docker/registry/v2/repositories/a/_manifests/tags");
    for number in 0..count {
        let current = tags.join(format!("{number:0128}")).join("current");
        std::fs::create_dir_all(&current).unwrap();
        std::fs::write(current.join("link"), digest.as_str()).unwrap();
    }
    "/v2/a/tags/list".to_owned()
}

#[test]
fn lists_that_nobody_reads_take_little_memory() {
    let name = "hostile::memory::lists_that_nobody_reads_take_little_memory";
    child::with(name, ("", ""), &[], async |child| {
        const TAGS: usize = 8000;
        let path = lay_out_tags(child, TAGS);
        let before = child.memory();
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(hoard(child, &path).await);
        }
        let after = most(child, 5).await;
        let bound = before + LIST_MEMORY + OVERHEAD_BYTES;
        assert!(
            after <= bound,
            "{} MiB, {} MiB at most",
            after >> 20,
            bound >> 20
        );
        let found = pulls(child, 9, &path).await;
        assert!(TAGS * 128 < found, "other addresses get their lists");
    });
}
