//! The shared state: ConfigMap `F-state`, watched; each version becomes the rules of the next
//! review.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use holdfast_api::state::{ClusterState, KEY};
use holdfast_runtime::health::Flag;
use holdfast_runtime::supervise::Heartbeat;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::sync::watch;

use crate::rules::{Configured, Rules};

/// How often the loop tells that it lives while nothing happens.
const IDLE_BEAT_INTERVAL: Duration = Duration::from_secs(10);

/// The stream of the watch ended, which it never should.
#[derive(Debug, thiserror::Error)]
#[error("the watch of the shared state ended")]
pub struct Ended;

/// The state that a ConfigMap holds; nothing where it holds none that can be read, which means no
/// rewriting.
pub fn read(object: Option<&ConfigMap>) -> Option<ClusterState> {
    let text = object?.data.as_ref()?.get(KEY)?;
    match serde_json::from_str(text) {
        Ok(state) => Some(state),
        Err(error) => {
            tracing::error!(%error, "the shared state cannot be read, pods are left alone");
            None
        }
    }
}

/// Follows the ConfigMap `name` and publishes the rules. While the API server does not answer, the
/// last ones stay. `seen` turns ready with the first answer; that the object is absent is an
/// answer.
pub async fn follow(
    api: Api<ConfigMap>,
    name: String,
    configured: Configured,
    rules: watch::Sender<Rules>,
    seen: Flag,
    heart: Heartbeat,
) -> Result<(), Ended> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let events = watcher(api, config).default_backoff();
    let mut events = std::pin::pin!(events.into_stream());
    let mut listed: Option<ConfigMap> = None;
    loop {
        let event = tokio::select! {
            event = events.next() => event.ok_or(Ended)?,
            () = tokio::time::sleep(IDLE_BEAT_INTERVAL) => {
                heart.beat();
                continue;
            }
        };
        let current = match event {
            Ok(watcher::Event::Init) => {
                listed = None;
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed = Some(object);
                continue;
            }
            Ok(watcher::Event::InitDone) => listed.take(),
            Ok(watcher::Event::Apply(object)) => Some(object),
            Ok(watcher::Event::Delete(_)) => None,
            Err(error) => {
                heart.beat();
                tracing::warn!(%error, "the shared state cannot be watched, the last one stays");
                continue;
            }
        };
        heart.success();
        publish(current.as_ref(), &configured, &rules);
        seen.ok("seen");
    }
}

fn publish(object: Option<&ConfigMap>, configured: &Configured, rules: &watch::Sender<Rules>) {
    let state = read(object);
    let next = Rules::new(configured.clone(), state.as_ref());
    rules.send_if_modified(|current| {
        if *current == next {
            return false;
        }
        tracing::info!(
            rewrite = next.address.is_some(),
            registry.address = next.address.as_deref().unwrap_or_default(),
            reason = state
                .as_ref()
                .map_or("there is no shared state", |state| &state.reason),
            "the shared state changed"
        );
        *current = next;
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_map(key: &str, text: &str) -> ConfigMap {
        ConfigMap {
            data: Some([(key.to_owned(), text.to_owned())].into()),
            ..ConfigMap::default()
        }
    }

    #[test]
    fn only_a_readable_state_switches_rewriting_on() {
        let good = r#"{"registryAddress":"10.96.0.50","rewrite":true,"future":1}"#;
        let (sender, receiver) = watch::channel(Rules::default());
        for (object, expect) in [
            (None, None),
            (Some(config_map(KEY, good)), Some("10.96.0.50")),
            (Some(config_map(KEY, "{")), None),
            (Some(config_map("other", good)), None),
            (Some(ConfigMap::default()), None),
        ] {
            publish(object.as_ref(), &Configured::default(), &sender);
            assert_eq!(receiver.borrow().address.as_deref(), expect, "{object:?}");
        }
    }
}
