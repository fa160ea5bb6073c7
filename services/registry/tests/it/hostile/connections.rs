//! Clients that hold connections: to the registry's port and to the port of its probes.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::child::{self, status};

#[test]
fn four_addresses_that_take_all_connections_keep_nobody_out() {
    let limits = ", connections: 64, connectionsPerAddress: 16";
    let name = "hostile::connections::four_addresses_that_take_all_connections_keep_nobody_out";
    child::with(name, (limits, ""), &[], async |child| {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (way, sent) in [
            ("is idle", "GET /v2/ HTTP/1.1\r\nhost: a\r\n\r\n".to_owned()),
            (
                "uploads slowly",
                format!(
                    "POST /v2/a/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n"
                ),
            ),
            ("sends headers slowly", "GET /v2/ HTTP/1.1\r\n".to_owned()),
        ] {
            let mut held = Vec::new();
            for last in 2..6 {
                for _ in 0..16 {
                    let mut stream = child.connect(last).await.unwrap();
                    stream.write_all(sent.as_bytes()).await.unwrap();
                    held.push(stream);
                }
            }
            for _ in 0..3 {
                let found = child.status(1, "/v2/").await;
                assert_eq!(found, Some(200), "every client of four {way}");
                for stream in &mut held {
                    stream.write_all(b"x").await.ok();
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
    });
}

#[test]
fn connections_to_the_admin_port_do_not_stop_probes() {
    let name = "hostile::connections::connections_to_the_admin_port_do_not_stop_probes";
    child::with(name, ("", ""), &[], async |child| {
        let mut held = Vec::new();
        for _ in 0..256 {
            let mut stream = tokio::net::TcpStream::connect(child.admin).await.unwrap();
            let request = b"PUT /log-level HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
            stream.write_all(request).await.ok();
            held.push(stream);
        }
        for _ in 0..5 {
            for path in ["/livez", "/readyz", "/metrics"] {
                assert_eq!(status(child.admin, 1, path).await, Some(200), "{path}");
            }
            for stream in &mut held {
                stream.write_all(b"a").await.ok();
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
}
