//! Reviews of pods, honest and hostile. A hostile one is as large as the webhook takes, and each
//! kind is the worst for one way of reading it.

use bytes::Bytes;
use serde_json::json;

/// An ordinary review of a new pod; each of another image.
pub fn honest(number: usize) -> Bytes {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "42",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "namespace": "team",
            "operation": "CREATE",
            "object": {
                "metadata": { "name": "p", "labels": { "app": "a" } },
                "spec": {
                    "containers": [{
                        "name": "c",
                        "image": format!("registry.example/team/app:{number}"),
                        "env": [{ "name": "LONG", "value": "x".repeat(8000) }],
                    }],
                },
            },
        },
    });
    Bytes::from(review.to_string())
}

/// The beginning of a review of an update, up to the object.
const HEAD: &str = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","kind":{"group":"","version":"v1","kind":"Pod"},"namespace":"hostile","operation":"UPDATE","oldObject":{"metadata":{}},"object":"#;

/// Fills a review with `piece` as often as it fits between `before` and `after`.
fn filled(largest: usize, before: &str, piece: impl Fn(usize) -> String, after: &str) -> Bytes {
    let mut text = format!("{HEAD}{before}");
    let end = format!("{after}}}}}");
    for number in 0.. {
        let piece = piece(number);
        if text.len() + piece.len() + end.len() > largest {
            break;
        }
        text.push_str(&piece);
    }
    text.push_str(&end);
    Bytes::from(text)
}

/// The hostile ones of at most `largest` bytes, each with what it is made of.
pub fn worst(largest: usize) -> Vec<(&'static str, Bytes)> {
    vec![
        (
            "empty lists in an unknown field",
            filled(
                largest,
                r#"{"metadata":{"managedFields":["#,
                |_| "[],".to_owned(),
                "0]}}",
            ),
        ),
        (
            "empty containers",
            filled(
                largest,
                r#"{"metadata":{},"spec":{"containers":["#,
                |_| "{},".to_owned(),
                "{}]}}",
            ),
        ),
        (
            "containers with an image each",
            filled(
                largest,
                r#"{"metadata":{},"spec":{"containers":["#,
                |number| format!(r#"{{"name":"{number}","image":"a:{number}"}},"#),
                "{}]}}",
            ),
        ),
        (
            "tiny annotations",
            filled(
                largest,
                r#"{"spec":{"containers":[{"name":"a","image":"a"}]},"metadata":{"annotations":{"#,
                |number| format!(r#""{number:x}":"","#),
                r#""z":""}}}"#,
            ),
        ),
        (
            "one long image",
            filled(
                largest,
                r#"{"metadata":{},"spec":{"containers":[{"name":"a","image":""#,
                |_| "a/".to_owned(),
                r#""}]}}"#,
            ),
        ),
    ]
}
