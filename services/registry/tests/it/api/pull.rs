//! Pulls of what is local.

use crate::harness::{OCI_MANIFEST, Registry, code, header, noise, sha256};

// SPEC 16
#[tokio::test]
async fn manifest_and_blob_come_back_byte_for_byte() {
    let registry = Registry::start().await;
    let (digest, manifest) = registry.push_image("team/app", "1", &noise(900_000)).await;
    for reference in ["1", digest.as_str()] {
        for method in ["GET", "HEAD"] {
            let answer = registry
                .send(
                    method,
                    &format!("/v2/team/app/manifests/{reference}"),
                    &[],
                    "",
                )
                .await;
            assert_eq!(answer.status(), 200);
            assert_eq!(header(answer.headers(), "content-type"), OCI_MANIFEST);
            assert_eq!(
                header(answer.headers(), "docker-content-digest"),
                digest.as_str()
            );
            assert_eq!(
                header(answer.headers(), "content-length"),
                manifest.len().to_string()
            );
            let body = answer.text().await.unwrap();
            assert_eq!(
                body,
                if method == "GET" {
                    manifest.as_str()
                } else {
                    ""
                }
            );
        }
    }
    let head = registry
        .send(
            "HEAD",
            &format!("/v2/team/app/blobs/{}", sha256(&noise(900_000))),
            &[],
            "",
        )
        .await;
    assert_eq!(
        (
            head.status().as_u16(),
            header(head.headers(), "content-length")
        ),
        (200, "900000")
    );
}

// SPEC 16
#[tokio::test]
async fn ranges_of_a_blob_are_served() {
    let registry = Registry::start().await;
    let bytes = noise(1_000_000);
    let digest = registry.push_blob("a", bytes.clone()).await;
    for (range, first, last) in [
        ("bytes=500-1499", 500, 1499),
        ("bytes=500-", 500, 999_999),
        ("bytes=-500", 999_500, 999_999),
        ("bytes=900000-2000000", 900_000, 999_999),
        ("bytes=0-0", 0, 0),
    ] {
        let answer = registry
            .send(
                "GET",
                &format!("/v2/a/blobs/{digest}"),
                &[("range", range)],
                "",
            )
            .await;
        assert_eq!(answer.status(), 206, "{range}");
        assert_eq!(
            header(answer.headers(), "content-range"),
            format!("bytes {first}-{last}/1000000")
        );
        assert_eq!(
            answer.bytes().await.unwrap(),
            &bytes[first..=last],
            "{range}"
        );
    }
    for range in ["bytes=500-0", "bytes=1000000-"] {
        let answer = registry
            .send(
                "GET",
                &format!("/v2/a/blobs/{digest}"),
                &[("range", range)],
                "",
            )
            .await;
        assert_eq!(header(answer.headers(), "content-range"), "bytes */1000000");
        assert_eq!(answer.status(), 416, "{range}");
    }
    let other = [("range", "bytes=0-9"), ("if-range", "\"sha256:other\"")];
    assert_eq!(
        registry
            .send("GET", &format!("/v2/a/blobs/{digest}"), &other, "")
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn what_is_not_there_is_unknown() {
    let registry = Registry::start().await;
    let digest = registry.push_blob("a", "x").await;
    for (path, expect) in [
        (format!("/v2/b/blobs/{digest}"), "BLOB_UNKNOWN"),
        (format!("/v2/a/blobs/{}", sha256(b"y")), "BLOB_UNKNOWN"),
        ("/v2/a/manifests/1".into(), "MANIFEST_UNKNOWN"),
        (format!("/v2/a/manifests/{digest}"), "MANIFEST_UNKNOWN"),
        (
            "/v2/docker.io/library/nginx/manifests/1".into(),
            "MANIFEST_UNKNOWN",
        ),
        ("/v2/none/tags/list".into(), "NAME_UNKNOWN"),
    ] {
        assert_eq!(
            code(registry.get(&path).await).await,
            (404, expect.into()),
            "{path}"
        );
    }
}

// SPEC 37
#[tokio::test]
async fn damaged_blob_never_ends_cleanly_and_is_healed_by_a_push() {
    let registry = Registry::start().await;
    let bytes = noise(800_000);
    let digest = registry.push_blob("a", bytes.clone()).await;
    let mut damaged = bytes.clone();
    damaged[400_000] ^= 1;
    std::fs::write(registry.store.layout().blob(&digest), damaged).unwrap();
    let path = format!("/v2/a/blobs/{digest}");
    assert!(
        registry.get(&path).await.bytes().await.is_err(),
        "the stream is cut short"
    );
    assert_eq!(
        registry.get(&path).await.status(),
        404,
        "it was moved aside"
    );
    registry.push_blob("a", bytes.clone()).await;
    assert_eq!(registry.get(&path).await.bytes().await.unwrap(), bytes);
}

// SPEC 37
#[tokio::test]
async fn damaged_manifest_is_a_miss_and_can_be_deleted() {
    let registry = Registry::start().await;
    let (digest, manifest) = registry.push_image("a", "1", b"layer").await;
    let file = registry.store.layout().blob(&digest);
    std::fs::write(&file, manifest.replace("layers", "Layers")).unwrap();
    assert_eq!(registry.get("/v2/a/manifests/1").await.status(), 404);
    assert_eq!(
        registry.delete(&format!("/v2/a/manifests/{digest}")).await,
        202
    );
    registry.push_image("a", "1", b"layer").await;
    assert_eq!(
        registry
            .get("/v2/a/manifests/1")
            .await
            .text()
            .await
            .unwrap(),
        manifest
    );
}

#[tokio::test]
async fn many_clients_share_a_bounded_budget_of_buffers() {
    let mut setup = crate::harness::Setup::default();
    setup.options.buffer_bytes = 256 << 10;
    let registry = std::sync::Arc::new(setup.start().await);
    let bytes = noise(2_000_000);
    let digest = registry.push_blob("a", bytes.clone()).await;
    let clients: Vec<_> = (0..24)
        .map(|_| {
            let (registry, digest) = (std::sync::Arc::clone(&registry), digest.clone());
            tokio::spawn(async move {
                registry
                    .get(&format!("/v2/a/blobs/{digest}"))
                    .await
                    .bytes()
                    .await
                    .unwrap()
            })
        })
        .collect();
    for client in clients {
        assert_eq!(client.await.unwrap(), bytes);
    }
}
