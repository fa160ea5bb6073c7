//! Digests that no manifest names: a request for one does not read all manifests of the repository
//! again.

use super::*;
use crate::limits::{MANIFESTS_READ, SEARCHED_MANIFESTS};
use crate::names::Budget;

async fn ask(registry: &Fills, upstream: &Upstream, digest: &Digest) -> Result<()> {
    let repo = repo(upstream);
    let asked = registry.blob(&repo, digest);
    let asked = tokio::time::timeout(LIMIT, asked).await;
    asked.expect("no manifest is read").map(drop)
}

#[tokio::test]
async fn manifests_are_read_once_for_all_blobs_that_they_do_not_name() {
    let image = ImageBuilder::new(90).layer(10).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    let unnamed = |number: usize| digest(&format!("sha256:{number:064x}"));
    for number in 0..3 {
        // From the second one on nobody may read a manifest.
        let readers = u32::try_from(MANIFESTS_READ).unwrap();
        let held = registry.manifests.readers().acquire_many(readers);
        let held = if number > 0 { held.await.ok() } else { None };
        let found = ask(&registry, &upstream, &unnamed(number)).await;
        assert!(matches!(found, Err(Error::NotFound)), "{found:?}");
        drop(held);
    }
    let layer = digest(&image.layers[0]);
    ask(&registry, &upstream, &layer).await.unwrap();
}

#[tokio::test]
async fn so_many_manifests_are_read_at_once_and_further_ones_wait() {
    let image = ImageBuilder::new(92).layer(10).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    let readers = u32::try_from(MANIFESTS_READ).unwrap();
    let held = registry
        .manifests
        .readers()
        .acquire_many(readers)
        .await
        .unwrap();
    assert_eq!(registry.manifests.readers().available_permits(), 0);
    let unnamed = digest(&format!("sha256:{:064x}", 1));
    let mut asked = std::pin::pin!(ask(&registry, &upstream, &unnamed));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut asked).await;
    assert!(early.is_err(), "{early:?}");
    drop(held);
    let found = asked.await;
    assert!(matches!(found, Err(Error::NotFound)), "{found:?}");
}

#[tokio::test]
async fn a_request_reads_so_many_bytes_of_manifests() {
    let image = ImageBuilder::new(91).layer(10).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    let (repo, manifest) = (repo(&upstream), digest(&image.digest));
    let mut budget = Budget(0);
    let found = registry
        .manifests
        .summary(&repo, &manifest, &mut budget)
        .await;
    assert!(found.is_none(), "nothing is left");
    budget.0 = 1;
    let found = registry
        .manifests
        .summary(&repo, &manifest, &mut budget)
        .await;
    let hash = registry.manifests.hash(&digest(&image.layers[0]));
    assert!(found.unwrap().names(hash));
    assert_eq!(budget.0, 0);
    let again = registry
        .manifests
        .summary(&repo, &manifest, &mut budget)
        .await;
    assert!(again.is_some(), "it is remembered");
}

#[tokio::test]
async fn a_pull_looks_into_so_many_manifests_and_then_the_upstream_is_asked() {
    for (before, expect) in [(SEARCHED_MANIFESTS - 1, 0), (SEARCHED_MANIFESTS, 1)] {
        let image = ImageBuilder::new(92).layer(10).build();
        let folder = tempfile::tempdir().unwrap();
        let upstream = upstream_with(&image).await;
        let registry = fills(folder.path(), &upstream).await;
        registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
        let layout = registry.store().layout();
        for number in 0..before {
            let other = digest(&format!("sha256:{number:064x}"));
            let link = layout.revision_link(&repo(&upstream), &other);
            std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        }
        let layer = digest(&image.layers[0]);
        ask(&registry, &upstream, &layer).await.unwrap();
        let asked = upstream.requests();
        let asked = asked.count(&http::Method::HEAD, layer.as_str());
        assert_eq!(
            asked, expect,
            "{before} manifests before the one that names it"
        );
    }
}
