//! Clients that read a blob while it arrives, told its size by their own image's manifest: a wrong
//! size spoils what its author's clients get, and nothing else.

use std::time::Duration;

use futures::future::join_all;
use holdfast_testkit::{Fault, Image, ImageBuilder, Upstream, eventually, faults::Kind, image};
use reqwest::{Client, Response, StatusCode, header};

use crate::replica::{Replica, Site};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: usize = 2_000_000;
/// What arrives before the upstream pauses.
const BEGUN: u64 = 500_000;

/// The image as somebody publishes it who gives its first layer another size.
fn claims(image: &Image, size: usize) -> Image {
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.bytes()).unwrap();
    manifest["layers"][0]["size"] = size.into();
    let bytes = manifest.to_string();
    let digest = image::digest_of(bytes.as_bytes());
    Image {
        manifests: [(digest.clone(), (image.media_type.clone(), bytes.into()))].into(),
        digest,
        ..image.clone()
    }
}

struct Scene {
    upstream: Upstream,
    image: Image,
    replicas: [Replica; 2],
    http: Client,
    _site: Site,
}

impl Scene {
    /// Two replicas, and an upstream that pauses in the middle of the layer. The first replica
    /// pulls both images, the right one first, so that its copy is under way.
    async fn start(strange: (&str, &str), size: usize) -> Self {
        let image = ImageBuilder::new(97).layer(SIZE).build();
        let upstream = Upstream::start().await;
        upstream.push("team/app", "1", &image);
        upstream.push(strange.0, strange.1, &claims(&image, size));
        let layer = &image.layers[0];
        let after = Some(BEGUN);
        upstream
            .faults()
            .set(Fault::new(Kind::Hang { after }).on(&format!("GET /v2/team/app/blobs/{layer}")));
        let site = Site::new();
        let replicas = [
            site.replica(&upstream, "one").await,
            site.replica(&upstream, "two").await,
        ];
        let http = Client::new();
        let scene = Self {
            upstream,
            image,
            replicas,
            http,
            _site: site,
        };
        for image in [("team/app", "1"), strange] {
            scene.pull(0, image).await;
            eventually("the copy is under way", LIMIT, || {
                scene.upstream.sent(&scene.image.layers[0]) >= BEGUN
            })
            .await;
        }
        scene
    }

    /// Pulls the manifest of an image.
    async fn pull(&self, replica: usize, (name, tag): (&str, &str)) {
        let rest = format!("manifests/{tag}");
        let answer = self.get(&self.replicas[replica], name, &rest, None).await;
        assert_eq!(answer.status(), StatusCode::OK, "{name}:{tag}");
    }

    async fn get(
        &self,
        replica: &Replica,
        name: &str,
        rest: &str,
        range: Option<&str>,
    ) -> Response {
        let host = self.upstream.host().replace(':', "_");
        let mut get = self
            .http
            .get(format!("{}/v2/{host}/{name}/{rest}", replica.url));
        if let Some(range) = range {
            get = get.header(header::RANGE, range);
        }
        get.send().await.unwrap()
    }

    async fn layer(&self, replica: &Replica, name: &str, range: Option<&str>) -> Response {
        let rest = format!("blobs/{}", self.image.layers[0]);
        self.get(replica, name, &rest, range).await
    }

    fn bytes(&self) -> &[u8] {
        &self.image.blobs[&self.image.layers[0]]
    }

    /// The blob is whole at both replicas, and nothing that came was fetched again.
    async fn assert_nothing_is_lost(&self, names: &[&str]) {
        for replica in &self.replicas {
            for name in names {
                let answer = self.layer(replica, name, None).await;
                assert_eq!(answer.status(), StatusCode::OK, "{name}");
                assert_eq!(answer.bytes().await.unwrap(), self.bytes(), "{name}");
            }
        }
        let all = self.upstream.requests().all();
        let of_layer = all.iter().filter(|request| {
            request.method == http::Method::GET && request.path.ends_with(&self.image.layers[0])
        });
        for request in of_layer.skip(1) {
            let range = request.range.as_deref().unwrap_or("all of it");
            let first = range.trim_start_matches("bytes=").trim_end_matches('-');
            let first: u64 = first.parse().unwrap_or(0);
            assert!(first >= BEGUN, "{} {range}", request.path);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_clients_of_a_growing_blob_only_a_wrong_size_ends_short() {
    const EARLY: &str = "bytes=1000-1999";
    // Less than is there, less than will come, and more.
    for size in [3000, SIZE - 1, SIZE + 1000] {
        let scene = Scene::start(("stranger/x", "1"), size).await;
        scene.pull(1, ("team/app", "1")).await;
        scene.pull(1, ("stranger/x", "1")).await;
        let (mut right, mut wrong) = (Vec::new(), Vec::new());
        // The replica that copies, and one that relays.
        for replica in &scene.replicas {
            for range in [None, Some(EARLY)] {
                right.push(scene.layer(replica, "team/app", range).await);
                wrong.push(scene.layer(replica, "stranger/x", range).await);
            }
        }
        let length = |answer: &Response| answer.content_length().unwrap();
        let told: Vec<_> = right.iter().map(length).collect();
        assert_eq!(told, [SIZE as u64, 1000, SIZE as u64, 1000]);
        let told: Vec<_> = wrong.iter().map(length).collect();
        assert_eq!(told, [size as u64, 1000, size as u64, 1000]);
        let right = join_all(right.into_iter().map(Response::bytes));
        let wrong = join_all(wrong.into_iter().map(Response::bytes));
        let go_on = async { scene.upstream.faults().clear() };
        let (right, wrong, ()) = tokio::join!(right, wrong, go_on);
        for (number, bytes) in right.into_iter().enumerate() {
            let bytes = bytes.unwrap_or_else(|error| panic!("{size}, {number}: {error}"));
            let expect = match number % 2 {
                0 => scene.bytes(),
                _ => &scene.bytes()[1000..2000],
            };
            assert!(bytes == expect, "{size}, {number}: other bytes");
        }
        for (number, bytes) in wrong.into_iter().enumerate() {
            assert!(bytes.is_err(), "{size}, {number}: a clean end");
        }
        // Behind the proof the claim is of no account.
        let names = ["team/app", "stranger/x"];
        scene.assert_nothing_is_lost(&names).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_size_on_which_manifests_disagree_is_told_to_no_client() {
    for size in [3000, SIZE + 1000] {
        let scene = Scene::start(("team/app", "2"), size).await;
        let relay = &scene.replicas[1];
        // Who knew the wrong one alone is told that.
        scene.pull(1, ("team/app", "2")).await;
        let wrong = scene.layer(relay, "team/app", None).await;
        assert_eq!(wrong.content_length(), Some(size as u64));
        scene.pull(1, ("team/app", "1")).await;
        let mut answers = Vec::new();
        for replica in &scene.replicas {
            let answer = scene.layer(replica, "team/app", None).await;
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(answer.content_length(), None, "{size}");
            answers.push(answer.bytes());
        }
        let go_on = async { scene.upstream.faults().clear() };
        let (answers, wrong, ()) = tokio::join!(join_all(answers), wrong.bytes(), go_on);
        assert!(wrong.is_err(), "{size}: a clean end");
        for bytes in answers {
            assert!(bytes.unwrap() == scene.bytes(), "{size}: other bytes");
        }
        scene.assert_nothing_is_lost(&["team/app"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_size_that_comes_first_is_refused_with_both_sizes() {
    let image = ImageBuilder::new(99).layer(SIZE).build();
    let layer = &image.layers[0];
    for size in [3000, SIZE + 1000] {
        let upstream = Upstream::start().await;
        upstream.push("team/app", "1", &image);
        upstream.push("stranger/x", "1", &claims(&image, size));
        let site = Site::new();
        let replica = site.replica(&upstream, "one").await;
        let host = upstream.host().replace(':', "_");
        let get = async |rest: &str| {
            let url = format!("{}/v2/{host}/{rest}", replica.url);
            let answer = reqwest::get(url).await.unwrap();
            (answer.status(), answer.bytes().await.unwrap())
        };
        assert_eq!(get("stranger/x/manifests/1").await.0, StatusCode::OK);
        let (status, text) = get(&format!("stranger/x/blobs/{layer}")).await;
        let text = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{text}");
        for number in [size, SIZE] {
            assert!(text.contains(&number.to_string()), "no {number} in {text}");
        }
        assert_eq!(get("team/app/manifests/1").await.0, StatusCode::OK);
        let (status, bytes) = get(&format!("team/app/blobs/{layer}")).await;
        assert_eq!(status, StatusCode::OK);
        assert!(bytes == image.blobs[layer], "{size}: other bytes");
    }
}
