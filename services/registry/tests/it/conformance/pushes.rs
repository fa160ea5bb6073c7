//! The ways to push a blob.

use crate::harness::{Registry, header};
use holdfast_core::digest::{Algorithm, Digest};
use reqwest::Response;

/// How a blob is pushed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// One POST.
    Post,
    /// POST, then PUT with everything.
    PostPut,
    /// One PATCH with a range, then an empty PUT.
    Chunk,
    /// PATCH three times with ranges, then an empty PUT.
    Chunks,
    /// PATCH twice with ranges, the rest with the PUT.
    ChunksAndPut,
    /// One PATCH without a length, then an empty PUT.
    Stream,
}

/// All of them.
pub(crate) const WAYS: [Way; 6] = [
    Way::Post,
    Way::PostPut,
    Way::Chunk,
    Way::Chunks,
    Way::ChunksAndPut,
    Way::Stream,
];

/// Begins a session and returns its location.
pub(crate) async fn begin(registry: &Registry, repo: &str, algorithm: Algorithm) -> String {
    let query = match algorithm {
        Algorithm::Sha256 => String::new(),
        Algorithm::Sha512 => "?digest-algorithm=sha512".to_owned(),
    };
    let begun = registry
        .send(
            "POST",
            &format!("/v2/{repo}/blobs/uploads/{query}"),
            &[],
            "",
        )
        .await;
    assert_eq!(begun.status(), 202, "{query}");
    location(&begun)
}

/// `Location`, which is relative: the same behind every Service and proxy.
pub(crate) fn location(answer: &Response) -> String {
    let location = header(answer.headers(), "location").to_owned();
    assert!(location.starts_with("/v2/"), "{location}");
    location
}

/// The location with the digest, to end a session.
pub(crate) fn closing(location: &str, digest: &Digest) -> String {
    let joint = if location.contains('?') { '&' } else { '?' };
    format!("{location}{joint}digest={digest}")
}

/// Sends one chunk.
pub(crate) async fn chunk(
    registry: &Registry,
    method: &str,
    target: &str,
    first: usize,
    bytes: &[u8],
) -> Response {
    let range = format!("{first}-{}", (first + bytes.len()).saturating_sub(1));
    registry
        .send(method, target, &[("content-range", &range)], bytes.to_vec())
        .await
}

/// Pushes and returns the last answer, whatever it says.
pub(crate) async fn push(
    registry: &Registry,
    repo: &str,
    digest: &Digest,
    bytes: &[u8],
    way: Way,
) -> Response {
    if matches!(way, Way::Post) {
        let target = format!("/v2/{repo}/blobs/uploads/?digest={digest}");
        return registry.send("POST", &target, &[], bytes.to_vec()).await;
    }
    let mut at = begin(registry, repo, digest.algorithm()).await;
    let third = bytes.len().div_ceil(3).max(1);
    let chunks: Vec<&[u8]> = match way {
        Way::Post | Way::PostPut => vec![bytes],
        Way::Stream | Way::Chunk => vec![bytes, b""],
        Way::Chunks => bytes.chunks(third).chain([&b""[..]]).collect(),
        Way::ChunksAndPut => bytes.chunks(third).collect(),
    };
    let last = chunks.last().copied().unwrap_or_default();
    let patches = &chunks[..chunks.len().saturating_sub(1)];
    let mut sent = 0;
    for piece in patches.iter().filter(|piece| !piece.is_empty()) {
        let answer = if matches!(way, Way::Stream) {
            let pieces: Vec<std::io::Result<Vec<u8>>> =
                piece.chunks(100).map(|piece| Ok(piece.to_vec())).collect();
            let body = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
            registry.send("PATCH", &at, &[], body).await
        } else {
            chunk(registry, "PATCH", &at, sent, piece).await
        };
        sent += piece.len();
        assert_eq!(answer.status(), 202, "{way:?}");
        assert_eq!(
            header(answer.headers(), "range"),
            format!("0-{}", sent - 1),
            "{way:?}"
        );
        at = location(&answer);
    }
    let target = closing(&at, digest);
    if last.is_empty() || matches!(way, Way::PostPut) {
        registry.send("PUT", &target, &[], last.to_vec()).await
    } else {
        chunk(registry, "PUT", &target, sent, last).await
    }
}

/// Pushes, and checks that what `Location` names is what was pushed.
pub(crate) async fn pushed(
    registry: &Registry,
    repo: &str,
    digest: &Digest,
    bytes: &[u8],
    way: Way,
) {
    let answer = push(registry, repo, digest, bytes, way).await;
    assert_eq!(answer.status(), 201, "{way:?} {digest}");
    assert_eq!(
        header(answer.headers(), "docker-content-digest"),
        digest.as_str()
    );
    let back = registry.get(&location(&answer)).await;
    assert_eq!(back.status(), 200, "{way:?} {digest}");
    assert_eq!(back.bytes().await.unwrap(), bytes, "{way:?} {digest}");
}
