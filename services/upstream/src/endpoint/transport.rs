//! The HTTP clients of an endpoint: which of them may reach a URL, and the time limits of a request
//! and of an answer's body.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use holdfast_runtime::time_limit::{TimeLimit, within};
use reqwest::{Client, RequestBuilder, Response};
use tokio::sync::OnceCell;
use url::Url;

use super::{call::Call, config::EndpointConfig, health::Health};
use crate::{
    Error, Result,
    client::{Destination, cause, client},
    egress_policy::{self, Allowed, EgressPolicy, SeenAddresses},
    proxies::Proxies,
};

/// Sends requests to an endpoint and to where its answers lead.
pub(super) struct Transport {
    config: Arc<EndpointConfig>,
    health: Arc<Health>,
    proxies: Arc<Proxies>,
    client: Client,
    /// The client for other origins, and what it may reach.
    guarded: OnceCell<(Allowed, Client)>,
    /// The addresses of the endpoint's own name, where only an image names it.
    seen: SeenAddresses,
    /// The addresses of the names that its redirects led to.
    seen_elsewhere: SeenAddresses,
}

impl Transport {
    /// `client` is the client for the endpoint's own origin.
    pub(super) fn new(
        config: Arc<EndpointConfig>,
        health: Arc<Health>,
        proxies: Arc<Proxies>,
        client: Client,
        (seen, seen_elsewhere): (SeenAddresses, SeenAddresses),
    ) -> Self {
        Self {
            config,
            health,
            proxies,
            client,
            guarded: OnceCell::new(),
            seen,
            seen_elsewhere,
        }
    }

    /// The client for this endpoint's own origin, where it may be reached at all.
    pub(super) async fn own_client(&self, url: &Url) -> Result<&Client> {
        // What the settings name may be anywhere. A name is judged when it is resolved, an address
        // here.
        if !self.config.is_listed()
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

    /// The client for a server that the settings name, or that belongs to one that they name.
    pub(super) fn listed_client(&self) -> &Client {
        &self.client
    }

    /// The client for other origins, when `url` may be reached at all.
    pub(super) async fn guarded_client(&self, url: &Url) -> Result<&Client> {
        let guarded = self
            .guarded
            .get_or_try_init(|| async {
                let allowed = match &self.config.settings {
                    Some(settings) => Allowed::Kinds(EgressPolicy::of(
                        egress_policy::addresses(&self.config.url).await,
                        settings.allow_private_redirects,
                    )),
                    None => Allowed::Of(self.seen.clone()),
                };
                let client = client(
                    &self.config.url,
                    self.config.settings.as_ref(),
                    &self.proxies,
                    self.config.timeouts,
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

    /// Sends a request to the endpoint itself (`own`) or to another server. A lost connection to
    /// the endpoint is a failure of all of it, everything else one of the call's repository.
    pub(super) async fn send(
        &self,
        call: &Call<'_>,
        request: RequestBuilder,
        own: bool,
    ) -> Result<Response> {
        let timeouts = &self.config.timeouts;
        let mut limit = TimeLimit::new(timeouts.headers);
        let mut request = Some(request);
        while let Some(sent) = request.take() {
            let (again, late) = (sent.try_clone(), limit.late());
            match limit.run(sent.send()).await {
                Some(Ok(response)) => return Ok(response),
                // The client's own timer does not account for a busy machine.
                Some(Err(error))
                    if error.is_connect()
                        && error.is_timeout()
                        && limit.late().saturating_sub(late) >= timeouts.connect / 4 =>
                {
                    request = again;
                }
                Some(Err(error)) if own && error.is_connect() => {
                    return Err(self.health.unreachable(&cause(&error)));
                }
                Some(Err(error)) => return Err(self.health.failed(call, &cause(&error))),
                None => break,
            }
        }
        Err(self.health.failed(call, "no answer in time"))
    }

    /// Reads a body of at most `limit` bytes to its end.
    pub(super) async fn read(
        &self,
        call: &Call<'_>,
        response: &mut Response,
        limit: usize,
    ) -> Result<Bytes> {
        let length = response.content_length().unwrap_or(0);
        let capacity = usize::try_from(length).unwrap_or(usize::MAX).min(limit);
        let mut bytes = BytesMut::with_capacity(capacity);
        let mut whole = TimeLimit::new(self.config.timeouts.crawl);
        loop {
            let next = within(self.config.timeouts.stall, response.chunk());
            match whole.run(next).await.flatten() {
                Some(Ok(Some(chunk))) if bytes.len() + chunk.len() > limit => {
                    return Err(too_large(limit as u64));
                }
                Some(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
                Some(Ok(None)) => return Ok(bytes.freeze()),
                Some(Err(error)) => {
                    let text = format!("the answer broke off: {}", cause(&error));
                    return Err(self.health.failed(call, &text));
                }
                None => return Err(self.health.failed(call, "the answer stalled")),
            }
        }
    }
}

/// The error of an answer with more bytes than are read.
pub(super) fn too_large(limit: u64) -> Error {
    Error::Invalid(format!("the answer is larger than {limit} bytes"))
}
