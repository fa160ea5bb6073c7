//! `Range` of a request for a blob. Pure.

/// What to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Everything, 200.
    Whole,
    /// Bytes `first..=last`, 206.
    Part {
        /// First byte.
        first: u64,
        /// Last byte, included.
        last: u64,
    },
    /// 416.
    Unsatisfiable,
}

/// Reads a `Range` header for content of `size` bytes. One range is answered; several, and other
/// units, are ignored as RFC 9110 allows. A range whose end lies before its start is refused,
/// because clients that send it have a bug that silence would hide.
pub(crate) fn parse(header: Option<&str>, size: u64) -> Answer {
    let Some(spec) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else {
        return Answer::Whole;
    };
    let Some((first, last)) = spec.trim().split_once('-') else {
        return Answer::Whole;
    };
    if spec.contains(',') {
        return Answer::Whole;
    }
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last || first >= size => Answer::Unsatisfiable,
        (Some(first), Some(last)) => Answer::Part {
            first,
            last: last.min(size - 1),
        },
        (Some(first), None) if last.is_empty() && first >= size => Answer::Unsatisfiable,
        (Some(first), None) if last.is_empty() => Answer::Part {
            first,
            last: size - 1,
        },
        (None, Some(suffix)) if first.is_empty() && (suffix == 0 || size == 0) => {
            Answer::Unsatisfiable
        }
        (None, Some(suffix)) if first.is_empty() => Answer::Part {
            first: size.saturating_sub(suffix),
            last: size - 1,
        },
        _ => Answer::Whole,
    }
}

fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

/// `Content-Range` of a chunk that is pushed: `first-last`, with or without a unit as some clients
/// send it.
pub(crate) fn parse_chunk(header: &str) -> Option<(u64, u64)> {
    let text = header.trim();
    let text = text
        .strip_prefix("bytes ")
        .or_else(|| text.strip_prefix("bytes="))
        .unwrap_or(text);
    let text = text.split_once('/').map_or(text, |(range, _)| range);
    let (first, last) = text.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    (first <= last && last < u64::MAX).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, size: u64, expect: Answer) {
        assert_eq!(parse(Some(header), size), expect, "{header} of {size}");
    }

    #[test]
    fn ranges_are_answered_as_the_specification_says() {
        let part = |first, last| Answer::Part { first, last };
        check("bytes=0-0", 10, part(0, 0));
        check("bytes=500-1499", 4000, part(500, 1499));
        check("bytes=500-", 4000, part(500, 3999));
        check("bytes=-500", 4000, part(3500, 3999));
        check("bytes=-5000", 4000, part(0, 3999));
        check("bytes=2000-5000", 4000, part(2000, 3999));
        check("bytes=500-0", 4000, Answer::Unsatisfiable);
        check("bytes=5000-10000", 4000, Answer::Unsatisfiable);
        check("bytes=4000-", 4000, Answer::Unsatisfiable);
        check("bytes=-0", 4000, Answer::Unsatisfiable);
        check("bytes=0-", 0, Answer::Unsatisfiable);
        check("bytes=0-1,3-4", 10, Answer::Whole);
        check("items=0-1", 10, Answer::Whole);
        check("bytes=a-b", 10, Answer::Whole);
        check("bytes=-", 10, Answer::Whole);
        check("bytes=+1-2", 10, Answer::Whole);
        check("bytes=99999999999999999999-", 10, Answer::Whole);
        assert_eq!(parse(None, 10), Answer::Whole);
    }

    #[test]
    fn chunks_have_one_form() {
        for (header, expect) in [
            ("0-9", Some((0, 9))),
            ("bytes 5-9/10", Some((5, 9))),
            ("9-0", None),
            ("0-18446744073709551615", None),
            ("-9", None),
            ("9-", None),
            ("a-b", None),
            ("", None),
        ] {
            assert_eq!(parse_chunk(header), expect, "{header}");
        }
    }
}
