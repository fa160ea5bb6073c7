//! HTTP clients for upstreams: no redirects, proxies and certificates from the settings; and the
//! probe of the circuit breaker.

use std::{
    error::Error as _,
    io::ErrorKind,
    sync::{Weak, atomic::AtomicI64},
    time::{Duration, Instant, SystemTime},
};

use holdfast_config::UpstreamSettings;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use reqwest::Client;
use url::Url;

use super::{
    Timeouts,
    breaker::Breaker,
    egress_policy::{self, Allowed, EgressPolicy, SeenAddresses},
    proxies::Proxies,
};
use holdfast_runtime::time_limit::within;

/// Why a request failed, in a few words and without its URL: a URL may carry a signature.
pub(super) fn cause(error: &reqwest::Error) -> String {
    let mut chain = Vec::new();
    let mut next = error.source();
    while let Some(inner) = next {
        chain.push(inner);
        next = inner.source();
    }
    let Some(innermost) = chain.last() else {
        return "request failed".to_owned();
    };
    let text = innermost.to_string();
    let kinds = chain.iter().filter_map(|inner| {
        let io = inner.downcast_ref::<std::io::Error>()?;
        Some(io.kind())
    });
    let says = |part: &str| chain.iter().any(|inner| inner.to_string().contains(part));
    if says("dns error") || says("failed to lookup address") {
        return format!("no such host ({text})");
    }
    if says("invalid peer certificate") {
        return format!(
            "its certificate is not trusted ({text}); upstreams[].ca names further authorities"
        );
    }
    for kind in kinds {
        match kind {
            ErrorKind::ConnectionRefused => return "connection refused".to_owned(),
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                return "no route to it".to_owned();
            }
            ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => {
                return "it cut the connection".to_owned();
            }
            _ => {}
        }
    }
    if error.is_timeout() {
        return if error.is_connect() {
            "no connection in time".to_owned()
        } else {
            "no answer in time".to_owned()
        };
    }
    text
}

/// Asks an endpoint that fails until it answers, in the background: no request ever does.
pub(super) struct Prober {
    pub(super) breaker: Weak<Mutex<Breaker>>,
    pub(super) client: Client,
    /// The root of its API.
    pub(super) url: Url,
    pub(super) timeout: Duration,
    /// Endpoints that are not asked now.
    pub(super) open: Gauge<i64, AtomicI64>,
}

impl Prober {
    /// Probes after `wait` and until there is an answer; `counted`: the endpoint is closed to
    /// requests already.
    pub(super) async fn run(self, mut wait: Duration, mut counted: bool) {
        if counted {
            self.open.inc();
        }
        loop {
            tokio::time::sleep(wait).await;
            if self.breaker.strong_count() == 0 {
                break;
            }
            let asked = self.client.get(self.url.clone()).send();
            let failure = match within(self.timeout, asked).await {
                Some(Ok(answer)) if answer.status().is_server_error() => {
                    Some(format!("it answers {}", answer.status()))
                }
                Some(Ok(_)) => None,
                Some(Err(error)) => Some(cause(&error)),
                None => Some("no answer in time".to_owned()),
            };
            let Some(breaker) = self.breaker.upgrade() else {
                break;
            };
            let mut breaker = breaker.lock();
            let Some(failure) = failure else {
                if breaker.probe_answered() {
                    tracing::info!(upstream.url = %self.url, "upstream answers again");
                }
                break;
            };
            // An answer to a request that was under way may have closed it.
            if counted && !breaker.is_open() {
                breaker.probe_ended();
                break;
            }
            wait = breaker.probe_failed(&failure, Instant::now(), SystemTime::now());
            if !counted {
                tracing::warn!(
                    upstream.url = %self.url, cause = failure, seconds = wait.as_secs(),
                    "upstream keeps failing, circuit open until a probe answers"
                );
                counted = true;
                self.open.inc();
            }
        }
        if counted {
            self.open.dec();
        }
    }
}

/// The hosts that a client may connect to.
#[derive(Debug, Clone)]
pub(super) enum Destination {
    /// A host of the settings: wherever it is.
    Configured,
    /// A host that only an image names; what its name is resolved to is remembered.
    Anybody(SeenAddresses),
    /// The other origins that an endpoint may send us to.
    Elsewhere(Allowed, SeenAddresses),
}

/// A client for an endpoint.
pub(super) fn client(
    url: &Url,
    settings: Option<&UpstreamSettings>,
    proxies: &Proxies,
    timeouts: Timeouts,
    what: &Destination,
) -> Result<Client, String> {
    let ca = settings.and_then(|settings| settings.ca.as_deref());
    let extra = match ca {
        Some(pem) => reqwest::Certificate::from_pem_bundle(pem.as_bytes())
            .map_err(|error| format!("ca: {}", cause(&error)))?,
        None => Vec::new(),
    };
    let insecure = settings.is_some_and(|settings| settings.insecure_skip_verify);
    let build = |only_extra: bool| {
        let mut builder = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(timeouts.connect)
            .tcp_nodelay(true)
            .user_agent(concat!("holdfast/", env!("CARGO_PKG_VERSION")))
            .no_proxy();
        if !proxies.is_empty() {
            let proxies = proxies.clone();
            builder = builder.proxy(reqwest::Proxy::custom(move |url| proxies.of(url).cloned()));
        }
        builder = if only_extra {
            builder.tls_certs_only(extra.clone())
        } else {
            builder.tls_certs_merge(extra.clone())
        };
        if insecure && matches!(what, Destination::Configured) {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let guarded = match what {
            Destination::Configured => None,
            Destination::Anybody(seen) => {
                Some((Allowed::Kinds(EgressPolicy::of_anybody()), seen.clone()))
            }
            Destination::Elsewhere(allowed, seen) => Some((allowed.clone(), seen.clone())),
        };
        if let Some((allowed, seen)) = guarded {
            builder = builder.dns_resolver(egress_policy::guard(allowed, proxies.hosts(), seen));
        }
        builder.build().map_err(|error| cause(&error))
    };
    // Plain HTTP needs no roots; an image without a root store has only what the settings name.
    if url.scheme() == "http" && !matches!(what, Destination::Elsewhere(..)) {
        return build(true);
    }
    build(false).or_else(|error| {
        if extra.is_empty() && url.scheme() == "https" {
            Err(error)
        } else {
            build(true)
        }
    })
}
