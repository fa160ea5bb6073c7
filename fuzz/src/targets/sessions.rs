//! The state of an upload that travels through clients: forged ones, and damaged hash states.

use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use holdfast_core::{Algorithm, RepositoryName};
use holdfast_registry::session::{Secret, State};
use holdfast_store::{Hasher, UploadId};

use super::text;
use crate::{Shape, Target, ensure, shape};

/// Signed states.
pub(super) const STATE: Target = Target {
    name: "upload-state",
    promise: "nothing but a state's own bytes passes for it, for its repository and session only",
    check: state,
    dictionary: &[
        "AAAA",
        "=",
        "==",
        "-",
        "_",
        "eyJOYW1lIjoiYS9iIn0",
        "~0",
        "~1",
        "~7",
        "~31",
        "~32",
        "~60",
        "~99",
    ],
    max_bytes: 1_500,
};

const ID: &str = "018f4d0c-0000-7000-8000-000000000001";

/// An input `~N text` puts the text into a valid state at byte N; anything else is the whole text.
fn state(input: &[u8]) -> Result<Shape, String> {
    let text = text(input);
    let refuse = |error: &dyn std::fmt::Display| error.to_string();
    let repo = RepositoryName::parse("a/b").map_err(|error| refuse(&error))?;
    let id = UploadId::parse(ID).ok_or("no session")?;
    let secret = Secret::new("secret");
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(b"the first bytes");
    let genuine = State::new(&repo, &id, 15, "2026-01-01T00:00:00Z", Some(&hasher));
    let signed = genuine.sign(&secret);
    ensure(
        State::verify(&signed, &secret, &repo, &id) == Some(genuine.clone()),
        || "a genuine state is refused".to_owned(),
    )?;
    let given = match text
        .strip_prefix('~')
        .map(|rest| rest.split_once(' ').unwrap_or((rest, "")))
    {
        Some((at, put)) => {
            let at = at.parse::<usize>().unwrap_or(0) % (signed.len() + 1);
            let end = (at + put.len()).min(signed.len());
            format!(
                "{}{put}{}",
                signed.get(..at).unwrap_or_default(),
                signed.get(end..).unwrap_or_default()
            )
        }
        None => text.to_string(),
    };
    let read = State::verify(&given, &secret, &repo, &id);
    if let Some(state) = &read {
        ensure(*state == genuine, || format!("forged: {given}"))?;
        ensure(
            URL_SAFE.decode(&given).ok() == URL_SAFE.decode(&signed).ok(),
            || format!("other bytes pass: {given}"),
        )?;
    }
    let other = RepositoryName::parse("a/c").map_err(|error| refuse(&error))?;
    ensure(
        State::verify(&given, &secret, &other, &id).is_none(),
        || "passes for another repository".to_owned(),
    )?;
    ensure(
        State::verify(&given, &Secret::new("Secret"), &repo, &id).is_none(),
        || "passes under another secret".to_owned(),
    )?;
    Ok(shape((
        read.is_some(),
        URL_SAFE.decode(&given).map(|bytes| bytes.len() > 32).ok(),
    )))
}

/// Hash states.
pub(super) const HASH: Target = Target {
    name: "hash-state",
    promise: "no saved hash state panics, now or when it goes on; a genuine one goes on rightly wherever it was cut",
    check: hash,
    dictionary: &["\0\0\0\0", "\u{7f}", "\u{80}", "@"],
    max_bytes: 400,
};

fn hash(input: &[u8]) -> Result<Shape, String> {
    let mut shapes = Vec::new();
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        // A genuine state, cut at a place that the input chooses.
        let cut = input
            .first()
            .map_or(0, |first| usize::from(*first) % (input.len() + 1));
        let (head, tail) = input.split_at(cut.min(input.len()));
        let mut hasher = Hasher::new(algorithm);
        hasher.update(head);
        let mut restored =
            Hasher::restore(algorithm, &hasher.save()).map_err(|error| error.to_string())?;
        restored.update(tail);
        ensure(
            restored.finish() == Hasher::digest(algorithm, input),
            || format!("another digest when cut at {cut}"),
        )?;
        // The input as a state: as it is, filled up to the right length, and a genuine one with the input written over it.
        let genuine = hasher.save();
        let mut filled = input.to_vec();
        filled.resize(genuine.len(), 0);
        let mut over = genuine.clone();
        for (byte, new) in over.iter_mut().rev().zip(input.iter().rev()) {
            *byte = *new;
        }
        for saved in [input, &filled, &over] {
            let restored = Hasher::restore(algorithm, saved);
            shapes.push(restored.is_ok());
            if let Ok(mut hasher) = restored {
                for piece in [1, 63, 64, 129] {
                    hasher.update(&vec![7; piece]);
                }
                hasher.finish();
            }
        }
    }
    Ok(shape((shapes, input.len().min(4))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inputs_reach_into_a_genuine_state() {
        // Nothing put in: the genuine state passes, and its kind differs from that of a damaged one.
        let genuine = state(b"~5 ").unwrap();
        assert_ne!(genuine, state(b"~5 xyz").unwrap());
        assert_ne!(genuine, state(b"AAAA").unwrap());
    }
}
