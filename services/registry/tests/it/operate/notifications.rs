//! Notifications, received by a real listener.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_config::{NotificationAction, NotificationEndpoint, NotificationSettings};
use holdfast_runtime::{CancellationToken, server};
use holdfast_store::Hasher;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;

use super::harness::Process;

/// A receiver: what it was sent, and what it answers.
#[derive(Clone)]
struct Receiver {
    url: String,
    events: Arc<Mutex<Vec<Value>>>,
    headers: Arc<Mutex<Vec<http::HeaderMap>>>,
    status: Arc<Mutex<StatusCode>>,
}

impl Receiver {
    async fn start(status: StatusCode) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            url: format!("http://{}/events", listener.local_addr().unwrap()),
            events: Arc::default(),
            headers: Arc::default(),
            status: Arc::new(Mutex::new(status)),
        };
        let taken = receiver.clone();
        let service = server::service_fn(move |request: Request<server::RequestBody>| {
            let taken = taken.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let status = *taken.status.lock().unwrap();
                taken.headers.lock().unwrap().push(head.headers);
                if status.is_success() {
                    let envelope: Value = serde_json::from_slice(&body).unwrap();
                    let events = envelope["events"].as_array().unwrap().clone();
                    taken.events.lock().unwrap().extend(events);
                }
                let mut response = Response::new(Full::new(bytes::Bytes::new()));
                *response.status_mut() = status;
                Ok::<_, Infallible>(response)
            }
        });
        let limits = server::Limits::default();
        tokio::spawn(server::serve(
            listener,
            None,
            service,
            limits,
            CancellationToken::new(),
        ));
        receiver
    }

    fn endpoint(&self, name: &str) -> NotificationSettings {
        NotificationSettings::from(&NotificationEndpoint {
            name: name.to_owned(),
            url: self.url.clone(),
            headers: [("x-token".to_owned(), "hush".to_owned())].into(),
            ..NotificationEndpoint::default()
        })
    }

    fn told(&self) -> Vec<(String, String)> {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let events = self.events.lock().unwrap();
        events
            .iter()
            .map(|event| (word(&event["action"]), word(&event["target"]["repository"])))
            .collect()
    }

    async fn until(&self, count: usize) {
        let enough = || self.events.lock().unwrap().len() >= count;
        holdfast_testkit::eventually("events", Duration::from_secs(10), enough).await;
    }
}

async fn send(process: &Process, method: &str, path: &str, body: impl Into<String>) -> u16 {
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let url = format!("{}{path}", process.api);
    let request = process.client.request(method, url).body(body.into());
    request.send().await.unwrap().status().as_u16()
}

fn sha256(bytes: &str) -> String {
    Hasher::digest(holdfast_core::digest::Algorithm::Sha256, bytes.as_bytes()).to_string()
}

async fn push_blob(process: &Process, repo: &str, bytes: &str) -> String {
    let digest = sha256(bytes);
    let path = format!("/v2/{repo}/blobs/uploads/?digest={digest}");
    assert_eq!(send(process, "POST", &path, bytes).await, 201);
    digest
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_pulls_mounts_and_deletes_are_told_in_their_order() {
    let receiver = Receiver::start(StatusCode::OK).await;
    let endpoint = receiver.endpoint("audit");
    let process = Process::with(false, move |settings| settings.notifications.push(endpoint));
    process.until("/readyz", 200).await;
    let config = push_blob(&process, "team/app", "{}").await;
    let mount = format!("/v2/team/other/blobs/uploads/?mount={config}&from=team/app");
    assert_eq!(send(&process, "POST", &mount, "").await, 201);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"c/d","digest":"{config}","size":2}},"layers":[]}}"#
    );
    assert_eq!(
        send(
            &process,
            "PUT",
            "/v2/team/app/manifests/1",
            manifest.clone()
        )
        .await,
        201
    );
    assert_eq!(process.api("/v2/team/app/manifests/1").await.0, 200);
    assert_eq!(
        send(&process, "HEAD", "/v2/team/app/manifests/1", "").await,
        200
    );
    assert_eq!(
        process.api(&format!("/v2/team/app/blobs/{config}")).await.0,
        200
    );
    // What fails is not told.
    assert_eq!(process.api("/v2/team/app/manifests/2").await.0, 404);
    assert_eq!(
        send(&process, "DELETE", "/v2/team/app/manifests/1", "").await,
        202
    );
    receiver.until(6).await;
    let expect = [
        ("push", "team/app"),
        ("mount", "team/other"),
        ("push", "team/app"),
        ("pull", "team/app"),
        ("pull", "team/app"),
        ("delete", "team/app"),
    ];
    let expect = expect.map(|(action, repo)| (action.to_owned(), repo.to_owned()));
    assert_eq!(receiver.told(), expect);
    let events = receiver.events.lock().unwrap().clone();
    let (blob, mounted, pushed) = (&events[0], &events[1], &events[2]);
    assert_eq!(blob["target"]["size"], 2);
    assert_eq!(blob["target"]["mediaType"], "application/octet-stream");
    assert_eq!(mounted["target"]["fromRepository"], "team/app");
    let target = &pushed["target"];
    assert_eq!(target["tag"], "1");
    assert_eq!(target["digest"], sha256(&manifest));
    assert_eq!(target["size"], manifest.len());
    assert_eq!(target["length"], manifest.len());
    assert_eq!(
        target["mediaType"],
        "application/vnd.oci.image.manifest.v1+json"
    );
    assert_eq!(target["references"][0]["digest"], config);
    let url = format!(
        "{}/v2/team/app/manifests/{}",
        process.api,
        sha256(&manifest)
    );
    assert_eq!(target["url"], url);
    assert_eq!(pushed["request"]["method"], "PUT");
    assert!(pushed["source"]["instanceID"].is_string() && pushed["id"].is_string());
    assert!(pushed["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(events[3]["target"]["size"], manifest.len());
    let headers = receiver.headers.lock().unwrap()[0].clone();
    assert_eq!(
        headers["content-type"],
        "application/vnd.docker.distribution.events.v2+json"
    );
    assert_eq!(headers["x-token"], "hush");
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_endpoint_gets_all_later_in_order_and_at_most_its_queue() {
    let failing = Receiver::start(StatusCode::INTERNAL_SERVER_ERROR).await;
    let well = Receiver::start(StatusCode::ACCEPTED).await;
    let endpoints = [
        NotificationSettings {
            queue: 3,
            threshold: 2,
            backoff: Duration::from_millis(200),
            ..failing.endpoint("failing")
        },
        NotificationSettings {
            ignore_actions: vec![NotificationAction::Mount],
            ..well.endpoint("well")
        },
        NotificationSettings {
            ignore_media_types: vec!["application/octet-stream".to_owned()],
            ..well.endpoint("picky")
        },
    ];
    let process = Process::with(false, move |settings| {
        settings.notifications.extend(endpoints);
    });
    process.until("/readyz", 200).await;
    for number in 0..5 {
        push_blob(&process, &format!("team/app{number}"), "{}").await;
    }
    // Nobody waited for the one that fails.
    well.until(5).await;
    assert_eq!(well.events.lock().unwrap().len(), 5, "picky ones got none");
    let number = |text: &str, line: &str| {
        text.lines()
            .find_map(|found| found.strip_prefix(line)?.trim().parse::<f64>().ok())
            .unwrap_or_else(|| panic!("no {line} in {text}"))
    };
    let text = process.admin("/metrics").await.1;
    let events = r#"registry_notifications_events_total{type="Dropped",endpoint="failing"}"#;
    assert!((number(&text, events) - 2.0).abs() < 0.1);
    let pending = r#"registry_notifications_pending_total{endpoint="failing"}"#;
    assert!((number(&text, pending) - 3.0).abs() < 0.1);
    let refused = r#"registry_notifications_status_total{code="500 Internal Server Error",endpoint="failing"}"#;
    assert!(number(&text, refused) >= 1.0);
    *failing.status.lock().unwrap() = StatusCode::OK;
    failing.until(3).await;
    let expect: Vec<_> = (0..3)
        .map(|number| ("push".to_owned(), format!("team/app{number}")))
        .collect();
    assert_eq!(failing.told(), expect);
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_told_before_the_process_ends() {
    let receiver = Receiver::start(StatusCode::SERVICE_UNAVAILABLE).await;
    let endpoint = NotificationSettings {
        threshold: 1,
        backoff: Duration::from_secs(600),
        ..receiver.endpoint("slow")
    };
    let process = Process::with(false, move |settings| settings.notifications.push(endpoint));
    process.until("/readyz", 200).await;
    push_blob(&process, "team/app", "{}").await;
    let failed = || !receiver.headers.lock().unwrap().is_empty();
    holdfast_testkit::eventually("a first attempt", Duration::from_secs(5), failed).await;
    *receiver.status.lock().unwrap() = StatusCode::OK;
    process.end().await;
    assert_eq!(receiver.told().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_secret_of_headers_is_read_again_and_a_bad_one_is_not() {
    let receiver = Receiver::start(StatusCode::OK).await;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("Authorization", "Bearer one\n");
    // What the chart makes of the values' headers is mounted like a Secret of the operator's.
    let values = tempfile::tempdir().unwrap();
    std::fs::write(values.path().join("X-Source"), "edge-1").unwrap();
    let endpoint = NotificationSettings {
        headers_folders: vec![values.path().to_owned(), folder.path().to_owned()],
        ..receiver.endpoint("audit")
    };
    let process = Process::with(false, move |settings| settings.notifications.push(endpoint));
    process.until("/readyz", 200).await;
    let said = || {
        let headers = receiver.headers.lock().unwrap();
        let last = headers
            .last()
            .map(|headers| headers["authorization"].clone());
        last.map(|value| value.to_str().unwrap().to_owned())
    };
    push_blob(&process, "team/app", "{}").await;
    receiver.until(1).await;
    assert_eq!(said().as_deref(), Some("Bearer one"));
    let first = receiver.headers.lock().unwrap()[0].clone();
    assert_eq!(first["x-source"], "edge-1");

    write("Authorization", "Bearer two");
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while said().as_deref() != Some("Bearer two") {
        assert!(std::time::Instant::now() < deadline, "{:?}", said());
        push_blob(&process, "team/app", "{}").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let gauge = r#"holdfast_file_reload_failing{what="notification-headers"}"#;
    let failing = async || {
        let text = process.admin("/metrics").await.1;
        text.contains(&format!("{gauge} 1"))
    };
    assert!(!failing().await);
    write("not a header", "x");
    while !failing().await {
        assert!(std::time::Instant::now() < deadline, "the gauge stays");
        push_blob(&process, "team/app", "{}").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(said().as_deref(), Some("Bearer two"), "the last good ones");
    process.end().await;
}
