//! One URL of an upstream: its clients, circuit breaker and tokens, and the requests to it.

mod access;
mod answer;
mod ask;
mod call;
mod list;
mod redirect;
mod token;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime},
};

use bytes::BytesMut;
use holdfast_config::{Credentials, UpstreamSettings};
use holdfast_core::Hasher;
use holdfast_core::{Algorithm, Digest, RepositoryName, oci};
use http::{Method, StatusCode, header};
use parking_lot::{Mutex, MutexGuard};
use reqwest::{Client, Response};
use tokio::sync::OnceCell;
use url::Url;

use super::{
    Error, Manifest, Memory, Result, Timeouts, UpstreamRepository,
    breaker::{Breaker, Failure, Rejection},
    client::{Destination, Prober, cause, client},
    egress_policy::{self, Allowed, SeenAddresses},
    pace::Pace,
    proxies::Proxies,
    tokens::{Authorisation, Authorisations, Tokens},
};
use crate::{
    metrics::{Metrics, UpstreamLabel},
    throttle::Throttle,
};
pub use answer::seconds;
use answer::{content_range, printable, text, told_size};
use call::{Bytes, Call};
use holdfast_runtime::time_limit::{TimeLimit, within};

/// The cause that clients get about a host inside the network that is no registry.
const NO_REGISTRY: &str =
    "no registry answers there; hosts of this network tell more when they are listed in upstreams";

/// The repository for failures that no request of one repository causes: bodies that break off.
const BODIES: &str = "";

/// The parts of an endpoint.
pub(super) struct Parts<'a> {
    pub(super) url: &'a str,
    /// Whether it is the upstream itself: credentials of pull secrets are never for its mirrors.
    pub(super) is_own: bool,
    pub(super) credentials: Credentials,
    pub(super) settings: Option<UpstreamSettings>,
    pub(super) proxies: Arc<Proxies>,
    pub(super) timeouts: Timeouts,
    /// The pace of requests to the endpoint's host.
    pub(super) pace: Arc<Pace>,
    /// The memory of all manifests that are being received.
    pub(super) memory: Arc<Memory>,
    /// Tokens for upstreams.
    pub(super) tokens: Arc<Tokens>,
    pub(super) known: Arc<Authorisations>,
    /// Limits the messages of failures in the log.
    pub(super) throttle: Arc<Throttle>,
    pub(super) metrics: Metrics,
    /// The upstream's name in metrics.
    pub(super) label: String,
}

/// One URL of an upstream.
pub(super) struct Endpoint {
    pub(super) url: Url,
    /// Where its API begins: ends in `/v2/`.
    root: Url,
    /// The prefix of the names of its repositories: empty, or with a slash at its end.
    prefix: String,
    pub(super) timeouts: Timeouts,
    pub(super) label: String,
    is_own: bool,
    credentials: Credentials,
    settings: Option<UpstreamSettings>,
    proxies: Arc<Proxies>,
    client: Client,
    /// The addresses of the endpoint's own name, where only an image names it.
    seen: SeenAddresses,
    /// The addresses of the names that its redirects led to.
    seen_elsewhere: SeenAddresses,
    /// Whether it answered as a registry before.
    is_registry: AtomicBool,
    guarded: OnceCell<(Allowed, Client)>,
    breaker: Arc<Mutex<Breaker>>,
    tokens: Arc<Tokens>,
    known: Arc<Authorisations>,
    throttle: Arc<Throttle>,
    pace: Arc<Pace>,
    memory: Arc<Memory>,
    metrics: Metrics,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("url", &self.url.as_str())
            .finish_non_exhaustive()
    }
}

/// The beginning of a blob's body.
pub(super) struct BlobAnswer {
    pub(super) response: Response,
    /// Bytes of the body before the requested offset.
    pub(super) skip: u64,
    /// The whole blob's size, if the answer says it.
    pub(super) total: Option<u64>,
    /// A strong validator, where there is one.
    pub(super) etag: Option<String>,
}

impl Endpoint {
    pub(super) fn new(parts: Parts<'_>) -> Result<Self> {
        let Parts {
            url,
            is_own,
            credentials,
            settings,
            proxies,
            timeouts,
            pace,
            memory,
            tokens,
            known,
            throttle,
            metrics,
            label,
        } = parts;
        let bad = |what: String| Error::Settings(format!("{url}: {what}"));
        let parsed = Url::parse(url).map_err(|error| bad(error.to_string()))?;
        let seen = SeenAddresses::default();
        // A name is seen when it is resolved.
        if let Some(address) = egress_policy::literal(&parsed) {
            seen.add(address);
        }
        let what = match settings {
            Some(_) => Destination::Configured,
            None => Destination::Anybody(seen.clone()),
        };
        let client = client(&parsed, settings.as_ref(), &proxies, timeouts, &what).map_err(bad)?;
        let (root, prefix) = api_root(&parsed);
        Ok(Self {
            url: parsed,
            root,
            prefix,
            timeouts,
            label,
            is_own,
            credentials,
            settings,
            proxies,
            client,
            seen,
            seen_elsewhere: SeenAddresses::default(),
            is_registry: AtomicBool::new(false),
            guarded: OnceCell::new(),
            breaker: Arc::new(Mutex::new(Breaker::new(
                timeouts.breaker_min,
                timeouts.breaker_max,
            ))),
            tokens,
            known,
            throttle,
            pace,
            memory,
            metrics,
        })
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock()
    }

    /// Whether it is not asked for anything now.
    pub(super) fn rejects_all(&self) -> bool {
        self.breaker().rejection_of_all(Instant::now()).is_some()
    }

    /// Allows a request, or says why it is not sent.
    fn check_open(&self, call: &Call<'_>) -> Result<()> {
        let now = Instant::now();
        let rejection = self.breaker().rejection(call.repository(), now);
        let (what, asked) = match rejection {
            None => return Ok(()),
            Some(Rejection::Pause(left)) => return Err(Error::TooMany(left)),
            Some(Rejection::Endpoint(cause, left)) => (
                format!("{cause}, next probe in {} s", left.as_secs() + 1),
                cause.asked(now),
            ),
            Some(Rejection::Repository(cause, left)) => (
                format!(
                    "{cause} for this repository, asked again in {} s",
                    left.as_secs() + 1
                ),
                cause.asked(now),
            ),
        };
        Err(match asked {
            Some(pause) => Error::Later(what, pause),
            None => Error::Unavailable(what),
        })
    }

    /// Records that the endpoint was reached and failed for a repository.
    fn failed(&self, call: &Call<'_>, what: &str) -> Error {
        self.record(Failure::Repository(call.repository()), what)
    }

    /// Records that there was no connection to the endpoint.
    fn unreachable(&self, what: &str) -> Error {
        self.record(Failure::Connection, what)
    }

    /// Records that a body broke off.
    pub(super) fn record_failure(&self, what: &str) -> Error {
        self.record(Failure::Repository(BODIES), what)
    }

    /// Records a failure and says so; where it may be more than one request's, the API is probed
    /// from the background.
    fn record(&self, failure: Failure<'_>, what: &str) -> Error {
        let (wait, is_open) = {
            let mut breaker = self.breaker();
            let wait = breaker.failed(failure, what, Instant::now(), SystemTime::now());
            (wait, breaker.is_open())
        };
        if let Some(wait) = wait {
            if is_open {
                tracing::warn!(
                    upstream.url = %self.url, cause = what, seconds = wait.as_secs(),
                    "upstream keeps failing, circuit open until a probe answers"
                );
            }
            let open = self.metrics.open.get_or_create_owned(&UpstreamLabel {
                upstream: self.label.clone(),
            });
            let prober = Prober {
                breaker: Arc::downgrade(&self.breaker),
                client: self.client.clone(),
                url: self.root.clone(),
                timeout: self.timeouts.headers,
                open,
            };
            tokio::spawn(prober.run(wait, is_open));
        }
        Error::Unavailable(self.tellable(what))
    }

    /// Which error details the requester of an image may see. For an unconfigured host in this
    /// network: only that there is no registry, because causes would show which ports are open.
    /// They are in the log.
    pub(super) fn tellable(&self, what: &str) -> String {
        if !self.hides_causes() {
            return what.to_owned();
        }
        if self.may_log("inside", what) {
            tracing::info!(upstream.url = %self.url, cause = what, "a host inside this network that is not listed in upstreams does not answer as a registry");
        }
        NO_REGISTRY.to_owned()
    }

    /// Whether a message that a request can cause is logged.
    fn may_log(&self, kind: &str, about: &str) -> bool {
        let about = format!("{} {about}", self.url);
        self.throttle.passes(kind, &about, Instant::now())
    }

    /// The same for whatever came of all requests. An endpoint decides nothing by what this
    /// returns.
    pub(super) fn discreet(&self, error: Error) -> Error {
        match error {
            Error::Unavailable(what) if what == NO_REGISTRY => Error::Unavailable(what),
            Error::Unavailable(what) => Error::Unavailable(self.tellable(&what)),
            Error::Later(what, pause) if !self.is_confidential() => {
                Error::Later(self.tellable(&what), pause)
            }
            error if self.is_confidential() => {
                Error::Unavailable(self.tellable(&error.to_string()))
            }
            error => error,
        }
    }

    /// Whether the cause of a failure is hidden from the requester. A name can lead to a registry
    /// first, and to any other host of this network later. An answer proves the certificate of the
    /// name; a lost connection can come from any host.
    fn hides_causes(&self) -> bool {
        let is_several = self.settings.is_none() && self.seen.is_inside() && self.seen.is_several();
        is_several || self.is_confidential()
    }

    /// Whether clients learn nothing about the host: it is inside this network and never answered
    /// as a registry.
    fn is_confidential(&self) -> bool {
        // A name that was outside as well may be inside for the next request only.
        let shown = self.is_registry.load(Ordering::Relaxed) && !self.seen.is_mixed();
        self.settings.is_none()
            && ((self.seen.is_inside() && !shown) || self.seen_elsewhere.is_inside())
    }

    fn succeeded(&self, call: &Call<'_>) {
        self.breaker().succeeded(call.repository());
    }

    /// A URL of the API.
    fn api(&self, path: &str) -> Url {
        let mut url = self.root.clone();
        url.set_path(&format!("{}{path}", self.root.path()));
        url
    }

    /// The name of a repository at the endpoint.
    fn path_of(&self, repository: &RepositoryName) -> String {
        format!("{}{repository}", self.prefix)
    }

    pub(super) async fn manifest(
        &self,
        source: &UpstreamRepository,
        target: &str,
    ) -> Result<Manifest> {
        let path = format!("manifests/{target}");
        let call = Call::new(source, Method::GET, &path);
        let response = self.ask(&call).await?;
        self.read_manifest(&call, response, target).await
    }

    /// Reads an answer to its end and verifies it.
    async fn read_manifest(
        &self,
        call: &Call<'_>,
        mut response: Response,
        target: &str,
    ) -> Result<Manifest> {
        let media_type = text(&response, header::CONTENT_TYPE).unwrap_or_default();
        let media_type = media_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned();
        let limit = self.timeouts.manifest_bytes;
        let length = response.content_length();
        if length.is_some_and(|length| length > limit) {
            return Err(too_large(limit));
        }
        let most = length.unwrap_or(limit);
        let most_bytes = usize::try_from(most).unwrap_or(usize::MAX);
        let read = self.read(call, &mut response, most_bytes);
        let host = call.source.host.to_string();
        let (bytes, reserved) = self.memory.hold(&host, most, too_slow, read).await?;
        let wanted = Digest::parse(target).ok();
        let algorithm = wanted.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let digest = Hasher::digest(algorithm, &bytes);
        if let Some(wanted) = wanted.filter(|wanted| *wanted != digest) {
            return Err(Error::Invalid(format!(
                "manifest {wanted} arrived as {digest}"
            )));
        }
        // A page of a captive portal, for instance: the next mirror may have the real one.
        oci::Manifest::parse(&bytes).map_err(|error| {
            Error::NoManifest(format!(
                "what came as a manifest ({}) is none: {error}",
                printable(&media_type)
            ))
        })?;
        self.is_registry.store(true, Ordering::Relaxed);
        self.metrics.took(&self.label, "manifest", bytes.len());
        Ok(Manifest::new(digest, bytes, reserved))
    }

    /// The digest that a tag names: the one that HEAD tells, else that of the manifest itself.
    pub(super) async fn resolve(
        &self,
        source: &UpstreamRepository,
        target: &str,
    ) -> Result<Digest> {
        let path = format!("manifests/{target}");
        let told = match self.ask(&Call::new(source, Method::HEAD, &path)).await {
            Ok(response) => response
                .headers()
                .get("docker-content-digest")
                .and_then(|value| Digest::parse(value.to_str().ok()?).ok()),
            Err(Error::Invalid(_)) => None,
            Err(error) => return Err(error),
        };
        match told {
            // Copies are known by this algorithm; another one's digest could not be compared with
            // theirs.
            Some(digest) if digest.algorithm() == Algorithm::Sha256 => Ok(digest),
            _ => Ok(self.manifest(source, target).await?.digest),
        }
    }

    /// Whether a blob may be read, and its size if the server says it. What HEAD does not grant,
    /// its first byte decides, also where HEAD says that there is none: servers without a HEAD of
    /// blobs say that as well. No more of the body is read.
    pub(super) async fn has_blob(
        &self,
        source: &UpstreamRepository,
        digest: &Digest,
    ) -> Result<Option<u64>> {
        let path = format!("blobs/{digest}");
        let length = |answer: &Response| told_size(text(answer, header::CONTENT_LENGTH).as_deref());
        match self.ask(&Call::new(source, Method::HEAD, &path)).await {
            Ok(answer) => return Ok(length(&answer)),
            Err(Error::Invalid(_) | Error::NotFound) => {}
            Err(error) => return Err(error),
        }
        let first = Call::new(source, Method::GET, &path).part(Bytes::First);
        let answer = match self.ask(&first).await {
            // A blob without a byte has no first one, and some servers know no ranges.
            Err(Error::Invalid(_)) => self.ask(&first.part(Bytes::All)).await?,
            answer => answer?,
        };
        if answer.status() == StatusCode::PARTIAL_CONTENT {
            let range = text(&answer, header::CONTENT_RANGE).unwrap_or_default();
            return Ok(content_range(&range).and_then(|(_, total)| total));
        }
        Ok(length(&answer))
    }

    /// A blob's body from `offset` on, asked for as a range or as a whole. `size` is what the
    /// blob's descriptor says.
    pub(super) async fn blob(
        &self,
        source: &UpstreamRepository,
        digest: &Digest,
        (offset, whole): (u64, bool),
        size: Option<u64>,
    ) -> Result<BlobAnswer> {
        let path = format!("blobs/{digest}");
        let head = Call::new(source, Method::HEAD, &path);
        if self.remembered(&head, &self.logins(source).await).is_none() {
            // Learns how to authorise without a refused GET: one GET a blob.
            match self.ask(&head).await {
                // A server whose HEAD says nothing of its GET.
                Ok(_) | Err(Error::Invalid(_) | Error::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        let bytes = if offset > 0 && !whole {
            Bytes::From(offset)
        } else {
            Bytes::All
        };
        let get = Call::new(source, Method::GET, &path).part(bytes);
        let response = self.ask(&get).await?;
        let etag =
            text(&response, header::ETAG).filter(|etag| etag.starts_with('"') && etag.len() > 2);
        // A server that knows no ranges, or whose content changed, begins again.
        let (start, total) = if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = text(&response, header::CONTENT_RANGE).unwrap_or_default();
            let Some((start, total)) = content_range(&range).filter(|(start, _)| *start <= offset)
            else {
                return Err(Error::Invalid(format!(
                    "asked for bytes from {offset}, was given {:?}",
                    printable(&range)
                )));
            };
            (start, total)
        } else {
            (0, response.content_length())
        };
        if let (Some(size), Some(total)) = (size, total)
            && size != total
        {
            return Err(Error::Invalid(format!(
                "{digest} has {total} bytes there, its manifest says {size}"
            )));
        }
        Ok(BlobAnswer {
            response,
            skip: offset - start,
            total,
            etag,
        })
    }

    async fn read(
        &self,
        call: &Call<'_>,
        response: &mut Response,
        limit: usize,
    ) -> Result<bytes::Bytes> {
        let length = response.content_length().unwrap_or(0);
        let capacity = usize::try_from(length).unwrap_or(usize::MAX).min(limit);
        let mut bytes = BytesMut::with_capacity(capacity);
        let mut whole = TimeLimit::new(self.timeouts.crawl);
        loop {
            let next = within(self.timeouts.stall, response.chunk());
            match whole.run(next).await.flatten() {
                Some(Ok(Some(chunk))) if bytes.len() + chunk.len() > limit => {
                    return Err(too_large(limit as u64));
                }
                Some(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
                Some(Ok(None)) => return Ok(bytes.freeze()),
                Some(Err(error)) => {
                    let text = format!("the answer broke off: {}", cause(&error));
                    return Err(self.failed(call, &text));
                }
                None => return Err(self.failed(call, "the answer stalled")),
            }
        }
    }
}

/// A manifest of another host needed the memory.
fn too_slow() -> Error {
    Error::Busy("the answer arrived slowly while others waited".to_owned())
}

fn too_large(limit: u64) -> Error {
    Error::Invalid(format!("the answer is larger than {limit} bytes"))
}

/// Where an endpoint's API begins, and what stands before the names of its repositories. An
/// endpoint's path lies before `/v2/` (Artifactory), unless it holds that part itself
/// (`https://harbor.example/v2/hub-cache`, a proxy project of Harbor).
fn api_root(endpoint: &Url) -> (Url, String) {
    let path = endpoint.path().trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    let (before, behind) = match parts.iter().position(|part| *part == "v2") {
        Some(at) => (&parts[..at], &parts[at + 1..]),
        None => (&parts[..], &[][..]),
    };
    let mut root = endpoint.clone();
    root.set_path(&format!("{}/v2/", before.join("/")));
    let mut prefix = behind.join("/");
    if !prefix.is_empty() {
        prefix.push('/');
    }
    (root, prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoints_path_holds_the_version_once() {
        for (endpoint, root, prefix) in [
            ("https://a.example", "https://a.example/v2/", ""),
            ("https://a.example/", "https://a.example/v2/", ""),
            ("https://a.example/v2", "https://a.example/v2/", ""),
            ("https://a.example/v2/", "https://a.example/v2/", ""),
            (
                "https://harbor.example/v2/hub-cache",
                "https://harbor.example/v2/",
                "hub-cache/",
            ),
            (
                "https://harbor.example:8443/v2/cache/hub/",
                "https://harbor.example:8443/v2/",
                "cache/hub/",
            ),
            (
                "https://a.example/artifactory/api/docker/hub",
                "https://a.example/artifactory/api/docker/hub/v2/",
                "",
            ),
            (
                "https://a.example/artifactory/v2/hub",
                "https://a.example/artifactory/v2/",
                "hub/",
            ),
        ] {
            let (found, before) = api_root(&endpoint.parse().unwrap());
            assert_eq!(
                (found.as_str(), before.as_str()),
                (root, prefix),
                "{endpoint}"
            );
        }
    }
}
