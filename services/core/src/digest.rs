//! Content digests: `algorithm:hex`. Parsing is strict, so a digest is always safe as a file name
//! and in a URL.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no `:` between an algorithm and its hex digits.
    #[error("a digest is written algorithm:hex")]
    NoAlgorithm,
    /// The algorithm is neither `sha256` nor `sha512`.
    #[error("digest algorithm is not supported: only sha256 and sha512 are")]
    UnsupportedAlgorithm,
    /// The number of hex digits does not fit the algorithm.
    #[error("a {algorithm} digest has {expected} hex digits, not {found}")]
    WrongLength {
        /// The algorithm.
        algorithm: Algorithm,
        /// The number of hex digits that the algorithm needs.
        expected: usize,
        /// The number of hex digits in the text.
        found: usize,
    },
    /// A character is not one of `0-9a-f`. Upper case is not canonical.
    #[error("a digest has lower-case hex digits only")]
    NotHex,
}

/// A registered digest algorithm of the OCI image specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256: 64 hex digits.
    Sha256,
    /// SHA-512: 128 hex digits.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The number of hex digits of a digest.
    pub fn hex_length(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(Error::UnsupportedAlgorithm),
        }
    }
}

/// The digest of some content, in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    text: String,
}

impl Digest {
    /// Parses `algorithm:hex`. The result prints exactly as `text`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (algorithm, hex) = text.split_once(':').ok_or(Error::NoAlgorithm)?;
        Self::from_hex(algorithm.parse()?, hex)
    }

    /// Makes a digest from an algorithm and its lower-case hex digits.
    pub fn from_hex(algorithm: Algorithm, hex: &str) -> Result<Self, Error> {
        if hex.len() != algorithm.hex_length() {
            return Err(Error::WrongLength {
                algorithm,
                expected: algorithm.hex_length(),
                found: hex.chars().count(),
            });
        }
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(Error::NotHex);
        }
        Ok(Self {
            algorithm,
            text: format!("{algorithm}:{hex}"),
        })
    }

    /// Makes a SHA-256 digest from the hash's raw bytes.
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        Self::from_bytes(Algorithm::Sha256, &hash)
    }

    /// Makes a SHA-512 digest from the hash's raw bytes.
    pub fn from_sha512(hash: [u8; 64]) -> Self {
        Self::from_bytes(Algorithm::Sha512, &hash)
    }

    fn from_bytes(algorithm: Algorithm, hash: &[u8]) -> Self {
        use fmt::Write as _;
        let mut text = format!("{algorithm}:");
        for byte in hash {
            write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        }
        Self { algorithm, text }
    }

    /// The algorithm before the colon.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The lower-case hex digits after the colon.
    pub fn hex(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The whole digest, `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_print_as_they_were_written() {
        for text in [
            format!("sha256:{}", "0a".repeat(32)),
            format!("sha512:{}", "ff".repeat(64)),
        ] {
            let digest = Digest::parse(&text).unwrap();
            assert_eq!(digest.to_string(), text);
            assert_eq!(format!("{}:{}", digest.algorithm(), digest.hex()), text);
            let json = serde_json::to_string(&digest).unwrap();
            assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        }
    }

    #[test]
    fn what_is_no_digest_is_refused_with_its_reason() {
        let length = |expected, found, algorithm| Error::WrongLength {
            algorithm,
            expected,
            found,
        };
        let table = [
            (String::new(), Error::NoAlgorithm),
            ("a".repeat(64), Error::NoAlgorithm),
            (
                format!("md5:{}", "a".repeat(32)),
                Error::UnsupportedAlgorithm,
            ),
            (
                format!("SHA256:{}", "a".repeat(64)),
                Error::UnsupportedAlgorithm,
            ),
            ("sha256:".to_owned(), length(64, 0, Algorithm::Sha256)),
            (
                format!("sha256:{}", "a".repeat(63)),
                length(64, 63, Algorithm::Sha256),
            ),
            (
                format!("sha512:{}", "a".repeat(64)),
                length(128, 64, Algorithm::Sha512),
            ),
            (format!("sha256:{}", "A".repeat(64)), Error::NotHex),
            (format!("sha256:../{}", "a".repeat(61)), Error::NotHex),
        ];
        for (text, expected) in table {
            assert_eq!(Digest::parse(&text), Err(expected), "{text}");
        }
    }

    #[test]
    fn raw_hashes_become_digests() {
        assert_eq!(
            Digest::from_sha256([0xab; 32]).to_string(),
            format!("sha256:{}", "ab".repeat(32))
        );
        assert_eq!(Digest::from_sha512([1; 64]).hex(), "01".repeat(64));
    }
}
