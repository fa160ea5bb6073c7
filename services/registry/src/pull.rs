//! Pulls: what is local at once; what is not, from the upstream while it arrives.

use std::time::Duration;

use bytes::Bytes;
use holdfast_core::{ManifestRef, digest::Digest, oci, reference::RepositoryName};
use holdfast_store::{BlobFile, Hasher};
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    api::{Inner, value},
    body::{self, Body},
    conditional,
    error::{Code, Error, Result, from_fill},
    limits,
    range::{self, Answer},
};
use holdfast_core::shares::Shares;
use holdfast_fill::pull_through::{Freshness, Manifest, PulledBlob};

/// Bytes of a manifest above which an answer is read from the volume while the client takes it,
/// instead of being held in memory.
const HELD_MANIFEST_BYTES: usize = 64 << 10;
/// What a content type that is remembered takes in memory beside its text, bytes.
const CONTENT_TYPE_COST: usize = 1024;

/// end-3
pub(crate) async fn manifest(
    api: &Inner,
    head: &Parts,
    repo: &RepositoryName,
    reference: &ManifestRef,
) -> Result<Response<Body>> {
    let mut warning = None;
    let found = match (local(api, repo, reference).await?, reference) {
        (Some((digest, bytes)), ManifestRef::Tag(tag)) => match api.source_of(repo) {
            None => Some((digest, bytes)),
            Some(source) => match source.revalidate(repo, tag, &digest).await {
                Freshness::Current => Some((digest, bytes)),
                Freshness::Unknown { reason } => {
                    warning = Some(reason);
                    Some((digest, bytes))
                }
                Freshness::Moved(moved) => match api.store.manifest(repo, &moved).await {
                    Ok(Some(moved_bytes)) => Some((moved, moved_bytes)),
                    _ => Some((digest, bytes)),
                },
            },
        },
        (found, _) => found,
    };
    let is_hit = found.is_some();
    let (digest, bytes) = match found {
        Some(found) => found,
        None => fetch(api, repo, reference).await?,
    };
    let length = bytes.len();
    let conditional = conditional::answer(&head.headers, &digest);
    if let Some(source) = api.source_of(repo) {
        let sent = if conditional.is_some() { 0 } else { length };
        source.served("manifest", is_hit, sent as u64);
    }
    let mut response = if let Some(response) = conditional {
        response
    } else {
        let media_type = api.content_types.of(repo, &digest, &bytes);
        let mut response = Response::new(manifest_body(api, head, &digest, bytes).await?);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, value(&media_type));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert("docker-content-digest", value(digest.as_str()));
        headers.insert(header::ETAG, value(&format!("\"{digest}\"")));
        response
    };
    if let Some(reason) = warning {
        let warning = crate::api::warning(&reason);
        response.headers_mut().append(header::WARNING, warning);
    }
    Ok(response)
}

/// The content types of large manifests that were asked for, which are parsed once. Each repository
/// has a share of the memory.
pub(crate) struct ContentTypes {
    held: Mutex<Shares<RepositoryName, Digest, String>>,
}

impl Default for ContentTypes {
    fn default() -> Self {
        Self {
            held: Mutex::new(Shares::new(limits::CONTENT_TYPES_BYTES, usize::MAX)),
        }
    }
}

impl ContentTypes {
    /// The content type of these bytes, which are what the digest says.
    fn of(&self, repo: &RepositoryName, digest: &Digest, bytes: &[u8]) -> String {
        if bytes.len() <= HELD_MANIFEST_BYTES {
            return oci::content_type(bytes);
        }
        let held = || self.held.lock();
        if let Some(known) = held().get(digest) {
            return known.clone();
        }
        let found = oci::content_type(bytes);
        let entry = (found.clone(), CONTENT_TYPE_COST + found.len());
        let now = std::time::Instant::now();
        held().insert(repo, digest.clone(), entry, now);
        found
    }
}

/// A manifest on its way out. Clients may leave many answers unread, so a large one is not held for
/// them.
async fn manifest_body(api: &Inner, head: &Parts, digest: &Digest, bytes: Bytes) -> Result<Body> {
    if head.method == http::Method::HEAD {
        return Ok(body::empty());
    }
    let size = bytes.len() as u64;
    if HELD_MANIFEST_BYTES < bytes.len()
        && let Some(file) = api.store.open_blob(digest).await?
        && file.size() == size
    {
        return Ok(body::blob(api.store.clone(), file, 0, size));
    }
    Ok(body::full(bytes))
}

async fn local(
    api: &Inner,
    repo: &RepositoryName,
    reference: &ManifestRef,
) -> Result<Option<(Digest, Bytes)>> {
    let found = match reference {
        ManifestRef::Digest(digest) => api
            .store
            .manifest(repo, digest)
            .await
            .map(|bytes| bytes.map(|bytes| (digest.clone(), bytes))),
        ManifestRef::Tag(tag) => api.store.tagged_manifest(repo, tag).await,
    };
    match found {
        // It was moved aside: from here on it is a miss (SPEC 37).
        Err(holdfast_store::Error::Corrupt { .. }) => Ok(None),
        found => Ok(found?),
    }
}

/// A miss: asks the upstream, or waits a little until an Artifact allows it.
async fn fetch(
    api: &Inner,
    repo: &RepositoryName,
    reference: &ManifestRef,
) -> Result<(Digest, Bytes)> {
    let Some(source) = api.source_of(repo) else {
        return Err(Error::unknown(
            Code::ManifestUnknown,
            "the manifest is not known here",
        ));
    };
    let deadline = Instant::now() + api.limits.hold;
    loop {
        match source.manifest(repo, reference).await {
            Ok(Manifest { digest, bytes }) => return Ok((digest, bytes)),
            Err(holdfast_fill::Error::NotAllowed) if hold(deadline).await => {}
            Err(error) => return Err(from_fill(error, Code::ManifestUnknown)),
        }
        if let Some(found) = local(api, repo, reference).await? {
            return Ok(found);
        }
    }
}

/// Waits for the next look; `false` when the time is over.
async fn hold(deadline: Instant) -> bool {
    if Instant::now() >= deadline {
        return false;
    }
    tokio::time::sleep(
        limits::HOLD_EVERY
            .min(deadline.saturating_duration_since(Instant::now()))
            .max(Duration::from_millis(1)),
    )
    .await;
    true
}

/// The repository's blob. One of no bytes under the name of some, as a crash of a registry that
/// does not sync leaves it, is a miss: no stream could tell it, because it ends before it begins.
async fn on_volume(
    api: &Inner,
    repo: &RepositoryName,
    digest: &Digest,
) -> Result<Option<BlobFile>> {
    let found = api.store.open_repo_blob(repo, digest).await?;
    if let Some(file) = &found
        && file.size() == 0
        && Hasher::new(file.digest().algorithm()).finish() != *file.digest()
    {
        api.store.quarantine_blob(file).await?;
        return Ok(None);
    }
    Ok(found)
}

/// end-2
pub(crate) async fn blob(
    api: &Inner,
    head: &Parts,
    repo: &RepositoryName,
    digest: &Digest,
) -> Result<Response<Body>> {
    let found = on_volume(api, repo, digest).await?;
    let is_hit = found.is_some();
    let response = match found {
        Some(file) => stored(api, head, digest, file),
        None => missing(api, head, repo, digest).await?,
    };
    if let Some(source) = api.source_of(repo) {
        let bytes = response.headers().get(header::CONTENT_LENGTH);
        let bytes = bytes
            .filter(|_| head.method == http::Method::GET)
            .and_then(|bytes| bytes.to_str().ok()?.parse().ok());
        source.served("blob", is_hit, bytes.unwrap_or(0));
    }
    Ok(response)
}

/// A blob that is not in the store: served while it arrives from another replica or the upstream.
async fn missing(
    api: &Inner,
    head: &Parts,
    repo: &RepositoryName,
    digest: &Digest,
) -> Result<Response<Body>> {
    let Some(source) = api.source_of(repo) else {
        return Err(Error::unknown(
            Code::BlobUnknown,
            "the blob is not known to this repository",
        ));
    };
    let deadline = Instant::now() + api.limits.hold;
    loop {
        match source.blob(repo, digest).await {
            Ok(PulledBlob::Stored(file)) => return Ok(stored(api, head, digest, file)),
            Ok(PulledBlob::Growing(growing)) => {
                return Ok(reply(head, digest, growing.size(), |first, end| {
                    body::growing(growing, first, end)
                }));
            }
            Ok(PulledBlob::Remote(remote)) => return relay(head, digest, &*remote).await,
            Err(holdfast_fill::Error::NotAllowed) if hold(deadline).await => {}
            Err(error) => return Err(from_fill(error, Code::BlobUnknown)),
        }
        if let Some(file) = on_volume(api, repo, digest).await? {
            return Ok(stored(api, head, digest, file));
        }
    }
}

fn stored(api: &Inner, head: &Parts, digest: &Digest, file: BlobFile) -> Response<Body> {
    let size = file.size();
    reply(head, digest, Some(size), |first, end| {
        let end = end.unwrap_or(size);
        if first == end || head.method == http::Method::HEAD {
            body::empty()
        } else {
            body::blob(api.store.clone(), file, first, end)
        }
    })
}

async fn relay(
    head: &Parts,
    digest: &Digest,
    remote: &dyn holdfast_fill::pull_through::PeerBlob,
) -> Result<Response<Body>> {
    if let Some(response) = conditional::answer(&head.headers, digest) {
        return Ok(response);
    }
    let size = remote.size();
    // Only the start of a range is asked of the other replica; the end is cut here.
    let first = match (size, range_header(head, digest)) {
        (Some(size), Some(header)) => match range::parse(Some(header), size) {
            Answer::Part { first, .. } => first,
            _ => 0,
        },
        _ => 0,
    };
    if head.method == http::Method::HEAD {
        return Ok(reply(head, digest, size, |_, _| body::empty()));
    }
    let pieces = remote
        .open(first)
        .await
        .map_err(|error| from_fill(error, Code::BlobUnknown))?;
    Ok(reply(head, digest, size, |first, end| match end {
        Some(end) => body::take(pieces, end - first),
        None => body::stream(pieces),
    }))
}

/// The answer with the asked range; `make` gets the first byte and the end. Without a known size
/// there are no ranges.
fn reply(
    head: &Parts,
    digest: &Digest,
    size: Option<u64>,
    make: impl FnOnce(u64, Option<u64>) -> Body,
) -> Response<Body> {
    if let Some(response) = conditional::answer(&head.headers, digest) {
        return response;
    }
    let answer = size.map_or(Answer::Whole, |size| {
        range::parse(range_header(head, digest), size)
    });
    let (status, first, end) = match (answer, size) {
        (Answer::Part { first, last }, _) => (StatusCode::PARTIAL_CONTENT, first, Some(last + 1)),
        (Answer::Unsatisfiable, Some(size)) => {
            let error = Error::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                Code::SizeInvalid,
                "the range lies outside the blob",
            );
            return error
                .with(header::CONTENT_RANGE, value(&format!("bytes */{size}")))
                .into_response();
        }
        _ => (StatusCode::OK, 0, size),
    };
    let mut response = Response::new(make(first, end));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert("docker-content-digest", value(digest.as_str()));
    headers.insert(header::ETAG, value(&format!("\"{digest}\"")));
    if let Some(end) = end {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(end - first));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    }
    if let (StatusCode::PARTIAL_CONTENT, Some(end), Some(size)) = (status, end, size) {
        headers.insert(
            header::CONTENT_RANGE,
            value(&format!("bytes {first}-{}/{size}", end - 1)),
        );
    }
    response
}

/// The `Range` header of a GET (other methods have none), unless `If-Range` names other content.
fn range_header<'a>(head: &'a Parts, digest: &Digest) -> Option<&'a str> {
    if head.method != http::Method::GET {
        return None;
    }
    let condition = head
        .headers
        .get(header::IF_RANGE)
        .map(|value| value.to_str().unwrap_or_default().trim_matches('"'));
    if condition.is_some_and(|condition| condition != digest.as_str()) {
        return None;
    }
    head.headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_of_a_large_manifest_is_found_once() {
        let types = ContentTypes::default();
        let repo = RepositoryName::parse("a/app").unwrap();
        let digest = |number: usize| Digest::parse(&format!("sha256:{number:064x}")).unwrap();
        let typed = |kind: &str, length: usize| {
            let pad = " ".repeat(length);
            format!(r#"{{"mediaType":"application/{kind}"{pad}}}"#).into_bytes()
        };
        let large = HELD_MANIFEST_BYTES;
        assert_eq!(
            types.of(&repo, &digest(0), &typed("a", large)),
            "application/a"
        );
        // Other bytes cannot have this digest: anyone who sees them was not asked.
        assert_eq!(
            types.of(&repo, &digest(0), &typed("b", large)),
            "application/a"
        );
        assert_eq!(types.of(&repo, &digest(1), &typed("a", 1)), "application/a");
        assert_eq!(types.of(&repo, &digest(1), &typed("b", 1)), "application/b");
        let bytes = typed("c", large);
        for number in 2..3000 {
            types.of(&repo, &digest(number), &bytes);
        }
        let held = types.held.lock();
        assert!(held.bytes() <= limits::CONTENT_TYPES_BYTES);
        assert!(held.get(&digest(2)).is_none() && held.get(&digest(2999)).is_some());
    }
}
