//! Pulls with `ns`, as container runtimes send them to a mirror.

use std::sync::Arc;

use crate::harness::{Registry, Setup, code, header, image, repo, sha256};
use bytes::Bytes;
use futures::future::BoxFuture;
use holdfast_core::{
    ManifestRef,
    digest::Digest,
    reference::{RepositoryName, Tag},
};
use holdfast_fill::Error as FillError;
use holdfast_fill::pull_through::{Freshness, Manifest, PullThrough, PulledBlob};
use holdfast_registry::access_control::AccessControl;

/// An upstream that is configured, and has one manifest whatever it is asked for.
struct Upstream;

const FETCHED: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

impl PullThrough for Upstream {
    fn fetches(&self, repo: &RepositoryName) -> bool {
        repo.as_str() == "configured.example_5000/team/app"
    }

    fn manifest<'a>(
        &'a self,
        repo: &'a RepositoryName,
        _: &'a ManifestRef,
    ) -> BoxFuture<'a, Result<Manifest, FillError>> {
        assert!(self.fetches(repo), "{repo} was asked for");
        let bytes = Bytes::from_static(FETCHED.as_bytes());
        let digest = sha256(&bytes);
        Box::pin(async { Ok(Manifest { digest, bytes }) })
    }

    fn blob<'a>(
        &'a self,
        _: &'a RepositoryName,
        _: &'a Digest,
    ) -> BoxFuture<'a, Result<PulledBlob, FillError>> {
        Box::pin(async { Err(FillError::NotFound) })
    }

    fn revalidate<'a>(
        &'a self,
        _: &'a RepositoryName,
        _: &'a Tag,
        _: &'a Digest,
    ) -> BoxFuture<'a, Freshness> {
        Box::pin(async { Freshness::Current })
    }
}

/// A registry with a pushed image `team/app:1`, and a copy of `docker.io/library/nginx:1`.
async fn start(access_control: AccessControl) -> Registry {
    let setup = Setup {
        source: Some(Arc::new(Upstream)),
        access_control,
        ..Setup::default()
    };
    let registry = setup.start().await;
    for name in ["team/app", "docker.io/library/nginx"] {
        let (repo, store) = (repo(name), &registry.store);
        let config = sha256(b"{}");
        store
            .put_blob(&config, Bytes::from_static(b"{}"))
            .await
            .unwrap();
        store.link_blob(&repo, &config).await.unwrap();
        let manifest = image(&config, 2, &[], &format!(r#","of":"{name}""#));
        let digest = sha256(manifest.as_bytes());
        store
            .put_manifest(&repo, &digest, manifest.into())
            .await
            .unwrap();
        store
            .set_tag(&repo, &Tag::parse("1").unwrap(), &digest)
            .await
            .unwrap();
    }
    registry
}

async fn check(registry: &Registry, target: &str, namespace: &str, content: &str) {
    for method in ["HEAD", "GET"] {
        let answer = registry.send(method, target, &[], "").await;
        assert_eq!(answer.status(), 200, "{method} {target}");
        assert_eq!(
            header(answer.headers(), "oci-namespace"),
            namespace,
            "{method} {target}"
        );
        let text = answer.text().await.unwrap();
        assert!(
            method == "HEAD" || text.contains(content),
            "{target}: {text}"
        );
    }
}

#[tokio::test]
async fn a_pull_with_a_namespace_gets_that_upstreams_content() {
    let registry = start(AccessControl::open()).await;
    let (config, subject) = (sha256(b"{}"), sha256(b"subject"));
    let nginx = "/v2/library/nginx";
    let copy = "docker.io/library/nginx";
    check(
        &registry,
        &format!("{nginx}/manifests/1?ns=docker.io"),
        "docker.io",
        copy,
    )
    .await;
    check(
        &registry,
        &format!("{nginx}/blobs/{config}?ns=docker.io"),
        "docker.io",
        "{}",
    )
    .await;
    check(
        &registry,
        &format!("{nginx}/tags/list?ns=docker.io"),
        "docker.io",
        // The name is the one that was asked for.
        r#"{"name":"library/nginx","tags":["1"]}"#,
    )
    .await;
    check(
        &registry,
        &format!("{nginx}/referrers/{subject}?ns=docker.io"),
        "docker.io",
        "[]",
    )
    .await;
    let configured = "/v2/team/app/manifests/1?ns=configured.example%3A5000";
    check(&registry, configured, "configured.example:5000", FETCHED).await;
    let range = [("range", "bytes=1-")];
    let answer = registry
        .send(
            "GET",
            &format!("{nginx}/blobs/{config}?ns=docker.io"),
            &range,
            "",
        )
        .await;
    assert_eq!(
        (
            answer.status().as_u16(),
            header(answer.headers(), "oci-namespace")
        ),
        (206, "docker.io")
    );
}

#[tokio::test]
async fn a_namespace_that_is_not_here_changes_nothing() {
    let registry = start(AccessControl::open()).await;
    let unused = [
        "10.96.0.50",
        "10.96.0.50:5000",
        "unknown.example",
        "[fd00::1]:5000",
        "%2F..%2F",
        "",
    ];
    for namespace in unused {
        let target = format!("/v2/team/app/manifests/1?ns={namespace}");
        check(&registry, &target, "", "team/app").await;
        let target = format!("/v2/docker.io/library/nginx/manifests/1?ns={namespace}");
        check(&registry, &target, "", "docker.io/library/nginx").await;
        let target = format!("/v2/team/other/manifests/1?ns={namespace}");
        let answer = registry.get(&target).await;
        assert_eq!(
            code(answer).await,
            (404, "MANIFEST_UNKNOWN".into()),
            "{namespace}"
        );
    }
}

#[tokio::test]
async fn a_namespace_opens_no_way_to_write_and_none_past_the_gate() {
    let registry = start(AccessControl::open()).await;
    let target = "/v2/library/nginx/manifests/1?ns=docker.io";
    assert_eq!(registry.send("DELETE", target, &[], "").await.status(), 404);
    check(&registry, target, "docker.io", "").await;
    let begun = registry
        .send(
            "POST",
            "/v2/library/nginx/blobs/uploads/?ns=docker.io",
            &[],
            "",
        )
        .await;
    assert!(header(begun.headers(), "location").starts_with("/v2/library/nginx/"));
    let guarded = start(AccessControl::nodes("node", "secret")).await;
    let answer = guarded.get(target).await;
    assert_eq!(answer.status(), 401);
    assert_eq!(header(answer.headers(), "oci-namespace"), "");
}
