//! The answers to an upstream's challenge: Basic, a token for user and password, a token for an
//! identity token.
//!
//! A token belongs to the origin that challenged: it is requested with that origin's parameters,
//! and is sent to that origin only.

use std::time::Instant;

use http::{StatusCode, header};
use reqwest::{Client, Response};
use url::Url;

use super::{Endpoint, answer::text, call::Call};
use crate::{
    Error, Login, Result,
    auth::{Challenge, TokenAnswer, realm_is_bound},
    settings::{MAX_TOKEN_BYTES, MAX_TOKEN_REDIRECTS},
    tokens::TokenKey,
};

impl Endpoint {
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
        let Some(key) = self.key(call, &self.url, challenge, login) else {
            return Ok(None);
        };
        if let Some(token) = self.tokens.get(&key, Instant::now()) {
            return Ok(Some(format!("Bearer {token}")));
        }
        let allowed = self
            .settings
            .as_ref()
            .map_or(&[][..], |settings| settings.realms.as_slice());
        let bound = realm_is_bound(&self.url, realm, allowed);
        // A foreign realm never sees a credential; without one it may be asked over TLS.
        if !bound && (login.is_some() || realm.scheme() != "https") {
            if self.may_log("realm", realm.host_str().unwrap_or_default()) {
                tracing::warn!(
                    upstream.url = %self.url,
                    realm.host = realm.host_str(),
                    "the token server is not the upstream's, no credential sent; upstreams[].realms allows it"
                );
            }
            return Err(Error::Unauthorized);
        }
        let client = if realm.origin() == self.url.origin() {
            self.own_client(realm).await?
        } else if bound && self.settings.is_some() {
            // Named by the upstream, but under a name that is its own or the operator's.
            &self.client
        } else {
            self.guarded_for(realm).await?
        };
        let token = self.token(call, client, key).await?;
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
        if let Some(token) = self.tokens.get(&key, Instant::now()) {
            return Ok(Some(format!("Bearer {token}")));
        }
        if !realm_is_bound(origin, realm, &[]) {
            if self.may_log("realm", realm.host_str().unwrap_or_default()) {
                tracing::warn!(
                    upstream.url = %self.url,
                    redirect.host = origin.host_str(),
                    realm.host = realm.host_str(),
                    "the token server does not belong to the registry that the upstream redirects to"
                );
            }
            return Ok(None);
        }
        let client = self.guarded_for(realm).await?;
        match self.token(call, client, key).await {
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
        let own = || format!("repository:{}:pull", self.path_of(&call.source.repository));
        Some(TokenKey {
            origin: origin.origin().ascii_serialization(),
            realm: realm.clone(),
            service: service.clone(),
            scope: scope.clone().unwrap_or_else(own),
            login: login.cloned(),
        })
    }

    /// Asks a token server, and remembers what it gives.
    async fn token(&self, call: &Call<'_>, client: &Client, key: TokenKey) -> Result<String> {
        let refresh = key.login.as_ref().and_then(Login::refresh_token);
        let mut response = match refresh {
            Some(token) => self.post_for_token(call, client, &key, token).await?,
            None => self.get_token(call, client, &key).await?,
        };
        // A token server of the older kind takes the token where the password goes.
        if refresh.is_some()
            && matches!(
                response.status(),
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
            )
        {
            response = self.get_token(call, client, &key).await?;
        }
        match response.status() {
            status if status.is_success() => {}
            status if status.is_server_error() => {
                let what = format!("the token server answers {status}");
                return Err(self.fails(call, &response, &what));
            }
            StatusCode::TOO_MANY_REQUESTS => return Err(self.pause(&response)),
            _ => return Err(Error::Unauthorized),
        }
        let bytes = self.read(call, &mut response, MAX_TOKEN_BYTES).await?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes)
            .map_err(|_| Error::Invalid("the token server's answer".to_owned()))?;
        let (token, lasts) = answer.token().ok_or(Error::Unauthorized)?;
        let until = Instant::now() + lasts;
        self.tokens
            .put(self.url.as_str(), key, token.clone(), until);
        Ok(token)
    }

    async fn get_token(
        &self,
        call: &Call<'_>,
        client: &Client,
        key: &TokenKey,
    ) -> Result<Response> {
        let mut url = key.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &key.service {
                query.append_pair("service", service);
            }
            // Several scopes are several parameters, as distribution's token specification has it.
            for scope in key.scope.split(' ') {
                query.append_pair("scope", scope);
            }
        }
        let login = key.login.as_ref().map(Login::basic);
        for _ in 0..=MAX_TOKEN_REDIRECTS {
            let mut request = client.get(url.clone());
            if let Some(login) = &login {
                request = request.header(header::AUTHORIZATION, login);
            }
            let response = self.send(call, request).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            url = self.next_on_server(&url, &response)?;
        }
        Err(Error::Unauthorized)
    }

    async fn post_for_token(
        &self,
        call: &Call<'_>,
        client: &Client,
        key: &TokenKey,
        token: &str,
    ) -> Result<Response> {
        let mut url = key.realm.clone();
        for _ in 0..=MAX_TOKEN_REDIRECTS {
            let request = client
                .post(url.clone())
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(refresh_form(key, token));
            let response = self.send(call, request).await?;
            // Other redirects turn a POST into a GET, which would lose the form.
            if !matches!(response.status().as_u16(), 307 | 308) {
                return Ok(response);
            }
            url = self.next_on_server(&url, &response)?;
        }
        Err(Error::Unauthorized)
    }

    /// Where a token server sends on: to itself only, because the request may carry a credential.
    fn next_on_server(&self, url: &Url, response: &Response) -> Result<Url> {
        let next = text(response, header::LOCATION)
            .and_then(|location| url.join(&location).ok())
            .ok_or(Error::Unauthorized)?;
        let upgrades = url.scheme() == "http"
            && next.scheme() == "https"
            && url.host_str() == next.host_str()
            && (url.port_or_known_default(), next.port_or_known_default()) == (Some(80), Some(443));
        if next.origin() == url.origin() || upgrades {
            return Ok(next);
        }
        if self.may_log("redirect", url.host_str().unwrap_or_default()) {
            tracing::warn!(
                realm.host = url.host_str(),
                redirect.host = next.host_str(),
                "a token server redirects to another host, which is not followed"
            );
        }
        Err(Error::Unauthorized)
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

fn refresh_form(key: &TokenKey, token: &str) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token");
    form.append_pair("client_id", "holdfast");
    if let Some(service) = &key.service {
        form.append_pair("service", service);
    }
    form.append_pair("scope", &key.scope);
    form.append_pair("refresh_token", token);
    form.finish()
}
