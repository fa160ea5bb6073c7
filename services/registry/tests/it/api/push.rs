//! Pushes of blobs, in every way that clients have.

use crate::harness::{Registry, Setup, code, header, noise, sha256};
use holdfast_core::digest::{Algorithm, Digest};
use holdfast_store::Hasher;

async fn check_pullable(registry: &Registry, location: &str, bytes: &[u8]) {
    let answer = registry.get(location).await;
    assert_eq!(answer.status(), 200, "{location}");
    assert_eq!(answer.bytes().await.unwrap(), bytes, "{location}");
}

// SPEC 16
#[tokio::test]
async fn blob_is_pushed_by_post_alone() {
    let registry = Registry::start().await;
    for size in [0, 1, 4096, 3_000_000] {
        let bytes = noise(size);
        let digest = sha256(&bytes);
        let answer = registry
            .send(
                "POST",
                &format!("/v2/a/b/blobs/uploads/?digest={digest}"),
                &[],
                bytes.clone(),
            )
            .await;
        assert_eq!(answer.status(), 201);
        assert_eq!(
            header(answer.headers(), "docker-content-digest"),
            digest.as_str()
        );
        check_pullable(&registry, header(answer.headers(), "location"), &bytes).await;
    }
}

// SPEC 16
#[tokio::test]
async fn blob_is_pushed_by_post_and_put() {
    let registry = Registry::start().await;
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let bytes = noise(700_000);
        let digest = Hasher::digest(algorithm, &bytes);
        for query in [String::new(), format!("?digest-algorithm={algorithm}")] {
            let begun = registry
                .send("POST", &format!("/v2/a/blobs/uploads/{query}"), &[], "")
                .await;
            assert_eq!(begun.status(), 202);
            let location = header(begun.headers(), "location").to_owned();
            let answer = registry.finish(&location, &digest, bytes.clone()).await;
            assert_eq!(answer.status(), 201, "{algorithm}{query}");
            check_pullable(&registry, header(answer.headers(), "location"), &bytes).await;
        }
    }
}

// SPEC 16
#[tokio::test]
async fn blob_is_pushed_in_chunks_and_out_of_order_ones_are_refused() {
    let registry = Registry::start().await;
    let bytes = noise(300_000);
    let digest = sha256(&bytes);
    let begun = registry.send("POST", "/v2/a/blobs/uploads/", &[], "").await;
    let mut location = header(begun.headers(), "location").to_owned();
    let early = registry
        .send(
            "PATCH",
            &location,
            &[("content-range", "100000-199999")],
            bytes[100_000..200_000].to_vec(),
        )
        .await;
    assert_eq!(early.status(), 416);
    assert_eq!(registry.get(&location).await.status(), 204);
    for first in [0, 100_000] {
        let range = format!("{first}-{}", first + 99_999);
        let answer = registry
            .send(
                "PATCH",
                &location,
                &[("content-range", &range)],
                bytes[first..first + 100_000].to_vec(),
            )
            .await;
        assert_eq!(answer.status(), 202);
        assert_eq!(
            header(answer.headers(), "range"),
            format!("0-{}", first + 99_999)
        );
        let again = registry
            .send(
                "PATCH",
                header(answer.headers(), "location"),
                &[("content-range", &range)],
                bytes[first..first + 100_000].to_vec(),
            )
            .await;
        assert_eq!(again.status(), 416, "the same chunk again");
        location = header(answer.headers(), "location").to_owned();
    }
    let status = registry.get(&location).await;
    assert_eq!(
        (status.status().as_u16(), header(status.headers(), "range")),
        (204, "0-199999")
    );
    let gap = registry
        .send(
            "PUT",
            &format!("{location}&digest={digest}"),
            &[("content-range", "250000-299999")],
            bytes[250_000..].to_vec(),
        )
        .await;
    assert_eq!(gap.status(), 416);
    let answer = registry
        .send(
            "PUT",
            &format!("{location}&digest={digest}"),
            &[("content-range", "200000-299999")],
            bytes[200_000..].to_vec(),
        )
        .await;
    assert_eq!(answer.status(), 201);
    check_pullable(&registry, header(answer.headers(), "location"), &bytes).await;
    assert_eq!(
        code(registry.get(&location).await).await,
        (404, "BLOB_UPLOAD_UNKNOWN".into())
    );
}

// SPEC 16
#[tokio::test]
async fn blob_is_streamed_without_a_length() {
    let registry = Registry::start().await;
    let bytes = noise(2_000_000);
    let begun = registry.send("POST", "/v2/a/blobs/uploads/", &[], "").await;
    let pieces: Vec<std::io::Result<Vec<u8>>> = bytes
        .chunks(33_333)
        .map(|piece| Ok(piece.to_vec()))
        .collect();
    let body = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
    let answer = registry
        .send("PATCH", header(begun.headers(), "location"), &[], body)
        .await;
    assert_eq!(answer.status(), 202);
    let location = header(answer.headers(), "location").to_owned();
    let answer = registry.finish(&location, &sha256(&bytes), "").await;
    assert_eq!(answer.status(), 201);
    check_pullable(&registry, header(answer.headers(), "location"), &bytes).await;
}

#[tokio::test]
async fn chunk_whose_answer_was_lost_may_be_sent_again() {
    let registry = Registry::start().await;
    let bytes = noise(200_000);
    let begun = registry.send("POST", "/v2/a/blobs/uploads/", &[], "").await;
    let first = header(begun.headers(), "location").to_owned();
    for _ in 0..2 {
        assert_eq!(
            registry
                .send("PATCH", &first, &[], bytes[..150_000].to_vec())
                .await
                .status(),
            202
        );
    }
    let status = registry.get(&first).await;
    let location = header(status.headers(), "location").to_owned();
    let answer = registry
        .finish(&location, &sha256(&bytes), bytes[150_000..].to_vec())
        .await;
    assert_eq!(answer.status(), 201);
}

// SPEC 55
#[tokio::test]
async fn upload_goes_on_at_another_replica() {
    let one = Registry::start().await;
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let (one, two) = {
        drop(one);
        let start = || {
            Setup {
                dir: std::sync::Arc::clone(&dir),
                ..Setup::default()
            }
            .start()
        };
        (start().await, start().await)
    };
    let bytes = noise(500_000);
    let begun = one.send("POST", "/v2/a/blobs/uploads/", &[], "").await;
    let answer = two
        .send(
            "PATCH",
            header(begun.headers(), "location"),
            &[],
            bytes[..250_001].to_vec(),
        )
        .await;
    assert_eq!(answer.status(), 202);
    let answer = one
        .send(
            "PATCH",
            header(answer.headers(), "location"),
            &[],
            bytes[250_001..].to_vec(),
        )
        .await;
    let location = header(answer.headers(), "location").to_owned();
    let answer = two.finish(&location, &sha256(&bytes), "").await;
    assert_eq!(answer.status(), 201);
    check_pullable(&one, header(answer.headers(), "location"), &bytes).await;
}

#[tokio::test]
async fn blob_is_mounted_or_a_session_begins() {
    let registry = Registry::start().await;
    let digest = registry.push_blob("a", "layer").await;
    let mount = |to: &'static str, digest: Digest, from: &'static str| {
        let registry = &registry;
        async move {
            registry
                .send(
                    "POST",
                    &format!("/v2/{to}/blobs/uploads/?mount={digest}{from}"),
                    &[],
                    "",
                )
                .await
        }
    };
    for (to, from) in [("b", "&from=a"), ("c", "")] {
        let answer = mount(to, digest.clone(), from).await;
        assert_eq!(answer.status(), 201, "{to}");
        check_pullable(&registry, header(answer.headers(), "location"), b"layer").await;
    }
    for (digest, from) in [(sha256(b"none"), "&from=a"), (digest, "&from=unknown")] {
        let answer = mount("d", digest, from).await;
        assert_eq!(answer.status(), 202);
        assert!(header(answer.headers(), "location").starts_with("/v2/d/blobs/uploads/"));
    }
}

#[tokio::test]
async fn wrong_digests_are_refused_and_leave_nothing() {
    let registry = Registry::start().await;
    let wrong = sha256(b"something else");
    let answer = registry
        .send(
            "POST",
            &format!("/v2/a/blobs/uploads/?digest={wrong}"),
            &[],
            "bytes",
        )
        .await;
    assert_eq!(code(answer).await, (400, "DIGEST_INVALID".into()));
    let begun = registry.send("POST", "/v2/a/blobs/uploads/", &[], "").await;
    let location = header(begun.headers(), "location").to_owned();
    let answer = registry
        .send("PUT", &format!("{location}&digest={wrong}"), &[], "bytes")
        .await;
    assert_eq!(code(answer).await, (400, "DIGEST_INVALID".into()));
    assert_eq!(
        registry.get(&format!("/v2/a/blobs/{wrong}")).await.status(),
        404
    );
    let uploads = registry
        .root()
        .join("docker/registry/v2/repositories/a/_uploads");
    assert_eq!(std::fs::read_dir(uploads).unwrap().count(), 0);
}

#[tokio::test]
async fn session_is_cancelled() {
    let registry = Registry::start().await;
    let begun = registry.send("POST", "/v2/a/blobs/uploads/", &[], "").await;
    let location = header(begun.headers(), "location").to_owned();
    assert_eq!(registry.delete(&location).await, 204);
    assert_eq!(registry.get(&location).await.status(), 404);
    assert_eq!(registry.delete(&location).await, 404);
}

#[tokio::test]
async fn state_of_another_session_is_refused() {
    let registry = Registry::start().await;
    let mut locations = Vec::new();
    for _ in 0..2 {
        let begun = registry.send("POST", "/v2/a/blobs/uploads/", &[], "").await;
        locations.push(header(begun.headers(), "location").to_owned());
    }
    let (path, _) = locations[0].split_once('?').unwrap();
    let (_, state) = locations[1].split_once('?').unwrap();
    let answer = registry
        .send("PATCH", &format!("{path}?{state}"), &[], "x")
        .await;
    assert_eq!(code(answer).await, (400, "BLOB_UPLOAD_INVALID".into()));
}
