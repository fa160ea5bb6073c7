//! The watch of the wanted state: the Secret `F-node`.

use futures::StreamExt as _;
use holdfast_api::state::{KEY, NodeState};
use holdfast_runtime::supervise::Heartbeat;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::sync::watch;

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client for the API server cannot be created.
    #[error("cannot create a client for the API server")]
    Client(#[from] kube::Error),
    /// The Secret has no state.
    #[error("the Secret has no key {KEY}")]
    Empty,
    /// The state does not parse.
    #[error("the key {KEY} of the Secret is not a valid node state: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Watches the Secret and sends each state that it holds. A Secret that is deleted, empty or
/// invalid changes nothing: the host keeps its configuration until a valid state says otherwise.
pub async fn follow(
    namespace: String,
    name: String,
    states: watch::Sender<Option<NodeState>>,
    heartbeat: Heartbeat,
) -> Result<(), Error> {
    let client = kube::Client::try_default().await?;
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let events = watcher(
        api,
        watcher::Config::default().fields(&format!("metadata.name={name}")),
    )
    .default_backoff();
    let mut objects = std::pin::pin!(events.applied_objects());
    // A watch without changes is healthy, so the heartbeat follows a timer.
    let mut tick = tokio::time::interval(std::time::Duration::from_secs(20));
    loop {
        tokio::select! {
            _ = tick.tick() => heartbeat.beat(),
            object = objects.next() => match object {
                None => return Ok(()),
                Some(Ok(secret)) => match parse(&secret) {
                    Ok(state) => {
                        heartbeat.success();
                        states.send_if_modified(|known| {
                            let changed = known.as_ref() != Some(&state);
                            if changed {
                                *known = Some(state);
                            }
                            changed
                        });
                    }
                    Err(error) => tracing::warn!(
                        secret.name = %name, error = %error,
                        "ignoring an invalid state"
                    ),
                },
                Some(Err(error)) => tracing::warn!(
                    secret.name = %name, error = %error,
                    "the watch failed; the last state stays in effect"
                ),
            },
        }
    }
}

/// Reads the state of a Secret.
pub fn parse(secret: &Secret) -> Result<NodeState, Error> {
    let bytes = secret
        .data
        .as_ref()
        .and_then(|data| data.get(KEY))
        .ok_or(Error::Empty)?;
    Ok(serde_json::from_slice(&bytes.0)?)
}
