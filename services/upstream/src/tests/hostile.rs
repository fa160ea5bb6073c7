//! Answers of hostile upstreams: each request ends soon, with the right error, and nothing of the
//! answer is kept.

use holdfast_testkit::{
    image::{OCI_MANIFEST, digest_of},
    raw::{Raw, Reply, head},
};

use super::{
    registries::{at, target},
    *,
};

const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

fn json(body: &str) -> Reply {
    Reply::http("200 OK", &[("content-type", OCI_MANIFEST)], body.as_bytes())
}

fn chunked(headers: &[(&str, &str)], piece: &[u8]) -> Reply {
    let mut start = head("200 OK", headers);
    start.extend(b"transfer-encoding: chunked\r\n\r\n");
    let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
    chunk.extend(piece);
    chunk.extend(b"\r\n");
    Reply::Endless {
        head: start,
        piece: chunk,
    }
}

/// Asks a hostile upstream for a manifest.
async fn check(
    what: &str,
    target: &str,
    reply: impl Fn(&str) -> Reply + Send + Sync + 'static,
    expect: &str,
) {
    let raw = Raw::start(reply).await;
    let client = upstreams(&raw.host(), &[raw.url()]);
    let source = source(&raw.host(), &[("u", "p")]);
    let begun = Instant::now();
    let error = client.manifest(&source, target).await.expect_err(what);
    assert_eq!(error.label(), expect, "{what}: {error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{what}: too slow");
    let asked = raw.requests().len();
    assert!(asked <= 12, "{what}: {asked} requests");
}

#[tokio::test]
async fn manifests_of_hostile_upstreams_are_refused_soon() {
    let good = r#"{"schemaVersion":2,"manifests":[]}"#;
    check(
        "a captive portal",
        "1",
        |_| Reply::http("200 OK", &[("content-type", "text/html")], b"<html>"),
        "invalid",
    )
    .await;
    check(
        "schema 1",
        "1",
        |_| json(r#"{"schemaVersion":1,"fsLayers":[]}"#),
        "invalid",
    )
    .await;
    check("another manifest", DIGEST, move |_| json(good), "invalid").await;
    check(
        "an encoding that was not requested",
        "1",
        move |_| {
            Reply::http(
                "200 OK",
                &[("content-type", OCI_MANIFEST), ("content-encoding", "gzip")],
                good.as_bytes(),
            )
        },
        "invalid",
    )
    .await;
    check(
        "no end",
        "1",
        |_| chunked(&[("content-type", OCI_MANIFEST)], &vec![b' '; 65_536]),
        "invalid",
    )
    .await;
    check(
        "a length that is a lie",
        "1",
        move |_| {
            let mut bytes = head("200 OK", &[]);
            bytes.extend(format!("content-length: 999\r\n\r\n{good}").bytes());
            Reply::Bytes(bytes)
        },
        "unavailable",
    )
    .await;
    check(
        "one byte after the other",
        "1",
        move |_| {
            let mut start = head("200 OK", &[]);
            start.extend(b"content-length: 5000\r\n\r\n");
            Reply::Trickle {
                head: start,
                body: vec![b' '; 5000],
                every: Duration::from_millis(50),
            }
        },
        "unavailable",
    )
    .await;
    check(
        "headers without end",
        "1",
        |_| Reply::Endless {
            head: head("200 OK", &[]),
            piece: b"x-more: and more\r\n".to_vec(),
        },
        "unavailable",
    )
    .await;
    check(
        "a header that is huge",
        "1",
        move |_| {
            Reply::http(
                "200 OK",
                &[("x-huge", &"x".repeat(2 << 20))],
                good.as_bytes(),
            )
        },
        "unavailable",
    )
    .await;
    check(
        "no HTTP",
        "1",
        |_| Reply::Bytes(b"SSH-2.0-x\r\n".to_vec()),
        "unavailable",
    )
    .await;
    check("silence", "1", |_| Reply::Silence, "unavailable").await;
    check(
        "an answer of no use",
        "1",
        |_| Reply::http("206 Partial", &[], b"{}"),
        "invalid",
    )
    .await;
}

#[tokio::test]
async fn loops_of_hostile_upstreams_end() {
    check(
        "redirects in a circle",
        "1",
        |request| {
            let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
            Reply::http("302 Found", &[("location", &path)], b"")
        },
        "invalid",
    )
    .await;
    check(
        "a redirect to a file",
        "1",
        |_| Reply::http("302 Found", &[("location", "file:///etc/passwd")], b""),
        "invalid",
    )
    .await;
    check(
        "a redirect to nowhere",
        "1",
        |_| Reply::http("307 Temporary", &[], b""),
        "invalid",
    )
    .await;
    check(
        "Basic without end",
        "1",
        |_| Reply::http("401 No", &[("www-authenticate", "Basic realm=\"x\"")], b""),
        "unauthorized",
    )
    .await;
    check(
        "tokens that open nothing",
        "1",
        |request| {
            let host = request
                .lines()
                .find_map(|line| line.strip_prefix("host: "))
                .unwrap_or_default();
            if request.contains(" /token") {
                return Reply::http("200 OK", &[], br#"{"token":"t","expires_in":300}"#);
            }
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
            Reply::http("401 No", &[("www-authenticate", &challenge)], b"")
        },
        "unauthorized",
    )
    .await;
    check(
        "a token server that redirects",
        "1",
        |request| {
            let host = request
                .lines()
                .find_map(|line| line.strip_prefix("host: "))
                .unwrap_or_default();
            if request.contains(" /token") {
                return Reply::http("302 Found", &[("location", "/token")], b"");
            }
            let challenge = format!("Bearer realm=\"http://{host}/token\"");
            Reply::http("401 No", &[("www-authenticate", &challenge)], b"")
        },
        "unauthorized",
    )
    .await;
}

/// What an upstream does with a request for a blob of 1000 bytes.
async fn check_blob(
    what: &str,
    (offset, whole): (u64, bool),
    reply: impl Fn(bool) -> Reply + Send + Sync + 'static,
    expect: Result<usize, &str>,
) {
    let raw = Raw::start(move |request| {
        if request.starts_with("HEAD") {
            return Reply::http("200 OK", &[], b"");
        }
        reply(request.contains("range: bytes="))
    })
    .await;
    let client = upstreams(&raw.host(), &[raw.url()]);
    let digest = Digest::parse(DIGEST).unwrap();
    let wanted = BlobRequest {
        digest: &digest,
        size: Some(1000),
        offset,
        whole,
        avoid: &[],
        yielded: 0,
    };
    let begun = Instant::now();
    let got = match client.blob(&source(&raw.host(), &[]), wanted).await {
        Ok(body) => collect(body).await.map(|bytes| bytes.len()),
        Err(error) => Err(error),
    };
    let told = got.as_ref().map_err(Error::label);
    assert_eq!(
        told,
        expect.as_ref().map_err(|label| *label),
        "{what}: {got:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(5), "{what}: too slow");
}

fn part(range: &str, bytes: usize) -> Reply {
    Reply::http(
        "206 Partial Content",
        &[("content-range", range)],
        &vec![7; bytes],
    )
}

#[tokio::test]
async fn ranges_are_believed_only_when_they_are_what_was_asked_for() {
    type Answer = fn(bool) -> Reply;
    type Row = (
        &'static str,
        (u64, bool),
        Answer,
        Result<usize, &'static str>,
    );
    const FROM_400: (u64, bool) = (400, false);
    let all: Answer = |_| Reply::http("200 OK", &[], &[7; 1000]);
    let rows: [Row; 9] = [
        (
            "the rest",
            FROM_400,
            |_| part("bytes 400-999/1000", 600),
            Ok(600),
        ),
        ("200 to a range", FROM_400, all, Ok(600)),
        (
            "more than asked for",
            FROM_400,
            |_| part("bytes 300-999/1000", 700),
            Ok(600),
        ),
        (
            "another part",
            FROM_400,
            |_| part("bytes 500-999/1000", 500),
            Err("invalid"),
        ),
        (
            "another size",
            FROM_400,
            |_| part("bytes 400-1999/2000", 1600),
            Err("invalid"),
        ),
        (
            "no range at all",
            FROM_400,
            |_| part("", 600),
            Err("invalid"),
        ),
        (
            "416",
            FROM_400,
            |_| Reply::http("416 No", &[], b""),
            Err("invalid"),
        ),
        (
            "everything, where ranges do not work",
            (400, true),
            |is_range| {
                assert!(!is_range);
                Reply::http("200 OK", &[], &[7; 1000])
            },
            Ok(600),
        ),
        (
            "another whole size",
            (0, false),
            |_| Reply::http("200 OK", &[], &[7; 999]),
            Err("invalid"),
        ),
    ];
    for (what, wanted, answer, expect) in rows {
        check_blob(what, wanted, answer, expect).await;
    }
}

#[tokio::test]
async fn a_server_that_knows_no_head_still_serves_blobs() {
    let raw = Raw::start(|request| {
        if request.starts_with("HEAD") {
            Reply::http("405 No", &[], b"")
        } else {
            Reply::http("200 OK", &[], &[7; 1000])
        }
    })
    .await;
    let client = upstreams(&raw.host(), &[raw.url()]);
    let digest = Digest::parse(DIGEST).unwrap();
    let source = source(&raw.host(), &[]);
    client.has_blob(&source, &digest).await.unwrap();
    let body = client.blob(&source, whole(&digest)).await.unwrap();
    assert_eq!(collect(body).await.unwrap().len(), 1000);
}

#[tokio::test]
async fn bodies_that_trickle_are_given_up() {
    let trickle = |_| {
        let mut start = head("200 OK", &[]);
        start.extend(b"content-length: 1000\r\n\r\n");
        Reply::Trickle {
            head: start,
            body: vec![7; 1000],
            every: Duration::from_millis(20),
        }
    };
    check_blob(
        "one byte after the other",
        (0, false),
        trickle,
        Err("unavailable"),
    )
    .await;
    let raw = Raw::start(|_| chunked(&[], &[7; 4096])).await;
    let client = upstreams(&raw.host(), &[raw.url()]);
    let digest = Digest::parse(&digest_of(b"x")).unwrap();
    let mut body = client
        .blob(&source(&raw.host(), &[]), whole(&digest))
        .await
        .unwrap();
    assert!(
        body.chunk().await.unwrap().is_some(),
        "the caller that stores it counts"
    );
}

#[tokio::test]
async fn a_list_is_read_within_the_memory_of_manifests() {
    let raw = Raw::start(|_| Reply::http("200 OK", &[], br#"{"tags":["1"]}"#)).await;
    let client = upstreams(&raw.host(), &[raw.url()]);
    let source = source(&raw.host(), &[]);
    let host = source.host.to_string();
    let share = limits::MANIFEST_MEMORY_PER_HOST;
    let bytes = vec![0; usize::try_from(share).unwrap()];
    let read = async { Ok::<_, ()>(bytes.into()) };
    let held = client.memory().hold(&host, share, || (), read);
    let held = held.await.unwrap();
    let mut list = Box::pin(client.tags(&source));
    let waits = tokio::time::timeout(Duration::from_secs(1), &mut list).await;
    assert!(waits.is_err(), "{waits:?}");
    assert_eq!(raw.requests().len(), 1, "it was answered");
    drop(held);
    assert_eq!(list.await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn pages_before_one_that_is_too_large_are_kept_and_the_list_is_incomplete() {
    let raw = Raw::start(|request| {
        if target(request).contains("last=") {
            let page = " ".repeat(5 << 20);
            return Reply::http("200 OK", &[], page.as_bytes());
        }
        let link = [("link", "</v2/team/app/tags/list?last=b>; rel=\"next\"")];
        Reply::http("200 OK", &link, br#"{"name":"team/app","tags":["a","b"]}"#)
    })
    .await;
    let (client, source) = at(&raw.url());
    let list = client.tags(&source).await.unwrap();
    assert_eq!((list.entries.len(), list.complete), (2, false));
}
