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
/// Seconds after which the API server ends a watch, which is then renewed. It is shorter than the
/// time that a connection may be silent (`--request-timeout`).
const WATCH_SECONDS: u32 = 20;

/// Whether the store holds what the API server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The first list is not complete.
    Starting,
    Current,
    /// The watch failed, or the caller may not watch Artifacts.
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
    /// Watches the Artifacts of one namespace or of all, with these labels.
    pub(super) fn start(client: Client, namespace: Option<&str>, selector: &str) -> Self {
        let api = match namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        };
        let mut config = watcher::Config::default().timeout(WATCH_SECONDS);
        if !selector.is_empty() {
            config = config.labels(selector);
        }
        let (store, writer) = reflector::store();
        let (sender, state) = watch::channel(State::Starting);
        let task = tokio::spawn(follow(api, config, writer, sender));
        Self { store, state, task }
    }

    /// The Artifacts, once the first list is complete; `None` while the watch is interrupted.
    pub(super) async fn current(&self) -> Option<Vec<Artifact>> {
        let mut state = self.state.clone();
        let state = *state
            .wait_for(|state| *state != State::Starting)
            .await
            .ok()?;
        let copies = || {
            let artifacts = self.store.state().into_iter();
            artifacts.map(|artifact| (*artifact).clone()).collect()
        };
        (state == State::Current).then(copies)
    }
}

/// Keeps the store current. A watch that failed begins with a list again.
async fn follow(
    api: Api<Artifact>,
    config: watcher::Config,
    mut store: Writer<Artifact>,
    state: watch::Sender<State>,
) {
    loop {
        let mut events = pin!(watcher(api.clone(), config.clone()));
        while let Some(Ok(event)) = events.next().await {
            let is_list = matches!(event, Event::Init | Event::InitApply(_));
            store.apply_watcher_event(&event.modify(|it| it.managed_fields_mut().clear()));
            if !is_list {
                state.send_replace(State::Current);
            }
        }
        state.send_replace(State::Interrupted);
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}
