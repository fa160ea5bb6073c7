//! What the process does in the background.

use super::*;

/// A session that nobody has touched for so long.
async fn session(store: &Store, idle: Duration) -> std::path::PathBuf {
    let repo = holdfast_core::RepositoryName::parse("a").unwrap();
    let id = store.create_upload(&repo, "2026-01-01T00:00:00Z").await;
    let folder = store.layout().upload(&repo, id.unwrap().as_str());
    let then = std::time::SystemTime::now() - idle;
    let files = std::fs::read_dir(&folder).unwrap();
    let files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    for path in files.iter().chain([&folder]) {
        std::fs::File::open(path)
            .unwrap()
            .set_modified(then)
            .unwrap();
    }
    folder
}

#[tokio::test]
async fn an_upload_is_removed_after_its_hours_and_not_before() {
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    for upload_hours in [1, holdfast_config::Limits::default().upload_hours, 720] {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path(), Options::unlimited())
            .await
            .unwrap();
        let most = 60 * u64::from(upload_hours);
        let young = session(&store, minutes(most - 1)).await;
        let old = session(&store, minutes(most + 1)).await;
        let limits = Limits::from(&holdfast_config::Limits {
            upload_hours,
            ..holdfast_config::Limits::default()
        });
        let stop = CancellationToken::new();
        let every = Duration::from_millis(20);
        let cleaner = tokio::spawn(clean(store, limits.upload_idle, every, stop.clone()));
        for _ in 0..500 {
            if !old.exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
        cleaner.await.unwrap();
        assert_eq!(
            (young.exists(), old.exists()),
            (true, false),
            "{upload_hours}"
        );
    }
}

#[tokio::test]
async fn the_probe_comes_back_when_it_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Options::unlimited())
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let keeper = keep_probe(store, Duration::from_millis(20), stop.clone());
    let keeper = tokio::spawn(keeper);
    let probe = folder
        .path()
        .join("docker/registry/v2/repositories/holdfast/probe/_manifests/tags/1/current/link");
    let there = async || {
        for _ in 0..500 {
            if probe.exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no {}", probe.display());
    };
    there().await;
    std::fs::remove_dir_all(
        folder
            .path()
            .join("docker/registry/v2/repositories/holdfast"),
    )
    .unwrap();
    there().await;
    stop.cancel();
    keeper.await.unwrap();
}
