//! Parts of answers that several handlers need.

use bytes::Bytes;
use http::{HeaderValue, Response, header};

/// A JSON answer.
pub(crate) fn json(text: String, media_type: &'static str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(text));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// A `Warning: 299` with the characters of the reason that a header can hold.
pub(crate) fn warning(reason: &str) -> HeaderValue {
    let text: String = reason
        .chars()
        .filter(|c| (' '..='~').contains(c) && *c != '"' && *c != '\\')
        .take(1000)
        .collect();
    value(&format!("299 - \"{text}\""))
}

/// The value of a header from text that is valid for one.
pub(crate) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("invalid"))
}
