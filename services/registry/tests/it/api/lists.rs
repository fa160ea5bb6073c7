//! Pages of tags and repositories.

use crate::harness::{Registry, code, header};

async fn tags(registry: &Registry, query: &str) -> (Vec<String>, String) {
    let answer = registry.get(&format!("/v2/a/tags/list{query}")).await;
    assert_eq!(answer.status(), 200);
    let link = header(answer.headers(), "link").to_owned();
    let body: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    (
        body["tags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tag| tag.as_str().unwrap().to_owned())
            .collect(),
        link,
    )
}

#[tokio::test]
async fn tags_come_in_order_and_in_pages() {
    let registry = Registry::start().await;
    let (_, manifest) = registry.push_image("a", "b", b"layer").await;
    for tag in ["a", "C", "10", "9"] {
        registry.put_manifest("a", tag, &manifest).await;
    }
    assert_eq!(
        tags(&registry, "").await,
        (
            vec!["10", "9", "C", "a", "b"]
                .into_iter()
                .map(Into::into)
                .collect(),
            String::new()
        )
    );
    assert_eq!(tags(&registry, "?n=0").await, (vec![], String::new()));
    let (page, link) = tags(&registry, "?n=2").await;
    assert_eq!(
        (page, link.as_str()),
        (
            vec!["10".into(), "9".into()],
            "</v2/a/tags/list?n=2&last=9>; rel=\"next\""
        )
    );
    assert_eq!(tags(&registry, "?n=3&last=9").await.1, "");
    assert_eq!(
        tags(&registry, "?n=18446744073709551615&last=Z").await.0,
        ["a", "b"]
    );
}

#[tokio::test]
async fn catalog_is_paged_and_bounded() {
    let registry = Registry::start().await;
    for repo in ["b", "a/x", "a-b"] {
        registry.push_image(repo, "1", b"layer").await;
    }
    let answer = registry.get("/v2/_catalog?n=2").await;
    assert_eq!(
        header(answer.headers(), "link"),
        "</v2/_catalog?n=2&last=a%2Fx>; rel=\"next\""
    );
    assert_eq!(
        answer.text().await.unwrap(),
        r#"{"repositories":["a-b","a/x"]}"#
    );
    assert_eq!(
        registry
            .get("/v2/_catalog?n=2&last=a%2Fx")
            .await
            .text()
            .await
            .unwrap(),
        r#"{"repositories":["b"]}"#
    );
    assert_eq!(
        code(registry.get("/v2/_catalog?n=1001").await).await,
        (400, "PAGINATION_NUMBER_INVALID".into())
    );
}
