//! The meaning of an answer, before its body is read.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use http::{Method, StatusCode, header};
use reqwest::Response;

use super::{Endpoint, call::Call};
use crate::{
    Error, Result,
    auth::Challenge,
    metrics::UpstreamLabel,
    settings::{retry_after, told_pause},
};

/// The answer at the end of all redirects.
pub(super) struct Followed {
    pub(super) response: Response,
    /// Whether it comes from another origin than the endpoint's.
    pub(super) elsewhere: bool,
}

impl Endpoint {
    /// Pauses requests to the endpoint for the time that it asks for.
    pub(super) fn pause(&self, response: &Response) -> Error {
        let now = std::time::SystemTime::now();
        let pause = retry_after(text(response, header::RETRY_AFTER).as_deref(), now);
        self.breaker().pause(Instant::now(), pause);
        let label = UpstreamLabel {
            upstream: self.label.clone(),
        };
        self.metrics.pauses.get_or_create(&label).inc();
        Error::TooMany(pause)
    }

    /// Records an answer of 5xx, and when it says that it may be asked again.
    pub(super) fn fails(&self, call: &Call<'_>, response: &Response, what: &str) -> Error {
        let error = self.failed(call, what);
        let told = text(response, header::RETRY_AFTER);
        let pause = told_pause(told.as_deref(), std::time::SystemTime::now());
        match (error, pause) {
            (Error::Unavailable(what), Some(pause)) => {
                let until = Instant::now() + pause;
                self.breaker().asks_for(call.repository(), until);
                Error::Later(what, pause)
            }
            (error, _) => error,
        }
    }

    /// The answer, or the error that its status means.
    pub(super) fn answer(&self, call: &Call<'_>, found: Followed) -> Result<Response> {
        let response = found.response;
        let status = response.status();
        if !found.elsewhere
            && response
                .headers()
                .contains_key("docker-distribution-api-version")
        {
            self.is_registry.store(true, Ordering::Relaxed);
        }
        if call.method == Method::HEAD && decides_nothing(status) {
            return Err(Error::Invalid(format!("HEAD is answered with {status}")));
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Err(self.pause(&response));
        }
        // 501 tells that the upstream does not know the request, not that it fails.
        if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED {
            return Err(self.fails(call, &response, &format!("it answers {status}")));
        }
        self.succeeded(call);
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Error::Unauthorized),
            StatusCode::NOT_FOUND => Err(Error::NotFound),
            _ if status.is_success() => {
                match text(&response, header::CONTENT_ENCODING).as_deref() {
                    None | Some("" | "identity") => Ok(response),
                    Some(encoding) => Err(Error::Invalid(format!(
                        "the content is encoded ({}), which the request did not allow",
                        printable(encoding)
                    ))),
                }
            }
            _ => Err(Error::Invalid(format!("status {status}"))),
        }
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

/// The challenge of the endpoint itself. The challenge of another origin is answered where the
/// redirect is followed.
pub(super) fn challenge_of(found: &Followed) -> Option<Challenge> {
    if found.elsewhere {
        return None;
    }
    challenge(&found.response)
}

/// The best challenge of an answer.
pub(super) fn challenge(response: &Response) -> Option<Challenge> {
    response
        .headers()
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| Challenge::parse(value.to_str().ok()?))
        .max_by_key(|challenge| *challenge != Challenge::Basic)
}

/// The first byte and, if known, the whole size of `bytes FIRST-LAST/SIZE`.
pub(super) fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (first <= last && total.is_none_or(|total: u64| last < total)).then_some((first, total))
}

/// Text of an upstream, made safe for a log and a header.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .take(60)
        .collect()
}

/// The size of a blob as a `Content-Length` tells it. Some servers answer HEAD with 0 whatever the
/// size.
pub(super) fn told_size(length: Option<&str>) -> Option<u64> {
    length?.parse().ok().filter(|size| *size > 0)
}

pub(super) fn text(response: &Response, name: header::HeaderName) -> Option<String> {
    response
        .headers()
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

/// A duration in whole seconds, rounded up.
pub fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_nothing_tells_no_size() {
        for (length, expect) in [
            (None, None),
            (Some("10"), Some(10)),
            (Some("0"), None),
            (Some("-1"), None),
            (Some("many"), None),
        ] {
            assert_eq!(told_size(length), expect, "{length:?}");
        }
    }

    #[test]
    fn content_ranges_are_read_strictly() {
        for (text, expect) in [
            ("bytes 0-9/10", Some((0, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes 5-9/9", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("bytes 5-/10", None),
            ("items 0-9/10", None),
            ("", None),
        ] {
            assert_eq!(content_range(text), expect, "{text:?}");
        }
    }
}
