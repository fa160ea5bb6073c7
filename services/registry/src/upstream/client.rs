//! HTTP clients as upstreams need them: no redirects, proxies and certificates from the settings; and the breaker's probe.

use std::{
    error::Error as _,
    sync::{Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use holdfast_config::{Proxy, UpstreamSettings};
use reqwest::{Client, NoProxy};
use url::Url;

use super::{
    Timeouts,
    breaker::Breaker,
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

/// Asks an endpoint whose breaker opened until it answers, in the background: no request ever does.
pub(super) async fn probe(
    breaker: Weak<Mutex<Breaker>>,
    client: Client,
    url: Url,
    mut period: Duration,
    timeout: Duration,
) {
    loop {
        tokio::time::sleep(period).await;
        if breaker.strong_count() == 0 {
            return;
        }
        let answer = tokio::time::timeout(timeout, client.get(url.clone()).send()).await;
        let lives = matches!(&answer, Ok(Ok(response)) if !response.status().is_server_error());
        let Some(breaker) = breaker.upgrade() else {
            return;
        };
        let mut breaker = breaker.lock().unwrap_or_else(PoisonError::into_inner);
        if lives {
            tracing::info!(upstream.url = %url, "upstream answers again");
            breaker.succeeded();
            return;
        }
        match breaker.failed(Instant::now()) {
            Some(next) => period = next,
            // A request opened it again in between, and has its own probe.
            None => return,
        }
    }
}

/// A client for an endpoint, or, with `reach`, for the other origins that the endpoint may send us to.
pub(super) fn client(
    url: &Url,
    settings: Option<&UpstreamSettings>,
    proxy: &Proxy,
    timeouts: Timeouts,
    reach: Option<Reach>,
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
        let direct = NoProxy::from_string(&proxy.no_proxy.join(","));
        for (address, is_http) in [(&proxy.http, true), (&proxy.https, false)] {
            if !address.is_empty() {
                let made = if is_http {
                    reqwest::Proxy::http(address)
                } else {
                    reqwest::Proxy::https(address)
                };
                let made = made.map_err(|error| format!("proxy: {}", cause(&error)))?;
                builder = builder.proxy(made.no_proxy(direct.clone()));
            }
        }
        builder = if only_extra {
            builder.tls_certs_only(extra.clone())
        } else {
            builder.tls_certs_merge(extra.clone())
        };
        if insecure && reach.is_none() {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        if let Some(reach) = reach {
            builder = builder.dns_resolver(reach::guard(reach));
        }
        builder.build().map_err(|error| cause(&error))
    };
    // Plain HTTP needs no roots; an image without a root store has only what the settings name.
    if url.scheme() == "http" && reach.is_none() {
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
