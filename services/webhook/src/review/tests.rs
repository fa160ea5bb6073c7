//! Admission reviews in and out, malformed ones too.

use super::*;

fn review(request: Value) -> Vec<u8> {
    json!({ "apiVersion": API_VERSION, "kind": "AdmissionReview", "future": 1, "request": request })
        .to_string()
        .into_bytes()
}

fn request(operation: &str, subresource: &str, old: bool) -> Value {
    json!({
        "uid": "u",
        "kind": { "group": "", "version": "v1", "kind": "Pod" },
        "namespace": "team",
        "operation": operation,
        "subResource": subresource,
        "object": { "metadata": {}, "spec": {} },
        "oldObject": if old { json!({ "spec": {} }) } else { Value::Null },
        "unknown": { "x": 1 },
    })
}

fn check(request: Value, expect: Option<Request>) {
    let parsed = Review::parse(&review(request.clone())).unwrap();
    assert_eq!(
        parsed.subject.map(|subject| subject.request),
        expect,
        "{request}"
    );
    assert_eq!(
        (parsed.uid.as_str(), parsed.namespace.as_str()),
        ("u", "team")
    );
}

#[test]
fn the_operation_and_the_subresource_decide_what_may_change() {
    check(request("CREATE", "", false), Some(Request::Create));
    check(request("UPDATE", "", true), Some(Request::Update));
    check(
        request("UPDATE", "ephemeralcontainers", true),
        Some(Request::Ephemeral),
    );
    check(request("UPDATE", "", false), None);
    check(request("UPDATE", "status", true), None);
    check(request("UPDATE", "resize", true), None);
    check(request("DELETE", "", true), None);
    check(request("CONNECT", "exec", false), None);
    check(request("CREATE", "binding", false), None);
    let mut other = request("CREATE", "", false);
    other["kind"] = json!({ "group": "apps", "version": "v1", "kind": "Deployment" });
    check(other, None);
    let mut null = request("CREATE", "", false);
    null["object"] = Value::Null;
    check(null, None);
}

#[test]
fn dry_run_is_read() {
    let mut dry = request("CREATE", "", false);
    assert!(!Review::parse(&review(dry.clone())).unwrap().dry_run);
    dry["dryRun"] = json!(true);
    assert!(Review::parse(&review(dry)).unwrap().dry_run);
}

#[test]
fn what_is_no_review_is_refused_with_a_clear_text() {
    for (body, part) in [
        (String::new(), "not JSON"),
        ("{".to_owned(), "not JSON"),
        ("[]".to_owned(), "not an AdmissionReview"),
        (json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": {"uid": "u"}}).to_string(), "not an AdmissionReview"),
        (json!({"apiVersion": API_VERSION, "kind": "Pod"}).to_string(), "not an AdmissionReview"),
        (json!({"apiVersion": API_VERSION, "kind": "AdmissionReview"}).to_string(), "request.uid"),
        (json!({"apiVersion": API_VERSION, "kind": "AdmissionReview", "request": {"uid": ""}}).to_string(), "request.uid"),
    ] {
        let error = Review::parse(body.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(part), "{body}: {error}");
    }
}

#[test]
fn an_answer_without_a_change_has_no_patch() {
    let answer = answer("u", &Mutation::default()).unwrap();
    assert_eq!(
        answer,
        json!({ "apiVersion": API_VERSION, "kind": "AdmissionReview", "response": { "uid": "u", "allowed": true } })
    );
}
