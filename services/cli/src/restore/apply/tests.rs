//! The doing, against an API server of a few lines.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use kube::client::Body;

use super::*;

/// An API server with these lists of pods, one after the other, the last one for ever; where one is
/// null it fails. Everything else it takes as it comes.
fn server(lists: Vec<Value>) -> (Client, Arc<Mutex<VecDeque<Value>>>) {
    holdfast_runtime::tls::install_crypto_provider();
    let rest = Arc::new(Mutex::new(VecDeque::from(lists)));
    let shown = Arc::clone(&rest);
    let service = tower::service_fn(move |request: Request<Body>| {
        let mut lists = shown.lock().unwrap();
        let is_list = request.method() == Method::GET && request.uri().path().ends_with("/pods");
        let body = if !is_list {
            json!({})
        } else if lists.len() > 1 {
            lists.pop_front().unwrap()
        } else {
            lists[0].clone()
        };
        let refused = json!({"kind": "Status", "code": 500, "message": "", "reason": ""});
        let (status, body) = if body.is_null() {
            (500, refused)
        } else {
            (200, body)
        };
        let body = Full::new(Bytes::from(body.to_string()));
        let response = Response::builder().status(status).body(body).unwrap();
        std::future::ready(Ok::<_, Infallible>(response))
    });
    (Client::new(service, "default"), rest)
}

/// A pod of the ReplicaSet `web`.
fn pod(name: &str, image: &str, ready: bool) -> Value {
    let owner = json!({"kind": "ReplicaSet", "name": "web", "uid": "owner", "controller": true});
    json!({
        "metadata": {"namespace": "shop", "name": name, "uid": name, "ownerReferences": [owner]},
        "spec": {"containers": [{"name": "c", "image": image}]},
        "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    })
}

fn list(pods: &[Value]) -> Value {
    json!({"metadata": {}, "items": pods})
}

// Between the end of a pod and the beginning of its successor an owner has no pod at all, and a
// list that fails says nothing.
#[tokio::test(start_paused = true)]
async fn the_successor_is_waited_for_while_nothing_is_to_be_seen_of_it() {
    let before = pod("old", "10.96.0.50/r.io/a:1", true);
    let found = plan::find(&before, &["10.96.0.50".to_owned()], false).unwrap();
    let (client, rest) = server(vec![
        list(&[before]),
        list(&[]),
        Value::Null,
        list(&[pod("new", "r.io/a:1", false)]),
        list(&[pod("new", "r.io/a:1", true)]),
        json!("not asked for again"),
    ]);
    let pacing = Pacing {
        per_minute: 600,
        wait: true,
        deadline: now() + Duration::from_secs(60),
    };
    let outcome = execute(&client, vec![found], pacing, |_, _| {}).await;
    assert_eq!((outcome.restored.len(), outcome.left.len()), (1, 0));
    assert_eq!(
        rest.lock().unwrap().len(),
        1,
        "lists that were not asked for"
    );
}
