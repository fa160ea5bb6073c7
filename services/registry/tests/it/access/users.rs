//! Users of an htpasswd file, rules by repository, and mounts across what a caller may read.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_config::{AccessAction, AccessRule, AccessSettings};
use holdfast_registry::access_control::AccessControl;

use crate::harness::{OCI_MANIFEST, Registry, Setup, code, header, image, sha256};

pub(crate) fn basic(user: &str) -> String {
    format!(
        "Basic {}",
        STANDARD.encode(format!("{user}:{user}-password"))
    )
}

/// Users whose passwords are their names with `-password`.
pub(crate) fn htpasswd(users: &[&str]) -> String {
    let line = |user: &&str| {
        let hash = bcrypt::hash(format!("{user}-password"), 4).unwrap();
        format!("{user}:{hash}\n")
    };
    users.iter().map(line).collect()
}

pub(crate) fn rule(user: &str, repositories: &[&str], actions: &[AccessAction]) -> AccessRule {
    AccessRule {
        users: vec![user.to_owned()],
        repositories: repositories.iter().map(|name| (*name).to_owned()).collect(),
        actions: actions.to_vec(),
        ..AccessRule::default()
    }
}

/// A registry with three users: `reader` pulls everything, `ci` pulls and pushes `team`, `admin`
/// does everything.
pub(crate) async fn start() -> Registry {
    use AccessAction::{Delete, Pull, Push};
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("htpasswd");
    std::fs::write(&file, htpasswd(&["reader", "ci", "ci2", "admin"])).unwrap();
    let access = AccessSettings {
        htpasswd: Some(file),
        rules: vec![
            rule("reader", &[], &[Pull]),
            rule("ci", &["team"], &[Pull, Push]),
            rule("ci2", &["team"], &[Pull, Push]),
            rule("admin", &[], &[Pull, Push, Delete]),
        ],
        ..AccessSettings::default()
    };
    Setup {
        access_control: AccessControl::from_settings(None, Some(&access)).unwrap(),
        ..Setup::default()
    }
    .start()
    .await
}

/// Pushes an image of one layer as a user and returns the layer.
async fn push(registry: &Registry, user: &str, repo: &str, layer: &str) -> u16 {
    let authorization = basic(user);
    let as_user = [
        ("authorization", authorization.as_str()),
        ("content-type", OCI_MANIFEST),
    ];
    for blob in ["{}", layer] {
        let target = format!(
            "/v2/{repo}/blobs/uploads/?digest={}",
            sha256(blob.as_bytes())
        );
        let answer = registry
            .send("POST", &target, &as_user, blob.to_owned())
            .await;
        if answer.status() != 201 {
            return answer.status().as_u16();
        }
    }
    let manifest = image(
        &sha256(b"{}"),
        2,
        &[(&sha256(layer.as_bytes()), layer.len())],
        "",
    );
    registry
        .send(
            "PUT",
            &format!("/v2/{repo}/manifests/1"),
            &as_user,
            manifest,
        )
        .await
        .status()
        .as_u16()
}

#[tokio::test]
async fn users_do_what_the_rules_say() {
    let registry = start().await;
    let answer = registry.get("/v2/").await;
    assert_eq!(
        header(answer.headers(), "www-authenticate"),
        "Basic realm=\"holdfast\""
    );
    assert_eq!(code(answer).await, (401, "UNAUTHORIZED".into()));
    for (user, repo, expect) in [
        ("ci", "team/app", 201),
        ("ci", "team", 201),
        ("ci", "teams/app", 403),
        ("reader", "team/app", 403),
        ("admin", "other/app", 201),
        ("admin", "docker.io/library/nginx", 403),
        ("nobody", "team/app", 401),
    ] {
        assert_eq!(
            push(&registry, user, repo, "layer").await,
            expect,
            "{user} {repo}"
        );
    }
    for (user, method, path, expect) in [
        ("reader", "GET", "/v2/", 200),
        ("reader", "GET", "/v2/other/app/manifests/1", 200),
        ("reader", "GET", "/v2/_catalog", 200),
        ("ci", "GET", "/v2/team/app/tags/list", 200),
        ("ci", "GET", "/v2/other/app/manifests/1", 403),
        ("ci", "GET", "/v2/_catalog", 403),
        ("ci", "DELETE", "/v2/team/app/manifests/1", 403),
        ("admin", "DELETE", "/v2/team/app/manifests/1", 202),
    ] {
        let answer = registry
            .send(method, path, &[("authorization", &basic(user))], "")
            .await;
        assert_eq!(answer.status(), expect, "{user} {method} {path}");
    }
    for path in [
        "/v2/team/app/manifests/1",
        "/v2/A/manifests/1",
        "/v2/nothing",
    ] {
        let status = registry.get(path).await.status().as_u16();
        let expect = if path == "/v2/nothing" { 404 } else { 401 };
        assert_eq!(status, expect, "a stranger learns nothing of {path}");
    }
}

#[tokio::test]
async fn a_mount_reads_only_what_its_caller_may_pull() {
    let registry = start().await;
    assert_eq!(push(&registry, "admin", "secret/app", "hidden").await, 201);
    assert_eq!(push(&registry, "admin", "team/base", "shared").await, 201);
    let ci = basic("ci");
    for (layer, from, expect) in [
        ("hidden", "&from=secret/app", 202),
        ("hidden", "", 202),
        ("shared", "&from=team/base", 201),
        ("shared", "", 201),
        ("shared", "&from=secret/app", 202),
    ] {
        let digest = sha256(layer.as_bytes());
        let target = format!("/v2/team/mine/blobs/uploads/?mount={digest}{from}");
        let answer = registry
            .send("POST", &target, &[("authorization", &ci)], "")
            .await;
        assert_eq!(answer.status(), expect, "{layer} {from}");
    }
    let path = format!("/v2/team/mine/blobs/{}", sha256(b"hidden"));
    let answer = registry
        .send("HEAD", &path, &[("authorization", &ci)], "")
        .await;
    assert_eq!(answer.status(), 404);
}
