//! Requests that follow redirects themselves: which origin gets which authorisation, and where an
//! answer may lead.

use holdfast_core::oci::ACCEPT;
use http::{StatusCode, header};
use reqwest::{Client, Response};
use url::Url;

use super::{
    Authorisation, Endpoint,
    answer::{self, Followed, text},
    call::{Bytes, Call},
};
use crate::{
    Error, Result,
    client::{Destination, cause, client},
    egress_policy::{self, Allowed, EgressPolicy, SeenAddresses},
    settings::MAX_REDIRECTS,
};
use holdfast_runtime::time_limit::TimeLimit;

impl Endpoint {
    /// Sends a request and follows its redirects. The authorisation is for this endpoint's own
    /// origin; another origin that challenges gets an anonymous token.
    pub(super) async fn follow_redirects(
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
            let elsewhere = url.origin() != self.url.origin();
            let client = if elsewhere {
                self.guarded_for(&url).await?
            } else {
                self.own_client(&url).await?
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
                self.known_elsewhere(call, &url).await
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
            let response = self.send_to(call, request, !elsewhere).await?;
            if elsewhere
                && response.status() == StatusCode::UNAUTHORIZED
                && given.as_ref() != Some(&url.origin())
                && let Some(challenge) = answer::challenge(&response)
            {
                if is_authorised {
                    // It does not accept the earlier token any more.
                    self.forget_token(call, &url, &challenge, None);
                }
                given_token = self.authorisation_elsewhere(call, &url, &challenge).await?;
                if given_token.is_some() {
                    given = Some(url.origin());
                    let known = Authorisation {
                        login: None,
                        challenge: Some(challenge),
                    };
                    self.keep(elsewhere_topic(call, &url), known);
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

    /// Sends a request to a server that belongs to the endpoint, such as its token server.
    pub(super) async fn send(
        &self,
        call: &Call<'_>,
        request: reqwest::RequestBuilder,
    ) -> Result<Response> {
        self.send_to(call, request, false).await
    }

    /// Sends a request; no connection to the endpoint itself (`own`) is a failure of all of it,
    /// everything else one of what was asked for.
    async fn send_to(
        &self,
        call: &Call<'_>,
        request: reqwest::RequestBuilder,
        own: bool,
    ) -> Result<Response> {
        let mut limit = TimeLimit::new(self.timeouts.headers);
        let mut request = Some(request);
        while let Some(sent) = request.take() {
            let (again, late) = (sent.try_clone(), limit.late());
            match limit.run(sent.send()).await {
                Some(Ok(response)) => return Ok(response),
                // The client's own timer does not account for a busy machine.
                Some(Err(error))
                    if error.is_connect()
                        && error.is_timeout()
                        && limit.late().saturating_sub(late) >= self.timeouts.connect / 4 =>
                {
                    request = again;
                }
                Some(Err(error)) if own && error.is_connect() => {
                    return Err(self.unreachable(&cause(&error)));
                }
                Some(Err(error)) => return Err(self.failed(call, &cause(&error))),
                None => break,
            }
        }
        Err(self.failed(call, "no answer in time"))
    }

    /// What another origin was told before for this repository: its challenge is known then.
    async fn known_elsewhere(&self, call: &Call<'_>, url: &Url) -> Option<String> {
        let topic = elsewhere_topic(call, url);
        let challenge = self.known.get(self.url.as_str(), topic)?.challenge?;
        let token = self.authorisation_elsewhere(call, url, &challenge).await;
        token.ok().flatten()
    }

    /// The client for this endpoint's own origin, where it may be reached at all.
    pub(super) async fn own_client(&self, url: &Url) -> Result<&Client> {
        // What the settings name may be anywhere. A name is judged when it is resolved, an address
        // here.
        if self.settings.is_none()
            && !self
                .may_reach(url, EgressPolicy::of_anybody(), &self.seen)
                .await
        {
            return Err(Error::Invalid(
                "an image's host may not be this machine or its link".to_owned(),
            ));
        }
        Ok(&self.client)
    }

    /// The client for other origins, when `url` may be reached at all.
    pub(super) async fn guarded_for(&self, url: &Url) -> Result<&Client> {
        let guarded = self
            .guarded
            .get_or_try_init(|| async {
                let allowed = match &self.settings {
                    Some(settings) => Allowed::Kinds(EgressPolicy::of(
                        egress_policy::addresses(&self.url).await,
                        settings.allow_private_redirects,
                    )),
                    None => Allowed::Of(self.seen.clone()),
                };
                let client = client(
                    &self.url,
                    self.settings.as_ref(),
                    &self.proxies,
                    self.timeouts,
                    &Destination::Elsewhere(allowed.clone(), self.seen_elsewhere.clone()),
                );
                Ok::<_, Error>((allowed, client.map_err(Error::Settings)?))
            })
            .await?;
        let seen = &self.seen_elsewhere;
        if self.may_reach(url, guarded.0.policy(), seen).await {
            Ok(&guarded.1)
        } else {
            Err(Error::Invalid(
                "a redirect to an address that may not be reached".to_owned(),
            ))
        }
    }

    /// Whether a URL may be asked. Behind a proxy the proxy resolves the name: what can be resolved
    /// here is judged beforehand, what cannot is the proxy's to refuse.
    async fn may_reach(&self, url: &Url, policy: EgressPolicy, seen: &SeenAddresses) -> bool {
        if !policy.allows_url(url) {
            return false;
        }
        // A name that is connected to from here is judged, and seen, when it is resolved for that.
        if self.proxies.of(url).is_none() && egress_policy::literal(url).is_none() {
            return true;
        }
        let found = egress_policy::addresses(url).await;
        for address in &found {
            seen.add(*address);
        }
        found.iter().all(|address| policy.allows(*address))
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

/// The key under which an authorisation at another origin is remembered.
fn elsewhere_topic(call: &Call<'_>, url: &Url) -> String {
    let origin = url.origin().ascii_serialization();
    format!("{origin} {}", call.source.repository)
}
