//! Requests that follow redirects themselves: which origin gets which authorisation, and where an
//! answer may lead.

use std::sync::Arc;

use holdfast_core::oci::ACCEPT;
use http::{StatusCode, header};
use reqwest::Response;
use url::Url;

use super::{
    authenticator::Authenticator,
    call::{Bytes, Call},
    config::EndpointConfig,
    headers::{challenge, text},
    transport::Transport,
};
use crate::{Error, Result, auth::Challenge, settings::MAX_REDIRECTS};

/// The answer at the end of all redirects.
pub(super) struct Followed {
    pub(super) response: Response,
    /// Whether it comes from another origin than the endpoint's.
    pub(super) elsewhere: bool,
}

impl Followed {
    /// The challenge of the endpoint itself. The challenge of another origin is answered where the
    /// redirect is followed.
    pub(super) fn challenge(&self) -> Option<Challenge> {
        if self.elsewhere {
            return None;
        }
        challenge(&self.response)
    }
}

/// Follows the redirects of requests.
pub(super) struct Redirects {
    config: Arc<EndpointConfig>,
    transport: Arc<Transport>,
    authenticator: Arc<Authenticator>,
}

impl Redirects {
    pub(super) fn new(
        config: Arc<EndpointConfig>,
        transport: Arc<Transport>,
        authenticator: Arc<Authenticator>,
    ) -> Self {
        Self {
            config,
            transport,
            authenticator,
        }
    }

    /// Sends a request and follows its redirects. The authorisation is for this endpoint's own
    /// origin; another origin that challenges gets an anonymous token.
    pub(super) async fn follow(
        &self,
        call: &Call<'_>,
        url: &Url,
        authorisation: Option<String>,
    ) -> Result<Followed> {
        let mut url = url.clone();
        let mut left = MAX_REDIRECTS;
        // The origin that was given a token on this way; each gets one try.
        let mut given: Option<url::Origin> = None;
        let mut given_token = None;
        loop {
            let elsewhere = url.origin() != self.config.url.origin();
            let client = if elsewhere {
                self.transport.guarded_client(&url).await?
            } else {
                self.transport.own_client(&url).await?
            };
            let mut request = client
                .request(call.method.clone(), url.clone())
                .header(header::ACCEPT, ACCEPT)
                .header(header::ACCEPT_ENCODING, "identity");
            let authorisation = if !elsewhere {
                authorisation.clone()
            } else if given.as_ref() == Some(&url.origin()) {
                given_token.clone()
            } else {
                self.authenticator.known_elsewhere(call, &url).await
            };
            let is_authorised = authorisation.is_some();
            if let Some(value) = authorisation {
                request = request.header(header::AUTHORIZATION, value);
            }
            request = match call.bytes {
                Bytes::All => request,
                Bytes::From(offset) => request.header(header::RANGE, format!("bytes={offset}-")),
                Bytes::First => request.header(header::RANGE, "bytes=0-0"),
            };
            let response = self.transport.send(call, request, !elsewhere).await?;
            if elsewhere
                && response.status() == StatusCode::UNAUTHORIZED
                && given.as_ref() != Some(&url.origin())
                && let Some(challenge) = challenge(&response)
            {
                if is_authorised {
                    // It does not accept the earlier token any more.
                    self.authenticator
                        .forget_token(call, &url, &challenge, None);
                }
                let authenticator = &self.authenticator;
                given_token = authenticator
                    .authorisation_elsewhere(call, &url, &challenge)
                    .await?;
                if given_token.is_some() {
                    given = Some(url.origin());
                    authenticator.remember_elsewhere(call, &url, challenge);
                    continue;
                }
            }
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Followed {
                    response,
                    elsewhere,
                });
            }
            if left == 0 {
                return Err(Error::Invalid("too many redirects".to_owned()));
            }
            left -= 1;
            url = next(&url, &response)?;
        }
    }
}

/// Where a redirect leads.
fn next(url: &Url, response: &Response) -> Result<Url> {
    let location = text(response, header::LOCATION)
        .ok_or_else(|| Error::Invalid("a redirect without a location".to_owned()))?;
    let next = url
        .join(&location)
        .map_err(|_| Error::Invalid("a redirect to no URL".to_owned()))?;
    if url.scheme() == "https" && next.scheme() != "https" {
        return Err(Error::Invalid("a redirect away from TLS".to_owned()));
    }
    Ok(next)
}
