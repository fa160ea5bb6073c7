//! Uploads under way, and logins that wait.

use futures::{StreamExt as _, stream::FuturesUnordered};
use holdfast_config::AccessSettings;
use holdfast_registry::{gate::Gate, limits, limits::Limits};

use tokio::io::AsyncWriteExt as _;

use crate::harness::{Registry, Setup, code, header, sha256};

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
    assert_eq!(
        registry.send("DELETE", &begun[2], &[], "").await.status(),
        204
    );
    let target = format!("/v2/c/blobs/uploads/?digest={}", sha256(b"x"));
    for _ in 0..3 {
        let answer = registry.send("POST", &target, &[], "x").await;
        assert_eq!(answer.status(), 201, "and given back at once");
    }
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
        gate: Gate::from_settings(None, Some(&access)).unwrap(),
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
