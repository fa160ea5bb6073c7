//! The meaning of an answer, before its body is read.

use http::{Method, StatusCode, header};
use reqwest::Response;

use super::{
    call::Call,
    disclosure::Disclosure,
    headers::{printable, text},
    health::Health,
    redirects::Followed,
};
use crate::{Error, Result};

/// The answer, or the error that its status means. Records whether the endpoint works, and whether
/// it is a registry.
pub(super) fn outcome(
    (health, disclosure): (&Health, &Disclosure),
    call: &Call<'_>,
    found: Followed,
) -> Result<Response> {
    let response = found.response;
    let status = response.status();
    let headers = response.headers();
    if !found.elsewhere && headers.contains_key("docker-distribution-api-version") {
        disclosure.answered_as_registry();
    }
    if call.method == Method::HEAD && decides_nothing(status) {
        return Err(Error::Invalid(format!("HEAD is answered with {status}")));
    }
    if status == StatusCode::TOO_MANY_REQUESTS {
        return Err(health.pause(&response));
    }
    // 501 tells that the upstream does not know the request, not that it fails.
    if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED {
        let what = format!("it answers {status}");
        return Err(health.server_failed(call, &response, &what));
    }
    health.succeeded(call);
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Error::Unauthorized),
        StatusCode::NOT_FOUND => Err(Error::NotFound),
        _ if status.is_success() => match text(&response, header::CONTENT_ENCODING).as_deref() {
            None | Some("" | "identity") => Ok(response),
            Some(encoding) => Err(Error::Invalid(format!(
                "the content is encoded ({}), which the request did not allow",
                printable(encoding)
            ))),
        },
        _ => Err(Error::Invalid(format!("status {status}"))),
    }
}

/// Statuses that servers without a HEAD, or with signed URLs for GET alone, give to every HEAD.
fn decides_nothing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::FORBIDDEN
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::NOT_IMPLEMENTED
    )
}
