//! One request to the API: with the authorisation that worked before, else with each credential in
//! turn, and last without any (SPEC 35).

use std::sync::Arc;

use http::{Method, StatusCode};
use reqwest::Response;
use url::Url;

use super::{
    answer,
    authenticator::Authenticator,
    call::Call,
    config::EndpointConfig,
    disclosure::Disclosure,
    health::Health,
    redirects::{Followed, Redirects},
};
use crate::{
    Error, Login, Result, auth::Challenge, metrics::Metrics, pace::Pace, tokens::Authorisation,
};

/// The client of an endpoint's API.
pub(super) struct ApiClient {
    pub(super) config: Arc<EndpointConfig>,
    pub(super) disclosure: Arc<Disclosure>,
    pub(super) health: Arc<Health>,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) redirects: Redirects,
    /// The pace of requests to the endpoint's host.
    pub(super) pace: Arc<Pace>,
    pub(super) metrics: Metrics,
}

impl ApiClient {
    /// Sends a request with the first authorisation that is accepted.
    pub(super) async fn request(&self, call: &Call<'_>) -> Result<Response> {
        self.counted(self.request_with_credentials(call).await)
    }

    /// Sends a request with `login` only, or anonymously without one. What worked for this
    /// repository before is neither used nor replaced, and a new token is requested: the answer is
    /// what the upstream says now.
    pub(super) async fn request_as(
        &self,
        call: &Call<'_>,
        login: Option<&Login>,
    ) -> Result<Response> {
        self.counted(self.request_with_login(call, login).await)
    }

    /// Counts the outcome of a request.
    fn counted(&self, outcome: Result<Response>) -> Result<Response> {
        // The reader of the metrics may be the one who named the host.
        let label = match &outcome {
            Ok(_) => "ok",
            Err(_) if self.disclosure.is_confidential() => "unavailable",
            Err(error) => error.label(),
        };
        self.metrics.asked(&self.config.label, label);
        outcome
    }

    /// Waits until the call may be sent, and returns its URL.
    async fn admit(&self, call: &Call<'_>) -> Result<Url> {
        self.health.check_open(call)?;
        self.pace
            .take(call.repository(), &call.source.priority)
            .await?;
        Ok(self.config.url_of(call))
    }

    fn outcome(&self, call: &Call<'_>, found: Followed) -> Result<Response> {
        answer::outcome((&self.health, &self.disclosure), call, found)
    }

    async fn request_with_login(&self, call: &Call<'_>, login: Option<&Login>) -> Result<Response> {
        let url = self.admit(call).await?;
        let found = self.redirects.follow(call, &url, None).await?;
        let challenge = match (found.response.status(), found.challenge()) {
            (StatusCode::UNAUTHORIZED, Some(asked)) => asked,
            // Some registries refuse or hide where they should ask.
            (status, _) if login.is_some() && may_hide(call, status) && !found.elsewhere => {
                self.challenge_of_root(call).await?
            }
            _ => return self.outcome(call, found),
        };
        if login.is_none() && challenge == Challenge::Basic {
            return self.outcome(call, found);
        }
        self.authenticator
            .forget_token(call, &self.config.url, &challenge, login);
        let header = self
            .authenticator
            .authorisation(call, Some(&challenge), login)
            .await?;
        let found = self.redirects.follow(call, &url, header).await?;
        self.outcome(call, found)
    }

    async fn request_with_credentials(&self, call: &Call<'_>) -> Result<Response> {
        let url = self.admit(call).await?;
        let logins = self.authenticator.logins(call.source).await;
        let has_login = logins.iter().any(Option::is_some);
        let mut challenge = None;
        if let Some(known) = self.authenticator.remembered(call, &logins) {
            let header = self
                .authenticator
                .authorisation(call, known.challenge.as_ref(), known.login.as_ref())
                .await;
            if let Ok(header) = header {
                let found = self.redirects.follow(call, &url, header).await?;
                // It may want another scope now.
                challenge = found.challenge();
                // Some registries answer 400 to a token that has ended (ECR Public).
                let has_ended = found.response.status() == StatusCode::BAD_REQUEST
                    && matches!(known.challenge, Some(Challenge::Bearer { .. }));
                match self.outcome(call, found) {
                    Err(Error::Unauthorized) => {}
                    Err(Error::Invalid(_)) if has_ended => {}
                    // It may be hidden from anonymous requests only.
                    Err(Error::NotFound) if has_login && known.login.is_none() => {}
                    other => return other,
                }
            }
            self.authenticator.forget(call, &known);
            challenge = challenge.or(known.challenge);
        }
        let mut failed = Error::Unauthorized;
        if challenge.is_none() {
            let found = self.redirects.follow(call, &url, None).await?;
            match (found.response.status(), found.challenge()) {
                (StatusCode::UNAUTHORIZED, Some(asked)) => challenge = Some(asked),
                // Some registries refuse or hide where they should ask: each credential gets its
                // try.
                (status, _) if has_login && may_hide(call, status) && !found.elsewhere => {
                    if let Err(error) = self.outcome(call, found) {
                        failed = error;
                    }
                    challenge = Some(self.challenge_of_root(call).await?);
                }
                _ => {
                    let answer = self.outcome(call, found);
                    if answer.is_ok() {
                        let (login, challenge) = (None, None);
                        self.authenticator
                            .remember(call, Authorisation { login, challenge });
                    }
                    return answer;
                }
            }
        }
        self.with_each(call, &url, &logins, challenge, failed).await
    }

    /// Asks with each login in turn; returns `failed` when no login gets an answer.
    async fn with_each(
        &self,
        call: &Call<'_>,
        url: &Url,
        logins: &[Option<Login>],
        challenge: Option<Challenge>,
        mut failed: Error,
    ) -> Result<Response> {
        for login in logins {
            if login.is_none() && challenge == Some(Challenge::Basic) {
                continue;
            }
            let header = match self
                .authenticator
                .authorisation(call, challenge.as_ref(), login.as_ref())
                .await
            {
                Ok(header) => header,
                Err(Error::Unauthorized) => continue,
                Err(error) => return Err(error),
            };
            let found = self.redirects.follow(call, url, header).await?;
            match self.outcome(call, found) {
                Ok(response) => {
                    let login = login.clone();
                    self.authenticator
                        .remember(call, Authorisation { login, challenge });
                    return Ok(response);
                }
                // Some registries hide content from users without access.
                Err(Error::NotFound) => failed = Error::NotFound,
                Err(Error::Unauthorized) => {}
                Err(error) => return Err(error),
            }
        }
        Err(failed)
    }

    /// How the API as a whole wants to be asked. A scope there is an example, or that of another
    /// path.
    async fn challenge_of_root(&self, call: &Call<'_>) -> Result<Challenge> {
        let root = Call::new(call.source, Method::GET, "");
        let found = self
            .redirects
            .follow(&root, &self.config.root, None)
            .await?;
        Ok(found
            .challenge()
            .map_or(Challenge::Basic, Challenge::without_scope))
    }
}

/// Whether a status may hide from an anonymous request what a user sees. Where HEAD is refused,
/// GET decides.
fn may_hide(call: &Call<'_>, status: StatusCode) -> bool {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND => true,
        StatusCode::FORBIDDEN => call.method != Method::HEAD,
        _ => false,
    }
}
