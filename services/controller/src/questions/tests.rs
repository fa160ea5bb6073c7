//! Questions over a connection.

use super::*;
use crate::fixtures::{artifact, context, sync};
use holdfast_api::questions::held::Images;
use holdfast_api::report::{NodeReport, ReportedImage};
use holdfast_cluster_index::Change;
use holdfast_cluster_model::NodeFacts;
use serde_json::{Value, json};
use std::sync::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// Starts a registry that holds the images of the host `held`, and remembers what it was asked.
async fn registry(asked: Arc<Mutex<Vec<Image>>>) -> fill::Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let service = server::service_fn(move |request: Request<RequestBody>| {
        let asked = Arc::clone(&asked);
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let Images { images } = serde_json::from_slice(&body).unwrap();
            let answer = |image: &Image| {
                if image.source.starts_with("held") {
                    Answer::Yes
                } else {
                    Answer::No
                }
            };
            let answers = images.iter().map(answer).collect();
            asked.lock().unwrap().extend(images);
            Ok::<_, Infallible>(respond(Ok(Answers { answers })))
        }
    });
    let stop = CancellationToken::new();
    tokio::spawn(server::serve(listener, None, service, limits(), stop));
    fill::Client::new(reqwest::Client::new(), &url)
}

async fn post(url: &str, path: &str, body: impl Into<reqwest::Body>) -> (u16, String) {
    let post = reqwest::Client::new().post(format!("{url}{path}"));
    let answer = post.body(body).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn the_leader_answers_questions_and_another_replica_refuses_them() {
    let (context, asked) = (context(), Arc::<Mutex<Vec<Image>>>::default());
    let client = registry(Arc::clone(&asked)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    tokio::spawn(serve(listener, context.clone(), Some(client), stop));
    let sources = json!({"sources": ["held/a:1", "lost/a:1", "held/b:1"]}).to_string();
    let (status, text) = post(&url, held::PATH, sources.clone()).await;
    assert_eq!(status, 503);
    assert!(text.contains("does not lead"), "{text}");

    sync(&context.index);
    let node = NodeFacts {
        platform: Some("linux/amd64".to_owned()),
        ..NodeFacts::default()
    };
    let name = |name: &str| (String::new(), name.to_owned());
    context
        .index
        .nodes
        .write()
        .apply(Change::Set(name("n"), node));
    let mut object = artifact("held/b:1", "Copied", 1);
    object.spec.platforms = Some(vec!["linux/arm64".to_owned()]);
    let change = Change::Set(name("b"), Arc::new(object));
    context.index.artifacts.write().apply(change);
    let (status, text) = post(&url, held::PATH, sources).await;
    assert_eq!(
        (status, text.as_str()),
        (200, r#"{"answers":["yes","no","yes"]}"#)
    );
    let platforms: Vec<Vec<String>> = asked
        .lock()
        .unwrap()
        .iter()
        .map(|image| image.platforms.clone())
        .collect();
    assert_eq!(
        platforms,
        [["linux/amd64"], ["linux/amd64"], ["linux/arm64"]]
    );

    let report = NodeReport {
        node: "n".to_owned(),
        image_ids: vec![ReportedImage {
            id: "sha256:aa".to_owned(),
            names: vec!["docker.io/library/nginx:1".to_owned()],
            ..ReportedImage::default()
        }],
        ..NodeReport::default()
    };
    let now = Instant::now();
    context.reports.keep(report, "digest", "uid", now).unwrap();
    let container = |node: &str, image: &str| -> Value {
        json!({"node": node, "image": image, "namespace": "apps", "serviceAccount": "default"})
    };
    let containers = [
        container("n", "nginx:1"),
        container("n", "nginx:2"),
        container("other", "nginx:1"),
    ];
    let starts = json!({ "containers": containers }).to_string();
    let (status, text) = post(&url, starts::PATH, starts).await;
    assert_eq!(
        (status, text.as_str()),
        (200, r#"{"answers":["yes","no","unknown"]}"#)
    );

    let many = |count| json!({"sources": vec!["held/a:1"; count]}).to_string();
    for (path, body, expect) in [
        (held::PATH, many(MAX_QUESTIONS), 200),
        (held::PATH, many(MAX_QUESTIONS + 1), 400),
        (held::PATH, "{}".to_owned(), 400),
        (starts::PATH, " ".repeat(MAX_BYTES + 1), 413),
        ("/metrics", String::new(), 404),
    ] {
        assert_eq!(post(&url, path, body).await.0, expect, "{path}");
    }
    let got = reqwest::get(format!("{url}{}", held::PATH)).await.unwrap();
    assert_eq!(got.status(), 405);
}

#[tokio::test]
async fn further_requests_are_refused_while_two_run() {
    let context = context();
    sync(&context.index);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    tokio::spawn(serve(listener, context, None, stop));
    let mut slow = Vec::new();
    for _ in 0..REQUESTS {
        let mut connection = TcpStream::connect(address).await.unwrap();
        let head = format!("POST {} HTTP/1.1\r\nHost: a\r\n", starts::PATH);
        let begun = format!("{head}Content-Length: 20\r\n\r\n{{");
        connection.write_all(begun.as_bytes()).await.unwrap();
        slow.push(connection);
    }
    let url = format!("http://{address}");
    let ask = async || post(&url, starts::PATH, r#"{"containers":[]}"#).await.0;
    let refused = async {
        while ask().await != 429 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), refused)
        .await
        .unwrap();
    drop(slow);
    let answered = async {
        while ask().await != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), answered)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_registry_that_does_not_answer_leaves_everything_unknown() {
    let client = fill::Client::new(reqwest::Client::new(), "http://127.0.0.1:1");
    let images = vec![Image::default(); 3];
    assert_eq!(client.held(&images).await, [Answer::Unknown; 3]);
}
