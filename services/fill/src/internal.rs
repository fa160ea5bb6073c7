//! The internal API: the controller asks for images, and replicas read blobs from each other that
//! are still arriving.
//!
//! Served with mutual TLS on a listener of its own; every caller is the controller or a replica.
//! Knows nothing of clients.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use holdfast_api::{
    access::{self, AccessRequest, AccessResult},
    fill::{self, FillError, FillErrorCode, FillRequest},
    questions::{MAX_QUESTIONS, held},
    space::{self, Level, Space},
};
use holdfast_core::{Digest, ManifestRef, RepositoryName, Tag};
use holdfast_runtime::{
    CancellationToken,
    server::{self, Limits, RequestBody},
    tls::{PeerIdentity, ServerTls},
};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::TcpListener;

use crate::limits::{INTERNAL_REQUEST_BYTES, INTERNAL_REQUEST_TIME};
use crate::{Fills, blob_copies::Growing};

/// Bytes of one read for a stream.
const READ_BYTES: u64 = 256 << 10;
/// Connections at a time. The controller has some tens of questions under way. A replica opens a
/// connection for each stream that it reads here: while a thousand nodes pull three layers each
/// from five replicas that copy all of it, each of them is read by the others 480 times. A reader
/// that finds no place asks again.
const CONNECTIONS: usize = 512;
/// The callers: the names in client certificates of the internal CA.
const CALLERS: [&str; 2] = ["holdfast-controller", "holdfast-registry"];

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Serves the internal API until `shutdown`. Without `tls` any client of the listener may call: for
/// tests only.
pub async fn serve(
    listener: TcpListener,
    tls: Option<ServerTls>,
    fills: Fills,
    shutdown: CancellationToken,
) {
    let needs_identity = tls.is_some();
    let fills = Arc::new(fills);
    let service = server::service_fn(move |request: Request<RequestBody>| {
        let fills = Arc::clone(&fills);
        async move { Ok::<_, Infallible>(answer(&fills, needs_identity, request).await) }
    });
    server::serve(listener, tls, service, limits(), shutdown).await;
}

/// The limits of the listener.
pub fn limits() -> Limits {
    Limits {
        connections: CONNECTIONS,
        part_of_files: 6,
        body_bytes: INTERNAL_REQUEST_BYTES,
        body_timeout: Some(INTERNAL_REQUEST_TIME),
        ..Limits::default()
    }
}

async fn answer(
    fills: &Fills,
    needs_identity: bool,
    request: Request<RequestBody>,
) -> Response<Body> {
    let allowed = request
        .extensions()
        .get::<PeerIdentity>()
        .is_some_and(|peer| CALLERS.contains(&peer.common_name.as_str()));
    if needs_identity && !allowed {
        return refuse(StatusCode::FORBIDDEN, "this certificate may not call");
    }
    let path = request.uri().path().to_owned();
    if request.method() == Method::POST && path == fill::PATH {
        return fill_image(fills, request).await;
    }
    if request.method() == Method::POST && path == access::PATH {
        return access_of_image(fills, request).await;
    }
    if request.method() == Method::POST && path == held::INTERNAL_PATH {
        return held_images(fills, request).await;
    }
    let of_blob = path.strip_prefix("/internal/v1/blobs/");
    if let Some(digest) = of_blob.and_then(|rest| rest.strip_suffix("/sources"))
        && request.method() == Method::POST
    {
        return match Digest::parse(digest) {
            Ok(digest) => take_offer(fills, &digest, request).await,
            Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        };
    }
    if request.method() != Method::GET {
        return refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "GET a blob or a manifest, or POST a fill, a source or a question",
        );
    }
    if path == space::PATH {
        return space_left(fills).await;
    }
    if let Some(digest) = of_blob {
        return match Digest::parse(digest) {
            Ok(digest) => {
                let repo = match repository(&request) {
                    Ok(repo) => repo,
                    Err(error) => return no_name(&error),
                };
                let (first, size) = (range_start(&request), claimed_size(&request));
                blob(fills, repo.as_ref(), &digest, (first, size)).await
            }
            Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        };
    }
    if let Some(digest) = path.strip_prefix("/internal/v1/named/") {
        let named = match (repository(&request), Digest::parse(digest)) {
            (Err(error), _) => return no_name(&error),
            (Ok(Some(repo)), Ok(digest)) => fills.named_here(&repo, &digest),
            _ => Vec::new(),
        };
        if named.is_empty() {
            let what = "no manifest on its way here names it";
            return refuse(StatusCode::NOT_FOUND, what);
        }
        let sizes: Vec<String> = named.iter().map(ToString::to_string).collect();
        return reply(StatusCode::OK, "text/plain", sizes.join(" ").into());
    }
    if let Some(reference) = path.strip_prefix("/internal/v1/manifests/") {
        let repo = match repository(&request) {
            Ok(repo) => repo,
            Err(error) => return no_name(&error),
        };
        let reference = match Digest::parse(reference) {
            Ok(digest) => Some(ManifestRef::Digest(digest)),
            Err(_) => Tag::parse(reference).ok().map(ManifestRef::Tag),
        };
        return match repo
            .zip(reference)
            .and_then(|(repo, reference)| fills.pending_manifests(&repo, &reference))
        {
            Some(entry) => reply(StatusCode::OK, entry.media_type, entry.bytes),
            None => refuse(StatusCode::NOT_FOUND, "no such manifest is on its way here"),
        };
    }
    refuse(StatusCode::NOT_FOUND, "no such endpoint")
}

/// The repository that a request names; an invalid name is refused.
fn repository(request: &Request<RequestBody>) -> Result<Option<RepositoryName>, String> {
    let query = request.uri().query().unwrap_or_default();
    let named =
        url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "repository");
    named
        .map(|(_, repo)| {
            RepositoryName::parse(&repo).map_err(|error| format!("repository: {error}"))
        })
        .transpose()
}

/// The size that the caller's manifest claims for the blob.
fn claimed_size(request: &Request<RequestBody>) -> Option<u64> {
    let query = request.uri().query().unwrap_or_default();
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find(|(name, _)| name == "size")?.1.parse().ok()
}

fn no_name(error: &str) -> Response<Body> {
    refuse(StatusCode::BAD_REQUEST, error)
}

/// The document in a request's body, or the answer to one that is none. Why it does not parse is
/// not told: the text of a parse error may hold what was parsed, a password for instance.
async fn read<T: DeserializeOwned>(
    request: Request<RequestBody>,
    what: &str,
) -> Result<T, Box<Response<Body>>> {
    let body = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Err(Box::new(refuse(error.status(), &error.to_string()))),
    };
    serde_json::from_slice(&body).map_err(|_| Box::new(unreadable(what)))
}

fn unreadable(what: &str) -> Response<Body> {
    failed(&FillError {
        code: FillErrorCode::Invalid,
        message: format!("the body is no {what}"),
    })
}

/// Which credentials may pull an image.
async fn access_of_image(fills: &Fills, request: Request<RequestBody>) -> Response<Body> {
    let request = match read::<AccessRequest>(request, "AccessRequest").await {
        Ok(request) => request,
        Err(answer) => return *answer,
    };
    match fills.access(&request).await {
        Ok(access) => json(StatusCode::OK, &AccessResult { access }),
        Err(error) => failed(&error.into()),
    }
}

/// Which images are on the volume.
async fn held_images(fills: &Fills, request: Request<RequestBody>) -> Response<Body> {
    let request = match read::<held::Images>(request, "list of images").await {
        Ok(request) => request,
        Err(answer) => return *answer,
    };
    if request.images.len() > MAX_QUESTIONS {
        return refuse(StatusCode::BAD_REQUEST, "too many images");
    }
    match fills.held(request.images).await {
        Some(answers) => json(StatusCode::OK, &answers),
        None => refuse(
            StatusCode::TOO_MANY_REQUESTS,
            "other requests ask what is held",
        ),
    }
}

/// Accepts a source that another replica offers for a copy that runs here.
async fn take_offer(
    fills: &Fills,
    digest: &Digest,
    request: Request<RequestBody>,
) -> Response<Body> {
    let claim = claimed_size(&request);
    let request = match read::<FillRequest>(request, "FillRequest").await {
        Ok(request) => request,
        Err(answer) => return *answer,
    };
    match fills.take_offer(digest, claim, &request) {
        Ok(true) => reply(StatusCode::OK, "text/plain", Bytes::new()),
        Ok(false) => refuse(StatusCode::NOT_FOUND, "no copy here takes it"),
        Err(error) => failed(&error.into()),
    }
}

async fn fill_image(fills: &Fills, request: Request<RequestBody>) -> Response<Body> {
    let request = match read::<FillRequest>(request, "FillRequest").await {
        Ok(request) => request,
        Err(answer) => return *answer,
    };
    match fills.fill(&request).await {
        Ok(result) => json(StatusCode::OK, &result),
        Err(error) => {
            let pause = match &error {
                crate::Error::TooMany(pause) | crate::Error::Later(_, pause) => {
                    Some(holdfast_upstream::seconds(*pause))
                }
                _ => None,
            };
            let mut response = failed(&error.into());
            if let Some(seconds) = pause {
                let value = HeaderValue::from(seconds);
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
            response
        }
    }
}

/// How full the volume is.
async fn space_left(fills: &Fills) -> Response<Body> {
    let store = fills.store();
    let full = match store.check_write(0).await {
        Ok(()) => Ok(false),
        Err(holdfast_store::Error::NoSpace { .. }) => Ok(true),
        Err(error) => Err(error),
    };
    let found = async { Ok::<_, holdfast_store::Error>((full?, store.free_space().await?)) };
    match found.await {
        Ok((full, found)) => json(
            StatusCode::OK,
            &Space {
                used_percent: found.used_percent(),
                available_bytes: found.available_bytes,
                total_bytes: found.total_bytes,
                level: match (full, store.filling()) {
                    (true, _) => Level::Full,
                    (false, Some(_)) => Level::Filling,
                    (false, None) => Level::Enough,
                },
            },
        ),
        Err(error) => {
            tracing::error!(%error, "cannot read free space");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "the store failed")
        }
    }
}

fn range_start(request: &Request<RequestBody>) -> u64 {
    let range = request
        .headers()
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok());
    range
        .and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

async fn blob(
    fills: &Fills,
    repo: Option<&RepositoryName>,
    digest: &Digest,
    (offset, size): (u64, Option<u64>),
) -> Response<Body> {
    let not_its = || {
        refuse(
            StatusCode::CONFLICT,
            "the blob is here, and not known to be of this repository",
        )
    };
    let mut is_wanted = false;
    match fills.growing(digest, repo) {
        Growing::Local(growing) => {
            let growing = growing.claiming(size);
            let chunks =
                stream::try_unfold((growing, offset), |(mut growing, offset)| async move {
                    let bytes = growing
                        .read_at(offset, READ_BYTES)
                        .await
                        .map_err(std::io::Error::other)?;
                    let next = offset + bytes.len() as u64;
                    Ok::<_, std::io::Error>((!bytes.is_empty()).then_some((bytes, (growing, next))))
                });
            return streamed(offset, chunks);
        }
        Growing::NotAuthorized => return not_its(),
        Growing::NotYet => is_wanted = true,
        Growing::Nothing => {}
    }
    let found = match repo {
        Some(repo) => fills.store().open_repo_blob(repo, digest).await,
        None => fills.store().open_blob(digest).await,
    };
    match found {
        Ok(Some(file)) => {
            let chunks = stream::try_unfold((file, offset), |(file, offset)| async move {
                let bytes = file
                    .read_at(offset, READ_BYTES)
                    .await
                    .map_err(std::io::Error::other)?;
                let next = offset + bytes.len() as u64;
                Ok::<_, std::io::Error>((!bytes.is_empty()).then_some((bytes, (file, next))))
            });
            streamed(offset, chunks)
        }
        Ok(None) if is_wanted => refuse(StatusCode::ACCEPTED, "nothing of it came so far"),
        Ok(None) => refuse(StatusCode::NOT_FOUND, "no such blob is here or on its way"),
        Err(error) => {
            tracing::error!(%error, "a blob for another replica cannot be read");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "the store failed")
        }
    }
}

fn streamed(
    offset: u64,
    chunks: impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
) -> Response<Body> {
    let mut response =
        Response::new(StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync());
    if offset > 0 {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let octets = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, octets);
    response
}

fn reply(status: StatusCode, media_type: &str, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(
        Full::new(bytes)
            .map_err(|never: Infallible| match never {})
            .boxed_unsync(),
    );
    *response.status_mut() = status;
    let fallback = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_str(media_type).unwrap_or(fallback),
    );
    response
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    reply(status, "application/json", bytes.into())
}

fn failed(error: &FillError) -> Response<Body> {
    let status =
        StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, error)
}

fn refuse(status: StatusCode, message: &str) -> Response<Body> {
    json(
        status,
        &serde_json::json!({"code": "INVALID", "message": message}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_the_connections() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/LIMITS.md");
        let document = std::fs::read_to_string(path).unwrap();
        let cells = format!("| `internal::CONNECTIONS` | {CONNECTIONS} |");
        assert!(document.contains(&cells), "docs/LIMITS.md lacks {cells}");
    }
}
