//! What is refused, and how.

use crate::harness::{OCI_MANIFEST, Registry, Setup, code, header, noise, sha256};
use holdfast_registry::access_control::AccessControl;

#[tokio::test]
async fn in_a_cluster_only_nodes_pull_and_nobody_pushes() {
    let registry = Setup {
        access_control: AccessControl::nodes("node", "secret"),
        ..Setup::default()
    }
    .start()
    .await;
    let answer = registry.get("/v2/").await;
    assert_eq!(
        header(answer.headers(), "www-authenticate"),
        "Basic realm=\"holdfast\""
    );
    assert_eq!(code(answer).await, (401, "UNAUTHORIZED".into()));
    let node = [("authorization", "Basic bm9kZTpzZWNyZXQ=")];
    assert_eq!(registry.send("GET", "/v2/", &node, "").await.status(), 200);
    assert_eq!(
        code(
            registry
                .send("POST", "/v2/a/blobs/uploads/", &node, "")
                .await
        )
        .await,
        (403, "DENIED".into())
    );
    let stranger = [("authorization", "Basic bm9kZTp3cm9uZw==")];
    assert_eq!(
        registry.send("GET", "/v2/", &stranger, "").await.status(),
        401
    );
    assert_eq!(
        registry.send("PATCH", "/v2/", &[], "").await.status(),
        401,
        "a stranger learns nothing of methods"
    );
}

#[tokio::test]
async fn nobody_pushes_under_an_upstreams_name() {
    let registry = Registry::start().await;
    for repo in [
        "docker.io/library/nginx",
        "registry.example_5000/app",
        "localhost/app",
    ] {
        for (method, path) in [("POST", "blobs/uploads/"), ("PUT", "manifests/1")] {
            let answer = registry
                .send(
                    method,
                    &format!("/v2/{repo}/{path}"),
                    &[("content-type", OCI_MANIFEST)],
                    "{}",
                )
                .await;
            assert_eq!(
                code(answer).await,
                (403, "DENIED".into()),
                "{method} {repo}"
            );
        }
    }
}

#[tokio::test]
async fn large_manifest_is_taken_up_to_the_limit() {
    let registry = Registry::start().await;
    let config = registry.push_blob("a", "{}").await;
    let padded = |size: usize| {
        let manifest = crate::harness::image(&config, 2, &[], r#","annotations":{"pad":"PAD"}"#);
        let pad = size - manifest.len() + 3;
        manifest.replace("PAD", &"x".repeat(pad))
    };
    assert_eq!(
        registry
            .put_manifest("a", "1", &padded(4 << 20))
            .await
            .status(),
        201
    );
    let streamed = reqwest::Body::wrap_stream(futures::stream::iter([Ok::<_, std::io::Error>(
        padded((4 << 20) + 1),
    )]));
    assert_eq!(
        registry
            .put_manifest("a", "1", &padded((4 << 20) + 1))
            .await
            .status(),
        413
    );
    assert_eq!(
        registry
            .send("PUT", "/v2/a/manifests/1", &[], streamed)
            .await
            .status(),
        413
    );
}

// SPEC 74
#[tokio::test]
async fn full_volume_refuses_writes_and_serves() {
    let setup = Setup::default();
    let dir = std::sync::Arc::clone(&setup.dir);
    let open = setup.start().await;
    let (_, manifest) = open.push_image("a", "1", &noise(300_000)).await;
    let mut setup = Setup {
        dir,
        ..Setup::default()
    };
    setup.options.write_limits.reserve_bytes = u64::MAX / 2;
    let full = setup.start().await;
    let digest = sha256(b"x");
    for (method, path) in [
        ("POST", "/v2/a/blobs/uploads/".to_owned()),
        ("POST", format!("/v2/a/blobs/uploads/?digest={digest}")),
        ("PUT", "/v2/a/manifests/2".to_owned()),
    ] {
        assert_eq!(
            code(full.send(method, &path, &[], "x").await).await,
            (507, "DENIED".into()),
            "{method} {path}"
        );
    }
    assert_eq!(
        full.get("/v2/a/manifests/1").await.text().await.unwrap(),
        manifest
    );
    assert_eq!(
        full.get(&format!("/v2/a/blobs/{}", sha256(&noise(300_000))))
            .await
            .bytes()
            .await
            .unwrap(),
        noise(300_000)
    );
    assert_eq!(full.delete("/v2/a/manifests/1").await, 202);
}

#[tokio::test]
async fn draining_replica_begins_no_session_and_serves() {
    let registry = Registry::start().await;
    registry.push_image("a", "1", b"layer").await;
    let begun = registry.send("POST", "/v2/a/blobs/uploads/", &[], "").await;
    registry.stop.cancel();
    let answer = registry.send("POST", "/v2/a/blobs/uploads/", &[], "").await;
    assert_eq!(
        (
            answer.status().as_u16(),
            header(answer.headers(), "retry-after")
        ),
        (503, "5")
    );
    assert_eq!(
        registry
            .send("PATCH", header(begun.headers(), "location"), &[], "x")
            .await
            .status(),
        202
    );
    assert_eq!(registry.get("/v2/a/manifests/1").await.status(), 200);
}

#[tokio::test]
async fn errors_have_the_specifications_form() {
    let registry = Registry::start().await;
    for (request, status, expect) in [
        ("GET /v2/A/manifests/1", 400, "NAME_INVALID"),
        ("GET /v2/a/manifests/sha256:bad", 400, "DIGEST_INVALID"),
        (
            "GET /v2/a/manifests/.INVALID_MANIFEST_NAME",
            404,
            "MANIFEST_UNKNOWN",
        ),
        (
            "PUT /v2/a/manifests/sha256:baddigeststring",
            400,
            "DIGEST_INVALID",
        ),
        ("PUT /v2/a/manifests/x", 400, "MANIFEST_INVALID"),
        (
            "POST /v2/a/blobs/uploads/?digest=md5:1",
            400,
            "DIGEST_INVALID",
        ),
        ("GET /v2/a/blobs/uploads/1", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("GET /v2/a/referrers/x", 400, "DIGEST_INVALID"),
        ("PATCH /v2/a/manifests/x", 405, "UNSUPPORTED"),
        ("GET /elsewhere", 404, "NAME_UNKNOWN"),
    ] {
        let (method, path) = request.split_once(' ').unwrap();
        assert_eq!(
            code(registry.send(method, path, &[], "").await).await,
            (status, expect.into()),
            "{request}"
        );
    }
}
