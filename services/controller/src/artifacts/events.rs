//! Events in the pod's namespace: what an operator needs to know, once per change.

use super::demand::Demand;
use holdfast_api::Artifact;
use holdfast_api::artifact::Reason;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Resource as _, ResourceExt as _};

/// Publishes events.
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

    /// Tells of `reason`, regarding the Artifact and one pod that needs it. Failing to tell fails nothing.
    pub async fn tell(
        &self,
        artifact: &Artifact,
        demand: Option<&Demand>,
        reason: Reason,
        message: &str,
    ) {
        let type_ = if reason == Reason::Copied {
            EventType::Normal
        } else {
            EventType::Warning
        };
        let note: String = note(&artifact.spec.source_artifact, reason, message)
            .chars()
            .take(1000)
            .collect();
        let event = Event {
            type_,
            reason: reason.as_str().to_owned(),
            note: Some(note),
            action: "Copy".to_owned(),
            secondary: None,
        };
        let mut regarding = vec![artifact.object_ref(&())];
        // A pod whose image is there has no use for the news.
        if reason != Reason::Copied
            && let Some((name, uid)) = demand.and_then(|demand| demand.pod.clone())
        {
            regarding.push(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(name),
                namespace: artifact.namespace(),
                uid: Some(uid),
                ..ObjectReference::default()
            });
        }
        for object in regarding {
            if let Err(error) = self.recorder.publish(&event, &object).await {
                tracing::debug!(%error, "an event cannot be written");
            }
        }
    }
}

/// What happened and what to do about it.
fn note(source: &str, reason: Reason, message: &str) -> String {
    let advice = match reason {
        Reason::Copied => {
            return format!("{source} is copied, the cluster no longer needs its upstream for it");
        }
        Reason::Unauthorized => "check imagePullSecrets of the pod and its service account",
        Reason::NotFound => "check the reference; the upstream says there is no such image",
        Reason::UpstreamUnavailable => {
            "it is tried again; check the uplink, the proxy and the upstream"
        }
        Reason::UpstreamInvalid => {
            "the upstream's bytes do not match their digest, or are no image"
        }
        Reason::NoSpace => "the registry's volume is full; enlarge it or remove unused images",
        Reason::Invalid => "the reference cannot be fetched",
        Reason::StoreFailed => "it is tried again; check the registry's volume and its storage",
        Reason::PullSecretUnreadable => {
            "it is tried again; check the API server and what the controller may read"
        }
        Reason::RegistryUnavailable => "it is tried again; check the registry's pods",
        Reason::Copying => "it is being copied",
    };
    format!("{source}: {message} ({advice})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_to_look_at_the_wrong_place() {
        for (reason, place) in [
            (Reason::UpstreamUnavailable, "uplink"),
            (Reason::RegistryUnavailable, "registry's pods"),
            (Reason::StoreFailed, "registry's volume"),
            (Reason::PullSecretUnreadable, "API server"),
        ] {
            let note = note("registry.example/app:1", reason, "m");
            let others = [
                "uplink",
                "registry's pods",
                "registry's volume",
                "API server",
            ];
            let named: Vec<_> = others
                .into_iter()
                .filter(|other| note.contains(other))
                .collect();
            assert_eq!(named, [place], "{note}");
        }
    }
}
