//! Reviews, their answers, and the Artifacts that are announced.

use base64::Engine as _;
use holdfast_config::Values;
use serde_json::{Value, json};

use super::{create, eventually, rewriting, start, start_with};

fn patch(answer: &Value) -> Value {
    let encoded = answer["response"]["patch"].as_str().unwrap();
    serde_json::from_slice(
        &base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .unwrap(),
    )
    .unwrap()
}

// SPEC 5, SPEC 6
#[tokio::test]
async fn a_pod_is_patched_over_tls_and_its_image_is_announced() {
    let webhook = start(Some(rewriting()), true).await;
    eventually("ready", || webhook.ready()).await;
    let answer = webhook.review(create(false)).await;
    assert_eq!(answer["response"]["uid"], "42");
    assert_eq!(answer["response"]["allowed"], true);
    assert_eq!(answer["response"]["patchType"], "JSONPatch");
    assert_eq!(
        patch(&answer)[0],
        json!({
            "op": "replace", "path": "/spec/containers/0/image",
            "value": "10.96.0.50/registry.example_5000/team/app:1",
        })
    );
    let expected = [(
        "team".to_owned(),
        "registry.example:5000/team/app:1".to_owned(),
    )];
    eventually("the Artifact", || async {
        webhook.api.sources() == expected
    })
    .await;
    let artifact = webhook.api.created.lock().unwrap()[0].1.clone();
    assert_eq!(
        artifact["metadata"]["name"],
        holdfast_api::artifact_name("registry.example:5000/team/app:1")
    );
    assert_eq!(artifact["spec"]["pullSecrets"], json!(["pull"]));
    assert_eq!(artifact["spec"]["serviceAccountName"], "builder");
    let metrics = webhook.metrics().await;
    for line in [
        "holdfast_webhook_images_rewritten_total 1",
        "holdfast_webhook_reviews_total{result=\"patched\"} 1",
        "holdfast_webhook_announcements_total{result=\"created\"} 1",
        "holdfast_webhook_admission_duration_seconds_count 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn a_dry_run_is_patched_and_announces_nothing() {
    let webhook = start(Some(rewriting()), true).await;
    eventually("ready", || webhook.ready()).await;
    assert!(patch(&webhook.review(create(true)).await).is_array());
    // A real one after it shows that the queue was processed.
    let mut real = create(false);
    real["object"]["spec"]["containers"][0]["image"] = json!("other");
    webhook.review(real).await;
    let expected = [(
        "team".to_owned(),
        "docker.io/library/other:latest".to_owned(),
    )];
    eventually("the other Artifact", || async {
        webhook.api.sources() == expected
    })
    .await;
}

#[tokio::test]
async fn the_controllers_changes_stay_and_those_of_others_change_nothing() {
    let webhook = start(Some(rewriting()), true).await;
    eventually("ready", || webhook.ready()).await;
    let original = "registry.example:5000/team/app:1";
    let local = "10.96.0.50/registry.example_5000/team/app:1";
    let mut update = create(false);
    update["operation"] = json!("UPDATE");
    update["oldObject"] = update["object"].clone();
    update["oldObject"]["spec"]["containers"][0]["image"] = json!(local);
    for (user, expect) in [
        ("system:serviceaccount:sys:holdfast-controller", None),
        (
            "system:serviceaccount:other:holdfast-controller",
            Some(local),
        ),
        ("kubernetes-admin", Some(local)),
    ] {
        update["userInfo"] = json!({ "username": user, "groups": [] });
        let answer = webhook.review(update.clone()).await;
        if let Some(expect) = expect {
            let expect = json!([
                { "op": "replace", "path": "/spec/containers/0/image", "value": expect },
            ]);
            assert_eq!(patch(&answer), expect, "{user}: {original}");
        } else {
            assert!(answer["response"]["patch"].is_null(), "{user}");
        }
    }
    let metrics = webhook.metrics().await;
    assert!(
        metrics.contains("holdfast_webhook_images_kept_total 2"),
        "{metrics}"
    );
}

// SPEC 11
#[tokio::test]
async fn the_values_decide_which_upstreams_are_rewritten() {
    let (one, listed) = ("registry.example/team/app:1", "quay.io/team/app:1");
    for (values, rewritten) in [
        (json!({}), &[one, listed][..]),
        (json!({ "sources": ["registry.example"] }), &[one]),
        (json!({ "onlyListedUpstreams": true }), &[listed]),
        (
            json!({ "sources": ["registry.example"], "onlyListedUpstreams": true }),
            &[],
        ),
    ] {
        let mut values = values;
        values["upstreams"] = json!([{ "host": "quay.io" }]);
        let parsed: Values = serde_json::from_value(values.clone()).unwrap();
        let webhook = start_with(Some(rewriting()), true, parsed).await;
        eventually("ready", || webhook.ready()).await;
        for image in [one, listed] {
            let mut request = create(true);
            request["object"]["spec"]["containers"][0]["image"] = json!(image);
            let answer = webhook.review(request).await;
            let is_rewritten = !answer["response"]["patch"].is_null();
            let expect = rewritten.contains(&image);
            assert_eq!(is_rewritten, expect, "{image} by {values}");
        }
    }
}

// SPEC 1
#[tokio::test]
async fn without_a_state_pods_are_allowed_unchanged() {
    for state in [
        None,
        Some(json!({ "registryAddress": "10.96.0.50", "rewrite": false })),
    ] {
        let webhook = start(state, true).await;
        eventually("ready", || webhook.ready()).await;
        let answer = webhook.review(create(false)).await;
        assert_eq!(answer["response"], json!({ "uid": "42", "allowed": true }));
        assert!(webhook.api.sources().is_empty());
    }
}

#[tokio::test]
async fn malformed_requests_are_refused_and_unneeded_reviews_are_allowed() {
    let webhook = start(Some(rewriting()), true).await;
    eventually("ready", || webhook.ready()).await;
    let (status, text) = webhook.post("{").await;
    assert_eq!(status, 400);
    assert!(text.contains("not JSON"), "{text}");
    let (status, text) = webhook
        .post(vec![b' '; holdfast_webhook::routes::MAX_BODY_BYTES + 1])
        .await;
    assert_eq!(status, 413, "{text}");
    let answer = webhook
        .review(json!({ "uid": "7", "operation": "DELETE" }))
        .await;
    assert_eq!(answer["response"], json!({ "uid": "7", "allowed": true }));
    let url = format!("https://localhost:{}/other", webhook.address.port());
    assert_eq!(webhook.client.post(url).send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn the_levels_of_a_review_are_bounded() {
    let webhook = start(Some(rewriting()), true).await;
    eventually("ready", || webhook.ready()).await;
    // The review, its request and the object are the first three.
    for (levels, expect) in [(127, 200), (128, 400)] {
        let mut request = create(true).to_string();
        let inner = levels - 3;
        let (open, close) = ("[".repeat(inner), "]".repeat(inner));
        let deep = format!(r#""object":{{"unknown":{open}{close},"#);
        request = request.replacen(r#""object":{"#, &deep, 1);
        let review = format!(
            r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{request}}}"#
        );
        let (status, answer) = webhook.post(review).await;
        assert_eq!(status, expect, "{levels} levels: {answer}");
    }
}
