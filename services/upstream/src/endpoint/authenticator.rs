//! The authorisation of requests: which credentials a request may use, what was accepted before,
//! and the answers to challenges (Basic, or a token).
//!
//! A token belongs to the origin that challenged: it is requested with that origin's parameters,
//! and is sent to that origin only.

use std::sync::Arc;

use holdfast_config::Credentials;
use url::Url;

use super::{
    call::Call, config::EndpointConfig, disclosure::Disclosure, token_source::TokenSource,
    transport::Transport,
};
use crate::{
    Error, Login, Result, UpstreamRepository,
    auth::{Challenge, realm_is_bound},
    settings,
    tokens::{Authorisation, Authorisations, TokenKey},
};

/// Authorises the requests to an endpoint.
pub(super) struct Authenticator {
    config: Arc<EndpointConfig>,
    disclosure: Arc<Disclosure>,
    transport: Arc<Transport>,
    tokens: TokenSource,
    /// What worked before, for all endpoints.
    known: Arc<Authorisations>,
    /// The operator's credentials for this endpoint.
    credentials: Credentials,
}

impl Authenticator {
    pub(super) fn new(
        config: Arc<EndpointConfig>,
        disclosure: Arc<Disclosure>,
        transport: Arc<Transport>,
        tokens: TokenSource,
        known: Arc<Authorisations>,
        credentials: Credentials,
    ) -> Self {
        Self {
            config,
            disclosure,
            transport,
            tokens,
            known,
            credentials,
        }
    }

    /// What a request for this source may be made with, in order: its own credentials, the
    /// endpoint's, none.
    pub(super) async fn logins(&self, source: &UpstreamRepository) -> Vec<Option<Login>> {
        let mut logins = Vec::new();
        if self.config.is_own {
            logins.extend(source.logins.iter().cloned().map(Some));
        }
        logins.extend(self.configured_logins().await.into_iter().map(Some));
        logins.push(None);
        logins
    }

    /// The operator's credentials for this endpoint.
    pub(super) async fn configured_logins(&self) -> Vec<Login> {
        let host = if let (true, Some(settings)) = (self.config.is_own, &self.config.settings) {
            settings.host.clone()
        } else {
            let port = self.config.url.port().map(|port| format!(":{port}"));
            let host = self.config.url.host_str().unwrap_or_default();
            format!("{host}{}", port.unwrap_or_default())
        };
        settings::logins(&self.credentials, &host).await
    }

    /// What worked for this repository before, if it is one of the `logins` that this request may
    /// use.
    pub(super) fn remembered(
        &self,
        call: &Call<'_>,
        logins: &[Option<Login>],
    ) -> Option<Authorisation> {
        let known = self.known.get(self.config.url.as_str(), call.topic())?;
        logins.contains(&known.login).then_some(known)
    }

    /// Remembers what worked for this repository.
    pub(super) fn remember(&self, call: &Call<'_>, known: Authorisation) {
        let endpoint = self.config.url.as_str();
        self.known.put(endpoint, call.topic(), known);
    }

    /// Forgets what was accepted for this repository, because it is refused now.
    pub(super) fn forget(&self, call: &Call<'_>, known: &Authorisation) {
        if let Some(challenge) = &known.challenge {
            self.forget_token(call, &self.config.url, challenge, known.login.as_ref());
        }
        self.known.forget(self.config.url.as_str(), call.topic());
    }

    /// The authorisation that another origin accepted for this repository before.
    pub(super) async fn known_elsewhere(&self, call: &Call<'_>, url: &Url) -> Option<String> {
        let topic = elsewhere_topic(call, url);
        let known = self.known.get(self.config.url.as_str(), topic)?;
        let challenge = known.challenge?;
        let token = self.authorisation_elsewhere(call, url, &challenge).await;
        token.ok().flatten()
    }

    /// Remembers the challenge that another origin has for this repository.
    pub(super) fn remember_elsewhere(&self, call: &Call<'_>, url: &Url, challenge: Challenge) {
        let known = Authorisation {
            login: None,
            challenge: Some(challenge),
        };
        let endpoint = self.config.url.as_str();
        self.known.put(endpoint, elsewhere_topic(call, url), known);
    }

    /// The `Authorization` value for a challenge of this endpoint and a login.
    pub(super) async fn authorisation(
        &self,
        call: &Call<'_>,
        challenge: Option<&Challenge>,
        login: Option<&Login>,
    ) -> Result<Option<String>> {
        let Some(challenge) = challenge else {
            return Ok(None);
        };
        let Challenge::Bearer { realm, .. } = challenge else {
            return Ok(login.map(Login::basic));
        };
        let Some(key) = self.key(call, &self.config.url, challenge, login) else {
            return Ok(None);
        };
        if let Some(token) = self.tokens.remembered(&key) {
            return Ok(Some(format!("Bearer {token}")));
        }
        let allowed = self
            .config
            .settings
            .as_ref()
            .map_or(&[][..], |settings| settings.realms.as_slice());
        let bound = realm_is_bound(&self.config.url, realm, allowed);
        // A foreign realm never sees a credential; without one it may be asked over TLS.
        if !bound && (login.is_some() || realm.scheme() != "https") {
            if self
                .disclosure
                .may_log("realm", realm.host_str().unwrap_or_default())
            {
                tracing::warn!(
                    upstream.url = %self.config.url,
                    realm.host = realm.host_str(),
                    "the token server is not the upstream's, no credential sent; \
                     upstreams[].realms allows it"
                );
            }
            return Err(Error::Unauthorized);
        }
        let client = if realm.origin() == self.config.url.origin() {
            self.transport.own_client(realm).await?
        } else if bound && self.config.is_listed() {
            // Named by the upstream, but under a name that is its own or the operator's.
            self.transport.listed_client()
        } else {
            self.transport.guarded_client(realm).await?
        };
        let token = self.tokens.request(call, client, key).await?;
        Ok(Some(format!("Bearer {token}")))
    }

    /// The `Authorization` value for another origin that a redirect led to and that challenges: an
    /// anonymous token from a token server under that origin's own domain. `None` if there is no
    /// such token.
    pub(super) async fn authorisation_elsewhere(
        &self,
        call: &Call<'_>,
        origin: &Url,
        challenge: &Challenge,
    ) -> Result<Option<String>> {
        let Challenge::Bearer { realm, .. } = challenge else {
            return Ok(None);
        };
        let Some(key) = self.key(call, origin, challenge, None) else {
            return Ok(None);
        };
        if let Some(token) = self.tokens.remembered(&key) {
            return Ok(Some(format!("Bearer {token}")));
        }
        if !realm_is_bound(origin, realm, &[]) {
            if self
                .disclosure
                .may_log("realm", realm.host_str().unwrap_or_default())
            {
                tracing::warn!(
                    upstream.url = %self.config.url,
                    redirect.host = origin.host_str(),
                    realm.host = realm.host_str(),
                    "the token server does not belong to the registry that the upstream redirects \
                     to"
                );
            }
            return Ok(None);
        }
        let client = self.transport.guarded_client(realm).await?;
        match self.tokens.request(call, client, key).await {
            Ok(token) => Ok(Some(format!("Bearer {token}"))),
            Err(Error::Unauthorized) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a token for a challenge of `origin` is for; `None` where the challenge asks for none.
    fn key(
        &self,
        call: &Call<'_>,
        origin: &Url,
        challenge: &Challenge,
        login: Option<&Login>,
    ) -> Option<TokenKey> {
        let Challenge::Bearer {
            realm,
            service,
            scope,
        } = challenge
        else {
            return None;
        };
        let own = || {
            format!(
                "repository:{}:pull",
                self.config.path_of(&call.source.repository)
            )
        };
        Some(TokenKey {
            origin: origin.origin().ascii_serialization(),
            realm: realm.clone(),
            service: service.clone(),
            scope: scope.clone().unwrap_or_else(own),
            login: login.cloned(),
        })
    }

    /// Forgets a token that `origin` refused.
    pub(super) fn forget_token(
        &self,
        call: &Call<'_>,
        origin: &Url,
        challenge: &Challenge,
        login: Option<&Login>,
    ) {
        if let Some(key) = self.key(call, origin, challenge, login) {
            self.tokens.forget(&key);
        }
    }
}

/// The key under which an authorisation at another origin is remembered.
fn elsewhere_topic(call: &Call<'_>, url: &Url) -> String {
    let origin = url.origin().ascii_serialization();
    format!("{origin} {}", call.source.repository)
}
