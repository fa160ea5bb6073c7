//! What the loop requests from the API server while pods come and go.

use super::*;
use holdfast_cluster_index::{Change, WatchCache};
use holdfast_cluster_model::{NodeFacts, PodFacts};
use holdfast_runtime::CancellationToken;
use holdfast_runtime::health::Health;
use holdfast_runtime::supervise::Supervisor;
use http::{Method, Request, Response};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::client::Body;
use kube::runtime::watcher::Event;
use parking_lot::RwLock;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// A leader's loop on an API server that holds what is written to it.
struct Loop {
    context: Context,
    reads: Arc<Mutex<usize>>,
    stop: CancellationToken,
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn named<K: serde::de::DeserializeOwned>(name: &str) -> K {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "apps"}})).unwrap()
}

fn put<K: ResourceExt, V: PartialEq + Clone>(
    mirror: &RwLock<WatchCache<V>>,
    event: Event<K>,
    facts: &V,
) {
    let mut mirror = mirror.write();
    mirror.apply(Change::of(event, |_| facts.clone()));
}

impl Loop {
    /// One that knows an empty cluster, and has said so.
    async fn settled() -> Self {
        holdfast_runtime::tls::install_crypto_provider();
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let reads = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&reads);
        tokio::spawn(async move {
            let namespace = "/api/v1/namespaces/n";
            let mut objects: BTreeMap<String, Value> = [
                (
                    format!("{namespace}/services/holdfast-registry"),
                    json!({"spec": {"clusterIP": "10.96.0.50"}}),
                ),
                (
                    format!("{namespace}/secrets/holdfast-registry-auth"),
                    json!({"data": {"node-username": "bg==", "node-password": "cA=="}}),
                ),
            ]
            .into();
            while let Some((request, reply)) = handle.next_request().await {
                let (method, path) = (request.method().clone(), request.uri().path().to_owned());
                let bytes = request.into_body().collect_bytes().await.unwrap();
                let answer = if method == Method::GET {
                    *counted.lock().unwrap() += 1;
                    objects.get(&path).cloned()
                } else {
                    let object: Value = serde_json::from_slice(&bytes).unwrap();
                    let name = object["metadata"]["name"].as_str().unwrap();
                    let key = format!("{}/{name}", path.trim_end_matches(&format!("/{name}")));
                    objects.insert(key, object.clone());
                    Some(object)
                };
                let missing = json!({"kind": "Status", "status": "Failure", "code": 404, "message": "", "reason": "NotFound"});
                let response = Response::builder().status(if answer.is_some() { 200 } else { 404 });
                let body = answer.unwrap_or(missing).to_string().into_bytes();
                reply.send_response(response.body(Body::from(body)).unwrap());
            }
        });
        let document = json!({
            "release": {"name": "holdfast", "namespace": "n", "fullname": "holdfast", "version": "0.1.0"},
            "values": {},
        });
        let config = holdfast_config::Config::parse(&document.to_string()).unwrap();
        let mut metrics = holdfast_runtime::metrics::registry("controller");
        let client = kube::Client::new(service, "default");
        let context = Context::new(client, config, crate::Metrics::register(&mut metrics)).unwrap();
        for event in [Event::<Pod>::Init, Event::InitDone] {
            put(&context.index.pods, event, &PodFacts::default());
        }
        for event in [Event::<Node>::Init, Event::InitDone] {
            put(&context.index.nodes, event, &NodeFacts::default());
        }
        context
            .issued
            .bundle
            .send_replace("an authority".to_owned());
        let stop = CancellationToken::new();
        let supervisor = Supervisor::new(Health::default(), &mut metrics, stop.clone());
        let shared = context.clone();
        supervisor.spawn("state", Duration::from_secs(60), move |heart| {
            run(shared.clone(), heart)
        });
        let this = Self {
            context,
            reads,
            stop,
        };
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(this.context.settled.load(Ordering::Relaxed));
        this
    }

    fn pod(&self, name: &str, address: &str) {
        let facts = PodFacts {
            uid: name.to_owned(),
            alive: true,
            addresses: [address.to_owned()].into(),
            ..PodFacts::default()
        };
        let event = Event::Apply(named::<Pod>(name));
        put(&self.context.index.pods, event, &facts);
        self.context.index.notify();
    }

    fn gone(&self, name: &str) {
        let event = Event::Delete(named::<Pod>(name));
        put(&self.context.index.pods, event, &PodFacts::default());
        self.context.index.notify();
    }

    fn reads(&self) -> usize {
        *self.reads.lock().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn pods_that_come_and_go_without_a_difference_cost_no_request() {
    let state = Loop::settled().await;
    state.pod("pod-0", "10.96.0.50");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = state.reads();
    for number in 0..300 {
        state.pod(&format!("pod-{}", number + 1), "10.96.0.50");
        state.gone(&format!("pod-{number}"));
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    // Eighteen seconds hold one or two looks without a reason, of four objects.
    let reads = state.reads() - before;
    assert!((4..=8).contains(&reads), "{reads} reads");
}

#[tokio::test(start_paused = true)]
async fn what_makes_a_difference_is_looked_at_at_once() {
    let state = Loop::settled().await;
    let index = &state.context.index;
    let changes: [(&str, &dyn Fn()); 4] = [
        ("an address", &|| state.pod("pod", "10.96.0.7")),
        ("a node", &|| {
            let facts = NodeFacts {
                ready: true,
                ..NodeFacts::default()
            };
            put(&index.nodes, Event::Apply(named::<Node>("node")), &facts);
            index.notify();
        }),
        ("an authority", &|| {
            let bundle = "another authority".to_owned();
            state.context.issued.bundle.send_replace(bundle);
        }),
        ("a source left alone", &|| {
            let entry = Exclusion {
                namespace: "apps".to_owned(),
                source: "registry.example/app:1".to_owned(),
                reason: "Unauthorized".to_owned(),
                since: Time(jiff::Timestamp::UNIX_EPOCH),
            };
            let list = Some(vec![entry]);
            state.context.healing.excluded.send_replace(list);
        }),
    ];
    for (what, change) in changes {
        let before = state.reads();
        change();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(state.reads() > before, "{what}");
    }
}
