//! Pages of lists, and how far a mount without `from` looks.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_config::{AccessAction, AccessRule, AccessSettings};
use holdfast_registry::{access_control::AccessControl, limits};

use crate::harness::{Registry, Setup, header, repo, sha256};

#[tokio::test]
async fn a_page_has_so_many_tags_and_no_more() {
    let registry = Registry::start().await;
    let (digest, _) = registry.push_image("a", "1", b"layer").await;
    let tags = registry
        .root()
        .join("docker/registry/v2/repositories/a/_manifests/tags");
    // With the one that was pushed.
    for number in 0..limits::TAGS_PAGE {
        let folder = tags.join(format!("t{number}")).join("current");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("link"), digest.to_string()).unwrap();
    }
    let mut counts = Vec::new();
    let mut target = format!("/v2/a/tags/list?n={}", 10 * limits::TAGS_PAGE);
    loop {
        let answer = registry.get(&target).await;
        let link = header(answer.headers(), "link").to_owned();
        let page: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        counts.push(page["tags"].as_array().unwrap().len());
        let Some(next) = link
            .strip_prefix('<')
            .and_then(|link| link.split('>').next())
        else {
            break;
        };
        next.clone_into(&mut target);
    }
    assert_eq!(counts, [limits::TAGS_PAGE, 1]);
}

/// The status of a mount without `from` into `mine`.
async fn mount(registry: &Registry, blob: &str, headers: &[(&str, &str)]) -> u16 {
    let digest = sha256(blob.as_bytes());
    let target = format!("/v2/mine/blobs/uploads/?mount={digest}");
    let answer = registry.send("POST", &target, headers, "").await;
    answer.status().as_u16()
}

#[tokio::test]
async fn a_mount_looks_into_so_many_folders_and_no_more() {
    for (before, expect) in [
        (limits::MOUNT_FOLDERS - 1, 201),
        (limits::MOUNT_FOLDERS, 202),
    ] {
        let registry = Registry::start().await;
        registry.push_blob("z", "blob").await;
        let folder = registry.root().join("docker/registry/v2/repositories");
        for number in 0..before {
            std::fs::create_dir(folder.join(format!("a{number}"))).unwrap();
        }
        assert_eq!(mount(&registry, "blob", &[]).await, expect, "{before}");
    }
}

#[tokio::test]
async fn a_mount_asks_for_so_many_repositories_and_no_more() {
    for (readable, expect) in [
        (limits::MOUNT_REPOSITORIES - 1, 201),
        (limits::MOUNT_REPOSITORIES, 202),
    ] {
        let name = |number: usize| format!("r{number:04}");
        let rule = |repository: String, action| AccessRule {
            users: vec!["ci".to_owned()],
            repositories: vec![repository],
            actions: vec![action],
            ..AccessRule::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let users = folder.path().join("users");
        let hash = bcrypt::hash("password", 4).unwrap();
        std::fs::write(&users, format!("ci:{hash}\n")).unwrap();
        let access = AccessSettings {
            htpasswd: Some(users),
            rules: vec![
                rule("mine".to_owned(), AccessAction::Push),
                rule(name(readable), AccessAction::Pull),
            ],
            ..AccessSettings::default()
        };
        let registry = Setup {
            access_control: AccessControl::from_settings(None, Some(&access)).unwrap(),
            ..Setup::default()
        }
        .start()
        .await;
        let digest = sha256(b"blob");
        registry
            .store
            .put_blob(&digest, "blob".into())
            .await
            .unwrap();
        for number in 0..=limits::MOUNT_REPOSITORIES {
            let repo = repo(&name(number));
            registry.store.link_blob(&repo, &digest).await.unwrap();
        }
        let ci = format!("Basic {}", STANDARD.encode("ci:password"));
        let found = mount(&registry, "blob", &[("authorization", &ci)]).await;
        assert_eq!(found, expect, "it may read repository {readable} only");
    }
}
