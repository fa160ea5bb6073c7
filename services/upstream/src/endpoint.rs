//! One URL of an upstream, and what is requested there: manifests, blobs and lists.
//!
//! The parts of an endpoint, each with its own state, from the lowest: [`EndpointConfig`],
//! [`Disclosure`], [`Health`], [`Transport`], [`Authenticator`] with its tokens, [`ApiClient`] with
//! its redirects. A part uses those before it.

mod access;
mod answer;
mod api_client;
mod authenticator;
mod call;
mod config;
mod disclosure;
mod headers;
mod health;
mod list;
mod redirects;
mod token_source;
mod transport;

use std::{fmt, sync::Arc};

use holdfast_config::{Credentials, UpstreamSettings};
use holdfast_core::Hasher;
use holdfast_core::{Algorithm, Digest, oci};
use http::{Method, StatusCode, header};
use reqwest::Response;
use url::Url;

use super::{
    Error, Manifest, Memory, Result, Timeouts, UpstreamRepository,
    client::{Destination, client},
    egress_policy::{self, SeenAddresses},
    pace::Pace,
    proxies::Proxies,
    tokens::{Authorisations, Tokens},
};
use crate::{metrics::Metrics, throttle::Throttle};
use api_client::ApiClient;
use authenticator::Authenticator;
use call::{Bytes, Call};
use config::EndpointConfig;
use disclosure::Disclosure;
use headers::{content_range, printable, text, told_size};
use health::Health;
use redirects::Redirects;
use token_source::TokenSource;
use transport::{Transport, too_large};

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
    config: Arc<EndpointConfig>,
    disclosure: Arc<Disclosure>,
    health: Arc<Health>,
    transport: Arc<Transport>,
    authenticator: Arc<Authenticator>,
    api: ApiClient,
    memory: Arc<Memory>,
    metrics: Metrics,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("url", &self.url().as_str())
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
        let config = EndpointConfig::new(url, is_own, settings, timeouts, label)?;
        let config = Arc::new(config);
        let addresses = (SeenAddresses::default(), SeenAddresses::default());
        let seen = &addresses.0;
        // A name is seen when it is resolved.
        if let Some(address) = egress_policy::literal(&config.url) {
            seen.add(address);
        }
        let what = match config.settings {
            Some(_) => Destination::Configured,
            None => Destination::Anybody(seen.clone()),
        };
        let settings = config.settings.as_ref();
        let client = client(&config.url, settings, &proxies, timeouts, &what)
            .map_err(|what| Error::Settings(format!("{url}: {what}")))?;

        let disclosure = Disclosure::new(Arc::clone(&config), addresses.clone(), throttle);
        let disclosure = Arc::new(disclosure);
        let health = Arc::new(Health::new(
            Arc::clone(&config),
            Arc::clone(&disclosure),
            client.clone(),
            metrics.clone(),
        ));
        let transport = Arc::new(Transport::new(
            Arc::clone(&config),
            Arc::clone(&health),
            proxies,
            client,
            addresses,
        ));
        let tokens = TokenSource::new(
            Arc::clone(&config),
            Arc::clone(&disclosure),
            Arc::clone(&health),
            Arc::clone(&transport),
            tokens,
        );
        let authenticator = Arc::new(Authenticator::new(
            Arc::clone(&config),
            Arc::clone(&disclosure),
            Arc::clone(&transport),
            tokens,
            known,
            credentials,
        ));
        let redirects = Redirects::new(
            Arc::clone(&config),
            Arc::clone(&transport),
            Arc::clone(&authenticator),
        );
        let api = ApiClient {
            config: Arc::clone(&config),
            disclosure: Arc::clone(&disclosure),
            health: Arc::clone(&health),
            authenticator: Arc::clone(&authenticator),
            redirects,
            pace,
            metrics: metrics.clone(),
        };
        Ok(Self {
            config,
            disclosure,
            health,
            transport,
            authenticator,
            api,
            memory,
            metrics,
        })
    }

    pub(super) fn url(&self) -> &Url {
        &self.config.url
    }

    /// The upstream's name in metrics.
    pub(super) fn label(&self) -> &str {
        &self.config.label
    }

    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.config.timeouts
    }

    /// Whether it is not asked for anything now.
    pub(super) fn rejects_all(&self) -> bool {
        self.health.rejects_all()
    }

    /// Records that the body of a blob broke off.
    pub(super) fn body_failed(&self, what: &str) -> Error {
        self.health.body_failed(what)
    }

    /// Which error details the requester of an image may see.
    pub(super) fn tellable(&self, what: &str) -> String {
        self.disclosure.tellable(what)
    }

    /// The error of all requests as the requester may see it.
    pub(super) fn discreet(&self, error: Error) -> Error {
        self.disclosure.discreet(error)
    }

    pub(super) async fn manifest(
        &self,
        source: &UpstreamRepository,
        target: &str,
    ) -> Result<Manifest> {
        let path = format!("manifests/{target}");
        let call = Call::new(source, Method::GET, &path);
        let response = self.api.request(&call).await?;
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
        let limit = self.config.timeouts.manifest_bytes;
        let length = response.content_length();
        if length.is_some_and(|length| length > limit) {
            return Err(too_large(limit));
        }
        let most = length.unwrap_or(limit);
        let most_bytes = usize::try_from(most).unwrap_or(usize::MAX);
        let read = self.transport.read(call, &mut response, most_bytes);
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
        self.disclosure.answered_as_registry();
        self.metrics
            .took(&self.config.label, "manifest", bytes.len());
        Ok(Manifest::new(digest, bytes, reserved))
    }

    /// The digest that a tag names: the one that HEAD tells, else that of the manifest itself.
    pub(super) async fn resolve(
        &self,
        source: &UpstreamRepository,
        target: &str,
    ) -> Result<Digest> {
        let path = format!("manifests/{target}");
        let told = match self
            .api
            .request(&Call::new(source, Method::HEAD, &path))
            .await
        {
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
        match self
            .api
            .request(&Call::new(source, Method::HEAD, &path))
            .await
        {
            Ok(answer) => return Ok(length(&answer)),
            Err(Error::Invalid(_) | Error::NotFound) => {}
            Err(error) => return Err(error),
        }
        let first = Call::new(source, Method::GET, &path).part(Bytes::First);
        let answer = match self.api.request(&first).await {
            // A blob without a byte has no first one, and some servers know no ranges.
            Err(Error::Invalid(_)) => self.api.request(&first.part(Bytes::All)).await?,
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
        let logins = self.authenticator.logins(source).await;
        if self.authenticator.remembered(&head, &logins).is_none() {
            // Learns how to authorise without a refused GET: one GET a blob.
            match self.api.request(&head).await {
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
        let response = self.api.request(&get).await?;
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
}

/// A manifest of another host needed the memory.
fn too_slow() -> Error {
    Error::Busy("the answer arrived slowly while others waited".to_owned())
}
