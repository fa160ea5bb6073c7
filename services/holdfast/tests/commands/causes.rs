//! Commands tell why an upstream is not asked: the cause that the registry knows, and since when.

use crate::{Site, workload};

/// What the registry says of an upstream that it does not ask, and the controller of an image
/// there.
const NOT_ASKED: &str = "the upstream is unavailable: connection refused, failing since \
                         2026-01-01T00:00:00Z, next probe in 50 s";

#[tokio::test]
async fn diff_offline_tells_why_an_upstream_is_not_asked() {
    let site = Site::start().await;
    for name in ["web", "shop"] {
        let image = format!("registry.example/{name}:1");
        site.post(
            "/apis/apps/v1/namespaces/shop/deployments",
            &workload(name, &image),
        )
        .await;
        let message = if name == "web" { NOT_ASKED } else { "so it is" };
        site.stands_for("shop", &image, "UpstreamUnavailable", message)
            .await;
    }
    let json_file = site.folder.path().join("diff.json");
    let diff = ["diff", "offline", "--json", json_file.to_str().unwrap()];
    let line = format!("UpstreamUnavailable: {NOT_ASKED}");
    site.run(&diff).await.check(1, &["Deployment/web", &line]);
    let owners = site.json("diff.json")["owners"].clone();
    let owners = owners.as_array().unwrap();
    let web = owners.iter().find(|owner| owner["name"] == "web").unwrap();
    let why = web["images"][0]["why"].as_str().unwrap();
    assert!(why.contains(NOT_ASKED), "{why}");
}

#[tokio::test]
async fn status_tells_why_an_upstream_is_not_asked() {
    let site = Site::start().await;
    let source = "registry.example/web:1";
    site.stands_for("shop", source, "UpstreamUnavailable", NOT_ASKED)
        .await;
    let json_file = site.folder.path().join("status.json");
    let status = ["status", "--json", json_file.to_str().unwrap()];
    site.run(&status).await.check(
        1,
        &[
            "0 of 1 local (0 B), 1 UpstreamUnavailable",
            source,
            NOT_ASKED,
        ],
    );
    let found = site.json("status.json");
    assert_eq!(found["absent"][0]["message"], NOT_ASKED);
}
