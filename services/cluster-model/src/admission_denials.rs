//! Pods whose creation a policy denied, read from the events that their owners' controllers write
//! (`FailedCreate`).

use crate::owner::Owner;
use holdfast_api::artifact::Reference;
use k8s_openapi::api::core::v1::Event;

/// The reason of the events by which controllers report that they could not create a pod.
pub const FAILED_CREATE: &str = "FailedCreate";

/// A pod whose creation a policy denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The owner of the pod.
    pub owner: Owner,
    /// Its `apiVersion`.
    pub api_version: String,
    /// What denied it, for people: `ValidatingAdmissionPolicy only-ours`.
    pub by: String,
    /// The last time, in seconds since 1970.
    pub at: i64,
}

/// The policy that denied a request, read from the API server's message; nothing where the request
/// was refused for another reason (a quota, Pod Security, a missing permission).
pub fn denied_by(message: &str) -> Option<String> {
    let quoted = |before: &str, quote: char, after: &str| {
        let (_, rest) = message.split_once(before)?;
        let (name, rest) = rest.split_once(quote)?;
        let is_name = !name.is_empty() && name.len() <= 253 && !name.contains(char::is_whitespace);
        (is_name && rest.contains(after)).then(|| name.to_owned())
    };
    if let Some(name) = quoted("ValidatingAdmissionPolicy '", '\'', "denied request") {
        return Some(format!("ValidatingAdmissionPolicy {name}"));
    }
    if let Some(name) = quoted("admission webhook \"", '"', "denied the request") {
        return Some(format!("admission webhook {name}"));
    }
    message
        .contains("image policy webhook backend denied")
        .then(|| "the image policy webhook".to_owned())
}

/// The denial that an event tells of; nothing where the pod was refused for another reason than a
/// policy.
pub fn denial(event: &Event) -> Option<Denial> {
    let by = denied_by(event.message.as_deref()?)?;
    let times = [
        event
            .series
            .as_ref()
            .and_then(|series| series.last_observed_time.as_ref())
            .map(|time| time.0),
        event.last_timestamp.as_ref().map(|time| time.0),
        event.event_time.as_ref().map(|time| time.0),
    ];
    let object = &event.involved_object;
    Some(Denial {
        owner: Owner {
            reference: Reference {
                kind: object.kind.clone()?,
                name: object.name.clone()?,
            },
            uid: object.uid.clone().unwrap_or_default(),
        },
        api_version: object.api_version.clone().unwrap_or_default(),
        by,
        at: times.into_iter().flatten().max()?.as_second(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(message: &str, expect: Option<&str>) {
        assert_eq!(denied_by(message).as_deref(), expect, "{message}");
    }

    #[test]
    fn policies_are_told_from_other_refusals() {
        check(
            "Error creating: pods \"web-5d\" is forbidden: ValidatingAdmissionPolicy 'only-ours' with binding 'everywhere' denied request: no",
            Some("ValidatingAdmissionPolicy only-ours"),
        );
        check(
            "create Pod set-0 in StatefulSet set failed error: admission webhook \"validate.kyverno.svc-fail\" denied the request: images",
            Some("admission webhook validate.kyverno.svc-fail"),
        );
        check(
            "pods \"a\" is forbidden: image policy webhook backend denied one or more images: a",
            Some("the image policy webhook"),
        );
        check(
            "pods \"a\" is forbidden: exceeded quota: small, requested: pods=1",
            None,
        );
        check(
            "pods \"a\" is forbidden: violates PodSecurity \"restricted:latest\"",
            None,
        );
        check(
            "pods is forbidden: User \"x\" cannot create resource \"pods\"",
            None,
        );
        check(
            "Internal error occurred: failed calling webhook \"a\": failed to call webhook: no endpoints",
            None,
        );
        check(
            "ValidatingAdmissionPolicy 'a b' with binding 'c' denied request: x",
            None,
        );
        check("admission webhook \"", None);
    }

    #[test]
    fn an_event_says_who_was_refused_what_and_when_last() {
        let event = |message: &str| -> Event {
            serde_json::from_value(json!({
                "metadata": {"name": "e", "namespace": "apps"},
                "involvedObject": {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d", "uid": "u"},
                "reason": "FailedCreate", "message": message, "count": 4,
                "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:09Z",
            }))
            .unwrap()
        };
        let found = denial(&event(
            "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
        ))
        .unwrap();
        assert_eq!((found.owner.uid.as_str(), found.at), ("u", 1_767_225_609));
        assert_eq!(found.owner.reference.kind, "ReplicaSet");
        assert_eq!(denial(&event("exceeded quota")), None);
    }
}
