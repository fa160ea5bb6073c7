//! Names that are legal and look like something of our own.

use crate::harness::{Registry, image, repo};

/// The status of a request.
async fn status(registry: &Registry, method: &str, target: &str) -> u16 {
    registry
        .send(method, target, &[], "")
        .await
        .status()
        .as_u16()
}

async fn json(registry: &Registry, target: &str) -> serde_json::Value {
    serde_json::from_str(&registry.get(target).await.text().await.unwrap()).unwrap()
}

/// Pushes a manifest that belongs to the repository alone, under every tag; returns its digest.
async fn push(registry: &Registry, name: &str, tags: &[&str]) -> String {
    let content = format!(r#"{{"repository":"{name}"}}"#);
    let size = content.len();
    let config = registry.push_blob(name, content).await;
    let manifest = image(&config, size, &[], "");
    for tag in tags {
        let answer = registry.put_manifest(name, tag, &manifest).await;
        assert_eq!(answer.status(), 201, "{name}:{tag}");
    }
    crate::harness::sha256(manifest.as_bytes()).to_string()
}

/// Repositories and tags that end as temporary files once did.
const NAMES: [&str; 4] = [
    "a/note.tmp",
    "shop/app",
    "shop/app.tmp",
    "shop/app.tmp/part.tmp",
];
const TAGS: [&str; 4] = ["link.1.tmp", "tmp", "v1", "v1.tmp"];

#[tokio::test]
async fn names_that_end_like_temporary_files_are_names_like_any_other() {
    let registry = Registry::start().await;
    let mut digests = Vec::new();
    for name in NAMES {
        digests.push(push(&registry, name, &TAGS).await);
    }
    let catalog = json(&registry, "/v2/_catalog").await;
    assert_eq!(catalog["repositories"], serde_json::json!(NAMES));
    for name in NAMES {
        let tags = json(&registry, &format!("/v2/{name}/tags/list")).await;
        assert_eq!(tags["tags"], serde_json::json!(TAGS), "{name}");
    }
    for (name, digest) in NAMES.iter().zip(&digests) {
        let manifest = format!("/v2/{name}/manifests/{digest}");
        assert_eq!(status(&registry, "DELETE", &manifest).await, 202, "{name}");
        for tag in TAGS {
            let tagged = format!("/v2/{name}/manifests/{tag}");
            assert_eq!(status(&registry, "GET", &tagged).await, 404, "{name}:{tag}");
        }
        // Pushed again, it brings none of the deleted tags back, neither at once nor when they are
        // removed.
        assert_eq!(push(&registry, name, &["v2"]).await, *digest);
        registry.store.finish_deletes().await.unwrap();
        let tags = json(&registry, &format!("/v2/{name}/tags/list")).await;
        assert_eq!(tags["tags"], serde_json::json!(["v2"]), "{name}");
        for tag in TAGS {
            let tagged = format!("/v2/{name}/manifests/{tag}");
            assert_eq!(status(&registry, "GET", &tagged).await, 404, "{name}:{tag}");
        }
    }
    let left: Vec<_> = std::fs::read_dir(registry.store.layout().own().join("deletes"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "every delete is finished: {left:?}");
}

#[tokio::test]
async fn tags_that_are_deleted_one_by_one_go_whatever_they_end_with() {
    let registry = Registry::start().await;
    for name in NAMES {
        push(&registry, name, &TAGS).await;
        for (at, tag) in TAGS.iter().enumerate() {
            let tagged = format!("/v2/{name}/manifests/{tag}");
            assert_eq!(status(&registry, "DELETE", &tagged).await, 202, "{tag}");
            let tags = json(&registry, &format!("/v2/{name}/tags/list")).await;
            assert_eq!(tags["tags"], serde_json::json!(TAGS[at + 1..]), "{name}");
        }
    }
}

#[tokio::test]
async fn idle_uploads_are_removed_whatever_their_repository_ends_with() {
    let registry = Registry::start().await;
    for name in NAMES {
        let name = repo(name);
        let id = registry.store.create_upload(&name, "2024-01-01T00:00:00Z");
        let id = id.await.unwrap();
        let session = registry.store.layout().upload(&name, id.as_str());
        let past = std::time::SystemTime::now() - std::time::Duration::from_secs(7_200);
        for path in [session.join("startedat"), session] {
            std::fs::File::open(path)
                .unwrap()
                .set_modified(past)
                .unwrap();
        }
    }
    let idle = std::time::Duration::from_secs(3_600);
    let purged = registry.store.purge_idle(idle).await.unwrap();
    assert_eq!(purged, NAMES.len());
}
