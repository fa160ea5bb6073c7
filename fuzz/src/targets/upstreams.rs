//! Headers of upstreams' answers.

use super::text;
use crate::{Shape, Target, ensure, shape};

/// Challenges.
pub(super) const CHALLENGE: Target = Target {
    name: "challenge",
    promise: "no WWW-Authenticate panics, and a token's realm is an absolute URL with a host",
    check,
    dictionary: &[
        "Bearer ",
        "Basic ",
        "realm=\"",
        "service=\"",
        "scope=\"",
        "https://auth.example/token",
        "\",",
        "\\\"",
        "error=\"invalid_token\"",
        ",",
        "=",
        "javascript:",
        "file:///etc/passwd",
        "http://169.254.169.254/",
        "https://u:p@h/",
    ],
    max_bytes: 600,
};

fn check(input: &[u8]) -> Result<Shape, String> {
    let text = text(input);
    let found = holdfast_upstream::realm(&text);
    if let Some(realm) = &found {
        ensure(!realm.cannot_be_a_base() && realm.has_host(), || {
            format!("the realm is {realm}")
        })?;
        ensure(["http", "https"].contains(&realm.scheme()), || {
            format!("the realm's scheme: {realm}")
        })?;
    }
    Ok(shape((
        found.is_some(),
        text.contains('\\'),
        text.contains(','),
    )))
}
