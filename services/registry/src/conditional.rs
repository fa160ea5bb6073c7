//! `If-Match` and `If-None-Match` of a read (RFC 9110, 13). Pure. The entity tag of content is its
//! digest.

use holdfast_core::digest::Digest;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::{
    body::{self, Body},
    error::{Code, Error},
    response::value,
};

/// What the conditions of a request ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The content.
    Content,
    /// 304
    NotModified,
    /// 412
    Failed,
}

/// The answer that takes the place of the content, if the conditions ask for one.
pub(crate) fn answer(headers: &HeaderMap, digest: &Digest) -> Option<Response<Body>> {
    match evaluate(headers, digest.as_str()) {
        Outcome::Content => None,
        Outcome::NotModified => {
            let mut response = Response::new(body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            let headers = response.headers_mut();
            headers.insert("docker-content-digest", value(digest.as_str()));
            headers.insert(header::ETAG, value(&format!("\"{digest}\"")));
            Some(response)
        }
        Outcome::Failed => {
            let error = Error::new(
                StatusCode::PRECONDITION_FAILED,
                Code::Unsupported,
                format!("the content is {digest}, which If-Match does not list"),
            );
            Some(error.into_response())
        }
    }
}

fn evaluate(headers: &HeaderMap, digest: &str) -> Outcome {
    let lists = |name, weak| lists(headers, &name, digest, weak);
    match (
        lists(header::IF_MATCH, false),
        lists(header::IF_NONE_MATCH, true),
    ) {
        (Some(false), _) => Outcome::Failed,
        (_, Some(true)) => Outcome::NotModified,
        _ => Outcome::Content,
    }
}

/// Whether a header lists the digest; `None` without the header. A digest without quotes counts,
/// too: some clients send it so, and distribution takes it.
fn lists(headers: &HeaderMap, name: &HeaderName, digest: &str, weak: bool) -> Option<bool> {
    let values = headers.get_all(name);
    values.iter().next()?;
    let is_listed = |value: &HeaderValue| {
        let tags = value.to_str().unwrap_or_default().split(',');
        tags.map(str::trim).any(|tag| {
            let opaque = match tag.strip_prefix("W/") {
                Some(_) if !weak => return false,
                Some(opaque) => opaque,
                None => tag,
            };
            let quoted = opaque
                .strip_prefix('"')
                .and_then(|tag| tag.strip_suffix('"'));
            tag == "*" || quoted.unwrap_or(opaque) == digest
        })
    };
    Some(values.iter().any(is_listed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_as_the_specification_says() {
        use Outcome::{Content, Failed, NotModified};
        let (matches, none) = ("if-match", "if-none-match");
        for (sent, expect) in [
            (&[][..], Content),
            (&[(none, "\"a\"")], NotModified),
            (&[(none, "a")], NotModified),
            (&[(none, "W/\"a\"")], NotModified),
            (&[(none, "\"b\", \"a\"")], NotModified),
            (&[(none, "\"b\""), (none, "\"a\"")], NotModified),
            (&[(none, "*")], NotModified),
            (&[(none, "\"b\"")], Content),
            (&[(none, "")], Content),
            (&[(matches, "\"a\"")], Content),
            (&[(matches, "*")], Content),
            (&[(matches, "\"b\"")], Failed),
            (&[(matches, "W/\"a\"")], Failed),
            (&[(matches, "\"a\""), (none, "\"a\"")], NotModified),
            (&[(matches, "\"b\""), (none, "\"a\"")], Failed),
        ] {
            let mut headers = HeaderMap::new();
            for (name, text) in sent {
                headers.append(*name, HeaderValue::from_static(text));
            }
            assert_eq!(evaluate(&headers, "a"), expect, "{sent:?}");
        }
    }
}
