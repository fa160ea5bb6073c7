//! Uploads under way, and logins that wait.

use futures::{StreamExt as _, stream::FuturesUnordered};
use holdfast_config::AccessSettings;
use holdfast_registry::{access_control::AccessControl, limits, limits::Limits};

use tokio::io::AsyncWriteExt as _;

use crate::harness::{Registry, Setup, code, header, repo, sha256};

async fn begin(registry: &Registry, repo: &str) -> reqwest::Response {
    registry
        .send("POST", &format!("/v2/{repo}/blobs/uploads/"), &[], "")
        .await
}

#[tokio::test]
async fn too_many_uploads_are_told_to_come_later() {
    let registry = Setup {
        limits: Limits {
            uploads: 3,
            uploads_per_repository: 2,
            ..Limits::default()
        },
        ..Setup::default()
    }
    .start()
    .await;
    let mut begun = Vec::new();
    for repo in ["a", "a", "b"] {
        let answer = begin(&registry, repo).await;
        assert_eq!(answer.status(), 202);
        begun.push(header(answer.headers(), "location").to_owned());
    }
    for repo in ["a", "b", "c"] {
        let answer = begin(&registry, repo).await;
        assert_eq!(header(answer.headers(), "retry-after"), "5");
        assert_eq!(
            code(answer).await,
            (429, "TOOMANYREQUESTS".into()),
            "{repo}"
        );
    }
    let target = format!("/v2/c/blobs/uploads/?digest={}", sha256(b"x"));
    let answer = registry.send("POST", &target, &[], "x").await;
    assert_eq!(answer.status(), 429, "a whole blob is an upload, too");
    // One is finished, and one is cancelled: their places are free.
    let target = format!("{}&digest={}", begun[0], sha256(b"x"));
    assert_eq!(registry.send("PUT", &target, &[], "x").await.status(), 201);
    assert_eq!(begin(&registry, "a").await.status(), 202);
    assert_eq!(begin(&registry, "c").await.status(), 429);
    assert_eq!(registry.delete(&begun[2]).await, 204);
    let target = format!("/v2/c/blobs/uploads/?digest={}", sha256(b"x"));
    for _ in 0..3 {
        let answer = registry.send("POST", &target, &[], "x").await;
        assert_eq!(answer.status(), 201, "and given back at once");
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// A header that is not indexed (RFC 7541, 6.2.2); name and value are shorter than 127 bytes.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

/// Pushes a blob over HTTP/2 and resets the stream after its first byte.
async fn push_and_vanish(registry: &Registry, after: std::time::Duration) {
    let address = registry.url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let path = format!("/v2/a/blobs/uploads/?digest={}", sha256(b"never"));
    let headers = [
        literal(":method", "POST"),
        literal(":scheme", "http"),
        literal(":authority", "x"),
        literal(":path", &path),
        literal("content-length", "1000"),
    ];
    let request = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, b""),
        frame(1, 4, 1, &headers.concat()),
        frame(0, 0, 1, b"a"),
    ];
    stream.write_all(&request.concat()).await.unwrap();
    tokio::time::sleep(after).await;
    let reset = frame(3, 0, 1, &8_u32.to_be_bytes());
    stream.write_all(&reset).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_uploads_whose_clients_vanish_leave_no_session() {
    let registry = Setup {
        limits: Limits {
            uploads: 8,
            uploads_per_repository: 4,
            ..Limits::default()
        },
        ..Setup::default()
    }
    .start()
    .await;
    for millis in 0..40 {
        push_and_vanish(&registry, std::time::Duration::from_millis(millis % 10)).await;
    }
    let any = registry.store.layout().upload(&repo("a"), "any");
    let sessions = any.parent().unwrap();
    let left = || std::fs::read_dir(sessions).map_or(0, Iterator::count);
    for _ in 0..3_000 {
        if left() == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(left(), 0);
    for _ in 0..4 {
        assert_eq!(begin(&registry, "a").await.status(), 202, "places are free");
    }
    assert_eq!(begin(&registry, "a").await.status(), 429);
}

#[tokio::test]
async fn a_chunk_at_the_end_is_not_hashed_again_for_an_older_state() {
    let registry = Registry::start().await;
    let begun = begin(&registry, "a").await;
    let oldest = header(begun.headers(), "location").to_owned();
    let sent = registry.send("PATCH", &oldest, &[], "half ").await;
    assert_eq!(sent.status(), 202);
    let target = format!("{oldest}&digest={}", sha256(b"half and half"));
    let range = [("content-range", "5-12")];
    let ended = registry.send("PUT", &target, &range, "and half").await;
    assert_eq!(ended.status(), 201);
    let digest = sha256(b"half and half");
    let blob = registry.store.open_blob(&digest).await.unwrap().unwrap();
    assert!(
        !blob.is_verified(),
        "the hash was remembered, nothing was read"
    );
}

#[tokio::test]
async fn logins_beyond_what_can_be_checked_are_told_to_come_later() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("htpasswd");
    std::fs::write(&users, format!("ci:{}\n", bcrypt::hash("x", 11).unwrap())).unwrap();
    let access = AccessSettings {
        htpasswd: Some(users),
        ..AccessSettings::default()
    };
    let registry = Setup {
        access_control: AccessControl::from_settings(None, Some(&access)).unwrap(),
        ..Setup::default()
    }
    .start()
    .await;
    let registry = &registry;
    let mut logins: FuturesUnordered<_> = (0..limits::PASSWORDS_WAITING + 64)
        .map(|number| async move {
            let wrong = base64::Engine::encode(
                &base64::engine::general_purpose::STANDARD,
                format!("ci:{number}"),
            );
            let authorization = format!("Basic {wrong}");
            registry
                .send("GET", "/v2/", &[("authorization", &authorization)], "")
                .await
        })
        .collect();
    while let Some(answer) = logins.next().await {
        if answer.status() == 429 {
            assert_eq!(header(answer.headers(), "retry-after"), "5");
            assert_eq!(code(answer).await, (429, "TOOMANYREQUESTS".into()));
            return;
        }
        assert_eq!(answer.status(), 401);
    }
    panic!("every login was checked");
}

#[tokio::test]
async fn a_whole_upload_that_breaks_off_counts_only_above_its_length() {
    const SENT: usize = 1 << 20;
    for (length, expect) in [
        (limits::WHOLE_UPLOAD_BYTES, "0-0".to_owned()),
        (limits::WHOLE_UPLOAD_BYTES + 1, format!("0-{}", SENT - 1)),
    ] {
        let registry = Registry::start().await;
        let begun = begin(&registry, "a").await;
        let location = header(begun.headers(), "location").to_owned();
        let address = registry.url.strip_prefix("http://").unwrap();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let digest = sha256(b"x");
        let head = format!(
            "PUT {location}&digest={digest} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![0; SENT]).await.unwrap();
        drop(stream);
        let mut found = String::new();
        for _ in 0..100 {
            let answer = registry.get(&location).await;
            assert_eq!(answer.status(), 204, "the session goes on");
            header(answer.headers(), "range").clone_into(&mut found);
            if found == expect && expect != "0-0" {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(found, expect, "{length} bytes announced");
    }
}
