//! The HTTP surface: `POST /mutate` and `POST /put-back`. Nothing here waits for the network but
//! the request's own body.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Buf;
use futures::Stream;
use holdfast_runtime::server::{PeerAddr, client_address};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use warp::http::{Response, StatusCode, header};
use warp::{Filter, Rejection};

use crate::announce::{Announcement, Announcer};
use crate::bodies::{BODY_TIME, Bodies, Body, Refusal};
use crate::metrics::Metrics;
use crate::mutate::{Mutation, mutate, put_back, put_back_unread};
use crate::review::{self, Review};
use crate::rules::Rules;

pub use crate::bodies::MAX_BODY_BYTES;

/// Small reviews that are judged at a time, which bounds the memory for what is read of them.
/// Judging waits for nothing.
const SMALL_AT_ONCE: usize = 2;
/// Large reviews that are judged at a time, on a thread of their own, so that small ones go on
/// meanwhile.
const LARGE_AT_ONCE: usize = 1;

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
    let desk = Arc::new(Desk::default());
    let rewrites = warp::path!("mutate").map(|| Question::Rewrite);
    let puts_back = warp::path!("put-back").map(|| Question::PutBack);
    rewrites
        .or(puts_back)
        .unify()
        .and(warp::post())
        .and(warp::ext::get::<PeerAddr>())
        .and(warp::header::optional("content-length"))
        .and(warp::body::stream())
        .then(move |question, PeerAddr(peer), length, body| {
            let (context, desk) = (context.clone(), Arc::clone(&desk));
            let client = client_address(peer.ip());
            async move { handle(&context, &desk, (question, client), (length, body)).await }
        })
}

/// What is asked about a pod.
#[derive(Clone, Copy, Debug)]
enum Question {
    /// Which of its images come from the registry.
    Rewrite,
    /// Which names at the registry its namespace may not have.
    PutBack,
}

/// What bounds the memory of all reviews together.
#[derive(Debug)]
struct Desk {
    bodies: Bodies,
    small: Semaphore,
    large: Arc<Semaphore>,
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            bodies: Bodies::default(),
            small: Semaphore::new(SMALL_AT_ONCE),
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
        }
    }
}

/// A review that was read, and what is to be done.
type Judged = Result<(Review, Mutation), review::Error>;

fn judge(body: Body, question: Question, rules: &watch::Receiver<Rules>) -> Judged {
    let review = match question {
        Question::Rewrite => Review::parse(body.as_ref()),
        Question::PutBack => Review::parse_names(body.as_ref()),
    };
    drop(body);
    let review = review?;
    let rules = rules.borrow().clone();
    let mutation = match (&review.subject, question) {
        (Some(subject), question) => {
            let judge = match question {
                Question::Rewrite => mutate,
                Question::PutBack => put_back,
            };
            judge(&subject.pod, subject.old.as_ref(), subject.request, &rules)
        }
        (None, Question::Rewrite) if review.too_large => Mutation::too_large(),
        (None, Question::PutBack) if review.too_large => put_back_unread(&rules),
        (None, _) => Mutation::default(),
    };
    Ok((review, mutation))
}

/// Judges in turn; nothing when its turn did not come before the deadline, or the process ends.
async fn judged(
    desk: &Desk,
    (body, by): (Body, Question),
    rules: &watch::Receiver<Rules>,
    deadline: Instant,
) -> Option<Judged> {
    if body.is_large() {
        let turn = Arc::clone(&desk.large).acquire_owned();
        let turn = timeout_at(deadline, turn).await.ok()?.ok()?;
        let rules = rules.clone();
        // The turn ends with the work, also when the client leaves before.
        let work = tokio::task::spawn_blocking(move || {
            let judged = judge(body, by, &rules);
            drop(turn);
            judged
        });
        work.await.ok()
    } else {
        let _turn = timeout_at(deadline, desk.small.acquire())
            .await
            .ok()?
            .ok()?;
        Some(judge(body, by, rules))
    }
}

async fn handle<S, B>(
    context: &Context,
    desk: &Desk,
    (question, client): (Question, IpAddr),
    body: (Option<u64>, S),
) -> Response<String>
where
    S: Stream<Item = Result<B, warp::Error>> + Send,
    B: Buf,
{
    let deadline = Instant::now() + BODY_TIME;
    let body = match desk.bodies.receive(client, body, deadline).await {
        Ok(body) => body,
        Err(refusal) => {
            let (status, result) = match refusal {
                Refusal::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
                Refusal::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
                Refusal::Slow => (StatusCode::REQUEST_TIMEOUT, "slow"),
                Refusal::Broken => (StatusCode::BAD_REQUEST, "malformed"),
            };
            context.metrics.refused(result);
            tracing::debug!(error = %refusal, "a review was not taken");
            return plain(status, &refusal.to_string());
        }
    };
    let started = Instant::now();
    let (review, mutation) = match judged(desk, (body, question), &context.rules, deadline).await {
        Some(Ok(judged)) => judged,
        Some(Err(error)) => {
            context.metrics.refused("malformed");
            // Whoever reaches the port can send such requests: the metric counts them.
            tracing::debug!(%error, "a request is no review");
            return plain(StatusCode::BAD_REQUEST, &error.to_string());
        }
        None => {
            context.metrics.refused("busy");
            return plain(StatusCode::SERVICE_UNAVAILABLE, &Refusal::Busy.to_string());
        }
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
        let images = &mutation.images;
        let announcements = Announcement::of_pod(&review.namespace, &subject.pod, images);
        context.announcer.announce(announcements);
    }
    reply(StatusCode::OK, "application/json", answer.to_string())
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
