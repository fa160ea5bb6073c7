//! What the registry says of its volume in bulk.

use holdfast_api::questions::{Answer, MAX_QUESTIONS, held};
use holdfast_testkit::server;

use super::*;

/// The question about an image of the upstream.
fn ask(upstream: &Upstream, reference: &str, platforms: &[&str]) -> held::Image {
    let FillRequest {
        source, platforms, ..
    } = request(upstream, reference, platforms);
    held::Image { source, platforms }
}

#[tokio::test]
async fn what_is_held_is_told_from_the_volume_alone() {
    let image = ImageBuilder::new(90)
        .layer(1000)
        .index(&["linux/amd64", "linux/arm64"]);
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    let amd64 = request(&upstream, ":1", &["linux/amd64"]);
    registry.fill(&amd64).await.unwrap();
    let before = upstream.requests().all().len();
    let by_digest = format!("@{}", image.digest);
    let questions = vec![
        ask(&upstream, ":1", &["linux/amd64"]),
        ask(&upstream, &by_digest, &["linux/amd64"]),
        ask(&upstream, ":1", &["linux/arm64"]),
        ask(&upstream, ":1", &[]),
        ask(&upstream, ":2", &["linux/amd64"]),
        held::Image {
            source: "no reference".to_owned(),
            ..held::Image::default()
        },
    ];
    let answers = registry.held(questions.clone()).await.unwrap().answers;
    assert_eq!(
        answers,
        [
            Answer::Yes,
            Answer::Yes,
            // The upstream may not have this entry of the index.
            Answer::Unknown,
            Answer::Unknown,
            Answer::No,
            Answer::Unknown,
        ]
    );
    for layer in &image.layers {
        let hex = layer.strip_prefix("sha256:").unwrap();
        let (prefix, _) = hex.split_at(2);
        let blob = format!("docker/registry/v2/blobs/sha256/{prefix}/{hex}");
        let blob = folder.path().join(blob);
        // The layers of the other platform were not copied.
        if blob.exists() {
            std::fs::remove_dir_all(blob).unwrap();
        }
    }
    let answers = registry.held(questions).await.unwrap().answers;
    assert_eq!(answers[..2], [Answer::No, Answer::No]);
    assert_eq!(
        upstream.requests().all().len(),
        before,
        "no upstream is asked"
    );
}

#[tokio::test]
async fn requests_for_what_is_held_are_bounded() {
    let image = ImageBuilder::new(91).layer(1000).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    let questions = |count| vec![ask(&upstream, ":1", &[]); count];
    let (one, other, third) = tokio::join!(
        registry.held(questions(100)),
        registry.held(questions(100)),
        registry.held(questions(1)),
    );
    assert_eq!(one.unwrap().answers, vec![Answer::No; 100]);
    assert_eq!(other.unwrap().answers.len(), 100);
    assert_eq!(third, None, "the third one is refused");

    let (listener, address) = server::bind("127.0.0.1:0").await.unwrap();
    let serve = internal::serve(listener, None, registry, CancellationToken::new());
    tokio::spawn(serve);
    let post = async |count| {
        let images = vec![ask(&upstream, ":1", &[]); count];
        let body = serde_json::to_vec(&held::Images { images }).unwrap();
        let url = format!("http://{address}{}", held::INTERNAL_PATH);
        let sent = reqwest::Client::new().post(url).body(body).send();
        sent.await.unwrap().status().as_u16()
    };
    assert_eq!(post(MAX_QUESTIONS).await, 200);
    assert_eq!(post(MAX_QUESTIONS + 1).await, 400);
}

#[tokio::test]
async fn a_slow_volume_leaves_unknown_what_is_held() {
    use crate::limits::{HELD_AT_ONCE, HELD_IMAGE_TIME, HELD_TIME, MANIFESTS_READ};
    let image = ImageBuilder::new(92).layer(1000).build();
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with(&image).await;
    let registry = fills(folder.path(), &upstream).await;
    registry.fill(&request(&upstream, ":1", &[])).await.unwrap();
    // No manifest is read.
    let readers = &registry.manifests.readers;
    let _slow = readers
        .acquire_many(MANIFESTS_READ.try_into().unwrap())
        .await;
    let by_digest = format!("@{}", image.digest);
    let questions = |count| vec![ask(&upstream, &by_digest, &[]); count];
    tokio::time::pause();
    for (count, expect) in [(HELD_AT_ONCE, HELD_IMAGE_TIME), (1000, HELD_TIME)] {
        let begun = tokio::time::Instant::now();
        let answers = registry.held(questions(count)).await.unwrap().answers;
        assert_eq!(answers, vec![Answer::Unknown; count]);
        let took = begun.elapsed();
        assert!(
            took >= expect && took < expect + Duration::from_secs(1),
            "{took:?}"
        );
    }
}
