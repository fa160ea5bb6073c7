//! What HTTP itself asks of a server: one host, conditions, and lengths that agree.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{OCI_MANIFEST, Registry, code, header, image, noise, sha256};

/// The status of a request that is written by hand.
async fn raw(registry: &Registry, request: &str) -> u16 {
    let address = registry.url.strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    let status = std::str::from_utf8(&answer[9..]).unwrap();
    status.parse().unwrap()
}

#[tokio::test]
async fn a_request_names_its_host_once() {
    let registry = Registry::start().await;
    for (version, headers, expect) in [
        ("1.1", "host: a\r\n", 200),
        ("1.1", "host: a:5000\r\n", 200),
        ("1.1", "host: [::1]:5000\r\n", 200),
        ("1.1", "host:\r\n", 200),
        ("1.1", "", 400),
        ("1.1", "host: a\r\nhost: a\r\n", 400),
        ("1.1", "host: a\r\nhost: b\r\n", 400),
        ("1.1", "host: a b\r\n", 400),
        ("1.1", "host: x@a\r\n", 400),
        ("1.1", "host: a/b\r\n", 400),
        ("1.0", "", 200),
        ("1.0", "host: a\r\nhost: b\r\n", 400),
    ] {
        let request = format!("GET /v2/ HTTP/{version}\r\n{headers}\r\n");
        assert_eq!(raw(&registry, &request).await, expect, "{request:?}");
    }
}

#[tokio::test]
async fn content_that_the_client_has_is_not_sent_again() {
    let registry = Registry::start().await;
    let (digest, manifest) = registry.push_image("a", "1", b"layer").await;
    let layer = sha256(b"layer");
    for (path, digest, length) in [
        ("/v2/a/manifests/1".to_owned(), &digest, manifest.len()),
        (format!("/v2/a/manifests/{digest}"), &digest, manifest.len()),
        (format!("/v2/a/blobs/{layer}"), &layer, 5),
    ] {
        let same = format!("\"{digest}\"");
        let other = format!("\"{}\"", sha256(b"other"));
        for (name, tag, expect) in [
            ("if-none-match", same.as_str(), 304),
            ("if-none-match", digest.as_str(), 304),
            ("if-none-match", other.as_str(), 200),
            ("if-match", same.as_str(), 200),
            ("if-match", other.as_str(), 412),
        ] {
            for method in ["GET", "HEAD"] {
                let answer = registry.send(method, &path, &[(name, tag)], "").await;
                let why = format!("{method} {path} {name}: {tag}");
                assert_eq!(answer.status(), expect, "{why}");
                if expect != 412 {
                    assert_eq!(header(answer.headers(), "etag"), same, "{why}");
                    let found = header(answer.headers(), "docker-content-digest");
                    assert_eq!(found, digest.as_str(), "{why}");
                }
                let sent = answer.bytes().await.unwrap().len();
                match (method, expect) {
                    ("GET", 200) => assert_eq!(sent, length, "{why}"),
                    ("GET", 412) => {}
                    _ => assert_eq!(sent, 0, "{why}"),
                }
            }
        }
    }
    let absent = format!("/v2/a/blobs/{}", sha256(b"absent"));
    let answer = registry
        .send("GET", &absent, &[("if-none-match", "*")], "")
        .await;
    assert_eq!(answer.status(), 404, "a condition proves nothing");
}

#[tokio::test]
async fn a_chunk_has_the_length_that_its_range_says_also_without_content_length() {
    let registry = Registry::start().await;
    let bytes = noise(300 << 10);
    let digest = sha256(&bytes);
    let begun = registry.send("POST", "/v2/a/blobs/uploads/", &[], "").await;
    let mut location = header(begun.headers(), "location").to_owned();
    let half = bytes.len() / 2;
    let chunked = |bytes: &[u8]| {
        let pieces: Vec<_> = bytes.chunks(10_000).map(<[u8]>::to_vec).collect();
        let pieces = pieces.into_iter().map(Ok::<_, std::io::Error>);
        reqwest::Body::wrap_stream(futures::stream::iter(pieces))
    };
    for (range, body, expect) in [
        (format!("0-{}", half - 2), &bytes[..half], 400),
        (format!("0-{half}"), &bytes[..half], 400),
        (format!("0-{}", u64::MAX), &bytes[..half], 416),
        (format!("0-{}", half - 1), &bytes[..half], 202),
        (format!("{half}-{}", bytes.len() - 2), &bytes[half..], 400),
        (format!("{half}-{}", bytes.len()), &bytes[half..], 400),
        (format!("{half}-{}", bytes.len() - 1), &bytes[half..], 202),
    ] {
        let headers = [("content-range", range.as_str())];
        let answer = registry
            .send("PATCH", &location, &headers, chunked(body))
            .await;
        assert_eq!(answer.status(), expect, "{range}");
        if expect == 202 {
            location = header(answer.headers(), "location").to_owned();
        } else if expect == 400 {
            assert_eq!(code(answer).await.1, "SIZE_INVALID", "{range}");
        }
    }
    let target = format!("{location}&digest={digest}");
    let answer = registry.send("PUT", &target, &[], "").await;
    assert_eq!(answer.status(), 201, "refused chunks left nothing behind");
    let found = registry.get(&format!("/v2/a/blobs/{digest}")).await;
    assert_eq!(found.bytes().await.unwrap(), bytes);
}

#[tokio::test]
async fn a_large_manifest_is_read_from_the_volume_while_it_is_taken() {
    let registry = Registry::start().await;
    let config = registry.push_blob("a", "{}").await;
    let note = "x".repeat(1 << 20);
    let manifest = image(
        &config,
        2,
        &[],
        &format!(r#","annotations":{{"n":"{note}"}}"#),
    );
    assert_eq!(
        registry.put_manifest("a", "1", &manifest).await.status(),
        201
    );
    for path in ["1".to_owned(), sha256(manifest.as_bytes()).to_string()] {
        let path = format!("/v2/a/manifests/{path}");
        let answer = registry.get(&path).await;
        assert_eq!(header(answer.headers(), "content-type"), OCI_MANIFEST);
        let length = header(answer.headers(), "content-length").to_owned();
        assert_eq!(length, manifest.len().to_string());
        assert_eq!(answer.text().await.unwrap(), manifest);
    }
}
