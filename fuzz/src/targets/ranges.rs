//! Byte ranges, compared with a second implementation of the rules.

use holdfast_registry::parsers::{self, Range};

use super::text;
use crate::{Shape, Target, ensure, shape};

/// `Range` of pulls.
pub(super) const RANGE: Target = Target {
    name: "range",
    promise: "a Range header is answered as the rules say, and never with bytes outside of the content",
    check: |input| range_of(input, parsers::range),
    dictionary: &[
        "bytes=", "bytes", "-", ",", "0-", "-1", "0-0", "1-0", "items=", "\n",
    ],
    max_bytes: 120,
};

/// `Content-Range` of pushed chunks.
pub(super) const CHUNK: Target = Target {
    name: "chunk",
    promise: "a chunk's Content-Range is taken only as first-last in order",
    check: chunk,
    dictionary: &["bytes ", "bytes=", "-", "/", "/*", "0-0"],
    max_bytes: 120,
};

/// An input is the content's size, a line's end, the header.
fn range_of(input: &[u8], parse: impl Fn(&str, u64) -> Range) -> Result<Shape, String> {
    let text = text(input);
    let (size, header) = text.split_once('\n').unwrap_or(("1000", &text));
    let size = size.parse().unwrap_or(1000);
    let found = parse(header, size);
    if let Range::Part(first, last) = found {
        ensure(first <= last && last < size, || {
            format!("{first}-{last} lies outside of {size}")
        })?;
    }
    let expected = model(header, size);
    ensure(found == expected, || {
        format!("{header:?} of {size}: {found:?} instead of {expected:?}")
    })?;
    let size_kind = (size == 0, size == u64::MAX);
    Ok(shape((
        std::mem::discriminant(&found),
        size_kind,
        header.contains(','),
        header.ends_with('-'),
    )))
}

/// RFC 9110, section 14, for one range of bytes; several ranges and what does not parse are
/// ignored; an end before its start is refused.
fn model(header: &str, size: u64) -> Range {
    let header = header.trim();
    if header.len() < 6 || header.get(..6) != Some("bytes=") {
        return Range::Whole;
    }
    let spec = header.get(6..).unwrap_or_default().trim();
    if spec.contains(',') {
        return Range::Whole;
    }
    let Some((first, last)) = spec.split_once('-') else {
        return Range::Whole;
    };
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return Range::Whole;
    }
    let number = |text: &str| text.parse::<u64>().ok();
    match (first.is_empty(), last.is_empty()) {
        (true, true) => Range::Whole,
        (true, false) => match number(last) {
            None => Range::Whole,
            Some(0) => Range::Unsatisfiable,
            Some(_) if size == 0 => Range::Unsatisfiable,
            Some(count) => Range::Part(size - count.min(size), size - 1),
        },
        (false, true) => match number(first) {
            None => Range::Whole,
            Some(first) if first >= size => Range::Unsatisfiable,
            Some(first) => Range::Part(first, size - 1),
        },
        (false, false) => match (number(first), number(last)) {
            (Some(first), Some(last)) if last < first || size <= first => Range::Unsatisfiable,
            (Some(first), Some(last)) => {
                Range::Part(first, if last < size { last } else { size - 1 })
            }
            _ => Range::Whole,
        },
    }
}

fn chunk(input: &[u8]) -> Result<Shape, String> {
    let text = text(input);
    let found = parsers::chunk(&text);
    if let Some((first, last)) = found {
        ensure(first <= last, || format!("{first}-{last} runs backwards"))?;
        let plain = format!("{first}-{last}");
        ensure(parsers::chunk(&plain) == found, || {
            format!("{plain} means another")
        })?;
    }
    Ok(shape((
        found.is_some(),
        text.contains('/'),
        text.starts_with("bytes"),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{self, Plan};

    #[test]
    fn an_end_that_is_one_too_far_is_found() {
        let broken = |header: &str, size: u64| match parsers::range(header, size) {
            Range::Part(first, last) if last + 1 == size && first > 0 => {
                Range::Part(first, last + 1)
            }
            other => other,
        };
        assert!(range_of(b"10\nbytes=5-", broken).is_err());
        let target = Target {
            check: |input| {
                range_of(input, |header, size| match parsers::range(header, size) {
                    Range::Part(first, last) if last + 1 == size && first > 0 => {
                        Range::Part(first, last + 1)
                    }
                    other => other,
                })
            },
            ..RANGE
        };
        let plan = Plan {
            time: std::time::Duration::from_secs(10),
            seed: 1,
            findings: 1,
            current: None,
        };
        let outcome = engine::run(&target, &[b"100\nbytes=0-5".to_vec()], &plan);
        assert_eq!(outcome.findings.len(), 1, "{} runs", outcome.runs);
    }
}
