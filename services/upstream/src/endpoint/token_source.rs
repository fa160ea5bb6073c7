//! Tokens of token servers: for user and password, for an identity token, and anonymous ones.

use std::{sync::Arc, time::Instant};

use http::{StatusCode, header};
use reqwest::{Client, Response};
use url::Url;

use super::{
    call::Call, config::EndpointConfig, disclosure::Disclosure, headers::text, health::Health,
    transport::Transport,
};
use crate::{
    Error, Login, Result,
    auth::TokenAnswer,
    settings::{MAX_TOKEN_BYTES, MAX_TOKEN_REDIRECTS},
    tokens::{TokenKey, Tokens},
};

/// Gets tokens from token servers, and remembers them until they end.
pub(super) struct TokenSource {
    config: Arc<EndpointConfig>,
    disclosure: Arc<Disclosure>,
    health: Arc<Health>,
    transport: Arc<Transport>,
    /// The tokens of all endpoints.
    tokens: Arc<Tokens>,
}

impl TokenSource {
    pub(super) fn new(
        config: Arc<EndpointConfig>,
        disclosure: Arc<Disclosure>,
        health: Arc<Health>,
        transport: Arc<Transport>,
        tokens: Arc<Tokens>,
    ) -> Self {
        Self {
            config,
            disclosure,
            health,
            transport,
            tokens,
        }
    }

    /// A token that was received before and has not ended.
    pub(super) fn remembered(&self, key: &TokenKey) -> Option<String> {
        self.tokens.get(key, Instant::now())
    }

    /// Forgets a token that was refused.
    pub(super) fn forget(&self, key: &TokenKey) {
        self.tokens.forget(key);
    }

    /// Asks a token server, and remembers what it gives.
    pub(super) async fn request(
        &self,
        call: &Call<'_>,
        client: &Client,
        key: TokenKey,
    ) -> Result<String> {
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
                return Err(self.health.server_failed(call, &response, &what));
            }
            StatusCode::TOO_MANY_REQUESTS => return Err(self.health.pause(&response)),
            _ => return Err(Error::Unauthorized),
        }
        let bytes = self
            .transport
            .read(call, &mut response, MAX_TOKEN_BYTES)
            .await?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes)
            .map_err(|_| Error::Invalid("the token server's answer".to_owned()))?;
        let (token, lasts) = answer.token().ok_or(Error::Unauthorized)?;
        let until = Instant::now() + lasts;
        self.tokens
            .put(self.config.url.as_str(), key, token.clone(), until);
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
            let response = self.transport.send(call, request, false).await?;
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
            let response = self.transport.send(call, request, false).await?;
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
        if self
            .disclosure
            .may_log("redirect", url.host_str().unwrap_or_default())
        {
            tracing::warn!(
                realm.host = url.host_str(),
                redirect.host = next.host_str(),
                "a token server redirects to another host, which is not followed"
            );
        }
        Err(Error::Unauthorized)
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
