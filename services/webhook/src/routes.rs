//! The HTTP surface: `POST /mutate`. Nothing here waits for the network but the request's own body.

use std::time::Instant;

use bytes::{Buf, BytesMut};
use futures::{Stream, StreamExt};
use tokio::sync::watch;
use warp::http::{Response, StatusCode, header};
use warp::{Filter, Rejection};

use crate::announce::{Announcement, Announcer};
use crate::metrics::Metrics;
use crate::mutate::{Mutation, mutate};
use crate::review::{self, Review};
use crate::rules::Rules;

/// Bytes of a body at most. A review holds a pod twice, and the API server takes objects of up to 3 MiB.
pub const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// What the handler of a review works with.
#[derive(Debug, Clone)]
pub struct Context {
    /// The rules of the moment.
    pub rules: watch::Receiver<Rules>,
    /// Where announcements go.
    pub announcer: Announcer,
    /// The numbers.
    pub metrics: Metrics,
}

/// The route table.
pub fn routes(
    context: Context,
) -> impl Filter<Extract = (Response<String>,), Error = Rejection> + Clone {
    warp::path!("mutate")
        .and(warp::post())
        .and(warp::body::stream())
        .then(move |body| handle(context.clone(), body))
}

async fn handle<S, B>(context: Context, body: S) -> Response<String>
where
    S: Stream<Item = Result<B, warp::Error>> + Send,
    B: Buf,
{
    let body = match collect(body).await {
        Ok(body) => body,
        Err((status, text)) => {
            context.metrics.malformed();
            return plain(status, text);
        }
    };
    let started = Instant::now();
    let review = match Review::parse(&body) {
        Ok(review) => review,
        Err(error) => {
            context.metrics.malformed();
            tracing::warn!(%error, "a request is no review");
            return plain(StatusCode::BAD_REQUEST, &error.to_string());
        }
    };
    let mutation = match &review.subject {
        Some(subject) => {
            let rules = context.rules.borrow().clone();
            mutate(&subject.pod, subject.old.as_ref(), subject.request, &rules)
        }
        None => Mutation::default(),
    };
    let answer = match review::answer(&review.uid, &mutation) {
        Ok(answer) => answer,
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written");
            return plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the answer cannot be written",
            );
        }
    };
    context.metrics.answered(&mutation, started.elapsed());
    if let Some(subject) = review.subject.as_ref().filter(|_| !review.dry_run) {
        for announcement in Announcement::of_pod(&review.namespace, &subject.pod, &mutation.images)
        {
            context.announcer.announce(announcement);
        }
    }
    reply(StatusCode::OK, "application/json", answer.to_string())
}

async fn collect<S, B>(body: S) -> Result<BytesMut, (StatusCode, &'static str)>
where
    S: Stream<Item = Result<B, warp::Error>> + Send,
    B: Buf,
{
    let mut body = std::pin::pin!(body);
    let mut collected = BytesMut::new();
    while let Some(part) = body.next().await {
        let mut part = part.map_err(|_| (StatusCode::BAD_REQUEST, "the body broke off"))?;
        if collected.len() + part.remaining() > MAX_BODY_BYTES {
            return Err((
                StatusCode::PAYLOAD_TOO_LARGE,
                "the body is larger than 8 MiB",
            ));
        }
        while part.has_remaining() {
            let chunk = part.chunk();
            let length = chunk.len();
            collected.extend_from_slice(chunk);
            part.advance(length);
        }
    }
    Ok(collected)
}

fn plain(status: StatusCode, text: &str) -> Response<String> {
    reply(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    response
}
