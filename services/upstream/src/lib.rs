//! Client of upstream registries, which images are copied from.
//!
//! Owns endpoints and their order, credentials and tokens, redirects and the egress policy, circuit
//! breakers, pacing, and the scheduler of copies. Everything that an upstream says is hostile until
//! verified. Knows nothing of the store and of the distribution API. `docs/design/fills.md` is the
//! protocol.

mod access;
mod auth;
mod body;
mod breaker;
mod client;
mod egress_policy;
mod endpoint;
mod entries;
pub mod flow;
pub mod limits;
mod lists;
mod memory;
pub mod metrics;
mod negative_cache;
mod pace;
mod proxies;
mod rate;
mod requester;
mod scheduler;
mod settings;
mod throttle;
mod tokens;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use holdfast_api::fill::Priority;
use holdfast_config::{Credentials, Proxy, Uplink, UpstreamSettings};
use holdfast_core::{Digest, Host, RepositoryName};
use parking_lot::{Mutex, MutexGuard};

pub use auth::Login;
#[doc(hidden)]
pub use auth::realm;
pub use body::Body;
use endpoint::{Endpoint, Parts};
pub use lists::{Pages, Referrer};
pub use memory::{Manifest, Memory, Reserved};
use negative_cache::NegativeCache;
use pace::Pace;
use proxies::Proxies;
use rate::Rate;
pub use requester::Requester;
use scheduler::{FillScheduler, Slot};
pub use scheduler::{Interest, SharedPriority, Wait};
pub use settings::{Timeouts, seconds};
use tokens::{Authorisations, Tokens};

pub use metrics::Metrics;

use crate::{metrics::UpstreamLabel, throttle::Throttle};

/// Why a request to an upstream failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The upstream says that the content does not exist.
    #[error("the upstream has no such image")]
    NotFound,
    /// The upstream refused every credential, and an anonymous request.
    #[error("the upstream refused every credential")]
    Unauthorized,
    /// The upstream cannot be reached, is too slow, or fails.
    #[error("the upstream is unavailable: {0}")]
    Unavailable(String),
    /// The same, and the upstream says when it may be asked again.
    #[error("the upstream is unavailable: {0}")]
    Later(String, Duration),
    /// The upstream asked for a pause of this length (429).
    #[error("the upstream is unavailable: too many requests, asks for a pause of {} s", settings::seconds(*.0))]
    TooMany(Duration),
    /// The upstream's answer breaks a rule: wrong bytes, too large, a redirect to where nothing may
    /// be sent.
    #[error("the upstream's answer is not valid: {0}")]
    Invalid(String),
    /// The bytes have the requested digest and are no supported manifest.
    #[error("the upstream's answer is not valid: {0}")]
    NoManifest(String),
    /// It was not asked: too many requests wait for it, or the clients of this one have left.
    #[error("the upstream was not asked: {0}")]
    Busy(String),
    /// The settings are not valid.
    #[error("upstream settings: {0}")]
    Settings(String),
}

impl Error {
    /// The error as a label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Unauthorized => "unauthorized",
            Self::Unavailable(_) | Self::Later(..) | Self::TooMany(_) | Self::Settings(_) => {
                "unavailable"
            }
            Self::Invalid(_) | Self::NoManifest(_) => "invalid",
            Self::Busy(_) => "busy",
        }
    }
}

/// Result of an upstream request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A repository of an upstream, with the credentials that were given for it, tried in turn (SPEC
/// 35).
#[derive(Debug, Clone)]
pub struct UpstreamRepository {
    /// The upstream's host.
    pub host: Host,
    /// The repository there.
    pub repository: RepositoryName,
    /// Credentials of pull secrets; those of the settings and anonymous access are tried after
    /// them.
    pub logins: Vec<Login>,
    /// The priority, shared by all requests of one copy.
    pub priority: SharedPriority,
}

/// A request for bytes of a blob.
#[derive(Debug, Clone, Copy)]
pub struct BlobRequest<'a> {
    /// The blob.
    pub digest: &'a Digest,
    /// Its size by its descriptor.
    pub size: Option<u64>,
    /// The first byte that is wanted.
    pub offset: u64,
    /// Request the whole blob and skip the bytes before `offset`: for servers without ranges.
    pub whole: bool,
    /// Endpoints whose bodies broke off before: asked after the others.
    pub avoid: &'a [String],
    /// How often this copy had a slot before and was preempted.
    pub yielded: u32,
}

/// All upstreams. Clones share everything.
#[derive(Clone)]
pub struct Upstreams {
    inner: Arc<Inner>,
}

struct Inner {
    listed: HashMap<String, UpstreamSettings>,
    proxies: Arc<Proxies>,
    timeouts: Timeouts,
    endpoints: Mutex<HashMap<String, Vec<Arc<Endpoint>>>>,
    rate: Rate,
    requests_per_second: u64,
    paces: Mutex<HashMap<String, Arc<Pace>>>,
    scheduler: FillScheduler,
    quarantined: Mutex<HashMap<(String, Digest), Instant>>,
    negative: NegativeCache,
    memory: Arc<Memory>,
    tokens: Arc<Tokens>,
    known: Arc<Authorisations>,
    throttle: Arc<Throttle>,
    metrics: Metrics,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstreams").finish_non_exhaustive()
    }
}

/// Most hosts outside the settings that keep a client; above, the memory starts over.
const MAX_HOSTS: usize = 256;

impl Upstreams {
    /// The upstreams of the settings; others are reached at `https://<host>` when something names
    /// them.
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
                proxies: Arc::new(Proxies::new(proxy).map_err(Error::Settings)?),
                timeouts,
                endpoints: Mutex::default(),
                rate: Rate::new(
                    uplink.bandwidth_bytes_per_second.bytes(),
                    Duration::from_millis(250),
                ),
                requests_per_second: uplink.requests_per_second_per_host.into(),
                paces: Mutex::default(),
                scheduler: FillScheduler::new(
                    uplink.concurrent_fills.into(),
                    uplink.concurrent_fills_per_host.into(),
                ),
                quarantined: Mutex::default(),
                negative: NegativeCache::new(Duration::from_secs(uplink.negative_seconds.into())),
                memory: Arc::default(),
                tokens: Arc::default(),
                known: Arc::default(),
                throttle: Arc::default(),
                metrics: Metrics::default(),
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
        self.inner.listed.contains_key(&host.to_string())
    }

    /// Whether any endpoint of the host would be asked now: false while every breaker is open.
    pub fn is_reachable(&self, host: &Host) -> bool {
        self.endpoints(host)
            .is_ok_and(|endpoints| endpoints.iter().any(|e| !e.rejects_all()))
    }

    /// The metrics of requests to upstreams.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// The host's name in metrics.
    fn label(&self, host: &str) -> String {
        if self.inner.listed.contains_key(host) {
            host.to_owned()
        } else {
            "other".to_owned()
        }
    }

    fn endpoints(&self, host: &Host) -> Result<Vec<Arc<Endpoint>>> {
        let inner = &self.inner;
        let key = host.to_string();
        let mut endpoints = lock(&inner.endpoints);
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
            let is_own = at == last;
            let credentials = settings.and_then(|settings| {
                if is_own {
                    return Some(settings.credentials.clone());
                }
                let of_mirror = settings.mirror_credentials.iter();
                of_mirror
                    .clone()
                    .find(|(mirror, _)| mirror == url)
                    .map(|(_, credentials)| credentials.clone())
            });
            let parts = Parts {
                url,
                is_own,
                credentials: credentials.unwrap_or(Credentials::Anonymous),
                settings: settings.cloned(),
                proxies: Arc::clone(&inner.proxies),
                timeouts: inner.timeouts,
                pace: self.pace(url),
                memory: Arc::clone(&inner.memory),
                tokens: Arc::clone(&inner.tokens),
                known: Arc::clone(&inner.known),
                throttle: Arc::clone(&inner.throttle),
                metrics: inner.metrics.clone(),
                label: self.label(&key),
            };
            Endpoint::new(parts).map(Arc::new)
        });
        let made: Vec<_> = made.collect::<Result<_>>()?;
        if endpoints.len() >= MAX_HOSTS {
            endpoints.retain(|host, _| inner.listed.contains_key(host));
        }
        endpoints.insert(key, made.clone());
        Ok(made)
    }

    /// The pace of requests to an endpoint's host, shared by all its endpoints.
    fn pace(&self, url: &str) -> Arc<Pace> {
        let url = url::Url::parse(url).ok();
        let host = url
            .and_then(|url| url.host_str().map(str::to_owned))
            .unwrap_or_default();
        let mut paces = lock(&self.inner.paces);
        if paces.len() >= 4 * MAX_HOSTS {
            paces.clear();
        }
        let new = || Arc::new(Pace::new(self.inner.requests_per_second));
        Arc::clone(paces.entry(host).or_insert_with(new))
    }

    /// A recent refusal for these credentials.
    fn refused(&self, source: &UpstreamRepository, path: &str) -> Result<()> {
        match self.inner.negative.get(source, path, Instant::now()) {
            Some(error) => {
                let label = UpstreamLabel {
                    upstream: self.label(&source.host.to_string()),
                };
                self.inner.metrics.remembered.get_or_create(&label).inc();
                Err(error)
            }
            None => Ok(()),
        }
    }

    fn failed(&self, source: &UpstreamRepository, path: &str, failed: Option<Error>) -> Error {
        let error = failed.unwrap_or_else(nowhere);
        self.inner
            .negative
            .put(source, path, &error, Instant::now());
        error
    }

    /// Forgets that these credentials were refused a manifest: this request is explicit.
    pub fn ask_again(&self, source: &UpstreamRepository, target: &str) {
        self.inner
            .negative
            .forget(source, &format!("manifests/{target}"));
    }

    /// Fetches a manifest by tag or digest and verifies it.
    ///
    /// # Errors
    /// The most informative error of all endpoints.
    pub async fn manifest(&self, source: &UpstreamRepository, target: &str) -> Result<Manifest> {
        let path = format!("manifests/{target}");
        self.refused(source, &path)?;
        let mut failed = None;
        for endpoint in self.endpoints(&source.host)? {
            match endpoint.manifest(source, target).await {
                Ok(manifest) => {
                    let scheduler = &self.inner.scheduler;
                    let yields = || {
                        source.priority.level() == Priority::Prefetch
                            && scheduler.is_anybody_waiting()
                    };
                    self.inner.rate.take(manifest.bytes.len(), yields).await;
                    return Ok(manifest);
                }
                Err(error) => failed = Some(worse(failed, &endpoint, error)),
            }
        }
        Err(self.failed(source, &path, failed))
    }

    /// The memory of all manifests that are being received.
    pub fn memory(&self) -> &Memory {
        &self.inner.memory
    }

    /// Limits the messages of failures in the log.
    pub fn throttle(&self) -> &Throttle {
        &self.inner.throttle
    }

    /// How long a pull waits for a revalidation.
    pub fn revalidate_deadline(&self) -> Duration {
        self.inner.timeouts.revalidate
    }

    /// Whether these credentials may read a blob there, and its size if the upstream says it.
    ///
    /// # Errors
    /// The most informative error of all endpoints when not.
    pub async fn has_blob(
        &self,
        source: &UpstreamRepository,
        digest: &Digest,
    ) -> Result<Option<u64>> {
        let path = format!("blobs/{digest}");
        self.refused(source, &path)?;
        let mut failed = None;
        for endpoint in self.endpoints(&source.host)? {
            match endpoint.has_blob(source, digest).await {
                Ok(size) => return Ok(size),
                Err(error) => failed = Some(worse(failed, &endpoint, error)),
            }
        }
        Err(self.failed(source, &path, failed))
    }

    /// Starts to fetch a blob. Waits for its turn among all copies, again when it has to give its
    /// slot up before the upstream answers.
    ///
    /// # Errors
    /// The most informative error of all endpoints.
    pub async fn blob(&self, source: &UpstreamRepository, wanted: BlobRequest<'_>) -> Result<Body> {
        let path = format!("blobs/{}", wanted.digest);
        self.refused(source, &path)?;
        let (host, mut yielded) = (source.host.to_string(), wanted.yielded);
        let outcome = loop {
            let place = (host.as_str(), source.repository.as_str());
            let slot = self.inner.scheduler.take(place, &source.priority, yielded);
            self.tell_queue();
            let slot = slot
                .await
                .ok_or_else(|| Error::Busy("too many copies wait for a slot".to_owned()))?;
            self.tell_queue();
            let preempted = slot.preempted().clone();
            tokio::select! {
                biased;
                outcome = self.open(source, wanted, slot) => break outcome,
                () = preempted.cancelled() => yielded += 1,
            }
        };
        outcome.map_err(|failed| self.failed(source, &path, failed))
    }

    /// Asks the endpoints for a blob, one after the other.
    async fn open(
        &self,
        source: &UpstreamRepository,
        wanted: BlobRequest<'_>,
        slot: Slot,
    ) -> Result<Body, Option<Error>> {
        let (digest, range) = (wanted.digest, (wanted.offset, wanted.whole));
        let mut failed = None;
        let mut endpoints = self.endpoints(&source.host).map_err(Some)?;
        endpoints.sort_by_key(|endpoint| {
            let mut avoided = wanted.avoid.iter();
            avoided.any(|url| *url == endpoint.url().as_str())
        });
        for endpoint in endpoints {
            if self.is_quarantined(endpoint.url().as_str(), digest) {
                failed = Some(worse(
                    failed,
                    &endpoint,
                    Error::Invalid(format!(
                        "{} sent all of {digest} a moment ago, and the bytes were wrong",
                        endpoint.url()
                    )),
                ));
                continue;
            }
            match endpoint.blob(source, digest, range, wanted.size).await {
                Ok(answer) => {
                    return Ok(Body {
                        response: answer.response,
                        endpoint,
                        shared: Arc::clone(&self.inner),
                        priority: source.priority.clone(),
                        skip: answer.skip,
                        total: answer.total,
                        etag: answer.etag,
                        paced: (0, Duration::ZERO),
                        slot,
                    });
                }
                // An answer that breaks a rule is this source's: it says nothing of what the
                // endpoint has for others.
                Err(error) => failed = Some(worse(failed, &endpoint, error)),
            }
        }
        Err(failed)
    }

    /// Adds a request to a copy: it becomes as urgent as that, and is made for its requesters, too.
    pub fn join(&self, running: &SharedPriority, newcomer: &SharedPriority) {
        running.join(newcomer);
        self.inner.scheduler.raise(running, newcomer.level());
    }

    /// Makes a copy more urgent, whether it runs or waits.
    pub fn raise(&self, priority: &SharedPriority, level: Priority) {
        self.inner.scheduler.raise(priority, level);
    }

    /// Records that a client waits for content of `host` that another replica copies.
    pub fn wait(&self, host: &Host) -> Wait {
        self.inner.scheduler.wait(&host.to_string())
    }

    fn tell_queue(&self) {
        for level in Priority::ALL {
            let (queued, _) = self.inner.scheduler.count(level);
            self.inner.metrics.waits(level, queued);
        }
    }

    /// Does not ask an endpoint for a blob for a while, because it alone sent all of it, and the
    /// bytes hash to something else. Nothing less proves that an endpoint is wrong for
    /// all requests.
    pub fn quarantine(&self, endpoint: &str, digest: &Digest) {
        let of = |endpoints: &Vec<Arc<Endpoint>>| {
            let mut all = endpoints.iter();
            all.find(|known| known.url().as_str() == endpoint)
                .map(|known| known.label().to_owned())
        };
        let upstream = lock(&self.inner.endpoints).values().find_map(of);
        if let Some(upstream) = upstream {
            let label = UpstreamLabel { upstream };
            self.inner.metrics.quarantines.get_or_create(&label).inc();
        }
        let mut list = lock(&self.inner.quarantined);
        let now = Instant::now();
        list.retain(|_, until| *until > now);
        list.insert(
            (endpoint.to_owned(), digest.clone()),
            now + self.inner.timeouts.quarantine,
        );
    }

    fn is_quarantined(&self, endpoint: &str, digest: &Digest) -> bool {
        lock(&self.inner.quarantined)
            .get(&(endpoint.to_owned(), digest.clone()))
            .is_some_and(|until| *until > Instant::now())
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock()
}

fn nowhere() -> Error {
    Error::Unavailable("no endpoint".to_owned())
}

/// Of two errors the one that says more: an unavailable endpoint may hide what the other does not
/// have. The second one is what came of all requests to `endpoint`, and is told as far as its host
/// may be spoken of.
fn worse(first: Option<Error>, endpoint: &Endpoint, second: Error) -> Error {
    let second = endpoint.discreet(second);
    let rank = |error: &Error| match error {
        Error::Settings(_) => 0,
        Error::NotFound => 1,
        Error::Unauthorized => 2,
        Error::Invalid(_) | Error::NoManifest(_) => 3,
        Error::Busy(_) => 4,
        Error::Unavailable(_) => 5,
        Error::Later(..) => 6,
        Error::TooMany(_) => 7,
    };
    match first {
        Some(first) if rank(&first) > rank(&second) => first,
        _ => second,
    }
}

#[cfg(test)]
mod tests;
