//! Which upstreams a registry copies from, by the values of its release.

use holdfast_config::{Config, RegistrySettings};
use holdfast_testkit::raw::{Raw, Reply};
use serde_json::{Value, json};

use super::harness::Process;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What these values say of upstreams, with `up.example` listed at `raw`.
fn told(mut values: Value, raw: &Raw) -> RegistrySettings {
    values["upstreams"] = json!([{"host": "up.example", "endpoint": raw.url()}]);
    let document = json!({
        "release": {"name": "edge", "namespace": "sys", "fullname": "edge", "version": "1"},
        "values": values,
    });
    RegistrySettings::from_config(&Config::parse(&document.to_string()).unwrap())
}

/// Pulls an image of `host`: the status, and whether the upstream was asked.
async fn check(values: Value, host: &str, expect: (u16, bool)) {
    let raw = Raw::start(|_| {
        let index = br#"{"schemaVersion":2,"manifests":[]}"#;
        Reply::http("200 OK", &[("content-type", INDEX)], index)
    })
    .await;
    let told = told(values.clone(), &raw);
    let process = Process::with(false, |settings| {
        settings.upstreams = told.upstreams;
        settings.sources = told.sources;
        settings.only_listed_upstreams = told.only_listed_upstreams;
        settings.has_controller = told.has_controller;
        // No controller comes to name what nobody listed.
        if host != "up.example" {
            settings.limits.hold_seconds = 0;
        }
    });
    process.until("/readyz", 200).await;
    let path = format!("/v2/{host}/team/app/manifests/1");
    let (status, text) = process.api(&path).await;
    let asked = !raw.requests().is_empty();
    assert_eq!((status, asked), expect, "{host} by {values}: {text}");
    let is_ruled_out = text.contains("`sources` or `onlyListedUpstreams`");
    assert_eq!(is_ruled_out, status == 403, "{host} by {values}: {text}");
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_values_rule_upstreams_out() {
    let (here, elsewhere) = ("up.example", "other.example");
    check(json!({}), here, (200, true)).await;
    // Allowed, though nothing names it yet: a controller could.
    check(json!({}), elsewhere, (503, false)).await;
    check(json!({"sources": [elsewhere]}), here, (403, false)).await;
    check(json!({"sources": [here]}), here, (200, true)).await;
    let listed = json!({"onlyListedUpstreams": true});
    check(listed.clone(), here, (200, true)).await;
    check(listed, elsewhere, (403, false)).await;
}
