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
fn a_namespace_is_a_dns_label_or_none() {
    for (namespace, expect) in [
        ("team".to_owned(), "team"),
        ("a".repeat(63), "a".repeat(63).as_str()),
        ("a".repeat(64), ""),
        ("x".repeat(900_000), ""),
        ("team/artifacts?dryRun=All&x=".to_owned(), ""),
        ("../team".to_owned(), ""),
        ("Team".to_owned(), ""),
        (String::new(), ""),
    ] {
        let mut by_request = request("CREATE", "", false);
        by_request["namespace"] = json!(namespace);
        let mut by_pod = request("CREATE", "", false);
        by_pod["namespace"] = Value::Null;
        by_pod["object"]["metadata"]["namespace"] = json!(namespace);
        for request in [by_request, by_pod] {
            let parsed = Review::parse(&review(request)).unwrap();
            assert_eq!(parsed.namespace, expect);
        }
    }
}

#[test]
fn dry_run_is_read() {
    let mut dry = request("CREATE", "", false);
    assert!(!Review::parse(&review(dry.clone())).unwrap().dry_run);
    dry["dryRun"] = json!(true);
    assert!(Review::parse(&review(dry)).unwrap().dry_run);
}

#[test]
fn a_malformed_review_is_refused_with_a_clear_text() {
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

/// An update as an API server sends it, with what no rewrite depends on around it.
fn full_review() -> Value {
    let pod = |image: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "p",
                "namespace": "team",
                "uid": "u",
                "labels": { "app": "a", labels::REWRITE: "enabled" },
                "annotations": { "theirs": "x".repeat(300), labels::IMAGE_HISTORY: r#"{"uid":"u","restored":["r.io/x:1"]}"#, "b": "" },
                "managedFields": [{ "fieldsV1": { "f:spec": { "f:containers": { "k:{}": { ".": {} } } } } }],
            },
            "spec": {
                "imagePullSecrets": [{ "name": "one" }, { "name": "two", "future": 1 }],
                "serviceAccountName": "robot",
                "containers": [{ "name": "c", "image": image, "imagePullPolicy": "Always", "env": [{ "name": "A", "value": "b" }] }],
                "initContainers": [{ "name": "i", "image": "registry.example/i:1", "resources": {} }],
                "ephemeralContainers": null,
                "volumes": [{ "name": "v", "image": { "reference": image } }, { "name": "e", "emptyDir": { "sizeLimit": "1Gi" } }],
                "tolerations": [{ "operator": "Exists" }],
            },
            "status": { "phase": "Pending" },
        })
    };
    let mut request = request("UPDATE", "", true);
    request["object"] = pod("nginx:1");
    request["oldObject"] = pod("10.96.0.50/docker.io/library/nginx:1");
    request["userInfo"] = json!({ "username": "kubelet", "groups": ["a", "b"] });
    request
}

#[test]
fn what_is_dropped_while_reading_makes_no_difference_to_the_answer() {
    use crate::mutate::mutate;
    use crate::rules::Rules;
    let state = holdfast_api::state::ClusterState {
        registry_address: "10.96.0.50".to_owned(),
        rewrite: true,
        ..Default::default()
    };
    let rules = Rules::new(holdfast_core::UpstreamFilter::default(), Some(&state));
    let whole = full_review();
    let mut new = whole.clone();
    new["operation"] = json!("CREATE");
    for request in [whole, new] {
        let read = Review::parse(&review(request.clone()))
            .unwrap()
            .subject
            .unwrap();
        let judge = |pod: &Value, old: &Value| mutate(pod, Some(old), read.request, &rules);
        let expect = judge(&request["object"], &request["oldObject"]);
        assert!(!expect.patch.is_empty());
        assert_eq!(judge(&read.pod, read.old.as_ref().unwrap()), expect);
        let announced = |pod: &Value| -> Vec<_> {
            crate::announce::Announcement::of_pod("team", pod, &expect.images).collect()
        };
        assert_eq!(announced(&read.pod), announced(&request["object"]));
        let kept = read.pod.to_string().len() + read.old.unwrap().to_string().len();
        assert!(kept < 1500, "{kept} bytes are kept");
    }
}

#[test]
fn a_pod_with_too_many_images_is_admitted_unchanged() {
    let mut large = request("CREATE", "", false);
    let pod = |containers: usize| {
        let all: Vec<Value> = (0..containers)
            .map(|number| json!({ "name": number.to_string(), "image": "a:1" }))
            .collect();
        json!({ "metadata": {}, "spec": { "containers": all } })
    };
    large["object"] = pod(MAX_IMAGES);
    let read = Review::parse(&review(large.clone())).unwrap();
    assert!(read.subject.is_some() && !read.too_large);
    large["object"] = pod(MAX_IMAGES + 1);
    let read = Review::parse(&review(large.clone())).unwrap();
    assert_eq!(
        (read.subject, read.too_large, read.uid.as_str()),
        (None, true, "u")
    );
    large["object"] = json!({ "metadata": { "annotations": { "a": "x".repeat(MAX_KEPT_BYTES) } } });
    assert!(Review::parse(&review(large)).unwrap().too_large);
    let answer = answer("u", &Mutation::too_large()).unwrap();
    assert_eq!(answer["response"]["allowed"], true);
    assert!(answer["response"].get("patch").is_none());
    assert!(
        answer["response"]["warnings"][0]
            .as_str()
            .unwrap()
            .contains("too many images")
    );
}

#[test]
fn only_too_many_images_make_a_pod_too_large_to_restore_its_names() {
    use crate::mutate::restore_unread;
    use crate::rules::Rules;
    use holdfast_api::access::ImageAccess;
    let mut asked = request("CREATE", "", false);
    let annotations: serde_json::Map<String, Value> = (0..=MAX_KEPT_VALUES)
        .map(|number| (number.to_string(), json!("")))
        .collect();
    let containers = |count: usize| -> Vec<Value> {
        let image = "10.96.0.50/r.example/private:1";
        let all = 0..count;
        all.map(|number| json!({ "name": number.to_string(), "image": image }))
            .collect()
    };
    asked["object"] = json!({ "metadata": { "annotations": annotations }, "spec": { "containers": containers(1) } });
    assert!(Review::parse(&review(asked.clone())).unwrap().too_large);
    let names = Review::parse_names(&review(asked.clone())).unwrap();
    assert!(names.subject.is_some() && !names.too_large);
    asked["object"] =
        json!({ "metadata": {}, "spec": { "containers": containers(MAX_IMAGES + 1) } });
    assert!(Review::parse_names(&review(asked)).unwrap().too_large);
    for (access, allowed) in [
        (ImageAccess::Every, true),
        (ImageAccess::Listed(std::sync::Arc::default()), false),
    ] {
        let rules = Rules {
            access,
            ..Rules::default()
        };
        let answer = answer("u", &restore_unread(&rules)).unwrap();
        assert_eq!(answer["response"]["allowed"], allowed);
        assert_eq!(answer["response"]["status"].is_object(), !allowed);
    }
}

#[test]
fn the_owners_of_a_pod_are_kept_without_what_no_decision_needs() {
    let mut request = request("CREATE", "", false);
    request["object"]["metadata"]["ownerReferences"] = json!([
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "1"},
        {"apiVersion": "db.io/v1", "kind": "Cluster", "name": "db", "uid": "2", "controller": true},
    ]);
    let subject = Review::parse(&review(request)).unwrap().subject.unwrap();
    let controller = holdfast_core::workload::controller_of(&subject.pod);
    assert_eq!(controller, Some(("Cluster", "db", "")));
}
