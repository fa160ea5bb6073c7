//! One request with the authorisation that worked before, else with each credential in turn, and
//! last without any (SPEC 35).

use http::{Method, StatusCode};
use reqwest::Response;
use url::Url;

use super::{
    Authorisation, Endpoint,
    answer::{Followed, challenge_of},
    call::Call,
};
use crate::{Error, Login, Result, UpstreamRepository, auth::Challenge, settings};

impl Endpoint {
    /// What worked for this repository before, if it is one of the `logins` that this request may
    /// use.
    pub(super) fn remembered(
        &self,
        call: &Call<'_>,
        logins: &[Option<Login>],
    ) -> Option<Authorisation> {
        let known = self.known.get(self.url.as_str(), call.topic())?;
        logins.contains(&known.login).then_some(known)
    }

    fn remember(&self, call: &Call<'_>, known: Option<Authorisation>) {
        if let Some(known) = known {
            self.keep(call.topic(), known);
        } else {
            self.known.forget(self.url.as_str(), call.topic());
        }
    }

    pub(super) fn keep(&self, topic: String, known: Authorisation) {
        self.known.put(self.url.as_str(), topic, known);
    }

    /// What a request for this source may be made with, in order: its own credentials, the
    /// endpoint's, none.
    pub(super) async fn logins(&self, source: &UpstreamRepository) -> Vec<Option<Login>> {
        let mut logins = Vec::new();
        if self.is_own {
            logins.extend(source.logins.iter().cloned().map(Some));
        }
        logins.extend(self.configured_logins().await.into_iter().map(Some));
        logins.push(None);
        logins
    }

    /// The operator's credentials for this endpoint.
    pub(super) async fn configured_logins(&self) -> Vec<Login> {
        let host = if let (true, Some(settings)) = (self.is_own, &self.settings) {
            settings.host.clone()
        } else {
            let port = self.url.port().map(|port| format!(":{port}"));
            let host = self.url.host_str().unwrap_or_default();
            format!("{host}{}", port.unwrap_or_default())
        };
        settings::logins(&self.credentials, &host).await
    }

    /// Asks, and counts the outcome.
    pub(super) async fn ask(&self, call: &Call<'_>) -> Result<Response> {
        self.counted(self.request_with_credentials(call).await)
    }

    /// Asks with `login` only, or anonymously without one. What worked for this repository before
    /// is neither used nor replaced, and a new token is requested: the answer is what the upstream
    /// says now.
    pub(super) async fn ask_as(&self, call: &Call<'_>, login: Option<&Login>) -> Result<Response> {
        self.counted(self.request_with_login(call, login).await)
    }

    fn counted(&self, outcome: Result<Response>) -> Result<Response> {
        // The reader of the metrics may be the one who named the host.
        let label = match &outcome {
            Ok(_) => "ok",
            Err(_) if self.is_confidential() => "unavailable",
            Err(error) => error.label(),
        };
        self.metrics.asked(&self.label, label);
        outcome
    }

    /// Waits until the call may be sent, and returns its URL.
    async fn admit(&self, call: &Call<'_>) -> Result<Url> {
        self.check_open(call)?;
        self.pace
            .take(call.repository(), &call.source.priority)
            .await?;
        let mut url = self.api(&format!(
            "{}/{}",
            self.path_of(&call.source.repository),
            call.path
        ));
        url.set_query(call.query);
        Ok(url)
    }

    async fn request_with_login(&self, call: &Call<'_>, login: Option<&Login>) -> Result<Response> {
        let url = self.admit(call).await?;
        let found = self.follow_redirects(call, &url, None).await?;
        let challenge = match (found.response.status(), challenge_of(&found)) {
            (StatusCode::UNAUTHORIZED, Some(asked)) => asked,
            // Some registries refuse or hide where they should ask.
            (status, _) if login.is_some() && may_hide(call, status) && !found.elsewhere => {
                self.challenge_of_root(call).await?
            }
            _ => return self.answer(call, found),
        };
        if login.is_none() && challenge == Challenge::Basic {
            return self.answer(call, found);
        }
        self.forget_token(call, &self.url, &challenge, login);
        let header = self.authorisation(call, Some(&challenge), login).await?;
        let found = self.follow_redirects(call, &url, header).await?;
        self.answer(call, found)
    }

    async fn request_with_credentials(&self, call: &Call<'_>) -> Result<Response> {
        let url = self.admit(call).await?;
        let logins = self.logins(call.source).await;
        let has_login = logins.iter().any(Option::is_some);
        let mut challenge = None;
        if let Some(known) = self.remembered(call, &logins) {
            let header = self
                .authorisation(call, known.challenge.as_ref(), known.login.as_ref())
                .await;
            if let Ok(header) = header {
                let found = self.follow_redirects(call, &url, header).await?;
                // It may want another scope now.
                challenge = challenge_of(&found);
                // Some registries answer 400 to a token that has ended (ECR Public).
                let has_ended = found.response.status() == StatusCode::BAD_REQUEST
                    && matches!(known.challenge, Some(Challenge::Bearer { .. }));
                match self.answer(call, found) {
                    Err(Error::Unauthorized) => {}
                    Err(Error::Invalid(_)) if has_ended => {}
                    // It may be hidden from anonymous requests only.
                    Err(Error::NotFound) if has_login && known.login.is_none() => {}
                    other => return other,
                }
            }
            if let Some(challenge) = &known.challenge {
                self.forget_token(call, &self.url, challenge, known.login.as_ref());
            }
            self.remember(call, None);
            challenge = challenge.or(known.challenge);
        }
        let mut failed = Error::Unauthorized;
        if challenge.is_none() {
            let found = self.follow_redirects(call, &url, None).await?;
            match (found.response.status(), challenge_of(&found)) {
                (StatusCode::UNAUTHORIZED, Some(asked)) => challenge = Some(asked),
                // Some registries refuse or hide where they should ask: each credential gets its
                // try.
                (status, _) if has_login && may_hide(call, status) && !found.elsewhere => {
                    if let Err(error) = self.answer(call, found) {
                        failed = error;
                    }
                    challenge = Some(self.challenge_of_root(call).await?);
                }
                _ => {
                    let answer = self.answer(call, found);
                    if answer.is_ok() {
                        let (login, challenge) = (None, None);
                        self.remember(call, Some(Authorisation { login, challenge }));
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
                .authorisation(call, challenge.as_ref(), login.as_ref())
                .await
            {
                Ok(header) => header,
                Err(Error::Unauthorized) => continue,
                Err(error) => return Err(error),
            };
            let found = self.follow_redirects(call, url, header).await?;
            match self.answer(call, found) {
                Ok(response) => {
                    let login = login.clone();
                    self.remember(call, Some(Authorisation { login, challenge }));
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
        let found: Followed = self.follow_redirects(&root, &self.root, None).await?;
        Ok(challenge_of(&found).map_or(Challenge::Basic, Challenge::without_scope))
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
