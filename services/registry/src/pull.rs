//! Pulls: local content at once, other content from the upstream while it arrives.

use std::time::Duration;

use bytes::Bytes;
use holdfast_core::{ManifestRef, digest::Digest};
use holdfast_store::{BlobFile, Hasher};
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use tokio::time::Instant;

use crate::{
    body::{self, Body},
    call::Call,
    conditional,
    content_types::LARGE_MANIFEST_BYTES,
    error::{Code, Error, Result, from_fill},
    limits,
    range::{self, Answer},
    response::value,
};
use holdfast_fill::pull_through::{Freshness, Manifest, PulledBlob};

/// end-3
pub(crate) async fn manifest(call: Call<'_>, reference: &ManifestRef) -> Result<Response<Body>> {
    let mut warning = None;
    let found = match (local(call, reference).await?, reference) {
        (Some((digest, bytes)), ManifestRef::Tag(tag)) => match call.source() {
            None => Some((digest, bytes)),
            Some(source) => match source.revalidate(call.repo, tag, &digest).await {
                Freshness::Current => Some((digest, bytes)),
                Freshness::Unknown { reason } => {
                    warning = Some(reason);
                    Some((digest, bytes))
                }
                Freshness::Moved(moved) => match call.api.store.manifest(call.repo, &moved).await {
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
        None => fetch(call, reference).await?,
    };
    let length = bytes.len();
    let conditional = conditional::answer(&call.head.headers, &digest);
    if let Some(source) = call.source() {
        let sent = if conditional.is_some() { 0 } else { length };
        source.served("manifest", is_hit, sent as u64);
    }
    let mut response = if let Some(response) = conditional {
        response
    } else {
        let media_type = call.api.content_types.of(call.repo, &digest, &bytes);
        let mut response = Response::new(manifest_body(call, &digest, bytes).await?);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, value(&media_type));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert("docker-content-digest", value(digest.as_str()));
        headers.insert(header::ETAG, value(&format!("\"{digest}\"")));
        response
    };
    if let Some(reason) = warning {
        let warning = crate::response::warning(&reason);
        response.headers_mut().append(header::WARNING, warning);
    }
    Ok(response)
}

/// The body of a manifest. Clients may leave many answers unread, so a large manifest is not kept
/// in memory for them.
async fn manifest_body(call: Call<'_>, digest: &Digest, bytes: Bytes) -> Result<Body> {
    if call.head.method == http::Method::HEAD {
        return Ok(body::empty());
    }
    let size = bytes.len() as u64;
    if LARGE_MANIFEST_BYTES < bytes.len()
        && let Some(file) = call.api.store.open_blob(digest).await?
        && file.size() == size
    {
        return Ok(body::blob(call.api.store.clone(), file, 0, size));
    }
    Ok(body::full(bytes))
}

async fn local(call: Call<'_>, reference: &ManifestRef) -> Result<Option<(Digest, Bytes)>> {
    let found = match reference {
        ManifestRef::Digest(digest) => call
            .api
            .store
            .manifest(call.repo, digest)
            .await
            .map(|bytes| bytes.map(|bytes| (digest.clone(), bytes))),
        ManifestRef::Tag(tag) => call.api.store.tagged_manifest(call.repo, tag).await,
    };
    match found {
        // It was moved aside, so it is a miss now (SPEC 37).
        Err(holdfast_store::Error::Corrupt { .. }) => Ok(None),
        found => Ok(found?),
    }
}

/// A miss: asks the upstream, or waits a short time until an Artifact allows it.
async fn fetch(call: Call<'_>, reference: &ManifestRef) -> Result<(Digest, Bytes)> {
    let Some(source) = call.source() else {
        return Err(Error::unknown(
            Code::ManifestUnknown,
            "the manifest is not known here",
        ));
    };
    let deadline = Instant::now() + call.api.limits.hold;
    loop {
        match source.manifest(call.repo, reference).await {
            Ok(Manifest { digest, bytes }) => return Ok((digest, bytes)),
            Err(holdfast_fill::Error::NotAllowed) if hold(deadline).await => {}
            Err(error) => return Err(from_fill(error, Code::ManifestUnknown)),
        }
        if let Some(found) = local(call, reference).await? {
            return Ok(found);
        }
    }
}

/// Waits for the next check; `false` when the time is over.
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
async fn on_volume(call: Call<'_>, digest: &Digest) -> Result<Option<BlobFile>> {
    let found = call.api.store.open_repo_blob(call.repo, digest).await?;
    if let Some(file) = &found
        && file.size() == 0
        && Hasher::new(file.digest().algorithm()).finish() != *file.digest()
    {
        call.api.store.quarantine_blob(file).await?;
        return Ok(None);
    }
    Ok(found)
}

/// end-2
pub(crate) async fn blob(call: Call<'_>, digest: &Digest) -> Result<Response<Body>> {
    let found = on_volume(call, digest).await?;
    let is_hit = found.is_some();
    let response = match found {
        Some(file) => stored(call, digest, file),
        None => missing(call, digest).await?,
    };
    if let Some(source) = call.source() {
        let bytes = response.headers().get(header::CONTENT_LENGTH);
        let bytes = bytes
            .filter(|_| call.head.method == http::Method::GET)
            .and_then(|bytes| bytes.to_str().ok()?.parse().ok());
        source.served("blob", is_hit, bytes.unwrap_or(0));
    }
    Ok(response)
}

/// A blob that is not in the store: served while it arrives from another replica or the upstream.
async fn missing(call: Call<'_>, digest: &Digest) -> Result<Response<Body>> {
    let Some(source) = call.source() else {
        return Err(Error::unknown(
            Code::BlobUnknown,
            "the blob is not known to this repository",
        ));
    };
    let deadline = Instant::now() + call.api.limits.hold;
    loop {
        match source.blob(call.repo, digest).await {
            Ok(PulledBlob::Stored(file)) => return Ok(stored(call, digest, file)),
            Ok(PulledBlob::Growing(growing)) => {
                return Ok(reply(call.head, digest, growing.size(), |first, end| {
                    body::growing(growing, first, end)
                }));
            }
            Ok(PulledBlob::Remote(remote)) => return relay(call, digest, &*remote).await,
            Err(holdfast_fill::Error::NotAllowed) if hold(deadline).await => {}
            Err(error) => return Err(from_fill(error, Code::BlobUnknown)),
        }
        if let Some(file) = on_volume(call, digest).await? {
            return Ok(stored(call, digest, file));
        }
    }
}

fn stored(call: Call<'_>, digest: &Digest, file: BlobFile) -> Response<Body> {
    let size = file.size();
    reply(call.head, digest, Some(size), |first, end| {
        let end = end.unwrap_or(size);
        if first == end || call.head.method == http::Method::HEAD {
            body::empty()
        } else {
            body::blob(call.api.store.clone(), file, first, end)
        }
    })
}

async fn relay(
    Call { head, .. }: Call<'_>,
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

/// The answer with the requested range; `make` gets the first byte and the end. Without a known
/// size there are no ranges.
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
