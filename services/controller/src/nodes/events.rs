//! Events on nodes and on the shared state.

use crate::events::Publisher;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::EventType;

/// Publishes events. Failing to tell fails nothing.
#[derive(Clone, Debug)]
pub struct Events {
    publisher: Publisher,
}

impl Events {
    /// Events of the controller on this host.
    pub fn new(client: kube::Client) -> Self {
        Self {
            publisher: Publisher::new(client),
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
        let type_ = if warning {
            EventType::Warning
        } else {
            EventType::Normal
        };
        let publisher = &self.publisher;
        publisher
            .publish(object, type_, reason, action, &note)
            .await;
    }
}
