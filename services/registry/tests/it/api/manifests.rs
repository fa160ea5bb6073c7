//! Pushes and deletes of manifests, referrers.

use crate::harness::{OCI_INDEX, OCI_MANIFEST, Registry, code, header, image, repo, sha256};
use holdfast_core::digest::Algorithm;
use holdfast_store::Hasher;

#[tokio::test]
async fn image_whose_blobs_are_missing_is_refused() {
    let registry = Registry::start().await;
    let config = registry.push_blob("a", "{}").await;
    let missing = sha256(b"missing");
    let foreign = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"c","digest":"{config}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":"{missing}","size":1}}]}}"#
    );
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{missing}","size":1}}]}}"#
    );
    for (manifest, expect) in [
        (image(&config, 2, &[(&missing, 1)], ""), 400),
        (image(&missing, 2, &[], ""), 400),
        // An index may be sparse.
        (index, 201),
        (foreign, 201),
        (image(&config, 2, &[], ""), 201),
    ] {
        let content_type = if manifest.contains("\"manifests\"") {
            OCI_INDEX
        } else {
            OCI_MANIFEST
        };
        let answer = registry
            .send(
                "PUT",
                "/v2/a/manifests/t",
                &[("content-type", content_type)],
                manifest.clone(),
            )
            .await;
        if expect == 400 {
            assert_eq!(
                code(answer).await,
                (400, "MANIFEST_BLOB_UNKNOWN".into()),
                "{manifest}"
            );
        } else {
            assert_eq!(answer.status(), 201, "{manifest}");
        }
    }
}

#[tokio::test]
async fn manifest_is_pushed_by_digest_with_tags() {
    let registry = Registry::start().await;
    let config = registry.push_blob("a", "{}").await;
    let manifest = image(&config, 2, &[], "");
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let digest = Hasher::digest(algorithm, manifest.as_bytes());
        let answer = registry
            .put_manifest("a", &format!("{digest}?tag=x&tag=y"), &manifest)
            .await;
        assert_eq!(answer.status(), 201);
        assert_eq!(answer.headers().get_all("oci-tag").iter().count(), 2);
        for reference in ["x", "y", digest.as_str()] {
            let answer = registry.get(&format!("/v2/a/manifests/{reference}")).await;
            assert_eq!(
                header(answer.headers(), "docker-content-digest"),
                digest.as_str()
            );
            assert_eq!(answer.text().await.unwrap(), manifest);
        }
    }
    let other = sha256(b"other");
    assert_eq!(
        code(registry.put_manifest("a", other.as_str(), &manifest).await).await,
        (400, "DIGEST_INVALID".into())
    );
}

#[tokio::test]
async fn parameters_of_the_content_type_do_not_count() {
    let registry = Registry::start().await;
    let config = registry.push_blob("a", "{}").await;
    let manifest = image(&config, 2, &[], "");
    let content_type = format!("{OCI_MANIFEST}; charset=utf-8");
    let answer = registry
        .send(
            "PUT",
            "/v2/a/manifests/t",
            &[("content-type", &content_type)],
            manifest,
        )
        .await;
    assert_eq!(answer.status(), 201);
    assert_eq!(
        header(
            registry.get("/v2/a/manifests/t").await.headers(),
            "content-type"
        ),
        OCI_MANIFEST
    );
}

// SPEC 38
#[tokio::test]
async fn manifest_without_a_tag_is_served_and_harms_no_list() {
    let registry = Registry::start().await;
    let (first, _) = registry.push_image("a", "1", b"one").await;
    let (second, _) = registry.push_image("a", "1", b"two").await;
    assert_ne!(first, second);
    assert_eq!(
        registry
            .get(&format!("/v2/a/manifests/{first}"))
            .await
            .status(),
        200
    );
    assert_eq!(registry.delete("/v2/a/manifests/1").await, 202);
    assert_eq!(registry.get("/v2/a/manifests/1").await.status(), 404);
    assert_eq!(
        registry
            .get(&format!("/v2/a/manifests/{second}"))
            .await
            .status(),
        200
    );
    assert_eq!(
        registry.get("/v2/a/tags/list").await.text().await.unwrap(),
        r#"{"name":"a","tags":[]}"#
    );
    assert_eq!(
        registry.get("/v2/_catalog").await.text().await.unwrap(),
        r#"{"repositories":["a"]}"#
    );
}

#[tokio::test]
async fn delete_by_digest_takes_every_tag_with_it() {
    let registry = Registry::start().await;
    let (digest, manifest) = registry.push_image("a", "1", b"layer").await;
    registry.put_manifest("a", "2", &manifest).await;
    assert_eq!(
        registry.delete(&format!("/v2/a/manifests/{digest}")).await,
        202
    );
    for reference in ["1", "2", digest.as_str()] {
        assert_eq!(
            registry
                .send("HEAD", &format!("/v2/a/manifests/{reference}"), &[], "")
                .await
                .status(),
            404
        );
        assert_eq!(
            registry
                .delete(&format!("/v2/a/manifests/{reference}"))
                .await,
            404
        );
    }
    let layer = sha256(b"layer");
    assert_eq!(registry.delete(&format!("/v2/a/blobs/{layer}")).await, 202);
    assert_eq!(
        registry
            .send("HEAD", &format!("/v2/a/blobs/{layer}"), &[], "")
            .await
            .status(),
        404
    );
    assert_eq!(registry.delete(&format!("/v2/a/blobs/{layer}")).await, 404);
}

async fn referrers(registry: &Registry, path: &str) -> (Vec<String>, bool) {
    let answer = registry.get(path).await;
    assert_eq!(answer.status(), 200, "{path}");
    assert_eq!(header(answer.headers(), "content-type"), OCI_INDEX);
    let filtered = header(answer.headers(), "oci-filters-applied") == "artifactType";
    let body: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let list = body["manifests"].as_array().unwrap();
    (
        list.iter()
            .map(|descriptor| descriptor["digest"].as_str().unwrap().to_owned())
            .collect(),
        filtered,
    )
}

#[tokio::test]
async fn referrers_are_listed_filtered_and_forgotten() {
    let registry = Registry::start().await;
    let config = registry.push_blob("a", "{}").await;
    let subject = sha256(b"not there yet");
    let attach = |kind: &str| {
        image(
            &config,
            2,
            &[],
            &format!(
                r#","subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{subject}","size":1}},"artifactType":"{kind}","annotations":{{"k":"v"}}"#
            ),
        )
    };
    let path = format!("/v2/a/referrers/{subject}");
    assert_eq!(referrers(&registry, &path).await, (vec![], false));
    assert_eq!(
        referrers(&registry, &format!("/v2/unknown/referrers/{subject}"))
            .await
            .0
            .len(),
        0
    );
    let (one, two) = (attach("t/one"), attach("t/two"));
    for manifest in [&one, &two] {
        let answer = registry
            .put_manifest("a", sha256(manifest.as_bytes()).as_str(), manifest)
            .await;
        assert_eq!(header(answer.headers(), "oci-subject"), subject.as_str());
    }
    assert_eq!(referrers(&registry, &path).await.0.len(), 2);
    let digest = sha256(one.as_bytes());
    assert_eq!(
        referrers(&registry, &format!("{path}?artifactType=t/one")).await,
        (vec![digest.to_string()], true)
    );
    // A client of a registry without this API keeps its list under a tag.
    let three = attach("t/three");
    let three_digest = sha256(three.as_bytes());
    registry
        .put_manifest("a", three_digest.as_str(), &three)
        .await;
    registry
        .store
        .remove_referrer(&repo("a"), &subject, &three_digest)
        .await
        .unwrap();
    assert_eq!(referrers(&registry, &path).await.0.len(), 2);
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{three_digest}","size":{}}}]}}"#,
        three.len()
    );
    let tag = format!("sha256-{}", subject.hex());
    let answer = registry
        .send(
            "PUT",
            &format!("/v2/a/manifests/{tag}"),
            &[("content-type", OCI_INDEX)],
            index,
        )
        .await;
    assert_eq!(answer.status(), 201);
    assert_eq!(referrers(&registry, &path).await.0.len(), 3);
    registry
        .send("DELETE", &format!("/v2/a/manifests/{digest}"), &[], "")
        .await;
    assert_eq!(referrers(&registry, &path).await.0.len(), 2);
}

// What another program stored: nothing here takes such a manifest.
#[tokio::test]
async fn a_stored_manifest_is_never_served_as_a_page() {
    let registry = Registry::start().await;
    for own in ["text/html", "text/html; charset=utf-8", "image/svg+xml"] {
        // Also one that is not held in memory, whose type is remembered.
        for padding in [0, 100_000] {
            let padding = format!(r#","annotations":{{"a":"{}"}}"#, "p".repeat(padding));
            let manifest = image(&sha256(b"{}"), 2, &[], &padding).replace(OCI_MANIFEST, own);
            let digest = sha256(manifest.as_bytes());
            let (store, bytes) = (&registry.store, manifest.clone().into());
            store
                .put_manifest(&repo("a"), &digest, bytes)
                .await
                .unwrap();
            for method in ["GET", "HEAD", "GET"] {
                let path = format!("/v2/a/manifests/{digest}");
                let answer = registry.send(method, &path, &[], "").await;
                assert_eq!(answer.status(), 200, "{own}");
                let kind = header(answer.headers(), "content-type");
                assert_eq!(kind, OCI_MANIFEST, "{own}");
            }
            let type_of_push = [("content-type", own)];
            let push = registry.send("PUT", "/v2/a/manifests/t", &type_of_push, manifest);
            assert_eq!(code(push.await).await.0, 400, "{own}");
        }
    }
}
