//! Events on nodes and on the shared state.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

/// Longest text of an event that the API server takes.
const MAX_NOTE_CHARS: usize = 1000;

/// Publishes events. Failing to tell fails nothing.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// Events of the controller on this host.
    pub fn new(client: kube::Client) -> Self {
        let reporter = Reporter {
            controller: "holdfast-controller".to_owned(),
            instance: std::env::var("POD_NAME").ok(),
        };
        Self {
            recorder: Recorder::new(client, reporter),
        }
    }

    /// Tells of a node.
    pub async fn on_node(&self, name: &str, uid: &str, warning: bool, reason: &str, note: String) {
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        self.publish(&object, warning, reason, "PrepareNode", note)
            .await;
    }

    /// Tells of the ConfigMap by which the webhook goes.
    pub async fn on_state(
        &self,
        namespace: &str,
        name: &str,
        warning: bool,
        reason: &str,
        note: String,
    ) {
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("ConfigMap".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        self.publish(&object, warning, reason, "Rewrite", note)
            .await;
    }

    async fn publish(
        &self,
        object: &ObjectReference,
        warning: bool,
        reason: &str,
        action: &str,
        note: String,
    ) {
        let event = Event {
            type_: if warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: reason.to_owned(),
            note: Some(note.chars().take(MAX_NOTE_CHARS).collect()),
            action: action.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, object).await {
            tracing::debug!(%error, event.reason = reason, "an event cannot be written");
        }
    }
}
