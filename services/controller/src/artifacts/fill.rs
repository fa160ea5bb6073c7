//! Requests copies from the registry: `POST /internal/v1/fills` with the controller's client
//! certificate.

use crate::Context;
use holdfast_api::access::{self, Access, AccessRequest, AccessResult};
use holdfast_api::artifact::Reason;
use holdfast_api::fill::{FillError, FillErrorCode, FillRequest, FillResult, PATH};
use holdfast_api::questions::{Answer, Answers, held};
use std::time::Duration;

/// The port of the internal API.
pub const PORT: u16 = 5001;
/// Timeout of a fill request. The registry continues the copy, and the next request joins it.
const FILL_TIMEOUT: Duration = Duration::from_secs(120);
/// Timeout of an access check, which is a few requests to one upstream.
const ACCESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout of a question about what is held.
const HELD_TIMEOUT: Duration = Duration::from_secs(25);
/// Images of one such question. Their sources and platforms fit into a request.
const HELD_IMAGES: usize = 200;
/// The longest error body that is read.
const MAX_BODY: usize = 64 * 1024;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No certificate was issued yet.
    #[error("no client certificate yet")]
    NoCertificate,
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] holdfast_runtime::tls::Error),
    /// The HTTP client cannot be made.
    #[error("cannot make a client")]
    Http(#[from] reqwest::Error),
}

/// Why there is no copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The reason of the Ready condition.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// The pause that the registry asked for.
    pub retry_after: Option<Duration>,
}

/// A client of the registry's internal API.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    access_url: String,
    held_url: String,
}

impl Client {
    /// A client of this release's registry, by its headless Service or at the address of the
    /// context. It uses renewed certificates.
    pub fn for_release(context: &Context) -> Result<Self, Error> {
        let tls = context.issued.client().ok_or(Error::NoCertificate)?;
        let host = context.names.dns(&context.names.registry_internal());
        let mut http = builder().tls_backend_preconfigured(tls.config()?);
        let mut port = PORT;
        if let Some(address) = context.registry {
            // The port comes from the URL.
            http = http.resolve(&host, address);
            port = address.port();
        }
        Ok(Self::new(http.build()?, &format!("https://{host}:{port}")))
    }

    /// A client of the registry at `base`.
    pub fn new(http: reqwest::Client, base: &str) -> Self {
        let base = base.trim_end_matches('/');
        Self {
            http,
            url: format!("{base}{PATH}"),
            access_url: format!("{base}{}", access::PATH),
            held_url: format!("{base}{}", held::INTERNAL_PATH),
        }
    }

    /// Requests an access check of the image's upstream. Without an answer, after a refusal, and
    /// with a registry that lacks the endpoint, the result is [`Access::Unknown`].
    pub async fn access(&self, request: &AccessRequest) -> Access {
        let post = self.http.post(&self.access_url).timeout(ACCESS_TIMEOUT);
        let answer = async {
            let answer = post.json(request).send().await?.error_for_status()?;
            answer.json::<AccessResult>().await
        };
        match answer.await {
            Ok(result) => result.access,
            Err(error) => {
                tracing::debug!(%error, "the registry cannot check access to an image");
                Access::Unknown
            }
        }
    }

    /// Asks whether the registry holds images; an answer for each, in their order. Without an
    /// answer of the registry it is [`Answer::Unknown`].
    pub async fn held(&self, images: &[held::Image]) -> Vec<Answer> {
        let mut all = Vec::with_capacity(images.len());
        for images in images.chunks(HELD_IMAGES) {
            let images = images.to_vec();
            let count = images.len();
            let post = self.http.post(&self.held_url).timeout(HELD_TIMEOUT);
            let answer = async {
                let post = post.json(&held::Images { images });
                let answer = post.send().await?.error_for_status()?;
                answer.json::<Answers>().await
            };
            let mut answers = match answer.await {
                Ok(Answers { answers }) if answers.len() == count => answers,
                Ok(_) => Vec::new(),
                Err(error) => {
                    tracing::debug!(%error, "the registry does not say what it holds");
                    Vec::new()
                }
            };
            answers.resize(count, Answer::Unknown);
            all.append(&mut answers);
        }
        all
    }

    /// Requests a copy and waits for it for two minutes at most; a longer one is `Copying`.
    pub async fn fill(&self, request: &FillRequest) -> Result<FillResult, Failure> {
        let response = match self
            .http
            .post(&self.url)
            .timeout(FILL_TIMEOUT)
            .json(request)
            .send()
            .await
        {
            Ok(response) => response,
            Err(error) => return Err(transport(&error)),
        };
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(reqwest::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let body = match response.bytes().await {
            Ok(body) => body,
            Err(error) => return Err(transport(&error)),
        };
        answer(status, retry_after, &body)
    }
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(3))
        .tcp_keepalive(Duration::from_secs(10))
        .pool_idle_timeout(Duration::from_secs(30))
}

fn transport(error: &reqwest::Error) -> Failure {
    let (reason, message) = if error.is_timeout() && !error.is_connect() {
        (Reason::Copying, "the registry is copying".to_owned())
    } else {
        let mut message = "the registry cannot be reached".to_owned();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        (Reason::RegistryUnavailable, message)
    };
    Failure {
        reason,
        message,
        retry_after: None,
    }
}

/// The result of an answer.
fn answer(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Result<FillResult, Failure> {
    if status == 200 {
        return serde_json::from_slice(body).map_err(|error| Failure {
            reason: Reason::RegistryUnavailable,
            message: format!("the registry's answer cannot be read: {error}"),
            retry_after,
        });
    }
    let body = body.get(..MAX_BODY).unwrap_or(body);
    Err(match serde_json::from_slice::<FillError>(body) {
        Ok(error) => Failure {
            reason: reason_of(error.code),
            message: error.message,
            retry_after,
        },
        Err(_) => Failure {
            reason: Reason::RegistryUnavailable,
            message: format!("the registry answered with status {status}"),
            retry_after,
        },
    })
}

/// The condition's reason of a code.
pub const fn reason_of(code: FillErrorCode) -> Reason {
    match code {
        FillErrorCode::NotFound => Reason::NotFound,
        FillErrorCode::Unauthorized => Reason::Unauthorized,
        FillErrorCode::UpstreamUnavailable => Reason::UpstreamUnavailable,
        FillErrorCode::UpstreamInvalid => Reason::UpstreamInvalid,
        FillErrorCode::NoSpace => Reason::NoSpace,
        FillErrorCode::Invalid => Reason::Invalid,
        FillErrorCode::StoreFailed => Reason::StoreFailed,
        FillErrorCode::Busy => Reason::Busy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart_by_their_code() {
        for (status, body, expect) in [
            (
                404,
                r#"{"code":"NOT_FOUND","message":"m"}"#,
                Reason::NotFound,
            ),
            (
                502,
                r#"{"code":"UPSTREAM_INVALID","message":"m"}"#,
                Reason::UpstreamInvalid,
            ),
            (
                502,
                r#"{"code":"UPSTREAM_UNAVAILABLE","message":"m"}"#,
                Reason::UpstreamUnavailable,
            ),
            (507, r#"{"code":"NO_SPACE","message":"m"}"#, Reason::NoSpace),
            (
                500,
                r#"{"code":"STORE_FAILED","message":"m"}"#,
                Reason::StoreFailed,
            ),
            (503, r#"{"code":"BUSY","message":"m"}"#, Reason::Busy),
            // Of a newer registry.
            (
                500,
                r#"{"code":"UNHEARD_OF","message":"m"}"#,
                Reason::RegistryUnavailable,
            ),
            (502, "<html>", Reason::RegistryUnavailable),
            (404, "", Reason::RegistryUnavailable),
            (200, "{", Reason::RegistryUnavailable),
        ] {
            let failure =
                answer(status, Some(Duration::from_secs(7)), body.as_bytes()).unwrap_err();
            assert_eq!(failure.reason, expect, "{status} {body}");
            assert_eq!(failure.retry_after, Some(Duration::from_secs(7)));
        }
        let good =
            r#"{"digest":"sha256:aa","mediaType":"m","sizeBytes":5,"blobs":1,"alreadyLocal":true}"#;
        assert!(answer(200, None, good.as_bytes()).unwrap().already_local);
    }
}
