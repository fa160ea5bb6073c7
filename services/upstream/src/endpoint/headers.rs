//! Headers of answers: what they say, read strictly.

use http::header;
use reqwest::Response;

use crate::auth::Challenge;

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

/// A header as text; `None` where it is absent or no text.
pub(super) fn text(response: &Response, name: header::HeaderName) -> Option<String> {
    response
        .headers()
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
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
