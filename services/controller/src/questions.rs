//! Answers questions about images in bulk (`holdfast_api::questions`) on the loopback of the pod,
//! where only a port-forward reaches it. Only the leader knows answers.

use crate::Context;
use crate::artifacts::reconcile::wanted_platforms;
use crate::artifacts::{fill, platforms_of_nodes};
use bytes::Bytes;
use holdfast_api::questions::{
    Answer, Answers, MAX_BYTES, MAX_QUESTIONS,
    held::{self, Image, Sources},
    starts::{self, Starts},
};
use holdfast_cluster_index::ClusterIndex;
use holdfast_core::kubelet::Credentials;
use holdfast_runtime::CancellationToken;
use holdfast_runtime::server::{self, RequestBody};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde::de::DeserializeOwned;
use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, Semaphore};

/// Requests at a time. Each holds its body and its answers in memory.
const REQUESTS: usize = 2;
/// Connections at a time.
const CONNECTIONS: usize = 16;
/// Time for the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// What a replica that knows nothing answers.
const NOT_LEADING: &str =
    "this replica of the controller does not lead, or has not read the cluster yet";

/// A status and its text.
type Refusal = (StatusCode, String);

/// What requests share.
struct Shared {
    context: Context,
    registry: OnceCell<fill::Client>,
    requests: Semaphore,
}

/// Serves the questions until `stop`. The registry is the release's, or the one of `client`.
pub async fn serve(
    listener: TcpListener,
    context: Context,
    client: Option<fill::Client>,
    stop: CancellationToken,
) {
    let shared = Arc::new(Shared {
        context,
        registry: OnceCell::new_with(client),
        requests: Semaphore::new(REQUESTS),
    });
    let service = server::service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(respond(answer(&shared, request).await)) }
    });
    server::serve(listener, None, service, limits(), stop).await;
}

fn limits() -> server::Limits {
    server::Limits {
        connections: CONNECTIONS,
        connections_per_address: CONNECTIONS,
        part_of_files: 6,
        body_timeout: Some(BODY_TIMEOUT),
        body_bytes: MAX_BYTES as u64,
        streams: 4,
        drain: Duration::from_secs(1),
        ..server::Limits::default()
    }
}

fn respond(answered: Result<Answers, Refusal>) -> Response<Full<Bytes>> {
    let (status, kind, body) = match answered {
        Ok(answers) => {
            let body = serde_json::to_vec(&answers).unwrap_or_default();
            (StatusCode::OK, "application/json", body)
        }
        Err((status, text)) => (status, "text/plain", format!("{text}\n").into_bytes()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static(kind);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, kind);
    response
}

async fn answer(shared: &Shared, request: Request<RequestBody>) -> Result<Answers, Refusal> {
    let refuse = |status, text: &str| Err((status, text.to_owned()));
    let path = request.uri().path().to_owned();
    if ![held::PATH, starts::PATH].contains(&path.as_str()) {
        return refuse(StatusCode::NOT_FOUND, "no such path");
    }
    if request.method() != Method::POST {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "questions are posted");
    }
    if !shared.context.index.synced() {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, NOT_LEADING);
    }
    let Ok(_running) = shared.requests.try_acquire() else {
        return refuse(
            StatusCode::TOO_MANY_REQUESTS,
            "others are asking; try again",
        );
    };
    if path == starts::PATH {
        let asked: Starts = read(request).await?;
        check(asked.containers.len())?;
        return Ok(answer_starts(&shared.context, asked).await);
    }
    let asked: Sources = read(request).await?;
    check(asked.sources.len())?;
    let client = shared
        .registry
        .get_or_try_init(async || fill::Client::for_release(&shared.context))
        .await
        .map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    let images = images(&shared.context, asked.sources);
    let answers = client.held(&images).await;
    Ok(Answers { answers })
}

/// The document in a request's body.
async fn read<T: DeserializeOwned>(request: Request<RequestBody>) -> Result<T, Refusal> {
    let body = request.into_body().collect().await;
    let body = body.map_err(|error| (error.status(), error.to_string()))?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
}

fn check(questions: usize) -> Result<(), Refusal> {
    if questions > MAX_QUESTIONS {
        let text = format!("at most {MAX_QUESTIONS} questions in one request");
        return Err((StatusCode::BAD_REQUEST, text));
    }
    Ok(())
}

/// Whether nodes start images without a pull, as their agents reported.
async fn answer_starts(context: &Context, asked: Starts) -> Answers {
    let mut answers = Vec::with_capacity(asked.containers.len());
    for container in asked.containers {
        let credentials = Credentials {
            namespace: container.namespace,
            pull_secrets: container.secrets.into_iter().collect(),
            service_account: container.service_account,
        };
        let (reports, now) = (&context.reports, Instant::now());
        let starts = reports.starts(&container.image, &container.node, &credentials, now);
        answers.push(match starts {
            Some(true) => Answer::Yes,
            Some(false) => Answer::No,
            None => Answer::Unknown,
        });
        // A report has thousands of names.
        tokio::task::yield_now().await;
    }
    Answers { answers }
}

/// The sources with the platforms that their Artifacts want, or those of the nodes without one.
fn images(context: &Context, sources: Vec<String>) -> Vec<Image> {
    let of_nodes = platforms_of_nodes(&context.index);
    let mut wanted: HashMap<&str, BTreeSet<String>> = sources
        .iter()
        .map(|source| (source.as_str(), BTreeSet::new()))
        .collect();
    // An Artifact that wants all platforms.
    let mut all: BTreeSet<String> = BTreeSet::new();
    ClusterIndex::read(&context.index.artifacts, |artifacts| {
        for (_, artifact) in artifacts.iter() {
            let Some(platforms) = wanted.get_mut(artifact.spec.source_artifact.as_str()) else {
                continue;
            };
            let of_artifact = wanted_platforms(artifact, &of_nodes);
            if of_artifact.is_empty() {
                all.insert(artifact.spec.source_artifact.clone());
            }
            platforms.extend(of_artifact);
        }
    });
    let platforms = |source: &String| match wanted.get(source.as_str()) {
        _ if all.contains(source) => Vec::new(),
        Some(platforms) if !platforms.is_empty() => platforms.iter().cloned().collect(),
        _ => of_nodes.iter().cloned().collect(),
    };
    let images = sources.iter().map(|source| Image {
        source: source.clone(),
        platforms: platforms(source),
    });
    images.collect()
}

#[cfg(test)]
mod tests;
