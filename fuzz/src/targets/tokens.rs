//! Bearer tokens and the keys that they are checked with.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holdfast_registry::parsers;

use super::text;
use crate::{Shape, Target, ensure, shape};

/// Tokens.
pub(super) const TOKEN: Target = Target {
    name: "token",
    promise: "nothing but a token that the configured key signed is taken, and no file of keys panics",
    check: token,
    dictionary: &[
        "eyJhbGciOiJub25lIn0",
        "eyJhbGciOiJIUzI1NiJ9",
        ".",
        "..",
        "=",
        "AAAA",
        "~0 ",
        "~1 ",
        "~22 ",
        "~40 ",
        "~99 ",
        "~200 ",
        "{\"keys\":[",
        "{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"",
        "{\"kty\":\"RSA\",\"n\":\"",
        "\",\"e\":\"AQAB\"}",
        "{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"",
        "-----BEGIN PUBLIC KEY-----\n",
        "-----END PUBLIC KEY-----\n",
        "-----BEGIN CERTIFICATE-----\n",
        "MCowBQYDK2VwAyEA",
    ],
    max_bytes: 3_000,
};

/// An input `~N text` puts the text into a genuine token at byte N; anything else is a whole token,
/// and a file of keys.
fn token(input: &[u8]) -> Result<Shape, String> {
    let text = text(input);
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).map_err(|error| error.to_string())?;
    let public = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    let keys =
        format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","x":"{public}"}}]}}"#);
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","typ":"JWT"}"#);
    let body = URL_SAFE_NO_PAD.encode(r#"{"iss":"i","aud":"s","sub":"me","exp":2000,"access":[{"type":"repository","name":"a","actions":["pull"]}]}"#);
    let signed = format!("{head}.{body}");
    let signature = URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes()));
    let genuine = format!("{signed}.{signature}");
    let judge = |text: &str, now: f64| parsers::token(text, keys.as_bytes(), "i", "s", now);
    ensure(judge(&genuine, 1000.0) == Ok("me".to_owned()), || {
        format!("a genuine token is refused: {:?}", judge(&genuine, 1000.0))
    })?;
    ensure(judge(&genuine, 9000.0).is_err(), || {
        "an old token is taken".to_owned()
    })?;
    let put = text
        .strip_prefix('~')
        .map(|rest| rest.split_once(' ').unwrap_or((rest, "")));
    let given = match put {
        Some((at, put)) => {
            let at = at.parse::<usize>().unwrap_or(0) % (genuine.len() + 1);
            let end = (at + put.len()).min(genuine.len());
            let (head, tail) = (genuine.get(..at), genuine.get(end..));
            format!(
                "{}{put}{}",
                head.unwrap_or_default(),
                tail.unwrap_or_default()
            )
        }
        None => text.to_string(),
    };
    let taken = judge(&given, 1000.0);
    ensure(taken.is_err() || given == genuine, || {
        format!("forged: {given}")
    })?;
    // A key of the input's own: whatever the file is, the genuine token is not of its making.
    let own = parsers::token(&genuine, input, "i", "s", 1000.0);
    ensure(own.is_err() || text.contains(&public), || {
        "a stranger's key verifies".to_owned()
    })?;
    let words =
        |error: Option<String>| error.map(|text| text.split(' ').take(3).collect::<String>());
    Ok(shape((taken.map_err(words), own.map_err(words))))
}
