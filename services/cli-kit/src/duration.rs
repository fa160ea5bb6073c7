//! Durations as command lines write them.

use std::time::Duration;

/// Parses `5m`, `1h30m` or `90s`. A bare number means seconds.
pub fn parse(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "a duration is written like 90s, 5m or 1h30m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_a_bare_number_is_seconds() {
        for (text, expect) in [
            ("0", Some(0)),
            ("90", Some(90)),
            ("90s", Some(90)),
            ("5m", Some(300)),
            ("1h30m", Some(5400)),
            ("-5m", None),
            ("soon", None),
            ("", None),
        ] {
            let found = parse(text).ok();
            assert_eq!(found, expect.map(Duration::from_secs), "{text}");
        }
    }
}
