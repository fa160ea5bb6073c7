//! What the controller and other replicas may send to the internal API.

use std::time::Duration;

use holdfast_api::{access, fill};
use holdfast_fill::limits::{INTERNAL_REQUEST_BYTES, INTERNAL_REQUEST_TIME};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::room::internal_url;
use crate::harness::Registry;

/// Begins a request with a body of this many bytes, and sends none of them.
async fn begin(url: &str, path: &str, bytes: u64) -> TcpStream {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn status(stream: &mut TcpStream) -> String {
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

fn paths() -> [String; 3] {
    let offer = format!("/internal/v1/blobs/sha256:{}/sources", "0".repeat(64));
    [fill::PATH.to_owned(), access::PATH.to_owned(), offer]
}

#[tokio::test]
async fn a_request_of_the_internal_api_has_so_many_bytes_and_no_more() {
    let registry = Registry::start().await;
    let url = internal_url(registry.store.clone()).await;
    for path in paths() {
        let mut larger = begin(&url, &path, INTERNAL_REQUEST_BYTES + 1).await;
        let answer = tokio::time::timeout(Duration::from_secs(5), status(&mut larger));
        assert_eq!(answer.await.expect("before the body"), "413", "{path}");
        let mut largest = begin(&url, &path, INTERNAL_REQUEST_BYTES).await;
        let body = " ".repeat(usize::try_from(INTERNAL_REQUEST_BYTES).unwrap());
        largest.write_all(body.as_bytes()).await.unwrap();
        assert_eq!(status(&mut largest).await, "400", "{path}: read, no JSON");
    }
}

#[tokio::test]
async fn a_request_of_the_internal_api_has_its_time_and_no_more() {
    let registry = Registry::start().await;
    let url = internal_url(registry.store.clone()).await;
    // Nothing but these requests goes on from here on, so their time passes at once.
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let silent = paths().map(async |path| {
        let mut silent = begin(&url, &path, 100).await;
        assert_eq!(status(&mut silent).await, "408", "{path}");
        begun.elapsed().as_secs()
    });
    for took in futures::future::join_all(silent).await {
        let expect = INTERNAL_REQUEST_TIME.as_secs();
        assert!((expect - 5..=expect + 5).contains(&took), "{took} seconds");
    }
}
