//! Names, digests, queries and pages.

use holdfast_registry::limits;

use crate::harness::{Registry, code, header};

#[tokio::test]
async fn names_and_digests_have_their_forms_and_lengths() {
    let registry = Registry::start().await;
    let longest = "a".repeat(255);
    let hex = "0".repeat(64);
    for (path, expect) in [
        (format!("/v2/{longest}/tags/list"), (404, "NAME_UNKNOWN")),
        (format!("/v2/{longest}a/tags/list"), (400, "NAME_INVALID")),
        ("/v2/a//b/tags/list".to_owned(), (400, "NAME_INVALID")),
        ("/v2/a/../b/tags/list".to_owned(), (404, "NAME_UNKNOWN")),
        ("/v2/a%2Fb/tags/list".to_owned(), (400, "NAME_INVALID")),
        (
            format!("/v2/a/manifests/{}", "t".repeat(128)),
            (404, "MANIFEST_UNKNOWN"),
        ),
        (format!("/v2/a/blobs/sha256:{hex}"), (404, "BLOB_UNKNOWN")),
        (
            format!("/v2/a/blobs/sha256:{hex}0"),
            (400, "DIGEST_INVALID"),
        ),
        (format!("/v2/a/blobs/SHA256:{hex}"), (400, "DIGEST_INVALID")),
        (format!("/v2/a/blobs/md5:{hex}"), (400, "DIGEST_INVALID")),
        (
            format!("/v2/a/blobs/sha256:{}", "G".repeat(64)),
            (400, "DIGEST_INVALID"),
        ),
    ] {
        let found = code(registry.get(&path).await).await;
        assert_eq!(found, (expect.0, expect.1.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn queries_and_pages_are_bounded() {
    let registry = Registry::start().await;
    let query = |length: usize| format!("/v2/_catalog?x={}", "y".repeat(length - 2));
    assert_eq!(
        registry.get(&query(limits::QUERY_BYTES)).await.status(),
        200
    );
    let found = code(registry.get(&query(limits::QUERY_BYTES + 1)).await).await;
    assert_eq!(found, (414, "UNSUPPORTED".into()));
    for (n, expect) in [
        (limits::CATALOG_PAGE.to_string(), 200),
        ((limits::CATALOG_PAGE + 1).to_string(), 400),
        ("-1".to_owned(), 400),
        ("18446744073709551616".to_owned(), 400),
    ] {
        let answer = registry.get(&format!("/v2/_catalog?n={n}")).await;
        assert_eq!(answer.status(), expect, "{n}");
        if expect == 400 {
            assert_eq!(code(answer).await.1, "PAGINATION_NUMBER_INVALID");
        }
    }
    let (_, manifest) = registry.push_image("a", "t0", b"layer").await;
    let digest = crate::harness::sha256(manifest.as_bytes());
    let tags = |count: usize| {
        let tags: Vec<_> = (0..count).map(|tag| format!("tag=t{tag}")).collect();
        format!("/v2/a/manifests/{digest}?{}", tags.join("&"))
    };
    let typed = [("content-type", crate::harness::OCI_MANIFEST)];
    for (count, expect) in [
        (limits::MANIFEST_TAGS, 201),
        (limits::MANIFEST_TAGS + 1, 414),
    ] {
        let answer = registry
            .send("PUT", &tags(count), &typed, manifest.clone())
            .await;
        assert_eq!(answer.status(), expect, "{count}");
    }
    let answer = registry.get("/v2/a/tags/list?n=99999999999").await;
    assert_eq!(answer.status(), 200, "clamped");
    let answer = registry.get("/v2/a/tags/list?n=2").await;
    assert!(header(answer.headers(), "link").contains("rel=\"next\""));
}
