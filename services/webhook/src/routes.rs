//! The HTTP endpoints `POST /mutate` and `POST /put-back`. A request waits for its own body and for
//! its turn, and for no other I/O.

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
use crate::bodies::{BODY_TIME, Body, BodyBudget, Refusal};
use crate::metrics::Metrics;
use crate::mutate::{Mutation, mutate, restore, restore_unread};
use crate::review::{self, Review};
use crate::rules::Rules;

pub use crate::bodies::MAX_BODY_BYTES;

/// Small reviews that are evaluated at a time. Bounds the memory of parsed reviews.
const SMALL_AT_ONCE: usize = 2;
/// Large reviews that are evaluated at a time, on a blocking thread, so that small ones do not wait
/// for them.
const LARGE_AT_ONCE: usize = 1;

/// What the handlers need.
#[derive(Debug, Clone)]
pub struct Context {
    /// The current rules.
    pub rules: watch::Receiver<Rules>,
    /// The user name of the controller, whose changes of pods stay as they are.
    pub controller: Arc<str>,
    /// Where announcements go.
    pub announcer: Announcer,
    /// The metrics.
    pub metrics: Metrics,
}

/// The routes.
pub fn routes(
    context: Context,
) -> impl Filter<Extract = (Response<String>,), Error = Rejection> + Clone {
    let capacity = Arc::new(Capacity::default());
    let rewrites = warp::path!("mutate").map(|| Endpoint::Rewrite);
    let restores = warp::path!("put-back").map(|| Endpoint::Restore);
    rewrites
        .or(restores)
        .unify()
        .and(warp::post())
        .and(warp::ext::get::<PeerAddr>())
        .and(warp::header::optional("content-length"))
        .and(warp::body::stream())
        .then(move |endpoint, PeerAddr(peer), length, body| {
            let (context, capacity) = (context.clone(), Arc::clone(&capacity));
            let client = client_address(peer.ip());
            async move { handle(&context, &capacity, (endpoint, client), (length, body)).await }
        })
}

/// The endpoint, which decides about a pod in its own way.
#[derive(Clone, Copy, Debug)]
enum Endpoint {
    /// `/mutate`: rewrite references to the registry.
    Rewrite,
    /// `/put-back`: replace references that the namespace may not have by the originals.
    Restore,
}

/// The limits on all reviews together.
#[derive(Debug)]
struct Capacity {
    bodies: BodyBudget,
    small: Semaphore,
    large: Arc<Semaphore>,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            bodies: BodyBudget::default(),
            small: Semaphore::new(SMALL_AT_ONCE),
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
        }
    }
}

/// A parsed review and the decision about its pod.
type Evaluated = Result<(Review, Mutation), review::Error>;

fn evaluate(
    body: Body,
    endpoint: Endpoint,
    rules: &watch::Receiver<Rules>,
    controller: &str,
) -> Evaluated {
    let review = match endpoint {
        Endpoint::Rewrite => Review::parse(body.as_ref()),
        Endpoint::Restore => Review::parse_names(body.as_ref()),
    };
    drop(body);
    let review = review?;
    let rules = rules.borrow().clone();
    let mutation = match (&review.subject, endpoint) {
        // Healing has decided which reference the pod gets.
        (Some(_), Endpoint::Rewrite) if review.user == controller => Mutation::default(),
        (Some(subject), endpoint) => {
            let decide = match endpoint {
                Endpoint::Rewrite => mutate,
                Endpoint::Restore => restore,
            };
            decide(&subject.pod, subject.old.as_ref(), subject.request, &rules)
        }
        (None, Endpoint::Rewrite) if review.too_large => Mutation::too_large(),
        (None, Endpoint::Restore) if review.too_large => restore_unread(&rules),
        (None, _) => Mutation::default(),
    };
    Ok((review, mutation))
}

/// Evaluates a review when it is its turn. `None` if its turn does not come before the deadline, or
/// the process ends.
async fn evaluate_in_turn(
    context: &Context,
    capacity: &Capacity,
    (body, endpoint): (Body, Endpoint),
    deadline: Instant,
) -> Option<Evaluated> {
    let rules = &context.rules;
    if body.is_large() {
        let turn = Arc::clone(&capacity.large).acquire_owned();
        let turn = timeout_at(deadline, turn).await.ok()?.ok()?;
        let (rules, controller) = (rules.clone(), Arc::clone(&context.controller));
        // The turn ends with the work, even if the client disconnects before.
        let work = tokio::task::spawn_blocking(move || {
            let evaluated = evaluate(body, endpoint, &rules, &controller);
            drop(turn);
            evaluated
        });
        work.await.ok()
    } else {
        let _turn = timeout_at(deadline, capacity.small.acquire())
            .await
            .ok()?
            .ok()?;
        Some(evaluate(body, endpoint, rules, &context.controller))
    }
}

async fn handle<S, B>(
    context: &Context,
    capacity: &Capacity,
    (endpoint, client): (Endpoint, IpAddr),
    body: (Option<u64>, S),
) -> Response<String>
where
    S: Stream<Item = Result<B, warp::Error>> + Send,
    B: Buf,
{
    let deadline = Instant::now() + BODY_TIME;
    let body = match capacity.bodies.receive(client, body, deadline).await {
        Ok(body) => body,
        Err(refusal) => {
            let (status, result) = match refusal {
                Refusal::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
                Refusal::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
                Refusal::Slow => (StatusCode::REQUEST_TIMEOUT, "slow"),
                Refusal::Broken => (StatusCode::BAD_REQUEST, "malformed"),
            };
            context.metrics.refused(result);
            tracing::debug!(error = %refusal, "a request body was refused");
            return plain(status, &refusal.to_string());
        }
    };
    let started = Instant::now();
    let (review, mutation) =
        match evaluate_in_turn(context, capacity, (body, endpoint), deadline).await {
            Some(Ok(evaluated)) => evaluated,
            Some(Err(error)) => {
                context.metrics.refused("malformed");
                // Any client can send such requests, so they are counted and not logged as
                // warnings.
                tracing::debug!(%error, "request is not an AdmissionReview");
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
            tracing::error!(%error, "cannot serialize the answer");
            return plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the answer cannot be serialized",
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
