//! Half-finished uploads across a change of registries, under the same secret.

use holdfast_testkit::image::{digest_of, random_bytes};
use reqwest::{Method, StatusCode};

use super::{
    content::Client,
    ours::{self, Ours},
    theirs::{GENERATIONS, Generation, Theirs},
};

/// Who serves the volume at the moment.
enum Serving {
    Ours(#[expect(dead_code, reason = "serves until dropped")] Ours),
    Theirs(#[expect(dead_code, reason = "serves until dropped")] Theirs),
}

async fn serve(generation: Option<Generation>, root: &std::path::Path) -> (Serving, Client) {
    if let Some(generation) = generation {
        let theirs = generation.serve(root);
        let client = Client::new(&theirs.url);
        return (Serving::Theirs(theirs), client);
    }
    let ours = ours::serve(root).await;
    let client = Client::new(&ours.url);
    (Serving::Ours(ours), client)
}

// SPEC 16, SPEC 55
#[tokio::test(flavor = "multi_thread")]
async fn uploads_go_on_across_every_change_of_registries() {
    let bytes = random_bytes(9, 300_000);
    let digest = digest_of(&bytes);
    for generation in GENERATIONS {
        let theirs = Some(generation);
        for order in [
            vec![theirs, None],
            vec![None, theirs],
            vec![theirs, None, theirs],
            vec![None, theirs, None],
            vec![theirs, None, None, theirs, theirs, None],
        ] {
            let root = tempfile::tempdir().unwrap();
            let pieces: Vec<&[u8]> = bytes.chunks(bytes.len().div_ceil(order.len())).collect();
            let mut at = String::new();
            for (number, (registry, piece)) in order.iter().zip(&pieces).enumerate() {
                let (_serving, client) = serve(*registry, root.path()).await;
                if number == 0 {
                    at = client.begin("team/app").await;
                }
                let status = client.send(Method::GET, &at, "", "").await;
                assert_eq!(
                    status.status(),
                    StatusCode::NO_CONTENT,
                    "{order:?} {number}"
                );
                if number + 1 < order.len() {
                    at = client.go_on(&at, piece).await;
                    continue;
                }
                let answer = client.finish(&at, &digest, piece).await;
                let status = answer.status();
                assert_eq!(
                    status,
                    StatusCode::CREATED,
                    "{order:?}: {}",
                    answer.text().await.unwrap()
                );
                let blob = client.get(&format!("/v2/team/app/blobs/{digest}")).await;
                assert_eq!(blob.bytes().await.unwrap(), bytes, "{order:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_another_secret_signed_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let at = {
        let theirs = Generation::Three.serve(root.path());
        let client = Client::new(&theirs.url);
        let at = client.begin("team/app").await;
        client.go_on(&at, b"half").await
    };
    let ours = ours::serve_with(root.path(), "another secret").await;
    let answer = Client::new(&ours.url)
        .send(Method::PATCH, &at, "application/octet-stream", "more")
        .await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
}

/// Distribution trusts a hash state that it finds for the size of the file. One that it wrote for
/// bytes that are gone would let it store other bytes under their digest.
#[tokio::test(flavor = "multi_thread")]
async fn hash_states_of_distribution_do_not_outlive_their_bytes() {
    let (honest, other) = (random_bytes(1, 10_000), random_bytes(2, 10_000));
    let digest = digest_of(&honest);
    for generation in GENERATIONS {
        let root = tempfile::tempdir().unwrap();
        let begin = {
            let theirs = generation.serve(root.path());
            let client = Client::new(&theirs.url);
            let begin = client.begin("team/app").await;
            client.go_on(&begin, &honest).await;
            begin
        };
        // The reply was lost: the client sends its first piece again, and this time other bytes.
        let at = {
            let ours = ours::serve(root.path()).await;
            Client::new(&ours.url).go_on(&begin, &other).await
        };
        let theirs = generation.serve(root.path());
        let client = Client::new(&theirs.url);
        let answer = client.finish(&at, &digest, b"").await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{generation:?}");
        let blob = client.get(&format!("/v2/team/app/blobs/{digest}")).await;
        assert_eq!(blob.status(), StatusCode::NOT_FOUND, "{generation:?}");
    }
}
