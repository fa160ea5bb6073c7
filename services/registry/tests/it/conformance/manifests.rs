//! What is refused of manifests, what tags as parameters do, and what a delete takes with it.

use crate::harness::{
    OCI_INDEX, OCI_MANIFEST, Registry, Setup, code, header, image, noise, sha256,
};
use holdfast_core::digest::Algorithm;
use holdfast_store::Hasher;
use serde_json::json;

async fn check_refused(
    registry: &Registry,
    reference: &str,
    content_type: &str,
    manifest: &str,
    expect: (u16, &str),
) {
    let target = format!("/v2/a/manifests/{reference}");
    let headers = [("content-type", content_type)];
    let answer = registry
        .send("PUT", &target, &headers, manifest.to_owned())
        .await;
    assert_eq!(
        code(answer).await,
        (expect.0, expect.1.to_owned()),
        "{reference} {manifest:.300}"
    );
    let left = registry.get("/v2/a/tags/list").await;
    assert_eq!(
        left.status(),
        404,
        "nothing is left of {reference} {manifest:.300}"
    );
}

#[tokio::test]
async fn what_is_no_manifest_is_refused_and_leaves_nothing() {
    let registry = Registry::start().await;
    let config = registry.push_blob("a", "{}").await;
    let good = image(&config, 2, &[], "");
    let missing = sha256(b"missing");
    let other = Hasher::digest(Algorithm::Sha512, b"other");
    let unknown = (400, "MANIFEST_BLOB_UNKNOWN");
    let invalid = (400, "MANIFEST_INVALID");
    let digest = (400, "DIGEST_INVALID");
    let check = async |reference: &str, media_type: &str, manifest: &str, expect| {
        check_refused(&registry, reference, media_type, manifest, expect).await;
    };
    check("t", OCI_MANIFEST, &image(&missing, 2, &[], ""), unknown).await;
    check(
        "t",
        OCI_MANIFEST,
        &image(&config, 2, &[(&missing, 1)], ""),
        unknown,
    )
    .await;
    check(missing.as_str(), OCI_MANIFEST, &good, digest).await;
    check(other.as_str(), OCI_MANIFEST, &good, digest).await;
    check(
        sha256(good.as_bytes()).as_str(),
        OCI_MANIFEST,
        &format!("{good}  "),
        digest,
    )
    .await;
    check("sha256:baddigeststring", OCI_MANIFEST, &good, digest).await;
    check("-no-tag", OCI_MANIFEST, &good, invalid).await;
    check(&"t".repeat(129), OCI_MANIFEST, &good, invalid).await;
    check("t", OCI_INDEX, &good, invalid).await;
    check("t", OCI_MANIFEST, "", invalid).await;
    check("t", OCI_MANIFEST, "{}", invalid).await;
    check("t", OCI_MANIFEST, good.trim_end_matches('}'), invalid).await;
    let twice = good.replacen('{', r#"{"mediaType":"application/x","#, 1);
    check("t", OCI_MANIFEST, &twice, invalid).await;
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    check("t", OCI_MANIFEST, &deep, invalid).await;
    let large = image(
        &config,
        2,
        &[],
        &format!(r#","x":"{}""#, "A".repeat(4 << 20)),
    );
    check("t", OCI_MANIFEST, &large, (413, "SIZE_INVALID")).await;
}

// SPEC 16
#[tokio::test]
async fn a_manifest_takes_many_tags_at_once_and_too_many_are_refused() {
    let registry = Registry::start().await;
    let config = registry.push_blob("a", "{}").await;
    let manifest = image(&config, 2, &[], "");
    let digest = sha256(manifest.as_bytes());
    let query = |count| {
        let tags: Vec<_> = (0..count).map(|tag| format!("tag=t{tag}")).collect();
        format!("{digest}?{}", tags.join("&"))
    };
    for refused in [
        query(51),
        query(5000),
        format!("{digest}?tag={}", "x".repeat(20_000)),
    ] {
        let answer = registry.put_manifest("a", &refused, &manifest).await;
        assert_eq!(answer.status(), 414);
    }
    let answer = registry
        .put_manifest("a", &format!("{digest}?tag=good&tag=-bad"), &manifest)
        .await;
    assert_eq!(code(answer).await, (400, "MANIFEST_INVALID".into()));
    assert_eq!(registry.get("/v2/a/tags/list").await.status(), 404);
    let answer = registry.put_manifest("a", &query(50), &manifest).await;
    assert_eq!(answer.status(), 201);
    assert_eq!(answer.headers().get_all("oci-tag").iter().count(), 50);
    let answer = registry
        .put_manifest("a", "named?tag=also", &manifest)
        .await;
    assert_eq!(header(answer.headers(), "oci-tag"), "also");
    for tag in ["t0", "t49", "named", "also"] {
        let answer = registry.get(&format!("/v2/a/manifests/{tag}")).await;
        assert_eq!(
            header(answer.headers(), "docker-content-digest"),
            digest.as_str()
        );
    }
}

#[tokio::test]
async fn a_delete_by_digest_takes_the_tags_that_name_it_now_and_no_others() {
    let registry = Registry::start().await;
    let (first, first_bytes) = registry.push_image("a", "stays-first", b"one").await;
    let (second, second_bytes) = registry.push_image("a", "stays", b"two").await;
    // Tags with a history: moved away, moved away and back, moved on.
    for (tag, manifests) in [
        ("away", vec![&first_bytes, &second_bytes]),
        ("back", vec![&first_bytes, &second_bytes, &first_bytes]),
        ("on", vec![&second_bytes, &first_bytes]),
    ] {
        for manifest in manifests {
            assert_eq!(
                registry.put_manifest("a", tag, manifest).await.status(),
                201
            );
        }
    }
    let target = format!("/v2/a/manifests/{first}");
    assert_eq!(registry.delete(&target).await, 202);
    for (reference, expect) in [
        ("stays-first", 404),
        ("back", 404),
        ("on", 404),
        (first.as_str(), 404),
        ("away", 200),
        ("stays", 200),
        (second.as_str(), 200),
    ] {
        for method in ["HEAD", "GET"] {
            let answer = registry
                .send(method, &format!("/v2/a/manifests/{reference}"), &[], "")
                .await;
            assert_eq!(answer.status(), expect, "{method} {reference}");
        }
    }
    let tags = registry.get("/v2/a/tags/list").await.text().await.unwrap();
    assert_eq!(tags, r#"{"name":"a","tags":["away","stays"]}"#);
    // What was deleted comes back without its tags.
    assert_eq!(
        registry
            .put_manifest("a", first.as_str(), &first_bytes)
            .await
            .status(),
        201
    );
    assert_eq!(registry.get("/v2/a/manifests/back").await.status(), 404);
}

// SPEC 38
#[tokio::test]
async fn a_tag_is_deleted_alone_and_its_manifest_stays() {
    let registry = Registry::start().await;
    let (digest, manifest) = registry.push_image("a", "one", b"layer").await;
    registry.put_manifest("a", "two", &manifest).await;
    assert_eq!(registry.delete("/v2/a/manifests/one").await, 202);
    for (reference, expect) in [("one", 404), ("two", 200), (digest.as_str(), 200)] {
        let answer = registry.get(&format!("/v2/a/manifests/{reference}")).await;
        assert_eq!(answer.status(), expect, "{reference}");
    }
}

async fn check_warning(used_percent: u8, expect: bool) {
    let mut setup = Setup::default();
    setup.options.write_limits.warn_used_percent = used_percent;
    let registry = setup.start().await;
    let (digest, manifest) = registry.push_image("a", "1", b"layer").await;
    let bytes = noise(100);
    let blob = sha256(&bytes);
    let post = format!("/v2/a/blobs/uploads/?digest={blob}");
    let written = [
        registry.put_manifest("a", "1", &manifest).await,
        registry.send("POST", "/v2/a/blobs/uploads/", &[], "").await,
        registry.send("POST", &post, &[], bytes).await,
    ];
    for answer in written {
        let warning = header(answer.headers(), "warning");
        assert_eq!(
            warning.starts_with("299 - \"the registry's volume is ")
                && warning.ends_with("% full\""),
            expect,
            "{warning}"
        );
        assert_eq!(warning.is_empty(), !expect);
    }
    let read = registry.get(&format!("/v2/a/manifests/{digest}")).await;
    assert_eq!(header(read.headers(), "warning"), "");
}

#[tokio::test]
async fn who_writes_to_a_filling_volume_is_warned() {
    check_warning(0, true).await;
    check_warning(101, false).await;
}

#[tokio::test]
async fn every_error_says_its_code_in_the_specifications_form() {
    let registry = Registry::start().await;
    let digest = sha256(b"x");
    for (method, target, status) in [
        ("GET", "/v2/a/manifests/none".to_owned(), 404),
        ("GET", format!("/v2/a/blobs/{digest}"), 404),
        ("GET", "/v2/A/tags/list".to_owned(), 400),
        ("GET", "/v2/a/../b/tags/list".to_owned(), 404),
        ("GET", "/v2/a%2Fb/tags/list".to_owned(), 400),
        ("POST", "/v2/a/manifests/t".to_owned(), 405),
        ("PUT", "/v2/_catalog".to_owned(), 405),
        (
            "GET",
            "/v2/a/blobs/uploads/00000000-0000-4000-8000-000000000000".to_owned(),
            404,
        ),
        ("GET", "/v2/a/blobs/uploads/no-session".to_owned(), 404),
    ] {
        let answer = registry.send(method, &target, &[], "").await;
        assert_eq!(answer.status(), status, "{method} {target}");
        assert_eq!(header(answer.headers(), "content-type"), "application/json");
        assert_eq!(status == 405, !header(answer.headers(), "allow").is_empty());
        let body: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        let error = &body["errors"][0];
        assert!(
            error["code"].as_str().is_some_and(|code| !code.is_empty()),
            "{target}"
        );
        assert!(error["message"].is_string() && error.get("detail") == Some(&json!(null)));
    }
}
