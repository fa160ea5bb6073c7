//! A standalone registry in front of upstreams: what they list, what they refuse, and how they
//! are named by hand.

use std::time::Duration;

use holdfast_config::{Distribution, UpstreamSettings};
use holdfast_testkit::raw::{Raw, Reply};
use serde_json::{Value, json};

use super::harness::Process;

const SUBJECT: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
const SIGNATURE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const EMPTY: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

/// A process whose upstream `host` is at `raw`.
async fn start(host: &str, raw: &Raw) -> Process {
    let upstream = UpstreamSettings::anonymous(host, &[raw.url()]);
    let process = Process::with(false, |settings| settings.upstreams = vec![upstream]);
    process.until("/readyz", 200).await;
    process
}

struct Answer {
    status: u16,
    warning: String,
    link: String,
    retry_after: String,
    body: Value,
}

async fn get(process: &Process, path: &str) -> Answer {
    let answer = process.client.get(format!("{}{path}", process.api));
    let answer = answer.send().await.unwrap();
    let header = |name: &str| {
        let value = answer.headers().get(name);
        value.map_or("", |value| value.to_str().unwrap()).to_owned()
    };
    Answer {
        status: answer.status().as_u16(),
        warning: header("warning"),
        link: header("link"),
        retry_after: header("retry-after"),
        body: serde_json::from_str(&answer.text().await.unwrap()).unwrap(),
    }
}

fn target(request: &str) -> &str {
    request.split(' ').nth(1).unwrap_or_default()
}

fn found(body: &Value) -> Reply {
    let text = body.to_string();
    Reply::http("200 OK", &[("content-type", INDEX)], text.as_bytes())
}

fn absent() -> Reply {
    Reply::http("404 Not Found", &[], b"")
}

/// Tags in two pages, one of them with what no tag can be.
fn tags(request: &str) -> Reply {
    match target(request) {
        "/v2/team/app/tags/list?n=1000" => {
            let link = "</v2/team/app/tags/list?last=3>; rel=\"next\"";
            let body = json!({"name": "team/app", "tags": ["1", "3"]}).to_string();
            Reply::http("200 OK", &[("link", link)], body.as_bytes())
        }
        "/v2/team/app/tags/list?last=3" => found(&json!({"tags": ["2", "../x", "4"]})),
        "/v2/team/app/manifests/local" => {
            Reply::http("200 OK", &[("content-type", INDEX)], EMPTY.as_bytes())
        }
        _ => absent(),
    }
}

// harbor#15513, harbor#23024
#[tokio::test(flavor = "multi_thread")]
async fn tags_of_the_upstream_are_listed_under_the_name_that_was_asked() {
    let raw = Raw::start(tags).await;
    let process = start("up.example", &raw).await;
    let here = get(&process, "/v2/up.example/team/app/manifests/local").await;
    assert_eq!(here.status, 200);
    // The image is stored behind the pull.
    let all = json!(["1", "2", "3", "4", "local"]);
    let path = "/v2/up.example/team/app/tags/list";
    let begun = tokio::time::Instant::now();
    let mut listed = get(&process, path).await;
    while listed.body["tags"] != all {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", listed.body);
        tokio::time::sleep(Duration::from_millis(50)).await;
        listed = get(&process, path).await;
    }
    assert_eq!((listed.status, listed.warning.as_str()), (200, ""));
    assert_eq!(listed.body["name"], "up.example/team/app");
    let plain = "/v2/team/app/tags/list";
    let page = get(&process, &format!("{plain}?n=2&ns=up.example")).await;
    assert_eq!(page.body, json!({"name": "team/app", "tags": ["1", "2"]}));
    let link = format!("<{plain}?n=2&last=2&ns=up.example>; rel=\"next\"");
    assert_eq!(page.link, link);
    let rest = get(&process, &format!("{plain}?n=3&last=2&ns=up.example")).await;
    assert_eq!(rest.body["tags"], json!(["3", "4", "local"]));
    assert_eq!(rest.link, "");
    assert_eq!(
        get(&process, "/v2/up.example/team/none/tags/list")
            .await
            .status,
        404
    );
    let asked = raw.requests();
    let lists = asked
        .iter()
        .filter(|request| target(request).starts_with(plain));
    assert_eq!(lists.count(), 2, "a list is kept for a while");
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_cannot_be_learned_says_so() {
    let raw = Raw::start(|request| {
        if target(request).contains("/manifests/") {
            Reply::http("200 OK", &[("content-type", INDEX)], EMPTY.as_bytes())
        } else {
            Reply::http("503 Away", &[], b"")
        }
    })
    .await;
    let process = start("up.example", &raw).await;
    let path = "/v2/up.example/team/app/tags/list";
    let unknown = get(&process, path).await;
    assert_eq!(unknown.status, 503, "{}", unknown.body);
    assert_eq!(
        get(&process, "/v2/up.example/team/app/manifests/1")
            .await
            .status,
        200
    );
    let begun = tokio::time::Instant::now();
    let partial = loop {
        let partial = get(&process, path).await;
        if partial.status == 200 {
            break partial;
        }
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(partial.body["tags"], json!(["1"]));
    assert!(
        partial.warning.contains("only what is here is listed"),
        "{}",
        partial.warning
    );
    process.end().await;
}

/// What an upstream answers to who asks for referrers, and to who asks for the fallback tag.
async fn check_referrers(what: &str, api: Reply, fallback: Reply, expect: (u16, usize)) {
    let raw = Raw::start(move |request| {
        if target(request).contains("/referrers/") {
            api.clone()
        } else if target(request).contains("/manifests/sha256-") {
            fallback.clone()
        } else {
            absent()
        }
    })
    .await;
    let process = start("up.example", &raw).await;
    let path = format!("/v2/up.example/team/app/referrers/{SUBJECT}");
    let of_kind = format!("{path}?artifactType={}", SIGNATURE.replace('+', "%2B"));
    for path in [path, of_kind] {
        let answer = get(&process, &path).await;
        let told = answer.body["manifests"].as_array().map_or(0, Vec::len);
        assert_eq!((answer.status, told), expect, "{what}: {}", answer.body);
    }
    process.end().await;
}

// policy-controller#1830
#[tokio::test(flavor = "multi_thread")]
async fn referrers_of_the_upstream_are_listed_and_unknown_ones_are_not_none() {
    let signature = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": format!("sha256:{}", "1".repeat(64)), "size": 7, "artifactType": SIGNATURE});
    let signed =
        || found(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [signature]}));
    let none = || found(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}));
    check_referrers("by the API", signed(), absent(), (200, 1)).await;
    check_referrers("nobody, by the API", none(), absent(), (200, 0)).await;
    for status in ["404 No", "400 No", "405 No", "501 No"] {
        let without = || Reply::http(status, &[], b"");
        check_referrers("by the tag", without(), signed(), (200, 1)).await;
        check_referrers("nobody, by the tag", without(), absent(), (200, 0)).await;
    }
    let html = Reply::http("200 OK", &[("content-type", "text/html")], b"<html>");
    check_referrers("a page in its place", html.clone(), html.clone(), (503, 0)).await;
    check_referrers("a page, and a tag", html.clone(), signed(), (200, 1)).await;
    check_referrers("a page, and no tag", html, absent(), (503, 0)).await;
    let long = " ".repeat(5 << 20);
    for media_type in [INDEX, "Application/JSON"] {
        let long = || Reply::http("200 OK", &[("content-type", media_type)], long.as_bytes());
        check_referrers("too large, and no tag", long(), absent(), (503, 0)).await;
        check_referrers("too large, and a tag", long(), none(), (503, 0)).await;
    }
    for status in ["500 No", "503 No", "401 No", "403 No", "429 No"] {
        let away = || Reply::http(status, &[], b"");
        check_referrers(status, away(), away(), (503, 0)).await;
    }
    // ghcr.io calls a signature so in its list; who looks for one must see it.
    let mut empty = signature.clone();
    empty["artifactType"] = json!("application/vnd.oci.empty.v1+json");
    let empty = found(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [empty]}));
    check_referrers("of no kind", absent(), empty, (200, 1)).await;
    check_referrers(
        "half of it",
        absent(),
        Reply::http("500 No", &[], b""),
        (503, 0),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_by_distributions_configuration_names_nothing_by_its_host() {
    let raw = Raw::start(tags).await;
    let text = format!(
        "version: 0.1\nstorage: {{filesystem: }}\nproxy: {{remoteurl: '{}'}}",
        raw.url()
    );
    let told = Distribution::parse(&text, []).unwrap();
    let process = Process::with(false, |settings| {
        settings.upstreams = told.settings.upstreams;
        settings.mirror_of = told.settings.mirror_of;
        settings.writes = told.settings.writes;
    });
    process.until("/readyz", 200).await;
    assert_eq!(
        get(&process, "/v2/team/app/manifests/local").await.status,
        200
    );
    let listed = get(&process, "/v2/team/app/tags/list?n=1").await;
    assert_eq!(listed.body, json!({"name": "team/app", "tags": ["1"]}));
    assert_eq!(
        listed.link,
        "</v2/team/app/tags/list?n=1&last=1>; rel=\"next\""
    );
    let begun = tokio::time::Instant::now();
    loop {
        let catalog = get(&process, "/v2/_catalog").await.body;
        if catalog == json!({"repositories": ["team/app"]}) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{catalog}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_listed_is_refused_at_once() {
    let raw = Raw::start(tags).await;
    let process = start("up.example", &raw).await;
    for path in [
        "/v2/unlisted.example/team/app/manifests/1".to_owned(),
        format!("/v2/unlisted.example/team/app/manifests/{SUBJECT}"),
        format!("/v2/unlisted.example/team/app/blobs/{SUBJECT}"),
        "/v2/unlisted.example/team/app/tags/list".to_owned(),
    ] {
        let begun = std::time::Instant::now();
        let answer = get(&process, &path).await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.body);
        // A pull is held for ten seconds where a controller may still name its image.
        assert!(begun.elapsed() < Duration::from_secs(4), "{path}");
        if path.contains("/manifests/") {
            let error = &answer.body["errors"][0];
            assert_eq!(error["code"], "NAME_UNKNOWN");
            assert!(error["message"].as_str().unwrap().contains("upstreams"));
        }
    }
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_official_image_may_be_asked_for_without_library() {
    let raw = Raw::start(|request| {
        if target(request).starts_with("/v2/library/nginx/manifests/") {
            Reply::http("200 OK", &[("content-type", INDEX)], EMPTY.as_bytes())
        } else {
            absent()
        }
    })
    .await;
    let process = start("docker.io", &raw).await;
    for path in [
        "/v2/docker.io/nginx/manifests/1",
        "/v2/docker.io/library/nginx/manifests/1",
        "/v2/index.docker.io/nginx/manifests/1",
        "/v2/nginx/manifests/1?ns=docker.io",
    ] {
        assert_eq!(get(&process, path).await.status, 200, "{path}");
    }
    assert_eq!(
        get(&process, "/v2/docker.io/none/manifests/1").await.status,
        404
    );
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_the_pause_that_the_upstream_asks_for() {
    let raw = Raw::start(|_| Reply::http("429 Slow", &[("retry-after", "77")], b"")).await;
    let process = start("up.example", &raw).await;
    for _ in 0..2 {
        let answer = get(&process, "/v2/up.example/team/app/manifests/1").await;
        assert_eq!(answer.status, 429, "{}", answer.body);
        let pause: u64 = answer.retry_after.parse().unwrap();
        assert!((60..=77).contains(&pause), "{pause}");
    }
    assert_eq!(raw.requests().len(), 1);
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_when_an_upstream_that_fails_may_be_asked_again() {
    for (status, told, expect) in [
        ("503 Away", "77", 60..=77),
        ("500 No", "77", 60..=77),
        ("503 Away", "100000", 280..=300),
        ("503 Away", "soon", 5..=5),
    ] {
        let raw = Raw::start(move |_| Reply::http(status, &[("retry-after", told)], b"")).await;
        let process = start("up.example", &raw).await;
        // The first are the upstream's own answers, the last come while it is left alone.
        for number in 0..6 {
            for what in ["manifests/1".to_owned(), format!("blobs/{SUBJECT}")] {
                let path = format!("/v2/up.example/team/app/{what}");
                let answer = get(&process, &path).await;
                assert_eq!(answer.status, 502, "{status}: {}", answer.body);
                let pause: u64 = answer.retry_after.parse().unwrap();
                assert!(
                    expect.contains(&pause),
                    "{status} {told}, {number}: {pause}"
                );
            }
        }
        process.end().await;
    }
}
