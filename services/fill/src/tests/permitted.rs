//! Upstreams that the settings rule out: nothing is copied from them, and what is stored is served.

use holdfast_core::UpstreamFilter as Permitted;

use super::*;

fn only(sources: &[&str]) -> Settings {
    let sources: Vec<String> = sources.iter().map(|&host| host.to_owned()).collect();
    Settings {
        permitted: Some(Permitted::new(&sources, Vec::new())),
        ..quick()
    }
}

#[tokio::test]
async fn an_upstream_outside_of_sources_is_never_asked() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let image = ImageBuilder::new(70).layer(1000).build();
    upstream.push(REPO, "1", &image);
    let forbidding = |settings| fills_with(folder.path(), &upstream, true, uplink(), settings);
    let registry = forbidding(only(&["registry.example"])).await;
    // Asked for by the controller, as for a pod that names the registry itself, or by an Artifact.
    let refused = registry.fill(&request(&upstream, ":1", &[])).await;
    assert!(matches!(refused, Err(Error::Forbidden(_))), "{refused:?}");
    // Pulled, though the upstream is configured.
    let repo = repo(&upstream);
    assert!(!registry.fetches(&repo));
    let pulled = registry.manifest(&repo, &tag("1")).await;
    assert!(matches!(pulled, Err(Error::Forbidden(_))), "{pulled:?}");
    let layer = digest(&image.layers[0]);
    let pulled = registry.blob(&repo, &layer).await;
    assert!(matches!(pulled, Err(Error::Forbidden(_))));
    assert_eq!(upstream.requests().len(), 0, "the upstream heard of it");

    // Once it may be copied, it is; and what is stored stays to be had.
    let host = upstream.host();
    let registry = forbidding(only(&[host.as_str()])).await;
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    let asked = upstream.requests().len();
    let registry = forbidding(only(&["registry.example"])).await;
    let mut again = request(&upstream, ":1", &[]);
    again.revalidate = true;
    assert!(registry.fill(&again).await.unwrap().already_local);
    let manifest = registry.manifest(&repo, &tag("1")).await.unwrap();
    assert_eq!(manifest.digest, digest(&image.digest));
    let blob = registry.blob(&repo, &layer).await.unwrap();
    assert_eq!(read(blob).await.unwrap(), image.blobs[&image.layers[0]]);
    let name = Tag::parse("1").unwrap();
    let fresh = registry.revalidate(&repo, &name, &manifest.digest);
    assert_ne!(fresh.await, Freshness::Moved(manifest.digest.clone()));
    assert_eq!(upstream.requests().len(), asked, "nobody was asked again");
}
