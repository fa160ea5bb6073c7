//! One URL of an upstream: its clients, breaker and tokens, and what is asked of it.

mod follow;
mod token;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use holdfast_config::{Credentials, UpstreamSettings};
use holdfast_core::{Algorithm, Digest};
use holdfast_store::Hasher;
use http::{Method, StatusCode, header};
use reqwest::{Client, Response};
use serde::Deserialize;
use tokio::sync::OnceCell;
use url::Url;

use super::{
    Error, Login, MAX_MANIFEST_BYTES, Manifest, Result, Source, Timeouts,
    auth::{Challenge, Tokens},
    breaker::Breaker,
    client::{Use, cause, client, probe},
    pace::Pace,
    proxies::Proxies,
    reach::Reach,
    retry_after, settings,
};
use crate::fill_metrics::{FillMetrics, UpstreamLabel};

/// How requests to a repository are authorised, once that is known.
#[derive(Debug, Clone)]
struct Known {
    login: Option<Login>,
    challenge: Option<Challenge>,
}

/// What an endpoint is made of.
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
    pub(super) metrics: FillMetrics,
    /// The upstream's name in metrics.
    pub(super) label: String,
}

/// One URL of an upstream.
pub(super) struct Endpoint {
    pub(super) url: Url,
    pub(super) timeouts: Timeouts,
    pub(super) label: String,
    is_own: bool,
    credentials: Credentials,
    settings: Option<UpstreamSettings>,
    proxies: Arc<Proxies>,
    client: Client,
    guarded: OnceCell<(Reach, Client)>,
    breaker: Arc<Mutex<Breaker>>,
    tokens: Tokens,
    known: Mutex<HashMap<String, Known>>,
    pace: Arc<Pace>,
    metrics: FillMetrics,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("url", &self.url.as_str())
            .finish_non_exhaustive()
    }
}

/// A blob's body as it begins.
pub(super) struct BlobAnswer {
    pub(super) response: Response,
    /// Bytes of the body that lie before the offset that was asked for.
    pub(super) skip: u64,
    /// The whole blob's size, where the answer tells it.
    pub(super) total: Option<u64>,
    /// A strong validator, where there is one.
    pub(super) etag: Option<String>,
}

/// What every manifest and index says.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: u32,
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
            metrics,
            label,
        } = parts;
        let bad = |what: String| Error::Settings(format!("{url}: {what}"));
        let parsed = Url::parse(url).map_err(|error| bad(error.to_string()))?;
        let what = match settings {
            Some(_) => Use::Configured,
            None => Use::Anybody(Reach::of_anybody()),
        };
        let client = client(&parsed, settings.as_ref(), &proxies, timeouts, what).map_err(bad)?;
        Ok(Self {
            url: parsed,
            timeouts,
            label,
            is_own,
            credentials,
            settings,
            proxies,
            client,
            guarded: OnceCell::new(),
            breaker: Arc::new(Mutex::new(Breaker::new(
                timeouts.breaker_min,
                timeouts.breaker_max,
            ))),
            tokens: Tokens::default(),
            known: Mutex::default(),
            pace,
            metrics,
        })
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn closed_for(&self) -> Option<Duration> {
        self.breaker().closed_for(Instant::now())
    }

    /// Records a failure of the endpoint and says so; an opened breaker is probed from the background.
    pub(super) fn broke(&self, what: &str) -> Error {
        let opened = self.breaker().failed(Instant::now());
        if let Some(period) = opened {
            tracing::warn!(upstream.url = %self.url, cause = what, seconds = period.as_secs(), "upstream fails, not asked for a while");
            let (breaker, client, url) = (
                Arc::downgrade(&self.breaker),
                self.client.clone(),
                self.api(""),
            );
            let open = self.metrics.open.get_or_create_owned(&UpstreamLabel {
                upstream: self.label.clone(),
            });
            open.inc();
            let closed = move || {
                open.dec();
            };
            tokio::spawn(probe(
                breaker,
                client,
                url,
                period,
                self.timeouts.headers,
                closed,
            ));
        }
        Error::Unavailable(what.to_owned())
    }

    fn api(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(&format!(
            "{}/v2/{path}",
            self.url.path().trim_end_matches('/')
        ));
        url
    }

    pub(super) async fn manifest(&self, source: &Source, target: &str) -> Result<Manifest> {
        let mut response = self
            .ask(source, &Method::GET, &format!("manifests/{target}"), None)
            .await?;
        let media_type = text(&response, header::CONTENT_TYPE).unwrap_or_default();
        let media_type = media_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned();
        let bytes = self.read(&mut response, MAX_MANIFEST_BYTES).await?;
        let wanted = Digest::parse(target).ok();
        let algorithm = wanted.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let digest = Hasher::digest(algorithm, &bytes);
        if let Some(wanted) = wanted.filter(|wanted| *wanted != digest) {
            return Err(Error::Invalid(format!(
                "manifest {wanted} arrived as {digest}"
            )));
        }
        // A page of a captive portal, for instance: the next mirror may have the real one.
        match serde_json::from_slice::<Shape>(&bytes) {
            Ok(Shape { schema_version: 2 }) => {}
            Ok(Shape { schema_version }) => {
                return Err(Error::Invalid(format!(
                    "the manifest has schema version {schema_version}, only 2 is taken"
                )));
            }
            Err(_) => {
                return Err(Error::Invalid(format!(
                    "what came as a manifest ({}) is none",
                    printable(&media_type)
                )));
            }
        }
        self.metrics.took(&self.label, "manifest", bytes.len());
        Ok(Manifest {
            digest,
            media_type,
            bytes,
        })
    }

    /// The digest that the upstream gives for a path; `None` when it gives none.
    pub(super) async fn head(&self, source: &Source, path: &str) -> Result<Option<Digest>> {
        let response = self.ask(source, &Method::HEAD, path, None).await?;
        let digest = response
            .headers()
            .get("docker-content-digest")
            .and_then(|value| value.to_str().ok());
        Ok(digest.and_then(|digest| Digest::parse(digest).ok()))
    }

    /// Whether a blob may be read, and its size if the server says it. A server that knows no HEAD is asked for the blob, and left at its
    /// first byte.
    pub(super) async fn has_blob(&self, source: &Source, digest: &Digest) -> Result<Option<u64>> {
        let path = format!("blobs/{digest}");
        let mut answer = self.ask(source, &Method::HEAD, &path, None).await;
        if matches!(answer, Err(Error::Invalid(_))) {
            answer = self.ask(source, &Method::GET, &path, None).await;
        }
        Ok(told_size(text(&answer?, header::CONTENT_LENGTH).as_deref()))
    }

    /// A blob's body from `offset` on, asked for as a range or as a whole. `size` is what the blob's descriptor says.
    pub(super) async fn blob(
        &self,
        source: &Source,
        digest: &Digest,
        (offset, whole): (u64, bool),
        size: Option<u64>,
    ) -> Result<BlobAnswer> {
        let path = format!("blobs/{digest}");
        if self
            .remembered(source, &self.logins(source).await)
            .is_none()
        {
            // Learns how to authorise without a refused GET: one GET a blob.
            match self.ask(source, &Method::HEAD, &path, None).await {
                // A server that knows no HEAD.
                Ok(_) | Err(Error::Invalid(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let range = (offset > 0 && !whole).then_some(offset);
        let response = self.ask(source, &Method::GET, &path, range).await?;
        let etag =
            text(&response, header::ETAG).filter(|etag| etag.starts_with('"') && etag.len() > 2);
        // A server that knows no ranges, or whose content changed, begins anew.
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

    async fn read(&self, response: &mut Response, limit: usize) -> Result<bytes::Bytes> {
        let mut bytes = BytesMut::new();
        let deadline = Instant::now() + self.timeouts.crawl;
        loop {
            let wait = self
                .timeouts
                .stall
                .min(deadline.saturating_duration_since(Instant::now()));
            match tokio::time::timeout(wait, response.chunk()).await {
                Ok(Ok(Some(chunk))) if bytes.len() + chunk.len() > limit => {
                    return Err(Error::Invalid(format!(
                        "the answer is larger than {limit} bytes"
                    )));
                }
                Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
                Ok(Ok(None)) => return Ok(bytes.freeze()),
                Ok(Err(error)) => {
                    return Err(self.broke(&format!("the answer broke off: {}", cause(&error))));
                }
                Err(_) => return Err(self.broke("the answer stalled")),
            }
        }
    }

    /// What worked for this repository before, if it is one of the `logins` that this request may use.
    fn remembered(&self, source: &Source, logins: &[Option<Login>]) -> Option<Known> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(source.repository.as_str())?.clone();
        logins.contains(&known.login).then_some(known)
    }

    fn remember(&self, source: &Source, known: Option<Known>) {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() > 4096 {
            all.clear();
        }
        match known {
            Some(known) => all.insert(source.repository.as_str().to_owned(), known),
            None => all.remove(source.repository.as_str()),
        };
    }

    /// What a request for this source may be made with, in order: its own credentials, the endpoint's, none.
    async fn logins(&self, source: &Source) -> Vec<Option<Login>> {
        let mut logins = Vec::new();
        if self.is_own {
            logins.extend(source.logins.iter().cloned().map(Some));
        }
        let host = if let (true, Some(settings)) = (self.is_own, &self.settings) {
            settings.host.clone()
        } else {
            let port = self.url.port().map(|port| format!(":{port}"));
            let host = self.url.host_str().unwrap_or_default();
            format!("{host}{}", port.unwrap_or_default())
        };
        let own = settings::logins(&self.credentials, &host).await;
        logins.extend(own.into_iter().map(Some));
        logins.push(None);
        logins
    }

    /// Asks with the authorisation that worked, else with each credential in turn, at last with none (SPEC 35).
    async fn ask(
        &self,
        source: &Source,
        method: &Method,
        path: &str,
        offset: Option<u64>,
    ) -> Result<Response> {
        let outcome = self.ask_in_turn(source, method, path, offset).await;
        let word = outcome.as_ref().map_or_else(Error::word, |_| "ok");
        self.metrics.asked(&self.label, word);
        outcome
    }

    async fn ask_in_turn(
        &self,
        source: &Source,
        method: &Method,
        path: &str,
        offset: Option<u64>,
    ) -> Result<Response> {
        if let Some(left) = self.closed_for() {
            return Err(Error::Unavailable(format!(
                "it failed before, next probe in {} s",
                left.as_secs() + 1
            )));
        }
        let repository = source.repository.as_str();
        self.pace.take(repository, &source.priority).await?;
        let url = self.api(&format!("{}/{path}", source.repository));
        let logins = self.logins(source).await;
        let has_login = logins.iter().any(Option::is_some);
        let mut challenge = None;
        if let Some(known) = self.remembered(source, &logins) {
            let header = self
                .authorisation(source, known.challenge.as_ref(), known.login.as_ref())
                .await;
            if let Ok(header) = header {
                match self.answer(self.follow(method, &url, header, offset).await?) {
                    Err(Error::Unauthorized) => {}
                    // Nobody sees it; a user may.
                    Err(Error::NotFound) if has_login && known.login.is_none() => {}
                    other => return other,
                }
            }
            self.forget_token(source, &known);
            self.remember(source, None);
            challenge = known.challenge;
        }
        let mut failed = Error::Unauthorized;
        if challenge.is_none() {
            let response = self.follow(method, &url, None, offset).await?;
            let asked = challenge_of(&response);
            let status = response.status();
            match (status, asked) {
                (StatusCode::UNAUTHORIZED, Some(asked)) => challenge = Some(asked),
                // Some registries refuse or hide where they should ask: each credential gets its try.
                (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND, _)
                    if has_login =>
                {
                    if let Err(error) = self.answer(response) {
                        failed = error;
                    }
                    let root = self.follow(&Method::GET, &self.api(""), None, None).await?;
                    challenge = Some(challenge_of(&root).unwrap_or(Challenge::Basic));
                }
                _ => {
                    let answer = self.answer(response);
                    if answer.is_ok() {
                        self.remember(
                            source,
                            Some(Known {
                                login: None,
                                challenge: None,
                            }),
                        );
                    }
                    return answer;
                }
            }
        }
        for login in logins {
            if login.is_none() && challenge == Some(Challenge::Basic) {
                continue;
            }
            let header = match self
                .authorisation(source, challenge.as_ref(), login.as_ref())
                .await
            {
                Ok(header) => header,
                Err(Error::Unauthorized) => continue,
                Err(error) => return Err(error),
            };
            match self.answer(self.follow(method, &url, header, offset).await?) {
                Ok(response) => {
                    self.remember(source, Some(Known { login, challenge }));
                    return Ok(response);
                }
                // Some registries hide from a wrong user what a right one sees.
                Err(Error::NotFound) => failed = Error::NotFound,
                Err(Error::Unauthorized) => {}
                Err(error) => return Err(error),
            }
        }
        Err(failed)
    }

    /// Does not ask the endpoint for as long as it wants.
    fn pause(&self, response: &Response) -> Duration {
        let pause = retry_after(text(response, header::RETRY_AFTER).as_deref());
        self.breaker().pause(Instant::now(), pause);
        let label = UpstreamLabel {
            upstream: self.label.clone(),
        };
        self.metrics.pauses.get_or_create(&label).inc();
        pause
    }

    fn answer(&self, response: Response) -> Result<Response> {
        let status = response.status();
        if status == StatusCode::TOO_MANY_REQUESTS {
            let pause = self.pause(&response);
            return Err(Error::Unavailable(format!(
                "too many requests, asks for a pause of {} s",
                pause.as_secs()
            )));
        }
        if status.is_server_error() {
            return Err(self.broke(&format!("status {status}")));
        }
        self.breaker().succeeded();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Error::Unauthorized),
            StatusCode::NOT_FOUND => Err(Error::NotFound),
            _ if status.is_success() => {
                match text(&response, header::CONTENT_ENCODING).as_deref() {
                    None | Some("" | "identity") => Ok(response),
                    Some(encoding) => Err(Error::Invalid(format!(
                        "the content is encoded ({}) though nobody asked for it",
                        printable(encoding)
                    ))),
                }
            }
            _ => Err(Error::Invalid(format!("status {status}"))),
        }
    }
}

fn challenge_of(response: &Response) -> Option<Challenge> {
    response
        .headers()
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| Challenge::parse(value.to_str().ok()?))
        .max_by_key(|challenge| *challenge != Challenge::Basic)
}

/// The first byte and, where it is told, the whole size of `bytes FIRST-LAST/SIZE`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (first <= last && total.is_none_or(|total: u64| last < total)).then_some((first, total))
}

/// What an upstream said, fit for a log and a header.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .take(60)
        .collect()
}

/// The size of a blob as a `Content-Length` tells it. Some servers answer HEAD with 0 whatever the size.
fn told_size(length: Option<&str>) -> Option<u64> {
    length?.parse().ok().filter(|size| *size > 0)
}

fn text(response: &Response, name: header::HeaderName) -> Option<String> {
    response
        .headers()
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_nothing_tells_no_size() {
        for (length, expect) in [
            (None, None),
            (Some("10"), Some(10)),
            (Some("0"), None),
            (Some("-1"), None),
            (Some("many"), None),
        ] {
            assert_eq!(told_size(length), expect, "{length:?}");
        }
    }

    #[test]
    fn content_ranges_are_read_strictly() {
        for (text, expect) in [
            ("bytes 0-9/10", Some((0, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes 5-9/9", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("bytes 5-/10", None),
            ("items 0-9/10", None),
            ("", None),
        ] {
            assert_eq!(content_range(text), expect, "{text:?}");
        }
    }
}
