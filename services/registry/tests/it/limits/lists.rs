//! Lists whose clients do not read them.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use holdfast_registry::limits::LIST_WAIT;
use holdfast_testkit::hostile::http2;
use reqwest::Response;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
};

use crate::harness::{Registry, code, header, sha256};

/// Tags of the greatest length, of which two lists and the making of a third are more than an
/// address may have.
const TAGS: usize = 8000;
/// Lists of one client: more than its address may have, and far fewer than all may have together.
const STREAMS: u32 = 8;

fn lay_out_tags(registry: &Registry) -> &'static str {
    let digest = sha256(b"{}");
    let tags = registry
        .root()
        .join("docker/registry/v2/repositories/a/_manifests/tags");
    for number in 0..TAGS {
        let current = tags.join(format!("{number:0128}")).join("current");
        std::fs::create_dir_all(&current).unwrap();
        std::fs::write(current.join("link"), digest.as_str()).unwrap();
    }
    "/v2/a/tags/list"
}

/// Asks for this many lists, and reads none.
async fn hoard(registry: &Registry, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = registry.url.strip_prefix("http://").unwrap();
    let mut client = socket.connect(address.parse().unwrap()).await.unwrap();
    let requests = http2::requests(path, STREAMS, http2::WINDOW, &[]);
    client.write_all(&requests).await.unwrap();
    client
}

/// Asks from an address of the loopback network; says how long the answer took.
async fn ask(registry: &Registry, last: u8, path: &str) -> (Response, Duration) {
    let client = reqwest::Client::builder()
        .local_address(IpAddr::from([127, 0, 0, last]))
        .build()
        .unwrap();
    let begun = Instant::now();
    let answer = client.get(format!("{}{path}", registry.url)).send().await;
    (answer.unwrap(), begun.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_waits_for_the_memory_of_its_address_and_then_it_is_refused() {
    let registry = Registry::start().await;
    let path = lay_out_tags(&registry);
    let hoarder = hoard(&registry, path).await;
    let mut refused = None;
    for _ in 0..50 {
        let (answer, took) = ask(&registry, 1, path).await;
        if answer.status() != 200 {
            refused = Some((answer, took));
            break;
        }
        // Those of the hoarder are not made yet.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (answer, took) = refused.expect("an address has no bound");
    assert_eq!(header(answer.headers(), "retry-after"), "5");
    assert_eq!(code(answer).await, (429, "TOOMANYREQUESTS".into()));
    let longest = LIST_WAIT + Duration::from_secs(5);
    assert!(LIST_WAIT <= took && took < longest, "{took:?}");
    let (answer, took) = ask(&registry, 2, path).await;
    assert_eq!(answer.status(), 200, "another address has its own");
    assert!(took < LIST_WAIT, "{took:?}");
    drop(hoarder);
    let (answer, _) = ask(&registry, 1, path).await;
    assert_eq!(answer.status(), 200, "what it held is free");
}
