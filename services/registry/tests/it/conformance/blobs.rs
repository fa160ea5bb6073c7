//! Blobs: every way to push them, ranges, mounts, and what is refused.

use super::pushes::{WAYS, Way, begin, chunk, closing, location, push, pushed};
use crate::harness::{Registry, code, header, image, noise, sha256};
use holdfast_core::digest::{Algorithm, Digest};
use holdfast_store::Hasher;

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

async fn status(registry: &Registry, method: &str, target: &str) -> u16 {
    registry.send(method, target, &[], "").await.status().into()
}

/// HEAD, GET, DELETE, and then nothing.
async fn check_blob(registry: &Registry, digest: &Digest, bytes: &[u8]) {
    let target = format!("/v2/a/blobs/{digest}");
    for method in ["HEAD", "GET"] {
        let answer = registry.send(method, &target, &[], "").await;
        assert_eq!(answer.status(), 200, "{method} {digest}");
        assert_eq!(
            (
                header(answer.headers(), "docker-content-digest"),
                header(answer.headers(), "content-length"),
                header(answer.headers(), "accept-ranges"),
            ),
            (digest.as_str(), bytes.len().to_string().as_str(), "bytes"),
            "{method} {digest}"
        );
        let expect = if method == "GET" { bytes } else { b"" };
        assert_eq!(answer.bytes().await.unwrap(), expect, "{method} {digest}");
    }
    assert_eq!(status(registry, "DELETE", &target).await, 202, "{digest}");
    for method in ["HEAD", "GET", "DELETE"] {
        assert_eq!(status(registry, method, &target).await, 404, "{digest}");
    }
}

// SPEC 16
#[tokio::test]
async fn a_blob_is_pushed_in_every_way_with_every_algorithm() {
    let registry = Registry::start().await;
    for algorithm in ALGORITHMS {
        for (at, way) in WAYS.into_iter().enumerate() {
            let bytes = noise(3 * 1024 - 5 + at);
            let digest = Hasher::digest(algorithm, &bytes);
            let target = format!("/v2/a/blobs/{digest}");
            assert_eq!(status(&registry, "GET", &target).await, 404);
            pushed(&registry, "a", &digest, &bytes, way).await;
            check_blob(&registry, &digest, &bytes).await;
        }
    }
}

// SPEC 16, SPEC 76
#[tokio::test]
async fn the_empty_blob_and_the_empty_object_are_blobs() {
    let registry = Registry::start().await;
    for bytes in [&b""[..], b"{}"] {
        for algorithm in ALGORITHMS {
            let digest = Hasher::digest(algorithm, bytes);
            for way in WAYS {
                pushed(&registry, "a", &digest, bytes, way).await;
                check_blob(&registry, &digest, bytes).await;
            }
        }
    }
}

// SPEC 16
#[tokio::test]
async fn a_wrong_digest_is_refused_in_every_way_and_leaves_nothing() {
    let registry = Registry::start().await;
    for algorithm in ALGORITHMS {
        let bytes = noise(3 * 1024 - 5);
        let digest = Hasher::digest(algorithm, b"oh no");
        for way in WAYS {
            let answer = push(&registry, "a", &digest, &bytes, way).await;
            assert_eq!(
                code(answer).await,
                (400, "DIGEST_INVALID".into()),
                "{way:?}"
            );
            let target = format!("/v2/a/blobs/{digest}");
            assert_eq!(status(&registry, "HEAD", &target).await, 404, "{way:?}");
        }
    }
}

#[tokio::test]
async fn a_digest_that_does_not_parse_is_refused_everywhere() {
    let registry = Registry::start().await;
    let at = begin(&registry, "a", Algorithm::Sha256).await;
    let bad = "sha256:baddigeststring";
    for (method, target) in [
        ("GET", format!("/v2/a/blobs/{bad}")),
        ("DELETE", format!("/v2/a/blobs/{bad}")),
        ("POST", format!("/v2/a/blobs/uploads/?digest={bad}")),
        ("POST", format!("/v2/a/blobs/uploads/?mount={bad}&from=b")),
        ("POST", "/v2/a/blobs/uploads/?digest-algorithm=md5".into()),
        ("PUT", format!("{at}&digest={bad}")),
        (
            "PUT",
            format!("{at}&digest=md5:d41d8cd98f00b204e9800998ecf8427e"),
        ),
        ("PUT", at.clone()),
        ("GET", format!("/v2/a/manifests/{bad}")),
        ("PUT", format!("/v2/a/manifests/{bad}")),
        ("DELETE", format!("/v2/a/manifests/{bad}")),
        ("GET", format!("/v2/a/referrers/{bad}")),
    ] {
        let answer = registry.send(method, &target, &[], "").await;
        assert_eq!(
            code(answer).await,
            (400, "DIGEST_INVALID".into()),
            "{method} {target}"
        );
    }
    // The session outlives requests that were none of its own.
    assert_eq!(status(&registry, "GET", &at).await, 204);
}

async fn check_out_of_order(algorithm: Algorithm, method: &str) {
    let registry = Registry::start().await;
    let bytes = noise(3 * 1024 - 5);
    let digest = Hasher::digest(algorithm, &bytes);
    let mut at = begin(&registry, "a", algorithm).await;
    for (wrong, right, received) in [(1024, 0, 1024), (2048, 1024, 2048)] {
        let target = if method == "PUT" {
            closing(&at, &digest)
        } else {
            at.clone()
        };
        let end = (wrong + 1024).min(bytes.len());
        let refused = chunk(&registry, method, &target, wrong, &bytes[wrong..end]).await;
        assert_eq!(refused.status(), 416, "{method} {wrong}");
        // What GET says is where to go on.
        let asked = registry.get(&at).await;
        assert_eq!(asked.status(), 204);
        assert_eq!(
            header(asked.headers(), "range"),
            format!("0-{}", right.max(1) - 1)
        );
        let answer = chunk(
            &registry,
            "PATCH",
            &location(&asked),
            right,
            &bytes[right..right + 1024],
        )
        .await;
        assert_eq!(answer.status(), 202);
        assert_eq!(
            header(answer.headers(), "range"),
            format!("0-{}", received - 1)
        );
        at = location(&answer);
    }
    let answer = chunk(
        &registry,
        "PUT",
        &closing(&at, &digest),
        2048,
        &bytes[2048..],
    )
    .await;
    assert_eq!(answer.status(), 201);
    check_blob(&registry, &digest, &bytes).await;
}

// SPEC 16
#[tokio::test]
async fn chunks_out_of_order_are_refused_and_the_session_goes_on() {
    for algorithm in ALGORITHMS {
        check_out_of_order(algorithm, "PATCH").await;
        check_out_of_order(algorithm, "PUT").await;
    }
}

#[tokio::test]
async fn a_cancelled_session_is_gone() {
    let registry = Registry::start().await;
    for algorithm in ALGORITHMS {
        let begun = begin(&registry, "a", algorithm).await;
        let answer = chunk(&registry, "PATCH", &begun, 0, b"some bytes").await;
        let at = location(&answer);
        assert_eq!(status(&registry, "DELETE", &at).await, 204);
        let digest = Hasher::digest(algorithm, b"some bytes");
        for (method, target) in [
            ("GET", at.clone()),
            ("PATCH", at.clone()),
            ("PUT", closing(&at, &digest)),
            ("DELETE", at.clone()),
        ] {
            let answer = registry.send(method, &target, &[], "").await;
            assert_eq!(
                code(answer).await,
                (404, "BLOB_UPLOAD_UNKNOWN".into()),
                "{method}"
            );
        }
    }
}

async fn check_range(
    registry: &Registry,
    digest: &Digest,
    range: &str,
    expect: Option<(usize, usize)>,
) {
    let bytes = noise(2048);
    let target = format!("/v2/a/blobs/{digest}");
    let answer = registry.send("GET", &target, &[("range", range)], "").await;
    let Some((first, last)) = expect else {
        assert_eq!(answer.status(), 416, "{range}");
        assert_eq!(header(answer.headers(), "content-range"), "bytes */2048");
        return;
    };
    assert_eq!(answer.status(), 206, "{range}");
    assert_eq!(
        (
            header(answer.headers(), "content-range"),
            header(answer.headers(), "content-length"),
            header(answer.headers(), "docker-content-digest"),
        ),
        (
            format!("bytes {first}-{last}/2048").as_str(),
            (last + 1 - first).to_string().as_str(),
            digest.as_str(),
        ),
        "{range}"
    );
    assert_eq!(answer.bytes().await.unwrap(), &bytes[first..=last]);
    // A range is a matter of GET: HEAD tells of the whole blob.
    let answer = registry
        .send("HEAD", &target, &[("range", range)], "")
        .await;
    assert_eq!(
        (
            answer.status().as_u16(),
            header(answer.headers(), "content-length")
        ),
        (200, "2048"),
        "{range}"
    );
}

// SPEC 16
#[tokio::test]
async fn ranges_are_clamped_or_refused() {
    let registry = Registry::start().await;
    for algorithm in ALGORITHMS {
        let bytes = noise(2048);
        let digest = Hasher::digest(algorithm, &bytes);
        pushed(&registry, "a", &digest, &bytes, Way::PostPut).await;
        for (range, expect) in [
            ("bytes=500-1499", Some((500, 1499))),
            ("bytes=500-", Some((500, 2047))),
            ("bytes=-500", Some((1548, 2047))),
            ("bytes=2000-5000", Some((2000, 2047))),
            ("bytes=0-0", Some((0, 0))),
            ("bytes=500-0", None),
            ("bytes=5000-10000", None),
        ] {
            check_range(&registry, &digest, range, expect).await;
        }
    }
}

async fn check_mount(registry: &Registry, query: &str, digest: &Digest, expect: u16) {
    let target = format!("/v2/to/blobs/uploads/?mount={digest}{query}");
    let answer = registry.send("POST", &target, &[], "").await;
    assert_eq!(answer.status(), expect, "{query}");
    let at = location(&answer);
    if expect == 201 {
        assert_eq!(at, format!("/v2/to/blobs/{digest}"));
        assert_eq!(
            header(answer.headers(), "docker-content-digest"),
            digest.as_str()
        );
        assert_eq!(status(registry, "GET", &at).await, 200);
        assert_eq!(status(registry, "DELETE", &at).await, 202);
    } else {
        assert_eq!(status(registry, "GET", &at).await, 204, "a session began");
    }
}

// SPEC 16
#[tokio::test]
async fn a_blob_is_mounted_from_where_it_is_and_may_be_read() {
    let registry = Registry::start().await;
    for algorithm in ALGORITHMS {
        let bytes = noise(512);
        let digest = Hasher::digest(algorithm, &bytes);
        check_mount(&registry, "&from=deep/from", &digest, 202).await;
        check_mount(&registry, "", &digest, 202).await;
        pushed(&registry, "deep/from", &digest, &bytes, Way::Post).await;
        check_mount(&registry, "&from=deep/from", &digest, 201).await;
        check_mount(&registry, "", &digest, 201).await;
        check_mount(&registry, "&from=other", &digest, 202).await;
        check_mount(&registry, "&from=..%2Ffrom", &digest, 202).await;
        // The bytes are still on the volume, and no repository has them.
        let target = format!("/v2/deep/from/blobs/{digest}");
        assert_eq!(status(&registry, "DELETE", &target).await, 202);
        check_mount(&registry, "&from=deep/from", &digest, 202).await;
        check_mount(&registry, "", &digest, 202).await;
    }
}

#[tokio::test]
async fn a_manifest_is_no_blob_to_mount() {
    let registry = Registry::start().await;
    let config = registry.push_blob("from", "{}").await;
    let manifest = image(&config, 2, &[], "");
    registry.put_manifest("from", "1", &manifest).await;
    check_mount(&registry, "", &sha256(manifest.as_bytes()), 202).await;
}
