//! The Artifacts of `status --watch`: one list, then a watch.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use holdfast_api::Artifact;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Time after a failed watch until the next list.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Seconds after which the API server ends a watch at the latest. The watch is then renewed.
const MAX_WATCH_SECONDS: u32 = 20;

/// Whether the store holds what the API server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The first list is not complete.
    Starting,
    Current,
    /// The watch failed. It ends for good if the caller may not watch Artifacts.
    Interrupted,
}

/// A watch of Artifacts. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct ArtifactWatch {
    store: Store<Artifact>,
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
}

impl Drop for ArtifactWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ArtifactWatch {
    /// Watches the Artifacts of one namespace or of all, with these labels. `request_timeout` is
    /// how long a connection may be silent; zero means no limit.
    pub(super) fn start(
        client: Client,
        namespace: Option<&str>,
        selector: &str,
        request_timeout: Duration,
    ) -> Self {
        let api = match namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        };
        let mut config = watcher::Config::default().timeout(watch_seconds(request_timeout));
        if !selector.is_empty() {
            config = config.labels(selector);
        }
        let (store, writer) = reflector::store();
        let (sender, state) = watch::channel(State::Starting);
        let task = tokio::spawn(follow(api, config, writer, sender));
        Self { store, state, task }
    }

    /// The Artifacts by namespace and name, once the first list is complete; `None` while the watch
    /// is interrupted.
    pub(super) async fn current(&self) -> Option<Vec<Artifact>> {
        let mut state = self.state.clone();
        let state = *state
            .wait_for(|state| *state != State::Starting)
            .await
            .ok()?;
        if state != State::Current {
            return None;
        }
        let mut artifacts = self.store.state();
        artifacts.sort_by(|one, other| {
            let [one, other] = [&one.metadata, &other.metadata];
            (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name))
        });
        let copies = artifacts.iter().map(|artifact| Artifact::clone(artifact));
        Some(copies.collect())
    }
}

/// The API server ends a watch without events before the connection counts as silent.
fn watch_seconds(request_timeout: Duration) -> u32 {
    if request_timeout.is_zero() {
        return MAX_WATCH_SECONDS;
    }
    let half = u32::try_from(request_timeout.as_secs() / 2).unwrap_or(MAX_WATCH_SECONDS);
    // The API server takes zero for its own default, which is half an hour or more.
    half.clamp(1, MAX_WATCH_SECONDS)
}

/// Keeps the store current. A watch that failed begins with a list again, except where the caller
/// may not watch: a list for each check then suffices.
async fn follow(
    api: Api<Artifact>,
    config: watcher::Config,
    mut store: Writer<Artifact>,
    state: watch::Sender<State>,
) {
    loop {
        let mut events = pin!(watcher(api.clone(), config.clone()));
        let mut is_forbidden = false;
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    is_forbidden = code(&error) == Some(403);
                    break;
                }
            };
            let is_list = matches!(event, Event::Init | Event::InitApply(_));
            store.apply_watcher_event(&event.modify(|it| it.managed_fields_mut().clear()));
            if !is_list {
                state.send_replace(State::Current);
            }
        }
        state.send_replace(State::Interrupted);
        if is_forbidden {
            return;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// The status code with which the API server refused a list or a watch.
fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// An API server with three Artifacts, and how often they were listed. A watch is refused, or
    /// lasts for ever.
    fn server(may_watch: bool) -> (Client, Arc<AtomicUsize>) {
        holdfast_runtime::tls::install_crypto_provider();
        let lists = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&lists);
        let service = tower::service_fn(move |request: Request<Body>| {
            let is_watch = request.uri().query().unwrap_or_default().contains("watch=");
            let item = |namespace: &str, name: &str| {
                json!({
                    "apiVersion": "holdfast.dev/v1alpha1", "kind": "Artifact",
                    "metadata": {"namespace": namespace, "name": name, "resourceVersion": "1"},
                    "spec": {"sourceArtifact": "registry.example/a:1"},
                })
            };
            let (code, body) = if is_watch {
                (
                    403,
                    json!({"kind": "Status", "code": 403, "message": "no", "reason": "Forbidden"}),
                )
            } else {
                counter.fetch_add(1, Ordering::Relaxed);
                let items = [item("b", "a"), item("a", "z"), item("a", "b")];
                (
                    200,
                    json!({"metadata": {"resourceVersion": "1"}, "items": items}),
                )
            };
            async move {
                if is_watch && may_watch {
                    std::future::pending::<()>().await;
                }
                let body = Body::from(body.to_string().into_bytes());
                let response = Response::builder().status(code).body(body).unwrap();
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        (Client::new(service, "default"), lists)
    }

    #[tokio::test(start_paused = true)]
    async fn artifacts_are_sorted_by_namespace_and_name() {
        let (client, _) = server(true);
        let watch = ArtifactWatch::start(client, None, "", Duration::ZERO);
        let artifacts = watch.current().await.unwrap();
        let names = artifacts.iter().map(|artifact| {
            let namespace = artifact.metadata.namespace.clone().unwrap();
            format!("{namespace}/{}", artifact.metadata.name.clone().unwrap())
        });
        assert_eq!(names.collect::<Vec<_>>(), ["a/b", "a/z", "b/a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_who_may_not_watch_causes_no_further_lists() {
        let (client, lists) = server(false);
        let watch = ArtifactWatch::start(client, None, "", Duration::ZERO);
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(watch.task.is_finished());
        assert!(watch.current().await.is_none());
        assert_eq!(lists.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_watch_ends_before_the_connection_counts_as_silent() {
        for (request_timeout, expect) in
            [(0, 20), (1, 1), (2, 1), (10, 5), (60, 20), (u64::MAX, 20)]
        {
            let seconds = watch_seconds(Duration::from_secs(request_timeout));
            assert_eq!(seconds, expect, "{request_timeout}");
        }
    }
}
