//! Reads the credentials of pull secrets (`.dockerconfigjson`, `.dockercfg`), and selects and
//! orders those to try for an image (SPEC 35). Passwords are never printed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::reference::{Host, Reference};

/// Entries of one pull secret. The largest possible Secret could hold 90,000.
pub const MAX_ENTRIES: usize = 1024;
/// Bytes of user name, password and token of one credential. Longer ones are not used.
pub const MAX_CREDENTIAL_BYTES: usize = 16 * 1024;
/// Credentials that are tried for one image.
pub const MAX_CANDIDATES: usize = 64;

/// Why a Secret has no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The payload is not JSON of the expected shape. The message quotes nothing of it, because it
    /// may hold a password.
    #[error("the pull secret is not a valid docker configuration (line {line}, column {column})")]
    Shape {
        /// Line of the payload where reading stopped, from 1.
        line: usize,
        /// Column of that line.
        column: usize,
    },
    /// The payload has more than [`MAX_ENTRIES`] entries.
    #[error("the pull secret has more than {MAX_ENTRIES} entries")]
    TooMany,
}

/// Why an entry of a pull secret has no credential. The messages quote nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// The entry is not an object of texts.
    #[error("it is not an object of texts")]
    Shape,
    /// `auth` is no credential, and there is no other one.
    #[error("its `auth` is not the base64 of USER:PASSWORD")]
    Auth,
    /// The credential has more than [`MAX_CREDENTIAL_BYTES`].
    #[error("it is longer than {MAX_CREDENTIAL_BYTES} bytes")]
    TooLong,
}

/// A credential for a registry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Credential {
    /// The user's name; empty with an identity token alone.
    pub username: String,
    /// The password; empty with an identity token alone.
    pub password: String,
    /// An OAuth 2 refresh token, instead of user and password.
    pub identity_token: Option<String>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// The credentials of one pull secret, and its entries that cannot be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PullSecret {
    entries: Vec<(Scope, Credential)>,
    problems: Vec<(Scope, EntryProblem)>,
}

/// The scope of a credential: a host (each label may contain `*`), an optional port, and an
/// optional prefix of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    host: String,
    port: Option<String>,
    path: String,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: Entries,
}

/// Entries by key, up to [`MAX_ENTRIES`]; others are parsed and dropped. `null` has none.
#[derive(Default)]
struct Entries {
    by_key: BTreeMap<String, Entry>,
    too_many: bool,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of credentials by registry")
    }

    fn visit_unit<E>(self) -> Result<Entries, E> {
        Ok(Entries::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Entries::default();
        while entries.by_key.len() < MAX_ENTRIES {
            let Some((key, entry)) = map.next_entry()? else {
                return Ok(entries);
            };
            entries.by_key.insert(key, entry);
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            entries.too_many = true;
        }
        Ok(entries)
    }
}

/// An entry, or a value that is none: it does not make the others invalid.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Fields(Fields),
    Null(()),
    Other(IgnoredAny),
}

#[derive(Deserialize)]
struct Fields {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(alias = "identityToken")]
    identitytoken: Option<String>,
}

/// Accepts missing padding, which docker sometimes writes, and as Go's decoder any trailing bits.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

impl PullSecret {
    /// Reads the payload of a Secret of type `kubernetes.io/dockerconfigjson`, already
    /// base64-decoded by the API.
    pub fn from_dockerconfigjson(payload: &[u8]) -> Result<Self, Error> {
        let config: DockerConfig =
            serde_json::from_slice(payload).map_err(|error| shape(&error))?;
        Self::from_entries(config.auths)
    }

    /// Reads the payload of a Secret of the older type `kubernetes.io/dockercfg`.
    pub fn from_dockercfg(payload: &[u8]) -> Result<Self, Error> {
        let auths = serde_json::from_slice(payload).map_err(|error| shape(&error))?;
        Self::from_entries(auths)
    }

    fn from_entries(auths: Entries) -> Result<Self, Error> {
        if auths.too_many {
            return Err(Error::TooMany);
        }
        let mut secret = Self::default();
        for (key, entry) in auths.by_key {
            let Some(scope) = Scope::parse(&key) else {
                continue;
            };
            match entry.credential() {
                Ok(None) => {}
                Ok(Some(credential)) if credential.bytes() > MAX_CREDENTIAL_BYTES => {
                    secret.problems.push((scope, EntryProblem::TooLong));
                }
                Ok(Some(credential)) => secret.entries.push((scope, credential)),
                Err(problem) => secret.problems.push((scope, problem)),
            }
        }
        Ok(secret)
    }

    /// Whether no usable credential was found.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn shape(error: &serde_json::Error) -> Error {
    Error::Shape {
        line: error.line(),
        column: error.column(),
    }
}

/// The credentials to try for one image, collected from secrets: the most specific scope first,
/// then in the order of the secrets, without duplicates, at most [`MAX_CANDIDATES`] (SPEC 35).
#[derive(Debug)]
pub struct Candidates<'a> {
    reference: &'a Reference,
    found: Vec<((usize, bool), Credential)>,
}

impl<'a> Candidates<'a> {
    /// An empty collection for this image.
    pub const fn new(reference: &'a Reference) -> Self {
        Self {
            reference,
            found: Vec::new(),
        }
    }

    /// Adds the credentials of a secret whose scope includes the image. Returns why another entry
    /// of it for the image cannot be used: one of them, because a secret may have a thousand.
    pub fn add(&mut self, secret: PullSecret) -> Option<EntryProblem> {
        let matching = secret
            .entries
            .into_iter()
            .filter(|(scope, _)| scope.matches(self.reference))
            .map(|(scope, credential)| (scope.specificity(), credential));
        self.found.extend(matching);
        self.found
            .sort_by_key(|(specificity, _)| Reverse(*specificity));
        let mut seen = HashSet::new();
        let kept: Vec<bool> = self
            .found
            .iter()
            .map(|(_, credential)| seen.len() < MAX_CANDIDATES && seen.insert(credential))
            .collect();
        let mut kept = kept.into_iter();
        self.found.retain(|_| kept.next() == Some(true));
        secret
            .problems
            .into_iter()
            .find(|(scope, _)| scope.matches(self.reference))
            .map(|(_, problem)| problem)
    }

    /// The credentials, in the order to try them.
    pub fn into_credentials(self) -> Vec<Credential> {
        self.found
            .into_iter()
            .map(|(_, credential)| credential)
            .collect()
    }
}

/// The credentials to try for an image out of several secrets, in order.
pub fn candidates(
    secrets: impl IntoIterator<Item = PullSecret>,
    reference: &Reference,
) -> Vec<Credential> {
    let mut candidates = Candidates::new(reference);
    for secret in secrets {
        candidates.add(secret);
    }
    candidates.into_credentials()
}

impl Credential {
    fn bytes(&self) -> usize {
        let token = self.identity_token.as_ref().map_or(0, String::len);
        self.username.len() + self.password.len() + token
    }
}

impl Entry {
    /// The credential; `None` if the entry is empty.
    fn credential(self) -> Result<Option<Credential>, EntryProblem> {
        match self {
            Self::Fields(fields) => fields.credential(),
            Self::Null(()) => Ok(None),
            Self::Other(IgnoredAny) => Err(EntryProblem::Shape),
        }
    }
}

impl Fields {
    fn credential(self) -> Result<Option<Credential>, EntryProblem> {
        let identity_token = self.identitytoken.filter(|token| !token.is_empty());
        let auth = self.auth.filter(|auth| !auth.trim().is_empty());
        let decoded = auth.as_deref().and_then(decode_auth);
        let written = self
            .username
            .filter(|name| !name.is_empty())
            .zip(Some(self.password.unwrap_or_default()));
        // docker reads `auth`; kubectl also writes the plain fields.
        let (username, password) = match decoded.or(written) {
            Some(pair) => pair,
            None if identity_token.is_some() => (String::new(), String::new()),
            None if auth.is_some() => return Err(EntryProblem::Auth),
            None => return Ok(None),
        };
        Ok(Some(Credential {
            username,
            password,
            identity_token,
        }))
    }
}

/// Reads the base64 of `user:password`. As in Go's decoder, line breaks within it do not count.
fn decode_auth(auth: &str) -> Option<(String, String)> {
    let auth = auth.trim().replace(['\r', '\n'], "");
    let bytes = BASE64.decode(auth).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    let password = password.trim_end_matches('\0');
    (!username.is_empty()).then(|| (username.to_owned(), password.to_owned()))
}

impl Scope {
    fn parse(key: &str) -> Option<Self> {
        let key = key.trim();
        let key = ["https://", "http://"]
            .into_iter()
            .find_map(|scheme| key.strip_prefix(scheme))
            .unwrap_or(key);
        let (authority, path) = key.split_once('/').unwrap_or((key, ""));
        let path = path.trim_end_matches('/');
        // Old clients write an API version before the repository.
        let path = match path {
            "v1" | "v2" => "",
            _ => path
                .strip_prefix("v2/")
                .or_else(|| path.strip_prefix("v1/"))
                .unwrap_or(path),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
                (host, Some(port))
            }
            _ => (authority, None),
        };
        let host = host.to_ascii_lowercase();
        let host = match (host.as_str(), port) {
            ("", _) => return None,
            (
                "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com",
                None | Some("443"),
            ) => "docker.io".to_owned(),
            _ => host,
        };
        Some(Self {
            host,
            port: port.map(str::to_owned),
            path: path.to_owned(),
        })
    }

    fn matches(&self, reference: &Reference) -> bool {
        self.matches_host(reference.host()) && self.matches_path(reference.repository().as_str())
    }

    fn matches_host(&self, host: &Host) -> bool {
        let default_port = |port: Option<String>| port.unwrap_or_else(|| "443".to_owned());
        if default_port(self.port.clone()) != default_port(host.port().map(|port| port.to_string()))
        {
            return false;
        }
        let name = host.name();
        let pattern: Vec<&str> = self.host.split('.').collect();
        let labels: Vec<&str> = name.split('.').collect();
        pattern.len() == labels.len()
            && pattern
                .iter()
                .zip(&labels)
                .all(|(glob, label)| matches_glob(glob, label))
    }

    fn matches_path(&self, repository: &str) -> bool {
        match repository.strip_prefix(self.path.as_str()) {
            Some(rest) => self.path.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }

    /// Orders scopes: a longer path, then a host without `*`.
    fn specificity(&self) -> (usize, bool) {
        (self.path.len(), !self.host.contains('*'))
    }
}

/// Matches one label of a host against a pattern in which `*` stands for any characters. The first
/// match of a piece between two stars is always correct, so no backtracking is needed.
fn matches_glob(pattern: &str, label: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == label;
    };
    let (pieces, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    let between = label
        .strip_prefix(head)
        .and_then(|rest| rest.strip_suffix(tail));
    let Some(mut between) = between else {
        return false;
    };
    pieces.split('*').all(|piece| {
        between.split_once(piece).is_some_and(|(_, rest)| {
            between = rest;
            true
        })
    })
}

#[cfg(test)]
mod tests;
