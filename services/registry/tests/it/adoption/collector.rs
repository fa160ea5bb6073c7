//! Distribution's own collector over a volume that Holdfast wrote to.

use holdfast_testkit::image;

use super::{
    content::{self, Client, assert_same},
    ours,
    theirs::GENERATIONS,
    tree,
    volumes::change,
};

// SPEC 16
#[tokio::test(flavor = "multi_thread")]
async fn collector_of_distribution_takes_nothing_that_is_referenced() {
    for generation in GENERATIONS {
        let root = tempfile::tempdir().unwrap();
        let mut content = {
            let theirs = generation.serve(root.path());
            content::fill(&Client::new(&theirs.url)).await
        };
        let orphan = b"referenced by nothing".to_vec();
        let before = {
            let ours = ours::serve(root.path()).await;
            let client = Client::new(&ours.url);
            change(&client, &mut content).await;
            client.push_blob("team/app", &orphan).await;
            // A session that is under way meanwhile.
            let at = client.begin("team/app").await;
            client.go_on(&at, b"half").await;
            content.seen(&client).await
        };
        let everything = tree::all(root.path());
        generation.collect(root.path(), true);
        assert!(
            tree::all(root.path()) == everything,
            "{generation:?}: a dry run changes nothing"
        );

        let said = generation.collect(root.path(), false);
        let digest = image::digest_of(&orphan);
        assert!(
            said.contains(&digest),
            "{generation:?}: the orphan was found: {said}"
        );
        let after = tree::all(root.path());
        let (_, hex) = digest.split_once(':').unwrap();
        assert!(
            !after
                .keys()
                .any(|path| path.contains("/blobs/") && path.contains(hex)),
            "{generation:?}: the collector did its work"
        );
        let extras = |tree: &std::collections::BTreeMap<String, Vec<u8>>| {
            let mut tree = tree.clone();
            tree.retain(|path, _| {
                path.contains("/_referrers/")
                    || path.contains("/_holdfast/")
                    || path.contains("/_uploads/")
            });
            tree
        };
        assert!(!extras(&after).is_empty());
        assert_eq!(
            extras(&after),
            extras(&everything),
            "{generation:?}: ours is invisible to it"
        );

        let ours = ours::serve(root.path()).await;
        let mut now = content.seen(&Client::new(&ours.url)).await;
        let mut expected = before;
        // Blobs of deleted images, which nothing references, are what it is for.
        let is_unreferenced = |path: &str| {
            let gone = content::image_of(5);
            gone.blobs
                .keys()
                .any(|digest| path.ends_with(digest.as_str()))
                || path.starts_with("/v2/library/base/blobs/")
        };
        now.retain(|path, _| !is_unreferenced(path));
        expected.retain(|path, _| !is_unreferenced(path));
        assert_same(&now, &expected, &format!("{generation:?}"));
    }
}
