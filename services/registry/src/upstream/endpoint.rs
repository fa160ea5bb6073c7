//! One URL of an upstream: its clients, breaker and tokens, and the requests with authentication and redirects by hand.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use holdfast_config::{Proxy, UpstreamSettings};
use holdfast_core::{Algorithm, Digest};
use holdfast_store::Hasher;
use http::{Method, StatusCode, header};
use reqwest::{Client, Response};
use tokio::sync::OnceCell;
use url::Url;

use super::{
    Error, Login, MAX_MANIFEST_BYTES, Manifest, Result, Source, Timeouts,
    auth::{Challenge, TokenAnswer, Tokens, realm_is_bound},
    breaker::Breaker,
    client::{cause, client, probe},
    reach::{self, Reach},
    retry_after,
    settings::{MAX_REDIRECTS, MAX_TOKEN_BYTES, configured_logins},
};

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// How requests to a repository are authorised, once that is known.
#[derive(Debug, Clone)]
struct Known {
    login: Option<Login>,
    challenge: Option<Challenge>,
}

/// One URL of an upstream.
pub(super) struct Endpoint {
    pub(super) url: Url,
    pub(super) timeouts: Timeouts,
    /// Credentials of pull secrets are for the upstream itself, never for its mirrors.
    is_own: bool,
    settings: Option<UpstreamSettings>,
    proxy: Proxy,
    client: Client,
    guarded: OnceCell<(Reach, Client)>,
    breaker: Arc<Mutex<Breaker>>,
    tokens: Tokens,
    known: Mutex<HashMap<String, Known>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("url", &self.url.as_str())
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    pub(super) fn new(
        url: &str,
        is_own: bool,
        settings: Option<UpstreamSettings>,
        proxy: &Proxy,
        timeouts: Timeouts,
    ) -> Result<Self> {
        let bad = |what: String| Error::Settings(format!("{url}: {what}"));
        let parsed = Url::parse(url).map_err(|error| bad(error.to_string()))?;
        let client = client(&parsed, settings.as_ref(), proxy, timeouts, None).map_err(bad)?;
        Ok(Self {
            url: parsed,
            timeouts,
            is_own,
            settings,
            proxy: proxy.clone(),
            client,
            guarded: OnceCell::new(),
            breaker: Arc::new(Mutex::new(Breaker::new(
                timeouts.breaker_min,
                timeouts.breaker_max,
            ))),
            tokens: Tokens::default(),
            known: Mutex::default(),
        })
    }

    pub(super) fn closed_for(&self) -> Option<Duration> {
        self.breaker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .closed_for(Instant::now())
    }

    /// Records a failure of the endpoint and says so; an opened breaker is probed from the background.
    pub(super) fn broke(&self, what: &str) -> Error {
        let opened = self
            .breaker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .failed(Instant::now());
        if let Some(period) = opened {
            tracing::warn!(upstream.url = %self.url, seconds = period.as_secs(), "upstream fails, not asked for a while");
            let (breaker, client, url) = (
                Arc::downgrade(&self.breaker),
                self.client.clone(),
                self.api(""),
            );
            tokio::spawn(probe(breaker, client, url, period, self.timeouts.headers));
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
        match wanted {
            Some(wanted) if wanted != digest => Err(Error::Invalid(format!(
                "manifest {wanted} arrived as {digest}"
            ))),
            _ => Ok(Manifest {
                digest,
                media_type,
                bytes,
            }),
        }
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

    /// A blob's body from `offset` on, and how many of its first bytes are before the offset.
    pub(super) async fn blob(
        &self,
        source: &Source,
        digest: &Digest,
        offset: u64,
    ) -> Result<(Response, u64)> {
        let path = format!("blobs/{digest}");
        if self
            .remembered(source, &self.logins(source).await)
            .is_none()
        {
            // Learns how to authorise without a refused GET: one GET a blob.
            self.ask(source, &Method::HEAD, &path, None).await?;
        }
        let response = self
            .ask(source, &Method::GET, &path, (offset > 0).then_some(offset))
            .await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok((response, offset));
        }
        let range = text(&response, header::CONTENT_RANGE).unwrap_or_default();
        let start = range
            .strip_prefix("bytes ")
            .and_then(|range| range.split('-').next())
            .and_then(|start| start.parse::<u64>().ok());
        match start {
            Some(start) if start <= offset => Ok((response, offset - start)),
            _ => Err(Error::Invalid(format!(
                "asked for bytes from {offset}, was given {range:?}"
            ))),
        }
    }

    async fn read(&self, response: &mut Response, limit: usize) -> Result<bytes::Bytes> {
        let mut bytes = BytesMut::new();
        loop {
            match tokio::time::timeout(self.timeouts.stall, response.chunk()).await {
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

    /// What a request for this source may be made with, in order: its own credentials, the configured ones, none.
    async fn logins(&self, source: &Source) -> Vec<Option<Login>> {
        let mut logins = Vec::new();
        if self.is_own {
            logins.extend(source.logins.iter().cloned().map(Some));
            if let Some(settings) = &self.settings {
                logins.extend(configured_logins(settings).await.into_iter().map(Some));
            }
        }
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
        if let Some(left) = self.closed_for() {
            return Err(Error::Unavailable(format!(
                "it failed before, next probe in {} s",
                left.as_secs() + 1
            )));
        }
        let url = self.api(&format!("{}/{path}", source.repository));
        let logins = self.logins(source).await;
        let mut challenge = None;
        if let Some(known) = self.remembered(source, &logins) {
            let header = self
                .authorisation(source, known.challenge.as_ref(), known.login.as_ref())
                .await;
            if let Ok(header) = header {
                match self.answer(self.follow(method, &url, header, offset).await?) {
                    Err(Error::Unauthorized) => {}
                    other => return other,
                }
            }
            self.forget_token(source, &known);
            self.remember(source, None);
            challenge = known.challenge;
        }
        if challenge.is_none() {
            let response = self.follow(method, &url, None, offset).await?;
            let asked = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
            let asked = asked
                .filter_map(|value| Challenge::parse(value.to_str().ok()?))
                .max_by_key(|c| *c != Challenge::Basic);
            if response.status() != StatusCode::UNAUTHORIZED || asked.is_none() {
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
            challenge = asked;
        }
        let mut failed = Error::Unauthorized;
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

    fn answer(&self, response: Response) -> Result<Response> {
        let status = response.status();
        if status == StatusCode::TOO_MANY_REQUESTS {
            let pause = retry_after(text(&response, header::RETRY_AFTER).as_deref());
            self.breaker
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pause(Instant::now(), pause);
            return Err(Error::Unavailable(format!(
                "too many requests, asks for a pause of {} s",
                pause.as_secs()
            )));
        }
        if status.is_server_error() {
            return Err(self.broke(&format!("status {status}")));
        }
        self.breaker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .succeeded();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Error::Unauthorized),
            StatusCode::NOT_FOUND => Err(Error::NotFound),
            _ if status.is_success() => Ok(response),
            _ => Err(Error::Invalid(format!("status {status}"))),
        }
    }

    /// Sends a request and follows its redirects; only requests to this endpoint's own origin carry authorisation.
    async fn follow(
        &self,
        method: &Method,
        url: &Url,
        authorisation: Option<String>,
        offset: Option<u64>,
    ) -> Result<Response> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let own = url.origin() == self.url.origin();
            let client = if own {
                &self.client
            } else {
                &self.guarded_for(&url).await?.1
            };
            let mut request = client
                .request(method.clone(), url.clone())
                .header(header::ACCEPT, ACCEPT);
            if let Some(value) = authorisation.as_ref().filter(|_| own) {
                request = request.header(header::AUTHORIZATION, value);
            }
            if let Some(offset) = offset {
                request = request.header(header::RANGE, format!("bytes={offset}-"));
            }
            let response = self.send(request).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = text(&response, header::LOCATION)
                .ok_or_else(|| Error::Invalid("a redirect without a location".to_owned()))?;
            let next = url
                .join(&location)
                .map_err(|_| Error::Invalid("a redirect to no URL".to_owned()))?;
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(Error::Invalid("a redirect away from TLS".to_owned()));
            }
            url = next;
        }
        Err(Error::Invalid("too many redirects".to_owned()))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response> {
        match tokio::time::timeout(self.timeouts.headers, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.broke(&cause(&error))),
            Err(_) => Err(self.broke("no answer in time")),
        }
    }

    /// The client for other origins, when `url` may be reached at all.
    async fn guarded_for(&self, url: &Url) -> Result<&(Reach, Client)> {
        let guarded = self
            .guarded
            .get_or_try_init(|| async {
                let reach = Reach::of(reach::addresses(&self.url).await, self.settings.is_some());
                let client = client(
                    &self.url,
                    self.settings.as_ref(),
                    &self.proxy,
                    self.timeouts,
                    Some(reach),
                );
                Ok::<_, Error>((reach, client.map_err(Error::Settings)?))
            })
            .await?;
        if guarded.0.allows_url(url) {
            Ok(guarded)
        } else {
            Err(Error::Invalid(
                "a redirect to an address that may not be reached".to_owned(),
            ))
        }
    }

    /// The `Authorization` value for a challenge and a login.
    async fn authorisation(
        &self,
        source: &Source,
        challenge: Option<&Challenge>,
        login: Option<&Login>,
    ) -> Result<Option<String>> {
        match challenge {
            None => Ok(None),
            Some(Challenge::Basic) => Ok(login.map(Login::basic)),
            Some(Challenge::Bearer { realm, service }) => {
                let token = self.token(source, realm, service.as_deref(), login).await?;
                Ok(Some(format!("Bearer {token}")))
            }
        }
    }

    async fn token(
        &self,
        source: &Source,
        realm: &Url,
        service: Option<&str>,
        login: Option<&Login>,
    ) -> Result<String> {
        let scope = format!("repository:{}:pull", source.repository);
        let key = (
            realm.to_string(),
            service.map(str::to_owned),
            scope.clone(),
            login.cloned(),
        );
        if let Some(token) = self.tokens.get(&key, Instant::now()) {
            return Ok(token);
        }
        let bound = realm_is_bound(&self.url, realm);
        // A foreign realm never sees a credential; without one it may be asked over TLS.
        if !bound && (login.is_some() || realm.scheme() != "https") {
            tracing::warn!(upstream.url = %self.url, realm.host = realm.host_str(), "the token server is not the upstream's, no credential sent");
            return Err(Error::Unauthorized);
        }
        let mut url = realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &scope);
        }
        let client = if bound {
            &self.client
        } else {
            &self.guarded_for(&url).await?.1
        };
        let mut request = client.get(url);
        if let Some(login) = login {
            request = request.header(header::AUTHORIZATION, login.basic());
        }
        // The client follows no redirect by itself, and for tokens nobody does.
        let mut response = self.send(request).await?;
        match response.status() {
            status if status.is_success() => {}
            status if status.is_server_error() => {
                return Err(self.broke(&format!("the token server: status {status}")));
            }
            StatusCode::TOO_MANY_REQUESTS => {
                return Err(Error::Unavailable(
                    "the token server: too many requests".to_owned(),
                ));
            }
            _ => return Err(Error::Unauthorized),
        }
        let bytes = self.read(&mut response, MAX_TOKEN_BYTES).await?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes)
            .map_err(|_| Error::Invalid("the token server's answer".to_owned()))?;
        let (token, lasts) = answer.token().ok_or(Error::Unauthorized)?;
        self.tokens.put(key, token.clone(), Instant::now() + lasts);
        Ok(token)
    }

    fn forget_token(&self, source: &Source, known: &Known) {
        if let Some(Challenge::Bearer { realm, service }) = &known.challenge {
            let scope = format!("repository:{}:pull", source.repository);
            self.tokens.forget(&(
                realm.to_string(),
                service.clone(),
                scope,
                known.login.clone(),
            ));
        }
    }
}

fn text(response: &Response, name: header::HeaderName) -> Option<String> {
    response
        .headers()
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}
