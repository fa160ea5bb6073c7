//! The answers to an upstream's challenge: Basic, a token for user and password, a token for an identity token.

use std::time::Instant;

use http::{StatusCode, header};
use url::Url;

use super::{Endpoint, Known};
use crate::upstream::{
    Error, Login, Result, Source,
    auth::{Challenge, TokenAnswer, TokenKey, realm_is_bound},
    settings::MAX_TOKEN_BYTES,
};

impl Endpoint {
    /// The `Authorization` value for a challenge and a login.
    pub(super) async fn authorisation(
        &self,
        source: &Source,
        challenge: Option<&Challenge>,
        login: Option<&Login>,
    ) -> Result<Option<String>> {
        match challenge {
            None => Ok(None),
            Some(Challenge::Basic) => Ok(login.map(Login::basic)),
            Some(Challenge::Bearer { realm, service }) => {
                let token = self.token(source, realm, service.as_deref(), login).await?;
                Ok(Some(format!("Bearer {token}")))
            }
        }
    }

    async fn token(
        &self,
        source: &Source,
        realm: &Url,
        service: Option<&str>,
        login: Option<&Login>,
    ) -> Result<String> {
        let key = key(source, realm, service, login);
        if let Some(token) = self.tokens.get(&key, Instant::now()) {
            return Ok(token);
        }
        let allowed = self
            .settings
            .as_ref()
            .map_or(&[][..], |settings| settings.realms.as_slice());
        let bound = realm_is_bound(&self.url, realm, allowed);
        // A foreign realm never sees a credential; without one it may be asked over TLS.
        if !bound && (login.is_some() || realm.scheme() != "https") {
            tracing::warn!(
                upstream.url = %self.url,
                realm.host = realm.host_str(),
                "the token server is not the upstream's, no credential sent; upstreams[].realms allows it"
            );
            return Err(Error::Unauthorized);
        }
        let client = if realm.origin() == self.url.origin() {
            &self.client
        } else if bound {
            // Named by the upstream, but under a name that is its own or the operator's.
            self.realm_client(realm).await?
        } else {
            &self.guarded_for(realm).await?.1
        };
        let refresh = login.and_then(Login::refresh_token);
        let mut response = match refresh {
            Some(token) => {
                let request = client
                    .post(realm.clone())
                    .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(refresh_form(&key, token));
                self.send(request).await?
            }
            None => self.get_token(client, &key, login).await?,
        };
        // A token server of the older kind takes the token where the password goes.
        if refresh.is_some()
            && matches!(
                response.status(),
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
            )
        {
            response = self.get_token(client, &key, login).await?;
        }
        match response.status() {
            status if status.is_success() => {}
            status if status.is_server_error() => {
                return Err(self.broke(&format!("the token server: status {status}")));
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let pause = self.pause(&response);
                return Err(Error::Unavailable(format!(
                    "the token server: too many requests, asks for a pause of {} s",
                    pause.as_secs()
                )));
            }
            // The client follows no redirect by itself, and for tokens nobody does.
            _ => return Err(Error::Unauthorized),
        }
        let bytes = self.read(&mut response, MAX_TOKEN_BYTES).await?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes)
            .map_err(|_| Error::Invalid("the token server's answer".to_owned()))?;
        let (token, lasts) = answer.token().ok_or(Error::Unauthorized)?;
        self.tokens.put(key, token.clone(), Instant::now() + lasts);
        Ok(token)
    }

    async fn get_token(
        &self,
        client: &reqwest::Client,
        (realm, service, scope, _): &TokenKey,
        login: Option<&Login>,
    ) -> Result<reqwest::Response> {
        let mut url: Url = realm
            .parse()
            .map_err(|_| Error::Invalid("the token server's URL".to_owned()))?;
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", scope);
        }
        let mut request = client.get(url);
        if let Some(login) = login {
            request = request.header(header::AUTHORIZATION, login.basic());
        }
        self.send(request).await
    }

    /// The client for a realm that is bound to this endpoint: the endpoint's own, where the operator vouches for it.
    async fn realm_client(&self, realm: &Url) -> Result<&reqwest::Client> {
        if self.settings.is_some() {
            Ok(&self.client)
        } else {
            Ok(&self.guarded_for(realm).await?.1)
        }
    }

    pub(super) fn forget_token(&self, source: &Source, known: &Known) {
        if let Some(Challenge::Bearer { realm, service }) = &known.challenge {
            self.tokens.forget(&key(
                source,
                realm,
                service.as_deref(),
                known.login.as_ref(),
            ));
        }
    }
}

fn refresh_form((_, service, scope, _): &TokenKey, token: &str) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token");
    form.append_pair("client_id", "holdfast");
    if let Some(service) = service {
        form.append_pair("service", service);
    }
    form.append_pair("scope", scope);
    form.append_pair("refresh_token", token);
    form.finish()
}

fn key(source: &Source, realm: &Url, service: Option<&str>, login: Option<&Login>) -> TokenKey {
    (
        realm.to_string(),
        service.map(str::to_owned),
        format!("repository:{}:pull", source.repository),
        login.cloned(),
    )
}
