//! Image references by the grammar of distribution: strict, bounded in length, and normalised as
//! container runtimes do: `nginx` is `docker.io/library/nginx:latest`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{self, Digest};

mod host;
mod repair;

pub use host::Host;
pub use repair::repair;

/// Longest repository name, in characters (distribution's `NameTotalLengthMax`).
pub const MAX_NAME_LENGTH: usize = 255;
/// Longest tag, in characters.
pub const MAX_TAG_LENGTH: usize = 128;
/// The host of a reference without one.
pub const DEFAULT_HOST: &str = "docker.io";
/// The tag of a reference without tag and digest.
pub const DEFAULT_TAG: &str = "latest";

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is empty.
    #[error("the reference is empty")]
    Empty,
    /// The host is invalid.
    #[error("the host is neither a name, an IPv4 address nor an IPv6 address in brackets")]
    Host,
    /// The port is not a number from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// The repository does not match the grammar.
    #[error(
        "the repository name is not lower-case letters and digits, joined by '.', '_', '__' or '-', in parts separated by single slashes"
    )]
    Repository,
    /// The repository is longer than [`MAX_NAME_LENGTH`].
    #[error("the repository name is longer than 255 characters")]
    TooLong,
    /// 64 hex digits alone are the identifier of an image, not a name.
    #[error("64 hex digits are an image identifier, not a name")]
    Identifier,
    /// The tag does not match the grammar, or is longer than [`MAX_TAG_LENGTH`].
    #[error(
        "the tag is not up to 128 letters, digits, '_', '.' or '-' with a letter, digit or '_' first"
    )]
    Tag,
    /// The text after the `@` is not a digest.
    #[error("the digest is not valid: {0}")]
    Digest(#[from] digest::Error),
}

/// The name of a repository: lower-case components separated by slashes, at most 255 characters.
/// Safe as a relative path: no component is empty, `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryName(String);

impl RepositoryName {
    /// Parses a name by the grammar of distribution.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.len() > MAX_NAME_LENGTH {
            return Err(Error::TooLong);
        }
        if !text.split('/').all(is_path_component) {
            return Err(Error::Repository);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The components; there is at least one.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

/// `[a-z0-9]+ ( ( "." | "_" | "__" | "-"+ ) [a-z0-9]+ )*`
fn is_path_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    bytes.split(alphanumeric).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

/// A tag: up to 128 letters, digits, `_`, `.` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

impl Tag {
    /// Parses a tag by the grammar of distribution.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let valid = text.len() <= MAX_TAG_LENGTH
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|b| word(b) || b == b'.' || b == b'-');
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::Tag)
        }
    }

    /// The tag `latest`.
    pub fn latest() -> Self {
        Self(DEFAULT_TAG.to_owned())
    }

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A full image reference: host, repository, and a tag, a digest or both. Prints in canonical form,
/// `docker.io/library/nginx:latest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    host: Host,
    repository: RepositoryName,
    tag: Option<Tag>,
    digest: Option<Digest>,
}

impl Reference {
    /// Builds a reference. Without tag and digest it gets the tag `latest`.
    pub fn new(
        host: Host,
        repository: RepositoryName,
        tag: Option<Tag>,
        digest: Option<Digest>,
    ) -> Self {
        let tag = if tag.is_none() && digest.is_none() {
            Some(Tag::latest())
        } else {
            tag
        };
        Self {
            host,
            repository,
            tag,
            digest,
        }
    }

    /// Parses and normalises the `image` of a pod: without a host it is at `docker.io`, a single
    /// component there is in `library/`, and without tag and digest the tag is `latest`. The host
    /// becomes lower case.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Empty);
        }
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(Error::Identifier);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let (host, rest) = match rest.split_once('/') {
            Some((first, rest)) if host::looks_like_host(first) => (Host::parse(first)?, rest),
            _ => (Host::docker_hub(), rest),
        };
        // After the host, a colon can only start the tag.
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(Tag::parse(tag)?)),
            None => (rest, None),
        };
        let repository = if host.is_docker_hub() && !path.contains('/') {
            RepositoryName::parse(path)?;
            RepositoryName::parse(&format!("library/{path}"))?
        } else {
            RepositoryName::parse(path)?
        };
        Ok(Self::new(host, repository, tag, digest))
    }

    /// The host of the registry, with the port if one is written.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The repository on that host.
    pub fn repository(&self) -> &RepositoryName {
        &self.repository
    }

    /// The tag; `None` only if there is a digest.
    pub fn tag(&self) -> Option<&Tag> {
        self.tag.as_ref()
    }

    /// The digest, which takes precedence over a tag.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What to request from a registry: the digest if there is one, otherwise the tag.
    pub fn target(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag.as_str(),
            (None, None) => DEFAULT_TAG,
        }
    }

    /// The same image, pinned to a digest.
    #[must_use]
    pub fn with_digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// The short form that people write: without `docker.io/`, `library/` and `:latest`, if that
    /// means the same.
    pub fn familiar(&self) -> String {
        let full = format!("{}/{}", self.host, self.repository.as_str());
        let path = self.repository.as_str();
        let short = path
            .strip_prefix("library/")
            .filter(|name| !name.contains('/'))
            .unwrap_or(path);
        // The first component of the path could look like a host.
        let means_this = self.host.is_docker_hub()
            && Self::parse(short)
                .is_ok_and(|meant| meant.host == self.host && meant.repository == self.repository);
        let name = if means_this { short.to_owned() } else { full };
        let only_latest = self.digest.is_none()
            && self
                .tag
                .as_ref()
                .is_some_and(|tag| tag.as_str() == DEFAULT_TAG);
        if only_latest {
            name
        } else {
            format!("{name}{}", self.suffix())
        }
    }

    /// `[:tag][@digest]`, the part after the repository.
    pub fn suffix(&self) -> String {
        let tag = self
            .tag
            .as_ref()
            .map(|tag| format!(":{tag}"))
            .unwrap_or_default();
        let digest = self
            .digest
            .as_ref()
            .map(|digest| format!("@{digest}"))
            .unwrap_or_default();
        tag + &digest
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.host, self.repository, self.suffix())
    }
}

/// The conversions of types that parse from and print as text.
macro_rules! text_conversions {
    ($($type:ty),*) => {$(
        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                Self::parse(&text)
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )*};
}
text_conversions!(Host, RepositoryName, Tag, Reference);

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for RepositoryName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Tag {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// How a manifest is named in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestRef {
    /// By tag, which may move.
    Tag(Tag),
    /// By digest.
    Digest(Digest),
}

impl fmt::Display for ManifestRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
