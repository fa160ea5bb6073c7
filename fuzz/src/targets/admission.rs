//! Reviews of pods and the patches that answer them; match conditions.

use holdfast_conditions::{Condition, Facts};
use holdfast_core::pod;
use holdfast_webhook::{
    mutate::{Request, mutate},
    review::{self, Review},
    rules::Rules,
};
use serde_json::{Value, json};

use super::text;
use crate::{Shape, Target, ensure, shape};

const ADDRESS: &str = "10.96.0.50";

/// Reviews.
pub(super) const REVIEW: Target = Target {
    name: "admission",
    promise: "a patch applies, changes nothing but images and two annotations, and is empty the second time",
    check: review,
    dictionary: &[
        "\"containers\":[",
        "\"initContainers\":[",
        "\"ephemeralContainers\":[",
        "\"volumes\":[",
        "{\"name\":\"a\",\"image\":\"nginx:1\"}",
        "\"image\":{\"reference\":\"nginx\"}",
        "\"metadata\":{",
        "\"annotations\":{",
        "\"labels\":{",
        "\"holdfast.dev/rewrite\":\"disabled\"",
        "\"holdfast.dev/original-images\":\"",
        "\"holdfast.dev/image-history\":\"{\\\"uid\\\":\\\"u\\\",\\\"restored\\\":[\\\"a:1\\\"]}\"",
        "\"uid\":\"u\"",
        "\"operation\":\"UPDATE\"",
        "\"oldObject\":",
        "\"imagePullPolicy\":\"Never\"",
        "10.96.0.50/docker.io/library/nginx:1",
        "null",
        "a~b/c",
        "~0",
        "\"subResource\":\"ephemeralcontainers\"",
        "\"spec\":{",
        "[]",
        "{}",
    ],
    max_bytes: 6_000,
};

fn rules() -> Rules {
    Rules {
        address: Some(ADDRESS.to_owned()),
        known_addresses: vec![ADDRESS.to_owned()],
        ..Rules::default()
    }
}

fn review(input: &[u8]) -> Result<Shape, String> {
    let review = match Review::parse(input) {
        Ok(review) => review,
        Err(error) => return Ok(shape(std::mem::discriminant(&error))),
    };
    let Some(subject) = &review.subject else {
        return Ok(1);
    };
    // The API server reads a pod before it asks: there these are objects, or nothing.
    let strange = ["/metadata", "/metadata/annotations"]
        .iter()
        .any(|pointer| {
            let found = subject.pod.pointer(pointer);
            found.is_some_and(|found| !found.is_object() && !found.is_null())
        });
    if strange {
        return Ok(2);
    }
    let rules = rules();
    let mutation = mutate(&subject.pod, subject.old.as_ref(), subject.request, &rules);
    // What was dropped while the review was read makes no difference.
    let whole: Value = serde_json::from_slice(input).map_err(|error| error.to_string())?;
    let whole_pod = &whole["request"]["object"];
    let whole_old = Some(&whole["request"]["oldObject"]).filter(|old| old.is_object());
    ensure(
        mutation == mutate(whole_pod, whole_old, subject.request, &rules),
        || "the whole pod would be judged otherwise".to_owned(),
    )?;
    review::answer(&review.uid, &mutation).map_err(|error| format!("no answer: {error}"))?;
    let mut patched = whole_pod.clone();
    json_patch::patch(&mut patched, &mutation.patch)
        .map_err(|error| format!("the patch does not apply: {error}"))?;
    ensure(without_ours(&patched) == without_ours(whole_pod), || {
        "the patch changes other fields".to_owned()
    })?;
    ensure(mutation.patch.is_empty() == (patched == *whole_pod), || {
        "a patch without a change".to_owned()
    })?;
    if subject.request == Request::Create {
        let again = mutate(&patched, None, Request::Create, &rules);
        ensure(again.rewritten == 0 && again.patch.is_empty(), || {
            format!("a second time it would change again: {:?}", again.patch)
        })?;
    }
    let kinds: Vec<_> = pod::images(&subject.pod)
        .iter()
        .map(|image| image.kind.field())
        .take(4)
        .collect();
    Ok(shape((
        std::mem::discriminant(&subject.request),
        mutation.patch.len().min(5),
        mutation.rewritten.min(3),
        mutation.skipped,
        mutation.warnings.len().min(2),
        kinds,
    )))
}

/// A pod without what the webhook may change.
fn without_ours(pod: &Value) -> Value {
    let mut pod = pod.clone();
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for entry in entries(&mut pod, list) {
            take_text(entry, "image");
        }
    }
    for entry in entries(&mut pod, "volumes") {
        if let Some(image) = entry.get_mut("image") {
            take_text(image, "reference");
        }
    }
    let Some(metadata) = pod.get_mut("metadata") else {
        return pod;
    };
    let annotations = metadata.get_mut("annotations");
    let empty = match annotations {
        None | Some(Value::Null) => true,
        Some(annotations) => {
            if let Some(object) = annotations.as_object_mut() {
                object.remove("holdfast.dev/original-images");
                object.remove("holdfast.dev/image-history");
            }
            annotations
                .as_object()
                .is_some_and(serde_json::Map::is_empty)
        }
    };
    if let (true, Some(object)) = (empty, metadata.as_object_mut()) {
        object.remove("annotations");
    }
    // Null is nothing, as in the API.
    let empty = metadata
        .as_object()
        .map_or_else(|| metadata.is_null(), serde_json::Map::is_empty);
    if let (true, Some(object)) = (empty, pod.as_object_mut()) {
        object.remove("metadata");
    }
    pod
}

fn entries<'a>(pod: &'a mut Value, list: &str) -> impl Iterator<Item = &'a mut Value> {
    pod.pointer_mut(&format!("/spec/{list}"))
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

fn take_text(entry: &mut Value, field: &str) {
    if let Some(value) = entry.get_mut(field).filter(|value| value.is_string()) {
        *value = json!("");
    }
}

/// Match conditions.
pub(super) const CONDITION: Target = Target {
    name: "condition",
    promise: "no expression panics or takes long, and the same one means the same again",
    check: condition,
    dictionary: &[
        "object.metadata.labels",
        "request.namespace",
        "has(",
        "exists(",
        "all(",
        ".filter(",
        ".map(x, x)",
        "'a' in ",
        " && ",
        " || ",
        "!",
        " ? ",
        " : ",
        "matches('(a+)+$')",
        "size(",
        "[1,2,3]",
        "true",
        "optional.none()",
        "?.",
        "duration('1s')",
        "int(",
        "startsWith('kube-')",
        "1/0",
        "9223372036854775807 + 1",
        "authorizer",
        "oldObject",
    ],
    max_bytes: 600,
};

fn condition(input: &[u8]) -> Result<Shape, String> {
    let text = text(input);
    let condition = match Condition::parse(&text) {
        Ok(condition) => condition,
        Err(error) => return Ok(shape(std::mem::discriminant(&error))),
    };
    let pod = json!({
        "metadata": {"name": "p", "namespace": "kube-x", "labels": {"a": "aaaaaaaaaaaaaaaaaaaaaaaaaaaab"}},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]},
    });
    let facts = Facts::of_pod(&pod);
    let first = condition.matches(&pod, &facts);
    let second = condition.matches(&pod, &facts);
    ensure(
        first.is_ok() == second.is_ok() && first.as_ref().ok() == second.as_ref().ok(),
        || format!("{first:?}, then {second:?}"),
    )?;
    Ok(match first {
        Ok(holds) => shape(holds),
        Err(error) => shape((2, std::mem::discriminant(&error))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_beside_the_images_is_seen() {
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "x", "extra": 1}]}});
        let mut other = pod.clone();
        other["spec"]["containers"][0]["image"] = json!("y");
        other["metadata"] = json!({"annotations": {"holdfast.dev/original-images": "{}"}});
        assert_eq!(without_ours(&pod), without_ours(&other));
        other["spec"]["containers"][0]["extra"] = json!(2);
        assert_ne!(without_ours(&pod), without_ours(&other));
    }
}
