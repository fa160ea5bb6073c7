//! Where the wanted state comes from: the one Secret `F-node`, by watch, and what was last kept on
//! the host.

use futures::StreamExt as _;
use holdfast_api::state::{KEY, NodeState};
use holdfast_runtime::supervise::Heartbeat;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::sync::watch;

/// Why a Secret says nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No client for the API server can be made.
    #[error("no client for the API server")]
    Client(#[from] kube::Error),
    /// The Secret has no state.
    #[error("the Secret has no key {KEY}")]
    Empty,
    /// The state is not one.
    #[error("the Secret's {KEY} is no node state: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Follows the Secret and hands on each state that it holds. A Secret that is gone, empty or
/// damaged changes nothing: the host keeps what it has until it is told otherwise in so many words.
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
    // A quiet watch is a healthy one: the heartbeat beats by the clock while the stream is polled.
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
                    Err(error) => tracing::warn!(secret.name = %name, error = %error, "a state that says nothing is left aside"),
                },
                Some(Err(error)) => tracing::warn!(secret.name = %name, error = %error, "the API server does not answer; what is known stays"),
            },
        }
    }
}

/// The state that a Secret holds.
pub fn parse(secret: &Secret) -> Result<NodeState, Error> {
    let bytes = secret
        .data
        .as_ref()
        .and_then(|data| data.get(KEY))
        .ok_or(Error::Empty)?;
    Ok(serde_json::from_slice(&bytes.0)?)
}
