//! The `_state` of an upload: what any replica needs to go on, signed. Pure.
//!
//! Same form as distribution's (`base64url(HMAC-SHA256(secret, json) || json)`, with `Name`, `UUID`, `Offset`, `StartedAt`), so that sessions survive
//! a change between the two under the same secret. Ours also carries the hash state at `Offset`; where it is missing the file is hashed again.

use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use hmac::{Hmac, KeyInit, Mac};
use holdfast_core::{digest::Algorithm, reference::RepositoryName};
use holdfast_store::{Hasher, UploadId};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// What signs sessions. Every replica has the same; does not print.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// The secret of these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    fn mac(&self, json: &[u8]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(json);
        mac
    }
}

/// Where a session is.
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
}

impl State {
    /// The state of a session that holds `offset` bytes.
    pub fn new(
        repo: &RepositoryName,
        id: &UploadId,
        offset: u64,
        started_at: &str,
        hasher: Option<&Hasher>,
    ) -> Self {
        Self {
            name: repo.to_string(),
            uuid: id.as_str().to_owned(),
            offset,
            started_at: started_at.to_owned(),
            hash: hasher
                .map(|hasher| format!("{}:{}", hasher.algorithm(), hex::encode(hasher.save())))
                .unwrap_or_default(),
        }
    }

    /// Bytes that the session held.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// When it began, RFC 3339.
    pub fn started_at(&self) -> &str {
        &self.started_at
    }

    /// The hash at the offset, or the algorithm to hash again with.
    pub fn hash(&self) -> Result<Hasher, Algorithm> {
        let Some((algorithm, saved)) = self.hash.split_once(':') else {
            return Err(Algorithm::Sha256);
        };
        let algorithm = algorithm.parse().unwrap_or(Algorithm::Sha256);
        let saved = hex::decode(saved).map_err(|_| algorithm)?;
        Hasher::restore(algorithm, &saved).map_err(|_| algorithm)
    }

    /// As it stands in a URL.
    pub fn sign(&self, secret: &Secret) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        let mut bytes = secret.mac(&json).finalize().into_bytes().to_vec();
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
        secret.mac(json).verify_slice(tag).ok()?;
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
            let state = State::new(&repo, &id, 3, "2024-01-01T00:00:00Z", Some(&hasher));
            let back = State::verify(&state.sign(&secret), &secret, &repo, &id).unwrap();
            assert_eq!(back, state);
            assert_eq!(
                back.hash().unwrap().finish(),
                Hasher::digest(algorithm, b"abc")
            );
        }
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
