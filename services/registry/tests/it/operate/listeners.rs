//! The listener of the registry has the bounds that operators set.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::harness::Process;

/// Sends the head of a push, and none of its body; the status of the answer, and when it came.
async fn push_silently(process: &Process) -> (String, Duration) {
    let address = process.api.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let digest = format!("sha256:{}", "0".repeat(64));
    let head = format!(
        "POST /v2/a/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: a\r\n\
         content-length: 1000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let begun = Instant::now();
    let mut answer = [0; 12];
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut answer));
    read.await.expect("a silent body ends").unwrap();
    (
        String::from_utf8_lossy(&answer[9..]).into_owned(),
        begun.elapsed(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_no_body_is_answered_after_the_set_time() {
    for seconds in [1, 3] {
        let process = Process::with(false, |settings| settings.limits.idle_seconds = seconds);
        process.until("/readyz", 200).await;
        let (status, took) = push_silently(&process).await;
        assert_eq!(status, "408");
        let expect = Duration::from_secs(seconds.into());
        let latest = expect + Duration::from_millis(1900);
        assert!(expect <= took && took < latest, "{seconds}: {took:?}");
        process.end().await;
    }
}
