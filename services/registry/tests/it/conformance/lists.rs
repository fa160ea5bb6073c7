//! Tags and repositories, page by page.

use crate::harness::{Registry, code, header, sha256};
use serde_json::Value;

/// Names under `key`, and what `Link` says, without its decoration.
async fn page(registry: &Registry, target: &str, key: &str) -> (Vec<String>, Option<String>) {
    let answer = registry.get(target).await;
    assert_eq!(answer.status(), 200, "{target}");
    assert_eq!(header(answer.headers(), "content-type"), "application/json");
    let link = answer.headers().get("link").map(|link| {
        let link = link.to_str().unwrap();
        let target = link
            .strip_prefix('<')
            .and_then(|link| link.strip_suffix(">; rel=\"next\""));
        target.unwrap().to_owned()
    });
    let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let names = body[key].as_array().unwrap().iter();
    let names = names
        .map(|name| name.as_str().unwrap().to_owned())
        .collect();
    (names, link)
}

/// Everything, by following `Link`; no page but the last may be short.
async fn follow(registry: &Registry, target: &str, key: &str, limit: usize) -> Vec<String> {
    let (mut all, mut target) = (Vec::new(), Some(target.to_owned()));
    while let Some(next) = target {
        let (names, link) = page(registry, &next, key).await;
        assert!(names.len() == limit || link.is_none(), "{next}");
        all.extend(names);
        target = link;
    }
    all
}

const TAGS: [&str; 7] = ["10", "9", "A", "_x", "a", "a-b", "b.c"];

async fn with_tags() -> Registry {
    let registry = Registry::start().await;
    let (_, manifest) = registry.push_image("team/app", "9", b"layer").await;
    for tag in TAGS {
        let answer = registry.put_manifest("team/app", tag, &manifest).await;
        assert_eq!(answer.status(), 201);
    }
    registry
}

// SPEC 16, SPEC 76
#[tokio::test]
async fn tags_are_listed_page_by_page_until_no_link_is_left() {
    let registry = with_tags().await;
    for limit in 1..=TAGS.len() + 1 {
        let target = format!("/v2/team/app/tags/list?n={limit}");
        assert_eq!(
            follow(&registry, &target, "tags", limit).await,
            TAGS,
            "{limit}"
        );
    }
}

async fn check_tags(registry: &Registry, query: &str, expect: &[&str], next: Option<&str>) {
    let target = format!("/v2/team/app/tags/list{query}");
    let (tags, link) = page(registry, &target, "tags").await;
    let next = next.map(|query| format!("/v2/team/app/tags/list?{query}"));
    assert_eq!(tags, expect, "{query}");
    assert_eq!(link, next, "{query}");
}

// SPEC 16
#[tokio::test]
async fn n_and_last_of_a_tag_list_may_be_anything() {
    let registry = with_tags().await;
    check_tags(&registry, "?n=0", &[], None).await;
    check_tags(&registry, "?n=0&last=9", &[], None).await;
    check_tags(&registry, "?n=2", &["10", "9"], Some("n=2&last=9")).await;
    check_tags(
        &registry,
        "?n=2&last=_x",
        &["a", "a-b"],
        Some("n=2&last=a-b"),
    )
    .await;
    check_tags(&registry, "?n=3&last=_x", &["a", "a-b", "b.c"], None).await;
    check_tags(&registry, "?last=a-a-does-not-exist", &["a-b", "b.c"], None).await;
    check_tags(&registry, "?last=zzz", &[], None).await;
    check_tags(&registry, "?last=%2F..%2F", &TAGS, None).await;
    check_tags(&registry, "?n=&last=", &TAGS, None).await;
    for n in ["-1", "x", "1.5", "99999999999999999999999"] {
        let answer = registry.get(&format!("/v2/team/app/tags/list?n={n}")).await;
        assert_eq!(
            code(answer).await,
            (400, "PAGINATION_NUMBER_INVALID".into()),
            "{n}"
        );
    }
}

#[tokio::test]
async fn a_repository_that_is_not_there_has_no_list_and_no_content() {
    let registry = with_tags().await;
    // A blob alone makes no repository.
    registry.push_blob("blobs/only", "{}").await;
    let digest = sha256(b"nothing");
    for (target, expect) in [
        ("/v2/unknown/tags/list".to_owned(), "NAME_UNKNOWN"),
        ("/v2/blobs/only/tags/list".to_owned(), "NAME_UNKNOWN"),
        ("/v2/team/tags/list".to_owned(), "NAME_UNKNOWN"),
        (
            "/v2/unknown/manifests/latest".to_owned(),
            "MANIFEST_UNKNOWN",
        ),
        (
            format!("/v2/unknown/manifests/{digest}"),
            "MANIFEST_UNKNOWN",
        ),
        (format!("/v2/unknown/blobs/{digest}"), "BLOB_UNKNOWN"),
        (
            "/v2/unknown/nothing/of/this/kind".to_owned(),
            "NAME_UNKNOWN",
        ),
    ] {
        let answer = registry.get(&target).await;
        assert_eq!(header(answer.headers(), "content-type"), "application/json");
        assert_eq!(code(answer).await, (404, expect.into()), "{target}");
    }
    let answer = registry
        .get(&format!("/v2/unknown/referrers/{digest}"))
        .await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn the_catalog_is_listed_page_by_page_in_the_order_of_names() {
    let registry = Registry::start().await;
    // The order of folders would put t/a/x before t/a-b and t/a.b.
    let names = ["t/a", "t/a-b", "t/a.b", "t/a/x", "t/a/x/y", "t/a0", "t/b"];
    for name in names.iter().rev() {
        registry.push_image(name, "1", b"layer").await;
    }
    for limit in 1..=names.len() + 1 {
        let target = format!("/v2/_catalog?n={limit}");
        assert_eq!(
            follow(&registry, &target, "repositories", limit).await,
            names,
            "{limit}"
        );
    }
    for (query, expect) in [
        ("", &names[..]),
        ("?n=1000", &names[..]),
        ("?n=0", &[]),
        ("?last=t/a/w", &names[3..]),
        ("?last=t%2Fa%2Fx", &names[4..]),
        ("?last=zz", &[]),
    ] {
        let (found, link) = page(&registry, &format!("/v2/_catalog{query}"), "repositories").await;
        assert_eq!(found, expect, "{query}");
        assert_eq!(link, None, "{query}");
    }
    for n in ["1001", "18446744073709551615", "-1", "x"] {
        let answer = registry.get(&format!("/v2/_catalog?n={n}")).await;
        assert_eq!(
            code(answer).await,
            (400, "PAGINATION_NUMBER_INVALID".into()),
            "{n}"
        );
    }
}
