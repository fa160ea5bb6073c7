//! Credentials out of pull secrets (`.dockerconfigjson`, `.dockercfg`), and which of them to try for an image, in
//! which order (SPEC 35). Passwords never print.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use crate::reference::{Host, Reference};

/// Why a Secret's payload holds no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The payload is not JSON of the expected shape. What it says is not repeated: it may hold a password.
    #[error("the pull secret is not a valid docker configuration (line {line}, column {column})")]
    Shape {
        /// Line of the payload where reading stopped, from 1.
        line: usize,
        /// Column of that line.
        column: usize,
    },
}

/// One way to log in at a registry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Credential {
    /// The user's name; empty with an identity token alone.
    pub username: String,
    /// The password; empty with an identity token alone.
    pub password: String,
    /// An OAuth 2 refresh token that stands for user and password.
    pub identity_token: Option<String>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// The credentials of one pull secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PullSecret {
    entries: Vec<(Scope, Credential)>,
}

/// What a credential is for: a host (each label may hold `*`), perhaps a port, perhaps a prefix of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    host: String,
    port: Option<String>,
    path: String,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Option<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(alias = "identityToken")]
    identitytoken: Option<String>,
}

/// Tolerates padding that is missing, which docker itself writes at times.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl PullSecret {
    /// Reads the payload of a Secret of type `kubernetes.io/dockerconfigjson`, already base64-decoded by the API.
    pub fn from_dockerconfigjson(payload: &[u8]) -> Result<Self, Error> {
        let config: DockerConfig =
            serde_json::from_slice(payload).map_err(|error| shape(&error))?;
        Ok(Self::from_entries(config.auths))
    }

    /// Reads the payload of a Secret of the older type `kubernetes.io/dockercfg`.
    pub fn from_dockercfg(payload: &[u8]) -> Result<Self, Error> {
        let auths = serde_json::from_slice(payload).map_err(|error| shape(&error))?;
        Ok(Self::from_entries(auths))
    }

    fn from_entries(auths: BTreeMap<String, Option<Entry>>) -> Self {
        let entries = auths
            .into_iter()
            .filter_map(|(key, entry)| Some((Scope::parse(&key)?, entry?.credential()?)))
            .collect();
        Self { entries }
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

/// The credentials to try for an image, in order: the most specific scope first, then in the order of the secrets;
/// none twice (SPEC 35).
pub fn candidates(secrets: &[PullSecret], reference: &Reference) -> Vec<Credential> {
    let mut matching: Vec<(&Scope, &Credential)> = secrets
        .iter()
        .flat_map(|secret| &secret.entries)
        .filter(|(scope, _)| scope.matches(reference))
        .map(|(scope, credential)| (scope, credential))
        .collect();
    matching.sort_by_key(|(scope, _)| std::cmp::Reverse(scope.specificity()));
    let mut found: Vec<Credential> = Vec::new();
    for (_, credential) in matching {
        if !found.contains(credential) {
            found.push(credential.clone());
        }
    }
    found
}

impl Entry {
    fn credential(self) -> Option<Credential> {
        let identity_token = self.identitytoken.filter(|token| !token.is_empty());
        let decoded = self.auth.as_deref().and_then(decode_auth);
        let written = self
            .username
            .filter(|name| !name.is_empty())
            .zip(Some(self.password.unwrap_or_default()));
        // `auth` is what docker reads; the plain fields are what kubectl writes beside it.
        let (username, password) = match decoded.or(written) {
            Some(pair) => pair,
            None if identity_token.is_some() => (String::new(), String::new()),
            None => return None,
        };
        Some(Credential {
            username,
            password,
            identity_token,
        })
    }
}

fn decode_auth(auth: &str) -> Option<(String, String)> {
    let bytes = BASE64.decode(auth.trim()).ok()?;
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
        // API versions in front of the repository are a habit of old clients.
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

/// Matches one label of a host against a pattern where `*` stands for any run of characters.
fn matches_glob(pattern: &str, label: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == label;
    };
    let Some(rest) = label.strip_prefix(head) else {
        return false;
    };
    if tail.is_empty() {
        return true;
    }
    rest.char_indices()
        .map(|(index, _)| index)
        .chain([rest.len()])
        .any(|index| {
            rest.get(index..)
                .is_some_and(|rest| matches_glob(tail, rest))
        })
}

#[cfg(test)]
mod tests;
