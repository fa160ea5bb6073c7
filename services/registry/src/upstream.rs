//! The client side: registries that images are copied from.
//!
//! Owns endpoints and their order, credentials and tokens, redirects, limits, the circuit breaker. Everything an
//! upstream says is hostile until verified. Knows nothing of the store and of who waits.

mod auth;
mod breaker;
mod client;
mod endpoint;
mod rate;
mod reach;
mod settings;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use holdfast_config::{Proxy, Uplink, UpstreamSettings};
use holdfast_core::{Digest, Host, RepositoryName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use auth::Login;
use endpoint::Endpoint;
pub use settings::{MAX_MANIFEST_BYTES, Timeouts};

/// Why an upstream did not give what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The upstream says that it does not exist.
    #[error("the upstream has no such image")]
    NotFound,
    /// The upstream refused every credential, and nobody.
    #[error("the upstream refused every credential")]
    Unauthorized,
    /// The upstream cannot be reached, is too slow, or fails.
    #[error("the upstream is unavailable: {0}")]
    Unavailable(String),
    /// The upstream's answer breaks a rule: wrong bytes, too large, a redirect to where nothing may be sent.
    #[error("the upstream's answer is not valid: {0}")]
    Invalid(String),
    /// The settings do not make a client.
    #[error("upstream settings: {0}")]
    Settings(String),
}

/// Result of an upstream request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A repository of an upstream, with the credentials that were given for it, tried in turn (SPEC 35).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The upstream's host.
    pub host: Host,
    /// The repository there.
    pub repository: RepositoryName,
    /// Credentials of pull secrets; those of the settings and anonymous access are tried after them.
    pub logins: Vec<Login>,
}

/// A manifest whose bytes were verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Computed from the bytes, never echoed.
    pub digest: Digest,
    /// The answer's `Content-Type` without parameters.
    pub media_type: String,
    /// The exact bytes.
    pub bytes: Bytes,
}

/// The body of a blob as it arrives.
#[derive(Debug)]
pub struct Body {
    response: reqwest::Response,
    endpoint: Arc<Endpoint>,
    rate: Arc<rate::Rate>,
    skip: u64,
    _permits: [OwnedSemaphorePermit; 2],
}

impl Body {
    /// The next bytes; `None` at the end that the upstream declared.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the body breaks or stalls.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let next =
                tokio::time::timeout(self.endpoint.timeouts.stall, self.response.chunk()).await;
            let mut bytes = match next {
                Ok(Ok(Some(bytes))) => bytes,
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(error)) => {
                    return Err(self
                        .endpoint
                        .broke(&format!("the body broke off: {}", client::cause(&error))));
                }
                Err(_) => return Err(self.endpoint.broke("the body stalled")),
            };
            self.rate.take(bytes.len()).await;
            if self.skip > 0 {
                let skipped = usize::try_from(self.skip)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                drop(bytes.split_to(skipped));
                self.skip -= skipped as u64;
                if bytes.is_empty() {
                    continue;
                }
            }
            return Ok(Some(bytes));
        }
    }

    /// Who sent it, for [`Upstreams::quarantine`].
    pub fn endpoint(&self) -> String {
        self.endpoint.url.to_string()
    }
}

/// All upstreams. Clones share everything.
#[derive(Clone)]
pub struct Upstreams {
    inner: Arc<Inner>,
}

struct Inner {
    listed: HashMap<String, UpstreamSettings>,
    proxy: Proxy,
    timeouts: Timeouts,
    endpoints: Mutex<HashMap<String, Vec<Arc<Endpoint>>>>,
    rate: Arc<rate::Rate>,
    all: Arc<Semaphore>,
    each: usize,
    per_host: Mutex<HashMap<String, Arc<Semaphore>>>,
    quarantined: Mutex<HashMap<(String, Digest), Instant>>,
    #[cfg(test)]
    unlisted: std::sync::atomic::AtomicBool,
}

/// Most hosts outside the settings that keep a client; above, the memory starts over.
const MAX_HOSTS: usize = 256;

impl Upstreams {
    /// The upstreams of the settings; others are reached at `https://<host>` when something names them.
    ///
    /// # Errors
    /// [`Error::Settings`] when an endpoint, a certificate or a proxy does not parse.
    pub fn new(
        listed: &[UpstreamSettings],
        proxy: &Proxy,
        uplink: &Uplink,
        timeouts: Timeouts,
    ) -> Result<Self> {
        let upstreams = Self {
            inner: Arc::new(Inner {
                listed: listed
                    .iter()
                    .map(|settings| (settings.host.clone(), settings.clone()))
                    .collect(),
                proxy: proxy.clone(),
                timeouts,
                endpoints: Mutex::default(),
                rate: Arc::new(rate::Rate::new(uplink.bandwidth_bytes_per_second.bytes())),
                all: Arc::new(Semaphore::new(uplink.concurrent_fills.max(1).into())),
                each: uplink.concurrent_fills_per_host.max(1).into(),
                per_host: Mutex::default(),
                quarantined: Mutex::default(),
                #[cfg(test)]
                unlisted: std::sync::atomic::AtomicBool::new(false),
            }),
        };
        for settings in listed {
            let host = Host::parse(&settings.host)
                .map_err(|error| Error::Settings(format!("{}: {error}", settings.host)))?;
            upstreams.endpoints(&host)?;
        }
        Ok(upstreams)
    }

    /// Whether the settings list the host: its images may be fetched on a pull alone.
    pub fn is_listed(&self, host: &Host) -> bool {
        #[cfg(test)]
        if self
            .inner
            .unlisted
            .load(std::sync::atomic::Ordering::Relaxed)
        {
            return false;
        }
        self.inner.listed.contains_key(&host.to_string())
    }

    /// Keeps the endpoints and forgets that the settings name them: nothing may be fetched on a pull alone.
    #[cfg(test)]
    pub(crate) fn unlist(&mut self) {
        self.inner
            .unlisted
            .store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether any endpoint of the host would be asked now: false while every breaker is open.
    pub fn is_reachable(&self, host: &Host) -> bool {
        self.endpoints(host)
            .is_ok_and(|endpoints| endpoints.iter().any(|e| e.closed_for().is_none()))
    }

    fn endpoints(&self, host: &Host) -> Result<Vec<Arc<Endpoint>>> {
        let inner = &self.inner;
        let key = host.to_string();
        let mut endpoints = inner
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = endpoints.get(&key) {
            return Ok(known.clone());
        }
        let settings = inner.listed.get(&key);
        let urls = match settings {
            Some(settings) => settings.endpoints.clone(),
            None => vec![settings::default_endpoint(host)],
        };
        let last = urls.len().saturating_sub(1);
        let made = urls.iter().enumerate().map(|(at, url)| {
            Endpoint::new(
                url,
                at == last,
                settings.cloned(),
                &inner.proxy,
                inner.timeouts,
            )
            .map(Arc::new)
        });
        let made: Vec<_> = made.collect::<Result<_>>()?;
        if endpoints.len() >= MAX_HOSTS {
            endpoints.retain(|host, _| inner.listed.contains_key(host));
        }
        endpoints.insert(key, made.clone());
        Ok(made)
    }

    /// Fetches a manifest by tag or digest and verifies it.
    ///
    /// # Errors
    /// The most telling error of all endpoints.
    pub async fn manifest(&self, source: &Source, target: &str) -> Result<Manifest> {
        let mut failed = None;
        for endpoint in self.endpoints(&source.host)? {
            match endpoint.manifest(source, target).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => failed = Some(worse(failed, error)),
            }
        }
        Err(failed.unwrap_or_else(nowhere))
    }

    /// The digest that a tag names upstream, within the deadline of a revalidation.
    ///
    /// # Errors
    /// [`Error::Unavailable`] after the deadline.
    pub async fn revalidate(&self, source: &Source, target: &str) -> Result<Option<Digest>> {
        let ask = async {
            let mut failed = None;
            for endpoint in self.endpoints(&source.host)? {
                match endpoint.head(source, &format!("manifests/{target}")).await {
                    Ok(digest) => return Ok(digest),
                    Err(error) => failed = Some(worse(failed, error)),
                }
            }
            Err(failed.unwrap_or_else(nowhere))
        };
        let late = || {
            Err(Error::Unavailable(
                "no answer within the deadline of a revalidation".to_owned(),
            ))
        };
        tokio::time::timeout(self.inner.timeouts.revalidate, ask)
            .await
            .unwrap_or_else(|_| late())
    }

    /// Starts to fetch a blob from byte `offset` on. Waits for its turn among all copies.
    ///
    /// # Errors
    /// The most telling error of all endpoints.
    pub async fn blob(&self, source: &Source, digest: &Digest, offset: u64) -> Result<Body> {
        let permits = [
            self.turn(&self.per_host(&source.host)).await?,
            self.turn(&self.inner.all).await?,
        ];
        let mut failed = None;
        for endpoint in self.endpoints(&source.host)? {
            if self.is_quarantined(endpoint.url.as_str(), digest) {
                failed = Some(worse(
                    failed,
                    Error::Invalid("this endpoint sent wrong bytes a moment ago".to_owned()),
                ));
                continue;
            }
            match endpoint.blob(source, digest, offset).await {
                Ok((response, skip)) => {
                    return Ok(Body {
                        response,
                        endpoint,
                        rate: Arc::clone(&self.inner.rate),
                        skip,
                        _permits: permits,
                    });
                }
                Err(error) => failed = Some(worse(failed, error)),
            }
        }
        Err(failed.unwrap_or_else(nowhere))
    }

    async fn turn(&self, semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
        let closed = |_| Error::Unavailable("shutting down".to_owned());
        Arc::clone(semaphore).acquire_owned().await.map_err(closed)
    }

    fn per_host(&self, host: &Host) -> Arc<Semaphore> {
        let mut hosts = self
            .inner
            .per_host
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let semaphore = hosts
            .entry(host.to_string())
            .or_insert_with(|| Arc::new(Semaphore::new(self.inner.each)));
        Arc::clone(semaphore)
    }

    /// Does not ask an endpoint for a blob for a while, because it sent wrong bytes.
    pub fn quarantine(&self, endpoint: &str, digest: &Digest) {
        let mut list = self
            .inner
            .quarantined
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        list.retain(|_, until| *until > now);
        list.insert(
            (endpoint.to_owned(), digest.clone()),
            now + self.inner.timeouts.quarantine,
        );
    }

    fn is_quarantined(&self, endpoint: &str, digest: &Digest) -> bool {
        let list = self
            .inner
            .quarantined
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        list.get(&(endpoint.to_owned(), digest.clone()))
            .is_some_and(|until| *until > Instant::now())
    }
}

fn nowhere() -> Error {
    Error::Unavailable("no endpoint".to_owned())
}

/// Of two errors the one that says more: an unavailable endpoint may hide what the other does not have.
fn worse(first: Option<Error>, second: Error) -> Error {
    let rank = |error: &Error| match error {
        Error::Settings(_) => 0,
        Error::NotFound => 1,
        Error::Unauthorized => 2,
        Error::Invalid(_) => 3,
        Error::Unavailable(_) => 4,
    };
    match first {
        Some(first) if rank(&first) > rank(&second) => first,
        _ => second,
    }
}

/// Parses `Retry-After` in seconds, capped; a date counts as the cap's tenth.
fn retry_after(value: Option<&str>) -> Duration {
    match value.map(str::trim).map(str::parse::<u64>) {
        Some(Ok(seconds)) => Duration::from_secs(seconds).min(settings::MAX_RETRY_AFTER),
        Some(Err(_)) => settings::MAX_RETRY_AFTER / 10,
        None => Duration::from_secs(1),
    }
}

#[cfg(test)]
mod tests;
