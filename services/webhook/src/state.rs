//! The watches of the shared state, ConfigMap `F-state`, and of what is known of images, ConfigMap
//! `F-delivery`. Each version becomes the rules of the next reviews.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use holdfast_api::delivery::Delivery;
use holdfast_api::state::{ClusterState, KEY};
use holdfast_runtime::health::Flag;
use holdfast_runtime::supervise::Heartbeat;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::sync::watch;

use crate::rules::{Configured, Rules};

/// Time between two heartbeats while nothing changes.
const IDLE_BEAT_INTERVAL: Duration = Duration::from_secs(10);

/// The watch ended unexpectedly.
#[derive(Debug, thiserror::Error)]
#[error("the watch of a shared object ended")]
pub struct Ended;

/// Reads the state of a ConfigMap. `None`, which switches rewriting off, if there is no valid one.
pub fn read(object: Option<&ConfigMap>) -> Option<ClusterState> {
    let text = object?.data.as_ref()?.get(KEY)?;
    match serde_json::from_str(text) {
        Ok(state) => Some(state),
        Err(error) => {
            tracing::error!(%error, "the shared state is invalid; rewriting is off");
            None
        }
    }
}

/// Watches the ConfigMap `name` and passes each of its versions to `publish`, `None` if it does not
/// exist, and the last one again every [`IDLE_BEAT_INTERVAL`]. While the API server does not
/// answer, the last version stays. `seen` passes with the first answer, also if the object does not
/// exist.
pub async fn follow(
    api: Api<ConfigMap>,
    name: String,
    mut publish: impl FnMut(Option<&ConfigMap>),
    seen: Flag,
    heartbeat: Heartbeat,
) -> Result<(), Ended> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let events = watcher(api, config).default_backoff();
    let mut events = std::pin::pin!(events.into_stream());
    let (mut listed, mut current): (Option<ConfigMap>, Option<Option<ConfigMap>>) = (None, None);
    loop {
        let event = tokio::select! {
            event = events.next() => event.ok_or(Ended)?,
            () = tokio::time::sleep(IDLE_BEAT_INTERVAL) => {
                heartbeat.beat();
                if let Some(current) = &current {
                    publish(current.as_ref());
                }
                continue;
            }
        };
        let next = match event {
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
                heartbeat.beat();
                tracing::warn!(
                    %error,
                    object = name,
                    "cannot watch a shared object; its last version stays in effect"
                );
                continue;
            }
        };
        heartbeat.success();
        publish(next.as_ref());
        current = Some(next);
        seen.ok("seen");
    }
}

/// Publishes what is known of images at `now`, seconds since 1970.
pub fn publish_delivery(object: Option<&ConfigMap>, now: i64, rules: &watch::Sender<Rules>) {
    let next = object.map_or_else(Delivery::default, |object| Delivery::of(object).at(now));
    rules.send_if_modified(|current| {
        let differs = *current.delivery != next;
        if differs {
            tracing::debug!(held = next.held.len(), "what is known of images changed");
            current.delivery = Arc::new(next);
        }
        differs
    });
}

/// Publishes the rules of a version of the shared state.
pub fn publish(object: Option<&ConfigMap>, configured: &Configured, rules: &watch::Sender<Rules>) {
    let state = read(object);
    let mut next = Rules::new(configured.clone(), state.as_ref());
    rules.send_if_modified(|current| {
        next.delivery = Arc::clone(&current.delivery);
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

    #[test]
    fn what_is_known_of_images_outlives_a_change_of_the_state() {
        let known = Delivery {
            held: ["a.example/app:1"].into_iter().collect(),
            ..Delivery::default()
        };
        let (data, binary_data) = known.data().unwrap();
        let object = ConfigMap {
            data: Some(data),
            binary_data: Some(binary_data),
            ..ConfigMap::default()
        };
        let (sender, receiver) = watch::channel(Rules::default());
        publish_delivery(Some(&object), 0, &sender);
        assert_eq!(*receiver.borrow().delivery, known);
        let state = config_map(KEY, r#"{"registryAddress":"10.96.0.50","rewrite":true}"#);
        publish(Some(&state), &Configured::default(), &sender);
        assert!(receiver.borrow().address.is_some());
        assert_eq!(*receiver.borrow().delivery, known);
        publish_delivery(None, 0, &sender);
        assert_eq!(*receiver.borrow().delivery, Delivery::default());
    }
}
