//! Pages of referrers, and lists of clients that knew no such API.

use super::{
    pushes::{Way, pushed},
    shapes::{EMPTY, Shape},
};
use crate::harness::{OCI_INDEX, OCI_MANIFEST, Registry, header, repo};
use holdfast_core::digest::{Algorithm, Digest};
use serde_json::{Value, json};

async fn push(registry: &Registry, shape: &Shape) {
    for (digest, bytes) in shape.blobs.values() {
        pushed(registry, "a", digest, bytes, Way::Post).await;
    }
    for (digest, media_type, text) in &shape.manifests {
        let target = format!("/v2/a/manifests/{digest}");
        let headers = [("content-type", media_type.as_str())];
        let answer = registry.send("PUT", &target, &headers, text.clone()).await;
        assert_eq!(answer.status(), 201);
    }
}

/// Digests page by page, following `Link`, and whether the filter was said on every page.
async fn follow(registry: &Registry, target: &str, filtered: bool) -> Vec<Vec<String>> {
    let (mut pages, mut target) = (Vec::new(), Some(target.to_owned()));
    while let Some(next) = target {
        let answer = registry.get(&next).await;
        assert_eq!(answer.status(), 200, "{next}");
        assert_eq!(header(answer.headers(), "content-type"), OCI_INDEX);
        let applied = header(answer.headers(), "oci-filters-applied");
        assert_eq!(applied == "artifactType", filtered, "{next}");
        let link = header(answer.headers(), "link").to_owned();
        target = (!link.is_empty()).then(|| {
            let target = link
                .strip_prefix('<')
                .and_then(|link| link.strip_suffix(">; rel=\"next\""));
            target.unwrap().to_owned()
        });
        let text = answer.text().await.unwrap();
        assert!(text.len() < (4 << 20) + 1000, "{next}");
        let index: Value = serde_json::from_str(&text).unwrap();
        let list = index["manifests"].as_array().unwrap().iter();
        pages.push(
            list.map(|one| one["digest"].as_str().unwrap().to_owned())
                .collect(),
        );
    }
    pages
}

fn sizes(pages: &[Vec<String>]) -> Vec<usize> {
    pages.iter().map(Vec::len).collect()
}

/// `count` artifacts of two kinds in turn for one missing subject, and the subject's digest.
fn attached(count: usize, note: &str) -> (Shape, String) {
    let mut shape = Shape::new(Algorithm::Sha256);
    let subject = shape.descriptor(OCI_MANIFEST, b"missing");
    let config = shape.blob(EMPTY, "{}");
    for number in 0..count {
        let fields = json!({
            "artifactType": (["a/even", "a/odd"][number % 2]), "config": config, "layers": [], "subject": subject,
            "annotations": { "number": number.to_string(), "note": note },
        });
        shape.manifest(OCI_MANIFEST, fields);
    }
    (shape, subject["digest"].as_str().unwrap().to_owned())
}

fn all(shape: &Shape) -> Vec<String> {
    let mut all: Vec<_> = shape
        .manifests
        .iter()
        .map(|(digest, ..)| digest.to_string())
        .collect();
    all.sort();
    all
}

// SPEC 16
#[tokio::test]
async fn referrers_come_a_hundred_a_page() {
    let registry = Registry::start().await;
    let (shape, subject) = attached(205, "");
    push(&registry, &shape).await;
    let target = format!("/v2/a/referrers/{subject}");
    let pages = follow(&registry, &target, false).await;
    assert_eq!(sizes(&pages), [100, 100, 5]);
    assert_eq!(pages.concat(), all(&shape));
    let pages = follow(&registry, &format!("{target}?artifactType=a/odd"), true).await;
    assert_eq!(sizes(&pages), [100, 2]);
    let pages = follow(
        &registry,
        &format!("{target}?artifactType=a/even&n=60"),
        true,
    )
    .await;
    assert_eq!(sizes(&pages), [60, 43]);
    let pages = follow(&registry, &format!("{target}?artifactType=a/none"), true).await;
    assert_eq!(sizes(&pages), [0]);
    let pages = follow(&registry, &format!("{target}?n=100000"), false).await;
    assert_eq!(sizes(&pages), [100, 100, 5]);
}

// SPEC 16
#[tokio::test]
async fn a_page_of_referrers_is_no_larger_than_a_manifest_may_be() {
    let registry = Registry::start().await;
    let (shape, subject) = attached(5, &"A".repeat(1_900_000));
    push(&registry, &shape).await;
    let pages = follow(&registry, &format!("/v2/a/referrers/{subject}"), false).await;
    assert_eq!(sizes(&pages), [2, 2, 1]);
    assert_eq!(pages.concat(), all(&shape));
}

#[tokio::test]
async fn a_filter_that_fits_none_reads_so_many_bytes_a_page() {
    let registry = Registry::start().await;
    let (shape, subject) = attached(10, &"A".repeat(1_900_000));
    push(&registry, &shape).await;
    let target = format!("/v2/a/referrers/{subject}");
    // Nine of them have 16 MiB; the tenth is looked at for the next page.
    let pages = follow(&registry, &format!("{target}?artifactType=a/none"), true).await;
    assert_eq!(sizes(&pages), [0, 0]);
    let pages = follow(&registry, &format!("{target}?artifactType=a/odd"), true).await;
    assert_eq!(pages.concat().len(), 5);
}

async fn check_fallback(algorithm: Algorithm) {
    let registry = Registry::start().await;
    let mut shape = Shape::new(algorithm);
    let subject = shape.image(json!({}));
    let listed = shape.artifact("a/listed", json!({ "subject": subject }));
    let both = shape.artifact("a/both", json!({ "subject": subject }));
    let stranger = shape.artifact("a/stranger", json!({}));
    push(&registry, &shape).await;
    let digest = |one: &Value| Digest::parse(one["digest"].as_str().unwrap()).unwrap();
    // As on a volume of a registry without this API: nothing in the index of ours.
    let subject = digest(&subject);
    registry
        .store
        .remove_referrer(&repo("a"), &subject, &digest(&listed))
        .await
        .unwrap();
    let target = format!("/v2/a/referrers/{subject}");
    assert_eq!(sizes(&follow(&registry, &target, false).await), [1]);
    let missing = shape.descriptor(OCI_MANIFEST, b"missing");
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [listed, both, stranger, missing] });
    let tag = format!("{algorithm}-{:.64}", subject.hex());
    let headers = [("content-type", OCI_INDEX)];
    let put = format!("/v2/a/manifests/{tag}");
    let answer = registry
        .send("PUT", &put, &headers, index.to_string())
        .await;
    assert_eq!(answer.status(), 201);
    let mut expect = [&listed, &both].map(|one| digest(one).to_string());
    expect.sort();
    assert_eq!(follow(&registry, &target, false).await, [expect.to_vec()]);
    let filtered = follow(&registry, &format!("{target}?artifactType=a/listed"), true).await;
    assert_eq!(filtered, [[digest(&listed).to_string()]]);
}

// SPEC 16
#[tokio::test]
async fn what_stands_under_the_fallback_tag_is_merged() {
    check_fallback(Algorithm::Sha256).await;
    check_fallback(Algorithm::Sha512).await;
}
