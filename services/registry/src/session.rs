//! The `_state` of an upload: what any replica needs to continue it, signed. Pure.
//!
//! Same form as distribution's (`base64url(HMAC-SHA256(secret, json) || json)`, with `Name`,
//! `UUID`, `Offset`, `StartedAt`), so that sessions survive a change between the two under the same
//! secret. Holdfast's state also has the hash state at `Offset` with the generation of the file
//! that it was computed over (without it the file is hashed again), and the client that the session
//! belongs to.
//!
//! A state proves who made it, not that it is the newest: a client may send any state of its
//! session again. The store believes what a state says about the file's bytes only while its
//! generation lasts.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use hmac::{Hmac, KeyInit, Mac};
use holdfast_core::{digest::Algorithm, reference::RepositoryName};
use holdfast_runtime::{CancellationToken, files, reload::Reloads};
use holdfast_store::{CarriedHash, Hasher, UploadId};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use uuid::Uuid;

/// What signs sessions: the first of these secrets; each of them verifies, so that a secret can be
/// changed while uploads run. Every replica has the same. Does not print; clones share it.
#[derive(Clone)]
pub struct Secret(Arc<ArcSwap<Vec<Vec<u8>>>>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// The secret of these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(vec![bytes.into()])))
    }

    /// The secrets of a file, one a line; the first signs.
    ///
    /// # Errors
    /// When the file cannot be read or holds none.
    pub fn from_file(path: &Path) -> std::io::Result<Self> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(read(path)?))))
    }

    /// Reads the file again; on an error the previous secrets stay.
    ///
    /// # Errors
    /// When the file cannot be read or holds none.
    pub fn reload(&self, path: &Path) -> std::io::Result<()> {
        self.0.store(Arc::new(read(path)?));
        Ok(())
    }

    /// Reads the file again when it changes, until `shutdown`.
    pub async fn follow(
        self,
        path: PathBuf,
        every: Duration,
        reloads: Reloads,
        shutdown: CancellationToken,
    ) {
        files::watch(vec![path.clone()], every, shutdown, move || {
            reloads.record("upload-secret", &self.reload(&path));
        })
        .await;
    }

    fn sign(&self, json: &[u8]) -> Vec<u8> {
        let secrets = self.0.load();
        let first = secrets.first().map(Vec::as_slice).unwrap_or_default();
        mac(first, json).finalize().into_bytes().to_vec()
    }

    fn verifies(&self, json: &[u8], tag: &[u8]) -> bool {
        self.0
            .load()
            .iter()
            .any(|secret| mac(secret, json).verify_slice(tag).is_ok())
    }
}

fn mac(secret: &[u8], json: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(json);
    mac
}

fn read(path: &Path) -> std::io::Result<Vec<Vec<u8>>> {
    let secrets: Vec<_> = std::fs::read(path)?
        .split(|byte| *byte == b'\n')
        .map(|line| line.trim_ascii_end().to_vec())
        .filter(|line| !line.is_empty())
        .collect();
    if secrets.is_empty() {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!("{} is empty", path.display()),
        ));
    }
    Ok(secrets)
}

/// The state of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct State {
    name: String,
    #[serde(rename = "UUID")]
    uuid: String,
    offset: u64,
    started_at: String,
    /// `algorithm:hex` of the hash state at `offset`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    hash: String,
    /// The generation of the file that the hash was computed over.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    generation: String,
    /// Whose the session is; empty: anyone who may push to the repository, as with distribution's
    /// own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    subject: String,
}

impl State {
    /// The state of a session that holds `offset` bytes.
    pub fn new(
        repo: &RepositoryName,
        id: &UploadId,
        offset: u64,
        started_at: &str,
        carried: Option<&CarriedHash>,
    ) -> Self {
        Self {
            name: repo.to_string(),
            uuid: id.as_str().to_owned(),
            offset,
            started_at: started_at.to_owned(),
            hash: carried
                .map(|CarriedHash { hasher, .. }| {
                    format!("{}:{}", hasher.algorithm(), hex::encode(hasher.save()))
                })
                .unwrap_or_default(),
            generation: carried
                .and_then(|carried| carried.generation)
                .map(|generation| generation.to_string())
                .unwrap_or_default(),
            subject: String::new(),
        }
    }

    /// The same, of this caller.
    #[must_use]
    pub fn of(mut self, subject: &str) -> Self {
        subject.clone_into(&mut self.subject);
        self
    }

    /// The owner of the session; may be empty.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Whether the session is this caller's. One without a subject was opened by an anonymous
    /// client or by distribution.
    pub fn is_of(&self, subject: &str) -> bool {
        self.subject.is_empty() || self.subject == subject
    }

    /// Bytes that the session had.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// When it began, RFC 3339.
    pub fn started_at(&self) -> &str {
        &self.started_at
    }

    /// The hash at the offset; one that does not parse is replaced by none of the same algorithm.
    pub fn carried(&self) -> CarriedHash {
        let (algorithm, saved) = self.hash.split_once(':').unwrap_or_default();
        let algorithm = algorithm.parse().unwrap_or(Algorithm::Sha256);
        let restored = hex::decode(saved)
            .ok()
            .and_then(|saved| Hasher::restore(algorithm, &saved).ok());
        restored.map_or_else(
            || CarriedHash::none(algorithm),
            |hasher| CarriedHash {
                hasher,
                generation: Uuid::try_parse(&self.generation).ok(),
            },
        )
    }

    /// The state as it is written in a URL.
    pub fn sign(&self, secret: &Secret) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        let mut bytes = secret.sign(&json);
        bytes.extend(json);
        URL_SAFE.encode(bytes)
    }

    /// Reads a state that this secret signed for this session; `None` for anything else.
    pub fn verify(
        text: &str,
        secret: &Secret,
        repo: &RepositoryName,
        id: &UploadId,
    ) -> Option<Self> {
        let bytes = URL_SAFE.decode(text).ok()?;
        let (tag, json) = bytes.split_at_checked(32)?;
        if !secret.verifies(json, tag) {
            return None;
        }
        let state: Self = serde_json::from_slice(json).ok()?;
        (state.name == repo.as_str() && state.uuid == id.as_str()).then_some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> (Secret, RepositoryName, UploadId) {
        (
            Secret::new("s"),
            RepositoryName::parse("a/b").unwrap(),
            UploadId::parse("018f4d0c-0000-7000-8000-000000000001").unwrap(),
        )
    }

    #[test]
    fn signed_state_comes_back_with_its_hash() {
        let (secret, repo, id) = setup();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(b"abc");
            let generation = Some(Uuid::from_u128(7));
            let carried = CarriedHash { hasher, generation };
            let state = State::new(&repo, &id, 3, "2024-01-01T00:00:00Z", Some(&carried));
            let back = State::verify(&state.sign(&secret), &secret, &repo, &id).unwrap();
            assert_eq!(back, state);
            let carried = back.carried();
            assert_eq!(carried.hasher.finish(), Hasher::digest(algorithm, b"abc"));
            assert_eq!(carried.generation, generation);
        }
    }

    /// As distribution and an older Holdfast sign them.
    #[test]
    fn a_state_without_generation_or_hash_carries_no_hash_that_is_believed() {
        let (_, repo, id) = setup();
        for hash in ["", r#","hash":"sha256:00""#, r#","hash":"md5:00""#] {
            let uuid = id.as_str();
            let json =
                format!(r#"{{"Name":"{repo}","UUID":"{uuid}","Offset":3,"StartedAt":""{hash}}}"#);
            let state: State = serde_json::from_str(&json.replace("hash", "Hash")).unwrap();
            let carried = state.carried();
            assert_eq!(carried.generation, None, "{hash}");
            assert_eq!(carried.hasher.algorithm(), Algorithm::Sha256, "{hash}");
        }
    }

    #[test]
    fn an_older_secret_verifies_until_it_is_gone() {
        let (_, repo, id) = setup();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "one\n").unwrap();
        let secret = Secret::from_file(&path).unwrap();
        let old = State::new(&repo, &id, 3, "", None).sign(&secret);
        std::fs::write(&path, "two\none\n").unwrap();
        secret.reload(&path).unwrap();
        let new = State::new(&repo, &id, 3, "", None).sign(&secret);
        assert_ne!(old, new, "the first line signs");
        assert!(State::verify(&old, &secret, &repo, &id).is_some());
        std::fs::write(&path, "\n").unwrap();
        assert!(secret.reload(&path).is_err());
        assert!(
            State::verify(&new, &secret, &repo, &id).is_some(),
            "the last good file stays"
        );
        std::fs::write(&path, "two").unwrap();
        secret.reload(&path).unwrap();
        assert!(State::verify(&new, &secret, &repo, &id).is_some());
        assert!(State::verify(&old, &secret, &repo, &id).is_none());
    }

    #[test]
    fn a_session_is_its_openers() {
        let (_, repo, id) = setup();
        let state = State::new(&repo, &id, 3, "", None);
        assert!(state.is_of("user:a") && state.is_of(""));
        let state = state.of("user:a");
        assert!(state.is_of("user:a"));
        assert!(!state.is_of("user:b") && !state.is_of(""));
    }

    #[test]
    fn nothing_else_passes() {
        let (secret, repo, id) = setup();
        let signed = State::new(&repo, &id, 3, "", None).sign(&secret);
        assert!(State::verify(&signed, &secret, &repo, &id).is_some());
        assert!(State::verify(&signed, &Secret::new("other"), &repo, &id).is_none());
        assert!(
            State::verify(&signed, &secret, &RepositoryName::parse("c").unwrap(), &id).is_none()
        );
        let mut other = URL_SAFE.decode(&signed).unwrap();
        *other.last_mut().unwrap() ^= 1;
        assert!(State::verify(&URL_SAFE.encode(other), &secret, &repo, &id).is_none());
        assert!(State::verify("", &secret, &repo, &id).is_none());
        assert!(State::verify("AAAA", &secret, &repo, &id).is_none());
    }
}
