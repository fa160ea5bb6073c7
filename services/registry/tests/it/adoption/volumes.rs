//! Whole volumes: what one registry wrote the other serves, and goes on with.

use holdfast_testkit::image::ImageBuilder;

use super::{
    content::{self, Client, Content, assert_same, attached, image_of},
    ours,
    theirs::GENERATIONS,
    tree,
};

// SPEC 16
#[tokio::test(flavor = "multi_thread")]
async fn volume_of_distribution_is_served_byte_for_byte() {
    for generation in GENERATIONS {
        let root = tempfile::tempdir().unwrap();
        let theirs = generation.serve(root.path());
        let client = Client::new(&theirs.url);
        let content = content::fill(&client).await;
        let before = content.seen(&client).await;
        drop(theirs);
        let files = tree::files(root.path());
        let ours = ours::serve(root.path()).await;
        let client = Client::new(&ours.url);
        assert_same(
            &content.seen(&client).await,
            &before,
            &format!("{generation:?}"),
        );
        assert!(
            tree::files(root.path()) == files,
            "{generation:?}: pulls change nothing"
        );
        // What clients kept under a tag shows in the list that distribution does not have.
        let subject = image_of(4).digest;
        let list: serde_json::Value = client
            .get(&format!("/v2/team/app/referrers/{subject}"))
            .await
            .json()
            .await
            .unwrap();
        let (digest, _) = attached(&image_of(4), "application/x.signature");
        assert_eq!(list["manifests"][0]["digest"], digest, "{generation:?}");
    }
}

// SPEC 16
#[tokio::test(flavor = "multi_thread")]
async fn distribution_goes_on_where_holdfast_pushed_and_deleted() {
    for generation in GENERATIONS {
        let root = tempfile::tempdir().unwrap();
        let mut content = {
            let theirs = generation.serve(root.path());
            content::fill(&Client::new(&theirs.url)).await
        };
        let before = {
            let ours = ours::serve(root.path()).await;
            let client = Client::new(&ours.url);
            change(&client, &mut content).await;
            ours.finish().await;
            content.seen(&client).await
        };
        let theirs = generation.serve(root.path());
        let client = Client::new(&theirs.url);
        assert_same(
            &content.seen(&client).await,
            &before,
            &format!("{generation:?}"),
        );
        // And it takes writes: new content, and a tag of ours moved.
        let next = image_of(30);
        client.push("team/app", &["moving", "next"], &next).await;
        content.image("team/app", &["moving", "next"], &next);
        let before = content.seen(&client).await;
        drop(theirs);
        let ours = ours::serve(root.path()).await;
        assert_same(
            &content.seen(&Client::new(&ours.url)).await,
            &before,
            &format!("{generation:?}"),
        );
    }
}

/// A push, a tag that moves, a delete, a mount and an attached manifest.
pub(crate) async fn change(client: &Client, content: &mut Content) {
    let index = ImageBuilder::new(20)
        .layer(9000)
        .index(&["linux/amd64", "linux/arm/v7"]);
    client.push("new/repo", &["1", "2"], &index).await;
    content.image("new/repo", &["1", "2"], &index);
    let moved = image_of(21);
    client.push("team/app", &["moving", "latest"], &moved).await;
    content.image("team/app", &["moving", "latest"], &moved);
    let base = ImageBuilder::new(1).layer(50_000).docker().build();
    client.delete_manifest("library/base", &base.digest).await;
    for digest in base.blobs.keys() {
        client.mount("new/repo", "team/deep/er/app", digest).await;
    }
    client
        .put_manifest("new/repo", "base", &base.media_type, &base.bytes())
        .await;
    content.image("new/repo", &["base"], &base);
    let (digest, bytes) = attached(&moved, "application/x.sbom");
    client
        .put_manifest("team/app", &digest, &moved.media_type, &bytes)
        .await;
    content.image("team/app", &[&digest], &moved);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_pushes_leave_the_same_files() {
    let mut trees = Vec::new();
    for generation in GENERATIONS {
        let root = tempfile::tempdir().unwrap();
        let theirs = generation.serve(root.path());
        content::fill(&Client::new(&theirs.url)).await;
        trees.push((format!("{generation:?}"), tree::files(root.path())));
    }
    let root = tempfile::tempdir().unwrap();
    let ours = ours::serve(root.path()).await;
    content::fill(&Client::new(&ours.url)).await;
    ours.finish().await;
    let mut own = tree::files(root.path());
    // The one thing that distribution does not keep: which manifests are attached to which.
    let extra: Vec<_> = own
        .keys()
        .filter(|path| path.contains("/_referrers/"))
        .cloned()
        .collect();
    assert_eq!(extra.len(), 1, "{extra:?}");
    own.retain(|path, _| !path.contains("/_referrers/"));
    for (name, tree) in trees {
        assert_eq!(
            own.keys().collect::<Vec<_>>(),
            tree.keys().collect::<Vec<_>>(),
            "{name}"
        );
        assert!(own == tree, "{name}: contents differ");
    }
}
