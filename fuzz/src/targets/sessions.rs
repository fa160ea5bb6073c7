//! The state of an upload that travels through clients: forged ones, damaged hash states, and
//! states that are sent again in any order.

use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use holdfast_core::{Algorithm, RepositoryName};
use holdfast_registry::session::{Secret, State};
use holdfast_simfs::{Faults, SimFs};
use holdfast_store::{CarriedHash, Hasher, LockHolder, Options, Store, UploadId};

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
    let carried = CarriedHash {
        hasher,
        generation: None,
    };
    let genuine = State::new(&repo, &id, 15, "2026-01-01T00:00:00Z", Some(&carried));
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
        // The input as a state: as it is, filled up to the right length, and a genuine one with the
        // input written over it.
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

/// Requests of one upload, each with any of the states that were given out.
pub(super) const SEQUENCE: Target = Target {
    name: "upload-sequence",
    promise: "whatever is sent with whatever state, what is committed hashes to its digest",
    check: sequence,
    dictionary: &[
        "C0g4", "C0e4", "C0g2", "C1g4", "C1e4", "C2e4", "E1", "E2", "E1g", "E0g", "W0e", "W0g",
        "B0e4", "S0", "X", " ",
    ],
    max_bytes: 200,
};

/// An upload's client, in the words of an input: `C0g4` sends a chunk of good bytes up to the
/// fourth quarter with the first state, `e` evil ones, `B` breaks off; `E1` ends it with the second
/// state, `E1g` with the rest of the bytes, `W` likewise in a file of its own; `S` asks for the
/// state where the file ends; `X` cancels, and a new upload begins.
struct Client {
    store: Store,
    repo: RepositoryName,
    id: UploadId,
    secret: Secret,
    states: Vec<String>,
    good: Vec<u8>,
    evil: Vec<u8>,
    owner: LockHolder,
}

/// Quarters of the content.
const QUARTER: usize = 100;

impl Client {
    fn given(&mut self, offset: u64, carried: Option<&CarriedHash>) {
        let state = State::new(&self.repo, &self.id, offset, "", carried);
        self.states.push(state.sign(&self.secret));
    }

    async fn begin(&mut self) -> Result<(), holdfast_store::Error> {
        self.id = self.store.create_upload(&self.repo, "").await?;
        self.states.clear();
        self.given(0, Some(&CarriedHash::none(Algorithm::Sha256)));
        Ok(())
    }

    async fn step(&mut self, word: &str) -> Result<(), holdfast_store::Error> {
        let mut letters = word.chars();
        let what = letters.next().unwrap_or(' ');
        let number = |letter: Option<char>| {
            usize::try_from(letter.and_then(|c| c.to_digit(10)).unwrap_or(0)).unwrap_or(0)
        };
        let state = number(letters.next()) % self.states.len();
        let content = match letters.next() {
            Some('g') => self.good.clone(),
            Some('e') => self.evil.clone(),
            _ => Vec::new(),
        };
        let end = (number(letters.next()) * QUARTER).min(content.len());
        let text = self.states.get(state).cloned().unwrap_or_default();
        let state = State::verify(&text, &self.secret, &self.repo, &self.id)
            .ok_or(holdfast_store::Error::HashState)?;
        let offset = state.offset();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let digest = Hasher::digest(Algorithm::Sha256, &self.good);
        let writer = match what {
            'X' => {
                self.store.cancel_upload(&self.repo, &self.id).await?;
                return self.begin().await;
            }
            'S' => {
                let status = self.store.upload_status(&self.repo, &self.id).await?;
                if let Some(status) = status {
                    self.given(status.size, None);
                }
                return Ok(());
            }
            'W' => {
                let algorithm = Algorithm::Sha256;
                self.store
                    .whole_upload_writer(&self.repo, &self.id, algorithm)
                    .await
            }
            _ => {
                self.store
                    .upload_writer(&self.repo, &self.id, offset, state.carried(), &self.owner)
                    .await
            }
        };
        let mut writer = writer?;
        let upto = if matches!(what, 'C' | 'B') {
            end
        } else {
            content.len()
        };
        let from = if what == 'W' { 0 } else { from };
        let bytes = content.get(from..upto).unwrap_or_default().to_vec();
        writer.append(bytes.into()).await?;
        match what {
            'C' => {
                let (size, carried) = writer.finish().await?;
                self.given(size, Some(&carried));
            }
            'E' | 'W' => {
                writer.commit(&digest).await?;
                self.begin().await?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn sequence(input: &[u8]) -> Result<Shape, String> {
    let fs = SimFs::new(1, 1, Faults::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let refuse = |error: holdfast_store::Error| error.to_string();
        let store = Store::open_on(std::sync::Arc::new(fs.client(0)), "/r", Options::default())
            .await
            .map_err(refuse)?;
        let good: Vec<u8> = (0..=255).cycle().take(4 * QUARTER).collect();
        let mut client = Client {
            store,
            repo: RepositoryName::parse("a/b").map_err(|error| error.to_string())?,
            id: UploadId::parse(ID).ok_or("no session")?,
            secret: Secret::new("secret"),
            states: Vec::new(),
            evil: good.iter().map(|byte| !byte).collect(),
            good,
            owner: LockHolder {
                address: String::new(),
                id: "one".to_owned(),
            },
        };
        client.begin().await.map_err(refuse)?;
        let mut outcomes = Vec::new();
        for word in text(input).split_whitespace().take(12) {
            let outcome = client.step(word).await;
            outcomes.push(outcome.err().map_or("ok", |error| error.category()));
            ensure(outcomes.last() != Some(&"io"), || {
                format!("the volume failed at {word}")
            })?;
            let digest = Hasher::digest(Algorithm::Sha256, &client.good);
            let blob = client.store.open_blob(&digest).await.map_err(refuse)?;
            if let Some(blob) = blob {
                let bytes = blob.read_at(0, blob.size() + 1).await.map_err(refuse)?;
                ensure(bytes == client.good, || {
                    format!("wrong bytes were committed at {word}")
                })?;
            }
        }
        Ok(shape(outcomes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inputs_reach_into_a_genuine_state() {
        // Nothing put in: the genuine state passes, and its kind differs from that of a damaged
        // one.
        let genuine = state(b"~5 ").unwrap();
        assert_ne!(genuine, state(b"~5 xyz").unwrap());
        assert_ne!(genuine, state(b"AAAA").unwrap());
    }

    #[test]
    fn a_sequence_reaches_a_commit_and_a_refusal() {
        let kinds = ["C0g4 E1", "C0g4 C0e4 E1", "C0e4 E1", "E0g", "C0g4 X E1"];
        let shapes: std::collections::BTreeSet<_> = kinds
            .iter()
            .map(|input| sequence(input.as_bytes()).unwrap())
            .collect();
        assert!(shapes.len() >= 3, "{shapes:?}");
    }
}
