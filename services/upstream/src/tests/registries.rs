//! What registries do differently from each other, one test a difference: the table of
//! `docs/reference/upstreams.md`.

use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast_testkit::{
    image::{OCI_MANIFEST, digest_of},
    raw::{Raw, Reply},
    upstream::basic,
};

use super::*;

pub(super) const MANIFEST: &str = r#"{"schemaVersion":2,"manifests":[]}"#;
const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

pub(super) fn good() -> Reply {
    Reply::http(
        "200 OK",
        &[("content-type", OCI_MANIFEST)],
        MANIFEST.as_bytes(),
    )
}

pub(super) fn token(token: &str) -> Reply {
    let answer = format!(r#"{{"token":"{token}"}}"#);
    Reply::http("200 OK", &[], answer.as_bytes())
}

pub(super) fn asks(challenge: &str) -> Reply {
    Reply::http("401 No", &[("www-authenticate", challenge)], b"")
}

pub(super) fn header<'a>(request: &'a str, name: &str) -> &'a str {
    request
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}: ")))
        .unwrap_or_default()
}

pub(super) fn target(request: &str) -> &str {
    request.split(' ').nth(1).unwrap_or_default()
}

pub(super) fn is_head(request: &str) -> bool {
    request.starts_with("HEAD")
}

/// An upstream at `endpoint` for the host `up.example`.
pub(super) fn at(endpoint: &str) -> (Upstreams, UpstreamRepository) {
    let client = upstreams("up.example", &[endpoint.to_owned()]);
    (client, source("up.example", &[]))
}

// distribution#3792, crossplane#3222
#[tokio::test]
async fn a_head_without_a_digest_is_followed_by_a_get_that_is_hashed() {
    let other = digest_of(b"another");
    for (what, head) in [
        ("no digest", Reply::http("200 OK", &[], b"")),
        (
            "no digest at all",
            Reply::http("200 OK", &[("docker-content-digest", "latest")], b""),
        ),
        (
            "a digest that ours cannot be compared with",
            Reply::http(
                "200 OK",
                &[(
                    "docker-content-digest",
                    &format!("sha512:{}", "0".repeat(128)),
                )],
                b"",
            ),
        ),
        ("no HEAD", Reply::http("405 No", &[], b"")),
        ("no HEAD, like MinIO", Reply::http("403 No", &[], b"")),
        ("a broken HEAD", Reply::http("500 No", &[], b"")),
    ] {
        let raw = Raw::start(move |request| {
            if is_head(request) {
                head.clone()
            } else {
                good()
            }
        })
        .await;
        let (client, source) = at(&raw.url());
        let found = client.resolve(&source, "1").await.unwrap();
        assert_eq!(found.as_str(), digest_of(MANIFEST.as_bytes()), "{what}");
        assert_eq!(raw.requests().len(), 2, "{what}");
    }
    let told = [("docker-content-digest", other.as_str())];
    let raw = Raw::start({
        let head = Reply::http("200 OK", &told, b"");
        move |_| head.clone()
    })
    .await;
    let (client, source) = at(&raw.url());
    assert_eq!(client.resolve(&source, "1").await.unwrap().as_str(), other);
    assert_eq!(raw.requests().len(), 1, "what HEAD tells is enough");
}

// containerd#9648, containerd#8415: what is asked for is what the registry wants to have.
#[tokio::test]
async fn a_token_is_asked_for_the_scope_of_the_challenge() {
    for (scope, query) in [
        (
            Some("repository:cache/team/app:pull"),
            "scope=repository%3Acache%2Fteam%2Fapp%3Apull",
        ),
        (Some("aws"), "scope=aws"),
        (
            Some("repository:a:pull repository:b:pull"),
            "scope=repository%3Aa%3Apull&scope=repository%3Ab%3Apull",
        ),
        (None, "scope=repository%3Ateam%2Fapp%3Apull"),
        (Some("\\\"; drop"), "scope=repository%3Ateam%2Fapp%3Apull"),
    ] {
        let raw = Raw::start(move |request| {
            let host = header(request, "host").to_owned();
            if target(request).starts_with("/token") {
                let right = target(request).ends_with(query);
                return if right {
                    token("t")
                } else {
                    Reply::http("403 No", &[], b"")
                };
            }
            if header(request, "authorization") == "Bearer t" {
                return good();
            }
            let scope = scope.map_or(String::new(), |scope| format!(",scope=\"{scope}\""));
            asks(&format!(
                "Bearer realm=\"http://{host}/token\",service=\"s\"{scope}"
            ))
        })
        .await;
        let (client, source) = at(&raw.url());
        let found = client.manifest(&source, "1").await;
        assert!(found.is_ok(), "{scope:?}: {found:?}");
        client.manifest(&source, "2").await.unwrap();
        assert_eq!(raw.requests().len(), 4, "{scope:?}: the token is kept");
    }
}

// aws/containers-roadmap#2835: 400 where others answer 401.
#[tokio::test]
async fn a_token_that_has_ended_may_be_answered_with_400() {
    let issued = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&issued);
    let raw = Raw::start(move |request| {
        let host = header(request, "host").to_owned();
        if target(request).starts_with("/token") {
            return token(&format!("t{}", count.fetch_add(1, Ordering::Relaxed)));
        }
        let newest = count.load(Ordering::Relaxed).saturating_sub(1);
        match header(request, "authorization") {
            "" => asks(&format!(
                "Bearer realm=\"http://{host}/token\",scope=\"aws\""
            )),
            given if given == format!("Bearer t{newest}") => good(),
            _ => Reply::http("400 Bad Request", &[], b""),
        }
    })
    .await;
    let (client, source) = at(&raw.url());
    client.manifest(&source, "1").await.unwrap();
    // The server forgets what it gave.
    issued.fetch_add(1, Ordering::Relaxed);
    let again = client.manifest(&source, "1").await;
    assert!(again.is_ok(), "{again:?}: {:?}", raw.requests());
}

// ghcr.io: its `/v2/` asks for a token for `repository:user/image:pull`.
#[tokio::test]
async fn the_scope_of_the_root_is_not_that_of_a_repository() {
    let raw = Raw::start(|request| {
        let host = header(request, "host").to_owned();
        if target(request).starts_with("/token") {
            let right = target(request).ends_with("scope=repository%3Ateam%2Fapp%3Apull");
            return if right { token("t") } else { token("useless") };
        }
        match header(request, "authorization") {
            "Bearer t" => good(),
            _ if target(request) == "/v2/" => asks(&format!(
                "Bearer realm=\"http://{host}/token\",scope=\"repository:user/image:pull\""
            )),
            _ => Reply::http("404 Not Found", &[], b""),
        }
    })
    .await;
    let client = upstreams("up.example", &[raw.url()]);
    let login = source("up.example", &[("u", "p")]);
    assert!(client.manifest(&login, "1").await.is_ok());
}

// docker-registry-proxy#158, containerd#5503: lscr.io sends to ghcr.io, cr.fluentbit.io to Docker
// Hub.
#[tokio::test]
async fn a_registry_behind_a_redirect_gets_its_own_token() {
    let behind = Raw::start(|request| {
        let host = header(request, "host").to_owned();
        if target(request).starts_with("/token") {
            let right = target(request).ends_with("scope=repository%3Aother%2Fname%3Apull");
            return if right { token("behind") } else { asks("Basic") };
        }
        if header(request, "authorization") == "Bearer behind" {
            good()
        } else {
            asks(&format!(
                "Bearer realm=\"http://{host}/token\",service=\"b\",scope=\"repository:other/name:pull\""
            ))
        }
    })
    .await;
    for front_asks in [false, true] {
        let to = behind.url();
        let front = Raw::start(move |request| {
            let host = header(request, "host").to_owned();
            if target(request).starts_with("/token") {
                return token("front");
            }
            if front_asks && header(request, "authorization") != "Bearer front" {
                return asks(&format!("Bearer realm=\"http://{host}/token\""));
            }
            let to = format!("{to}{}", target(request));
            Reply::http("307 Elsewhere", &[("location", &to)], b"")
        })
        .await;
        let before = behind.requests().len();
        let client = upstreams("up.example", &[front.url()]);
        let login = source("up.example", &[("u", "p")]);
        for tag in ["1", "2"] {
            let found = client.manifest(&login, tag).await;
            assert!(found.is_ok(), "asks: {front_asks}: {found:?}");
        }
        let sent = |raw: &Raw| -> Vec<String> {
            let requests = raw.requests().into_iter();
            requests
                .map(|request| header(&request, "authorization").to_owned())
                .collect()
        };
        let (to_front, to_behind) = (sent(&front), sent(&behind).split_off(before));
        assert!(
            !to_front.contains(&"Bearer behind".to_owned()),
            "{to_front:?}"
        );
        assert_eq!(
            to_behind,
            ["", "", "Bearer behind", "Bearer behind"],
            "asks: {front_asks}: no credential, and one token"
        );
    }
}

#[tokio::test]
async fn a_registry_behind_a_redirect_is_not_let_in_by_others_tokens() {
    // Its challenge names a token server that is not its own.
    let thief = Raw::start(|_| token("t")).await;
    let port = thief.host().rsplit(':').next().unwrap().to_owned();
    let behind =
        Raw::start(move |_| asks(&format!("Bearer realm=\"http://localhost:{port}/token\""))).await;
    let to = behind.url();
    let front = Raw::start(move |request| {
        let to = format!("{to}{}", target(request));
        Reply::http("307 Elsewhere", &[("location", &to)], b"")
    })
    .await;
    let client = upstreams("up.example", &[front.url()]);
    let login = source("up.example", &[("u", "p")]);
    assert_eq!(client.manifest(&login, "1").await, Err(Error::Unauthorized));
    assert!(thief.requests().is_empty(), "{:?}", thief.requests());
    assert!(front.requests().len() <= 2, "{:?}", front.requests());
}

// artifact-keeper#3209, minio#6146: a signed URL is for one method, and some servers have no HEAD.
#[tokio::test]
async fn a_head_that_says_nothing_of_a_blob_leaves_it_to_its_first_byte() {
    for status in ["400 No", "403 No", "404 No", "405 No", "500 No", "501 No"] {
        for ranges in [true, false] {
            let raw = Raw::start(move |request| {
                if is_head(request) {
                    return Reply::http(status, &[], b"");
                }
                if ranges && header(request, "range") == "bytes=0-0" {
                    let range = [("content-range", "bytes 0-0/1000")];
                    return Reply::http("206 Partial Content", &range, b"x");
                }
                Reply::http("200 OK", &[], &[7; 1000])
            })
            .await;
            let digest = Digest::parse(DIGEST).unwrap();
            // Also where nothing is known of the repository.
            let (client, source) = at(&raw.url());
            let body = client.blob(&source, whole(&digest)).await.unwrap();
            assert_eq!(collect(body).await.unwrap().len(), 1000, "{status}");
            let before = raw.requests().len();
            let (client, source) = at(&raw.url());
            for _ in 0..4 {
                let size = client.has_blob(&source, &digest).await;
                assert_eq!(size, Ok(Some(1000)), "{status} ranges: {ranges}");
            }
            assert_eq!(header(&raw.requests()[before + 1], "range"), "bytes=0-0");
            let body = client.blob(&source, whole(&digest)).await.unwrap();
            assert_eq!(collect(body).await.unwrap().len(), 1000, "{status}");
        }
    }
}

#[tokio::test]
async fn a_first_byte_that_is_refused_is_no_proof() {
    for (head, get, expect) in [
        ("403 No", "403 No", Error::Unauthorized),
        ("405 No", "404 No", Error::NotFound),
        ("404 No", "404 No", Error::NotFound),
        ("404 No", "403 No", Error::Unauthorized),
    ] {
        let raw = Raw::start(move |request| {
            let status = if is_head(request) { head } else { get };
            Reply::http(status, &[], b"x")
        })
        .await;
        let (client, source) = at(&raw.url());
        let found = client.has_blob(&source, &DIGEST.parse().unwrap()).await;
        assert_eq!(found, Err(expect), "{head} {get}");
    }
    let empty = Raw::start(|request| {
        if is_head(request) {
            Reply::http("405 No", &[], b"")
        } else if header(request, "range").is_empty() {
            Reply::http("200 OK", &[], b"")
        } else {
            Reply::http("416 No", &[("content-range", "bytes */0")], b"")
        }
    })
    .await;
    let (client, source) = at(&empty.url());
    let found = client.has_blob(&source, &DIGEST.parse().unwrap()).await;
    assert_eq!(found, Ok(None), "a blob of no bytes has no first one");
}

#[tokio::test]
async fn a_question_for_a_blob_costs_no_body() {
    // It knows no ranges, and never ends.
    let raw = Raw::start(|request| {
        if is_head(request) {
            return Reply::http("404 No", &[], b"");
        }
        let length = [("content-length", "1000000000")];
        let mut head = holdfast_testkit::raw::head("200 OK", &length);
        head.extend(b"\r\n");
        Reply::Endless {
            head,
            piece: vec![7; 1000],
        }
    })
    .await;
    let (client, source) = at(&raw.url());
    let digest = Digest::parse(DIGEST).unwrap();
    let found = client.has_blob(&source, &digest);
    let found = tokio::time::timeout(Duration::from_secs(20), found).await;
    assert_eq!(found, Ok(Ok(Some(1_000_000_000))));
    assert_eq!(raw.requests().len(), 2, "{:?}", raw.requests());
}

/// The second registry of a site whose first one redirects everything to it. `head` is what its
/// HEAD of a blob answers.
async fn behind(head: &'static str) -> Raw {
    Raw::start(move |request| {
        let host = header(request, "host").to_owned();
        if target(request).starts_with("/token") {
            let right = target(request).ends_with("scope=repository%3Aother%2Fname%3Apull");
            return if right {
                token("behind")
            } else {
                asks("Basic")
            };
        }
        if header(request, "authorization") != "Bearer behind" {
            let scope = "repository:other/name:pull";
            return asks(&format!(
                "Bearer realm=\"http://{host}/token\",scope=\"{scope}\""
            ));
        }
        let all = [7; 1000];
        match header(request, "range") {
            _ if target(request).contains("/tags/list") => {
                Reply::http("200 OK", &[], br#"{"name":"other/name","tags":["1"]}"#)
            }
            _ if is_head(request) => {
                let mut answer = holdfast_testkit::raw::head(head, &[("content-length", "1000")]);
                answer.extend(b"\r\n");
                Reply::Bytes(answer)
            }
            "bytes=0-0" => {
                let range = [("content-range", "bytes 0-0/1000")];
                Reply::http("206 Partial Content", &range, &all[..1])
            }
            _ => Reply::http("200 OK", &[], &all),
        }
    })
    .await
}

// docker-registry-proxy#158, containerd#5503: blobs and lists as well as manifests.
#[tokio::test]
async fn blobs_and_lists_behind_a_redirect_use_a_token_of_that_registry() {
    for head in ["200 OK", "403 No", "404 No"] {
        let behind = behind(head).await;
        let to = behind.url();
        let front = Raw::start(move |request| {
            let host = header(request, "host").to_owned();
            if target(request).starts_with("/token") {
                return token("front");
            }
            if header(request, "authorization") != "Bearer front" {
                return asks(&format!("Bearer realm=\"http://{host}/token\""));
            }
            let to = format!("{to}{}", target(request));
            Reply::http("307 Elsewhere", &[("location", &to)], b"")
        })
        .await;
        let client = upstreams("up.example", &[front.url()]);
        let login = source("up.example", &[("u", "p")]);
        let digest = Digest::parse(DIGEST).unwrap();
        for _ in 0..2 {
            let size = client.has_blob(&login, &digest).await;
            assert_eq!(size, Ok(Some(1000)), "HEAD {head}");
            let body = client.blob(&login, whole(&digest)).await.unwrap();
            assert_eq!(collect(body).await.unwrap().len(), 1000, "HEAD {head}");
            assert_eq!(client.tags(&login).await.unwrap().entries.len(), 1);
        }
        let sent = |raw: &Raw, token: &str| {
            let all = raw.requests();
            let mut all = all.iter().map(|request| header(request, "authorization"));
            all.any(|sent| sent == token)
        };
        assert!(!sent(&front, "Bearer behind"), "HEAD {head}");
        for foreign in ["Bearer front", basic("u", "p").as_str()] {
            assert!(!sent(&behind, foreign), "HEAD {head}: {foreign}");
        }
    }
}

#[tokio::test]
async fn a_token_server_may_redirect_on_its_own_host_only() {
    let thief = Raw::start(|_| token("t")).await;
    let elsewhere = format!("{}/token", thief.url());
    for (location, expect) in [
        ("/auth/token?scope=x", true),
        ("//HOST/auth/token", true),
        ("/token", false),
        (elsewhere.as_str(), false),
        ("", false),
    ] {
        let location = location.to_owned();
        let raw = Raw::start(move |request| {
            let host = header(request, "host").to_owned();
            if target(request).starts_with("/token") {
                let location = location.replace("HOST", &host);
                return Reply::http("302 Found", &[("location", &location)], b"");
            }
            if target(request).starts_with("/auth/token") {
                let right = header(request, "authorization") == basic("u", "p");
                return if right { token("t") } else { asks("Basic") };
            }
            if header(request, "authorization") == "Bearer t" {
                good()
            } else {
                asks(&format!(
                    "Bearer realm=\"http://{host}/token\",service=\"s\""
                ))
            }
        })
        .await;
        let client = upstreams("up.example", &[raw.url()]);
        let login = source("up.example", &[("u", "p")]);
        let found = client.manifest(&login, "1").await;
        assert_eq!(found.is_ok(), expect, "{:?}: {found:?}", raw.requests());
        assert!(raw.requests().len() <= 16, "{}", raw.requests().len());
    }
    assert!(thief.requests().is_empty(), "{:?}", thief.requests());
}

// ACR, for instance, answers with `access_token` alone; others leave `token` empty beside it.
#[tokio::test]
async fn an_empty_token_beside_an_access_token_is_none() {
    let raw = Raw::start(|request| {
        let host = header(request, "host").to_owned();
        if target(request).starts_with("/token") {
            let answer = r#"{"token":"","access_token":"t","expires_in":"300","issued_at":"now"}"#;
            return Reply::http("200 OK", &[], answer.as_bytes());
        }
        if header(request, "authorization") == "Bearer t" {
            good()
        } else {
            asks(&format!("Bearer realm=\"http://{host}/token\""))
        }
    })
    .await;
    let (client, source) = at(&raw.url());
    assert!(client.manifest(&source, "1").await.is_ok());
}

// Harbor's proxy projects, as containerd's `hosts.toml` has them.
#[tokio::test]
async fn an_endpoints_path_stands_where_it_belongs() {
    for (path, expect) in [
        ("", "/v2/team/app/manifests/1"),
        ("/v2/hub-cache", "/v2/hub-cache/team/app/manifests/1"),
        ("/v2/", "/v2/team/app/manifests/1"),
        (
            "/artifactory/api/docker/hub",
            "/artifactory/api/docker/hub/v2/team/app/manifests/1",
        ),
    ] {
        let raw = Raw::start(|_| good()).await;
        let (client, source) = at(&format!("{}{path}", raw.url()));
        client.manifest(&source, "1").await.unwrap();
        assert_eq!(target(&raw.requests()[0]), expect);
    }
}

// ACR: `metadata_read` for lists, `pull` for content.
#[tokio::test]
async fn lists_may_want_another_scope_than_content() {
    let raw = Raw::start(|request| {
        let host = header(request, "host").to_owned();
        if let Some((_, scope)) = target(request).split_once("scope=") {
            return token(if scope.ends_with("metadata_read") {
                "list"
            } else {
                "pull"
            });
        }
        let (token, action) = if target(request).contains("/tags/list") {
            ("list", "metadata_read")
        } else {
            ("pull", "pull")
        };
        if header(request, "authorization") != format!("Bearer {token}") {
            return asks(&format!(
                "Bearer realm=\"http://{host}/token\",scope=\"repository:team/app:{action}\""
            ));
        }
        if token == "list" {
            return Reply::http("200 OK", &[], br#"{"name":"team/app","tags":["1"]}"#);
        }
        good()
    })
    .await;
    let (client, source) = at(&raw.url());
    for _ in 0..3 {
        client.manifest(&source, "1").await.unwrap();
        assert_eq!(client.tags(&source).await.unwrap().entries.len(), 1);
    }
    assert_eq!(raw.requests().len(), 10, "one challenge and one token each");
}

#[tokio::test]
async fn lists_without_end_are_cut_and_say_so() {
    let page = Arc::new(AtomicUsize::new(0));
    let raw = Raw::start(move |_| {
        let at = page.fetch_add(1, Ordering::Relaxed);
        let link = format!("</v2/team/app/tags/list?last={at}>; rel=\"next\"");
        let body = format!(r#"{{"tags":["t{at}"]}}"#);
        Reply::http("200 OK", &[("link", &link)], body.as_bytes())
    })
    .await;
    let (client, source) = at(&raw.url());
    let found = client.tags(&source).await.unwrap();
    assert!(!found.complete && found.entries.len() == 50, "{found:?}");
    assert_eq!(raw.requests().len(), 50, "pages");

    let many: Vec<String> = (0..20_500).map(|tag| format!("\"t{tag}\"")).collect();
    let body = format!(r#"{{"tags":[{}]}}"#, many.join(","));
    let raw = Raw::start(move |_| Reply::http("200 OK", &[], body.as_bytes())).await;
    let (client, source) = at(&raw.url());
    let found = client.tags(&source).await.unwrap();
    assert!(!found.complete && found.entries.len() == 20_000, "entries");

    let body = format!(r#"{{"tags":["{}"]}}"#, "x".repeat(5 << 20));
    let raw = Raw::start(move |_| Reply::http("200 OK", &[], body.as_bytes())).await;
    let (client, source) = at(&raw.url());
    let refused = client.tags(&source).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "bytes");

    let raw = Raw::start(|_| {
        let link = [("link", "<?n=1000>; rel=\"next\"")];
        Reply::http("200 OK", &link, br#"{"tags":["a"]}"#)
    })
    .await;
    let (client, source) = at(&raw.url());
    let circle = client.tags(&source).await.unwrap();
    assert!(!circle.complete && raw.requests().len() == 1, "a circle");
}
