//! HTTP clients as upstreams need them: no redirects, proxies and certificates from the settings; and the breaker's probe.

use std::{
    error::Error as _,
    sync::{Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use holdfast_config::UpstreamSettings;
use reqwest::Client;
use url::Url;

use super::{
    Timeouts,
    breaker::Breaker,
    proxies::Proxies,
    reach::{self, Reach},
};

/// The innermost cause of a client error, without its URL: a URL may carry a signature.
pub(super) fn cause(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    if error.source().is_none() {
        "request failed".to_owned()
    } else {
        inner.to_string()
    }
}

/// Asks an endpoint whose breaker opened until it answers, in the background: no request ever does. `closed` is told of the end.
pub(super) async fn probe(
    breaker: Weak<Mutex<Breaker>>,
    client: Client,
    url: Url,
    mut period: Duration,
    timeout: Duration,
    closed: impl FnOnce(),
) {
    loop {
        tokio::time::sleep(period).await;
        if breaker.strong_count() == 0 {
            return closed();
        }
        let answer = tokio::time::timeout(timeout, client.get(url.clone()).send()).await;
        let lives = matches!(&answer, Ok(Ok(response)) if !response.status().is_server_error());
        let Some(breaker) = breaker.upgrade() else {
            return closed();
        };
        let mut breaker = breaker.lock().unwrap_or_else(PoisonError::into_inner);
        if lives {
            tracing::info!(upstream.url = %url, "upstream answers again");
            breaker.succeeded();
        }
        // An answer to a request that was under way may have closed it.
        if !breaker.is_open() {
            return closed();
        }
        period = breaker.probe_failed(Instant::now());
    }
}

/// What a client may be used for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Use {
    /// A host of the settings: wherever it is.
    Configured,
    /// A host that only an image names.
    Anybody(Reach),
    /// The other origins that an endpoint may send us to.
    Elsewhere(Reach),
}

/// A client for an endpoint.
pub(super) fn client(
    url: &Url,
    settings: Option<&UpstreamSettings>,
    proxies: &Proxies,
    timeouts: Timeouts,
    what: Use,
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
        if insecure && matches!(what, Use::Configured) {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        if let Use::Anybody(reach) | Use::Elsewhere(reach) = what {
            builder = builder.dns_resolver(reach::guard(reach, proxies.hosts()));
        }
        builder.build().map_err(|error| cause(&error))
    };
    // Plain HTTP needs no roots; an image without a root store has only what the settings name.
    if url.scheme() == "http" && !matches!(what, Use::Elsewhere(_)) {
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
