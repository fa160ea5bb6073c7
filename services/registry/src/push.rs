//! Pushes of blobs: sessions whose state travels in the signed `_state`, so that any replica can
//! continue them; whole blobs; mounts.

use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::RepositoryName,
};
use holdfast_store::{CarriedHash, UploadId, UploadWriter};
use http::{HeaderValue, Response, StatusCode, header, request::Parts};

use crate::{
    body::{self, Body},
    call::{Call, Context},
    error::{Code, Error, Result},
    limits, range,
    received::Received,
    response::value,
    route::Endpoint,
    session::State,
};

/// end-4a, end-4c
pub(crate) async fn start(call: Call<'_>, algorithm: Algorithm) -> Result<Response<Body>> {
    call.api
        .check_write(announced(call.head).unwrap_or(0))
        .await?;
    let started_at = now();
    let begun = call
        .api
        .uploads
        .begin(&call.api.store, call.repo, &started_at)
        .await?;
    let id = begun.keep();
    let carried = CarriedHash::none(algorithm);
    let state =
        State::new(call.repo, &id, 0, &started_at, Some(&carried)).of(&call.caller.subject());
    Ok(progress(call, StatusCode::ACCEPTED, &id, &state))
}

/// end-4b
pub(crate) async fn single(
    call: Call<'_>,
    digest: &Digest,
    body: Received,
) -> Result<Response<Body>> {
    call.api
        .check_write(announced(call.head).unwrap_or(0))
        .await?;
    let begun = call
        .api
        .uploads
        .begin(&call.api.store, call.repo, &now())
        .await?;
    let result = async {
        let algorithm = digest.algorithm();
        let writer = call
            .api
            .store
            .whole_upload_writer(call.repo, begun.id(), algorithm);
        let writer = receive(call.api, writer.await?, body, announced(call.head)).await?;
        writer.commit(digest).await?;
        Ok(created(call.repo, digest))
    }
    .await;
    if result.is_ok() {
        begun.end();
    } else {
        // The client does not know the name of this session, so its bytes are of no use.
        begun.cancel().await;
    }
    result
}

/// end-11
pub(crate) async fn mount(
    call: Call<'_>,
    digest: &Digest,
    from: Option<&RepositoryName>,
) -> Result<Response<Body>> {
    call.api.check_write(0).await?;
    if !may_mount(call, digest, from).await? {
        return start(call, digest.algorithm()).await;
    }
    call.api.store.touch_blob(digest).await?;
    call.api.store.link_blob(call.repo, digest).await?;
    Ok(created(call.repo, digest))
}

/// Whether the blob lies in a repository that the caller may pull from: in `from`, or in any that a
/// bounded search finds. The volume alone proves nothing, or a mount would read what belongs to
/// others or was deleted.
async fn may_mount(call: Call<'_>, digest: &Digest, from: Option<&RepositoryName>) -> Result<bool> {
    let may_pull = |repo: &RepositoryName| {
        let pull = Endpoint::GetBlob(repo.clone(), digest.clone());
        call.api.access_control.check(call.caller, &pull).is_ok()
    };
    if call.api.store.stat_blob(digest).await?.is_none() {
        return Ok(false);
    }
    Ok(match from {
        Some(from) => may_pull(from) && call.api.store.repo_has_blob(from, digest).await?,
        None => call
            .api
            .store
            .repositories_with_blob(digest, limits::MOUNT_FOLDERS, limits::MOUNT_REPOSITORIES)
            .await?
            .iter()
            .any(may_pull),
    })
}

/// end-5
pub(crate) async fn patch(
    call: Call<'_>,
    id: &UploadId,
    state: &str,
    body: Received,
) -> Result<Response<Body>> {
    call.api
        .store
        .check_write(announced(call.head).unwrap_or(0))
        .await?;
    let state = verify(call, id, state).await?;
    let writer = open(call, id, &state).await?;
    let written = async {
        receive(call.api, writer, body, expected(call.head))
            .await?
            .finish()
            .await
            .map_err(Error::from)
    };
    let (size, carried) = free_if_full(call, id, written.await).await?;
    call.api.uploads.remember(id, size, &carried);
    let state = State::new(call.repo, id, size, state.started_at(), Some(&carried))
        .of(&call.caller.subject());
    Ok(progress(call, StatusCode::ACCEPTED, id, &state))
}

/// end-6
pub(crate) async fn finish(
    call: Call<'_>,
    id: &UploadId,
    state: &str,
    digest: &Digest,
    body: Received,
) -> Result<Response<Body>> {
    call.api
        .store
        .check_write(announced(call.head).unwrap_or(0))
        .await?;
    let state = verify(call, id, state).await?;
    let writer = if brings_all(call.head, &state) {
        let algorithm = digest.algorithm();
        call.api
            .store
            .whole_upload_writer(call.repo, id, algorithm)
            .await?
    } else {
        open(call, id, &state).await?
    };
    let received = receive(call.api, writer, body, expected(call.head)).await;
    let writer = free_if_full(call, id, received).await?;
    let committed = writer.commit(digest).await;
    if matches!(
        committed,
        Ok(_) | Err(holdfast_store::Error::DigestMismatch { .. })
    ) {
        call.api.uploads.end(id);
    }
    committed?;
    Ok(created(call.repo, digest))
}

/// Whether the request that ends a session brings its bytes from the first to the last, and so few
/// that no client would continue after an interruption.
fn brings_all(head: &Parts, state: &State) -> bool {
    let is_whole = state.offset() == 0 && !head.headers.contains_key(header::CONTENT_RANGE);
    is_whole && announced(head).is_some_and(|length| length <= limits::WHOLE_UPLOAD_BYTES)
}

/// end-13
pub(crate) async fn status(call: Call<'_>, id: &UploadId, state: &str) -> Result<Response<Body>> {
    let state = verify(call, id, state).await?;
    let Some(status) = call.api.store.upload_status(call.repo, id).await? else {
        return Err(holdfast_store::Error::UploadUnknown.into());
    };
    let state = if status.size == state.offset() {
        state
    } else {
        State::new(call.repo, id, status.size, state.started_at(), None).of(&call.caller.subject())
    };
    Ok(progress(call, StatusCode::NO_CONTENT, id, &state))
}

/// end-14
pub(crate) async fn cancel(call: Call<'_>, id: &UploadId, state: &str) -> Result<Response<Body>> {
    verify(call, id, state).await?;
    if !call.api.store.cancel_upload(call.repo, id).await? {
        return Err(holdfast_store::Error::UploadUnknown.into());
    }
    call.api.uploads.end(id);
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

async fn verify(call: Call<'_>, id: &UploadId, state: &str) -> Result<State> {
    // A session that is gone is gone, whatever its state says.
    let status = call
        .api
        .store
        .upload_status(call.repo, id)
        .await?
        .ok_or(holdfast_store::Error::UploadUnknown)?;
    if state.is_empty() && call.api.access_control.sessions_by_name() {
        // Some clients drop the query of Location. The session's name is secret enough to go on
        // where its file ends.
        return Ok(State::new(call.repo, id, status.size, &now(), None));
    }
    let state = State::verify(state, &call.api.secret, call.repo, id).ok_or_else(|| {
        Error::invalid(
            Code::BlobUploadInvalid,
            "the upload's state was not signed here",
        )
    })?;
    if !state.is_of(&call.caller.subject()) {
        return Err(Error::new(
            StatusCode::FORBIDDEN,
            Code::Denied,
            "this upload was begun with other credentials",
        ));
    }
    Ok(state)
}

/// Opens the session where the client goes on: at the state's offset, or where its chunk begins if
/// that is the file's end.
async fn open(call: Call<'_>, id: &UploadId, state: &State) -> Result<UploadWriter> {
    let mut offset = state.offset();
    let mut carried = state.carried();
    if let Some(header) = call.head.headers.get(header::CONTENT_RANGE) {
        let size = call
            .api
            .store
            .upload_status(call.repo, id)
            .await?
            .map_or(0, |status| status.size);
        let Some((first, last)) = header.to_str().ok().and_then(range::parse_chunk) else {
            return Err(out_of_order(
                call,
                id,
                state,
                size,
                "Content-Range has the form first-last",
            ));
        };
        if announced(call.head).is_some_and(|length| length != last - first + 1) {
            return Err(Error::invalid(
                Code::SizeInvalid,
                "Content-Length and Content-Range disagree",
            ));
        }
        if first == size && first != offset {
            carried = CarriedHash::none(carried.hasher.algorithm());
            offset = size;
        } else if first != offset || first > size {
            return Err(out_of_order(call, id, state, size, "chunks come in order"));
        }
    }
    if carried.generation.is_none()
        && let Some(known) = call.api.uploads.carried(id, offset)
    {
        carried = known;
    }
    Ok(call
        .api
        .store
        .upload_writer(call.repo, id, offset, carried, &call.api.owner)
        .await?)
}

/// 416 that says how to go on.
fn out_of_order(call: Call<'_>, id: &UploadId, state: &State, size: u64, message: &str) -> Error {
    let state = if size == state.offset() {
        state.clone()
    } else {
        State::new(call.repo, id, size, state.started_at(), None).of(state.subject())
    };
    Error::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        Code::BlobUploadInvalid,
        message,
    )
    .with(header::LOCATION, value(&location(call, id, &state)))
    .with(header::RANGE, received(size))
}

/// A volume that became full under an upload gets its room back at once: the client has failed, and
/// begins again when there is room.
async fn free_if_full<T>(call: Call<'_>, id: &UploadId, outcome: Result<T>) -> Result<T> {
    if let Err(error) = &outcome
        && error.status() == StatusCode::INSUFFICIENT_STORAGE
    {
        call.api.store.cancel_upload(call.repo, id).await.ok();
        call.api.uploads.end(id);
    }
    outcome
}

async fn receive(
    api: &Context,
    mut writer: UploadWriter,
    mut body: Received,
    expected: Option<u64>,
) -> Result<UploadWriter> {
    let begin = writer.offset();
    let mut asked = begin;
    while let Some(piece) = body.next().await? {
        let received = writer.offset() - begin + piece.len() as u64;
        if expected.is_some_and(|expected| expected < received) {
            return Err(wrong_length());
        }
        api.metrics.received.inc_by(piece.len() as u64);
        if limits::SPACE_EVERY_BYTES <= writer.offset() - asked {
            // Others write, too, and not every body announces its length.
            api.store.check_write(0).await?;
            asked = writer.offset();
        }
        writer.append(piece).await?;
    }
    if expected.is_some_and(|expected| expected != writer.offset() - begin) {
        return Err(wrong_length());
    }
    Ok(writer)
}

fn wrong_length() -> Error {
    Error::invalid(
        Code::SizeInvalid,
        "the body does not have the length that Content-Length or Content-Range announces",
    )
}

/// The length of a chunk by `Content-Length`, or by `Content-Range` where the body is chunked.
/// [`open`] has seen that they agree.
fn expected(head: &Parts) -> Option<u64> {
    announced(head).or_else(|| {
        let range = head.headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
        let (first, last) = range::parse_chunk(range)?;
        Some(last - first + 1)
    })
}

fn announced(head: &Parts) -> Option<u64> {
    head.headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn location(call: Call<'_>, id: &UploadId, state: &State) -> String {
    format!(
        "/v2/{}/blobs/uploads/{}?_state={}",
        call.repo,
        id.as_str(),
        state.sign(&call.api.secret)
    )
}

fn received(size: u64) -> HeaderValue {
    value(&format!("0-{}", size.saturating_sub(1)))
}

fn progress(call: Call<'_>, status: StatusCode, id: &UploadId, state: &State) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(&location(call, id, state)));
    headers.insert(header::RANGE, received(state.offset()));
    headers.insert("docker-upload-uuid", value(id.as_str()));
    response
}

fn created(repo: &RepositoryName, digest: &Digest) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::CREATED;
    response.headers_mut().insert(
        header::LOCATION,
        value(&format!("/v2/{repo}/blobs/{digest}")),
    );
    response
        .headers_mut()
        .insert("docker-content-digest", value(digest.as_str()));
    response
}

/// RFC 3339 in seconds, as distribution writes `startedat`.
fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}
