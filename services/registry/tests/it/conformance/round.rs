//! Every shape goes the whole round: pushed, asked for, pulled, listed, deleted, gone.

use super::{
    pushes::{WAYS, location, pushed},
    shapes::{CONFIG, EMPTY, LAYER, Shape},
};
use crate::harness::{OCI_INDEX, OCI_MANIFEST, Registry, header, sha256};
use holdfast_core::digest::Algorithm;
use reqwest::Response;
use serde_json::{Value, json};

const REPO: &str = "conformance/repo-1";

async fn go_round(shape: Shape) {
    let registry = Registry::start().await;
    nothing_is_there(&registry, &shape).await;
    push(&registry, &shape).await;
    pull(&registry, &shape).await;
    list(&registry, &shape).await;
    referrers(&registry, &shape).await;
    delete(&registry, &shape).await;
}

async fn send(registry: &Registry, method: &str, path: &str) -> Response {
    registry
        .send(method, &format!("/v2/{REPO}/{path}"), &[], "")
        .await
}

async fn json_of(answer: Response) -> Value {
    serde_json::from_str(&answer.text().await.unwrap()).unwrap()
}

async fn nothing_is_there(registry: &Registry, shape: &Shape) {
    assert_eq!(send(registry, "GET", "tags/list").await.status(), 404);
    for (digest, ..) in &shape.manifests {
        let answer = send(registry, "GET", &format!("referrers/{digest}")).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(json_of(answer).await["manifests"], json!([]));
    }
    for path in paths(shape) {
        for method in ["HEAD", "GET", "DELETE"] {
            let answer = send(registry, method, &path).await;
            assert_eq!(answer.status(), 404, "{method} {path}");
        }
    }
}

/// Everything that can be had: tags, manifests and blobs.
fn paths(shape: &Shape) -> Vec<String> {
    let tags = shape.tags.keys().map(|tag| format!("manifests/{tag}"));
    let manifests = shape
        .manifests
        .iter()
        .map(|(digest, ..)| format!("manifests/{digest}"));
    let blobs = shape.blobs.keys().map(|digest| format!("blobs/{digest}"));
    tags.chain(manifests).chain(blobs).collect()
}

async fn push(registry: &Registry, shape: &Shape) {
    for ((digest, bytes), way) in shape.blobs.values().zip(WAYS.into_iter().cycle()) {
        pushed(registry, REPO, digest, bytes, way).await;
    }
    for (digest, media_type, text) in &shape.manifests {
        let mut references = vec![digest.to_string()];
        let tags = || shape.tags.iter().filter(|(_, named)| *named == digest);
        if shape.by_parameter {
            let query: Vec<_> = tags().map(|(tag, _)| format!("tag={tag}")).collect();
            references = vec![format!("{digest}?{}", query.join("&"))];
        } else {
            references.extend(tags().map(|(tag, _)| tag.clone()));
        }
        for reference in references {
            let answer = registry
                .send(
                    "PUT",
                    &format!("/v2/{REPO}/manifests/{reference}"),
                    &[("content-type", media_type)],
                    text.clone(),
                )
                .await;
            assert_eq!(answer.status(), 201, "{reference}");
            check_pushed(registry, shape, &answer, text).await;
        }
    }
}

async fn check_pushed(registry: &Registry, shape: &Shape, answer: &Response, text: &str) {
    let digest = header(answer.headers(), "docker-content-digest");
    let manifest: Value = serde_json::from_str(text).unwrap();
    let subject = manifest["subject"]["digest"].as_str().unwrap_or_default();
    assert_eq!(header(answer.headers(), "oci-subject"), subject);
    let mut accepted: Vec<_> = answer.headers().get_all("oci-tag").iter().collect();
    accepted.sort();
    let expect: Vec<_> = shape
        .tags
        .iter()
        .filter(|(_, named)| shape.by_parameter && named.as_str() == digest)
        .map(|(tag, _)| tag)
        .collect();
    assert_eq!(accepted, expect);
    let back = registry.get(&location(answer)).await;
    assert_eq!(back.text().await.unwrap(), text);
}

async fn pull(registry: &Registry, shape: &Shape) {
    for (digest, media_type, text) in &shape.manifests {
        let tags = shape.tags.iter().filter(|(_, named)| *named == digest);
        let references = tags.map(|(tag, _)| tag.as_str()).chain([digest.as_str()]);
        for reference in references {
            for method in ["HEAD", "GET"] {
                let answer = send(registry, method, &format!("manifests/{reference}")).await;
                assert_eq!(answer.status(), 200, "{method} {reference}");
                assert_eq!(
                    (
                        header(answer.headers(), "content-type"),
                        header(answer.headers(), "docker-content-digest"),
                        header(answer.headers(), "content-length"),
                    ),
                    (
                        media_type.as_str(),
                        digest.as_str(),
                        text.len().to_string().as_str()
                    ),
                    "{method} {reference}"
                );
                let expect = if method == "GET" { text.as_str() } else { "" };
                assert_eq!(answer.text().await.unwrap(), expect);
            }
        }
    }
    for (digest, bytes) in shape.blobs.values() {
        let answer = send(registry, "HEAD", &format!("blobs/{digest}")).await;
        assert_eq!(answer.status(), 200);
        let answer = send(registry, "GET", &format!("blobs/{digest}")).await;
        assert_eq!(
            header(answer.headers(), "docker-content-digest"),
            digest.as_str()
        );
        assert_eq!(answer.bytes().await.unwrap(), bytes.as_slice());
    }
}

async fn list(registry: &Registry, shape: &Shape) {
    let all: Vec<_> = shape.tags.keys().collect();
    let answer = send(registry, "GET", "tags/list").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(json_of(answer).await, json!({ "name": REPO, "tags": all }));
    for (at, last) in all.iter().enumerate() {
        let answer = send(registry, "GET", &format!("tags/list?last={last}")).await;
        assert_eq!(json_of(answer).await["tags"], json!(all[at + 1..]));
    }
}

async fn referrers(registry: &Registry, shape: &Shape) {
    for (subject, expect) in &shape.referrers {
        let answer = send(registry, "GET", &format!("referrers/{subject}")).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(header(answer.headers(), "content-type"), OCI_INDEX);
        assert_eq!(header(answer.headers(), "oci-filters-applied"), "");
        let index = json_of(answer).await;
        assert_eq!(index["schemaVersion"], 2);
        assert_eq!(index["mediaType"], OCI_INDEX);
        assert_eq!(sorted(&index["manifests"]), sorted(&json!(expect)));
        for kind in expect.iter().filter_map(|one| one["artifactType"].as_str()) {
            let path = format!("referrers/{subject}?artifactType={}", escaped(kind));
            let answer = send(registry, "GET", &path).await;
            assert_eq!(
                header(answer.headers(), "oci-filters-applied"),
                "artifactType"
            );
            let expect: Vec<_> = expect
                .iter()
                .filter(|one| one["artifactType"] == kind)
                .collect();
            assert_eq!(
                sorted(&json_of(answer).await["manifests"]),
                sorted(&json!(expect)),
                "{kind}"
            );
        }
    }
}

fn sorted(list: &Value) -> Vec<Value> {
    let mut list = list.as_array().unwrap().clone();
    list.sort_by_key(|one| one["digest"].as_str().unwrap().to_owned());
    list
}

fn escaped(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

async fn delete(registry: &Registry, shape: &Shape) {
    // Half of the tags go by name, the others with their manifests.
    let by_name = shape
        .tags
        .keys()
        .step_by(2)
        .map(|tag| format!("manifests/{tag}"));
    let manifests = shape.manifests.iter().rev();
    let by_digest = manifests.map(|(digest, ..)| format!("manifests/{digest}"));
    let blobs = shape.blobs.keys().map(|digest| format!("blobs/{digest}"));
    for path in by_name.chain(by_digest).chain(blobs) {
        let answer = send(registry, "DELETE", &path).await;
        assert_eq!(answer.status(), 202, "{path}");
        for method in ["HEAD", "GET", "DELETE"] {
            let answer = send(registry, method, &path).await;
            assert_eq!(answer.status(), 404, "{method} {path}");
        }
    }
    for path in paths(shape) {
        assert_eq!(send(registry, "HEAD", &path).await.status(), 404, "{path}");
    }
    let answer = send(registry, "GET", "tags/list").await;
    assert_eq!(json_of(answer).await["tags"], json!([]));
    for subject in shape.referrers.keys() {
        let answer = send(registry, "GET", &format!("referrers/{subject}")).await;
        assert_eq!(json_of(answer).await["manifests"], json!([]));
    }
}

fn shape() -> Shape {
    Shape::new(Algorithm::Sha256)
}

// SPEC 16
#[tokio::test]
async fn an_image() {
    let mut shape = shape();
    shape.image(json!({}));
    shape.tag("image");
    go_round(shape).await;
}

// SPEC 16
#[tokio::test]
async fn an_image_of_the_older_kind() {
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let mut shape = shape();
    let layer = shape.layer("application/vnd.docker.image.rootfs.diff.tar.gzip");
    let config = shape.blob("application/vnd.docker.container.image.v1+json", "{}");
    let child = shape.manifest(docker, json!({ "config": config, "layers": [layer] }));
    shape.tag("image");
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    shape.manifest(list, json!({ "manifests": [child] }));
    shape.tag("list");
    go_round(shape).await;
}

// SPEC 16
#[tokio::test]
async fn an_image_without_a_media_type_of_its_own() {
    let mut shape = shape();
    let child = shape.image(json!({ "mediaType": null }));
    shape.tag("image");
    shape.index(&[child], json!({ "mediaType": null }));
    shape.tag("index");
    go_round(shape).await;
}

// SPEC 16
#[tokio::test]
async fn a_manifest_of_nearly_four_megabytes() {
    let annotations: Value = (0..390)
        .map(|at| (format!("large-annotation-{at}"), "A".repeat(10_000).into()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let mut shape = shape();
    shape.image(json!({ "annotations": annotations }));
    shape.tag("large");
    go_round(shape).await;
}

// SPEC 16, SPEC 76
#[tokio::test]
async fn an_index_and_an_index_of_indexes() {
    let mut shape = shape();
    let mut indexes = Vec::new();
    for _ in 0..2 {
        let children = [shape.image(json!({})), shape.image(json!({}))];
        indexes.push(shape.index(&children, json!({})));
    }
    shape.tag("index");
    shape.index(&indexes, json!({}));
    shape.tag("nested");
    go_round(shape).await;
}

// SPEC 16
#[tokio::test]
async fn an_index_of_nothing() {
    let mut shape = shape();
    shape.index(&[], json!({}));
    shape.tag("empty");
    go_round(shape).await;
}

// SPEC 16, SPEC 76
#[tokio::test]
async fn artifacts_and_an_index_of_them() {
    let mut shape = shape();
    let children = [
        shape.artifact("application/vnd.example.one", json!({})),
        shape.artifact("application/vnd.example.two+json", json!({})),
    ];
    shape.tag("artifact");
    let kind = json!({ "artifactType": "application/vnd.example.one" });
    shape.index(&children, kind);
    shape.tag("artifacts");
    go_round(shape).await;
}

// SPEC 76
#[tokio::test]
async fn an_artifact_whose_only_layer_is_the_empty_object() {
    let mut shape = shape();
    let empty = shape.blob(EMPTY, "{}");
    shape.manifest(
        OCI_MANIFEST,
        json!({ "artifactType": "a/b", "config": empty, "layers": [empty] }),
    );
    shape.tag("artifact");
    go_round(shape).await;
}

// SPEC 76
#[tokio::test]
async fn an_image_with_a_layer_of_zero_bytes() {
    let mut shape = shape();
    let (config, layer) = (shape.blob(CONFIG, "{}"), shape.blob(LAYER, ""));
    shape.manifest(OCI_MANIFEST, json!({ "config": config, "layers": [layer] }));
    shape.tag("image");
    go_round(shape).await;
}

// SPEC 16
#[tokio::test]
async fn an_image_without_layers() {
    let mut shape = shape();
    let config = shape.blob(CONFIG, "{}");
    shape.manifest(OCI_MANIFEST, json!({ "config": config, "layers": [] }));
    shape.tag("none");
    go_round(shape).await;
}

// SPEC 76
#[tokio::test]
async fn artifacts_and_indexes_with_a_subject() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let mut shape = Shape::new(algorithm);
        let subject = shape.image(json!({}));
        let note =
            json!({ "subject": subject, "annotations": { "org.example.note": "\"hello\" ü" } });
        shape.image(json!({ "subject": subject }));
        shape.artifact("application/vnd.example.one", note.clone());
        shape.artifact("application/vnd.example.two+json", note.clone());
        let child = shape.image(json!({}));
        shape.index(std::slice::from_ref(&child), note.clone());
        let kind = json!({ "artifactType": "application/vnd.example.one", "subject": subject });
        shape.index(&[child], kind);
        go_round(shape).await;
    }
}

// SPEC 16
#[tokio::test]
async fn an_artifact_whose_subject_is_missing() {
    let mut shape = shape();
    let subject = shape.descriptor(OCI_MANIFEST, b"missing");
    shape.artifact("a/b", json!({ "subject": subject }));
    shape.tag("artifact");
    go_round(shape).await;
}

// SPEC 16
#[tokio::test]
async fn an_image_whose_descriptors_carry_their_content() {
    let mut shape = shape();
    shape.with_data = true;
    let child = shape.image(json!({}));
    shape.index(&[child], json!({}));
    shape.tag("data");
    go_round(shape).await;
}

// SPEC 16
#[tokio::test]
async fn an_image_with_layers_that_are_not_pushed() {
    let mut shape = shape();
    let kinds = ["nondistributable.v1.tar+gzip", "nondistributable.v1.tar"];
    let mut layers: Vec<_> = kinds
        .map(|kind| {
            let digest = sha256(kind.as_bytes());
            json!({
                "mediaType": format!("application/vnd.oci.image.layer.{kind}"), "digest": digest, "size": 123_456,
                "urls": [format!("https://store.example.com/blobs/{digest}")],
            })
        })
        .into();
    layers.push(shape.layer(LAYER));
    let config = shape.blob(CONFIG, "{}");
    shape.manifest(OCI_MANIFEST, json!({ "config": config, "layers": layers }));
    shape.tag("image");
    go_round(shape).await;
}

// SPEC 16
#[tokio::test]
async fn fields_that_nobody_knows() {
    let mut shape = shape();
    let extra = json!({ "org.example.custom": "value", "nested": { "n": [1, { "m": null }] } });
    let child = shape.image(extra.clone());
    shape.index(&[child], extra);
    shape.tag("custom");
    go_round(shape).await;
}

// SPEC 76
#[tokio::test]
async fn an_index_some_of_whose_children_are_missing() {
    let mut shape = shape();
    let here = shape.image(json!({}));
    let missing = shape.descriptor(OCI_MANIFEST, b"missing");
    shape.index(&[here, missing], json!({}));
    shape.tag("sparse");
    go_round(shape).await;
}

// SPEC 16, SPEC 38
#[tokio::test]
async fn an_index_by_sha512_without_a_tag() {
    let mut shape = Shape::new(Algorithm::Sha512);
    let children = [shape.image(json!({})), shape.image(json!({}))];
    shape.index(&children, json!({}));
    go_round(shape).await;
}

// SPEC 16
#[tokio::test]
async fn tags_as_parameters_of_the_push() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let mut shape = Shape::new(algorithm);
        shape.by_parameter = true;
        let child = shape.image(json!({}));
        shape.tag("child");
        shape.index(&[child], json!({}));
        for tag in 0..12 {
            shape.tag(&format!("index-{tag}"));
        }
        go_round(shape).await;
    }
}
