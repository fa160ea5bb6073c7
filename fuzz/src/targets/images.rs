//! Image references, their rewrite, pull secrets and quantities.

use holdfast_core::{
    Digest, Reference, RepositoryName, Tag,
    credentials::{PullSecret, candidates},
    quantity, rewrite,
};

use super::text;
use crate::{Shape, Target, ensure, shape};

const WORDS: &[&str] = &[
    "docker.io",
    "library/",
    "nginx",
    "latest",
    "localhost",
    ":5000",
    "@sha256:",
    "@sha512:",
    "[::1]",
    "[fd00::1]",
    "10.96.0.50",
    "a.b",
    "__",
    "--",
    "team/app",
    ".ipv6-literal.net",
    "_5000",
    "index.docker.io",
    "registry-1.docker.io",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
];

/// References.
pub(super) const REFERENCE: Target = Target {
    name: "reference",
    promise: "what parses prints in a form that parses to the same, and names, tags and digests print as they were written",
    check: reference,
    dictionary: WORDS,
    max_bytes: 600,
};

fn reference(input: &[u8]) -> Result<Shape, String> {
    let text = text(input);
    if let Ok(name) = RepositoryName::parse(&text) {
        ensure(name.as_str() == text, || format!("name became {name}"))?;
        ensure(
            text.len() <= 255
                && !text.starts_with('/')
                && !text.contains("..")
                && !text.contains("//"),
            || "a name leaves its folder".to_owned(),
        )?;
    }
    if let Ok(tag) = Tag::parse(&text) {
        ensure(
            tag.as_str() == text && !text.contains('/') && !text.starts_with('.'),
            || format!("tag became {}", tag.as_str()),
        )?;
    }
    if let Ok(digest) = Digest::parse(&text) {
        ensure(digest.as_str() == text, || {
            format!("digest became {digest}")
        })?;
    }
    let parsed = match Reference::parse(&text) {
        Ok(parsed) => parsed,
        Err(error) => return Ok(shape(std::mem::discriminant(&error))),
    };
    let printed = parsed.to_string();
    let again = Reference::parse(&printed)
        .map_err(|error| format!("canonical form is refused: {printed:?}: {error}"))?;
    ensure(again == parsed, || {
        format!("canonical form means another: {printed:?}")
    })?;
    ensure(again.to_string() == printed, || {
        format!("canonical form is not stable: {printed:?}")
    })?;
    let familiar = parsed.familiar();
    let meant = Reference::parse(&familiar)
        .map_err(|error| format!("familiar form is refused: {familiar:?}: {error}"))?;
    ensure(meant == parsed, || {
        format!("familiar form means another: {familiar:?}")
    })?;
    Ok(shape((
        parsed.host().port().is_some(),
        parsed.host().ipv6().is_some(),
        parsed.tag().is_some(),
        parsed.digest().is_some(),
        parsed.repository().components().count().min(5),
        printed == text,
    )))
}

/// The rewrite.
pub(super) const REWRITE: Target = Target {
    name: "rewrite",
    promise: "a rewritten reference parses, reads back to the one it came from, and is not rewritten twice",
    check: rewritten,
    dictionary: WORDS,
    max_bytes: 600,
};

fn rewritten(input: &[u8]) -> Result<Shape, String> {
    let text = text(input);
    let addresses = ["10.96.0.50", "[fd00::50]", "registry.site:5000"];
    let known = addresses.map(str::to_owned);
    let Ok(parsed) = Reference::parse(&text) else {
        return Ok(0);
    };
    let own = rewrite::original(&text, &known);
    if let Some(original) = &own {
        let back =
            rewrite::rewrite(original, &known[0]).ok_or("what was read back has no local name")?;
        let back =
            Reference::parse(&back).map_err(|error| format!("read back, then refused: {error}"))?;
        ensure(back.repository() == parsed.repository(), || {
            format!("read back as {original}, which becomes {back}")
        })?;
    }
    let mut outcomes = Vec::new();
    for address in addresses {
        let Some(local) = rewrite::rewrite(&parsed, address) else {
            outcomes.push(false);
            continue;
        };
        outcomes.push(true);
        let at = Reference::parse(&local)
            .map_err(|error| format!("rewritten form is refused: {local:?}: {error}"))?;
        ensure(rewrite::is_at(at.host(), address), || {
            format!("not at {address}: {local:?}")
        })?;
        ensure(at.repository().as_str().len() <= 255, || {
            format!("too long: {local:?}")
        })?;
        ensure(rewrite::is_upstream_namespace(at.repository()), || {
            format!("no upstream's name: {local:?}")
        })?;
        ensure(
            rewrite::original(&local, &known).as_ref() == Some(&parsed),
            || format!("does not read back: {local:?}"),
        )?;
        ensure(
            at.tag() == parsed.tag() && at.digest() == parsed.digest(),
            || format!("tag or digest changed: {local:?}"),
        )?;
    }
    Ok(shape((
        outcomes,
        own.is_some(),
        parsed.host().port().is_some(),
        parsed.host().ipv6().is_some(),
    )))
}

/// Pull secrets.
pub(super) const PULL_SECRET: Target = Target {
    name: "pull-secret",
    promise: "no payload panics, what is read never prints a password, and every candidate came from the secret",
    check: pull_secret,
    dictionary: &[
        "{\"auths\":{",
        "\"auth\":\"",
        "\"username\":\"",
        "\"password\":\"S3CRET\"",
        "\"identitytoken\":\"",
        "https://index.docker.io/v1/",
        "dTpTM0NSRVQ=",
        "*.example.org",
        "a.example.org:5000/team",
        "null",
        "}}",
    ],
    max_bytes: 4_000,
};

fn pull_secret(input: &[u8]) -> Result<Shape, String> {
    let readings = [
        PullSecret::from_dockerconfigjson(input),
        PullSecret::from_dockercfg(input),
    ];
    let mut shapes = Vec::new();
    for reading in readings {
        let secret = match reading {
            Ok(secret) => secret,
            Err(error) => {
                ensure(!error.to_string().contains("S3CRET"), || {
                    format!("the error tells: {error}")
                })?;
                shapes.push(1000);
                continue;
            }
        };
        // A name of a user may be the same word as the password.
        if !String::from_utf8_lossy(input)
            .replace("\"password\":\"S3CRET\"", "")
            .contains("S3CRET")
        {
            ensure(!format!("{secret:?}").contains("S3CRET"), || {
                "the password prints".to_owned()
            })?;
        }
        let mut count = 0;
        for name in [
            "nginx",
            "a.example.org/x",
            "a.example.org:5000/team/app",
            "[::1]:5000/a",
        ] {
            let image = Reference::parse(name).map_err(|error| error.to_string())?;
            let found = candidates([secret.clone()], &image);
            ensure(found.is_empty() || !secret.is_empty(), || {
                "a credential out of nothing".to_owned()
            })?;
            count += found.len().min(3);
        }
        shapes.push(count);
    }
    Ok(shape(shapes))
}

/// Quantities.
pub(super) const QUANTITY: Target = Target {
    name: "quantity",
    promise: "no quantity panics, and plain numbers of bytes mean themselves",
    check: quantity,
    dictionary: &[
        "Ki", "Mi", "Gi", "Ei", "k", "m", "n", "u", "E", "e", "e-9", "e18", ".", "+", "0.5",
    ],
    max_bytes: 60,
};

fn quantity(input: &[u8]) -> Result<Shape, String> {
    let text = text(input);
    let found = quantity::parse_bytes(&text);
    if let Ok(number) = text.parse::<u64>()
        && text.len() <= 18
        && !text.starts_with('+')
    {
        ensure(found == Ok(number), || format!("{number} became {found:?}"))?;
    }
    Ok(match found {
        Ok(bytes) => shape(bytes.checked_ilog2()),
        Err(error) => shape(std::mem::discriminant(&error)),
    })
}
