//! The patch of a pod: its references, the originals, and its history. A reference changes only if
//! the same container still has the old one.

use super::decide::Change;
use holdfast_api::history::ImageHistory;
use holdfast_api::labels;
use holdfast_cluster_model::pull_status::StuckPod;
use holdfast_core::pod;
use serde_json::{Map, Value, json};

/// The kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Containers get the registry's references.
    Heal,
    /// Containers get their upstream's references back.
    Restore,
}

/// The history after the act, at `now` in seconds since 1970.
pub fn history(known: &ImageHistory, kind: Kind, changes: &[Change], now: i64) -> ImageHistory {
    let mut next = known.clone();
    for change in changes {
        let switches = next.switches.entry(change.key.clone()).or_default();
        *switches = switches.after(now);
        match kind {
            Kind::Heal => next.restored.remove(&change.source),
            Kind::Restore => next.restored.insert(change.source.clone()),
        };
    }
    next
}

/// The JSON patch of a live pod. It fails as a whole if the pod was recreated or a reference
/// changed meanwhile.
pub fn operations(
    document: &Value,
    stuck_pod: &StuckPod,
    kind: Kind,
    changes: &[Change],
    history: &ImageHistory,
) -> Vec<Value> {
    let test = |path: &str, value: &str| json!({"op": "test", "path": path, "value": value});
    let mut operations = vec![test("/metadata/uid", &stuck_pod.uid)];
    for change in changes {
        if let Some((container, _)) = change.pointer.rsplit_once('/') {
            operations.push(test(&format!("{container}/name"), &change.name));
        }
        operations.push(test(&change.pointer, &change.from));
        operations.push(json!({"op": "replace", "path": change.pointer, "value": change.to}));
    }
    let mut originals = match pod::annotated_originals(document) {
        Some(Value::Object(originals)) => originals,
        _ => Map::new(),
    };
    let before = originals.clone();
    for change in changes {
        match kind {
            Kind::Heal => {
                originals.insert(change.key.clone(), json!(change.from));
            }
            Kind::Restore => {
                originals.remove(&change.key);
            }
        }
    }
    let mut annotations = vec![(labels::IMAGE_HISTORY, Some(history.text()))];
    if originals != before {
        let text = (!originals.is_empty()).then(|| Value::Object(originals).to_string());
        annotations.push((labels::ORIGINAL_IMAGES, text));
    }
    let existing = document
        .pointer("/metadata/annotations")
        .and_then(Value::as_object);
    if existing.is_none() {
        // The patch writes the whole map, so the pod must not have got one meanwhile.
        if let Some(version) = document.pointer("/metadata/resourceVersion") {
            let version = version.as_str().unwrap_or_default();
            operations.push(test("/metadata/resourceVersion", version));
        }
        operations.push(json!({"op": "add", "path": "/metadata/annotations", "value": {}}));
    }
    for (key, text) in annotations {
        let path = format!("/metadata/annotations/{}", key.replace('/', "~1"));
        match text {
            Some(text) => operations.push(json!({"op": "add", "path": path, "value": text})),
            None if existing.is_some_and(|all| all.contains_key(key)) => {
                operations.push(json!({"op": "remove", "path": path}));
            }
            None => {}
        }
    }
    operations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotations: Value, image: &str) -> Value {
        json!({
            "metadata": {"name": "p", "uid": "u", "resourceVersion": "7", "annotations": annotations, "future": {"x": null}},
            "spec": {"containers": [{"name": "side", "image": "s"}, {"name": "app", "image": image, "future": [1]}]},
        })
    }

    fn changes(from: &str, to: &str) -> Vec<Change> {
        vec![Change {
            key: "containers/app".to_owned(),
            name: "app".to_owned(),
            pointer: "/spec/containers/1/image".to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            source: "r.io/app:1".to_owned(),
        }]
    }

    /// The pod after the patch; `None` where the patch does not apply.
    fn apply(before: &Value, kind: Kind, from: &str, to: &str) -> Option<Value> {
        let stuck_pod = StuckPod {
            uid: "u".to_owned(),
            ..StuckPod::default()
        };
        let changes = changes(from, to);
        let next = history(&ImageHistory::of(before), kind, &changes, NOW);
        let operations = operations(before, &stuck_pod, kind, &changes, &next);
        let patch: json_patch::Patch = serde_json::from_value(json!(operations)).unwrap();
        let mut after = before.clone();
        json_patch::patch(&mut after, &patch).ok()?;
        Some(after)
    }

    const NOW: i64 = 1000;
    const LOCAL: &str = "10.96.0.50/r.io/app:1";

    #[test]
    fn healing_changes_the_image_and_two_annotations() {
        for annotations in [
            json!(null),
            json!({}),
            json!({"other": "kept"}),
            json!({labels::ORIGINAL_IMAGES: r#"{"containers/side":"x:1"}"#}),
        ] {
            let before = pod(annotations.clone(), "r.io/app:1");
            let after = apply(&before, Kind::Heal, "r.io/app:1", LOCAL).unwrap();
            let mut expect = before;
            expect["spec"]["containers"][1]["image"] = json!(LOCAL);
            if expect["metadata"]["annotations"].is_null() {
                expect["metadata"]["annotations"] = json!({});
            }
            let originals = match annotations.get(labels::ORIGINAL_IMAGES) {
                Some(_) => r#"{"containers/side":"x:1","containers/app":"r.io/app:1"}"#,
                None => r#"{"containers/app":"r.io/app:1"}"#,
            };
            expect["metadata"]["annotations"][labels::ORIGINAL_IMAGES] = json!(originals);
            expect["metadata"]["annotations"][labels::IMAGE_HISTORY] =
                json!(r#"{"uid":"u","switches":{"containers/app":{"count":1,"last":1000}}}"#);
            assert_eq!(after, expect, "{annotations}");
        }
    }

    #[test]
    fn restoring_takes_the_original_from_the_annotation() {
        for (originals, expect) in [
            (r#"{"containers/app":"r.io/app:1"}"#, json!(null)),
            (
                r#"{"containers/app":"r.io/app:1","containers/side":"x:1"}"#,
                json!(r#"{"containers/side":"x:1"}"#),
            ),
            ("", json!("")),
        ] {
            let before = pod(json!({labels::ORIGINAL_IMAGES: originals}), LOCAL);
            let after = apply(&before, Kind::Restore, LOCAL, "r.io/app:1").unwrap();
            assert_eq!(after["spec"]["containers"][1]["image"], "r.io/app:1");
            assert_eq!(
                after["metadata"]["annotations"][labels::ORIGINAL_IMAGES],
                expect
            );
            let history = ImageHistory::of(&after);
            assert!(history.restored.contains("r.io/app:1"), "{after}");
        }
    }

    #[test]
    fn a_pod_that_changed_meanwhile_is_not_patched() {
        let before = pod(json!({}), "r.io/app:1");
        let stuck_pod = StuckPod {
            uid: "u".to_owned(),
            ..StuckPod::default()
        };
        let changes = changes("r.io/app:1", LOCAL);
        let all = operations(
            &before,
            &stuck_pod,
            Kind::Heal,
            &changes,
            &ImageHistory::default(),
        );
        let patch: json_patch::Patch = serde_json::from_value(json!(all)).unwrap();
        for (what, pointer, value) in [
            ("another pod of the name", "/metadata/uid", json!("other")),
            (
                "another image",
                "/spec/containers/1/image",
                json!("r.io/app:2"),
            ),
            ("another order", "/spec/containers/1/name", json!("side")),
        ] {
            let mut live = before.clone();
            *live.pointer_mut(pointer).unwrap() = value;
            assert!(json_patch::patch(&mut live, &patch).is_err(), "{what}");
        }
    }

    #[test]
    fn each_change_is_counted_and_healing_forgets_the_restoration() {
        let known = ImageHistory {
            uid: "u".to_owned(),
            restored: ["r.io/app:1".to_owned(), "r.io/other:1".to_owned()].into(),
            ..ImageHistory::default()
        };
        let next = history(&known, Kind::Heal, &changes("r.io/app:1", LOCAL), NOW);
        let switches = next.switches["containers/app"];
        assert_eq!((switches.count, switches.last), (1, NOW));
        assert_eq!(next.restored.iter().collect::<Vec<_>>(), ["r.io/other:1"]);
        let back = changes(LOCAL, "r.io/app:1");
        let next = history(&next, Kind::Restore, &back, NOW + 15);
        let switches = next.switches["containers/app"];
        assert_eq!((switches.count, switches.last), (2, NOW + 15));
        assert!(next.restored.contains("r.io/app:1"));
    }
}
