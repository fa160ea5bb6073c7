//! Tokens of an authorization service as the distribution registry has them: a signed JWT whose
//! `access` lists what its bearer may do. Pure; time is an argument.
//!
//! The crate jsonwebtoken is not used: it reads the clock itself, does not know the algorithm name
//! `Ed25519`, accepts several issuers and the critical header `b64`, and does not check keys.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::keys::{Algorithm, Key};
use crate::limits;

/// Why a token is refused. The client learns only that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// Not three parts of base64 with the right JSON in them.
    #[error("the token does not parse")]
    Form,
    /// An algorithm that is not supported, `none` for instance.
    #[error("the token's algorithm is not supported")]
    Algorithm,
    /// No configured key has that algorithm and name.
    #[error("no configured key fits the token")]
    Key,
    /// The signature is wrong.
    #[error("the token's signature is wrong")]
    Signature,
    /// Another issuer.
    #[error("the token is from another issuer")]
    Issuer,
    /// Another audience.
    #[error("the token is for another service")]
    Audience,
    /// Too old.
    #[error("the token has expired")]
    Expired,
    /// Too young.
    #[error("the token is not valid yet")]
    NotYet,
}

/// What a token must say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    /// `iss`
    pub(crate) issuer: &'a str,
    /// One of `aud`
    pub(crate) service: &'a str,
}

/// What the bearer of a token may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    subject: String,
    access: Vec<Access>,
}

/// One entry of `access`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Access {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    #[serde(default)]
    actions: Vec<String>,
}

impl Claims {
    /// Whom the token was issued to; may be empty.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    #[cfg(test)]
    pub(crate) fn of(subject: &str, access: &[(&str, &str, &[&str])]) -> Self {
        let access = access.iter().map(|(kind, name, actions)| Access {
            kind: (*kind).to_owned(),
            name: (*name).to_owned(),
            actions: actions.iter().map(|action| (*action).to_owned()).collect(),
        });
        Self {
            subject: subject.to_owned(),
            access: access.collect(),
        }
    }

    /// Whether the token gives `action` on the resource; `*` gives every action.
    pub fn allow(&self, kind: &str, name: &str, action: &str) -> bool {
        self.access.iter().any(|access| {
            access.kind == kind
                && access.name == name
                && access
                    .actions
                    .iter()
                    .any(|given| given == action || given == "*")
        })
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Payload {
    iss: String,
    #[serde(default)]
    sub: Option<String>,
    aud: Audience,
    exp: f64,
    #[serde(default)]
    nbf: Option<f64>,
    #[serde(default)]
    access: Option<Vec<Access>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Checks a token; `now` is seconds since 1970. Keys in the token (`jwk`, `jku`, `x5c`) are
/// ignored.
///
/// # Errors
/// [`Error`]
pub(crate) fn verify(
    token: &str,
    keys: &[Key],
    expected: Expected<'_>,
    now: f64,
) -> Result<Claims, Error> {
    if limits::TOKEN_BYTES < token.len() {
        return Err(Error::Form);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(Error::Form)?;
    let (header, payload) = signed.split_once('.').ok_or(Error::Form)?;
    if payload.contains('.') {
        return Err(Error::Form);
    }
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Error::Form);
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| Error::Form)?;
    if header.crit.is_some() {
        return Err(Error::Form);
    }
    let algorithm = Algorithm::parse(&header.alg).ok_or(Error::Algorithm)?;
    let signature = decode(signature)?;
    let mut candidates = keys
        .iter()
        .filter(|key| key.fits(algorithm, header.kid.as_deref()))
        .peekable();
    if candidates.peek().is_none() {
        return Err(Error::Key);
    }
    if !candidates.any(|key| key.verifies(signed.as_bytes(), &signature)) {
        return Err(Error::Signature);
    }
    let payload: Payload = serde_json::from_slice(&decode(payload)?).map_err(|_| Error::Form)?;
    check(payload, expected, now)
}

fn check(payload: Payload, expected: Expected<'_>, now: f64) -> Result<Claims, Error> {
    let leeway = limits::TOKEN_LEEWAY.as_secs_f64();
    if payload.iss != expected.issuer {
        return Err(Error::Issuer);
    }
    let for_us = match &payload.aud {
        Audience::One(one) => one == expected.service,
        Audience::Many(many) => many.iter().any(|one| one == expected.service),
    };
    if !for_us {
        return Err(Error::Audience);
    }
    if payload.exp + leeway <= now {
        return Err(Error::Expired);
    }
    if payload.nbf.is_some_and(|begin| now + leeway < begin) {
        return Err(Error::NotYet);
    }
    Ok(Claims {
        subject: payload.sub.unwrap_or_default(),
        access: payload.access.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;
